/* ht_dw_mve.h - a row of DEPTHWISE_CONV_2D with Helium, channels a multiple of 4, multiplier 1; internal. */
#ifndef HT_DW_MVE_H
#define HT_DW_MVE_H

#include "ht_internal.h"

#define HT_DW_FITS(OP) 1

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

/* One tap of four channels, inside of the image or not. */
#define HT_DW_TAP(P)                    \
  "vldrb.s32 q1, [" P "]\n\t"           \
  "vldrb.s32 q2, [%[w]], #4\n\t"        \
  "vmul.i32 q1, q1, q2\n\t"             \
  "vadd.i32 %q[sum], %q[sum], q1\n\t"
#define HT_DW_MISSING            \
  "vldrb.s32 q2, [%[w]], #4\n\t" \
  "vmla.s32 %q[sum], q2, %[z]\n\t"
#define HT_DW_NEXT "add %[p], %[p], %[s]\n\t"
#define HT_DW_ASM(BODY)                                                                 \
  __asm__ volatile(BODY : [sum] "+w"(sum), [w] "+l"(w), [p] "+l"(p) : [s] "r"(step), [z] "r"(zero) \
                   : "q1", "q2", "memory")

/* 3 x 3 at one position; kernel columns [first, end) lie inside of the image. */
static void vector_point3x3(const ht_dwconv *op, const int8_t *const *rows, int32_t offset, int32_t first, int32_t end,
                            int8_t *out) {
  const int32_t step = op->in_channels, zero2 = 2 * op->out_zero + 1, rq_step = op->rq_step, zero = op->in_zero;
  const int32_t inside = 4 * first + end; /* 3: all; 7: without the first; 2: without the last; else by tap */
  const int8_t *w = op->weights;
  const ht_rq4 *rq = op->rq;
  for (int32_t c = 0; c < step; c += 4, rq += rq_step) {
    int32x4_t sum = vldrwq_s32((const int32_t *)(const void *)w);
    w += 16;
    for (int32_t ky = 0; ky < 3; ++ky) {
      const int8_t *p = rows[ky] + offset + c;
      if (rows[ky] == NULL) {
        HT_DW_ASM(HT_DW_MISSING HT_DW_MISSING HT_DW_MISSING);
      } else if (inside == 3) {
        HT_DW_ASM(HT_DW_TAP("%[p]") HT_DW_NEXT HT_DW_TAP("%[p]") HT_DW_NEXT HT_DW_TAP("%[p]"));
      } else if (inside == 7) {
        HT_DW_ASM(HT_DW_MISSING HT_DW_NEXT HT_DW_TAP("%[p]") HT_DW_NEXT HT_DW_TAP("%[p]"));
      } else {
        HT_DW_ASM(HT_DW_TAP("%[p]") HT_DW_NEXT HT_DW_TAP("%[p]") HT_DW_MISSING);
      }
    }
    ht_store_vector(sum, rq, zero2, out + c);
  }
}

/* 3 x 3 with all nine taps inside of the image. */
static void vector_inside3x3(const ht_dwconv *op, const int8_t *const *rows, int32_t offset, int8_t *out) {
  const int32_t step = op->in_channels, zero2 = 2 * op->out_zero + 1, rq_step = op->rq_step;
  const int8_t *r0 = rows[0] + offset, *r1 = rows[1] + offset, *r2 = rows[2] + offset, *w = op->weights, *p;
  const ht_rq4 *rq = op->rq;
  for (int32_t n = step; n > 0; n -= 4, rq += rq_step, out += 4) {
    int32x4_t sum;
#define HT_DW_ROW3(R)                                                              \
  "add %[p], " R ", %[s]\n\t" HT_DW_TAP(R) HT_DW_TAP("%[p]") HT_DW_NEXT "adds " R ", #4\n\t" HT_DW_TAP("%[p]")
    __asm__ volatile("vldrw.32 %q[sum], [%[w]], #16\n\t" HT_DW_ROW3("%[r0]") HT_DW_ROW3("%[r1]") HT_DW_ROW3("%[r2]")
                     : [sum] "=&w"(sum), [w] "+l"(w), [p] "=&l"(p), [r0] "+l"(r0), [r1] "+l"(r1), [r2] "+l"(r2)
                     : [s] "r"(step)
                     : "q1", "q2", "cc", "memory");
    ht_store_vector(sum, rq, zero2, out);
  }
}

static void ht_dw_row(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out,
                       int8_t *scratch) {
  const int32_t width = op->kernel_w;
  const int three = width == 3 && op->kernel_h == 3 && (op->flags & HT_RQ_GENERAL) == 0;
  int complete = 1;
  int32_t x = cols->out_x0 * op->stride_w - op->pad_left;
  (void)scratch;
  for (int32_t k = 0; k < op->kernel_h; ++k) {
    complete &= rows[k] != NULL;
  }
  for (int32_t i = cols->out_x0; i < cols->out_x1; ++i, x += op->stride_w, out += op->out_channels) {
    const int32_t offset = (x - cols->in_x0) * op->in_channels;
    const int32_t first = ht_clamp(cols->in_x0 - x, 0, width), end = ht_clamp(cols->in_x1 - x, 0, width);
    if (three && complete && end - first == 3) {
      vector_inside3x3(op, rows, offset, out);
    } else if (three && (end - first == 3 || (end == 3 && first == 1) || (end == 2 && first == 0))) {
      vector_point3x3(op, rows, offset, first, end, out);
    } else {
      vector_point(op, rows, offset, first, end, out);
    }
  }
}

#endif
