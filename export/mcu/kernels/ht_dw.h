/*
 * ht_dw.h - kernel rows of a depthwise convolution over four channels; internal to DEPTHWISE_CONV_2D.
 *
 * ht_dw_prepare turns one block's taps into the form that the row functions read and returns it:
 *   DSP: int16 in scratch. For each pair of kernel rows (a, b) and column: {b0 a0} {b1 a1} {b2 a2} {b3 a3}, then for an
 *        odd last row per column {w2 w0} {w3 w1}. 8 bytes per tap.
 *   MVE: the taps as they lie in flash.
 * The row functions add to acc and return the taps that follow. Input column k is at p + k * step, 4-byte aligned.
 */
#ifndef HT_DW_H
#define HT_DW_H

#include "ht_internal.h"

#if HT_DSP && !HT_MVE

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
#define HT_DW_PAIR0 HT_DW_PAIR("[%[p]]", "[%[q]]")
#define HT_DW_PAIR1 HT_DW_PAIR0 HT_DW_PAIR("[%[p], %[s]]", "[%[q], %[s]]")
#define HT_DW_PAIR2 HT_DW_PAIR1 HT_DW_PAIR("[%[p], %[s], lsl #1]", "[%[q], %[s], lsl #1]")

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
#define HT_DW_ONE0 HT_DW_ONE("[%[p]]")
#define HT_DW_ONE1 HT_DW_ONE0 HT_DW_ONE("[%[p], %[s]]")
#define HT_DW_ONE2 HT_DW_ONE1 HT_DW_ONE("[%[p], %[s], lsl #1]")

#define HT_DW_ACC [a0] "+r"(a0), [a1] "+r"(a1), [a2] "+r"(a2), [a3] "+r"(a3), [w] "+r"(w), [p] "+r"(p)
#define HT_DW_TEMP [xa] "=&r"(xa), [xb] "=&r"(xb), [w0] "=&r"(w0), [w1] "=&r"(w1)
#define HT_DW_ASM2(BODY) \
  __asm__ volatile(BODY : HT_DW_ACC, [q] "+r"(q), [t] "=&r"(t), HT_DW_TEMP : [s] "r"(step) : "memory")
#define HT_DW_ASM1(BODY) __asm__ volatile(BODY : HT_DW_ACC, HT_DW_TEMP : [s] "r"(step) : "memory")

HT_INLINE const int8_t *ht_dw_rows2(const int8_t *p, const int8_t *q, int32_t step, int32_t width,
                                        const int8_t *w, ht_sum4 *acc) {
  int32_t a0 = acc->a, a1 = acc->b, a2 = acc->c, a3 = acc->d;
  int32_t xa, xb, t, w0, w1;
  if (width == 3) {
    HT_DW_ASM2(HT_DW_PAIR2);
  } else if (width == 5) {
    HT_DW_ASM2(HT_DW_PAIR2 HT_DW_PAIR_NEXT HT_DW_PAIR1);
  } else if (width == 7) {
    HT_DW_ASM2(HT_DW_PAIR2 HT_DW_PAIR_NEXT HT_DW_PAIR2 HT_DW_PAIR_NEXT HT_DW_PAIR0);
  } else {
    for (; width > 0; --width, p += step, q += step) {
      HT_DW_ASM2(HT_DW_PAIR0);
    }
  }
  acc->a = a0;
  acc->b = a1;
  acc->c = a2;
  acc->d = a3;
  return w;
}

HT_INLINE const int8_t *ht_dw_rows1(const int8_t *p, int32_t step, int32_t width, const int8_t *w,
                                        ht_sum4 *acc) {
  int32_t a0 = acc->a, a1 = acc->b, a2 = acc->c, a3 = acc->d;
  int32_t xa, xb, w0, w1;
  if (width == 3) {
    HT_DW_ASM1(HT_DW_ONE2);
  } else if (width == 5) {
    HT_DW_ASM1(HT_DW_ONE2 HT_DW_ONE_NEXT HT_DW_ONE1);
  } else if (width == 7) {
    HT_DW_ASM1(HT_DW_ONE2 HT_DW_ONE_NEXT HT_DW_ONE2 HT_DW_ONE_NEXT HT_DW_ONE0);
  } else {
    for (; width > 0; --width, p += step) {
      HT_DW_ASM1(HT_DW_ONE0);
    }
  }
  acc->a = a0;
  acc->b = a1;
  acc->c = a2;
  acc->d = a3;
  return w;
}

HT_INLINE const int8_t *ht_dw_prepare(const int8_t *w, int32_t height, int32_t width, int32_t *to) {
  const int8_t *const made = (const int8_t *)to;
  const int32_t pitch = 4 * width;
  int32_t xa, xb, t;
  for (; height >= 2; height -= 2, w += pitch) {
    for (int32_t k = 0; k < width; ++k, w += 4) {
      __asm__ volatile(
          "ldr %[xa], [%[w]]\n\t"
          "ldr %[xb], [%[w], %[n]]\n\t"
          "pkhbt %[t], %[xa], %[xb], lsl #16\n\t"
          "pkhtb %[xb], %[xb], %[xa], asr #16\n\t"
          "sxtb16 %[xa], %[t]\n\t"
          "sxtb16 %[t], %[t], ror #8\n\t"
          "strd %[xa], %[t], [%[o]], #8\n\t"
          "sxtb16 %[xa], %[xb]\n\t"
          "sxtb16 %[xb], %[xb], ror #8\n\t"
          "strd %[xa], %[xb], [%[o]], #8"
          : [o] "+r"(to), [xa] "=&r"(xa), [xb] "=&r"(xb), [t] "=&r"(t)
          : [w] "r"(w), [n] "r"(pitch)
          : "memory");
    }
  }
  for (int32_t k = 0; k < width * height; ++k, w += 4) {
    __asm__ volatile(
        "ldr %[xb], [%[w]]\n\t"
        "sxtb16 %[xa], %[xb]\n\t"
        "sxtb16 %[xb], %[xb], ror #8\n\t"
        "strd %[xa], %[xb], [%[o]], #8"
        : [o] "+r"(to), [xa] "=&r"(xa), [xb] "=&r"(xb)
        : [w] "r"(w)
        : "memory");
  }
  return made;
}

#elif HT_MVE

HT_INLINE const int8_t *ht_dw_rows1(const int8_t *p, int32_t step, int32_t width, const int8_t *w,
                                        ht_sum4 *acc) {
  int32x4_t sum = vldrwq_s32(&acc->a);
  for (; width > 0; --width, p += step, w += 4) {
    sum = vaddq_s32(sum, vmulq_s32(vldrbq_s32(p), vldrbq_s32(w)));
  }
  vstrwq_s32(&acc->a, sum);
  return w;
}

HT_INLINE const int8_t *ht_dw_rows2(const int8_t *p, const int8_t *q, int32_t step, int32_t width,
                                        const int8_t *w, ht_sum4 *acc) {
  w = ht_dw_rows1(p, step, width, w, acc);
  return ht_dw_rows1(q, step, width, w, acc);
}

HT_INLINE const int8_t *ht_dw_prepare(const int8_t *w, int32_t height, int32_t width, int32_t *to) {
  (void)height;
  (void)width;
  (void)to;
  return w;
}

#endif
#endif
