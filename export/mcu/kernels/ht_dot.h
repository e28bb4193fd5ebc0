/*
 * ht_dot.h - dot products of one input run with four output channels; internal to CONV_2D and FULLY_CONNECTED.
 * Weight order: see ht_conv in ht_kernels.h.
 */
#ifndef HT_DOT_H
#define HT_DOT_H

#include "ht_internal.h"

#if HT_DSP && !HT_MVE

/* Eight taps of four channels: input at x + XO, weights of channel i at w + WO + i * WS. */
#define HT_DOT8_CHANNEL(ACC, OFFSET)                \
  "ldrd %[w0], %[w1], [%[w], #" OFFSET "]\n\t"      \
  "sxtb16 %[t], %[w0]\n\t"                          \
  "smlad " ACC ", %[x0], %[t], " ACC "\n\t"         \
  "sxtb16 %[t], %[w0], ror #8\n\t"                  \
  "smlad " ACC ", %[x1], %[t], " ACC "\n\t"         \
  "sxtb16 %[t], %[w1]\n\t"                          \
  "smlad " ACC ", %[x2], %[t], " ACC "\n\t"         \
  "sxtb16 %[t], %[w1], ror #8\n\t"                  \
  "smlad " ACC ", %[x3], %[t], " ACC "\n\t"
#define HT_DOT8(O0, O1, O2, O3)                                                 \
  "ldrd %[x1], %[x3], [%[x]], #8\n\t"                                           \
  "sxtb16 %[x0], %[x1]\n\t"                                                     \
  "sxtb16 %[x1], %[x1], ror #8\n\t"                                             \
  "sxtb16 %[x2], %[x3]\n\t"                                                     \
  "sxtb16 %[x3], %[x3], ror #8\n\t" HT_DOT8_CHANNEL("%[a0]", O0) HT_DOT8_CHANNEL("%[a1]", O1) \
      HT_DOT8_CHANNEL("%[a2]", O2) HT_DOT8_CHANNEL("%[a3]", O3)
#define HT_DOT4_CHANNEL(ACC, OFFSET)                \
  "ldr %[w0], [%[w], #" OFFSET "]\n\t"              \
  "sxtb16 %[t], %[w0]\n\t"                          \
  "smlad " ACC ", %[x0], %[t], " ACC "\n\t"         \
  "sxtb16 %[t], %[w0], ror #8\n\t"                  \
  "smlad " ACC ", %[x1], %[t], " ACC "\n\t"
#define HT_DOT4(O0, O1, O2, O3)                                                 \
  "ldr %[x1], [%[x]], #4\n\t"                                                   \
  "sxtb16 %[x0], %[x1]\n\t"                                                     \
  "sxtb16 %[x1], %[x1], ror #8\n\t" HT_DOT4_CHANNEL("%[a0]", O0) HT_DOT4_CHANNEL("%[a1]", O1) \
      HT_DOT4_CHANNEL("%[a2]", O2) HT_DOT4_CHANNEL("%[a3]", O3)
#define HT_DOT_OPERANDS                                                                                             \
  [a0] "+r"(a0), [a1] "+r"(a1), [a2] "+r"(a2), [a3] "+r"(a3), [x] "+r"(x), [w] "+r"(w), [x0] "=&r"(x0), [x1] "=&r"(x1), \
      [w0] "=&r"(w0), [t] "=&r"(t)
#define HT_DOT_OPERANDS8 HT_DOT_OPERANDS, [x2] "=&r"(x2), [x3] "=&r"(x3), [w1] "=&r"(w1)

/* acc += x . w_i over n taps (a multiple of 4); returns the weights that follow. x is 4-byte aligned. */
HT_INLINE const int8_t *ht_dot_run(const int8_t *x, const int8_t *w, int32_t n, ht_sum4 *acc) {
  int32_t a0 = acc->a, a1 = acc->b, a2 = acc->c, a3 = acc->d;
  int32_t x0, x1, x2, x3, w0, w1, t;
  int32_t groups = n >> 4;
  if (groups > 0) {
    __asm__ volatile(
        "1:\n\t" HT_DOT8("0", "16", "32", "48") HT_DOT8("8", "24", "40", "56")
        "adds %[w], %[w], #64\n\t"
        "subs %[n], %[n], #1\n\t"
        "bne 1b"
        : HT_DOT_OPERANDS8, [n] "+r"(groups)
        :
        : "cc", "memory");
  }
  switch (n & 12) {
    case 4:
      __asm__ volatile(HT_DOT4("0", "4", "8", "12") : HT_DOT_OPERANDS : : "memory");
      w += 16;
      break;
    case 8:
      __asm__ volatile(HT_DOT8("0", "8", "16", "24") : HT_DOT_OPERANDS8 : : "memory");
      w += 32;
      break;
    case 12:
      __asm__ volatile(HT_DOT8("0", "12", "24", "36") HT_DOT4("8", "20", "32", "44") : HT_DOT_OPERANDS8 : : "memory");
      w += 48;
      break;
    default:
      break;
  }
  acc->a = a0;
  acc->b = a1;
  acc->c = a2;
  acc->d = a3;
  return w;
}

