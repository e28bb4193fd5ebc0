/*
 * ht_dw.h - kernel rows of a depthwise convolution over four channels; internal to DEPTHWISE_CONV_2D.
 *
 * A group is what one pass handles: on DSP two kernel rows (a last odd one alone), on MVE one.
 * Taps of a group, per kernel column:
 *   DSP, made in scratch by ht_dw_prepare, int16: pair {b0 a0} {b1 a1} {b2 a2} {b3 a3}; single {w2 w0} {w3 w1}.
 *   MVE: the four bytes as they lie in flash.
 * Input column k of a row is at p + k * step, 4-byte aligned; step 0 repeats one column (padding).
 */
#ifndef HT_DW_H
#define HT_DW_H

#include "ht_internal.h"

typedef struct ht_dw_group {
  const int8_t *p, *q; /* input rows, q NULL for a single */
  const int8_t *taps;
} ht_dw_group;

#if HT_MVE

#define HT_DW_ROWS 1
typedef int32x4_t ht_dw_sum;

HT_INLINE ht_dw_sum ht_dw_start(const int8_t *bias) {
  return vldrwq_s32((const int32_t *)(const void *)bias);
}

HT_INLINE ht_dw_sum ht_dw_single(const int8_t *p, int32_t step, int32_t width, const int8_t *w, ht_dw_sum sum) {
  for (; width > 0; --width, p += step, w += 4) {
    sum = vaddq_s32(sum, vmulq_s32(vldrbq_s32(p), vldrbq_s32(w)));
  }
  return sum;
}

HT_INLINE void ht_dw_store(ht_dw_sum sum, const ht_rq4 *rq, int32_t zero2, int8_t *out) {
  ht_store_vector(sum, rq, zero2, out);
}

HT_INLINE ht_sum4 ht_dw_scalars(ht_dw_sum sum) {
  ht_sum4 s;
  vstrwq_s32(&s.a, sum);
  return s;
}

#elif HT_DSP

#define HT_DW_ROWS 2
typedef ht_sum4 ht_dw_sum;

HT_INLINE ht_dw_sum ht_dw_start(const int8_t *bias) {
  return ht_load4(bias);
}

HT_INLINE void ht_dw_store(ht_dw_sum sum, const ht_rq4 *rq, int32_t zero2, int8_t *out) {
  ht_store4(sum, rq, zero2, out);
}

HT_INLINE ht_sum4 ht_dw_scalars(ht_dw_sum sum) {
  return sum;
}

/* One column of two rows: 8 multiply-accumulates in 14 instructions. */
#define HT_DW_PAIR(A, B)                      \
  "ldr %[xa], " A "\n\t"                      \
  "ldr %[xb], " B "\n\t"                      \
  "pkhbt %[t], %[xa], %[xb], lsl #16\n\t"     \
  "pkhtb %[xb], %[xb], %[xa], asr #16\n\t"    \
  "ldrd %[w0], %[w1], [%[w]], #8\n\t"         \
  "sxtb16 %[xa], %[t]\n\t"                    \
  "sxtb16 %[t], %[t], ror #8\n\t"             \
  "smlad %[a0], %[xa], %[w0], %[a0]\n\t"      \
  "smlad %[a1], %[t], %[w1], %[a1]\n\t"       \
  "ldrd %[w0], %[w1], [%[w]], #8\n\t"         \
  "sxtb16 %[xa], %[xb]\n\t"                   \
  "sxtb16 %[xb], %[xb], ror #8\n\t"           \
  "smlad %[a2], %[xa], %[w0], %[a2]\n\t"      \
  "smlad %[a3], %[xb], %[w1], %[a3]\n\t"
#define HT_DW_PAIR_NEXT                  \
  "add %[p], %[p], %[s]\n\t"             \
  "add %[p], %[p], %[s], lsl #1\n\t"     \
  "add %[q], %[q], %[s]\n\t"             \
  "add %[q], %[q], %[s], lsl #1\n\t"
#define HT_DW_PAIR_X1 HT_DW_PAIR("[%[p]]", "[%[q]]")
#define HT_DW_PAIR_X2 HT_DW_PAIR_X1 HT_DW_PAIR("[%[p], %[s]]", "[%[q], %[s]]")
#define HT_DW_PAIR_X3 HT_DW_PAIR_X2 HT_DW_PAIR("[%[p], %[s], lsl #1]", "[%[q], %[s], lsl #1]")

/* One column of one row: 4 in 8. */
#define HT_DW_ONE(A)                          \
  "ldr %[xb], " A "\n\t"                      \
  "ldrd %[w0], %[w1], [%[w]], #8\n\t"         \
  "sxtb16 %[xa], %[xb]\n\t"                   \
  "sxtb16 %[xb], %[xb], ror #8\n\t"           \
  "smlabb %[a0], %[xa], %[w0], %[a0]\n\t"     \
  "smlabb %[a1], %[xb], %[w1], %[a1]\n\t"     \
  "smlatt %[a2], %[xa], %[w0], %[a2]\n\t"     \
  "smlatt %[a3], %[xb], %[w1], %[a3]\n\t"
