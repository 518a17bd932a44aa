/* What a step of the language model does beside linear layers and attention, in float32, each in one pass. */
#include <math.h>

#include "paged_attention.h"
#include "vector.h"

#define RANGE 512           /* tokens of a stream in one job */
#define FEW_VALUES (1 << 14) /* are computed before helpers have begun */
#define BLOCK 1024          /* logits of which the greatest is looked for before its place is */

static void add_job(Step *step, Job job) {
    if (step->jobs) step->jobs[step->num_jobs] = job;
    step->num_jobs++;
}

/* A chunk's jobs for one key head: some rows at a time over all that they see. */
static void plan_prompt(Step *step, const Chunk *chunk, int64_t head) {
    const int64_t at_once = MAX_QUERIES / group_of(step), start = chunk->end - chunk->num_rows;
    for (int64_t row = 0; row < chunk->num_rows; row += at_once) {
        const int64_t num = least(at_once, chunk->num_rows - row);
        add_job(step, (Job){chunk->first_row + row, num, head, chunk->table, 0, start + row + num, -1});
    }
}

/* The jobs of one row: its tokens a range at a time. */
static void plan_stream(Step *step, const Chunk *chunk, int64_t head) {
    const int64_t num_ranges = (chunk->end + RANGE - 1) / RANGE, row = chunk->first_row;
    for (int64_t i = 0; i < num_ranges; i++) {
        const int64_t partial = num_ranges > 1 ? step->num_partials + i : -1;
        add_job(step, (Job){row, 1, head, chunk->table, i * RANGE, least(chunk->end, (i + 1) * RANGE), partial});
    }
    if (num_ranges == 1) return;
    if (step->merges) step->merges[step->num_merges] = (Merge){row, head, step->num_partials, num_ranges};
    step->num_merges++;
    step->num_partials += num_ranges;
}

/* Counts jobs, merges and partial results, and writes them down where there is room; the longest jobs come first. */
void plan_attention(Step *step) {
    step->num_jobs = step->num_merges = step->num_partials = 0;
    for (int64_t i = step->num_chunks; i-- > 0;)
        for (int64_t head = 0; head < step->num_kv_heads; head++)
            (step->chunks[i].num_rows > 1 ? plan_prompt : plan_stream)(step, step->chunks + i, head);
}

/* Cosines and sines `rotation` [num_rows, 2, half] of each row's position on the axis of each frequency; positions [3,
   num_rows], frequencies and axes [half]. */
void find_rotation(const int64_t *positions, const float *frequencies, const int64_t *axes, float *rotation,
                   int64_t num_rows, int64_t half, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_rows * half > FEW_VALUES / 16)
    for (int64_t row = 0; row < num_rows; row++)
        for (int64_t i = 0; i < half; i++) {
            const float angle = (float)positions[axes[i] * num_rows + row] * frequencies[i];
            rotation[row * 2 * half + i] = cosf(angle);
            rotation[(row * 2 + 1) * half + i] = sinf(angle);
        }
}

/* `out` is `rows` [num, dim] over the root of their mean square, by `weight` [dim]. With `added` [num, dim], that is
   added to `rows` first. */
void add_and_scale(float *rows, const float *added, const float *weight, float *out, int64_t num, int64_t dim, float eps,
                   int num_threads) {
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
            store_part(out + row * dim + d, dim - d, load_part(own + d, dim - d) / root * load_part(weight + d, dim - d));
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

/* Each row's greatest logit [num] and the first token [num] that has it; NaN counts as greater than all. */
void find_likeliest(const float *logits, int64_t *tokens, float *greatest, int64_t num, int64_t num_tokens,
                    int num_threads) {
#pragma omp parallel for num_threads(num_threads)
    for (int64_t row = 0; row < num; row++) {
        const float *own = logits + row * num_tokens;
        int64_t block = 0;
        greatest[row] = greatest_of(own, least(BLOCK, num_tokens));
        for (int64_t first = BLOCK; first < num_tokens && !isnan(greatest[row]); first += BLOCK) {
            const float found = greatest_of(own + first, least(BLOCK, num_tokens - first));
            if (found > greatest[row] || isnan(found)) {
                greatest[row] = found;
                block = first;
            }
        }
        tokens[row] = block + place_of(greatest[row], own + block);
    }
}
