/* CONV_2D, one output row. */
#include "ht_dot.h"

/* Copies the window at image column x into scratch; what lies outside of the image becomes the zero point. */
static void gather(const ht_conv *op, const ht_cols *cols, const int8_t *const *rows, int32_t x, int8_t *window) {
  const int32_t channels = op->in_channels;
  const int32_t run = op->kernel_w * channels;
  int32_t before = cols->in_x0 - x; /* columns missing on the left */
  int32_t after = x + op->kernel_w - cols->in_x1;
  before = ht_clamp(before, 0, op->kernel_w) * channels;
  after = ht_clamp(after, 0, op->kernel_w) * channels;
  const int32_t have = run - before - after;
  const int32_t offset = (x - cols->in_x0) * channels + before;
  for (int32_t k = 0; k < op->kernel_h; ++k, window += run) {
    if (rows[k] == NULL || have <= 0) {
      memset(window, op->in_zero, (size_t)run);
    } else {
      memset(window, op->in_zero, (size_t)before);
      memcpy(window + before, rows[k] + offset, (size_t)have);
      memset(window + before + have, op->in_zero, (size_t)after);
    }
  }
}

void ht_conv2d_row(const ht_conv *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out, void *scratch) {
  const int32_t channels = op->in_channels;
  const int32_t run = op->kernel_w * channels;
  const int32_t height = op->kernel_h;
  const int32_t outputs = op->out_channels;
  const int8_t *segments[HT_MAX_KERNEL];
  int8_t *window = (int8_t *)scratch;
  int8_t *const row = out;
  int complete = (op->flags & HT_GATHER) == 0;
  for (int32_t k = 0; k < height; ++k) {
    complete &= rows[k] != NULL;
  }
  int32_t x = cols->out_x0 * op->stride_w - op->pad_left;
  for (int32_t i = cols->out_x0; i < cols->out_x1; ++i, x += op->stride_w, out += outputs) {
    if (op->flags & HT_GATHER) {
      const int32_t taps = height * run;
      gather(op, cols, rows, x, window);
      memset(window + taps, 0, (size_t)(-taps & 3));
      segments[0] = window;
      ht_conv_point(op, segments, 1, (taps + 3) & ~3, out);
      continue;
    }
    if (complete && x >= cols->in_x0 && x + op->kernel_w <= cols->in_x1) {
      for (int32_t k = 0; k < height; ++k) {
        segments[k] = rows[k] + (x - cols->in_x0) * channels;
      }
    } else {
      gather(op, cols, rows, x, window);
      for (int32_t k = 0; k < height; ++k) {
        segments[k] = window + k * run;
      }
    }
    ht_conv_point(op, segments, height, run, out);
  }
  if (op->flags & HT_CLAMP) {
    ht_clamp_run(row, (int32_t)(out - row), op->act_min, op->act_max);
  }
}
