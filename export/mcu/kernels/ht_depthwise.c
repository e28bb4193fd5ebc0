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
#define HT_BLOCKS 1

/* Four channels of one output row. */
typedef struct block {
  ht_dw_group groups[(HT_MAX_KERNEL + HT_DW_ROWS - 1) / HT_DW_ROWS];
  int32_t count;    /* of groups */
  int32_t width;    /* kernel columns */
  int32_t step;     /* bytes from a column to the next */
  int32_t advance;  /* bytes from a window to the next */
  int32_t pitch;    /* bytes from an output column to the next */
  int32_t zero2;
  const ht_rq4 *rq;
  unsigned general;
  ht_dw_sum start; /* bias, and the part of missing rows */
} block;

HT_INLINE ht_dw_sum group_sum(const ht_dw_group *g, int32_t offset, int32_t step, int32_t width, const int8_t *taps,
                              ht_dw_sum sum) {
#if HT_DW_ROWS == 2
  if (g->q != NULL) {
    return ht_dw_pair(g->p + offset, g->q + offset, step, width, taps, sum);
  }
#endif
  return ht_dw_single(g->p + offset, step, width, taps, sum);
}

HT_INLINE void finish(const block *b, ht_dw_sum sum, int8_t *out) {
  if (b->general) {
    ht_store_any(ht_dw_scalars(sum), b->rq, 1, b->zero2, 4, out);
  } else {
    ht_dw_store(sum, b->rq, b->zero2, out);
  }
}

/* `n` positions whose windows lie inside of the image; offset: of the first window in a row. */
HT_INLINE void inside(const block *b, int32_t offset, int32_t width, int32_t n, int8_t *out) {
  for (; n > 0; --n, offset += b->advance, out += b->pitch) {
    ht_dw_sum sum = b->start;
    const ht_dw_group *g = b->groups;
    const ht_dw_group *const end = g + b->count;
    for (; g != end; ++g) {
      sum = group_sum(g, offset, b->step, width, g->taps, sum);
    }
    finish(b, sum, out);
  }
}

/* The common 3 x 3 with all three rows present. */
static void inside3x3(const block *b, int32_t offset, int32_t n, int8_t *out) {
  const int8_t *r0 = b->groups[0].p + offset, *r1, *r2;
  const int32_t step = b->step, advance = b->advance, pitch = b->pitch, zero2 = b->zero2;
  const ht_rq4 *const rq = b->rq;
#if HT_DW_ROWS == 2
  r1 = b->groups[0].q + offset;
  r2 = b->groups[1].p + offset;
#else
  r1 = b->groups[1].p + offset;
  r2 = b->groups[2].p + offset;
#endif
  for (; n > 0; --n, r0 += advance, r1 += advance, r2 += advance, out += pitch) {
#if HT_DW_ROWS == 2
    ht_dw_sum sum = ht_dw_pair(r0, r1, step, 3, b->groups[0].taps, b->start);
    sum = ht_dw_single(r2, step, 3, b->groups[1].taps, sum);
#else
    ht_dw_sum sum = ht_dw_single(r0, step, 3, b->groups[0].taps, b->start);
    sum = ht_dw_single(r1, step, 3, b->groups[1].taps, sum);
    sum = ht_dw_single(r2, step, 3, b->groups[2].taps, sum);
#endif
    ht_dw_store(sum, rq, zero2, out);
  }
}

/* One position with `before` and `after` missing columns; offset: of the first present column. */
static void border(const block *b, const int8_t *fill, int32_t offset, int32_t before, int32_t after, int8_t *out) {
  ht_dw_sum sum = b->start;
  const ht_dw_group padding = {fill, fill, NULL};
  for (int32_t k = 0; k < b->count; ++k) {
    const ht_dw_group *const g = &b->groups[k];
    const int32_t column = HT_DW_ROWS == 1 ? 4 : (g->q != NULL ? 16 : 8); /* bytes of taps per kernel column */
    const int32_t present = b->width - before - after;
    const int8_t *taps = g->taps;
    const ht_dw_group *source = &padding;
    int32_t from = 0, width = before, step = 0;
    for (int part = 0; part < 3; ++part) {
      const ht_dw_group now = {source->p, g->q != NULL ? source->q : NULL, NULL};
      sum = group_sum(&now, from, step, width, taps, sum);
      taps += width * column;
      source = part == 0 ? g : &padding;
      from = part == 0 ? offset : 0;
      step = part == 0 ? b->step : 0;
      width = part == 0 ? present : after;
    }
  }
  finish(b, sum, out);
}

