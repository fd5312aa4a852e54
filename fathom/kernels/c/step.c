/* One pass of a few tokens through blocks of latent attention and experts, in one call.

   The definition is the modules of fathom/model; the matrices are those of fathom/model/streamed_layers.py, in panels.
   fathom/kernels/step.py has the twins of the structures below, field by field. */

#include "experts.h"

typedef struct {
    int64_t width, heads, rank, nope, rope, value; /* of the attention; value: of one head's W_UV */
    int64_t query_rank;                            /* 0: queries come from the input itself */
    float root, latent_root, query_root, scale;    /* sqrt(width * eps) of the norms; scale of the scores */
    Routing routing;
} Shape;

typedef struct {
    const float *inputs;                    /* (D, first + W): queries, or their latent, and what is cached */
    const float *queries, *latent_gain;     /* (query_rank, Q) */
    const float *w_uk, *w_uv;               /* (H, nope, R), (H, R, v); NULL: inside the matrices beside them */
    const float *out;                       /* (H * R or H * v, D) */
    const float *router, *bias;             /* NULL: a dense layer */
    const float *gate_up, *down;            /* of every expert in turn, shared ones behind */
    int64_t inner;                          /* width of one expert */
    const float *pages;                     /* the cache of this layer */
} Block;

typedef struct {
    int64_t tokens, time, columns, page_size, length; /* nobody sees more than `length` entries */
    const int64_t *positions, *entries; /* of each token in its row, and through all pages */
    const int32_t *table;               /* (tokens / time, columns) */
    const float *turns;                 /* (places, rope / 2, 2) */
    int64_t *experts;                   /* (MoE layers, tokens, chosen + shared), to be filled */
    int64_t threads;
} Pass;

typedef struct {
    float *normed, *inputs, *queries, *absorbed, *context, *values, *logits, *weights, *hidden, *expert_weights;
    float **to, **lines;
    const float **from;
} Room;

static void point(float **rows, float *first, long count, long stride) {
    for (long r = 0; r < count; r++) rows[r] = first + r * stride;
}

/* to (N, O) = or += from (N, I) @ panels, rows so many floats apart. */
static void multiply(const Pass *p, Room *m, float *from, long apart, long inputs, const float *panels, float *to,
                     long outputs, long stride, int add) {
    point(m->lines, from, p->tokens, apart);
    point(m->to, to, p->tokens, stride);
    product(p->tokens, (const float *const *)m->lines, inputs, panels, outputs, m->to, add, p->threads);
}

/* Every head of `from` times its own matrix. */
static void multiply_heads(const Shape *s, const Pass *p, Room *m, float *from, long apart, long head_apart,
                           long inputs, const float *panels, float *to, long outputs, long stride, long head_stride) {
    for (long h = 0; h < s->heads; h++)
        multiply(p, m, from + h * head_apart, apart, inputs, panels + h * panel_floats(inputs, outputs),
                 to + h * head_stride, outputs, stride, 0);
}

