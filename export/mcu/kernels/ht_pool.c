/* AVERAGE_POOL_2D and MAX_POOL_2D, one output row. Padding is not counted. */
#include "ht_internal.h"

/* Kernel columns inside of the image for the window at image column x. */
static inline int32_t first_column(const ht_cols *cols, int32_t x) {
  return x < cols->in_x0 ? cols->in_x0 - x : 0;
}

static inline int32_t end_column(const ht_pool *op, const ht_cols *cols, int32_t x) {
  return x + op->kernel_w > cols->in_x1 ? cols->in_x1 - x : op->kernel_w;
}

static inline int32_t rounded_mean(int32_t sum, int32_t count) {
  return sum > 0 ? (sum + count / 2) / count : (sum - count / 2) / count;
}

void ht_avgpool_row(const ht_pool *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out) {
  const int32_t channels = op->channels;
  int32_t x = cols->out_x0 * op->stride_w - op->pad_left;
  for (int32_t i = cols->out_x0; i < cols->out_x1; ++i, x += op->stride_w, out += channels) {
    const int32_t first = first_column(cols, x), end = end_column(op, cols, x);
    int32_t height = 0;
    for (int32_t k = 0; k < op->kernel_h; ++k) {
      height += rows[k] != NULL;
    }
    const int32_t count = height * (end - first);
    for (int32_t c = 0; c < channels; ++c) {
      int32_t sum = 0;
      for (int32_t k = 0; k < op->kernel_h; ++k) {
        if (rows[k] != NULL) {
          const int8_t *p = rows[k] + (x + first - cols->in_x0) * channels + c;
          for (int32_t j = first; j < end; ++j, p += channels) {
            sum += *p;
          }
        }
      }
      out[c] = (int8_t)ht_clamp(rounded_mean(sum, count), op->act_min, op->act_max);
    }
  }
}

void ht_maxpool_row(const ht_pool *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out) {
  const int32_t channels = op->channels;
  int32_t x = cols->out_x0 * op->stride_w - op->pad_left;
  for (int32_t i = cols->out_x0; i < cols->out_x1; ++i, x += op->stride_w, out += channels) {
    const int32_t first = first_column(cols, x), end = end_column(op, cols, x);
    memset(out, op->act_min, (size_t)channels);
    for (int32_t k = 0; k < op->kernel_h; ++k) {
      if (rows[k] == NULL) {
        continue;
      }
      const int8_t *p = rows[k] + (x + first - cols->in_x0) * channels;
      for (int32_t j = first; j < end; ++j, p += channels) {
        for (int32_t c = 0; c < channels; ++c) {
          out[c] = p[c] > out[c] ? p[c] : out[c];
        }
      }
    }
    ht_clamp_run(out, channels, op->act_min, op->act_max);
  }
}
