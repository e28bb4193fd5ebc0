/* MUL with broadcast of the second operand. */
#include "ht_internal.h"

/* b advances by step_b (0: one value for all). */
static void mul_run(const ht_mul *op, const int8_t *a, const int8_t *b, int32_t step_b, int8_t *out, int32_t n) {
  const int32_t zero_a = op->zero_a, zero_b = op->zero_b, mult = op->mult, exponent = op->shift;
  const int32_t zero2 = 2 * op->zero_out + 1;
  for (; n > 0; --n, b += step_b) {
    const int32_t product = (*a++ - zero_a) * (*b - zero_b);
    *out++ = (int8_t)(exponent < 0 ? ht_requant_s8(product, mult, -exponent - 1, zero2)
                                   : ht_clamp(ht_requant(product, mult, exponent) + op->zero_out, -128, 127));
  }
}

void ht_mul_row(const ht_mul *op, const int8_t *a, const int8_t *b, int8_t *out, int32_t n) {
  const int32_t step_b = op->broadcast == HT_SCALAR ? 0 : 1;
  const int32_t run = op->broadcast == HT_CHANNEL ? op->channels : n;
  for (int32_t at = 0; at < n; at += run) {
    mul_run(op, a + at, b, step_b, out + at, run);
  }
  if (op->act_min > -128 || op->act_max < 127) {
    ht_clamp_run(out, n, op->act_min, op->act_max);
  }
}
