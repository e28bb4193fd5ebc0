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
#if !defined(HT_PORTABLE) && defined(__ARM_FEATURE_DSP) && defined(__thumb2__)
#define HT_DSP 1
#else
#define HT_DSP 0
#endif

/* floor((a * b + 2^30) / 2^31): gemmlowp's SaturatingRoundingDoublingHighMul for b >= 0 (its nudge and truncation
 * amount to this for either sign of a). */
static inline int32_t ht_high_mul(int32_t a, int32_t b) {
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
static inline int32_t ht_requant_s8(int32_t acc, int32_t mult, int32_t shift1, int32_t zero2) {
#if HT_DSP
  __asm__("lsl %0, %0, #1\n\t"
          "smmulr %0, %0, %1\n\t"
          "add %0, %0, %0, asr #31\n\t"
          "asr %0, %0, %2\n\t"
          "add %0, %0, %3\n\t"
          "ssat %0, #8, %0, asr #1"
          : "+r"(acc)
          : "r"(mult), "r"(shift1), "r"(zero2)
          : "cc");
  return acc;
#else
  int32_t h = ht_high_mul(acc, mult);
  h += h >> 31;
  return ht_clamp(((h >> (shift1 & 31)) + zero2) >> 1, -128, 127);
#endif
}

/* Requantises four accumulators and stores the first `count`. zero2 as above. */
static inline void ht_store4(const int32_t acc[4], const ht_rq4 *rq, unsigned general, int32_t zero2, int count,
                             int8_t *out) {
  int32_t y[4];
  if (general) {
    for (int i = 0; i < 4; ++i) {
      y[i] = ht_clamp(ht_requant(acc[i], rq->mult[i], rq->shift[i]) + (zero2 >> 1), -128, 127);
    }
  } else {
#if HT_DSP
    uint32_t shifts; /* only the low byte of a register counts in a shift by register */
    memcpy(&shifts, rq->shift, 4);
    y[0] = ht_requant_s8(acc[0], rq->mult[0], (int32_t)shifts, zero2);
    y[1] = ht_requant_s8(acc[1], rq->mult[1], (int32_t)(shifts >> 8), zero2);
    y[2] = ht_requant_s8(acc[2], rq->mult[2], (int32_t)(shifts >> 16), zero2);
    y[3] = ht_requant_s8(acc[3], rq->mult[3], (int32_t)(shifts >> 24), zero2);
#else
    for (int i = 0; i < 4; ++i) {
      y[i] = ht_requant_s8(acc[i], rq->mult[i], rq->shift[i], zero2);
    }
#endif
  }
  out[0] = (int8_t)y[0];
  if (count >= 4) {
    out[1] = (int8_t)y[1];
    out[2] = (int8_t)y[2];
    out[3] = (int8_t)y[3];
  } else {
    for (int i = 1; i < count; ++i) {
      out[i] = (int8_t)y[i];
    }
  }
}

/* Narrows finished outputs to the activation range. */
static inline void ht_clamp_run(int8_t *x, int32_t n, int8_t low, int8_t high) {
  for (int32_t i = 0; i < n; ++i) {
    x[i] = (int8_t)ht_clamp(x[i], low, high);
  }
}

#endif
