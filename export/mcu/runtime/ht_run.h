/*
 * ht_run.h - executes a network's schedule: row steps over buffers in one arena.
 *
 * A generated network is constant data for these types. Nothing here keeps state: everything that changes lies in the
 * arena that the caller passes, so several networks, and several arenas of one network, live side by side.
 */
#ifndef HT_RUN_H
#define HT_RUN_H

#include "ht_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A tensor's storage during one segment: row r lies at offset + (r % rows) * row_bytes, or where a table says. */
typedef struct ht_buffer {
  int32_t offset; /* from the arena's start; -1: the caller's frame */
  uint32_t row_bytes;
  uint16_t rows, height, width, channels;
  uint8_t extent; /* which entry of the pass's column extents is this tensor's */
  uint8_t local;  /* 1: the buffer starts at the extent's first column, 0: at column 0 */
  const uint16_t *words; /* NULL, or the arena offset of every row in units of 4 bytes */
} ht_buffer;

/* How an operator reads one input. Row k of output row y: y * stride / divide - before + k. */
typedef struct ht_operand {
  const ht_buffer *buffer;
  uint16_t size, stride, divide;
  int16_t before;
  uint16_t from; /* where the row pointers point: HT_FROM_* */
} ht_operand;
enum {
  HT_FROM_BUFFER = 0, /* the first column that the buffer holds */
  HT_FROM_OUTPUT = 1, /* the first column to compute */
  HT_FROM_START = 2   /* one pointer only: row 0 of the whole, contiguous tensor */
};

struct ht_op;

/* What one call of an operator gets. */
typedef struct ht_call {
  ht_cols cols;              /* of the first input and the output */
  const int8_t *const *rows; /* input rows, operand after operand */
  int8_t *out;               /* column out_x0 of the output row */
  void *scratch;
  int32_t y; /* output row */
} ht_call;

typedef struct ht_op {
  void (*row)(const struct ht_op *op, const ht_call *call);
  const void *params;       /* of the kernel */
  const int8_t *constant;   /* constant operand or table, or NULL */
  const ht_operand *inputs; /* input_count of them */
  const ht_buffer *output;
  uint16_t input_count;
  uint16_t aux;        /* meaning depends on the row function */
  int32_t accumulator; /* arena offset of int32 sums, -1: none */
} ht_op;

typedef struct ht_extent {
  int16_t x0, x1;
} ht_extent;

/* A run of rows: word 0 = kind << 14 | min(count, 63) << 8 | operator of the segment, word 1 = first row.
 * count 63 means: to the tensor's last row. */
typedef struct ht_step {
  uint16_t code, row;
} ht_step;
enum { HT_ROWS = 0, HT_PULL = 1, HT_ACCUMULATE = 2, HT_FINISH = 3 };

typedef struct ht_pass {
  const ht_extent *extents; /* NULL: every tensor at full width */
  const ht_step *steps;
  uint16_t step_count;
} ht_pass;

typedef struct ht_move {
  int32_t source, target, size_bytes;
} ht_move;

typedef struct ht_segment {
  const ht_op *ops;
  const ht_pass *passes;
  const ht_move *moves;
  int32_t scratch; /* arena offset */
  uint16_t op_count, pass_count, move_count;
  uint16_t first_op; /* number of ops[0] in the network */
} ht_segment;

/* Writes one row of the input frame to `row`; any result but 0 stops the run, which then returns it. */
typedef int (*ht_pull_row)(void *user, int32_t y, int8_t *row);

typedef struct ht_source {
  const int8_t *address; /* whole frame, where a buffer has offset -1 */
  ht_pull_row pull;
  void *user;
} ht_source;

typedef struct ht_net {
  const ht_segment *segments;
  const ht_buffer *pulled; /* ring of the input rows, or NULL */
  uint16_t segment_count;
} ht_net;

/* Run a network. rows: work space for the largest number of row pointers of one call. 0, or what pull returned. */
int ht_run(const ht_net *net, int8_t *arena, const ht_source *frame, const int8_t **rows);

/* Called after every step with the operator's number (65535: an input row was pulled). The default does nothing. */
void ht_prof_mark(int layer);

/* Row functions, one for each kind of operator; params in brackets. */
void ht_do_conv(const ht_op *op, const ht_call *call);            /* [ht_conv] */
void ht_do_depthwise(const ht_op *op, const ht_call *call);       /* [ht_dwconv] */
void ht_do_fully_connected(const ht_op *op, const ht_call *call); /* [ht_conv] */
void ht_do_average_pool(const ht_op *op, const ht_call *call);    /* [ht_pool] */
void ht_do_max_pool(const ht_op *op, const ht_call *call);        /* [ht_pool] */
void ht_do_finish_average(const ht_op *op, const ht_call *call);  /* [ht_pool]; aux = elements per mean */
void ht_do_finish_mean(const ht_op *op, const ht_call *call);     /* [ht_mean] */
void ht_do_mean_columns(const ht_op *op, const ht_call *call);    /* [ht_mean] over the width of one row */
void ht_do_mean_rows(const ht_op *op, const ht_call *call);       /* [ht_mean] over the height, inputs as rows */
void ht_do_add(const ht_op *op, const ht_call *call);             /* [ht_binary] */
void ht_do_mul(const ht_op *op, const ht_call *call);             /* [ht_binary] */
void ht_do_lookup(const ht_op *op, const ht_call *call);          /* constant = table */
void ht_do_softmax(const ht_op *op, const ht_call *call);         /* [ht_softmax] */
void ht_do_pad(const ht_op *op, const ht_call *call);             /* aux = left columns, constant = the fill value */
void ht_do_transpose(const ht_op *op, const ht_call *call);       /* [ht_transpose] of one row; constant unused */
void ht_do_reshape(const ht_op *op, const ht_call *call);
void ht_do_concat_channels(const ht_op *op, const ht_call *call);
void ht_do_concat_columns(const ht_op *op, const ht_call *call);
void ht_do_concat_rows(const ht_op *op, const ht_call *call);
void ht_do_resize(const ht_op *op, const ht_call *call);          /* [ht_resize] */

void ht_do_dense_once(const ht_op *op, const ht_call *call);      /* [ht_dense_once] */

/* Nearest neighbours. */
typedef struct ht_resize {
  const uint16_t *columns; /* input column of every output column */
  const uint16_t *rows;    /* of every output row: which of the call's rows; NULL: the call has one only */
} ht_resize;

/* FULLY_CONNECTED rounded once, as LiteRT does; plain rows of weights. exponent > 0 is a left shift, at most 30. */
typedef struct ht_dense_once {
  const int8_t *weights; /* out_features rows of in_features */
  const int32_t *bias, *multiplier;
  const int8_t *exponent;
  uint16_t in_features, out_features;
  int16_t in_zero, out_zero, low, high;
} ht_dense_once;

/* ADD and MUL: the kernel's parameters and what is special about the operands. */
typedef struct ht_binary {
  const void *kernel;      /* ht_add or ht_mul */
  const int8_t *constant;  /* NULL: both operands are inputs */
  int32_t constant_row;    /* elements between rows of the constant, 0: one row */
  int32_t constant_column; /* elements between its columns, 0: one column */
  uint16_t constant_first; /* 1: the constant is the kernel's first operand */
  uint16_t by_pixel;       /* 1: the second operand has one value for each column; called pixel by pixel */
} ht_binary;

#ifdef __cplusplus
}
#endif
#endif