#define HT_DW_ONE_NEXT "add %[p], %[p], %[s]\n\tadd %[p], %[p], %[s], lsl #1\n\t"
#define HT_DW_ONE_X1 HT_DW_ONE("[%[p]]")
#define HT_DW_ONE_X2 HT_DW_ONE_X1 HT_DW_ONE("[%[p], %[s]]")
#define HT_DW_ONE_X3 HT_DW_ONE_X2 HT_DW_ONE("[%[p], %[s], lsl #1]")

#define HT_DW_SUMS [a0] "+r"(sum.a), [a1] "+r"(sum.b), [a2] "+r"(sum.c), [a3] "+r"(sum.d), [w] "+r"(w), [p] "+r"(p)
#define HT_DW_TEMPS [xa] "=&r"(xa), [xb] "=&r"(xb), [w0] "=&r"(w0), [w1] "=&r"(w1)
#define HT_DW_ASM2(BODY) \
  __asm__ volatile(BODY : HT_DW_SUMS, [q] "+r"(q), [t] "=&r"(t), HT_DW_TEMPS : [s] "r"(step) : "memory")
#define HT_DW_ASM1(BODY) __asm__ volatile(BODY : HT_DW_SUMS, HT_DW_TEMPS : [s] "r"(step) : "memory")

HT_INLINE ht_dw_sum ht_dw_pair(const int8_t *p, const int8_t *q, int32_t step, int32_t width, const int8_t *w,
                               ht_dw_sum sum) {
  int32_t xa, xb, t, w0, w1;
  if (width == 3) {
    HT_DW_ASM2(HT_DW_PAIR_X3);
  } else if (width == 5) {
    HT_DW_ASM2(HT_DW_PAIR_X3 HT_DW_PAIR_NEXT HT_DW_PAIR_X2);
  } else if (width == 7) {
    HT_DW_ASM2(HT_DW_PAIR_X3 HT_DW_PAIR_NEXT HT_DW_PAIR_X3 HT_DW_PAIR_NEXT HT_DW_PAIR_X1);
  } else {
    for (; width > 0; --width, p += step, q += step) {
      HT_DW_ASM2(HT_DW_PAIR_X1);
    }
  }
  return sum;
}

HT_INLINE ht_dw_sum ht_dw_single(const int8_t *p, int32_t step, int32_t width, const int8_t *w, ht_dw_sum sum) {
  int32_t xa, xb, w0, w1;
  if (width == 3) {
    HT_DW_ASM1(HT_DW_ONE_X3);
  } else if (width == 5) {
    HT_DW_ASM1(HT_DW_ONE_X3 HT_DW_ONE_NEXT HT_DW_ONE_X2);
  } else if (width == 7) {
    HT_DW_ASM1(HT_DW_ONE_X3 HT_DW_ONE_NEXT HT_DW_ONE_X3 HT_DW_ONE_NEXT HT_DW_ONE_X1);
  } else {
    for (; width > 0; --width, p += step) {
      HT_DW_ASM1(HT_DW_ONE_X1);
    }
  }
  return sum;
}

/* Expands `width` columns of taps; b NULL makes a single. Returns the end. */
static inline int8_t *ht_dw_prepare(const int8_t *a, const int8_t *b, int32_t width, int8_t *to) {
  int32_t xa, xb, t;
  if (b != NULL) {
    for (; width > 0; --width) {
      __asm__ volatile(
          "ldr %[xa], [%[a]], #4\n\t"
          "ldr %[xb], [%[b]], #4\n\t"
          "pkhbt %[t], %[xa], %[xb], lsl #16\n\t"
          "pkhtb %[xb], %[xb], %[xa], asr #16\n\t"
          "sxtb16 %[xa], %[t]\n\t"
          "sxtb16 %[t], %[t], ror #8\n\t"
          "strd %[xa], %[t], [%[o]], #8\n\t"
          "sxtb16 %[xa], %[xb]\n\t"
          "sxtb16 %[xb], %[xb], ror #8\n\t"
          "strd %[xa], %[xb], [%[o]], #8"
          : [o] "+r"(to), [a] "+r"(a), [b] "+r"(b), [xa] "=&r"(xa), [xb] "=&r"(xb), [t] "=&r"(t)
          :
          : "memory");
    }
  }
  for (; width > 0; --width) {
    __asm__ volatile(
        "ldr %[xb], [%[a]], #4\n\t"
        "sxtb16 %[xa], %[xb]\n\t"
        "sxtb16 %[xb], %[xb], ror #8\n\t"
        "strd %[xa], %[xb], [%[o]], #8"
        : [o] "+r"(to), [a] "+r"(a), [xa] "=&r"(xa), [xb] "=&r"(xb)
        :
        : "memory");
  }
  return to;
}

#endif
#endif
