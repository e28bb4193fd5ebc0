/* TRANSPOSE of a whole tensor. */
#include "ht_internal.h"

void ht_transpose_s8(const ht_transpose *op, const int8_t *in, int8_t *out) {
  uint16_t index[6] = {0, 0, 0, 0, 0, 0};
  for (;;) {
    *out++ = *in;
    int32_t axis = op->rank - 1;
    for (;;) {
      if (axis < 0) {
        return;
      }
      in += op->strides[axis];
      if (++index[axis] < op->dims[axis]) {
        break;
      }
      in -= op->strides[axis] * op->dims[axis];
      index[axis] = 0;
      --axis;
    }
  }
}
