/* Products with 4 and 8 bit weights. One thread computes whole rows; the result does not depend on how many tokens share
 * a call.
 *
 * Weights W (rows, columns) lie in tiles of 16 rows x 32 columns, tile after tile along a row of tiles (by_column = 0) or
 * along a column of tiles (by_column = 1). In a tile, group g = 0..7 holds columns 4 g .. 4 g + 3 of all rows: byte
 * 4 row + column. 8 bit: 8 groups of 64 signed bytes. 4 bit: 4 x 64 bytes, group 2 p in the low and 2 p + 1 in the high
 * nibbles, stored + 8. Then 16 scales (IEEE half), one for each row.
 *
 * Activations are rounded to 8 bit with a scale for each 32 values, so that products are exact integers until they are
 * scaled.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define HT_AVX512 1
#elif defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)
#include <immintrin.h>
#define HT_AVX2 1
#endif

enum { ROWS = 16, COLUMNS = 32, GROUPS = 8, GROUP_BYTES = 64 };

static int64_t tile_bytes(int bits) { return ROWS * COLUMNS * bits / 8 + 2 * ROWS; }

/* Name of the instruction set compiled for. */
const char *ht_lowbit_target(void) {
#if HT_AVX512
    return "avx512vnni";
#elif HT_AVX2
    return "avx2";
#else
    return "generic";
#endif
}

/* x (count, columns) to bytes, a scale and a sum for each 32 values. */
void ht_lowbit_round(const float *x, int64_t count, int64_t columns, int8_t *bytes, float *scales, int32_t *sums) {
    for (int64_t block = 0; block < count * columns / COLUMNS; block++) {
        const float *from = x + block * COLUMNS;
        int8_t *to = bytes + block * COLUMNS;
        float largest = 0.0f;
        for (int i = 0; i < COLUMNS; i++) largest = fmaxf(largest, fabsf(from[i]));
        float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
        int32_t sum = 0;
        for (int i = 0; i < COLUMNS; i++) {
            int8_t value = (int8_t)lrintf(from[i] * inverse);
            to[i] = value;
            sum += value;
        }
        scales[block] = largest / 127.0f;
        sums[block] = sum;
    }
}

#if HT_AVX512

typedef struct {
    __m512i groups[GROUPS]; /* unsigned: stored + offset */
    __m512 scales;
} Tile;

static inline void read_tile(const uint8_t *from, int bits, Tile *tile) {
    if (bits == 4) {
        const __m512i mask = _mm512_set1_epi8(0x0f);
        for (int pair = 0; pair < GROUPS / 2; pair++) {
            __m512i both = _mm512_loadu_si512(from + pair * GROUP_BYTES);
            tile->groups[2 * pair] = _mm512_and_si512(both, mask);
            tile->groups[2 * pair + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        }
        from += 4 * GROUP_BYTES;
    } else {
        const __m512i flip = _mm512_set1_epi8((char)0x80);
        for (int group = 0; group < GROUPS; group++)
            tile->groups[group] = _mm512_xor_si512(_mm512_loadu_si512(from + group * GROUP_BYTES), flip);
        from += GROUPS * GROUP_BYTES;
    }
    tile->scales = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}

static inline __m512 add_tile(__m512 total, const Tile *tile, int bits, const int8_t *x, float scale, int32_t sum) {
    __m512i even = _mm512_set1_epi32(-(bits == 4 ? 8 : 128) * sum), odd = _mm512_setzero_si512();
    for (int group = 0; group < GROUPS; group += 2) {
        int32_t first, second;
        memcpy(&first, x + 4 * group, 4);
        memcpy(&second, x + 4 * group + 4, 4);
        even = _mm512_dpbusd_epi32(even, tile->groups[group], _mm512_set1_epi32(first));
        odd = _mm512_dpbusd_epi32(odd, tile->groups[group + 1], _mm512_set1_epi32(second));
    }
    __m512 products = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
    return _mm512_fmadd_ps(products, _mm512_mul_ps(tile->scales, _mm512_set1_ps(scale)), total);
}

typedef __m512 Sums;
static inline Sums load_sums(const float *y) { return _mm512_loadu_ps(y); }
static inline void store_sums(float *y, Sums total) { _mm512_storeu_ps(y, total); }

#else

typedef struct {
    int8_t groups[GROUPS][GROUP_BYTES]; /* signed */
    float scales[ROWS];
} Tile;

typedef struct {
    float of[ROWS];
} Sums;

static float from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, mantissa = half & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)mantissa * 0x1p-24f;
    uint32_t word = sign | ((exponent + 112) << 23) | (mantissa << 13);
    float value;
    memcpy(&value, &word, 4);
    return value;
}

