/* Interleaved rANS, 32-bit states, 16-bit words, 12-bit tables. The format is docs/codec.md. */
#include "ht_entropy.h"

#define LOWER 65536u /* states stay in [2^16, 2^32) */
#define SLOT_MASK 4095u
#define RAW_FREQUENCY 16u /* the 8 raw bits of an escaped value are one uniform symbol */
#define MODE_STORED 0u
#define MODE_CODED 1u
#define MODE_ESCAPES 2u

int ht_entropy_version(void) { return HT_ENTROPY_VERSION; }

uint32_t ht_entropy_lanes(uint32_t symbols, uint32_t positions) {
  uint32_t lanes = 1;
  while (lanes < HT_ENTROPY_MAX_LANES && lanes * 2u <= positions && lanes * 2048u <= symbols) {
    lanes *= 2u;
  }
  return lanes;
}

static uint32_t blocks_per_channel(const ht_tables *tables, const ht_layer *layer) {
  if (tables->variants < 2u) {
    return 0;
  }
  return layer->positions / tables->block + (layer->positions % tables->block != 0u ? 1u : 0u);
}

uint32_t ht_entropy_blocks(const ht_tables *tables, const ht_layer *layer) {
  return layer->channels * blocks_per_channel(tables, layer);
}

static int valid(const ht_tables *tables, const ht_layer *layer) {
  if (layer->channels == 0u || layer->positions == 0u || layer->positions > 0x7FFFFFFFu / layer->channels) {
    return 0;
  }
  return tables->variants == 1u || (tables->variants > 1u && tables->block != 0u && tables->block % 32u == 0u);
}

/* ---- encoder: symbols, lanes and bytes all run backwards, so that the decoder runs forwards ---- */

typedef struct {
  const ht_tables *tables;
  uint32_t state[HT_ENTROPY_MAX_LANES];
  uint32_t lanes;
  uint8_t *at;     /* the next word goes before this */
  size_t words;    /* words that still fit */
  int full;
  int escapes;
} encoder;

static inline void put(encoder *coder, uint32_t lane, uint32_t frequency, uint32_t first, uint64_t reciprocal) {
  uint32_t x = coder->state[lane];
  uint32_t quotient;
  if (x >= frequency << 20) {
    if (coder->words == 0u) {
      coder->full = 1;
      return;
    }
    coder->words--;
    coder->at -= 2;
    coder->at[0] = (uint8_t)x;
    coder->at[1] = (uint8_t)(x >> 8);
    x >>= 16;
  }
  /* x < frequency * 2^20, hence the product fits in 64 bits and the quotient is exact. */
  quotient = reciprocal != 0u ? (uint32_t)((x * reciprocal) >> 44) : x / frequency;
  coder->state[lane] = x + quotient * (HT_ENTROPY_SCALE - frequency) + first;
}

static inline void put_entry(encoder *coder, uint32_t lane, uint32_t entry, uint64_t reciprocal) {
  put(coder, lane, entry & 0xFFFFu, entry >> 16, reciprocal);
}

/* One row: up to `lanes` values of one table, escapes' raw bits behind all of the row's symbols. */
static inline void encode_row(encoder *coder, uint32_t table, const uint8_t *codes, uint32_t width) {
  const uint32_t *entries = coder->tables->entries + coder->tables->offset[table];
  const uint64_t *reciprocals = coder->tables->reciprocals;
  const uint32_t low = coder->tables->low[table];
  const uint32_t count = coder->tables->count[table];
  uint32_t symbols[HT_ENTROPY_MAX_LANES];
  uint32_t escapes = 0;
  uint32_t lane;
  for (lane = 0; lane < width; lane++) {
    const uint32_t symbol = (codes[lane] - low) & 0xFFu;
    symbols[lane] = symbol < count ? symbol : count;
    escapes |= symbol >= count ? 1u : 0u;
  }
  if (escapes != 0u) {
    coder->escapes = 1;
    for (lane = width; lane-- > 0u;) {
      if (symbols[lane] == count) {
        put(coder, lane, RAW_FREQUENCY, codes[lane] * RAW_FREQUENCY, 0u);
      }
    }
  }
  if (reciprocals != NULL) {
    reciprocals += coder->tables->offset[table];
    for (lane = width; lane-- > 0u;) {
      put_entry(coder, lane, entries[symbols[lane]], reciprocals[symbols[lane]]);
    }
  } else {
    for (lane = width; lane-- > 0u;) {
      put_entry(coder, lane, entries[symbols[lane]], 0u);
    }
  }
}

