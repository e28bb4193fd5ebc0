/* ht_internal.h - arithmetic shared by the kernels. Not part of the interface. */
#ifndef HT_INTERNAL_H
#define HT_INTERNAL_H

#include <string.h>

#include "ht_kernels.h"

/* Variant: define HT_PORTABLE to get plain C on any core. */
#if !defined(HT_PORTABLE) && defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#define HT_MVE 1
#include <arm_mve.h>
#else
#define HT_MVE 0
#endif
#if !defined(HT_PORTABLE) && defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && defined(__OPTIMIZE__)
#define HT_DSP 1 /* the assembly needs 13 registers, so an unoptimised build is plain C */
#else
#define HT_DSP 0
#endif

#if defined(__GNUC__)
#define HT_INLINE static inline __attribute__((always_inline))
#define HT_APART static __attribute__((noinline, unused))
#else
#define HT_INLINE static inline
#define HT_APART static
#endif

/* Sums wrap, so that a bias near the ends of int32 gives the same bits in every variant. */
HT_INLINE int32_t ht_wrap_add(int32_t a, int32_t b) {
  return (int32_t)((uint32_t)a + (uint32_t)b);
}

/* floor((a * b + 2^30) / 2^31). gemmlowp's SaturatingRoundingDoublingHighMul (nudge by sign, divide towards zero) is
 * the same integer for either sign, ties included; only a = b = INT32_MIN would differ and does not occur. */
HT_INLINE int32_t ht_high_mul(int32_t a, int32_t b) {
  return (int32_t)(((int64_t)a * b + ((int64_t)1 << 30)) >> 31);
}

/* x / 2^right to nearest, ties away from zero. right in [0, 31]. */
static inline int32_t ht_round_shift(int32_t x, int32_t right) {
  const int32_t mask = (int32_t)(((uint32_t)1 << right) - 1u);
  return (x >> right) + (((x & mask) > (mask >> 1) + (x < 0)) ? 1 : 0);
}

/* MultiplyByQuantizedMultiplier with double rounding. exponent > 0 is a left shift. */
static inline int32_t ht_requant(int32_t x, int32_t mult, int32_t exponent) {
  const int32_t left = exponent > 0 ? exponent : 0;
  return ht_round_shift(ht_high_mul((int32_t)((uint32_t)x << left), mult), left - exponent);
}

static inline int32_t ht_clamp(int32_t x, int32_t low, int32_t high) {
  return x < low ? low : (x > high ? high : x);
}

/*
 * Fast form of requantise, add the zero point, saturate to int8: shift1 = right - 1 with right in [1, 31], zero2 =
 * 2 * zero point + 1, |acc| < 2^30. (h - (h < 0) + 2^(right-1)) >> right in two floors, of which ssat does the last.
 */
#if HT_DSP
#define HT_REQUANT_ASM(ACC, MULT, SHIFT1, ZERO2) \
  "lsl " ACC ", " ACC ", #1\n\t"                 \
  "smmulr " ACC ", " ACC ", " MULT "\n\t"        \
  "add " ACC ", " ACC ", " ACC ", asr #31\n\t"   \
  "asr " ACC ", " ACC ", " SHIFT1 "\n\t"         \
  "add " ACC ", " ACC ", " ZERO2 "\n\t"          \
  "ssat " ACC ", #8, " ACC ", asr #1\n\t"
#endif

HT_INLINE int32_t ht_requant_s8(int32_t acc, int32_t mult, int32_t shift1, int32_t zero2) {
#if HT_DSP
  __asm__(HT_REQUANT_ASM("%0", "%1", "%2", "%3") : "+r"(acc) : "r"(mult), "r"(shift1), "r"(zero2) : "cc");
  return acc;
#else
  int32_t h = ht_high_mul(acc, mult);
  h += h >> 31;
  return ht_clamp(((h >> (shift1 & 31)) + zero2) >> 1, -128, 127);
#endif
}

/* Four sums of neighbouring channels; scalars, so that they live in registers. */
typedef struct ht_sum4 {
  int32_t a, b, c, d;
} ht_sum4;

