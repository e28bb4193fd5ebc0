/* PAD, one output row. */
#include "ht_internal.h"

void ht_pad_row(const int8_t *in, int32_t left_bytes, int32_t in_bytes, int32_t right_bytes, int8_t fill,
                int8_t *out) {
  memset(out, fill, (size_t)left_bytes);
  out += left_bytes;
  if (in != NULL) {
    memcpy(out, in, (size_t)in_bytes);
  } else {
    memset(out, fill, (size_t)in_bytes);
  }
  memset(out + in_bytes, fill, (size_t)right_bytes);
}