static void load_row(const ht_layer *layer, const uint8_t *values, uint32_t width, uint8_t *codes) {
  uint32_t lane;
  for (lane = 0; lane < width; lane++) {
    codes[lane] = (uint8_t)(values[(size_t)lane * layer->position_step] ^ layer->flip);
  }
}

static void encode_channel(encoder *coder, const ht_layer *layer, uint32_t channel, const uint8_t *values,
                           const uint8_t *index) {
  const uint32_t rows = (layer->positions - 1u) / coder->lanes + 1u;
  uint8_t codes[HT_ENTROPY_MAX_LANES];
  uint32_t row;
  for (row = rows; row-- > 0u && coder->full == 0;) {
    const uint32_t start = row * coder->lanes;
    const uint32_t left = layer->positions - start;
    const uint32_t width = left < coder->lanes ? left : coder->lanes;
    const uint32_t variant = index != NULL ? index[start / coder->tables->block] : 0u;
    load_row(layer, values + (size_t)start * layer->position_step, width, codes);
    encode_row(coder, layer->base[channel] + variant, codes, width);
  }
}

static void encode_index(encoder *coder, const uint8_t *index, uint32_t blocks) {
  uint32_t start = (blocks - 1u) / coder->lanes * coder->lanes;
  uint32_t width = blocks - start;
  while (coder->full == 0) {
    encode_row(coder, coder->tables->tables - 1u, index + start, width);
    if (start == 0u) {
      return;
    }
    start -= coder->lanes;
    width = coder->lanes;
  }
}

static uint32_t block_cost(const ht_tables *tables, const ht_layer *layer, uint32_t table, const uint8_t *values,
                           uint32_t width) {
  const uint16_t *costs = tables->costs + tables->offset[table];
  const uint32_t low = tables->low[table];
  const uint32_t count = tables->count[table];
  uint32_t sum = 0;
  uint32_t position;
  for (position = 0; position < width; position++) {
    const uint32_t code = (uint32_t)values[(size_t)position * layer->position_step] ^ layer->flip;
    const uint32_t symbol = (code - low) & 0xFFu;
    sum += costs[symbol < count ? symbol : count];
  }
  return sum;
}

/* The cheapest variant of each block, its index included; the first of equals. */
static void choose(const ht_tables *tables, const ht_layer *layer, const uint8_t *values, uint8_t *index) {
  const uint16_t *index_costs = tables->costs + tables->offset[tables->tables - 1u];
  const uint32_t blocks = blocks_per_channel(tables, layer);
  uint32_t channel, block, variant;
  for (channel = 0; channel < layer->channels; channel++) {
    const uint8_t *row = values + (size_t)channel * layer->channel_step;
    for (block = 0; block < blocks; block++) {
      const uint32_t start = block * tables->block;
      const uint32_t left = layer->positions - start;
      const uint32_t width = left < tables->block ? left : tables->block;
      uint32_t best = 0xFFFFFFFFu;
      for (variant = 0; variant < tables->variants; variant++) {
        const uint32_t cost = index_costs[variant] + block_cost(tables, layer, layer->base[channel] + variant,
                                                                row + (size_t)start * layer->position_step, width);
        if (cost < best) {
          best = cost;
          *index = (uint8_t)variant;
        }
      }
      index++;
    }
  }
}

static ht_status store(const ht_layer *layer, const uint8_t *values, uint8_t *out, size_t capacity, size_t *size) {
  const size_t symbols = (size_t)layer->channels * layer->positions;
  uint32_t channel, position;
  if (capacity <= symbols) {
    return HT_NO_SPACE;
  }
  out += capacity - symbols - 1u;
  *out++ = MODE_STORED;
  for (channel = 0; channel < layer->channels; channel++) {
    const uint8_t *row = values + (size_t)channel * layer->channel_step;
    for (position = 0; position < layer->positions; position++) {
      *out++ = (uint8_t)(row[(size_t)position * layer->position_step] ^ layer->flip);
    }
  }
  *size = symbols + 1u;
  return HT_OK;
}

