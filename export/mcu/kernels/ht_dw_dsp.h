/*
 * ht_dw_dsp.h - kernel rows of a depthwise convolution over four channels with DSP instructions; internal.
 *
 * A group is what one pass handles: two kernel rows a, b, or a last odd one alone. Its taps, int16 in scratch, per kernel
 * column: pair {b0 a0} {b1 a1} {b2 a2} {b3 a3}; single {w2 w0} {w3 w1}.
 * Input column k of a row is at p + k * step, 4-byte aligned; step 0 repeats one column (padding).
 */
#ifndef HT_DW_DSP_H
#define HT_DW_DSP_H

#include "ht_internal.h"

#define HT_DW_ROWS 16 /* tallest kernel served */
#define HT_DW_FITS(OP) ((OP)->kernel_h <= HT_DW_ROWS)

typedef struct ht_dw_group {
  const int8_t *p, *q; /* input rows, q NULL for a single */
  int16_t a, b;        /* where their taps start in a block's weights, bytes */
  int8_t *taps;        /* in scratch */
} ht_dw_group;

/* One column of two rows: 8 multiply-accumulates in 14 instructions. */
#define HT_DW_PAIR(A, B)                      \
  "ldr %[xa], " A "\n\t"                      \
  "ldr %[xb], " B "\n\t"                      \
  "pkhbt %[t], %[xa], %[xb], lsl #16\n\t"     \
  "pkhtb %[xb], %[xb], %[xa], asr #16\n\t"    \
  "ldrd %[w0], %[w1], [%[w]], #8\n\t"         \
  "sxtb16 %[xa], %[t]\n\t"                    \
  "sxtb16 %[t], %[t], ror #8\n\t"             \
  "smlad %[a0], %[xa], %[w0], %[a0]\n\t"      \
  "smlad %[a1], %[t], %[w1], %[a1]\n\t"       \
  "ldrd %[w0], %[w1], [%[w]], #8\n\t"         \
  "sxtb16 %[xa], %[xb]\n\t"                   \
  "sxtb16 %[xb], %[xb], ror #8\n\t"           \
  "smlad %[a2], %[xa], %[w0], %[a2]\n\t"      \
  "smlad %[a3], %[xb], %[w1], %[a3]\n\t"
#define HT_DW_PAIR_NEXT                  \
  "add %[p], %[p], %[s]\n\t"             \
  "add %[p], %[p], %[s], lsl #1\n\t"     \
  "add %[q], %[q], %[s]\n\t"             \
  "add %[q], %[q], %[s], lsl #1\n\t"
#define HT_DW_PAIR_X1 HT_DW_PAIR("[%[p]]", "[%[q]]")
#define HT_DW_PAIR_X2 HT_DW_PAIR_X1 HT_DW_PAIR("[%[p], %[s]]", "[%[q], %[s]]")
#define HT_DW_PAIR_X3 HT_DW_PAIR_X2 HT_DW_PAIR("[%[p], %[s], lsl #1]", "[%[q], %[s], lsl #1]")

/* One column of one row: 4 in 8. */
#define HT_DW_ONE(A)                          \
  "ldr %[xb], " A "\n\t"                      \
  "ldrd %[w0], %[w1], [%[w]], #8\n\t"         \
  "sxtb16 %[xa], %[xb]\n\t"                   \
  "sxtb16 %[xb], %[xb], ror #8\n\t"           \
  "smlabb %[a0], %[xa], %[w0], %[a0]\n\t"     \
  "smlabb %[a1], %[xb], %[w1], %[a1]\n\t"     \
  "smlatt %[a2], %[xa], %[w0], %[a2]\n\t"     \
  "smlatt %[a3], %[xb], %[w1], %[a3]\n\t"
