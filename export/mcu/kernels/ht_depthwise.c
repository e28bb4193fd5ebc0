/* DEPTHWISE_CONV_2D, one output row. */
#include "ht_internal.h"

#if HT_MVE
#include "ht_dw_mve.h"
#elif HT_DSP
#include "ht_dw_dsp.h"
#endif

/* Four channels of one position, any border; p of a tap: address of the block's first input channel. */
HT_INLINE ht_sum4 block_point(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int32_t x,
                              int32_t channel, const int8_t from[4], const int8_t *w) {
  const int32_t channels = op->in_channels, width = op->kernel_w;
  const int8_t padding[4] = {op->in_zero, op->in_zero, op->in_zero, op->in_zero};
  ht_sum4 s = ht_load4(w);
  w += 16;
  for (int32_t ky = 0; ky < op->kernel_h; ++ky) {
    const int8_t *const row = rows[ky];
    int32_t offset = (x - cols->in_x0) * channels + channel;
    for (int32_t kx = 0; kx < width; ++kx, w += 4, offset += channels) {
      const int inside = row != NULL && x + kx >= cols->in_x0 && x + kx < cols->in_x1;
      const int8_t *const p = inside ? row + offset : padding;
      s.a = ht_wrap_add(s.a, p[from[0]] * w[0]);
      s.b = ht_wrap_add(s.b, p[from[1]] * w[1]);
      s.c = ht_wrap_add(s.c, p[from[2]] * w[2]);
      s.d = ht_wrap_add(s.d, p[from[3]] * w[3]);
    }
  }
  return s;
}

/* All channels of one position, any border, any multiplier. */
static void any_point(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int32_t x, int8_t *out) {
  const int32_t outputs = op->out_channels, multiplier = op->multiplier;
  const int32_t block_bytes = 16 + 4 * op->kernel_h * op->kernel_w;
  const int8_t *w = op->weights;
  const ht_rq4 *rq = op->rq;
  for (int32_t c = 0; c < outputs; c += 4, rq += op->rq_step, w += block_bytes) {
    static const int8_t in_order[4] = {0, 1, 2, 3};
    ht_sum4 sum;
    if (multiplier == 1 && c + 4 <= outputs) {
      sum = block_point(op, cols, rows, x, c, in_order, w);
    } else {
      int8_t from[4];
      for (int32_t k = 0; k < 4; ++k) {
        from[k] = (int8_t)(c + k < outputs ? (c + k) / multiplier - c / multiplier : 0);
      }
      sum = block_point(op, cols, rows, x, c / multiplier, from, w);
    }
    ht_store_any(sum, rq, op->flags & HT_RQ_GENERAL, 2 * op->out_zero + 1, outputs - c, out + c);
  }
}

void ht_depthwise_row(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out,
                      void *scratch) {
  const int32_t outputs = op->out_channels;
  const int32_t count = cols->out_x1 - cols->out_x0;
#if HT_DSP || HT_MVE
  if (op->multiplier == 1 && (outputs & 3) == 0 && HT_DW_FITS(op)) {
    ht_dw_row(op, cols, rows, out, (int8_t *)scratch);
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
