/*
 * ht_point.c - all output channels of one position of CONV_2D or FULLY_CONNECTED.
 * Weight order: see ht_conv in ht_kernels.h.
 */
#include "ht_point.h"

#if HT_MVE

/* One group of 16 taps, or a shorter last one whose input lanes beyond it are zero. */
#define DOT_GROUP(NEXT)                \
  "vldrb.8 q1, [%[w]]" NEXT            \
  "vldrb.8 q2, [%[w]]" NEXT            \
  "vmladava.s8 %[a0], q0, q1\n\t"      \
  "vldrb.8 q1, [%[w]]" NEXT            \
  "vmladava.s8 %[a1], q0, q2\n\t"      \
  "vldrb.8 q2, [%[w]]" NEXT            \
  "vmladava.s8 %[a2], q0, q1\n\t"      \
  "vmladava.s8 %[a3], q0, q2\n\t"

/*
 * acc += x . w over n taps; returns the weights that follow. The last loads of a short group reach up to 12 bytes past
 * the block; kernels_pack.py pads the array for them.
 */
HT_INLINE const int8_t *dot_run(const int8_t *x, const int8_t *w, int32_t n, ht_sum4 *acc) {
  const int32_t groups = n >> 4, tail = n & 15;
  __asm__ volatile(
      "wls lr, %[g], 3f\n\t"
      "2:\n\t"
      "vldrb.8 q0, [%[x]], #16\n\t" DOT_GROUP(", #16\n\t")
      "le lr, 2b\n\t"
      "3:\n\t"
      "cbz %[t], 4f\n\t"
      "vctp.8 %[t]\n\t"
      "vpst\n\t"
      "vldrbt.8 q0, [%[x]]\n\t" DOT_GROUP("\n\tadd %[w], %[w], %[t]\n\t")
      "4:"
      : [a0] "+Te"(acc->a), [a1] "+Te"(acc->b), [a2] "+Te"(acc->c), [a3] "+Te"(acc->d), [w] "+r"(w), [x] "+r"(x)
      : [g] "r"(groups), [t] "l"(tail)
      : "lr", "q0", "q1", "q2", "cc", "memory");
  return w;
}

#elif HT_DSP

/* Eight or four taps of four channels; A0 to A3: addresses of the channels' weights. */
#define DOT8_CHANNEL(ACC, ADDRESS)          \
  "ldrd %[w0], %[w1], " ADDRESS "\n\t"      \
  "sxtb16 %[t], %[w0]\n\t"                  \
  "smlad " ACC ", %[x0], %[t], " ACC "\n\t" \
  "sxtb16 %[t], %[w0], ror #8\n\t"          \
  "smlad " ACC ", %[x1], %[t], " ACC "\n\t" \
  "sxtb16 %[t], %[w1]\n\t"                  \
  "smlad " ACC ", %[x2], %[t], " ACC "\n\t" \
  "sxtb16 %[t], %[w1], ror #8\n\t"          \
  "smlad " ACC ", %[x3], %[t], " ACC "\n\t"
#define DOT8(A0, A1, A2, A3)             \
  "ldrd %[x1], %[x3], [%[x]], #8\n\t"    \
  "sxtb16 %[x0], %[x1]\n\t"              \
  "sxtb16 %[x1], %[x1], ror #8\n\t"      \
  "sxtb16 %[x2], %[x3]\n\t"              \
  "sxtb16 %[x3], %[x3], ror #8\n\t"      \
  DOT8_CHANNEL("%[a0]", A0) DOT8_CHANNEL("%[a1]", A1) DOT8_CHANNEL("%[a2]", A2) DOT8_CHANNEL("%[a3]", A3)
