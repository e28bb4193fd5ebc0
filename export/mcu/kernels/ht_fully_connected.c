/* FULLY_CONNECTED, one vector. */
#include "ht_point.h"

void ht_fully_connected(const ht_conv *op, const int8_t *in, int8_t *out, void *scratch) {
  const int32_t taps = op->in_channels;
  ht_run run = {in, (taps + 3) & ~3};
  if (op->flags & HT_GATHER) {
    int8_t *const window = (int8_t *)scratch;
    memcpy(window, in, (size_t)taps);
    memset(window + taps, 0, (size_t)(-taps & 3));
    run.x = window;
  }
  ht_conv_point(op, &run, &run + 1, out);
  if (op->flags & HT_CLAMP) {
    ht_clamp_run(out, op->out_channels, op->act_min, op->act_max);
  }
}
