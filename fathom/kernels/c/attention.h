/* Absorbed attention of one token over the cached vectors of its row, which lie in pages (V2 appendix C). */

#include "product.h"

enum { HEADS = 4 }; /* whose products with one key are summed together */

typedef struct {
    const float *pages;   /* (pages, page_size, width) of one layer */
    const int32_t *table; /* of this row: page c holds its places c * page_size and on */
    int64_t page_size, width;
} Past;

INLINE const float *entry(const Past *past, long place) {
    long page = past->table[place / past->page_size];
    return past->pages + (page * past->page_size + place % past->page_size) * past->width;
}

/* Entries from `place` on, up to `end`, that lie side by side. */
INLINE long run_of(const Past *past, long place, long end) {
    return least(past->page_size - place % past->page_size, end - place);
}

/* scores[h][place] = scale * q[h] . key of `heads` heads. */
INLINE void dots(const int heads, const float *q, const float *key, long width, float scale, float *scores,
                 long length) {
    lanes sum[HEADS] = {0};
    for (long i = 0; i < width; i += LANES) {
        lanes part = take(key + i, width - i);
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++) sum[h] += take(q + h * width + i, width - i) * part;
    }
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++) scores[h * length] = scale * sum_of(sum[h]);
}

static void softmax(float *x, long count) {
    float top = x[0];
    for (long i = 1; i < count; i++) top = x[i] > top ? x[i] : top;
    lanes sum = {0};
    for (long i = 0; i < count; i += LANES) {
        lanes weight = exponential(take(x + i, count - i) - top);
        put(x + i, weight, count - i);
        sum += take(x + i, count - i);
    }
    float inverse = 1.0f / sum_of(sum);
    for (long i = 0; i < count; i += LANES) put(x + i, take(x + i, count - i) * inverse, count - i);
}

/* out (H, rank) of queries q (H, width) over the first `seen` entries; `scores` has room for H * seen floats. */
static void attend(const Past *past, long seen, const float *q, long heads, long rank, float scale, float *scores,
                   float *out) {
    for (long place = 0, run; place < seen; place += run) {
        const float *key = entry(past, place);
        run = run_of(past, place, seen);
        for (long s = 0; s < run; s++, key += past->width) {
            long h = 0;
            for (; h + HEADS <= heads; h += HEADS)
                dots(HEADS, q + h * past->width, key, past->width, scale, scores + h * seen + place + s, seen);
            for (; h < heads; h++)
                dots(1, q + h * past->width, key, past->width, scale, scores + h * seen + place + s, seen);
        }
    }
    for (long h = 0; h < heads; h++) softmax(scores + h * seen, seen);
    memset(out, 0, heads * rank * sizeof(float));
    for (long place = 0, run; place < seen; place += run) {
        const float *values = entry(past, place);
        run = run_of(past, place, seen);
        for (long h = 0; h < heads; h += ROWS) {
            const float *weights[ROWS];
            float *to[ROWS];
            long together = least(ROWS, heads - h);
            for (long i = 0; i < together; i++) {
                weights[i] = scores + (h + i) * seen + place;
                to[i] = out + (h + i) * rank;
            }
            long whole = rank / PANEL * PANEL;
            for (long c = 0; c < whole; c += PANEL)
                strips(together, weights, run, values + c, past->width, to, c, PANEL, 1);
            for (long c = whole; c < rank; c++) /* a strip would read behind the last entry */
                for (long i = 0; i < together; i++)
                    for (long s = 0; s < run; s++) to[i][c] += weights[i][s] * values[s * past->width + c];
        }
    }
}