#define DOT4_CHANNEL(ACC, ADDRESS)          \
  "ldr %[w0], " ADDRESS "\n\t"              \
  "sxtb16 %[t], %[w0]\n\t"                  \
  "smlad " ACC ", %[x0], %[t], " ACC "\n\t" \
  "sxtb16 %[t], %[w0], ror #8\n\t"          \
  "smlad " ACC ", %[x1], %[t], " ACC "\n\t"
#define DOT4(A0, A1, A2, A3)             \
  "ldr %[x1], [%[x]], #4\n\t"            \
  "sxtb16 %[x0], %[x1]\n\t"              \
  "sxtb16 %[x1], %[x1], ror #8\n\t"      \
  DOT4_CHANNEL("%[a0]", A0) DOT4_CHANNEL("%[a1]", A1) DOT4_CHANNEL("%[a2]", A2) DOT4_CHANNEL("%[a3]", A3)
#define AT(OFFSET) "[%[w], #" OFFSET "]"
#define STEP(BYTES) "[%[w]], #" BYTES /* and moves w on */

#if defined(__clang__)

#define DOT4_ASM(A0, A1, A2, A3)                                                                                \
  __asm__ volatile(DOT4(A0, A1, A2, A3)                                                                         \
                   : [a0] "+r"(a.a), [a1] "+r"(a.b), [a2] "+r"(a.c), [a3] "+r"(a.d), [x] "+r"(x), [x0] "=&r"(x0), \
                     [x1] "=&r"(x1), [w0] "=&r"(w0), [t] "=&r"(t)                                               \
                   : [w] "r"(w)                                                                                 \
                   : "memory")

/* acc += x . w over n taps, with ten registers: Clang does not give the assembly below the thirteen it needs. */
HT_INLINE const int8_t *dot_run(const int8_t *x, const int8_t *w, int32_t n, ht_sum4 *acc) {
  ht_sum4 a = *acc;
  int32_t x0, x1, w0, t;
  for (; n >= 16; n -= 16, w += 64) {
    DOT4_ASM(AT("0"), AT("16"), AT("32"), AT("48"));
    DOT4_ASM(AT("4"), AT("20"), AT("36"), AT("52"));
    DOT4_ASM(AT("8"), AT("24"), AT("40"), AT("56"));
    DOT4_ASM(AT("12"), AT("28"), AT("44"), AT("60"));
  }
  if (n == 4) {
    DOT4_ASM(AT("0"), AT("4"), AT("8"), AT("12"));
  } else if (n == 8) {
    DOT4_ASM(AT("0"), AT("8"), AT("16"), AT("24"));
    DOT4_ASM(AT("4"), AT("12"), AT("20"), AT("28"));
  } else if (n == 12) {
    DOT4_ASM(AT("0"), AT("12"), AT("24"), AT("36"));
    DOT4_ASM(AT("4"), AT("16"), AT("28"), AT("40"));
    DOT4_ASM(AT("8"), AT("20"), AT("32"), AT("44"));
  }
  *acc = a;
  return w + 4 * n;
}

#else

/*
 * Sums of four channels over all runs; moves w behind the block. Thirteen registers are in use (a frame pointer still
 * fits), so the place in the list, the end of the full groups and the rest are kept in memory.
 */