static inline void read_tile(const uint8_t *from, int bits, Tile *tile) {
    if (bits == 4) {
        for (int pair = 0; pair < GROUPS / 2; pair++)
            for (int i = 0; i < GROUP_BYTES; i++) {
                uint8_t both = from[pair * GROUP_BYTES + i];
                tile->groups[2 * pair][i] = (int8_t)((both & 15) - 8);
                tile->groups[2 * pair + 1][i] = (int8_t)((both >> 4) - 8);
            }
        from += 4 * GROUP_BYTES;
    } else {
        memcpy(tile->groups, from, GROUPS * GROUP_BYTES);
        from += GROUPS * GROUP_BYTES;
    }
    for (int row = 0; row < ROWS; row++) {
        uint16_t half;
        memcpy(&half, from + 2 * row, 2);
        tile->scales[row] = from_half(half);
    }
}

static inline Sums add_tile(Sums total, const Tile *tile, int bits, const int8_t *x, float scale, int32_t sum) {
    (void)bits;
    (void)sum;
    int32_t products[ROWS] = {0};
#if HT_AVX2
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i low = _mm256_setzero_si256(), high = low;
    for (int group = 0; group < GROUPS; group++) {
        int32_t four;
        memcpy(&four, x + 4 * group, 4);
        __m256i factor = _mm256_set1_epi32(four);
        __m256i a = _mm256_loadu_si256((const __m256i *)tile->groups[group]);
        __m256i b = _mm256_loadu_si256((const __m256i *)(tile->groups[group] + 32));
        __m256i pa = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(factor, a));
        __m256i pb = _mm256_maddubs_epi16(_mm256_abs_epi8(b), _mm256_sign_epi8(factor, b));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(pa, ones));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(pb, ones));
    }
    _mm256_storeu_si256((__m256i *)products, low);
    _mm256_storeu_si256((__m256i *)(products + 8), high);
#else
    for (int group = 0; group < GROUPS; group++)
        for (int row = 0; row < ROWS; row++)
            for (int i = 0; i < 4; i++) products[row] += tile->groups[group][4 * row + i] * x[4 * group + i];
#endif
    for (int row = 0; row < ROWS; row++) total.of[row] += (float)products[row] * (tile->scales[row] * scale);
    return total;
}

static inline Sums load_sums(const float *y) {
    Sums total;
    memcpy(total.of, y, sizeof total.of);
    return total;
}
static inline void store_sums(float *y, Sums total) { memcpy(y, total.of, sizeof total.of); }

#endif

typedef struct {
    const uint8_t *weights;
    int64_t rows, columns, count;
    const int8_t *x;
    const float *scales;
    const int32_t *sums;
    float *y;
} Product;

/* Add one tile's products to y of every token. */
static inline void one_tile(const Product *p, int bits, int64_t place, int64_t row, int64_t block) {
    const int64_t blocks = p->columns / COLUMNS;
    Tile tile;
    read_tile(p->weights + place * tile_bytes(bits), bits, &tile);
    for (int64_t token = 0; token < p->count; token++) {
        const int64_t at = token * blocks + block;
        float *y = p->y + token * p->rows + row * ROWS;
        store_sums(y, add_tile(load_sums(y), &tile, bits, p->x + at * COLUMNS, p->scales[at], p->sums[at]));
    }
}

/* One token: the sum of a row of tiles stays in a register. */
static inline void tile_row(const Product *p, int bits, int64_t row) {
    const int64_t blocks = p->columns / COLUMNS, bytes = tile_bytes(bits);
    const uint8_t *from = p->weights + row * blocks * bytes;
    Sums total = load_sums(p->y + row * ROWS);
    for (int64_t block = 0; block < blocks; block++, from += bytes) {
        Tile tile;
        __builtin_prefetch(from + 4 * bytes);
        __builtin_prefetch(from + 4 * bytes + 64);
        __builtin_prefetch(from + 4 * bytes + 128);
        __builtin_prefetch(from + 4 * bytes + 192);
        read_tile(from, bits, &tile);
        total = add_tile(total, &tile, bits, p->x + block * COLUMNS, p->scales[block], p->sums[block]);
    }
    store_sums(p->y + row * ROWS, total);
}

static inline void product(const Product *p, int bits, int by_column, int threads) {
    const int64_t tile_rows = p->rows / ROWS, blocks = p->columns / COLUMNS;
    memset(p->y, 0, (size_t)(p->count * p->rows) * sizeof(float));
    (void)threads;
    if (!by_column) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (int64_t row = 0; row < tile_rows; row++) {
            if (p->count == 1) {
                tile_row(p, bits, row);
                continue;
            }
            for (int64_t block = 0; block < blocks; block++) one_tile(p, bits, row * blocks + block, row, block);
        }
        return;
    }
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t part = 0; part < threads; part++)
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t row = part * tile_rows / threads; row < (part + 1) * tile_rows / threads; row++)
                one_tile(p, bits, block * tile_rows + row, row, block);
}

/* y (count, rows) = x (count, columns) W^T, x as `ht_lowbit_round` leaves it. rows % 16 == columns % 32 == 0. */
void ht_lowbit_product(
    const uint8_t *weights, int bits, int by_column, const int64_t shape[3], const int8_t *x, const float *scales,
    const int32_t *sums, float *y, int threads
) {
    const Product p = {weights, shape[0], shape[1], shape[2], x, scales, sums, y};
    if (bits == 4)
        product(&p, 4, by_column, threads);
    else
        product(&p, 8, by_column, threads);
}
