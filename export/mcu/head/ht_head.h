/* ht_head.h - the head of a split network: from the latents in its arena to the frame that its tail reads.
 *
 * C99, no allocation, no state between calls. The frame is byte for byte that of the host's encoder.
 */
#ifndef HT_HEAD_H
#define HT_HEAD_H

#include <stdint.h>

#include "ht_entropy.h"
#include "ht_frame.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where one crossing tensor lies in the arena, and how its channels lie in it. */
typedef struct {
  const uint8_t *base; /* first table of each channel; NULL when values travel as they are */
  uint32_t offset;
  uint32_t channels;
  uint32_t positions;
  uint32_t channel_step;
  uint32_t position_step;
} ht_head_tensor;

/* One layer of the frame: channels [first, stop) of a tensor. */
typedef struct {
  uint16_t tensor;
  uint16_t first;
  uint16_t stop;
} ht_head_layer;

typedef struct {
  const ht_head_tensor *tensors;
  const ht_frame_tensor *shapes;
  const ht_head_layer *layers; /* NULL when values travel as they are */
  const ht_tables *tables;     /* NULL when values travel as they are */
  const uint8_t *table_id;     /* 4 bytes, or NULL */
  const uint8_t *cut_id;       /* 8 bytes */
  uint32_t scratch_bytes;      /* the first bytes of the buffer, for block indices */
  uint8_t tensor_count;
  uint8_t layer_count;
} ht_head;

/* A frame in the caller's buffer. */
typedef struct {
  const uint8_t *data;
  uint32_t size;
} ht_head_bytes;

/* Write the frame of the latents in `arena` into the END of out[0..capacity); `frame` says where it begins. What is free
 * in front of it may take the 24 bytes of a request's envelope. The arena is only read. Coded: at most the first `layers`
 * layers, 0 for all; fewer than all are of use to the tail where they are a progressive stream.
 * Returns HT_OK, or HT_NO_SPACE when the buffer is too small. */
ht_status ht_head_write_raw(const ht_head *head, const int8_t *arena, uint8_t *out, uint32_t capacity,
                            ht_head_bytes *frame);
ht_status ht_head_write_coded(const ht_head *head, const int8_t *arena, uint8_t layers, uint8_t *out,
                              uint32_t capacity, ht_head_bytes *frame);

#ifdef __cplusplus
}
#endif
#endif
