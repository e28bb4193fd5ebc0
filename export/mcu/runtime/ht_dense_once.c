/* FULLY_CONNECTED with the one rounding of LiteRT's reference kernels, for exports with --rounding litert. */
#include "ht_run.h"

/* x * 2^(exponent - 31) * multiplier, rounded once, half up. */
static int32_t scale_once(int32_t x, int32_t multiplier, int32_t exponent) {
  const int32_t shift = 31 - exponent;
  return (int32_t)(((int64_t)x * multiplier + ((int64_t)1 << (shift - 1))) >> shift);
}

void ht_do_dense_once(const ht_op *op, const ht_call *call) {
  const ht_dense_once *dense = (const ht_dense_once *)op->params;
  const int32_t width = op->output->width, inputs = dense->in_features, outputs = dense->out_features;
  const int8_t *in = call->rows[0] + inputs * width * call->y;
  int8_t *out = call->out;
  for (int32_t x = 0; x < width; ++x, in += inputs) {
    const int8_t *weights = dense->weights;
    for (int32_t o = 0; o < outputs; ++o) {
      int32_t sum = dense->bias[o];
      for (int32_t i = 0; i < inputs; ++i) {
        sum += (in[i] - dense->in_zero) * *weights++;
      }
      const int32_t y = scale_once(sum, dense->multiplier[o], dense->exponent[o]) + dense->out_zero;
      *out++ = (int8_t)(y < dense->low ? dense->low : (y > dense->high ? dense->high : y));
    }
  }
}
