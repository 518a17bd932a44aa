/* Attention of every row of a slice to every other, without ever holding all scores.

   A lane is a query: keys and values are read where they stand, one number for all lanes, and maxima and sums over keys
   are those of whole vectors. Only queries are transposed on their way in, and results on their way out. Scores are of
   so few queries and keys at a time that they stay in the processor's first cache, beside the maximum so far, which the
   sums so far are brought down to when it grows.

   All of it is said of words of 32 bits: a float, or a pair of bf16, whose two products go into one sum of float32. */
#include <float.h>
#include <string.h>

#include "vector.h"

#define MAX_HEAD_DIM 256
#define MAX_VECTORS 4   /* queries at a time are as many vectors */
#define KEY_BLOCK 96    /* scores of 64 queries: 24 KiB */
#define MAX_KEYS 12     /* keys at a time: each has a sum in a register with each vector */
#define UNROLLED _Pragma("GCC unroll 32") /* whole, or sums are no registers */

typedef struct {
    float query[MAX_HEAD_DIM * MAX_VECTORS * LANES]; /* transposed, as the others: [head_dim or keys, queries] */
    float scores[(KEY_BLOCK + MAX_KEYS) * MAX_VECTORS * LANES];
    float mixed[MAX_HEAD_DIM * MAX_VECTORS * LANES];
    vec largest[MAX_VECTORS], sum[MAX_VECTORS];
} State;

/* A head of a slice. Pairs are of neighbours in a query's or key's row, but of two keys' values in one column. */
typedef struct {
    const float *query, *key; /* [num, words] */
    const float *value;       /* [num, dim] words, or half as many rows of pairs */
    float *out;               /* [num, dim], rows `stride` apart */
    int64_t num, dim, words, stride;
    float scale;
} Head;

INLINE int keys_at_once(const int vectors) { return vectors <= 2 ? 12 : vectors == 3 ? 8 : 6; }

INLINE vec add_product(vec sum, vec left, vec right, const int paired) {
#ifdef __AVX512BF16__
    if (paired) return _mm512_dpbf16_ps(sum, (__m512bh)left, (__m512bh)right);
#endif
    (void)paired;
    return sum + left * right;
}

/* Scores of some keys: the last key's again where there are no more, which no maximum minds. */
INLINE void score(State *state, const float *key, int64_t words, int first, int num_keys, vec *largest,
                  const int vectors, const int paired) {
    const int width = vectors * LANES, num = keys_at_once(vectors);
    const float *keys[MAX_KEYS];
    vec sums[MAX_KEYS * MAX_VECTORS];
    UNROLLED for (int k = 0; k < num; k++) keys[k] = key + (first + k < num_keys ? first + k : num_keys - 1) * words;
    UNROLLED for (int i = 0; i < num * vectors; i++) sums[i] = all(0.0f);
    for (int64_t d = 0; d < words; d++) {
        vec queries[MAX_VECTORS];
        UNROLLED for (int v = 0; v < vectors; v++) queries[v] = held(load(state->query + d * width + v * LANES));
        _mm_prefetch((const char *)(keys[0] + num * words + d * num), _MM_HINT_T0); /* of the next keys */
        UNROLLED for (int k = 0; k < num; k++) {
            const vec one = held(all(keys[k][d]));
            UNROLLED for (int v = 0; v < vectors; v++)
                sums[k * vectors + v] = add_product(sums[k * vectors + v], queries[v], one, paired);
        }
    }
    UNROLLED for (int i = 0; i < num * vectors; i++) {
        largest[i % vectors] = larger(sums[i], largest[i % vectors]);
        store(state->scores + first * width + i * LANES, sums[i]);
    }
}

/* Scores become weights, in place; `shrink` is what the sums so far are to be multiplied with, now that the maximum is
   `largest`. */
