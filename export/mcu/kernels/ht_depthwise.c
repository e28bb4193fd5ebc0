/* DEPTHWISE_CONV_2D, one output row. */
#include "ht_internal.h"

#if HT_MVE
#include "ht_dw_mve.h"
#elif HT_DSP
#include "ht_dw_dsp.h"
#endif

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
          acc[k] = ht_wrap_add(acc[k], (inside ? from[source[k]] : op->in_zero) * w[k]);
        }
      }
    }
    const ht_sum4 sum = {acc[0], acc[1], acc[2], acc[3]};
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
