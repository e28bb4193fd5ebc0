/* ADD with broadcast of the second operand. */
#include "ht_internal.h"

/* The operand on the common scale: (x - zero) * 2^20, scaled. */
static inline int32_t term(int32_t x, int32_t zero, int32_t mult, int32_t shift) {
  return ht_round_shift(ht_high_mul((x - zero) * (1 << 20), mult), shift);
}

static inline int8_t finish(const ht_add *op, int32_t sum) {
  const int32_t y = ht_round_shift(ht_high_mul(sum, op->mult_out), op->shift_out) + op->zero_out;
  return (int8_t)ht_clamp(y, op->act_min, op->act_max);
}

void ht_add_row(const ht_add *op, const int8_t *a, const int8_t *b, int8_t *out, int32_t n) {
  int32_t channel = 0;
  const int32_t wrap = op->broadcast == HT_CHANNEL ? op->channels : 1;
  for (int32_t i = 0; i < n; ++i) {
    const int32_t other = op->broadcast == HT_SAME ? b[i] : b[channel];
    channel = channel + 1 < wrap ? channel + 1 : 0;
    out[i] = finish(op, term(a[i], op->zero_a, op->mult_a, op->shift_a) +
                            term(other, op->zero_b, op->mult_b, op->shift_b));
  }
}
