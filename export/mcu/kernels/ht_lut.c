/* int8 functions of one value, by table. */
#include "ht_internal.h"

void ht_lut_row(const int8_t *table, const int8_t *in, int8_t *out, int32_t n) {
  const int8_t *const middle = table + 128;
  for (int32_t i = 0; i < n; ++i) {
    out[i] = middle[in[i]];
  }
}