typedef void (*coded_channel)(encoder *, const ht_layer *, uint32_t, const uint8_t *, const uint8_t *);

static size_t finish(encoder *coder, const uint8_t *end) {
  uint32_t lane;
  for (lane = coder->lanes; lane-- > 0u;) {
    const uint32_t x = coder->state[lane];
    coder->at -= 4;
    coder->at[0] = (uint8_t)x;
    coder->at[1] = (uint8_t)(x >> 8);
    coder->at[2] = (uint8_t)(x >> 16);
    coder->at[3] = (uint8_t)(x >> 24);
  }
  *--coder->at = (uint8_t)(coder->escapes != 0 ? MODE_ESCAPES : MODE_CODED);
  return (size_t)(end - coder->at);
}

static ht_status encode_layer(const ht_tables *tables, const ht_layer *layer, const uint8_t *values, uint8_t *scratch,
                              uint8_t *out, size_t capacity, size_t *size, coded_channel coded) {
  const uint8_t *index = NULL;
  encoder coder;
  uint32_t channel, symbols, blocks;
  size_t room, header;
  if (!valid(tables, layer)) {
    return HT_BAD_ARGUMENT;
  }
  symbols = layer->channels * layer->positions;
  coder.lanes = ht_entropy_lanes(symbols, layer->positions);
  header = 1u + 4u * (size_t)coder.lanes;
  room = capacity < symbols ? capacity : symbols; /* longer than this, the values are stored as they are */
  if (room < header) {
    return store(layer, values, out, capacity, size);
  }
  coder.tables = tables;
  coder.at = out + capacity;
  coder.words = (room - header) / 2u;
  coder.full = 0;
  coder.escapes = 0;
  for (channel = 0; channel < coder.lanes; channel++) {
    coder.state[channel] = LOWER;
  }
  blocks = blocks_per_channel(tables, layer);
  if (blocks != 0u) {
    choose(tables, layer, values, scratch);
  }
  for (channel = layer->channels; channel-- > 0u && coder.full == 0;) {
    index = blocks != 0u ? scratch + (size_t)channel * blocks : NULL;
    coded(&coder, layer, channel, values + (size_t)channel * layer->channel_step, index);
  }
  if (blocks != 0u && coder.full == 0) {
    encode_index(&coder, scratch, blocks * layer->channels);
  }
  if (coder.full != 0) {
    return store(layer, values, out, capacity, size);
  }
  *size = finish(&coder, out + capacity);
  return HT_OK;
}

/* ---- decoder ---- */

typedef struct {
  const ht_tables *tables;
  uint32_t state[HT_ENTROPY_MAX_LANES];
  uint32_t lanes;
  const uint8_t *at;
  const uint8_t *end;
  uint32_t mode;
  int escapes;
} decoder;

static inline uint32_t word(const uint8_t *at) { return (uint32_t)at[0] | (uint32_t)at[1] << 8; }

/* Read a word into a state that has become too small; 0 when there is none left. */
static inline int refill(decoder *coder, uint32_t lane, uint32_t x) {
  if (x < LOWER) {
    if (coder->end - coder->at < 2) {
      return 0;
    }
    x = x << 16 | word(coder->at);
    coder->at += 2;
  }
  coder->state[lane] = x;
  return 1;
}

static ht_status decode_escapes(decoder *coder, uint32_t escapes, uint8_t *codes) {
  uint32_t lane;
  if (coder->mode != MODE_ESCAPES) {
    return HT_CORRUPT;
  }
  coder->escapes = 1;
  for (lane = 0; lane < coder->lanes; lane++) {
    if ((escapes >> lane & 1u) != 0u) {
      const uint32_t x = coder->state[lane];
      codes[lane] = (uint8_t)((x & SLOT_MASK) / RAW_FREQUENCY);
      if (!refill(coder, lane, RAW_FREQUENCY * (x >> 12) + x % RAW_FREQUENCY)) {
        return HT_TRUNCATED;
      }
    }
  }
  return HT_OK;
}

