/*
 * Runs kernel cases from a file and writes their outputs: runner IN OUT. The same program is built natively (with
 * sanitizers) and for Cortex-M boards in QEMU. Every buffer is its own exact-size allocation, so that a sanitizer sees
 * reads past an end. Format: see kernel_harness.py.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ht_kernels.h"

uint32_t board_ticks(void);

static FILE *input;

static int32_t word(void) {
  int32_t v = 0;
  if (fread(&v, 4, 1, input) != 1) {
    exit(3);
  }
  return v;
}

static void *block(void) { /* length, bytes, padded to a multiple of 4 in the file; length < 0: NULL */
  const int32_t n = word();
  char pad[4];
  if (n < 0) {
    return NULL;
  }
  void *p = malloc(n > 0 ? (size_t)n : 1);
  if (p == NULL || fread(p, 1, (size_t)n, input) != (size_t)n || fread(pad, 1, (size_t)(-n & 3), input) != (size_t)(-n & 3)) {
    exit(4);
  }
  return p;
}

/* Exact on the host, where a sanitizer watches; with a guard behind it on a board. */
#ifdef __arm__
#define GUARD 16
#else
#define GUARD 0
#endif

static void *guarded(int32_t bytes) {
  if (bytes <= 0) {
    return NULL;
  }
  unsigned char *p = malloc((size_t)bytes + GUARD);
  if (p == NULL) {
    exit(4);
  }
  memset(p, 0x55, (size_t)bytes + GUARD);
  return p;
}

static void release(void *memory, int32_t bytes) {
  for (int32_t i = 0; memory != NULL && i < GUARD; ++i) {
    if (((unsigned char *)memory)[bytes + i] != 0x55) {
      exit(5);
    }
  }
  free(memory);
}

static ht_cols columns(void) {
  ht_cols c;
  c.in_x0 = (int16_t)word();
  c.in_x1 = (int16_t)word();
  c.out_x0 = (int16_t)word();
  c.out_x1 = (int16_t)word();
  return c;
}

static ht_conv conv_op(void) {
  ht_conv op;
  memset(&op, 0, sizeof op);
  op.weights = block();
  op.rq = block();
  op.rq_step = (uint16_t)word();
  op.in_channels = (uint16_t)word();
  op.out_channels = (uint16_t)word();
  op.kernel_h = (uint8_t)word();
  op.kernel_w = (uint8_t)word();
  op.stride_w = (uint8_t)word();
  op.pad_left = (uint8_t)word();
  op.flags = (uint8_t)word();
  op.in_zero = (int8_t)word();
  op.out_zero = (int8_t)word();
  op.act_min = (int8_t)word();
  op.act_max = (int8_t)word();
  return op;
}

static ht_dwconv depthwise_op(void) {
  ht_dwconv op;
  memset(&op, 0, sizeof op);
  op.weights = block();
  op.rq = block();
  op.rq_step = (uint16_t)word();
  op.in_channels = (uint16_t)word();
  op.out_channels = (uint16_t)word();
  op.kernel_h = (uint8_t)word();
  op.kernel_w = (uint8_t)word();
  op.stride_w = (uint8_t)word();
  op.pad_left = (uint8_t)word();
  op.multiplier = (uint8_t)word();
  op.flags = (uint8_t)word();
  op.in_zero = (int8_t)word();
  op.out_zero = (int8_t)word();
  op.act_min = (int8_t)word();
  op.act_max = (int8_t)word();
  return op;
}

static ht_pool pool_op(void) {
  ht_pool op;
  op.channels = (uint16_t)word();
  op.kernel_h = (uint8_t)word();
  op.kernel_w = (uint8_t)word();
  op.stride_w = (uint8_t)word();
  op.pad_left = (uint8_t)word();
  op.act_min = (int8_t)word();
  op.act_max = (int8_t)word();
  return op;
}