#define HT_DW_ONE_NEXT "add %[p], %[p], %[s]\n\tadd %[p], %[p], %[s], lsl #1\n\t"
#define HT_DW_ONE_X1 HT_DW_ONE("[%[p]]")
#define HT_DW_ONE_X2 HT_DW_ONE_X1 HT_DW_ONE("[%[p], %[s]]")
#define HT_DW_ONE_X3 HT_DW_ONE_X2 HT_DW_ONE("[%[p], %[s], lsl #1]")

#define HT_DW_SUMS [a0] "+r"(sum.a), [a1] "+r"(sum.b), [a2] "+r"(sum.c), [a3] "+r"(sum.d), [w] "+r"(w), [p] "+r"(p)
#define HT_DW_TEMPS [xa] "=&r"(xa), [xb] "=&r"(xb), [w0] "=&r"(w0), [w1] "=&r"(w1)
#define HT_DW_ASM2(BODY) \
  __asm__ volatile(BODY : HT_DW_SUMS, [q] "+r"(q), [t] "=&r"(t), HT_DW_TEMPS : [s] "r"(step) : "memory")
#define HT_DW_ASM1(BODY) __asm__ volatile(BODY : HT_DW_SUMS, HT_DW_TEMPS : [s] "r"(step) : "memory")

/* width 1, 3, 5 or 7, known when compiling. */
HT_INLINE ht_sum4 ht_dw_pair(const int8_t *p, const int8_t *q, int32_t step, int32_t width, const int8_t *w,
                             ht_sum4 sum) {
  int32_t xa, xb, t, w0, w1;
  if (width == 3) {
    HT_DW_ASM2(HT_DW_PAIR_X3);
  } else if (width == 5) {
    HT_DW_ASM2(HT_DW_PAIR_X3 HT_DW_PAIR_NEXT HT_DW_PAIR_X2);
  } else if (width == 7) {
    HT_DW_ASM2(HT_DW_PAIR_X3 HT_DW_PAIR_NEXT HT_DW_PAIR_X3 HT_DW_PAIR_NEXT HT_DW_PAIR_X1);
  } else {
    HT_DW_ASM2(HT_DW_PAIR_X1);
  }
  return sum;
}

HT_INLINE ht_sum4 ht_dw_single(const int8_t *p, int32_t step, int32_t width, const int8_t *w, ht_sum4 sum) {
  int32_t xa, xb, w0, w1;
  if (width == 3) {
    HT_DW_ASM1(HT_DW_ONE_X3);
  } else if (width == 5) {
    HT_DW_ASM1(HT_DW_ONE_X3 HT_DW_ONE_NEXT HT_DW_ONE_X2);
  } else if (width == 7) {
    HT_DW_ASM1(HT_DW_ONE_X3 HT_DW_ONE_NEXT HT_DW_ONE_X3 HT_DW_ONE_NEXT HT_DW_ONE_X1);
  } else {
    HT_DW_ASM1(HT_DW_ONE_X1);
  }
  return sum;
}

/* Expands `width` columns of taps; b NULL makes a single. Returns the end. */
static int8_t *ht_dw_prepare(const int8_t *a, const int8_t *b, int32_t width, int8_t *to) {
  int32_t xa, xb, t;
  if (b != NULL) {
    for (; width > 0; --width) {
      __asm__ volatile(
          "ldr %[xa], [%[a]], #4\n\t"
          "ldr %[xb], [%[b]], #4\n\t"
          "pkhbt %[t], %[xa], %[xb], lsl #16\n\t"
          "pkhtb %[xb], %[xb], %[xa], asr #16\n\t"
          "sxtb16 %[xa], %[t]\n\t"
          "sxtb16 %[t], %[t], ror #8\n\t"
          "strd %[xa], %[t], [%[o]], #8\n\t"
          "sxtb16 %[xa], %[xb]\n\t"
          "sxtb16 %[xb], %[xb], ror #8\n\t"
          "strd %[xa], %[xb], [%[o]], #8"
          : [o] "+r"(to), [a] "+r"(a), [b] "+r"(b), [xa] "=&r"(xa), [xb] "=&r"(xb), [t] "=&r"(t)
          :
          : "memory");
    }
  }
  for (; width > 0; --width) {
    __asm__ volatile(
        "ldr %[xb], [%[a]], #4\n\t"
        "sxtb16 %[xa], %[xb]\n\t"
        "sxtb16 %[xb], %[xb], ror #8\n\t"
        "strd %[xa], %[xb], [%[o]], #8"
        : [o] "+r"(to), [a] "+r"(a), [xa] "=&r"(xa), [xb] "=&r"(xb)
        :
        : "memory");
  }
  return to;
}

