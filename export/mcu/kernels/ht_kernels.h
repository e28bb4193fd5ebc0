/*
 * ht_kernels.h - row kernels for int8 networks (NHWC), bit-equal to TensorFlow Lite Micro's reference kernels.
 *
 * Every spatial operator computes ONE output row, columns [out_x0, out_x1), from pointers to its input rows. Whole
 * layers, row rings, patches and column tiles are only different ways of calling these functions.
 *
 * Conventions
 *   rows     rows[k] is the input row of kernel row k: the address of column cols->in_x0, channel 0.
 *            NULL = the row lies outside of the image (padding).
 *   cols     in_x0, in_x1: columns that the input row buffers hold (image coordinates, in_x1 exclusive). Taps outside
 *            of them are padding, so a patch must hold every needed column that exists in the image.
 *            out_x0, out_x1: columns to compute; `out` is the address of column out_x0, channel 0.
 *   scratch  4-byte aligned work memory; its size is given by export/mcu/scratch.py. NULL where that says 0.
 *   align    tensors, rows and weights are 4-byte aligned whenever their channel count is a multiple of 4.
 *   constant tables (weights, requant) are made by export/mcu/kernels_pack.py; the layout below is shared by the
 *            portable, DSP and MVE variants, so one generated file serves every core.
 * No function allocates, keeps state or uses floating point, except the two float edge conversions.
 */
#ifndef HT_KERNELS_H
#define HT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Largest kernel height of a CONV_2D that reads its rows in place; above, kernels_pack.py sets HT_GATHER. */
#define HT_MAX_DIRECT 7

/* Requantisation of four neighbouring output channels (20 bytes). */
typedef struct ht_rq4 {
  int32_t mult[4]; /* Q0.31 multiplier, in [2^30, 2^31) or 0 */
  int8_t shift[4]; /* fast form: right shift - 1 (>= 0); HT_RQ_GENERAL: exponent, > 0 left, < 0 right */
} ht_rq4;

/* One exponent is outside of the fast form (right shift in [1, 31]) or an accumulator may pass 2^30. */
#define HT_RQ_GENERAL 1u
/* Output clamp is narrower than int8 (act_min, act_max apply). */
#define HT_CLAMP 2u
/* Convolution gathers each window into scratch (channels not a multiple of 4, or a tall kernel; see scratch.py). */
#define HT_GATHER 4u

/* Columns of one call; see the top of this file. */
typedef struct ht_cols {
  int16_t in_x0, in_x1, out_x0, out_x1;
} ht_cols;

/*
 * CONV_2D, and DEPTHWISE_CONV_2D with one input channel, and FULLY_CONNECTED (1 x 1, in_x 0..1).
 * weights: per block of 4 output channels (the last one zero filled):
 *   int32 bias[4]  (bias - input zero point * sum of the channel's weights)
 *   per segment (kernel row; with HT_GATHER one segment holds the whole window), padded with 0 to a multiple of 4:
 *     groups of 16 taps (the last of the segment may hold 4, 8 or 12): 4 x taps bytes, channel after channel.
 *   At the end up to 12 more bytes that vector loads may touch, where the last group is short.
 */
typedef struct ht_conv {
  const int8_t *weights;
  const ht_rq4 *rq;        /* one per block of 4 output channels */
  uint16_t rq_step;        /* 1: per block; 0: one entry serves all channels */
  uint16_t in_channels, out_channels;
  uint8_t kernel_h, kernel_w, stride_w, pad_left;
  uint8_t flags;           /* HT_* */
  int8_t in_zero;          /* input zero point: value of padding */
  int8_t out_zero, act_min, act_max;
} ht_conv;
void ht_conv2d_row(const ht_conv *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out, void *scratch);
/* One pixel, contiguous input of in_channels bytes. */
void ht_fully_connected(const ht_conv *op, const int8_t *in, int8_t *out, void *scratch);

/*
 * DEPTHWISE_CONV_2D. Output channel c reads input channel c / multiplier.
 * weights: per block of 4 output channels (last one zero filled):
 *   int32 bias[4] (zero point folded as above), then kernel_h * kernel_w taps x 4 bytes (one per channel).
 */
typedef struct ht_dwconv {
  const int8_t *weights;
  const ht_rq4 *rq;
  uint16_t rq_step;
  uint16_t in_channels, out_channels; /* out = in * multiplier */
  uint8_t kernel_h, kernel_w, stride_w, pad_left, multiplier;
  uint8_t flags;
  int8_t in_zero, out_zero, act_min, act_max;
} ht_dwconv;
void ht_depthwise_row(const ht_dwconv *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out, void *scratch);

