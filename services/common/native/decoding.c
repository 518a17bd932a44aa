/* What a step of the language model does beside linear layers and attention, in float32, each in one pass. */
#include <math.h>

#include "vector.h"

#define FEW_VALUES (1 << 14) /* are computed before helpers have begun */
#define BLOCK 1024           /* logits of which the greatest is looked for before its place is */
#define PARTS 8              /* of a row of logits, for as many threads */

INLINE int64_t least(int64_t first, int64_t second) { return first < second ? first : second; }

/* `out` is `rows` [num, dim] over the root of their mean square, by `weight` [dim]. With `added` [num, dim], that is
   added to `rows` first. */
void add_and_scale(float *rows, const float *added, const float *weight, float *out, int64_t num, int64_t dim,
                   float eps, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num * dim > FEW_VALUES)
    for (int64_t row = 0; row < num; row++) {
        float *own = rows + row * dim;
        vec squares = all(0.0f);
        for (int64_t d = 0; d < dim; d += LANES) {
            vec values = load_part(own + d, dim - d);
            if (added) {
                values += load_part(added + row * dim + d, dim - d);
                store_part(own + d, dim - d, values);
            }
            squares += values * values;
        }
        const vec root = all(sqrtf(_mm512_reduce_add_ps(squares) / (float)dim + eps));
        for (int64_t d = 0; d < dim; d += LANES)
            store_part(out + row * dim + d, dim - d,
                       load_part(own + d, dim - d) / root * load_part(weight + d, dim - d));
    }
}

/* silu(gate) * up, of rows `both` [num, 2, dim]: gate and up; `out` [num, dim]. */
void gate(const float *both, float *out, int64_t num, int64_t dim, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num * dim > FEW_VALUES)
    for (int64_t row = 0; row < num; row++)
        for (int64_t d = 0; d < dim; d += LANES) {
            const vec gate = load_part(both + 2 * row * dim + d, dim - d);
            const vec up = load_part(both + (2 * row + 1) * dim + d, dim - d);
            const vec weight = all(1.0f) + exp2_of(gate * all(-1.44269504f));
            store_part(out + row * dim + d, dim - d, gate / weight * up);
        }
}

/* The greatest of `num` values, or NaN if there is one. */
static float greatest_of(const float *values, int64_t num) {
    vec greatest = all(-INFINITY);
    __mmask16 are_nan = 0;
    for (int64_t i = 0; i < num; i += LANES) {
        const __mmask16 lanes = first_lanes(num - i);
        const vec some = _mm512_mask_loadu_ps(all(-INFINITY), lanes, values + i);
        are_nan |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
        greatest = larger(some, greatest);
    }
    return are_nan ? NAN : _mm512_reduce_max_ps(greatest);
}

static int64_t place_of(float wanted, const float *values) {
    int64_t place = 0;
    while (!(values[place] == wanted || (isnan(wanted) && isnan(values[place])))) place++;
    return place;
}

typedef struct {
    float greatest;
    int64_t block; /* where the block begins that has it first */
} Found;

/* Whether `value` goes before what was found so far; NaN is the greatest, and the first of equals stays. */
INLINE int is_better(float value, float found) { return value > found || (isnan(value) && !isnan(found)); }

static Found look_through(const float *logits, int64_t first, int64_t last) {
    Found found = {-INFINITY, first};
    for (int64_t block = first; block < last; block += BLOCK) {
        const float greatest = greatest_of(logits + block, least(BLOCK, last - block));
        if (is_better(greatest, found.greatest)) found = (Found){greatest, block};
    }
    return found;
}

/* Each row's greatest logit [num] and the first token [num] that has it; NaN counts as greater than all. The logits of
   `forbidden` tokens become -infinity before. */
void find_likeliest(float *logits, const int64_t *forbidden, int64_t num_forbidden, int64_t *tokens, float *greatest,
                    int64_t num, int64_t num_tokens, int num_threads) {
    const int64_t size = (num_tokens + PARTS - 1) / PARTS;
    Found parts[num * PARTS + 1];
    for (int64_t row = 0; row < num; row++)
        for (int64_t i = 0; i < num_forbidden; i++)
            if (forbidden[i] < num_tokens) logits[row * num_tokens + forbidden[i]] = -INFINITY;
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp for
        for (int64_t i = 0; i < num * PARTS; i++) {
            const int64_t first = i % PARTS * size;
            parts[i] = look_through(logits + i / PARTS * num_tokens, least(first, num_tokens),
                                    least(first + size, num_tokens));
        }
#pragma omp for
        for (int64_t row = 0; row < num; row++) {
            Found best = parts[row * PARTS];
            for (int64_t i = 1; i < PARTS; i++)
                if (is_better(parts[row * PARTS + i].greatest, best.greatest)) best = parts[row * PARTS + i];
            greatest[row] = best.greatest;
            tokens[row] = best.block + place_of(best.greatest, logits + row * num_tokens + best.block);
        }
    }
}
