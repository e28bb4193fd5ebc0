/* Row functions: what stands between a step and a kernel. See ht_run.h. */
#include <string.h>

#include "ht_run.h"

void ht_do_conv(const ht_op *op, const ht_call *call) {
  ht_conv2d_row((const ht_conv *)op->params, &call->cols, call->rows, call->out, call->scratch);
}

void ht_do_depthwise(const ht_op *op, const ht_call *call) {
  ht_depthwise_row((const ht_dwconv *)op->params, &call->cols, call->rows, call->out, call->scratch);
}

void ht_do_fully_connected(const ht_op *op, const ht_call *call) {
  const ht_conv *conv = (const ht_conv *)op->params;
  const int32_t width = op->output->width;
  const int8_t *in = call->rows[0] + (int32_t)conv->in_channels * width * call->y;
  int8_t *out = call->out;
  for (int32_t x = 0; x < width; ++x, in += conv->in_channels, out += conv->out_channels) {
    ht_fully_connected(conv, in, out, call->scratch);
  }
}

void ht_do_average_pool(const ht_op *op, const ht_call *call) {
  ht_avgpool_row((const ht_pool *)op->params, &call->cols, call->rows, call->out);
}

void ht_do_max_pool(const ht_op *op, const ht_call *call) {
  ht_maxpool_row((const ht_pool *)op->params, &call->cols, call->rows, call->out);
}

void ht_do_finish_average(const ht_op *op, const ht_call *call) {
  const ht_pool *pool = (const ht_pool *)op->params;
  ht_acc_finish_avg((const int32_t *)call->scratch, pool->channels, op->aux, pool->act_min, pool->act_max, call->out);
}

void ht_do_finish_mean(const ht_op *op, const ht_call *call) {
  ht_acc_finish_mean((const ht_mean *)op->params, (const int32_t *)call->scratch, op->output->channels, call->out);
}

void ht_do_mean_columns(const ht_op *op, const ht_call *call) {
  const ht_buffer *in = op->inputs[0].buffer;
  int32_t *sums = (int32_t *)call->scratch;
  ht_acc_clear(sums, in->channels);
  ht_acc_row(sums, call->rows[0], in->width, in->channels);
  ht_acc_finish_mean((const ht_mean *)op->params, sums, in->channels, call->out);
}

void ht_do_mean_rows(const ht_op *op, const ht_call *call) {
  const ht_buffer *in = op->inputs[0].buffer;
  int32_t *sums = (int32_t *)call->scratch;
  const int32_t elements = (int32_t)in->width * in->channels;
  ht_acc_clear(sums, elements);
  for (uint32_t k = 0; k < in->height; ++k) {
    ht_acc_row(sums, call->rows[0] + k * in->row_bytes, 1, elements);
  }
  ht_acc_finish_mean((const ht_mean *)op->params, sums, elements, call->out);
}

static int32_t width_of(const ht_call *call) {
  return call->cols.out_x1 - call->cols.out_x0;
}

/* First or second operand of ADD and MUL for this row. */
static const int8_t *operand(const ht_binary *binary, const ht_call *call, uint32_t place) {
  if (!binary->constant) {
    return call->rows[place];
  }
  if (binary->constant_first != (place == 0)) {
    return call->rows[0];
  }
  return binary->constant + binary->constant_row * call->y + binary->constant_column * call->cols.out_x0;
}

void ht_do_add(const ht_op *op, const ht_call *call) {
  const ht_binary *binary = (const ht_binary *)op->params;
  const ht_add *add = (const ht_add *)binary->kernel;
  const int32_t channels = op->output->channels;
  const int8_t *a = operand(binary, call, 0), *b = operand(binary, call, 1);
  if (!binary->by_pixel) {
    ht_add_row(add, a, b, call->out, width_of(call) * channels);
    return;
  }
  for (int32_t x = 0; x < width_of(call); ++x) {
    ht_add_row(add, a + x * channels, b + x, call->out + x * channels, channels);
  }
}

void ht_do_mul(const ht_op *op, const ht_call *call) {
  const ht_binary *binary = (const ht_binary *)op->params;
  const ht_mul *mul = (const ht_mul *)binary->kernel;
  const int32_t channels = op->output->channels;
  const int8_t *a = operand(binary, call, 0), *b = operand(binary, call, 1);
  if (!binary->by_pixel) {
    ht_mul_row(mul, a, b, call->out, width_of(call) * channels);
    return;
  }
  for (int32_t x = 0; x < width_of(call); ++x) {
    ht_mul_row(mul, a + x * channels, b + x, call->out + x * channels, channels);
  }
}

void ht_do_lookup(const ht_op *op, const ht_call *call) {
  ht_lut_row(op->constant, call->rows[0], call->out, width_of(call) * op->output->channels);
}

void ht_do_softmax(const ht_op *op, const ht_call *call) {
  ht_softmax_row((const ht_softmax *)op->params, call->rows[0], call->out, op->output->width);
}

void ht_do_pad(const ht_op *op, const ht_call *call) {
  const ht_buffer *in = op->inputs[0].buffer;
  const int32_t channels = in->channels;
  const int32_t right = (int32_t)op->output->width - op->aux - in->width;
  ht_pad_row(call->rows[0], op->aux * channels, in->width * channels, right * channels, op->constant[0], call->out);
}

void ht_do_transpose(const ht_op *op, const ht_call *call) {
  const ht_transpose *all = (const ht_transpose *)op->params;
  ht_transpose one = *all;
  one.dims[0] = 1;
  ht_transpose_s8(&one, call->rows[0] + call->y * all->strides[0], call->out);
}

void ht_do_reshape(const ht_op *op, const ht_call *call) {
  const uint32_t bytes = (uint32_t)op->output->width * op->output->channels;
  memcpy(call->out, call->rows[0] + (uint32_t)call->y * bytes, bytes);
}

void ht_do_concat_channels(const ht_op *op, const ht_call *call) {
  int8_t *out = call->out;
  for (uint32_t i = 0; i < op->input_count; ++i) {
    const int32_t channels = op->inputs[i].buffer->channels;
    ht_copy_runs(call->rows[i], out, channels, op->output->channels, width_of(call));
    out += channels;
  }
}

void ht_do_concat_columns(const ht_op *op, const ht_call *call) {
  int8_t *out = call->out;
  for (uint32_t i = 0; i < op->input_count; ++i) {
    const int32_t bytes = (int32_t)op->inputs[i].buffer->width * op->output->channels;
    memcpy(out, call->rows[i], (size_t)bytes);
    out += bytes;
  }
}

void ht_do_concat_rows(const ht_op *op, const ht_call *call) {
  const size_t bytes = (size_t)op->output->width * op->output->channels;
  for (uint32_t i = 0; i < op->input_count; ++i) {
    if (call->rows[i]) {
      memcpy(call->out, call->rows[i], bytes);
    }
  }
}

void ht_do_resize(const ht_op *op, const ht_call *call) {
  const ht_resize *resize = (const ht_resize *)op->params;
  const int8_t *row = call->rows[resize->rows ? resize->rows[call->y] : 0];
  ht_resize_row(resize->columns, op->output->width, op->output->channels, row, call->out);
}