/* Four channels of one output row. */
typedef struct block {
  ht_dw_group groups[HT_DW_ROWS / 2];
  const ht_dw_group *end;
  int32_t width;   /* kernel columns */
  int32_t step;    /* bytes from a column to the next */
  int32_t advance; /* bytes from a window to the next */
  int32_t pitch;   /* bytes from an output column to the next */
  int32_t zero2;
  unsigned general;
  const ht_rq4 *rq;
  ht_sum4 start; /* bias, and the part of missing rows */
} block;

HT_INLINE void finish(const block *b, ht_sum4 sum, int8_t *out) {
  if (b->general) {
    ht_store_any(sum, b->rq, 1, b->zero2, 4, out);
  } else {
    ht_store4(sum, b->rq, b->zero2, out);
  }
}

/* `n` positions whose windows lie inside of the image; offset: of the first window in a row. */
HT_INLINE void inside(const block *b, int32_t offset, int32_t width, int32_t n, int8_t *out) {
  for (; n > 0; --n, offset += b->advance, out += b->pitch) {
    ht_sum4 sum = b->start;
    for (const ht_dw_group *g = b->groups; g != b->end; ++g) {
      sum = g->q != NULL ? ht_dw_pair(g->p + offset, g->q + offset, b->step, width, g->taps, sum)
                         : ht_dw_single(g->p + offset, b->step, width, g->taps, sum);
    }
    finish(b, sum, out);
  }
}

/* The common 3 x 3 with all three rows present. */
static void inside3x3(const block *b, int32_t offset, int32_t n, int8_t *out) {
  const int8_t *r0 = b->groups[0].p + offset, *r1 = b->groups[0].q + offset, *r2 = b->groups[1].p + offset;
  const int32_t step = b->step, advance = b->advance, pitch = b->pitch, zero2 = b->zero2;
  const ht_rq4 *const rq = b->rq;
  for (; n > 0; --n, r0 += advance, r1 += advance, r2 += advance, out += pitch) {
    ht_sum4 sum = ht_dw_pair(r0, r1, step, 3, b->groups[0].taps, b->start);
    sum = ht_dw_single(r2, step, 3, b->groups[1].taps, sum);
    ht_store4(sum, rq, zero2, out);
  }
}

/* One position of which kernel columns [first, end) lie inside of the image; offset: of column 0 in a row. */
static void border(const block *b, const int8_t *fill, int32_t offset, int32_t first, int32_t end, int8_t *out) {
  ht_sum4 sum = b->start;
  for (const ht_dw_group *g = b->groups; g != b->end; ++g) {
    const int8_t *taps = g->taps;
    int32_t at = offset;
    for (int32_t k = 0; k < b->width; ++k, at += b->step) {
      const int missing = k < first || k >= end;
      const int8_t *const p = missing ? fill : g->p + at;
      if (g->q != NULL) {
        sum = ht_dw_pair(p, missing ? fill : g->q + at, 0, 1, taps, sum);
        taps += 16;
      } else {
        sum = ht_dw_single(p, 0, 1, taps, sum);
        taps += 8;
      }
    }
  }
  finish(b, sum, out);
}