/* Groups the rows that exist; those that do not go into the start value. */
static void open_block(block *b, const ht_dwconv *op, const int8_t *const *rows, const int8_t *w, const int8_t *fill,
                       int32_t c, int8_t *scratch) {
  const int32_t width = op->kernel_w;
  const int8_t *taps = w + 16;
  ht_dw_sum start = ht_dw_start(w);
  ht_dw_group *g = b->groups;
#if HT_DW_ROWS == 2
  const int8_t *first = NULL, *first_taps = NULL; /* present row that waits for a second one */
#endif
  for (int32_t k = 0; k < op->kernel_h; ++k, taps += 4 * width) {
    const int8_t *const row = rows[k];
#if HT_DW_ROWS == 1
    if (row == NULL) {
      start = ht_dw_single(fill, 0, width, taps, start);
    } else {
      *g++ = (ht_dw_group){row + c, NULL, taps};
    }
#else
    if (row == NULL) {
      (void)ht_dw_prepare(taps, NULL, width, scratch);
      start = ht_dw_single(fill, 0, width, scratch, start);
    } else if (first == NULL) {
      first = row + c;
      first_taps = taps;
    } else {
      *g++ = (ht_dw_group){first, row + c, scratch};
      scratch = ht_dw_prepare(first_taps, taps, width, scratch);
      first = NULL;
    }
#endif
  }
#if HT_DW_ROWS == 2
  if (first != NULL) {
    *g++ = (ht_dw_group){first, NULL, scratch};
    (void)ht_dw_prepare(first_taps, NULL, width, scratch);
  }
#else
  (void)scratch;
#endif
  b->count = (int32_t)(g - b->groups);
  b->start = start;
}

static void run_block(const block *b, const ht_dwconv *op, const ht_cols *cols, const int8_t *fill, int8_t *out) {
  const int32_t step = b->step, width = b->width, last = cols->in_x1 - width;
  int32_t n = cols->out_x1 - cols->out_x0;
  int32_t x = cols->out_x0 * op->stride_w - op->pad_left;
  while (n > 0) {
    if (x >= cols->in_x0 && x <= last) {
      int32_t run = (last - x) / op->stride_w + 1;
      const int32_t offset = (x - cols->in_x0) * step;
      run = run < n ? run : n;
      if (width == 3) {
        if (op->kernel_h == 3 && b->count == (HT_DW_ROWS == 1 ? 3 : 2) && b->general == 0) {
          inside3x3(b, offset, run, out);
        } else {
          inside(b, offset, 3, run, out);
        }
      } else if (width == 5) {
        inside(b, offset, 5, run, out);
      } else if (width == 7) {
        inside(b, offset, 7, run, out);
      } else {
        inside(b, offset, width, run, out);
      }
      n -= run;
      x += run * op->stride_w;
      out += run * b->pitch;
    } else {
      const int32_t before = ht_clamp(cols->in_x0 - x, 0, width);
      const int32_t after = ht_clamp(x - last, 0, width - before);
      border(b, fill, (x + before - cols->in_x0) * step, before, after, out);
      --n;
      x += op->stride_w;
      out += b->pitch;
    }
  }
}

static void all_blocks(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out,
                       int8_t *scratch) {
  const uint32_t word = (uint32_t)(uint8_t)op->in_zero * 0x01010101u;
  const int8_t *const fill = (const int8_t *)&word;
  const int8_t *w = op->weights;
  block b;
  b.width = op->kernel_w;
  b.step = op->in_channels;
  b.advance = op->stride_w * op->in_channels;
  b.pitch = op->out_channels;
  b.zero2 = 2 * op->out_zero + 1;
  b.rq = op->rq;
  b.general = op->flags & HT_RQ_GENERAL;
  for (int32_t c = 0; c < op->out_channels; c += 4, b.rq += op->rq_step) {
    open_block(&b, op, rows, w, fill, c, scratch);
    run_block(&b, op, cols, fill, out + c);
    w += 16 + 4 * op->kernel_h * op->kernel_w;
  }
}

#else
#define HT_BLOCKS 0
#endif

void ht_depthwise_row(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out,
                      void *scratch) {
  const int32_t outputs = op->out_channels;
  const int32_t count = cols->out_x1 - cols->out_x0;
#if HT_BLOCKS
  if (op->multiplier == 1 && (outputs & 3) == 0 && op->kernel_h <= HT_MAX_KERNEL) {
    all_blocks(op, cols, rows, out, (int8_t *)scratch);
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
