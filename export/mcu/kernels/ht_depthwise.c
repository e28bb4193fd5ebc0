/* DEPTHWISE_CONV_2D, one output row. */
#include "ht_internal.h"

typedef struct position {
  const int8_t *const *rows;
  int32_t offset;     /* of the window's first column in a row, bytes (may be negative at a border) */
  int32_t first, end; /* kernel columns inside of the image */
} position;

/* Four channels of one position, any border: taps outside of the image read the zero point. */
static inline void border4(const ht_dwconv *op, const position *at, const int32_t source[4], const int8_t *w,
                           int32_t acc[4]) {
  const int32_t channels = op->in_channels;
  for (int32_t ky = 0; ky < op->kernel_h; ++ky) {
    for (int32_t kx = 0; kx < op->kernel_w; ++kx, w += 4) {
      const int inside = at->rows[ky] != NULL && kx >= at->first && kx < at->end;
      const int8_t *x = inside ? at->rows[ky] + at->offset + kx * channels : NULL;
      for (int32_t i = 0; i < 4; ++i) {
        acc[i] += (inside ? x[source[i]] : op->in_zero) * w[i];
      }
    }
  }
}

void ht_depthwise_row(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out,
                      void *scratch) {
  const int32_t taps = op->kernel_h * op->kernel_w;
  const int32_t zero2 = 2 * op->out_zero + 1;
  const unsigned general = op->flags & HT_RQ_GENERAL;
  int8_t *const row = out;
  int32_t x = cols->out_x0 * op->stride_w - op->pad_left;
  (void)scratch;
  for (int32_t i = cols->out_x0; i < cols->out_x1; ++i, x += op->stride_w, out += op->out_channels) {
    const position at = {rows, (x - cols->in_x0) * op->in_channels, cols->in_x0 - x, cols->in_x1 - x};
    const int8_t *w = op->weights;
    const ht_rq4 *rq = op->rq;
    for (int32_t c = 0; c < op->out_channels; c += 4, rq += op->rq_step) {
      int32_t acc[4], source[4];
      memcpy(acc, w, 16);
      w += 16;
      for (int32_t k = 0; k < 4; ++k) {
        const int32_t channel = c + k < op->out_channels ? c + k : c;
        source[k] = channel / op->multiplier;
      }
      border4(op, &at, source, w, acc);
      w += 4 * taps;
      ht_store4(acc, rq, general, zero2, op->out_channels - c, out + c);
    }
  }
  if (op->flags & HT_CLAMP) {
    ht_clamp_run(row, (int32_t)(out - row), op->act_min, op->act_max);
  }
}