INLINE void weigh(State *state, const vec *largest, vec scale, int num_keys, vec *shrink, const int vectors,
                  const int paired) {
    vec sum[MAX_VECTORS], least[MAX_VECTORS];
    UNROLLED for (int v = 0; v < vectors; v++) {
        least[v] = largest[v] * scale;
        shrink[v] = exp2_of(state->largest[v] * scale - least[v]);
        state->largest[v] = largest[v];
        sum[v] = state->sum[v] * shrink[v];
    }
    for (int k = 0; k < num_keys; k += 1 + paired) {
        UNROLLED for (int v = 0; v < vectors; v++) {
            const float *at = state->scores + (k * vectors + v) * LANES;
            vec weight = exp2_of(load(at) * scale - least[v]);
            sum[v] += weight;
            if (paired) {
                const vec next = exp2_of(load(at + vectors * LANES) * scale - least[v]);
                sum[v] += next;
                weight = pair(weight, next);
            }
            store(state->scores + ((k >> paired) * vectors + v) * LANES, weight);
        }
    }
    UNROLLED for (int v = 0; v < vectors; v++) state->sum[v] = sum[v];
}

/* Adds the weighted values of keys, or of `num_keys` pairs, to `num` columns of what is mixed. */
INLINE void mix(State *state, const float *value, int64_t dim, int64_t column, int num_keys, const vec *shrink,
                const int vectors, const int paired, const int num) {
    const int width = vectors * LANES;
    float *mixed = state->mixed + column * width;
    vec sums[5 * MAX_VECTORS];
    UNROLLED for (int i = 0; i < num * vectors; i++) sums[i] = load(mixed + i * LANES) * shrink[i % vectors];
    for (int k = 0; k < num_keys; k++) {
        vec weights[MAX_VECTORS];
        UNROLLED for (int v = 0; v < vectors; v++) weights[v] = held(load(state->scores + k * width + v * LANES));
        UNROLLED for (int d = 0; d < num; d++) {
            const vec one = held(all(value[k * dim + column + d]));
            UNROLLED for (int v = 0; v < vectors; v++)
                sums[d * vectors + v] = add_product(sums[d * vectors + v], weights[v], one, paired);
        }
    }
    UNROLLED for (int i = 0; i < num * vectors; i++) store(mixed + i * LANES, sums[i]);
}

INLINE void add_block(State *state, const Head *head, int64_t first, const int vectors, const int paired) {
    const int num_keys = head->num - first < KEY_BLOCK ? head->num - first : KEY_BLOCK, num_rows = num_keys >> paired;
    const float *key = head->key + first * head->words, *value = head->value + (first >> paired) * head->dim;
    const int64_t dim = head->dim;
    vec largest[MAX_VECTORS], shrink[MAX_VECTORS];
    UNROLLED for (int v = 0; v < vectors; v++) largest[v] = state->largest[v];
    for (int k = 0; k < num_keys; k += keys_at_once(vectors))
        score(state, key, head->words, k, num_keys, largest, vectors, paired);
    weigh(state, largest, all(head->scale), num_keys, shrink, vectors, paired);
    int64_t d = 0;
    for (; dim % 5 == 0 && d < dim; d += 5) mix(state, value, dim, d, num_rows, shrink, vectors, paired, 5);
    for (; d + 4 <= dim; d += 4) mix(state, value, dim, d, num_rows, shrink, vectors, paired, 4);
    for (; d < dim; d++) mix(state, value, dim, d, num_rows, shrink, vectors, paired, 1);
}

/* Queries [num, words] to columns; zeros in the place of rows that there are not. */
INLINE void take_queries(State *state, const Head *head, int64_t first, int64_t num, const int vectors) {
    const int width = vectors * LANES;
    for (int64_t d = 0; d < head->words; d += LANES)
        for (int v = 0; v < vectors; v++) {
            const float *query = head->query + (first + v * LANES) * head->words + d;
            vec rows[LANES];
            for (int i = 0; i < LANES; i++)
                rows[i] = load_part(query + i * head->words, v * LANES + i < num ? head->words - d : 0);
            transpose(rows);
            for (int i = 0; i < LANES; i++) store(state->query + (d + i) * width + v * LANES, rows[i]);
        }
}

INLINE void give_rows(const State *state, const Head *head, int64_t first, int64_t num, const int vectors) {
    const int width = vectors * LANES;
    for (int64_t d = 0; d < head->dim; d += LANES)
        for (int v = 0; v < vectors; v++) {
            const float *mixed = state->mixed + v * LANES;
            vec rows[LANES];
            for (int i = 0; i < LANES; i++)
                rows[i] = load(mixed + (d + i) * width) / state->sum[v];
            transpose(rows);
            for (int64_t row = v * LANES, i = 0; i < LANES && row + i < num; i++)
                store_part(head->out + (first + row + i) * head->stride + d, head->dim - d, rows[i]);
        }
}

