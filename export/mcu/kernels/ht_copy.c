/* CONCATENATION and RESIZE_NEAREST_NEIGHBOR: copies of byte runs. */
#include "ht_internal.h"

void ht_copy_runs(const int8_t *in, int8_t *out, int32_t run_bytes, int32_t out_pitch, int32_t count) {
  for (; count > 0; --count, in += run_bytes, out += out_pitch) {
    memcpy(out, in, (size_t)run_bytes);
  }
}

void ht_resize_row(const uint16_t *map, int32_t out_pixels, int32_t channels, const int8_t *in, int8_t *out) {
  for (int32_t i = 0; i < out_pixels; ++i, out += channels) {
    memcpy(out, in + map[i] * channels, (size_t)channels);
  }
}
