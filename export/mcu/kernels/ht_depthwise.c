/* DEPTHWISE_CONV_2D, one output row. */
#include "ht_dw.h"

/* Taps of one position, any border and any multiplier: taps outside of the image read the zero point. */
static void any_point(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int32_t x, int8_t *out) {
  const int32_t channels = op->in_channels, outputs = op->out_channels;
  const int8_t *w = op->weights;
  const ht_rq4 *rq = op->rq;
  for (int32_t c = 0; c < outputs; c += 4, rq += op->rq_step) {
    int32_t acc[4], source[4];
    memcpy(acc, w, 16);
    w += 16;
    for (int32_t k = 0; k < 4; ++k) {
      source[k] = (c + k < outputs ? c + k : c) / op->multiplier;
    }
    for (int32_t ky = 0; ky < op->kernel_h; ++ky) {
      for (int32_t kx = 0; kx < op->kernel_w; ++kx, w += 4) {
        const int inside = rows[ky] != NULL && x + kx >= cols->in_x0 && x + kx < cols->in_x1;
        const int8_t *from = inside ? rows[ky] + (x + kx - cols->in_x0) * channels : NULL;
        for (int32_t k = 0; k < 4; ++k) {
          acc[k] += (inside ? from[source[k]] : op->in_zero) * w[k];
        }
      }
    }
    const ht_sum4 sum = {acc[0], acc[1], acc[2], acc[3]};
    ht_store_any(sum, rq, op->flags & HT_RQ_GENERAL, 2 * op->out_zero + 1, outputs - c, out + c);
  }
}

#if HT_DSP || HT_MVE

/* One kernel row (or two) at a border, gathered as words of four channels; missing taps become the zero point. */
static void gather_row(const ht_dwconv *op, const ht_cols *cols, const int8_t *row, int32_t x, int32_t *window) {
  const int32_t fill = (int32_t)((uint32_t)(uint8_t)op->in_zero * 0x01010101u);
  for (int32_t kx = 0; kx < op->kernel_w; ++kx, ++x) {
    int32_t v = fill;
    if (row != NULL && x >= cols->in_x0 && x < cols->in_x1) {
      memcpy(&v, row + (x - cols->in_x0) * op->in_channels, 4);
    }
    window[kx] = v;
  }
}

static void border_point(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int32_t x, int32_t c,
                         const int8_t *taps, int32_t *window, ht_sum4 *acc) {
  const int32_t width = op->kernel_w;
  int32_t ky = 0;
  for (; ky + 2 <= op->kernel_h; ky += 2) {
    gather_row(op, cols, rows[ky] == NULL ? NULL : rows[ky] + c, x, window);
    gather_row(op, cols, rows[ky + 1] == NULL ? NULL : rows[ky + 1] + c, x, window + width);
    taps = ht_dw_rows2((const int8_t *)window, (const int8_t *)(window + width), 4, width, taps, acc);
  }
  if (ky < op->kernel_h) {
    gather_row(op, cols, rows[ky] == NULL ? NULL : rows[ky] + c, x, window);
    ht_dw_rows1((const int8_t *)window, 4, width, taps, acc);
  }
}

/* Four channels of the whole row. */
static void block_row(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int32_t c,
                      const ht_rq4 *rq, const int8_t *w, int32_t *scratch, int8_t *out) {
  const int32_t height = op->kernel_h, width = op->kernel_w, channels = op->in_channels, step = op->stride_w;
  const int32_t zero2 = 2 * op->out_zero + 1;
  const unsigned general = op->flags & HT_RQ_GENERAL;
  int complete = 1;
  for (int32_t k = 0; k < height; ++k) {
    complete &= rows[k] != NULL;
  }
  const int8_t *const taps = ht_dw_prepare(w + 16, height, width, scratch + 2 * width);
  int32_t x = cols->out_x0 * step - op->pad_left;
  for (int32_t n = cols->out_x1 - cols->out_x0; n > 0; --n, x += step, out += op->out_channels) {
    ht_sum4 acc = ht_load4(w);
    if (complete && x >= cols->in_x0 && x + width <= cols->in_x1) {
      const int32_t offset = (x - cols->in_x0) * channels + c;
      const int8_t *t = taps;
      int32_t ky = 0;
      for (; ky + 2 <= height; ky += 2) {
        t = ht_dw_rows2(rows[ky] + offset, rows[ky + 1] + offset, channels, width, t, &acc);
      }
      if (ky < height) {
        ht_dw_rows1(rows[ky] + offset, channels, width, t, &acc);
      }
    } else {
      border_point(op, cols, rows, x, c, taps, scratch, &acc);
    }
    if (general) {
      ht_store_any(acc, rq, general, zero2, 4, out);
    } else {
      ht_store4(acc, rq, zero2, out);
    }
  }
}

#endif

void ht_depthwise_row(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out,
                      void *scratch) {
  const int32_t outputs = op->out_channels;
  const int32_t count = cols->out_x1 - cols->out_x0;
#if HT_DSP || HT_MVE
  if (op->multiplier == 1 && (outputs & 3) == 0) {
    const int8_t *w = op->weights;
    const ht_rq4 *rq = op->rq;
    for (int32_t c = 0; c < outputs; c += 4, rq += op->rq_step) {
      block_row(op, cols, rows, c, rq, w, (int32_t *)scratch, out + c);
      w += 16 + 4 * op->kernel_h * op->kernel_w;
    }
  } else
#endif
  {
    for (int32_t i = 0; i < count; ++i) {
      any_point(op, cols, rows, (cols->out_x0 + i) * op->stride_w - op->pad_left, out + i * outputs);
    }
  }
  (void)scratch;
  if (op->flags & HT_CLAMP) {
    ht_clamp_run(out, count * outputs, op->act_min, op->act_max);
  }
}
