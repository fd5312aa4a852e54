/* Choosing experts for a token, and the layers that experts and dense layers are (V3 2.1.2). */

#include "attention.h"

typedef struct {
    int64_t experts, chosen, shared;          /* shared experts lie behind the routed ones and get weight 1 */
    int64_t groups, groups_kept, group_best;  /* groups_kept == groups: no limit */
    int64_t softmax, biased, normalised;
    float scale;
} Routing;

INLINE void scores_of(float *x, const Routing *r) {
    if (r->softmax) {
        softmax(x, r->experts);
        return;
    }
    for (long i = 0; i < r->experts; i += LANES)
        put(x + i, 1.0f / (1.0f + exponential(-take(x + i, r->experts - i))), r->experts - i);
}

/* The place of the largest, the first of equals. It is taken, which a NaN marks: no further call finds it again. */
INLINE long pick(float *x, long count, float *largest) {
    long best = 0;
    while (best + 1 < count && isnan(x[best])) best++;
    for (long i = best + 1; i < count; i++)
        if (x[i] > x[best]) best = i;
    *largest = x[best];
    x[best] = NAN;
    return best;
}

/* Hide the experts of all but the best groups. `spare` has room for `experts` + 2 * `groups` floats. */
static void limit_groups(float *choice, const Routing *r, float *spare) {
    long size = r->experts / r->groups;
    float *copy = spare, *score = spare + r->experts, *kept = score + r->groups, best;
    memcpy(copy, choice, r->experts * sizeof(float));
    for (long g = 0; g < r->groups; g++) {
        score[g] = kept[g] = 0.0f;
        for (long i = 0; i < r->group_best; i++) {
            pick(copy + g * size, size, &best);
            score[g] += best;
        }
    }
    for (long i = 0; i < r->groups_kept; i++) kept[pick(score, r->groups, &best)] = 1.0f;
    for (long e = 0; e < r->experts; e++)
        if (kept[e / size] == 0.0f) choice[e] = -INFINITY;
}

/* Experts of one token by its logits, which are overwritten, and their weights; shared ones behind. `spare` has room
   for 2 * `experts` + 2 * `groups` floats. */
static void route(float *logits, const float *bias, const Routing *r, float *spare, int64_t *experts, float *weights) {
    float *choice = spare, best, sum = 0.0f;
    scores_of(logits, r);
    for (long e = 0; e < r->experts; e++) {
        float score = r->biased ? logits[e] + bias[e] : logits[e];
        choice[e] = isnan(score) ? -INFINITY : score; /* a token goes to no expert twice, whatever its weights are */
    }
    if (r->groups_kept < r->groups) limit_groups(choice, r, spare + r->experts);
    for (long k = 0; k < r->chosen; k++) {
        experts[k] = pick(choice, r->experts, &best);
        weights[k] = logits[experts[k]];
        sum += weights[k];
    }
    float factor = r->normalised ? r->scale / (sum + 1e-20f) : r->scale;
    for (long k = 0; k < r->chosen; k++) weights[k] *= factor;
    for (long s = 0; s < r->shared; s++) {
        experts[r->chosen + s] = r->experts + s;
        weights[r->chosen + s] = 1.0f;
    }
}

/* y[r] += weights[r] * swiglu(x[r]); `hidden` has room for rows * 2 * inner floats, `lines` for as many pointers as
   rows. */
static void add_swiglu(long rows, const float *const *x, long width, long inner, const float *gate_up,
                       const float *down, const float *weights, float *const *y, float *hidden, float **lines,
                       int threads) {
    for (long r = 0; r < rows; r++) lines[r] = hidden + r * 2 * inner;
    product(rows, x, width, gate_up, 2 * inner, lines, 0, threads);
    for (long r = 0; r < rows; r++) activate(lines[r], lines[r] + inner, inner, weights ? weights[r] : 1.0f);
    product(rows, (const float *const *)lines, inner, down, width, y, 1, threads);
}