/* One row of one table into codes[0..width). The quick loop runs while the row cannot run out of words. */
static inline ht_status decode_row(decoder *coder, uint32_t table, uint32_t width, uint8_t *codes) {
  const uint32_t *slots = coder->tables->slots + (size_t)table * HT_ENTROPY_SCALE;
  const uint32_t low = coder->tables->low[table];
  const uint32_t count = coder->tables->count[table];
  uint32_t escapes = 0;
  uint32_t lane;
  if ((size_t)(coder->end - coder->at) >= 2u * (size_t)width) {
    const uint8_t *at = coder->at;
    for (lane = 0; lane < width; lane++) {
      uint32_t x = coder->state[lane];
      const uint32_t slot = slots[x & SLOT_MASK];
      const uint32_t next = word(at);
      uint32_t need;
      x = (slot & 0xFFFu) * (x >> 12) + (slot >> 12 & 0xFFFu);
      need = x < LOWER ? 1u : 0u;
      coder->state[lane] = need != 0u ? (x << 16 | next) : x;
      at += 2u * need;
      codes[lane] = (uint8_t)(low + (slot >> 24));
      escapes |= ((slot >> 24) == count ? 1u : 0u) << lane;
    }
    coder->at = at;
  } else {
    for (lane = 0; lane < width; lane++) {
      const uint32_t x = coder->state[lane];
      const uint32_t slot = slots[x & SLOT_MASK];
      codes[lane] = (uint8_t)(low + (slot >> 24));
      escapes |= ((slot >> 24) == count ? 1u : 0u) << lane;
      if (!refill(coder, lane, (slot & 0xFFFu) * (x >> 12) + (slot >> 12 & 0xFFFu))) {
        return HT_TRUNCATED;
      }
    }
  }
  return escapes != 0u ? decode_escapes(coder, escapes, codes) : HT_OK;
}

static ht_status decode_channel(decoder *coder, const ht_layer *layer, uint32_t channel, const uint8_t *index,
                                uint8_t *values) {
  uint8_t codes[HT_ENTROPY_MAX_LANES];
  uint32_t start, lane;
  for (start = 0; start < layer->positions; start += coder->lanes) {
    const uint32_t left = layer->positions - start;
    const uint32_t width = left < coder->lanes ? left : coder->lanes;
    const uint32_t variant = index != NULL ? index[start / coder->tables->block] : 0u;
    const ht_status status = decode_row(coder, layer->base[channel] + variant, width, codes);
    if (status != HT_OK) {
      return status;
    }
    for (lane = 0; lane < width; lane++) {
      values[((size_t)start + lane) * layer->position_step] = (uint8_t)(codes[lane] ^ layer->flip);
    }
  }
  return HT_OK;
}

static ht_status decode_index(decoder *coder, uint32_t blocks, uint8_t *index) {
  uint32_t start, lane;
  for (start = 0; start < blocks; start += coder->lanes) {
    const uint32_t width = blocks - start < coder->lanes ? blocks - start : coder->lanes;
    const uint32_t mode = coder->mode;
    ht_status status;
    coder->mode = MODE_CODED; /* an index is never escaped */
    status = decode_row(coder, coder->tables->tables - 1u, width, index + start);
    coder->mode = mode;
    if (status != HT_OK) {
      return status;
    }
    for (lane = 0; lane < width; lane++) {
      if (index[start + lane] >= coder->tables->variants) {
        return HT_CORRUPT;
      }
    }
  }
  return HT_OK;
}

static ht_status load_stored(const ht_layer *layer, const uint8_t *data, size_t size, uint8_t *values) {
  const size_t symbols = (size_t)layer->channels * layer->positions;
  uint32_t channel, position;
  if (size != symbols) {
    return size < symbols ? HT_TRUNCATED : HT_TRAILING;
  }
  for (channel = 0; channel < layer->channels; channel++) {
    uint8_t *row = values + (size_t)channel * layer->channel_step;
    for (position = 0; position < layer->positions; position++) {
      row[(size_t)position * layer->position_step] = (uint8_t)(*data++ ^ layer->flip);
    }
  }
  return HT_OK;
}

/* Every lane starts, seen from the encoder, at 2^16: a damaged layer ends elsewhere. */
static ht_status check_end(const decoder *coder) {
  uint32_t lane;
  if (coder->at != coder->end) {
    return HT_TRAILING;
  }
  for (lane = 0; lane < coder->lanes; lane++) {
    if (coder->state[lane] != LOWER) {
      return HT_CORRUPT;
    }
  }
  return (coder->mode == MODE_ESCAPES) == (coder->escapes != 0) ? HT_OK : HT_CORRUPT;
}