/* Queries in the latent space, (N, H, W), and the cached vectors of these tokens. */
static float *read_inputs(const Shape *s, const Block *b, const Pass *p, Room *m, float *x) {
    long cached = s->rank + s->rope, per_head = (b->w_uk ? s->nope : s->rank) + s->rope, wide = s->heads * per_head;
    long first = s->query_rank ? s->query_rank : wide, joined = first + cached;
    for (long n = 0; n < p->tokens; n++) normalise(x + n * s->width, s->width, s->root, NULL, m->normed + n * s->width);
    multiply(p, m, m->normed, s->width, s->width, b->inputs, m->inputs, joined, joined, 0);
    for (long n = 0; n < p->tokens; n++) {
        float *query = m->inputs + n * joined, *latent = query + first;
        float *cache = (float *)b->pages + p->entries[n] * cached;
        normalise(latent, s->rank, s->latent_root, b->latent_gain, cache);
        memcpy(cache + s->rank, latent + s->rank, s->rope * sizeof(float));
        rotate(cache + s->rank, s->rope / 2, p->turns + p->positions[n] * s->rope);
        if (s->query_rank) normalise(query, first, s->query_root, NULL, query);
    }
    float *q = m->inputs;
    long apart = joined;
    if (s->query_rank) {
        multiply(p, m, q, joined, s->query_rank, b->queries, m->queries, wide, wide, 0);
        q = m->queries;
        apart = wide;
    }
    if (b->w_uk)
        multiply_heads(s, p, m, q, apart, per_head, s->nope, b->w_uk, m->absorbed, s->rank, s->heads * cached, cached);
    for (long n = 0; n < p->tokens; n++)
        for (long h = 0; h < s->heads; h++) {
            float *to = m->absorbed + (n * s->heads + h) * cached, *from = q + n * apart + h * per_head;
            if (!b->w_uk) memcpy(to, from, s->rank * sizeof(float));
            memcpy(to + s->rank, from + per_head - s->rope, s->rope * sizeof(float));
            rotate(to + s->rank, s->rope / 2, p->turns + p->positions[n] * s->rope);
        }
    return m->absorbed;
}

static int add_attention(const Shape *s, const Block *b, const Pass *p, Room *m, float *x) {
    const float *q = read_inputs(s, b, p, m, x);
    long cached = s->rank + s->rope, wide = s->heads * s->rank;
    int failed = 0;
#pragma omp parallel for num_threads(p->threads) if (p->threads > 1 && p->tokens > 1)
    for (long n = 0; n < p->tokens; n++) {
        Past past = {b->pages, p->table + n / p->time * p->columns, p->page_size, cached};
        long seen = least(p->positions[n] + 1, p->length);
        float *scores = malloc(s->heads * seen * sizeof(float));
        if (!scores) {
            failed = 1;
            continue;
        }
        attend(&past, seen, q + n * s->heads * cached, s->heads, s->rank, s->scale, scores, m->context + n * wide);
        free(scores);
    }
    float *out = m->context;
    if (b->w_uv) {
        wide = s->heads * s->value;
        multiply_heads(s, p, m, m->context, s->heads * s->rank, s->rank, s->rank, b->w_uv, m->values, s->value, wide,
                       s->value);
        out = m->values;
    }
    multiply(p, m, out, wide, wide, b->out, x, s->width, s->width, 1);
    return failed;
}

/* Routed and shared experts: each reads its tokens together. */
static void add_experts(const Shape *s, const Block *b, const Pass *p, Room *m, float *x, int64_t *experts) {
    const Routing *r = &s->routing;
    long all = r->experts + r->shared, each = r->chosen + r->shared;
    multiply(p, m, m->normed, s->width, s->width, b->router, m->logits, r->experts, r->experts, 0);
    for (long n = 0; n < p->tokens; n++)
        route(m->logits + n * r->experts, b->bias, r, m->hidden, experts + n * each, m->weights + n * each);
    for (long e = 0; e < all; e++) {
        long rows = 0;
        for (long i = 0; i < p->tokens * each; i++)
            if (experts[i] == e) {
                m->from[rows] = m->normed + i / each * s->width;
                m->to[rows] = x + i / each * s->width;
                m->expert_weights[rows++] = m->weights[i];
            }
        if (rows)
            add_swiglu(rows, m->from, s->width, b->inner, b->gate_up + e * panel_floats(s->width, 2 * b->inner),
                       b->down + e * panel_floats(b->inner, s->width), m->expert_weights, m->to, m->hidden, m->lines,
                       p->threads);
    }
}

