/* Fuzz the layer decoder: every result is values or a status, and what decodes survives a round trip.
 * With -DHT_FUZZ_MAIN a built-in loop of seeded mutations stands in for libFuzzer. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ht_entropy.h"

#define CHECK(condition) ((condition) ? (void)0 : abort())
#define TABLES 4u /* three for values, the last for block indices */

static const uint16_t frequencies[TABLES][7] = {
    {1000, 2000, 500, 300, 200, 90, 6}, {4090, 1, 1, 1, 1, 1, 1}, {10, 10, 10, 10, 10, 10, 4036}, {2000, 2094, 2}};
static const uint8_t low[TABLES] = {125, 126, 250, 0};
static const uint8_t count[TABLES] = {6, 6, 6, 2};
static const uint16_t offset[TABLES] = {0, 7, 14, 21};
static uint32_t entries[24];
static uint16_t costs[24];
static uint32_t slots[TABLES * HT_ENTROPY_SCALE];

static ht_tables make_tables(uint16_t block, uint8_t variants) {
  static int made = 0;
  const ht_tables tables = {entries, NULL, costs, slots, offset, low, count, TABLES, block, variants};
  uint32_t table, symbol, slot;
  for (table = 0; table < TABLES && !made; table++) {
    uint32_t first = 0;
    for (symbol = 0; symbol <= count[table]; symbol++) {
      const uint32_t frequency = frequencies[table][symbol];
      entries[offset[table] + symbol] = frequency | first << 16;
      costs[offset[table] + symbol] = (uint16_t)(4096u / frequency);
      for (slot = 0; slot < frequency; slot++) {
        slots[table * HT_ENTROPY_SCALE + first + slot] = frequency | slot << 12 | symbol << 24;
      }
      first += frequency;
    }
    CHECK(first == HT_ENTROPY_SCALE);
  }
  made = 1;
  return tables;
}

#ifdef HT_ENTROPY_WIDE
/* Both sets of loops: the same status, the same bytes. */
static ht_status decode_both(const ht_tables *tables, const ht_layer *layer, const uint8_t *data, size_t size,
                             uint8_t *scratch, uint8_t *values) {
  const size_t symbols = (size_t)layer->channels * layer->positions;
  uint8_t *other = malloc(symbols);
  ht_status status, portable;
  CHECK(other != NULL);
  memcpy(other, values, symbols);
  status = ht_entropy_decode(tables, layer, data, size, scratch, values);
  portable = ht_entropy_decode_portable(tables, layer, data, size, scratch, other);
  CHECK(status == portable && memcmp(values, other, symbols) == 0);
  free(other);
  return status;
}

static ht_status encode_both(const ht_tables *tables, const ht_layer *layer, const uint8_t *values, uint8_t *scratch,
                             uint8_t *out, size_t capacity, size_t *size) {
  const ht_status status = ht_entropy_encode(tables, layer, values, scratch, out, capacity, size);
  uint8_t *other = malloc(capacity);
  size_t other_size = 0;
  CHECK(other != NULL || capacity == 0u);
  CHECK(ht_entropy_encode_portable(tables, layer, values, scratch, other, capacity, &other_size) == status);
  CHECK(status != HT_OK || (*size == other_size && memcmp(out + capacity - *size, other + capacity - *size, *size) == 0));
  free(other);
  return status;
}
#define ht_entropy_decode decode_both
#define ht_entropy_encode encode_both
#endif

