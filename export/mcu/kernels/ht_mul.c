/* MUL with broadcast of the second operand. */
#include "ht_internal.h"

void ht_mul_row(const ht_mul *op, const int8_t *a, const int8_t *b, int8_t *out, int32_t n) {
  int32_t channel = 0;
  const int32_t wrap = op->broadcast == HT_CHANNEL ? op->channels : 1;
  for (int32_t i = 0; i < n; ++i) {
    const int32_t other = op->broadcast == HT_SAME ? b[i] : b[channel];
    channel = channel + 1 < wrap ? channel + 1 : 0;
    const int32_t product = (a[i] - op->zero_a) * (other - op->zero_b);
    out[i] = (int8_t)ht_clamp(ht_requant(product, op->mult, op->shift) + op->zero_out, op->act_min, op->act_max);
  }
}
