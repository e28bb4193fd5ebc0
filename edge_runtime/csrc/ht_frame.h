/* Writer of the tensor frame and the request envelope of docs/wire.md, for firmware. */
#ifndef HT_FRAME_H
#define HT_FRAME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HT_ENVELOPE_BYTES 24u
#define HT_FRAME_FIXED_BYTES 28u
#define HT_FRAME_MAX_LAYERS 16u
#define HT_FRAME_MAX_TENSORS 8u

enum { HT_CODEC_RAW = 0, HT_CODEC_ENTROPY = 1 };

/* dtype as in the wire's list (docs/wire.md); sizes after the batch, which is 1. */
typedef struct {
  uint8_t dtype;
  uint8_t rank;
  uint16_t sizes[3];
} ht_frame_tensor;

typedef struct {
  uint8_t codec;
  const uint8_t *cut_id;     /* 8 bytes */
  const uint8_t *table_set;  /* 4 bytes, NULL without tables */
  const uint32_t *layer_bytes;
  const ht_frame_tensor *tensors;
  uint8_t layers;
  uint8_t tensor_count;
} ht_frame;

/* zlib's CRC32; start with 0 and pass the last result on. */
uint32_t ht_crc32(uint32_t crc, const uint8_t *data, size_t size);

/* Size of a frame's header; the payload follows it directly. 0: more layers or tensors than a frame can carry. */
size_t ht_frame_header_bytes(const ht_frame *frame);

/* Write the header into the bytes right before the payload, which lies layer behind layer at `payload`.
 * Returns the header's first byte, or NULL when `before` bytes in front of the payload are too few. */
uint8_t *ht_frame_write(const ht_frame *frame, uint8_t *payload, size_t before);

/* Write the 24 bytes that go in front of a request's frame. */
void ht_envelope_write(uint8_t *out, const uint8_t request_id[16], uint32_t budget_ms);

#ifdef __cplusplus
}
#endif
#endif
