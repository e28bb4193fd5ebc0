/* Byte for byte what edge_runtime/wire.py writes. */
#include "ht_frame.h"

#define CRC_AT 24u

uint32_t ht_crc32(uint32_t crc, const uint8_t *data, size_t size) {
  static const uint32_t nibbles[16] = {
      0x00000000u, 0x1DB71064u, 0x3B6E20C8u, 0x26D930ACu, 0x76DC4190u, 0x6B6B51F4u, 0x4DB26158u, 0x5005713Cu,
      0xEDB88320u, 0xF00F9344u, 0xD6D6A3E8u, 0xCB61B38Cu, 0x9B64C2B0u, 0x86D3D2D4u, 0xA00AE278u, 0xBDBDF21Cu};
  size_t i;
  crc = ~crc;
  for (i = 0; i < size; i++) {
    crc ^= data[i];
    crc = crc >> 4 ^ nibbles[crc & 15u];
    crc = crc >> 4 ^ nibbles[crc & 15u];
  }
  return ~crc;
}

static uint8_t *put16(uint8_t *at, uint32_t value) {
  at[0] = (uint8_t)value;
  at[1] = (uint8_t)(value >> 8);
  return at + 2;
}

static uint8_t *put32(uint8_t *at, uint32_t value) { return put16(put16(at, value & 0xFFFFu), value >> 16); }

static uint8_t *put_bytes(uint8_t *at, const uint8_t *bytes, size_t size) {
  size_t i;
  for (i = 0; i < size; i++) {
    at[i] = bytes != NULL ? bytes[i] : 0u;
  }
  return at + size;
}

size_t ht_frame_header_bytes(const ht_frame *frame) {
  if (frame->layers > HT_FRAME_MAX_LAYERS || frame->tensor_count > HT_FRAME_MAX_TENSORS) {
    return 0;
  }
  return HT_FRAME_FIXED_BYTES + 4u * (size_t)frame->layers + 8u * (size_t)frame->tensor_count;
}

uint8_t *ht_frame_write(const ht_frame *frame, uint8_t *payload, size_t before) {
  const size_t header = ht_frame_header_bytes(frame);
  uint32_t total = 0;
  uint8_t *start, *at;
  uint32_t i, axis;
  if (header == 0u || before < header) {
    return NULL;
  }
  start = payload - header;
  for (i = 0; i < frame->layers; i++) {
    total += frame->layer_bytes[i];
  }
  at = start;
  *at++ = (uint8_t)'H';
  *at++ = (uint8_t)'T';
  *at++ = 1u;
  *at++ = frame->codec;
  at = put_bytes(at, frame->cut_id, 8);
  at = put_bytes(at, frame->table_set, 4);
  *at++ = frame->layers;
  *at++ = frame->tensor_count;
  at = put16(at, 0);
  at = put32(at, total);
  at = put32(at, 0);
  for (i = 0; i < frame->layers; i++) {
    at = put32(at, frame->layer_bytes[i]);
  }
  for (i = 0; i < frame->tensor_count; i++) {
    *at++ = frame->tensors[i].dtype;
    *at++ = frame->tensors[i].rank;
    for (axis = 0; axis < 3u; axis++) {
      at = put16(at, axis < frame->tensors[i].rank ? frame->tensors[i].sizes[axis] : 0u);
    }
  }
  (void)put32(start + CRC_AT, ht_crc32(0, start, header + total));
  return start;
}

void ht_envelope_write(uint8_t *out, const uint8_t request_id[16], uint32_t budget_ms) {
  out = put_bytes(out, request_id, 16);
  out = put32(out, budget_ms);
  (void)put32(out, 0);
}
