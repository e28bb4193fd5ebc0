/* The step loop. See ht_run.h. */
#include <string.h>

#include "ht_run.h"

#if defined(__GNUC__)
__attribute__((weak))
#endif
void ht_prof_mark(int layer) {
  (void)layer;
}

typedef struct ht_machine {
  int8_t *arena;
  const ht_source *frame;
  const int8_t **rows;
  const ht_segment *segment;
  const ht_extent *extents;
} ht_machine;

static inline int8_t *address(const ht_machine *m, const ht_buffer *b, int32_t row) {
  if (b->words) {
    return m->arena + 4u * b->words[row];
  }
  const uint32_t slot = (uint32_t)row % b->rows;
  return m->arena + b->offset + slot * b->row_bytes;
}

static inline const int8_t *read_address(const ht_machine *m, const ht_buffer *b, int32_t row) {
  if (b->offset < 0) {
    return m->frame->address + (uint32_t)row * b->row_bytes;
  }
  return address(m, b, row);
}

static inline ht_extent extent_of(const ht_machine *m, const ht_buffer *b) {
  ht_extent e = {0, (int16_t)b->width};
  return m->extents ? m->extents[b->extent] : e;
}

/* Input rows of output row y, in call order. */
static void gather_rows(const ht_machine *m, const ht_op *op, const ht_extent *to, int32_t y) {
  const int8_t **next = m->rows;
  for (uint32_t i = 0; i < op->input_count; ++i) {
    const ht_operand *in = &op->inputs[i];
    const ht_buffer *b = in->buffer;
    if (in->from == HT_FROM_START) {
      *next++ = read_address(m, b, 0);
      continue;
    }
    const int32_t skip = in->from == HT_FROM_OUTPUT ? (to->x0 - (b->local ? extent_of(m, b).x0 : 0)) * b->channels : 0;
    int32_t row = y * in->stride;
    if (in->divide > 1) {
      row /= in->divide;
    }
    row -= in->before;
    for (uint32_t k = 0; k < in->size; ++k, ++row) {
      *next++ = row >= 0 && row < b->height ? read_address(m, b, row) + skip : NULL;
    }
  }
}

static void compute(const ht_machine *m, const ht_op *op, int32_t row, int32_t count) {
  const ht_buffer *out = op->output;
  const ht_extent to = extent_of(m, out);
  ht_call call;
  call.cols.out_x0 = to.x0;
  call.cols.out_x1 = to.x1;
  call.cols.in_x0 = 0;
  call.cols.in_x1 = 0;
  if (op->input_count) {
    const ht_buffer *in = op->inputs[0].buffer;
    const ht_extent from = extent_of(m, in);
    call.cols.in_x0 = in->local ? from.x0 : (int16_t)0;
    call.cols.in_x1 = in->local ? from.x1 : (int16_t)in->width;
  }
  call.rows = m->rows;
  call.scratch = m->arena + m->segment->scratch;
  for (int32_t y = row; y < row + count; ++y) {
    gather_rows(m, op, &to, y);
    call.y = y;
    call.out = address(m, out, y) + (out->local ? 0 : to.x0 * out->channels);
    op->row(op, &call);
  }
}

static void accumulate(const ht_machine *m, const ht_op *op, int32_t row, int32_t count) {
  const ht_buffer *in = op->inputs[0].buffer;
  const ht_extent from = extent_of(m, in);
  int32_t *sums = (int32_t *)(void *)(m->arena + op->accumulator);
  for (int32_t y = row; y < row + count; ++y) {
    const int8_t *first = read_address(m, in, y) + (in->local ? 0 : from.x0 * in->channels);
    ht_acc_row(sums, first, from.x1 - from.x0, in->channels);
  }
}

static void finish(const ht_machine *m, const ht_op *op) {
  ht_call call;
  memset(&call, 0, sizeof call);
  call.scratch = m->arena + op->accumulator;
  call.out = address(m, op->output, 0);
  op->row(op, &call);
}

static int pull(const ht_machine *m, const ht_buffer *ring, int32_t row, int32_t count) {
  for (int32_t y = row; y < row + count; ++y) {
    const int status = m->frame->pull(m->frame->user, y, address(m, ring, y));
    if (status != 0) {
      return status;
    }
  }
  return 0;
}

static int run_step(const ht_net *net, const ht_machine *m, const ht_step *step) {
  const uint32_t kind = (uint32_t)step->code >> 14;
  const ht_op *op = &m->segment->ops[step->code & 255u];
  const ht_buffer *walked = kind == HT_PULL ? net->pulled : (kind == HT_ACCUMULATE ? op->inputs[0].buffer : op->output);
  int32_t count = (step->code >> 8) & 63;
  if (count == 63) {
    count = walked->height - step->row;
  }
  int status = 0;
  switch (kind) {
    case HT_ROWS:
      compute(m, op, step->row, count);
      break;
    case HT_PULL:
      status = pull(m, net->pulled, step->row, count);
      break;
    case HT_ACCUMULATE:
      accumulate(m, op, step->row, count);
      break;
    default:
      finish(m, op);
      break;
  }
  ht_prof_mark(kind == HT_PULL ? 65535 : (int)(m->segment->first_op + (step->code & 255u)));
  return status;
}

int ht_run(const ht_net *net, int8_t *arena, const ht_source *frame, const int8_t **rows) {
  ht_machine m = {arena, frame, rows, NULL, NULL};
  for (uint32_t s = 0; s < net->segment_count; ++s) {
    m.segment = &net->segments[s];
    for (uint32_t i = 0; i < m.segment->move_count; ++i) {
      const ht_move *move = &m.segment->moves[i];
      memmove(arena + move->target, arena + move->source, (size_t)move->size_bytes);
    }
    for (uint32_t i = 0; i < m.segment->op_count; ++i) {
      const ht_op *op = &m.segment->ops[i];
      if (op->accumulator >= 0) {
        ht_acc_clear((int32_t *)(void *)(arena + op->accumulator), op->inputs[0].buffer->channels);
      }
    }
    for (uint32_t p = 0; p < m.segment->pass_count; ++p) {
      const ht_pass *pass = &m.segment->passes[p];
      m.extents = pass->extents;
      for (uint32_t i = 0; i < pass->step_count; ++i) {
        const int status = run_step(net, &m, &pass->steps[i]);
        if (status != 0) {
          return status;
        }
      }
    }
  }
  return 0;
}
