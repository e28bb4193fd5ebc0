/* One channel of ht_entropy.c with its lanes in one AVX-512 register: the same bytes as the portable loops.
 *
 * Part of ht_entropy.c, which includes it where HT_ENTROPY_WIDE is defined and the compiler is GCC or clang for x86-64.
 * Whether the processor has the instructions is asked at run time. Rows with escapes go through the portable code.
 */
#include <immintrin.h>

#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,popcnt")))

static int wide_processor(void) {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("popcnt");
}

WIDE static inline __mmask16 first_lanes(uint32_t count) { return (__mmask16)((1u << count) - 1u); }

WIDE static inline __m512i load_states(const uint32_t *state, uint32_t lanes) {
  return _mm512_maskz_loadu_epi32(first_lanes(lanes), state);
}

WIDE static inline void save_states(uint32_t *state, uint32_t lanes, __m512i x) {
  _mm512_mask_storeu_epi32(state, first_lanes(lanes), x);
}

/* Symbols into states, `used` lanes of them. With x < f * 2^20, x / f is less than 2^20; in 24 bits, every step rounded
 * towards zero, it comes out right or less than one half too small, so that one comparison corrects it. */
WIDE static inline __m512i push_symbols(__m512i x, __m512i entry, __mmask16 used) {
  const __m512i frequency = _mm512_and_epi32(entry, _mm512_set1_epi32(0xFFFF));
  const __m512 inverse = _mm512_div_round_ps(_mm512_set1_ps(1.0f), _mm512_cvtepu32_ps(frequency),
                                             _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
  const __m512 ratio = _mm512_mul_round_ps(_mm512_cvt_roundepu32_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC),
                                           inverse, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
  const __m512i quotient = _mm512_cvttps_epu32(ratio);
  const __m512i rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, frequency));
  const __m512i first = _mm512_srli_epi32(entry, 16);
  const __m512i next = _mm512_add_epi32(_mm512_slli_epi32(quotient, 12), _mm512_add_epi32(rest, first));
  const __mmask16 small = _mm512_cmpge_epu32_mask(rest, frequency);
  const __m512i gain = _mm512_sub_epi32(_mm512_set1_epi32((int)HT_ENTROPY_SCALE), frequency);
  return _mm512_mask_mov_epi32(x, used, _mm512_mask_add_epi32(next, small, next, gain));
}

/* encode_channel: values that lie one behind the other. */
WIDE static void encode_channel_wide(encoder *coder, const ht_layer *layer, uint32_t channel, const uint8_t *values,
                                     const uint8_t *index) {
  const uint32_t rows = (layer->positions - 1u) / coder->lanes + 1u;
  const __m128i flip = _mm_set1_epi8((char)layer->flip);
  __m512i x = load_states(coder->state, coder->lanes);
  uint32_t row;
  for (row = rows; row-- > 0u;) {
    const uint32_t start = row * coder->lanes;
    const uint32_t left = layer->positions - start;
    const uint32_t width = left < coder->lanes ? left : coder->lanes;
    const __mmask16 used = first_lanes(width);
    const uint32_t table = layer->base[channel] + (index != NULL ? (uint32_t)index[start / coder->tables->block] : 0u);
    const __m512i count = _mm512_set1_epi32((int)coder->tables->count[table]);
    const __m128i codes = _mm_xor_si128(_mm_maskz_loadu_epi8(used, values + start), flip);
    const __m128i shifted = _mm_sub_epi8(codes, _mm_set1_epi8((char)coder->tables->low[table]));
    const __m512i symbols = _mm512_min_epu32(_mm512_cvtepu8_epi32(shifted), count);
    __m512i entry, limit;
    __mmask16 emits;
    uint32_t words;
    if (_mm512_mask_cmpeq_epu32_mask(used, symbols, count) != 0) {
      uint8_t copy[HT_ENTROPY_MAX_LANES];
      _mm_storeu_si128((__m128i *)(void *)copy, codes);
      save_states(coder->state, coder->lanes, x);
      encode_row(coder, table, copy, width);
      if (coder->full != 0) {
        return;
      }
      x = load_states(coder->state, coder->lanes);
      continue;
    }
    entry = _mm512_i32gather_epi32(symbols, (const void *)(coder->tables->entries + coder->tables->offset[table]), 4);
    limit = _mm512_slli_epi32(entry, 20); /* the frequency's 12 bits; what is above falls out */
    emits = _mm512_mask_cmpge_epu32_mask(used, x, limit);
    words = (uint32_t)_mm_popcnt_u32(emits);
    if (words > coder->words) {
      coder->full = 1;
      return;
    }
    coder->words -= words;
    coder->at -= 2u * words;
    _mm256_mask_storeu_epi16(coder->at, first_lanes(words), _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(emits, x)));
    x = push_symbols(_mm512_mask_srli_epi32(x, emits, x, 16), entry, used);
  }
  save_states(coder->state, coder->lanes, x);
}

