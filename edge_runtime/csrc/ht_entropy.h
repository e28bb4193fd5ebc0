/* Entropy coder for 8-bit latents: interleaved rANS with static integer tables (docs/codec.md).
 *
 * C99, no allocation, no floating point, no state between calls. The encoder needs about 0.5 kB of stack and, only
 * when the table set has block variants, one byte of scratch for each block.
 */
#ifndef HT_ENTROPY_H
#define HT_ENTROPY_H

#include <stddef.h>
#include <stdint.h>

#if defined(HT_ENTROPY_WIDE) && !(defined(__x86_64__) && defined(__GNUC__))
#undef HT_ENTROPY_WIDE
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define HT_ENTROPY_VERSION 1
#define HT_ENTROPY_SCALE 4096u  /* every table's frequencies sum to this */
#define HT_ENTROPY_MAX_LANES 16u

typedef enum {
  HT_OK = 0,
  HT_NO_SPACE = 1,     /* the output buffer is too small */
  HT_TRUNCATED = 2,    /* the layer ends before its symbols do */
  HT_TRAILING = 3,     /* bytes are left over */
  HT_CORRUPT = 4,      /* not what an encoder writes */
  HT_BAD_ARGUMENT = 5  /* sizes that make no sense */
} ht_status;

/* A table set in the form that the coder reads. Table t has count[t] values from low[t] on, then the escape; its
 * entries start at offset[t]. With variants > 1, the last table codes the index of each block. */
typedef struct {
  const uint32_t *entries;      /* frequency | first slot << 16 */
  const uint64_t *reciprocals;  /* ceil(2^44 / frequency) for each entry; NULL: the encoder divides (best on Cortex-M) */
  const uint16_t *costs;        /* 1/256 bit for each entry, escapes with their 8 raw bits; NULL unless variants > 1 */
  const uint32_t *slots;        /* 4096 a table: frequency | (slot - first) << 12 | symbol << 24; NULL: encode only */
  const uint16_t *offset;
  const uint8_t *low;
  const uint8_t *count;
  uint16_t tables;
  uint16_t block;    /* positions that share one index, a multiple of 32; 0 without variants */
  uint8_t variants;  /* tables to choose from for each channel, 1 or more */
} ht_tables;

/* Where one layer's values lie: value (channel, position) at channel * channel_step + position * position_step. */
typedef struct {
  const uint8_t *base;  /* first table of each channel */
  uint32_t channels;
  uint32_t positions;
  uint32_t channel_step;
  uint32_t position_step;
  uint8_t flip;  /* 0x80 for int8, 0 for uint8 */
} ht_layer;

int ht_entropy_version(void);

/* Lanes of a layer: the largest power of two that is at most 16, positions, and symbols / 1024. */
uint32_t ht_entropy_lanes(uint32_t symbols, uint32_t positions);

/* Bytes of scratch for the block indices of a layer; 0 without variants. */
uint32_t ht_entropy_blocks(const ht_tables *tables, const ht_layer *layer);

/* Encode one layer into the END of out[0..capacity); *size bytes, at most channels * positions + 1. */
ht_status ht_entropy_encode(const ht_tables *tables, const ht_layer *layer, const uint8_t *values, uint8_t *scratch,
                            uint8_t *out, size_t capacity, size_t *size);

/* Decode one layer that fills data[0..size) exactly. Writes only the layer's values, also when it fails. */
ht_status ht_entropy_decode(const ht_tables *tables, const ht_layer *layer, const uint8_t *data, size_t size,
                            uint8_t *scratch, uint8_t *values);

#ifdef HT_ENTROPY_WIDE
/* The same without AVX-512, for comparison; the functions above choose by what the processor has. */
ht_status ht_entropy_encode_portable(const ht_tables *tables, const ht_layer *layer, const uint8_t *values,
                                     uint8_t *scratch, uint8_t *out, size_t capacity, size_t *size);
ht_status ht_entropy_decode_portable(const ht_tables *tables, const ht_layer *layer, const uint8_t *data, size_t size,
                                     uint8_t *scratch, uint8_t *values);
#endif

#ifdef __cplusplus
}
#endif
#endif
