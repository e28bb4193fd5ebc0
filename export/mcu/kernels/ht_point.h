/* ht_point.h - all output channels of one position of CONV_2D or FULLY_CONNECTED; internal. */
#ifndef HT_POINT_H
#define HT_POINT_H

#include "ht_internal.h"

/* n bytes at x. x is 4-byte aligned, n a multiple of 4. */
typedef struct ht_run {
  const int8_t *x;
  int32_t n;
} ht_run;

/* The runs together hold the window in weight order; n is a multiple of 16 but at the end of a segment. */
void ht_conv_point(const ht_conv *op, const ht_run *runs, const ht_run *end, int8_t *out);

#endif