HT_INLINE ht_sum4 dot_block(const ht_run *run, const ht_run *end, const int8_t **weights) {
  ht_sum4 acc;
  const int8_t *w = *weights;
  int32_t x, x0, x1, x2, x3, w0, w1, t, limit, rest;
  __asm__ volatile(
      "ldrd %[a0], %[a1], [%[w]], #8\n\t"
      "ldrd %[a2], %[a3], [%[w]], #8\n\t"
      "6:\n\t"
      "ldr %[t], %[run]\n\t"
      "ldrd %[x], %[x0], [%[t]], #8\n\t"
      "str %[t], %[run]\n\t"
      "and %[t], %[x0], #12\n\t"
      "str %[t], %[rest]\n\t"
      "subs %[x0], %[x0], %[t]\n\t"
      "beq 2f\n\t"
      "add %[x0], %[x0], %[x]\n\t"
      "str %[x0], %[limit]\n\t"
      "1:\n\t" DOT8(STEP("8"), AT("8"), AT("24"), AT("40")) DOT8(STEP("56"), AT("-40"), AT("-24"), AT("-8"))
      "ldr %[t], %[limit]\n\t"
      "cmp %[x], %[t]\n\t"
      "bne 1b\n\t"
      "ldr %[t], %[rest]\n\t"
      "2:\n\t"
      "cmp %[t], #8\n\t"
      "blt 4f\n\t"
      "bne 3f\n\t" DOT8(STEP("32"), AT("-24"), AT("-16"), AT("-8"))
      "b 5f\n\t"
      "3:\n\t" DOT8(STEP("48"), AT("-36"), AT("-24"), AT("-12"))
      DOT4(AT("-40"), AT("-28"), AT("-16"), AT("-4"))
      "b 5f\n\t"
      "4:\n\t"
      "cmp %[t], #0\n\t"
      "beq 5f\n\t" DOT4(STEP("16"), AT("-12"), AT("-8"), AT("-4"))
      "5:\n\t"
      "ldr %[t], %[run]\n\t"
      "ldr %[x], %[end]\n\t"
      "cmp %[t], %[x]\n\t"
      "bne 6b"
      : [a0] "=&r"(acc.a), [a1] "=&r"(acc.b), [a2] "=&r"(acc.c), [a3] "=&r"(acc.d), [x] "=&r"(x), [w] "+&r"(w),
        [x0] "=&r"(x0), [x1] "=&r"(x1), [x2] "=&r"(x2), [x3] "=&r"(x3), [w0] "=&r"(w0), [w1] "=&r"(w1), [t] "=&r"(t),
        [run] "+m"(run), [limit] "=m"(limit), [rest] "=m"(rest)
      : [end] "m"(end)
      : "cc", "memory");
  *weights = w;
  return acc;
}

#endif

#else

/* acc += x . w over n taps; returns the weights that follow. */
HT_INLINE const int8_t *dot_run(const int8_t *x, const int8_t *w, int32_t n, ht_sum4 *acc) {
  ht_sum4 s = *acc;
  while (n > 0) {
    const int32_t group = n < 16 ? n : 16;
    const int8_t *const end = w + group;
    for (; w != end; ++w) {
      const int32_t v = *x++;
      s.a = ht_wrap_add(s.a, v * w[0]);
      s.b = ht_wrap_add(s.b, v * w[group]);
      s.c = ht_wrap_add(s.c, v * w[2 * group]);
      s.d = ht_wrap_add(s.d, v * w[3 * group]);
    }
    w += 3 * group;
    n -= group;
  }
  *acc = s;
  return w;
}

#endif

#if HT_MVE || !HT_DSP || defined(__clang__)
HT_INLINE ht_sum4 dot_block(const ht_run *run, const ht_run *end, const int8_t **weights) {
  ht_sum4 acc = ht_load4(*weights);
  const int8_t *w = *weights + 16;
  do {
    w = dot_run(run->x, w, run->n, &acc);
  } while (++run != end);
  *weights = w;
  return acc;
}
#endif

void ht_conv_point(const ht_conv *op, const ht_run *runs, const ht_run *end, int8_t *out) {
  const int8_t *w = op->weights;
  const ht_rq4 *rq = op->rq;
  const int32_t step = op->rq_step, zero2 = 2 * op->out_zero + 1;
  const unsigned general = op->flags & HT_RQ_GENERAL;
  for (int32_t left = op->out_channels; left > 0; left -= 4, rq += step, out += 4) {
    const ht_sum4 acc = dot_block(runs, end, &w);
    if (general || left < 4) {
      ht_store_any(acc, rq, general, zero2, left, out);
    } else {
      ht_store4(acc, rq, zero2, out);
    }
  }
}