#elif HT_MVE

/* One group of 16 taps, or a shorter last one whose input lanes beyond it are zero; T: distance of two channels. */
#define HT_DOT_MVE(NEXT)               \
  "vldrb.8 q1, [%[w]]" NEXT            \
  "vldrb.8 q2, [%[w]]" NEXT            \
  "vmladava.s8 %[a0], q0, q1\n\t"      \
  "vldrb.8 q1, [%[w]]" NEXT            \
  "vmladava.s8 %[a1], q0, q2\n\t"      \
  "vldrb.8 q2, [%[w]]" NEXT            \
  "vmladava.s8 %[a2], q0, q1\n\t"      \
  "vmladava.s8 %[a3], q0, q2\n\t"

/*
 * Sums of four channels over all segments; moves w behind the block. The last loads of a short group reach up to 12
 * bytes past the block; kernels_pack.py pads the array for them.
 */
HT_INLINE ht_sum4 ht_dot_block(const int8_t *const *segments, const int8_t *const *end, int32_t n, const int8_t **weights) {
  int32_t a0, a1, a2, a3;
  const int8_t *w = *weights, *x;
  const int32_t groups = n >> 4, tail = n & 15;
  __asm__ volatile(
      "ldrd %[a0], %[a1], [%[w]], #8\n\t"
      "ldrd %[a2], %[a3], [%[w]], #8\n\t"
      "1:\n\t"
      "ldr %[x], [%[s]], #4\n\t"
      "wls lr, %[g], 3f\n\t"
      "2:\n\t"
      "vldrb.8 q0, [%[x]], #16\n\t" HT_DOT_MVE(", #16\n\t")
      "le lr, 2b\n\t"
      "3:\n\t"
      "cbz %[t], 4f\n\t"
      "vctp.8 %[t]\n\t"
      "vpst\n\t"
      "vldrbt.8 q0, [%[x]]\n\t" HT_DOT_MVE("\n\tadd %[w], %[w], %[t]\n\t")
      "4:\n\t"
      "cmp %[s], %[e]\n\t"
      "bne 1b"
      : [a0] "=&Te"(a0), [a1] "=&Te"(a1), [a2] "=&Te"(a2), [a3] "=&Te"(a3), [w] "+&r"(w), [x] "=&r"(x), [s] "+&r"(segments)
      : [g] "r"(groups), [t] "l"(tail), [e] "r"(end)
      : "lr", "q0", "q1", "q2", "cc", "memory");
  *weights = w;
  return (ht_sum4){a0, a1, a2, a3};
}

#else

static inline const int8_t *ht_dot_run(const int8_t *x, const int8_t *w, int32_t n, ht_sum4 *acc) {
  int32_t *const sums[4] = {&acc->a, &acc->b, &acc->c, &acc->d};
  while (n > 0) {
    const int32_t group = n < 16 ? n : 16;
    for (int32_t i = 0; i < 4; ++i, w += group) {
      int32_t sum = 0;
      for (int32_t k = 0; k < group; ++k) {
        sum += x[k] * w[k];
      }
      *sums[i] += sum;
    }
    x += group;
    n -= group;
  }
  return w;
}

#endif

#if !HT_MVE
HT_INLINE ht_sum4 ht_dot_block(const int8_t *const *segments, const int8_t *const *end, int32_t n, const int8_t **weights) {
  const int8_t *w = *weights;
  ht_sum4 acc = ht_load4(w);
  w += 16;
  do {
    w = ht_dot_run(*segments++, w, n, &acc);
  } while (segments != end);
  *weights = w;
  return acc;
}
#endif

/*
 * All output channels of one position. segments[s] is the address of input run s; each has n taps.
 */
HT_INLINE void ht_conv_point(const ht_conv *op, const int8_t *const *segments, int32_t count, int32_t n, int8_t *out) {
  const int8_t *w = op->weights;
  const ht_rq4 *rq = op->rq;
  const int32_t step = op->rq_step;
  const int32_t zero2 = 2 * op->out_zero + 1;
  const int8_t *const *const end = segments + count;
  int32_t left = op->out_channels;
  if ((op->flags & HT_RQ_GENERAL) == 0) {
    for (; left >= 4; left -= 4, rq += step, out += 4) {
      ht_store4(ht_dot_block(segments, end, n, &w), rq, zero2, out);
    }
  }
  for (; left > 0; left -= 4, rq += step, out += 4) {
    ht_store_any(ht_dot_block(segments, end, n, &w), rq, op->flags & HT_RQ_GENERAL, zero2, left, out);
  }
}

#endif