static void round_trip(const ht_tables *tables, const ht_layer *layer, const uint8_t *values, uint8_t *scratch) {
  const size_t symbols = (size_t)layer->channels * layer->positions;
  const size_t capacity = symbols + 1u;
  uint8_t *out = malloc(capacity);
  uint8_t *again = malloc(symbols);
  size_t size = 0, tight;
  CHECK(out != NULL && again != NULL);
  CHECK(ht_entropy_encode(tables, layer, values, scratch, out, capacity, &size) == HT_OK && size <= capacity);
  CHECK(ht_entropy_decode(tables, layer, out + capacity - size, size, scratch, again) == HT_OK);
  CHECK(memcmp(values, again, symbols) == 0);
  free(out);
  out = malloc(size); /* an exact buffer is enough, one byte less is refused without harm */
  CHECK(out != NULL && ht_entropy_encode(tables, layer, values, scratch, out, size, &tight) == HT_OK && tight == size);
  free(out);
  out = malloc(size - 1u);
  CHECK(out != NULL && ht_entropy_encode(tables, layer, values, scratch, out, size - 1u, &tight) == HT_NO_SPACE);
  free(out);
  free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const uint8_t base[4] = {0, 1, 0, 1};
  ht_tables tables;
  ht_layer layer = {base, 0, 0, 0, 0, 0x80};
  uint8_t *copy, *values, *scratch;
  if (size < 4u) {
    return 0;
  }
  tables = (data[0] & 1u) != 0u ? make_tables(32, 2) : make_tables(0, 1);
  layer.channels = 1u + (data[0] >> 1 & 3u);
  layer.positions = 1u + (uint32_t)data[1] + ((uint32_t)(data[2] & 7u) << 8);
  layer.channel_step = (data[0] & 8u) != 0u ? 1u : layer.positions;
  layer.position_step = (data[0] & 8u) != 0u ? layer.channels : 1u;
  size -= 3u;
  copy = malloc(size); /* exact sizes, so that the sanitizer sees every byte too far */
  values = calloc(layer.channels, layer.positions);
  scratch = malloc(ht_entropy_blocks(&tables, &layer) + 1u);
  CHECK(copy != NULL && values != NULL && scratch != NULL);
  memcpy(copy, data + 3, size);
  if (ht_entropy_decode(&tables, &layer, copy, size, scratch, values) == HT_OK) {
    round_trip(&tables, &layer, values, scratch);
  }
  for (size_t i = 0; i < (size_t)layer.channels * layer.positions; i++) {
    values[i] = (uint8_t)((copy[i % size] & 15u) + (copy[i % size] > 250u ? 100u : 250u));
  }
  round_trip(&tables, &layer, values, scratch);
  free(scratch);
  free(values);
  free(copy);
  return 0;
}

#ifdef HT_FUZZ_MAIN
static uint32_t state = 1;

static uint32_t next(void) {
  state ^= state << 13;
  state ^= state >> 17;
  state ^= state << 5;
  return state;
}

/* Valid layers with a few bytes changed and the end cut, and plain noise. */
int main(void) {
  static const uint8_t base[1] = {0};
  uint8_t input[3 + 1200], values[1024];
  uint32_t run, i;
  for (run = 0; run < 8000u; run++) {
    const ht_tables tables = make_tables(0, 1);
    const ht_layer layer = {base, 1, 1024, 1024, 1, 0x80};
    size_t size = 0, length;
    for (i = 0; i < sizeof input; i++) {
      input[i] = (uint8_t)next();
    }
    input[0] = (uint8_t)(run & 1u) | (uint8_t)(run & 8u); /* one channel of 1024, with or without blocks */
    input[1] = 255;
    input[2] = 3;
    length = next() % 1200u;
    if (run % 4u != 0u) {
      for (i = 0; i < 1024u; i++) {
        values[i] = (uint8_t)(253u + (next() & next() & 3u));
      }
      CHECK(ht_entropy_encode(&tables, &layer, values, NULL, input + 3, 1200, &size) == HT_OK);
      memmove(input + 3, input + 3 + 1200 - size, size);
      length = size;
      for (i = next() % 3u; i > 0u; i--) {
        input[3u + next() % size] ^= (uint8_t)(1u << (next() & 7u));
      }
      length -= run % 8u == 1u ? next() % size : 0u;
    } else {
      input[3] &= 3u;
    }
    (void)LLVMFuzzerTestOneInput(input, length + 3u);
  }
  puts("fuzzed");
  return 0;
}
#endif