INLINE void attend_rows(const Head *head, int64_t first, int64_t num, const int vectors, const int paired) {
    State state;
    take_queries(&state, head, first, num, vectors);
    memset(state.mixed, 0, (head->dim + LANES - 1) / LANES * LANES * vectors * sizeof(vec));
    for (int v = 0; v < vectors; v++) {
        state.largest[v] = all(-FLT_MAX); /* not infinity, whose difference to itself is none */
        state.sum[v] = all(0.0f);
    }
    for (int64_t k = 0; k < head->num; k += KEY_BLOCK) add_block(&state, head, k, vectors, paired);
    give_rows(&state, head, first, num, vectors);
}

/* A function of its own for each number of vectors, so that their sums are registers. */
typedef void Attend(const Head *head, int64_t first, int64_t num);
#define ATTEND(name, vectors, paired)                                                           \
    static __attribute__((noinline)) void name##vectors(const Head *head, int64_t first, int64_t num) { \
        attend_rows(head, first, num, vectors, paired);                                         \
    }
#define ATTEND_BY_VECTORS(name, paired) \
    ATTEND(name, 1, paired) ATTEND(name, 2, paired) ATTEND(name, 3, paired) ATTEND(name, 4, paired)

/* Slices of heads [3, num_heads, rows, words], by the functions for one vector to four of queries. */
static void attend_all(Attend *const by_vectors[], const float *heads, float *out, const int64_t *lengths,
                       int64_t num_slices, int64_t num_heads, int64_t dim, int64_t words, float scale,
                       int num_threads) {
    const int64_t width = MAX_VECTORS * LANES;
    int64_t num_rows = 0;
    for (int64_t slice = 0; slice < num_slices; slice++) num_rows += lengths[slice];
#pragma omp parallel num_threads(num_threads)
    for (int64_t slice = 0, start = 0; slice < num_slices; start += lengths[slice++]) {
        const int64_t num = lengths[slice], num_blocks = (num + width - 1) / width, kind = num_heads * num_rows * words;
#pragma omp for schedule(dynamic, 4) nowait
        for (int64_t item = 0; item < num_heads * num_blocks; item++) {
            const int64_t head = item / num_blocks, first = item % num_blocks * width;
            const int64_t rest = num - first < width ? num - first : width;
            const float *query = heads + (head * num_rows + start) * words;
            float *own = out + (start * num_heads + head) * dim;
            const Head part = {query, query + kind, query + 2 * kind, own, num, dim, words, num_heads * dim, scale};
            by_vectors[(rest - 1) / LANES](&part, first, rest);
        }
    }
}

ATTEND_BY_VECTORS(attend_floats_, 0)

/* heads [3, num_heads, rows, dim]: queries, keys, values; out [rows, num_heads, dim]. Slices have so many rows each as
   `lengths` says. A row's result depends on its slice alone. */
void attend_in_slices(const float *heads, float *out, const int64_t *lengths, int64_t num_slices, int64_t num_heads,
                      int64_t dim, float scale, int num_threads) {
    Attend *const by_vectors[] = {attend_floats_1, attend_floats_2, attend_floats_3, attend_floats_4};
    attend_all(by_vectors, heads, out, lengths, num_slices, num_heads, dim, dim, scale, num_threads);
}

#ifdef __AVX512BF16__
ATTEND_BY_VECTORS(attend_pairs_, 1)

/* The same of pairs, as place_pairs leaves them: `lengths` and `dim` are even. */
void attend_pairs_in_slices(const float *heads, float *out, const int64_t *lengths, int64_t num_slices,
                            int64_t num_heads, int64_t dim, float scale, int num_threads) {
    Attend *const by_vectors[] = {attend_pairs_1, attend_pairs_2, attend_pairs_3, attend_pairs_4};
    attend_all(by_vectors, heads, out, lengths, num_slices, num_heads, dim, dim / 2, scale, num_threads);
}
#endif
