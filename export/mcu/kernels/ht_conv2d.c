/* CONV_2D, one output row. */
#include "ht_point.h"

/* Longest list of runs; a window with more, because of its padding, is copied to scratch (see scratch.py). */
#define MAX_RUNS 16
#define ZEROS 64 /* bytes of padding that one run covers, a multiple of 16 */

/* memcpy for a few bytes; returns the end. */
HT_INLINE int8_t *copy(int8_t *to, const int8_t *from, int32_t n) {
  for (; n >= 4; n -= 4, from += 4, to += 4) {
    memcpy(to, from, 4);
  }
  for (; n > 0; --n) {
    *to++ = *from++;
  }
  return to;
}

HT_INLINE int8_t *fill(int8_t *to, int8_t value, int32_t n) {
  for (; n > 0; --n) {
    *to++ = value;
  }
  return to;
}

/* Columns of a window: missing on the left, inside of the image, missing on the right. */
typedef struct split {
  int32_t before, inside, after;
  int32_t offset; /* bytes from the start of a row to the first column inside */
} split;

static split split_window(const ht_conv *op, const ht_cols *cols, int32_t x) {
  split s;
  s.before = ht_clamp(cols->in_x0 - x, 0, op->kernel_w);
  s.after = ht_clamp(x + op->kernel_w - cols->in_x1, 0, op->kernel_w - s.before);
  s.inside = op->kernel_w - s.before - s.after;
  s.offset = (x + s.before - cols->in_x0) * op->in_channels;
  return s;
}

/* Copies the window to scratch, in weight order; returns its end. */
static int8_t *gather(const ht_conv *op, const int8_t *const *rows, split s, int8_t *to) {
  const int32_t channels = op->in_channels, run = op->kernel_w * channels;
  for (int32_t k = 0; k < op->kernel_h; ++k) {
    if (rows[k] == NULL) {
      to = fill(to, op->in_zero, run);
    } else {
      to = fill(to, op->in_zero, s.before * channels);
      to = copy(to, rows[k] + s.offset, s.inside * channels);
      to = fill(to, op->in_zero, s.after * channels);
    }
  }
  return to;
}

/* n bytes of padding. */
static ht_run *padding(ht_run *to, const int8_t *zeros, int32_t n) {
  for (; n > 0; n -= ZEROS) {
    *to++ = (ht_run){zeros, n < ZEROS ? n : ZEROS};
  }
  return to;
}

/* A window that needs no copy: padding becomes runs of its own. Returns the end of the runs. */
static ht_run *split_runs(const ht_conv *op, const int8_t *const *rows, split s, const int8_t *zeros, ht_run *to) {
  const int32_t channels = op->in_channels;
  for (int32_t k = 0; k < op->kernel_h; ++k) {
    if (rows[k] == NULL) {
      to = padding(to, zeros, op->kernel_w * channels);
    } else {
      to = padding(to, zeros, s.before * channels);
      if (s.inside > 0) {
        *to++ = (ht_run){rows[k] + s.offset, s.inside * channels};
      }
      to = padding(to, zeros, s.after * channels);
    }
  }
  return to;
}

/* Whether the list of a window with padding always fits: padding, data, padding in every row. */
static int splits(const ht_conv *op) {
  const int32_t runs = (op->kernel_w * op->in_channels + ZEROS - 1) / ZEROS + 2;
  return (op->in_channels & 15) == 0 && op->kernel_h * runs <= MAX_RUNS;
}

/* One position that is not wholly inside of the image, or whose window is always copied. */
HT_APART void any_point(const ht_conv *op, const ht_cols *cols, const int8_t *const *rows, int32_t x, int8_t *out,
                        int8_t *scratch) {
  uint32_t zeros[ZEROS / 4];
  const split s = split_window(op, cols, x);
  const int32_t run = op->kernel_w * op->in_channels;
  ht_run runs[MAX_RUNS];
  ht_run *end = runs;
  if (op->flags & HT_GATHER) {
    int8_t *const last = gather(op, rows, s, scratch);
    const int32_t taps = (int32_t)(last - scratch);
    (void)fill(last, 0, -taps & 3);
    *end++ = (ht_run){scratch, (taps + 3) & ~3};
  } else if (splits(op)) {
    memset(zeros, op->in_zero, ZEROS);
    end = split_runs(op, rows, s, (const int8_t *)zeros, runs);
  } else {
    (void)gather(op, rows, s, scratch);
    for (int32_t k = 0; k < op->kernel_h; ++k) {
      *end++ = (ht_run){scratch + k * run, run};
    }
  }
  ht_conv_point(op, runs, end, out);
}

/* n positions inside of the image, the first at image column x. */
static void inside(const ht_conv *op, const ht_cols *cols, const int8_t *const *rows, int32_t x, int32_t n,
                   int8_t *out) {
  const int32_t height = op->kernel_h, advance = op->stride_w * op->in_channels;
  ht_run runs[HT_MAX_DIRECT];
  ht_run *const end = runs + height;
  for (int32_t k = 0; k < height; ++k) {
    runs[k].x = rows[k] + (x - cols->in_x0) * op->in_channels;
    runs[k].n = op->kernel_w * op->in_channels;
  }
  for (; n > 0; --n, out += op->out_channels) {
    ht_conv_point(op, runs, end, out);
    for (ht_run *run = runs; run != end; ++run) {
      run->x += advance;
    }
  }
}

void ht_conv2d_row(const ht_conv *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out, void *scratch) {
  const int32_t stride = op->stride_w;
  int32_t x = cols->out_x0 * stride - op->pad_left;
  int32_t last = cols->in_x1 - op->kernel_w; /* last column of a window inside of the image */
  int8_t *const first = out;
  for (int32_t k = 0; k < op->kernel_h; ++k) {
    if (rows[k] == NULL || (op->flags & HT_GATHER)) {
      last = INT16_MIN;
    }
  }
  for (int32_t n = cols->out_x1 - cols->out_x0; n > 0;) {
    int32_t run = 1;
    if (x >= cols->in_x0 && x <= last) {
      run = (last - x) / stride + 1;
      run = run < n ? run : n;
      inside(op, cols, rows, x, run, out);
    } else {
      any_point(op, cols, rows, x, out, (int8_t *)scratch);
    }
    n -= run;
    x += run * stride;
    out += run * op->out_channels;
  }
  if (op->flags & HT_CLAMP) {
    ht_clamp_run(first, (int32_t)(out - first), op->act_min, op->act_max);
  }
}