static uint32_t started, taken;
static void start(void) {
  __asm__ volatile("" ::: "memory");
  started = board_ticks();
  __asm__ volatile("" ::: "memory");
}
static void stop(void) {
  __asm__ volatile("" ::: "memory");
  taken = started - board_ticks(); /* SysTick counts down */
  __asm__ volatile("" ::: "memory");
}

/* One row of an operator with a window: rows, cols, scratch. */
static void window_case(int32_t kind, int8_t *out) {
  ht_conv conv;
  ht_dwconv depthwise;
  ht_pool pool;
  const int8_t *rows[16];
  int32_t height;
  if (kind == 1) {
    conv = conv_op();
    height = conv.kernel_h;
  } else if (kind == 3) {
    depthwise = depthwise_op();
    height = depthwise.kernel_h;
  } else {
    pool = pool_op();
    height = pool.kernel_h;
  }
  const ht_cols cols = columns();
  for (int32_t k = 0; k < height; ++k) {
    rows[k] = block();
  }
  const int32_t scratch_bytes = word();
  void *scratch = guarded(scratch_bytes);
  start();
  if (kind == 1) {
    ht_conv2d_row(&conv, &cols, rows, out, scratch);
  } else if (kind == 3) {
    ht_depthwise_row(&depthwise, &cols, rows, out, scratch);
  } else if (kind == 4) {
    ht_avgpool_row(&pool, &cols, rows, out);
  } else {
    ht_maxpool_row(&pool, &cols, rows, out);
  }
  stop();
  release(scratch, scratch_bytes);
  for (int32_t k = 0; k < height; ++k) {
    free((void *)rows[k]);
  }
  if (kind == 1) {
    free((void *)conv.weights);
    free((void *)conv.rq);
  } else if (kind == 3) {
    free((void *)depthwise.weights);
    free((void *)depthwise.rq);
  }
}

static void dense_case(int8_t *out) {
  const ht_conv op = conv_op();
  int8_t *in = block();
  const int32_t scratch_bytes = word();
  void *scratch = guarded(scratch_bytes);
  start();
  ht_fully_connected(&op, in, out, scratch);
  stop();
  release(scratch, scratch_bytes);
  free(in);
  free((void *)op.weights);
  free((void *)op.rq);
}

static void global_case(int32_t kind, int8_t *out) {
  const int32_t rows = word(), pixels = word(), channels = word();
  ht_mean mean;
  mean.mult = word();
  mean.shift = word();
  mean.count = word();
  mean.in_zero = (int16_t)word();
  mean.out_zero = (int16_t)word();
  const int8_t low = (int8_t)word(), high = (int8_t)word();
  int32_t *acc = malloc((size_t)channels * 4);
  int8_t *in = block();
  start();
  ht_acc_clear(acc, channels);
  for (int32_t i = 0; i < rows; ++i) {
    ht_acc_row(acc, in + i * pixels * channels, pixels, channels);
  }
  if (kind == 6) {
    ht_acc_finish_avg(acc, channels, rows * pixels, low, high, out);
  } else {
    ht_acc_finish_mean(&mean, acc, channels, out);
  }
  stop();
  free(acc);
  free(in);
}

static void binary_case(int32_t kind, int8_t *out) {
  ht_add add;
  ht_mul mul;
  if (kind == 8) {
    add.mult_a = word();
    add.mult_b = word();
    add.mult_out = word();
    add.shift_a = (int8_t)word();
    add.shift_b = (int8_t)word();
    add.shift_out = (int8_t)word();
    add.zero_a = (int8_t)word();
    add.zero_b = (int8_t)word();
    add.zero_out = (int8_t)word();
    add.act_min = (int8_t)word();
    add.act_max = (int8_t)word();
    add.channels = (uint16_t)word();
    add.broadcast = (uint8_t)word();
  } else {
    mul.mult = word();
    mul.shift = (int8_t)word();
    mul.zero_a = (int8_t)word();
    mul.zero_b = (int8_t)word();
    mul.zero_out = (int8_t)word();
    mul.act_min = (int8_t)word();
    mul.act_max = (int8_t)word();
    mul.channels = (uint16_t)word();
    mul.broadcast = (uint8_t)word();
  }
  const int32_t n = word();
  const int32_t in_place = word();
  int8_t *a = block(), *b = block();
  int8_t *to = in_place == 1 ? a : (in_place == 2 ? b : out);
  start();
  if (kind == 8) {
    ht_add_row(&add, a, b, to, n);
  } else {
    ht_mul_row(&mul, a, b, to, n);
  }
  stop();
  if (to != out) {
    memcpy(out, to, (size_t)n);
  }
  free(a);
  free(b);
}

