/* Attention over the paged cache, in float32, with what comes before it: positions turn queries and keys, and the rows'
   keys and values go into their slots.

   A job is the queries that share a key head, in a few rows of one chunk, over a range of tokens. A stream's tokens
   are split into ranges of a fixed length, whose results are put together in order: what a row gets depends neither on
   the rows beside it nor on the number of threads. */
#include "paged_attention.h"

#include <math.h>
#include <string.h>

#include "vector.h"

#define TILE 64 /* tokens whose scores are computed at once */
#define MAX_HEAD_DIM 256
#define TOGETHER 4 /* queries, and vectors, whose sums are held in registers */

typedef struct {
    float queries[MAX_QUERIES * MAX_HEAD_DIM]; /* times what makes a score an exponent of 2 */
    float mixed[MAX_QUERIES * MAX_HEAD_DIM];   /* values, by their weights so far */
    float keys[MAX_HEAD_DIM * TILE];           /* transposed: [head_dim, TILE] */
    float scores[MAX_QUERIES * TILE];
    float greatest[MAX_QUERIES], total[MAX_QUERIES]; /* score, and sum of weights, so far */
    int64_t num_seen[MAX_QUERIES];                   /* tokens of the sequence that a query sees */
    const float *tokens[2][TILE];                    /* the keys of this tile's tokens and of the next one's */
} Scratch;

INLINE int64_t row_size(const Step *step) { return (step->num_heads + 2 * step->num_kv_heads) * step->head_dim; }

/* A head turned by its row's angles, times `scale`. */
INLINE void turn(const float *from, const float *rotation, int64_t half, float scale, float *to) {
    for (int64_t d = 0; d < half; d += LANES) {
        const int64_t rest = half - d;
        const vec cosine = load_part(rotation + d, rest), sine = load_part(rotation + half + d, rest);
        const vec first = load_part(from + d, rest), second = load_part(from + half + d, rest);
        store_part(to + d, rest, (first * cosine - second * sine) * all(scale));
        store_part(to + half + d, rest, (second * cosine + first * sine) * all(scale));
    }
}

/* One head's keys and values of a row into the cache. */
static void write_head(const Step *step, const float *projected, float *layer, int64_t row, int64_t head) {
    const int64_t dim = step->head_dim, side = step->num_kv_heads * dim;
    const float *key = projected + row * row_size(step) + (step->num_heads + head) * dim;
    float *to = layer + step->slots[row] * 2 * side + head * dim;
    turn(key, step->rotation + row * dim, dim / 2, 1.0f, to);
    memcpy(to + side, key + side, (size_t)dim * sizeof(float));
}

/* Where the keys of tokens [first, first + TILE) are, on their way to the processor from now on. The last one again in
   the place of those that there are not. */
static void find_tokens(const Step *step, const Job *job, const float *layer, int64_t first, const float **tokens) {
    const int64_t size = step->block_size, side = step->num_kv_heads * step->head_dim;
    for (int64_t i = 0; i < TILE; i++) {
        const int64_t token = least(first + i, job->last - 1), block = step->blocks[job->table + token / size];
        tokens[i] = layer + (block * size + token % size) * 2 * side + job->head * step->head_dim;
        for (int64_t d = 0; d < step->head_dim; d += LANES) {
            __builtin_prefetch(tokens[i] + d, 0, 2);
            __builtin_prefetch(tokens[i] + side + d, 0, 2);
        }
    }
}

static void take_keys(Scratch *s, const float *const *tokens, int64_t dim) {
    for (int64_t token = 0; token < TILE; token += LANES)
        for (int64_t d = 0; d < dim; d += LANES) {
            vec rows[LANES];
            for (int i = 0; i < LANES; i++) rows[i] = load(tokens[token + i] + d);
            transpose(rows);
            for (int i = 0; i < LANES; i++) store(s->keys + (d + i) * TILE + token, rows[i]);
        }
}

