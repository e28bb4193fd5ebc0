/* ADD with broadcast of the second operand. */
#include "ht_internal.h"

/*
 * An operand on the common scale: (x - zero) * 2^20 scaled, with double rounding. The operand of the larger scale has
 * the multiplier 2^30 without a shift, which is exact and so may be written with one more bit and a shift by 1.
 */
typedef struct operand {
  int32_t zero, left, mult, right, half; /* right >= 1 */
} operand;

static operand make_operand(int32_t zero, int32_t mult, int32_t shift) {
  const operand exact = {zero, 21, mult, 1, 1};
  const operand usual = {zero, 20, mult, shift, shift > 0 ? (int32_t)(1u << (shift - 1)) : 0};
  return shift == 0 ? exact : usual;
}

HT_INLINE int32_t term(const operand *o, int32_t x) {
  int32_t h = (int32_t)((uint32_t)(x - o->zero) << o->left);
#if HT_DSP
  __asm__("lsl %0, %0, #1\n\t"
          "smmulr %0, %0, %1\n\t"
          "add %0, %0, %0, asr #31\n\t"
          "add %0, %0, %2\n\t"
          "asr %0, %0, %3"
          : "+r"(h)
          : "r"(o->mult), "r"(o->half), "r"(o->right)
          : "cc");
  return h;
#else
  h = ht_high_mul(h, o->mult);
  return (h + (h >> 31) + o->half) >> o->right;
#endif
}

#if HT_MVE
static inline int32x4_t terms(const operand *o, int32x4_t x) {
  int32x4_t h = vshlq_r_s32(vsubq_n_s32(x, o->zero), o->left);
  h = vqrdmulhq_n_s32(h, o->mult);
  return vrshlq_n_s32(vaddq_s32(h, vshrq_n_s32(h, 31)), -o->right);
}
#endif

/* Both of one length, or the same b for all (step_b 0). */
static void add_run(const ht_add *op, const int8_t *a, const int8_t *b, int32_t step_b, int8_t *out, int32_t n) {
  const operand oa = make_operand(op->zero_a, op->mult_a, op->shift_a);
  const operand ob = make_operand(op->zero_b, op->mult_b, op->shift_b);
  const int32_t mult = op->mult_out, shift1 = op->shift_out - 1, zero2 = 2 * op->zero_out + 1;
#if HT_MVE
  if (step_b == 1) {
    for (; n >= 4; n -= 4, a += 4, b += 4, out += 4) {
      int32x4_t h = vaddq_s32(terms(&oa, vldrbq_s32(a)), terms(&ob, vldrbq_s32(b)));
      h = vqrdmulhq_n_s32(h, mult);
      h = vrshlq_n_s32(vaddq_s32(h, vshrq_n_s32(h, 31)), -op->shift_out);
      h = vaddq_n_s32(h, op->zero_out);
      vstrbq_s32(out, vminq_s32(vmaxq_s32(h, vdupq_n_s32(-128)), vdupq_n_s32(127)));
    }
  }
#endif
  for (; n > 0; --n, b += step_b) {
    *out++ = (int8_t)ht_requant_s8(term(&oa, *a++) + term(&ob, *b), mult, shift1, zero2);
  }
}

/* Shifts outside of the fast form. */
static void add_any(const ht_add *op, const int8_t *a, const int8_t *b, int32_t step_b, int8_t *out, int32_t n) {
  for (; n > 0; --n, b += step_b) {
    const int32_t x = ht_round_shift(ht_high_mul((*a++ - op->zero_a) * (1 << 20), op->mult_a), op->shift_a);
    const int32_t y = ht_round_shift(ht_high_mul((*b - op->zero_b) * (1 << 20), op->mult_b), op->shift_b);
    *out++ = (int8_t)ht_clamp(ht_round_shift(ht_high_mul(x + y, op->mult_out), op->shift_out) + op->zero_out, -128, 127);
  }
}

static int is_fast(int32_t mult, int32_t shift) {
  return shift > 0 || mult == (1 << 30);
}

void ht_add_row(const ht_add *op, const int8_t *a, const int8_t *b, int8_t *out, int32_t n) {
  const int fast = is_fast(op->mult_a, op->shift_a) && is_fast(op->mult_b, op->shift_b) && op->shift_out > 0;
  const int32_t step_b = op->broadcast == HT_SCALAR ? 0 : 1;
  const int32_t run = op->broadcast == HT_CHANNEL ? op->channels : n;
  for (int32_t at = 0; at < n; at += run) {
    (fast ? add_run : add_any)(op, a + at, b, step_b, out + at, run);
  }
  if (op->act_min > -128 || op->act_max < 127) {
    ht_clamp_run(out, n, op->act_min, op->act_max);
  }
}