typedef ht_status (*decoded_channel)(decoder *, const ht_layer *, uint32_t, const uint8_t *, uint8_t *);

static ht_status open_coded(decoder *coder, const ht_layer *layer, const uint8_t *data, size_t size) {
  uint32_t lane;
  coder->mode = data[0];
  coder->escapes = 0;
  coder->lanes = ht_entropy_lanes(layer->channels * layer->positions, layer->positions);
  if (coder->mode != MODE_CODED && coder->mode != MODE_ESCAPES) {
    return HT_CORRUPT;
  }
  if (size < 1u + 4u * (size_t)coder->lanes) {
    return HT_TRUNCATED;
  }
  for (lane = 0; lane < coder->lanes; lane++) {
    const uint8_t *at = data + 1u + 4u * (size_t)lane;
    coder->state[lane] = word(at) | word(at + 2) << 16;
    if (coder->state[lane] < LOWER) {
      return HT_CORRUPT;
    }
  }
  coder->at = data + 1u + 4u * (size_t)coder->lanes;
  coder->end = data + size;
  return HT_OK;
}

static ht_status decode_layer(const ht_tables *tables, const ht_layer *layer, const uint8_t *data, size_t size,
                              uint8_t *scratch, uint8_t *values, decoded_channel decoded) {
  const uint8_t *index = NULL;
  decoder coder;
  uint32_t channel, blocks;
  ht_status status;
  if (!valid(tables, layer) || tables->slots == NULL) {
    return HT_BAD_ARGUMENT;
  }
  if (size == 0u) {
    return HT_TRUNCATED;
  }
  if (data[0] == MODE_STORED) {
    return load_stored(layer, data + 1, size - 1u, values);
  }
  coder.tables = tables;
  status = open_coded(&coder, layer, data, size);
  blocks = blocks_per_channel(tables, layer);
  if (status == HT_OK && blocks != 0u) {
    status = decode_index(&coder, blocks * layer->channels, scratch);
  }
  for (channel = 0; status == HT_OK && channel < layer->channels; channel++) {
    index = blocks != 0u ? scratch + (size_t)channel * blocks : NULL;
    status = decoded(&coder, layer, channel, index, values + (size_t)channel * layer->channel_step);
  }
  return status == HT_OK ? check_end(&coder) : status;
}

/* ---- which loops run ---- */

#ifdef HT_ENTROPY_WIDE
#include "ht_entropy_wide.h"

ht_status ht_entropy_encode(const ht_tables *tables, const ht_layer *layer, const uint8_t *values, uint8_t *scratch,
                            uint8_t *out, size_t capacity, size_t *size) {
  const int wide = layer->position_step == 1u && wide_processor();
  return encode_layer(tables, layer, values, scratch, out, capacity, size, wide ? encode_channel_wide : encode_channel);
}

ht_status ht_entropy_decode(const ht_tables *tables, const ht_layer *layer, const uint8_t *data, size_t size,
                            uint8_t *scratch, uint8_t *values) {
  const int wide = wide_processor();
  return decode_layer(tables, layer, data, size, scratch, values, wide ? decode_channel_wide : decode_channel);
}

ht_status ht_entropy_encode_portable(const ht_tables *tables, const ht_layer *layer, const uint8_t *values,
                                     uint8_t *scratch, uint8_t *out, size_t capacity, size_t *size) {
  return encode_layer(tables, layer, values, scratch, out, capacity, size, encode_channel);
}

ht_status ht_entropy_decode_portable(const ht_tables *tables, const ht_layer *layer, const uint8_t *data, size_t size,
                                     uint8_t *scratch, uint8_t *values) {
  return decode_layer(tables, layer, data, size, scratch, values, decode_channel);
}
#else
ht_status ht_entropy_encode(const ht_tables *tables, const ht_layer *layer, const uint8_t *values, uint8_t *scratch,
                            uint8_t *out, size_t capacity, size_t *size) {
  return encode_layer(tables, layer, values, scratch, out, capacity, size, encode_channel);
}

ht_status ht_entropy_decode(const ht_tables *tables, const ht_layer *layer, const uint8_t *data, size_t size,
                            uint8_t *scratch, uint8_t *values) {
  return decode_layer(tables, layer, data, size, scratch, values, decode_channel);
}
#endif