HT_INLINE ht_sum4 ht_load4(const int8_t *p) { /* 4-byte aligned */
  ht_sum4 s;
#if HT_DSP
  __asm__("ldrd %0, %1, [%4]\n\tldrd %2, %3, [%4, #8]"
          : "=&r"(s.a), "=&r"(s.b), "=&r"(s.c), "=&r"(s.d)
          : "r"(p), "m"(*(const int8_t(*)[16])p));
#else
  memcpy(&s, p, sizeof s);
#endif
  return s;
}

/* The form for any exponent, and for fewer than four channels. */
HT_APART void ht_store_any(ht_sum4 s, const ht_rq4 *rq, unsigned general, int32_t zero2, int32_t count,
                           int8_t *out) {
  const int32_t acc[4] = {s.a, s.b, s.c, s.d};
  for (int32_t i = 0; i < 4 && i < count; ++i) {
    out[i] = (int8_t)(general ? ht_clamp(ht_requant(acc[i], rq->mult[i], rq->shift[i]) + (zero2 >> 1), -128, 127)
                              : ht_requant_s8(acc[i], rq->mult[i], rq->shift[i], zero2));
  }
}

#if HT_MVE
HT_INLINE void ht_store_vector(int32x4_t h, const ht_rq4 *rq, int32_t zero2, int8_t *out) {
  h = vqrdmulhq_s32(h, vldrwq_s32(rq->mult));
  h = vaddq_s32(h, vshrq_n_s32(h, 31));
  h = vrshlq_s32(h, vmvnq_s32(vldrbq_s32(rq->shift)));
  h = vaddq_n_s32(h, zero2 >> 1);
  h = vminq_s32(vmaxq_s32(h, vdupq_n_s32(-128)), vdupq_n_s32(127));
  vstrbq_s32(out, h);
}
#endif

/* Requantises four sums and stores them as int8; zero2 as above. */
HT_INLINE void ht_store4(ht_sum4 s, const ht_rq4 *rq, int32_t zero2, int8_t *out) {
#if HT_MVE
  int32x4_t h = vdupq_n_s32(s.a);
  h = vsetq_lane_s32(s.b, h, 1);
  h = vsetq_lane_s32(s.c, h, 2);
  h = vsetq_lane_s32(s.d, h, 3);
  ht_store_vector(h, rq, zero2, out);
#elif HT_DSP
  int32_t m0, m1, shifts; /* only the low byte of a register counts in a shift by register */
  __asm__ volatile(
      "ldr %[r], [%[q], #16]\n\t"
      "ldrd %[m], %[n], [%[q]]\n\t" HT_REQUANT_ASM("%[a]", "%[m]", "%[r]", "%[z]")
      "lsr %[r], %[r], #8\n\t" HT_REQUANT_ASM("%[b]", "%[n]", "%[r]", "%[z]")
      "strb %[a], [%[o]]\n\t"
      "strb %[b], [%[o], #1]\n\t"
      "lsr %[r], %[r], #8\n\t"
      "ldrd %[m], %[n], [%[q], #8]\n\t" HT_REQUANT_ASM("%[c]", "%[m]", "%[r]", "%[z]")
      "lsr %[r], %[r], #8\n\t" HT_REQUANT_ASM("%[d]", "%[n]", "%[r]", "%[z]")
      "strb %[c], [%[o], #2]\n\t"
      "strb %[d], [%[o], #3]"
      : [a] "+r"(s.a), [b] "+r"(s.b), [c] "+r"(s.c), [d] "+r"(s.d), [m] "=&r"(m0), [n] "=&r"(m1), [r] "=&r"(shifts)
      : [q] "r"(rq), [z] "r"(zero2), [o] "r"(out)
      : "cc", "memory");
#else
  ht_store_any(s, rq, 0, zero2, 4, out);
#endif
}

/* Narrows finished outputs to the activation range. */
static inline void ht_clamp_run(int8_t *x, int32_t n, int8_t low, int8_t high) {
  for (int32_t i = 0; i < n; ++i) {
    x[i] = (int8_t)ht_clamp(x[i], low, high);
  }
}

#endif
