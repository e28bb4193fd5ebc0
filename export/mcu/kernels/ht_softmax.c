/* SOFTMAX int8 -> int8 in fixed point, as TensorFlow Lite's reference with gemmlowp arithmetic. */
#include "ht_internal.h"

#define SUM_INTEGER_BITS 12

static int32_t saturating_left(int32_t x, int32_t bits) {
  const int32_t limit = (int32_t)((1u << (31 - bits)) - 1u);
  return x > limit ? INT32_MAX : (x < -limit ? INT32_MIN : (int32_t)((uint32_t)x << bits));
}

/* 1 / (1 + a) for a in [0, 1), Q0.31: three Newton steps in Q2.29. */
static int32_t one_over_one_plus(int32_t a) {
  const int32_t half = (int32_t)(((int64_t)a + INT32_MAX + 1) / 2); /* (1 + a) / 2, rounded half up */
  int32_t x = 1515870810 + ht_high_mul(half, -1010580540);
  for (int i = 0; i < 3; ++i) {
    x += saturating_left(ht_high_mul(x, (1 << 29) - ht_high_mul(half, x)), 2);
  }
  return saturating_left(x, 1);
}

static int32_t leading_zeros(uint32_t x) {
  int32_t n = 0;
  while (n < 32 && (x & 0x80000000u) == 0) {
    x <<= 1;
    ++n;
  }
  return n;
}

void ht_softmax_row(const ht_softmax *op, const int8_t *in, int8_t *out, int32_t rows) {
  const int32_t depth = op->depth;
  for (; rows > 0; --rows, in += depth, out += depth) {
    int32_t top = -128;
    for (int32_t c = 0; c < depth; ++c) {
      top = in[c] > top ? in[c] : top;
    }
    uint32_t sum = 0;
    for (int32_t c = 0; c < depth; ++c) {
      const int32_t d = top - in[c];
      if (d < op->entries) {
        sum += (uint32_t)ht_round_shift(op->exp_table[d], SUM_INTEGER_BITS);
      }
    }
    const int32_t zeros = leading_zeros(sum);
    const int32_t scale = one_over_one_plus((int32_t)((sum << zeros) - 0x80000000u));
    const int32_t shift = SUM_INTEGER_BITS - zeros + 31 - 8;
    /* of 512 near-equal values or more each would shift beyond the width, and rounds to 0 */
    const int32_t entries = shift < 32 ? op->entries : 0;
    for (int32_t c = 0; c < depth; ++c) {
      const int32_t d = top - in[c];
      const int32_t y = d < entries ? ht_round_shift(ht_high_mul(scale, op->exp_table[d]), shift) : 0;
      out[c] = (int8_t)ht_clamp(y - 128, -128, 127);
    }
  }
}
