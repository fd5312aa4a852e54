/* Products of a few rows with a matrix that is read once, and the small steps between two products.

   A matrix (I, O) lies in panels of PANEL columns, each (I, PANEL), zeros behind the last column: one panel is read from
   its first byte to its last, and its sums stay in registers. */

#include "lanes.h"

enum { PANEL = 32, PARTS = PANEL / LANES };

#ifdef __AVX512F__
enum { ROWS = 8 }; /* whose sums fit into the registers */
#else
enum { ROWS = 2 };
#endif

enum { WORTH_SHARING = 1 << 17 }; /* multiplications: below, threads take longer to wake than to work */

/* One panel, or a strip of a matrix whose rows are `stride` floats apart: y += or = x @ w of `rows` rows. */
INLINE void strip(const int rows, const float *const *x, long inputs, const float *w, long stride, float *const *y,
                  long column, long width, int add) {
    lanes sum[ROWS][PARTS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int k = 0; k < PARTS; k++)
            sum[r][k] = add && width > k * LANES ? take(y[r] + column + k * LANES, width - k * LANES) : all(0);
    for (long i = 0; i < inputs; i++, w += stride) {
        __builtin_prefetch(w + 32 * PANEL);
        __builtin_prefetch(w + 32 * PANEL + PANEL / 2);
#pragma GCC unroll 8
        for (int k = 0; k < PARTS; k++) {
            lanes part = load(w + k * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) sum[r][k] += x[r][i] * part;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int k = 0; k < PARTS; k++)
            if (width > k * LANES) put(y[r] + column + k * LANES, sum[r][k], width - k * LANES);
}

/* The same for any number of rows, ROWS at a time. */
static void strips(long rows, const float *const *x, long inputs, const float *w, long stride, float *const *y,
                   long column, long width, int add) {
#define CASE(n) case n: strip(n, x, inputs, w, stride, y, column, width, add); break;
    for (; rows > 0; rows -= ROWS, x += ROWS, y += ROWS) {
        switch (least(rows, ROWS)) {
            CASE(1) CASE(2)
#ifdef __AVX512F__
            CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#endif
        }
    }
#undef CASE
}

/* y[r] = x[r] @ the matrix of `panels`, or += with `add`. */
static void product(long rows, const float *const *x, long inputs, const float *panels, long outputs, float *const *y,
                    int add, int threads) {
    if (rows * inputs * outputs < WORTH_SHARING) threads = 1;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long o = 0; o < outputs; o += PANEL)
        strips(rows, x, inputs, panels + o * inputs, PANEL, y, o, least(PANEL, outputs - o), add);
}

/* Floats that a matrix of so many inputs and outputs takes in panels. */
INLINE size_t panel_floats(long inputs, long outputs) { return (size_t)inputs * ((outputs + PANEL - 1) / PANEL * PANEL); }

/* y = x / hypot(|x|, root) * gain; without gain where it is NULL. */
static void normalise(const float *x, long width, float root, const float *gain, float *y) {
    lanes squares = {0};
    for (long i = 0; i < width; i += LANES) {
        lanes part = take(x + i, width - i);
        squares += part * part;
    }
    float inverse = 1.0f / sqrtf(sum_of(squares) + root * root);
    for (long i = 0; i < width; i += LANES) {
        lanes part = take(x + i, width - i) * inverse;
        put(y + i, gain ? part * take(gain + i, width - i) : part, width - i);
    }
}

/* Turn neighbours by the cosines and sines of `turns`. */
static void rotate(float *x, long pairs, const float *turns) {
    for (long i = 0; i < pairs; i++) {
        float a = x[2 * i], b = x[2 * i + 1], cosine = turns[2 * i], sine = turns[2 * i + 1];
        x[2 * i] = a * cosine - b * sine;
        x[2 * i + 1] = a * sine + b * cosine;
    }
}

/* gate = silu(gate) * up * weight */
static void activate(float *gate, const float *up, long width, float weight) {
    for (long i = 0; i < width; i += LANES) {
        lanes g = take(gate + i, width - i);
        put(gate + i, g / (1.0f + exponential(-g)) * take(up + i, width - i) * weight, width - i);
    }
}
