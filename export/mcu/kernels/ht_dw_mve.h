/* ht_dw_mve.h - a row of DEPTHWISE_CONV_2D with Helium, channels a multiple of 4, multiplier 1; internal. */
#ifndef HT_DW_MVE_H
#define HT_DW_MVE_H

#include "ht_internal.h"

/* All channels of one position, four at a time; kernel columns [first, end) lie inside of the image. */
static void vector_point(const ht_dwconv *op, const int8_t *const *rows, int32_t offset, int32_t first, int32_t end,
                         int8_t *out) {
  const int32_t channels = op->in_channels, width = op->kernel_w, zero = op->in_zero;
  const int32_t zero2 = 2 * op->out_zero + 1;
  const int8_t *w = op->weights;
  const ht_rq4 *rq = op->rq;
  for (int32_t c = 0; c < channels; c += 4, rq += op->rq_step) {
    int32x4_t sum = vldrwq_s32((const int32_t *)(const void *)w);
    w += 16;
    for (int32_t ky = 0; ky < op->kernel_h; ++ky) {
      const int32_t from = rows[ky] == NULL ? width : first, to = rows[ky] == NULL ? width : end;
      int32_t kx = 0;
      for (; kx < from; ++kx, w += 4) {
        sum = vmlaq_n_s32(sum, vldrbq_s32(w), zero);
      }
      if (kx < to) {
        const int8_t *p = rows[ky] + offset + c + kx * channels;
        for (; kx < to; ++kx, w += 4, p += channels) {
          sum = vaddq_s32(sum, vmulq_s32(vldrbq_s32(p), vldrbq_s32(w)));
        }
      }
      for (; kx < width; ++kx, w += 4) {
        sum = vmlaq_n_s32(sum, vldrbq_s32(w), zero);
      }
    }
    if (op->flags & HT_RQ_GENERAL) {
      ht_sum4 s;
      vstrwq_s32(&s.a, sum);
      ht_store_any(s, rq, 1, zero2, 4, out + c);
    } else {
      ht_store_vector(sum, rq, zero2, out + c);
    }
  }
}

HT_INLINE int32x4_t vector_row3(const int8_t *p, int32_t step, const int8_t *w, int32x4_t sum) {
  sum = vaddq_s32(sum, vmulq_s32(vldrbq_s32(p), vldrbq_s32(w)));
  sum = vaddq_s32(sum, vmulq_s32(vldrbq_s32(p + step), vldrbq_s32(w + 4)));
  return vaddq_s32(sum, vmulq_s32(vldrbq_s32(p + 2 * step), vldrbq_s32(w + 8)));
}

static void vector_point3x3(const ht_dwconv *op, const int8_t *const *rows, int32_t offset, int8_t *out) {
  const int32_t step = op->in_channels, zero2 = 2 * op->out_zero + 1, rq_step = op->rq_step;
  const int8_t *r0 = rows[0] + offset, *r1 = rows[1] + offset, *r2 = rows[2] + offset, *w = op->weights;
  const ht_rq4 *rq = op->rq;
  for (int32_t n = step; n > 0; n -= 4, r0 += 4, r1 += 4, r2 += 4, w += 52, rq += rq_step, out += 4) {
    int32x4_t sum = vldrwq_s32((const int32_t *)(const void *)w);
    sum = vector_row3(r0, step, w + 16, sum);
    sum = vector_row3(r1, step, w + 28, sum);
    sum = vector_row3(r2, step, w + 40, sum);
    ht_store_vector(sum, rq, zero2, out);
  }
}

static void ht_dw_row(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out,
                       int8_t *scratch) {
  const int32_t width = op->kernel_w;
  int three = width == 3 && op->kernel_h == 3 && (op->flags & HT_RQ_GENERAL) == 0;
  int32_t x = cols->out_x0 * op->stride_w - op->pad_left;
  (void)scratch;
  for (int32_t k = 0; k < op->kernel_h; ++k) {
    three &= rows[k] != NULL;
  }
  for (int32_t i = cols->out_x0; i < cols->out_x1; ++i, x += op->stride_w, out += op->out_channels) {
    const int32_t offset = (x - cols->in_x0) * op->in_channels;
    const int32_t first = ht_clamp(cols->in_x0 - x, 0, width), end = ht_clamp(cols->in_x1 - x, 0, width);
    if (three && end - first == 3) {
      vector_point3x3(op, rows, offset, out);
    } else {
      vector_point(op, rows, offset, first, end, out);
    }
  }
}

#endif