/* decode_channel, for values in any order. */
WIDE static ht_status decode_channel_wide(decoder *coder, const ht_layer *layer, uint32_t channel,
                                          const uint8_t *index, uint8_t *values) {
  const __m128i flip = _mm_set1_epi8((char)layer->flip);
  const __m512i field = _mm512_set1_epi32((int)SLOT_MASK);
  __m512i x = load_states(coder->state, coder->lanes);
  uint32_t start, lane;
  for (start = 0; start < layer->positions; start += coder->lanes) {
    const uint32_t left = layer->positions - start;
    const uint32_t width = left < coder->lanes ? left : coder->lanes;
    const __mmask16 used = first_lanes(width);
    const uint32_t table = layer->base[channel] + (index != NULL ? (uint32_t)index[start / coder->tables->block] : 0u);
    const uint32_t *slots = coder->tables->slots + (size_t)table * HT_ENTROPY_SCALE;
    const __m512i slot = _mm512_i32gather_epi32(_mm512_and_epi32(x, field), (const void *)slots, 4);
    const __m512i symbols = _mm512_srli_epi32(slot, 24);
    const __m512i grown = _mm512_mullo_epi32(_mm512_and_epi32(slot, field), _mm512_srli_epi32(x, 12));
    const __m512i next = _mm512_add_epi32(grown, _mm512_and_epi32(_mm512_srli_epi32(slot, 12), field));
    const __mmask16 needs = _mm512_mask_cmplt_epu32_mask(used, next, _mm512_set1_epi32((int)LOWER));
    const uint32_t words = (uint32_t)_mm_popcnt_u32(needs);
    const __mmask16 escapes =
        _mm512_mask_cmpeq_epu32_mask(used, symbols, _mm512_set1_epi32((int)coder->tables->count[table]));
    __m128i codes = _mm_add_epi8(_mm512_cvtepi32_epi8(symbols), _mm_set1_epi8((char)coder->tables->low[table]));
    __m512i read;
    uint8_t copy[HT_ENTROPY_MAX_LANES];
    if (2u * (size_t)words > (size_t)(coder->end - coder->at)) {
      return HT_TRUNCATED;
    }
    read = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(words), coder->at));
    read = _mm512_or_epi32(_mm512_slli_epi32(next, 16), _mm512_maskz_expand_epi32(needs, read));
    x = _mm512_mask_mov_epi32(_mm512_mask_mov_epi32(x, used, next), needs, read);
    coder->at += 2u * words;
    if (escapes != 0) {
      ht_status status;
      _mm_storeu_si128((__m128i *)(void *)copy, codes);
      save_states(coder->state, coder->lanes, x);
      status = decode_escapes(coder, escapes, copy);
      if (status != HT_OK) {
        return status;
      }
      x = load_states(coder->state, coder->lanes);
      codes = _mm_loadu_si128((const __m128i *)(const void *)copy);
    }
    codes = _mm_xor_si128(codes, flip);
    if (layer->position_step == 1u) {
      _mm_mask_storeu_epi8(values + start, used, codes);
      continue;
    }
    _mm_storeu_si128((__m128i *)(void *)copy, codes);
    for (lane = 0; lane < width; lane++) {
      values[((size_t)start + lane) * layer->position_step] = copy[lane];
    }
  }
  save_states(coder->state, coder->lanes, x);
  return HT_OK;
}