/* Scores of `num` queries with a tile's tokens. */
INLINE void score(Scratch *s, int64_t first, int64_t dim, const int num) {
    vec sums[TOGETHER][TILE / LANES];
    for (int i = 0; i < num; i++)
        for (int j = 0; j < TILE / LANES; j++) sums[i][j] = all(0.0f);
    for (int64_t d = 0; d < dim; d++) {
        vec keys[TILE / LANES];
        for (int j = 0; j < TILE / LANES; j++) keys[j] = held(load(s->keys + d * TILE + j * LANES));
        for (int i = 0; i < num; i++) {
            const vec query = held(all(s->queries[(first + i) * dim + d]));
            for (int j = 0; j < TILE / LANES; j++) sums[i][j] += query * keys[j];
        }
    }
    for (int i = 0; i < num; i++)
        for (int j = 0; j < TILE / LANES; j++) store(s->scores + (first + i) * TILE + j * LANES, sums[i][j]);
}

/* Scores become weights relative to the greatest so far, to which what is mixed already is brought down. */
static void weigh(Scratch *s, int64_t query, int64_t num_seen, int64_t dim) {
    float *scores = s->scores + query * TILE, *mixed = s->mixed + query * dim;
    const float before = s->greatest[query];
    vec greatest = all(before), sum = all(0.0f);
    for (int64_t i = num_seen; i < TILE; i++) scores[i] = -INFINITY;
    for (int i = 0; i < TILE; i += LANES) greatest = larger(load(scores + i), greatest);
    const float now = _mm512_reduce_max_ps(greatest), shrink = exp2_of(all(before - now))[0];
    for (int i = 0; i < TILE; i += LANES) {
        const vec weights = exp2_of(load(scores + i) - all(now));
        store(scores + i, weights);
        sum += weights;
    }
    for (int64_t d = 0; shrink != 1.0f && d < dim; d += LANES) store(mixed + d, load(mixed + d) * all(shrink));
    s->total[query] = s->total[query] * shrink + _mm512_reduce_add_ps(sum);
    s->greatest[query] = now;
}

/* Adds the weighted values of `num_tokens` tokens to `vectors` vectors of `num` queries; `column` is the first one's
   place in a head, `offset` from a token's key. */
INLINE void mix(Scratch *s, const float *const *tokens, int64_t offset, int64_t num_tokens, int64_t first, int64_t dim,
                int64_t column, const int num, const int vectors) {
    float *mixed = s->mixed + first * dim + column;
    vec sums[TOGETHER][TOGETHER];
    for (int i = 0; i < num; i++)
        for (int j = 0; j < vectors; j++) sums[i][j] = load(mixed + i * dim + j * LANES);
    for (int64_t token = 0; token < num_tokens; token++) {
        vec values[TOGETHER];
        for (int j = 0; j < vectors; j++) values[j] = held(load(tokens[token] + offset + j * LANES));
        for (int i = 0; i < num; i++) {
            const vec weight = held(all(s->scores[(first + i) * TILE + token]));
            for (int j = 0; j < vectors; j++) sums[i][j] += weight * values[j];
        }
    }
    for (int i = 0; i < num; i++)
        for (int j = 0; j < vectors; j++) store(mixed + i * dim + j * LANES, sums[i][j]);
}

INLINE void mix_all(Scratch *s, const float *const *tokens, int64_t side, int64_t num_tokens, int64_t first,
                    int64_t dim, const int num) {
    int64_t d = 0;
    for (; d + TOGETHER * LANES <= dim; d += TOGETHER * LANES)
        mix(s, tokens, side + d, num_tokens, first, dim, d, num, TOGETHER);
    for (; d < dim; d += LANES) mix(s, tokens, side + d, num_tokens, first, dim, d, num, 1);
}

/* Each of these, for queries [first, last), by as many at once as registers hold. */
#define BY_FEW(work)                              \
    for (; last - first >= 4; first += 4) work(4); \
    if (last - first == 3) work(3);               \
    if (last - first == 2) work(2);               \
    if (last - first == 1) work(1);

static void score_all(Scratch *s, int64_t first, int64_t last, int64_t dim) {
#define SCORE(num) score(s, first, dim, num)
    BY_FEW(SCORE)
}

static void mix_values(Scratch *s, const float *const *tokens, int64_t side, int64_t num_tokens, int64_t first,
                       int64_t last, int64_t dim) {
#define MIX(num) mix_all(s, tokens, side, num_tokens, first, dim, num)
    BY_FEW(MIX)
}

