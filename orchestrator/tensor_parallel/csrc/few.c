/* float32 products of a matrix with few tokens: every weight is read from memory once for all of them.
 *
 * Sums run over columns (or rows, where a matrix is stored transposed) in one order whatever the number of tokens, so a
 * sequence's values do not depend on which others share its step. `product` has LANES partial sums a row, added at the end.
 */
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16, WIDE = 4 }; /* tokens at once: 16 sums stay in registers */
#elif defined(__AVX__)
enum { LANES = 8, WIDE = 2 };
#else
enum { LANES = 4, WIDE = 4 };
#endif
enum { ROWS_AT_ONCE = 4, BAND = 16 };

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

static inline Lanes load(const float *from) {
    Lanes value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float *to, Lanes value) { memcpy(to, &value, sizeof value); }

static inline float added(Lanes value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)value);
#else
    float parts[LANES];
    store(parts, value);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
#endif
}

/* y[token][row] for some rows and tokens; both counts are constants where this is inlined. */
static inline __attribute__((always_inline)) void corner(
    const float *w, const float *x, float *y, int64_t rows, int64_t columns, const int row_count, const int tokens
) {
    Lanes sums[ROWS_AT_ONCE][WIDE];
    memset(sums, 0, sizeof sums);
    int64_t at = 0;
    for (; at + LANES <= columns; at += LANES) {
        Lanes given[WIDE];
        for (int t = 0; t < tokens; t++) given[t] = load(x + t * columns + at);
        for (int r = 0; r < row_count; r++) {
            Lanes weights = load(w + r * columns + at);
            for (int t = 0; t < tokens; t++) sums[r][t] += weights * given[t];
        }
    }
    for (int r = 0; r < row_count; r++)
        for (int t = 0; t < tokens; t++) {
            float total = added(sums[r][t]);
            for (int64_t i = at; i < columns; i++) total += w[r * columns + i] * x[t * columns + i];
            y[t * rows + r] = total;
        }
}

static inline __attribute__((always_inline)) void some_rows(
    const float *w, const float *x, float *y, int64_t rows, int64_t columns, int64_t count, const int row_count
) {
    int64_t t = 0;
    for (; t + WIDE <= count; t += WIDE) corner(w, x + t * columns, y + t * rows, rows, columns, row_count, WIDE);
    for (; t < count; t++) corner(w, x + t * columns, y + t * rows, rows, columns, row_count, 1);
}

/* y (count, rows) = x (count, columns) W^T, W (rows, columns). */
void ht_few_product(const float *w, const float *x, float *y, const int64_t shape[3], int threads) {
    const int64_t rows = shape[0], columns = shape[1], count = shape[2], whole = rows / ROWS_AT_ONCE;
    (void)threads;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < whole; i++) {
        const int64_t row = i * ROWS_AT_ONCE;
        some_rows(w + row * columns, x, y + row, rows, columns, count, ROWS_AT_ONCE);
    }
    for (int64_t row = whole * ROWS_AT_ONCE; row < rows; row++)
        some_rows(w + row * columns, x, y + row, rows, columns, count, 1);
}

/* Add a band of W's rows to one strip of y. */
static inline __attribute__((always_inline)) void strip(
    const float *w, const float *x, float *y, int64_t rows, int64_t columns, int64_t band, const int vectors, const int tokens
) {
    Lanes sums[WIDE][ROWS_AT_ONCE];
    memset(sums, 0, sizeof sums);
    for (int64_t r = 0; r < band; r++) {
        Lanes weights[ROWS_AT_ONCE];
        for (int v = 0; v < vectors; v++) weights[v] = load(w + r * columns + v * LANES);
        for (int t = 0; t < tokens; t++)
            for (int v = 0; v < vectors; v++) sums[t][v] += weights[v] * x[t * rows + r];
    }
    for (int t = 0; t < tokens; t++)
        for (int v = 0; v < vectors; v++) store(y + t * columns + v * LANES, load(y + t * columns + v * LANES) + sums[t][v]);
}

static inline __attribute__((always_inline)) void strips(
    const float *w, const float *x, float *y, const int64_t shape[3], int64_t band, const int vectors
) {
    const int64_t rows = shape[0], columns = shape[1], count = shape[2];
    int64_t t = 0;
    for (; t + WIDE <= count; t += WIDE) strip(w, x + t * rows, y + t * columns, rows, columns, band, vectors, WIDE);
    for (; t < count; t++) strip(w, x + t * rows, y + t * columns, rows, columns, band, vectors, 1);
}

/* Columns from `first` on of one band of rows. */
static void one_band(const float *w, const float *x, float *y, const int64_t shape[3], int64_t band, int64_t first, int64_t stop) {
    const int64_t rows = shape[0], columns = shape[1], count = shape[2];
    int64_t at = first;
    for (; at + ROWS_AT_ONCE * LANES <= stop; at += ROWS_AT_ONCE * LANES) strips(w + at, x, y + at, shape, band, ROWS_AT_ONCE);
    for (; at + LANES <= stop; at += LANES) strips(w + at, x, y + at, shape, band, 1);
    for (; at < stop; at++)
        for (int64_t t = 0; t < count; t++)
            for (int64_t r = 0; r < band; r++) y[t * columns + at] += w[r * columns + at] * x[t * rows + r];
}

/* y (count, columns) = x (count, rows) W, W (rows, columns). */
void ht_few_mix(const float *w, const float *x, float *y, const int64_t shape[3], int threads) {
    const int64_t rows = shape[0], columns = shape[1], count = shape[2];
    const int64_t width = (columns / threads + LANES * ROWS_AT_ONCE - 1) / (LANES * ROWS_AT_ONCE) * (LANES * ROWS_AT_ONCE);
    memset(y, 0, (size_t)(count * columns) * sizeof(float));
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t part = 0; part < threads; part++) {
        const int64_t first = part * width, stop = part == threads - 1 || first + width > columns ? columns : first + width;
        for (int64_t row = 0; row < rows && first < stop; row += BAND)
            one_band(w + row * columns, x + row, y, shape, rows - row < BAND ? rows - row : BAND, first, stop);
    }
}