/* Pairs the rows that exist. */
static void group_rows(block *b, const ht_dwconv *op, const int8_t *const *rows, int8_t *scratch) {
  const int32_t pitch = 4 * op->kernel_w;
  ht_dw_group *g = b->groups;
  int waiting = 0; /* whether *g has its first row and waits for a second one */
  for (int32_t k = 0; k < op->kernel_h; ++k) {
    const int16_t taps = (int16_t)(16 + k * pitch);
    if (rows[k] == NULL) {
      continue;
    }
    if (waiting) {
      g->q = rows[k];
      g->b = taps;
      ++g;
    } else {
      *g = (ht_dw_group){rows[k], NULL, taps, 0, scratch};
      scratch += 4 * pitch;
    }
    waiting = !waiting;
  }
  b->end = g + waiting;
}

/* Expands the taps of the block at w; missing rows go into the start value. */
static void open_block(block *b, const ht_dwconv *op, const int8_t *const *rows, const int8_t *w, const int8_t *fill,
                       int complete, int8_t *scratch) {
  b->start = ht_load4(w);
  if (!complete) {
    for (int32_t k = 0; k < op->kernel_h; ++k) {
      if (rows[k] == NULL) {
        (void)ht_dw_prepare(w + 16 + 4 * k * b->width, NULL, b->width, scratch);
        for (int32_t j = 0; j < b->width; ++j) {
          b->start = ht_dw_single(fill, 0, 1, scratch + 8 * j, b->start);
        }
      }
    }
  }
  for (const ht_dw_group *g = b->groups; g != b->end; ++g) {
    (void)ht_dw_prepare(w + g->a, g->q == NULL ? NULL : w + g->b, b->width, g->taps);
  }
}

static void run_block(const block *b, const ht_dwconv *op, const ht_cols *cols, const int8_t *fill, int8_t *out) {
  const int32_t width = b->width, stride = op->stride_w, last = cols->in_x1 - width;
  int32_t x = cols->out_x0 * stride - op->pad_left;
  for (int32_t n = cols->out_x1 - cols->out_x0; n > 0;) {
    const int32_t offset = (x - cols->in_x0) * b->step;
    int32_t run = 1;
    if (x < cols->in_x0 || x > last || (width != 3 && width != 5 && width != 7)) {
      border(b, fill, offset, cols->in_x0 - x, cols->in_x1 - x, out);
    } else {
      run = (last - x) / stride + 1;
      run = run < n ? run : n;
      if (width == 5) {
        inside(b, offset, 5, run, out);
      } else if (width == 7) {
        inside(b, offset, 7, run, out);
      } else if (b->end == b->groups + 2 && b->groups[1].q == NULL && b->general == 0) {
        inside3x3(b, offset, run, out);
      } else {
        inside(b, offset, 3, run, out);
      }
    }
    n -= run;
    x += run * stride;
    out += run * b->pitch;
  }
}

static void ht_dw_row(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out,
                      int8_t *scratch) {
  const uint32_t word = (uint32_t)(uint8_t)op->in_zero * 0x01010101u;
  const int8_t *const fill = (const int8_t *)&word;
  const int32_t taps = op->kernel_h * op->kernel_w;
  const int8_t *w = op->weights;
  block b;
  int complete = 1;
  for (int32_t k = 0; k < op->kernel_h; ++k) {
    complete &= rows[k] != NULL;
  }
  b.width = op->kernel_w;
  b.step = op->in_channels;
  b.advance = op->stride_w * op->in_channels;
  b.pitch = op->out_channels;
  b.zero2 = 2 * op->out_zero + 1;
  b.rq = op->rq;
  b.general = op->flags & HT_RQ_GENERAL;
  group_rows(&b, op, rows, scratch);
  for (int32_t c = 0; c < op->out_channels; c += 4, b.rq += op->rq_step, w += 16 + 4 * taps) {
    open_block(&b, op, rows, w, fill, complete, scratch);
    run_block(&b, op, cols, fill, out + c);
    for (ht_dw_group *g = b.groups; g != b.end; ++g) {
      g->p += 4;
      g->q += g->q == NULL ? 0 : 4;
    }
  }
}

#endif