static void copy_case(int32_t kind, int8_t *out) {
  if (kind == 10) {
    int8_t *table = block(), *in = block();
    const int32_t n = word();
    start();
    ht_lut_row(table, in, out, n);
    stop();
    free(table);
    free(in);
  } else if (kind == 11) {
    ht_softmax op;
    int32_t *table = block();
    op.exp_table = table;
    op.entries = (uint16_t)word();
    op.depth = (uint16_t)word();
    const int32_t rows = word();
    int8_t *in = block();
    start();
    ht_softmax_row(&op, in, out, rows);
    stop();
    free(table);
    free(in);
  } else if (kind == 12) {
    const int32_t left = word(), middle = word(), right = word(), fill = word();
    int8_t *in = block();
    start();
    ht_pad_row(in, left, middle, right, (int8_t)fill, out);
    stop();
    free(in);
  } else if (kind == 13) {
    ht_transpose op;
    op.rank = (uint8_t)word();
    for (int32_t i = 0; i < 6; ++i) {
      op.dims[i] = (uint16_t)word();
      op.strides[i] = word();
    }
    int8_t *in = block();
    start();
    ht_transpose_s8(&op, in, out);
    stop();
    free(in);
  } else if (kind == 14) {
    const int32_t run = word(), pitch = word(), count = word(), offset = word();
    int8_t *in = block();
    start();
    ht_copy_runs(in, out + offset, run, pitch, count);
    stop();
    free(in);
  } else {
    const int32_t pixels = word(), channels = word();
    uint16_t *map = block();
    int8_t *in = block();
    start();
    ht_resize_row(map, pixels, channels, in, out);
    stop();
    free(map);
    free(in);
  }
}

static void edge_case(int32_t kind, int8_t *out) {
  const int32_t n = word(), zero = word();
  float *scale = block();
  void *in = block();
  start();
  if (kind == 16) {
    ht_quantize_f32(in, out, n, scale[0], zero);
  } else {
    ht_dequantize_f32(in, (float *)(void *)out, n, scale[0], zero);
  }
  stop();
  free(scale);
  free(in);
}

static void run_case(int32_t kind, int8_t *out) {
  if (kind == 1 || kind == 3 || kind == 4 || kind == 5) {
    window_case(kind, out);
  } else if (kind == 2) {
    dense_case(out);
  } else if (kind == 6 || kind == 7) {
    global_case(kind, out);
  } else if (kind == 8 || kind == 9) {
    binary_case(kind, out);
  } else if (kind <= 15) {
    copy_case(kind, out);
  } else {
    edge_case(kind, out);
  }
}

int main(int argc, char **argv) {
  input = fopen(argc > 2 ? argv[1] : "cases.bin", "rb");
  FILE *output = fopen(argc > 2 ? argv[2] : "outputs.bin", "wb");
  if (input == NULL || output == NULL) {
    return 2;
  }
  const int32_t cases = word();
  for (int32_t i = 0; i < cases; ++i) {
    const int32_t kind = word();
    const int32_t out_bytes = word();
    int8_t *out = guarded(out_bytes);
    run_case(kind, out);
    fwrite(&taken, 4, 1, output);
    fwrite(out, 1, (size_t)out_bytes, output);
    release(out, out_bytes);
  }
  fclose(output);
  fclose(input);
  return 0;
}