static void add_feed_forward(const Shape *s, const Block *b, const Pass *p, Room *m, float *x, int64_t **experts) {
    for (long n = 0; n < p->tokens; n++) normalise(x + n * s->width, s->width, s->root, NULL, m->normed + n * s->width);
    if (b->router) {
        add_experts(s, b, p, m, x, *experts);
        *experts += p->tokens * (s->routing.chosen + s->routing.shared);
        return;
    }
    point((float **)m->from, m->normed, p->tokens, s->width);
    point(m->to, x, p->tokens, s->width);
    add_swiglu(p->tokens, m->from, s->width, b->inner, b->gate_up, b->down, NULL, m->to, m->hidden, m->lines,
               p->threads);
}

/* Room for every vector between two products, in one piece; NULL where memory is out. */
static void *make_room(const Shape *s, const Block *blocks, long count, long tokens, Room *m) {
    const Routing *r = &s->routing;
    long cached = s->rank + s->rope, each = r->chosen + r->shared, inner = 0;
    long query = s->heads * ((s->nope > s->rank ? s->nope : s->rank) + s->rope);
    for (long i = 0; i < count; i++) inner = blocks[i].inner > inner ? blocks[i].inner : inner;
    long hidden = 2 * tokens * inner, spare = 2 * (r->experts + r->groups); /* of route(), before hidden is needed */
    struct { float **place; long floats; } parts[] = {
        {&m->normed, tokens * s->width},
        {&m->inputs, tokens * ((s->query_rank ? s->query_rank : query) + cached)},
        {&m->queries, s->query_rank ? tokens * query : 0},
        {&m->absorbed, tokens * s->heads * cached},
        {&m->context, tokens * s->heads * s->rank},
        {&m->values, tokens * s->heads * s->value},
        {&m->logits, tokens * r->experts},
        {&m->weights, tokens * each},
        {&m->hidden, hidden > spare ? hidden : spare},
        {&m->expert_weights, tokens},
    };
    size_t floats = 0, parts_count = sizeof parts / sizeof *parts;
    for (size_t i = 0; i < parts_count; i++) floats += (parts[i].floats + LANES - 1) / LANES * LANES;
    char *room = malloc(3 * tokens * sizeof(float *) + floats * sizeof(float));
    if (!room) return NULL;
    m->to = (float **)room;
    m->lines = m->to + tokens;
    m->from = (const float **)(m->lines + tokens);
    float *next = (float *)(m->from + tokens);
    for (size_t i = 0; i < parts_count; i++) {
        *parts[i].place = next;
        next += (parts[i].floats + LANES - 1) / LANES * LANES;
    }
    return room;
}

/* x (tokens, width) through `count` blocks, in place; 1 where memory is out. */
int run_blocks(const Shape *s, const Block *blocks, int64_t count, const Pass *p, float *x) {
    Room m;
    void *room = make_room(s, blocks, count, p->tokens, &m);
    int64_t *experts = p->experts;
    int failed = !room;
    for (long i = 0; i < count && !failed; i++) {
        failed = add_attention(s, &blocks[i], p, &m, x);
        add_feed_forward(s, &blocks[i], p, &m, x, &experts);
    }
    free(room);
    return failed;
}

/* y (rows, width) = norms of x; without gain where it is NULL. Rows of y are `stride` floats apart. */
void run_norm(const float *x, int64_t rows, int64_t width, float root, const float *gain, float *y, int64_t stride) {
    for (long r = 0; r < rows; r++) normalise(x + r * width, width, root, gain, y + r * stride);
}

/* y (rows, outputs) = x (rows, inputs) @ panels; 1 where memory is out. */
int run_product(const float *x, int64_t rows, int64_t inputs, const float *panels, int64_t outputs, float *y,
                int64_t threads) {
    float **lines = malloc(2 * rows * sizeof(float *));
    if (!lines) return 1;
    point(lines, (float *)x, rows, inputs);
    point(lines + rows, y, rows, outputs);
    product(rows, (const float *const *)lines, inputs, panels, outputs, lines + rows, 0, threads);
    free(lines);
    return 0;
}
