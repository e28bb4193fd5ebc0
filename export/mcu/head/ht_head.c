/* Layers are written from the last to the first, each in front of the one behind it, then the header in front of all. */
#include "ht_head.h"

#include <string.h>

static ht_status finish(const ht_head *head, uint8_t codec, uint8_t layers, const uint32_t *lengths, uint8_t *out,
                        uint32_t room, ht_head_bytes *frame) {
  ht_frame parts;
  uint32_t i, size;
  const uint8_t *start;
  parts.codec = codec;
  parts.cut_id = head->cut_id;
  parts.table_set = head->table_id;
  parts.layer_bytes = lengths;
  parts.tensors = head->shapes;
  parts.layers = layers;
  parts.tensor_count = head->tensor_count;
  start = ht_frame_write(&parts, out + room, room);
  if (start == NULL) {
    return HT_NO_SPACE;
  }
  size = (uint32_t)ht_frame_header_bytes(&parts);
  for (i = 0; i < layers; i++) {
    size += lengths[i];
  }
  frame->data = start;
  frame->size = size;
  return HT_OK;
}

ht_status ht_head_write_raw(const ht_head *head, const int8_t *arena, uint8_t *out, uint32_t capacity,
                            ht_head_bytes *frame) {
  uint32_t room = capacity, length, i;
  for (i = head->tensor_count; i-- > 0;) {
    const ht_head_tensor *tensor = &head->tensors[i];
    const uint32_t bytes = tensor->channels * tensor->positions;
    if (bytes > room) {
      return HT_NO_SPACE;
    }
    room -= bytes;
    memcpy(out + room, arena + tensor->offset, bytes);
  }
  length = capacity - room;
  return finish(head, HT_CODEC_RAW, 1u, &length, out, room, frame);
}

ht_status ht_head_write_coded(const ht_head *head, const int8_t *arena, uint8_t layers, uint8_t *out,
                              uint32_t capacity, ht_head_bytes *frame) {
  const uint8_t count = layers != 0u && layers < head->layer_count ? layers : head->layer_count;
  uint32_t lengths[HT_FRAME_MAX_LAYERS];
  uint32_t room, i;
  if (count > HT_FRAME_MAX_LAYERS) {
    return HT_BAD_ARGUMENT;
  }
  if (capacity < head->scratch_bytes) {
    return HT_NO_SPACE;
  }
  room = capacity - head->scratch_bytes;
  for (i = count; i-- > 0;) {
    const ht_head_tensor *tensor = &head->tensors[head->layers[i].tensor];
    const uint32_t first = head->layers[i].first;
    const uint8_t *values = (const uint8_t *)arena + tensor->offset + first * tensor->channel_step;
    ht_layer layer;
    size_t size = 0;
    ht_status status;
    layer.base = tensor->base + first;
    layer.channels = head->layers[i].stop - first;
    layer.positions = tensor->positions;
    layer.channel_step = tensor->channel_step;
    layer.position_step = tensor->position_step;
    layer.flip = 0x80u;
    status = ht_entropy_encode(head->tables, &layer, values, out, out + head->scratch_bytes, room, &size);
    if (status != HT_OK) {
      return status;
    }
    room -= (uint32_t)size;
    lengths[i] = (uint32_t)size;
  }
  return finish(head, HT_CODEC_ENTROPY, count, lengths, out, room + head->scratch_bytes, frame);
}