/* AVERAGE_POOL_2D (padding not counted) and MAX_POOL_2D. */
typedef struct ht_pool {
  uint16_t channels;
  uint8_t kernel_h, kernel_w, stride_w, pad_left;
  int8_t act_min, act_max;
} ht_pool;
void ht_avgpool_row(const ht_pool *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out);
void ht_maxpool_row(const ht_pool *op, const ht_cols *cols, const int8_t *const *rows, int8_t *out);

/*
 * Global pooling over H x W as an accumulator: clear, add every row once (any order), then finish.
 * acc: int32 per channel. finish_avg is AVERAGE_POOL_2D; finish_mean is MEAN over height and width.
 */
void ht_acc_clear(int32_t *acc, int32_t channels);
void ht_acc_row(int32_t *acc, const int8_t *row, int32_t pixels, int32_t channels);
void ht_acc_finish_avg(const int32_t *acc, int32_t channels, int32_t count, int8_t act_min, int8_t act_max,
                       int8_t *out);
typedef struct ht_mean {
  int32_t mult;
  int32_t shift; /* exponent, > 0 left; 1 / count is part of mult and shift */
  int32_t count; /* elements per mean */
  int16_t in_zero, out_zero;
} ht_mean;
void ht_acc_finish_mean(const ht_mean *op, const int32_t *acc, int32_t channels, int8_t *out);

/* Broadcast of the second operand of ADD and MUL. */
#define HT_SAME 0u    /* b has a's shape */
#define HT_CHANNEL 1u /* b holds one value per channel */
#define HT_SCALAR 2u  /* b holds one value */

/* ADD. n elements (a multiple of channels); out may be a or b. */
typedef struct ht_add {
  int32_t mult_a, mult_b, mult_out;
  int8_t shift_a, shift_b, shift_out; /* right shifts, >= 0 */
  int8_t zero_a, zero_b, zero_out, act_min, act_max;
  uint16_t channels;
  uint8_t broadcast; /* HT_SAME ... */
} ht_add;
void ht_add_row(const ht_add *op, const int8_t *a, const int8_t *b, int8_t *out, int32_t n);

/* MUL. As ADD. */
typedef struct ht_mul {
  int32_t mult;
  int8_t shift; /* exponent, > 0 left */
  int8_t zero_a, zero_b, zero_out, act_min, act_max;
  uint8_t broadcast;
  uint16_t channels;
} ht_mul;
void ht_mul_row(const ht_mul *op, const int8_t *a, const int8_t *b, int8_t *out, int32_t n);

/*
 * Any int8 -> int8 function of one value: LOGISTIC, HARD_SWISH, RELU, RELU6, requantise. table[x + 128]; tables come
 * from kernels_pack.py. out may be in.
 */
void ht_lut_row(const int8_t *table, const int8_t *in, int8_t *out, int32_t n);

/*
 * SOFTMAX over the last axis. exp_table[d] = exp of (x = max - d) in Q0.31, d in [0, entries); 0 beyond. out may be in.
 */
typedef struct ht_softmax {
  const int32_t *exp_table;
  uint16_t entries;
  uint16_t depth;
} ht_softmax;
void ht_softmax_row(const ht_softmax *op, const int8_t *in, int8_t *out, int32_t rows);

/* PAD: one output row: left * channels fill values, in_bytes of `in` (NULL: all fill), right * channels fill values. */
void ht_pad_row(const int8_t *in, int32_t left_bytes, int32_t in_bytes, int32_t right_bytes, int8_t fill, int8_t *out);

/* TRANSPOSE of a whole tensor of up to 6 axes. dims: output shape; strides: input stride (elements) of each output axis. */
typedef struct ht_transpose {
  uint8_t rank;
  uint16_t dims[6];
  int32_t strides[6];
} ht_transpose;
void ht_transpose_s8(const ht_transpose *op, const int8_t *in, int8_t *out);

/* CONCATENATION: copies `count` runs of run_bytes from in (contiguous) to out with the given pitch. */
void ht_copy_runs(const int8_t *in, int8_t *out, int32_t run_bytes, int32_t out_pitch, int32_t count);

/* RESIZE_NEAREST_NEIGHBOR: out column i copies input column map[i] (relative to `in`); the caller picks the row. */
void ht_resize_row(const uint16_t *map, int32_t out_pixels, int32_t channels, const int8_t *in, int8_t *out);

/* QUANTIZE and DEQUANTIZE at the edges of the network. */
void ht_quantize_f32(const float *in, int8_t *out, int32_t n, float scale, int32_t zero);
void ht_dequantize_f32(const int8_t *in, float *out, int32_t n, float scale, int32_t zero);
/* uint8 <-> int8 edges: flips the sign bit. */
void ht_flip_sign(const uint8_t *in, uint8_t *out, int32_t n);

#ifdef __cplusplus
}
#endif
#endif