static void take_queries(Scratch *s, const Step *step, const Job *job, const float *projected) {
    const int64_t dim = step->head_dim, group = group_of(step);
    const float scale = (float)(1.4426950408889634 / sqrt((double)dim));
    for (int64_t i = 0; i < job->num_rows * group; i++) {
        const int64_t row = job->row + i / group, head = job->head * group + i % group;
        turn(projected + row * row_size(step) + head * dim, step->rotation + row * dim, dim / 2, scale,
             s->queries + i * dim);
        s->greatest[i] = -INFINITY;
        s->total[i] = 0;
        s->num_seen[i] = job->last - job->num_rows + 1 + i / group;
    }
    memset(s->mixed, 0, (size_t)(job->num_rows * group * dim) * sizeof(float));
}

static void give(const float *mixed, float total, float *out, int64_t dim) {
    for (int64_t d = 0; d < dim; d += LANES) store(out + d, load(mixed + d) / all(total));
}

static void give_results(const Scratch *s, const Step *step, const Job *job, float *out) {
    const int64_t dim = step->head_dim, group = group_of(step);
    for (int64_t i = 0; i < job->num_rows * group; i++) {
        const float *mixed = s->mixed + i * dim;
        if (job->partial < 0) {
            const int64_t head = (job->row + i / group) * step->num_heads + job->head * group + i % group;
            give(mixed, s->total[i], out + head * dim, dim);
            continue;
        }
        float *partial = step->partials + (job->partial * group + i) * (dim + 2);
        memcpy(partial, mixed, (size_t)dim * sizeof(float));
        partial[dim] = s->greatest[i];
        partial[dim + 1] = s->total[i];
    }
}

static void run_job(const Step *step, const Job *job, const float *projected, float *layer, float *out) {
    const int64_t dim = step->head_dim, side = step->num_kv_heads * dim, num = job->num_rows * group_of(step);
    Scratch s;
    int64_t first_query = 0;
    find_tokens(step, job, layer, job->first, s.tokens[0]);
    take_queries(&s, step, job, projected);
    for (int64_t first = job->first, turn = 0; first < job->last; first += TILE, turn = 1 - turn) {
        const float *const *tokens = s.tokens[turn];
        while (s.num_seen[first_query] <= first) first_query++; /* these rows are before all of the tile's tokens */
        take_keys(&s, tokens, dim);
        if (first + TILE < job->last) find_tokens(step, job, layer, first + TILE, s.tokens[1 - turn]);
        score_all(&s, first_query, num, dim);
        for (int64_t i = first_query; i < num; i++) weigh(&s, i, least(s.num_seen[i] - first, TILE), dim);
        mix_values(&s, tokens, side, least(job->last - first, TILE), first_query, num, dim);
    }
    give_results(&s, step, job, out);
}

/* A stream's ranges put together, in their order. */
static void merge(const Step *step, const Merge *merge, float *out) {
    const int64_t dim = step->head_dim, group = group_of(step), size = dim + 2;
    for (int64_t query = 0; query < group; query++) {
        const float *partials = step->partials + (merge->partial * group + query) * size;
        float *mixed = out + (merge->row * step->num_heads + merge->head * group + query) * dim;
        float greatest = partials[dim], total = 0;
        for (int64_t i = 1; i < merge->num_partials; i++) greatest = fmaxf(greatest, partials[i * group * size + dim]);
        memset(mixed, 0, (size_t)dim * sizeof(float));
        for (int64_t i = 0; i < merge->num_partials; i++) {
            const float *partial = partials + i * group * size;
            const vec share = exp2_of(all(partial[dim] - greatest));
            total += partial[dim + 1] * share[0];
            for (int64_t d = 0; d < dim; d += LANES) store(mixed + d, load(mixed + d) + load(partial + d) * share);
        }
        give(mixed, total, mixed, dim);
    }
}

/* Rows `projected` [num_rows, heads + 2 * kv_heads, head_dim], whose keys and values are written into a layer [blocks,
   block_size, 2, kv_heads, head_dim] first; `out` [num_rows, heads, head_dim]. */
void attend_to_pages(const Step *step, const float *projected, float *layer, float *out, int num_threads) {
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < step->num_rows * step->num_kv_heads; i++)
            write_head(step, projected, layer, i / step->num_kv_heads, i % step->num_kv_heads);
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < step->num_jobs; i++) run_job(step, step->jobs + i, projected, layer, out);
        if (step->num_merges) { /* else nobody waits for anybody but at the end */
#pragma omp barrier
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < step->num_merges; i++) merge(step, step->merges + i, out);
        }
    }
}
