/* Pooling over a whole image as a per-channel accumulator: AVERAGE_POOL_2D and MEAN. */
#include "ht_internal.h"

void ht_acc_clear(int32_t *acc, int32_t channels) {
  memset(acc, 0, (size_t)channels * sizeof *acc);
}

void ht_acc_row(int32_t *acc, const int8_t *row, int32_t pixels, int32_t channels) {
  for (int32_t i = 0; i < pixels; ++i) {
    for (int32_t c = 0; c < channels; ++c) {
      acc[c] += *row++;
    }
  }
}

void ht_acc_finish_avg(const int32_t *acc, int32_t channels, int32_t count, int8_t act_min, int8_t act_max,
                       int8_t *out) {
  const int32_t half = count / 2;
  for (int32_t c = 0; c < channels; ++c) {
    const int32_t sum = acc[c];
    out[c] = (int8_t)ht_clamp((sum > 0 ? sum + half : sum - half) / count, act_min, act_max);
  }
}

void ht_acc_finish_mean(const ht_mean *op, const int32_t *acc, int32_t channels, int8_t *out) {
  for (int32_t c = 0; c < channels; ++c) {
    const int32_t sum = acc[c] - op->in_zero * op->count;
    out[c] = (int8_t)ht_clamp(ht_requant(sum, op->mult, op->shift) + op->out_zero, -128, 127);
  }
}
