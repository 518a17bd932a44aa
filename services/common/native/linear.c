/* Linear layers: rows in fp32 by weights of 16 bits, or in whole numbers by weights of 8 bits.

   All rows of a decoder's step take a part of a weight while it is in the first-level cache, and the next part is
   fetched from memory meanwhile. A result depends neither on the rows beside it nor on the number of threads: every sum
   goes over the same chunks of inputs in the same order. */
#include <omp.h>
#include <string.h>

#include "linear_tiles.h"

enum {
    CHUNK_STEPS = 128,         /* 16 KiB of a panel: in the first-level cache, beside the rows */
    BLOCK_ROWS = 4 * MAX_TILE, /* a weight is read again for each block: by then products take much longer */
    READY_ROWS = 10 * BLOCK_ROWS, /* between two barriers: each costs a time slice where threads share a core */
    FEW_BYTES = 256 << 10,        /* of rows that a thread copies in a hundredth of the time for a weight */
    ROW_LEVELS = 127,
    ROW_ZERO = 128, /* makes levels of rows unsigned */
};
static const float SMALLEST = 1e-12f; /* a row of zeros has no scale of its own */
static const float LOG2_E = 1.44269504f;

/* As native_linear.py has it. Vectors are in the order of the panels' columns; what is padding there is zero. */
typedef struct {
    const __m512i *weight;
    const vec *bias;      /* or NULL */
    const vec *scales;    /* int8: of each column */
    const __m512i *zeros; /* int8: what ROW_ZERO adds to each column's sum */
    int64_t num_inputs, num_columns;
    int32_t kind;
    int32_t is_gated; /* outputs are those of the first half of the columns times the others; a panel has both */
    float steepness;  /* of the activation x * sigmoid(steepness * x), of the first half where gated; 0 for none */
} Linear;

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int64_t run_inputs(const Linear *layer) { return RUN_STEPS * (layer->kind == INT8 ? 4 : 2); }
static int64_t num_runs(const Linear *layer) { return divided_up(layer->num_inputs, run_inputs(layer)); }
static int64_t num_steps(const Linear *layer) { return num_runs(layer) * RUN_STEPS; }
static int64_t row_step_bytes(const Linear *layer) { return layer->kind == INT8 ? 4 : 8; }
static int64_t row_bytes(const Linear *layer) { return num_steps(layer) * row_step_bytes(layer); }
static int64_t num_outputs(const Linear *layer) { return layer->num_columns >> layer->is_gated; }
static int64_t panel_outputs(const Linear *layer) { return (2 * LANES) >> layer->is_gated; }
static int64_t num_panels(const Linear *layer) { return divided_up(num_outputs(layer), panel_outputs(layer)); }

/* Columns of all panels, padding included. */
int64_t linear_padded_columns(const Linear *layer) { return num_panels(layer) * 2 * LANES; }

int64_t linear_weight_bytes(const Linear *layer) { return linear_padded_columns(layer) * num_steps(layer) * 4; }

/* What `linear_run` needs of memory for a number of rows. */
int64_t linear_scratch_bytes(const Linear *layer, int64_t num_rows) {
    return min(num_rows, READY_ROWS) * (row_bytes(layer) + (int64_t)sizeof(float));
}

int32_t linear_has_int8(void) {
#ifdef __AVX512VNNI__
    return 1;
#else
    return 0;
#endif
}

/* The weight's column at a place of the panels; -1 for padding. */
static int64_t column_at(const Linear *layer, int64_t place) {
    if (!layer->is_gated) return place < layer->num_columns ? place : -1;
    const int64_t output = place / (2 * LANES) * LANES + place % LANES;
    return output < num_outputs(layer) ? output + place / LANES % 2 * num_outputs(layer) : -1;
}

/* `from` [num_columns, num_inputs], of 16 or 8 bits, to panels. */
void linear_pack(const Linear *layer, const char *from, char *to, int32_t num_threads) {
    const int64_t size = layer->kind == INT8 ? 1 : 2, in_word = 4 / size, steps = num_steps(layer);
#pragma omp parallel for num_threads(num_threads)
    for (int64_t place = 0; place < linear_padded_columns(layer); place++) {
        const int64_t column = column_at(layer, place), lane = place % LANES;
        char *vector = to + (place / (2 * LANES) * steps * 2 + place / LANES % 2) * (int64_t)sizeof(__m512i);
        for (int64_t input = 0; input < steps * in_word; input++) {
            const int64_t nth = input % in_word, at = layer->kind == FP16 ? nth * LANES + lane : lane * in_word + nth;
            char *weight = vector + input / in_word * 2 * (int64_t)sizeof(__m512i) + at * size;
            if (column < 0 || input >= layer->num_inputs) memset(weight, 0, (size_t)size);
            else memcpy(weight, from + (column * layer->num_inputs + input) * size, (size_t)size);
        }
    }
}

/* Of a weight [num_columns, num_inputs] in int8: what ROW_ZERO adds to each column's sum. */
void linear_zeros(const Linear *layer, const int8_t *weight, int32_t *zeros) {
    for (int64_t column = 0; column < layer->num_columns; column++) {
        zeros[column] = 0;
        for (int64_t input = 0; input < layer->num_inputs; input++)
            zeros[column] += ROW_ZERO * weight[column * layer->num_inputs + input];
    }
}

/* `from` [num_columns], of 32 bits, to the order of the panels. */
void linear_pack_vector(const Linear *layer, const int32_t *from, int32_t *to) {
    for (int64_t place = 0; place < linear_padded_columns(layer); place++) {
        const int64_t column = column_at(layer, place);
        to[place] = column < 0 ? 0 : from[column];
    }
}

/* This thread's part of `all`. */
static void share(int64_t all, int64_t *first, int64_t *last) {
    const int64_t thread = omp_get_thread_num(), num_threads = omp_get_num_threads();
    *first = all * thread / num_threads;
    *last = all * (thread + 1) / num_threads;
}

/* A vector's inputs of a row, zeros beyond its end. */
INLINE vec inputs_at(const float *row, int64_t num_inputs, int64_t input) {
    return input < num_inputs ? load_part(row + input, num_inputs - input) : all(0.0f);
}

/* A row's largest value over the number of levels; NaN where one is not finite. */
static float scale_of(const float *row, int64_t num_inputs) {
    vec largest = all(SMALLEST), wrong = all(0.0f);
    for (int64_t input = 0; input < num_inputs; input += LANES) {
        const vec values = inputs_at(row, num_inputs, input);
        largest = larger(largest, _mm512_abs_ps(values));
        wrong += values * all(0.0f);
    }
    return _mm512_reduce_max_ps(largest) / ROW_LEVELS + _mm512_reduce_add_ps(wrong);
}

/* 16 values as levels. */
INLINE __m128i levels_of(vec values, float scale) {
    const __m512i levels = _mm512_cvtps_epi32(values / all(scale));
    return _mm512_cvtepi32_epi8(_mm512_add_epi32(levels, _mm512_set1_epi32(ROW_ZERO)));
}

typedef struct {
    int64_t first, size;
} Group;

/* The rows that one of a block is taken with: groups are as equal as can be, each at most a tile. */
static Group group_of(int64_t row, int64_t num_rows) {
    const int64_t num_groups = divided_up(num_rows, MAX_TILE), group = (row * num_groups + num_groups - 1) / num_rows;
    const int64_t first = num_rows * group / num_groups;
    return (Group){first, num_rows * (group + 1) / num_groups - first};
}

/* Some runs of a group of rows to what the tiles read. */
static void prepare(const Linear *layer, const float *x, int64_t num_rows, int64_t first, int64_t last, char *to,
                    float *row_scales) {
    const int64_t num_inputs = layer->num_inputs, run_bytes = RUN_STEPS * row_step_bytes(layer);
    for (int64_t row = 0; row < num_rows; row++, x += num_inputs) {
        if (layer->kind == INT8) row_scales[row] = scale_of(x, num_inputs); /* every thread, the same */
        for (int64_t run = first; run < last; run++) {
            char *at = to + (run * num_rows + row) * run_bytes;
            const int64_t input = run * run_inputs(layer);
            const vec values = inputs_at(x, num_inputs, input);
            if (layer->kind == INT8) {
                const vec more = inputs_at(x, num_inputs, input + LANES);
                _mm_storeu_si128((__m128i *)at, levels_of(values, row_scales[row]));
                _mm_storeu_si128((__m128i *)at + 1, levels_of(more, row_scales[row]));
            } else {
                store((float *)at, values);
            }
        }
    }
}

/* Where the `index`th block of some rows begins. Blocks are as equal as can be, as groups are. */
static int64_t block_start(int64_t index, int64_t num_rows) {
    return num_rows * index / divided_up(num_rows, BLOCK_ROWS);
}

/* The same runs of all rows, block by block and group by group. */
static void prepare_all(const Linear *layer, const float *x, int64_t num_rows, int64_t first, int64_t last, char *to,
                        float *row_scales) {
    for (int64_t block = 0; block < divided_up(num_rows, BLOCK_ROWS); block++) {
        const int64_t start = block_start(block, num_rows), size = block_start(block + 1, num_rows) - start;
        for (int64_t row = 0; row < size;) {
            const Group group = group_of(row, size);
            const int64_t at = start + row;
            char *of_group = to + at * row_bytes(layer);
            prepare(layer, x + at * layer->num_inputs, group.size, first, last, of_group, row_scales + at);
            row += group.size;
        }
    }
}

INLINE vec activated(vec x, float steepness) { return x / (all(1.0f) + exp2_of(x * all(-LOG2_E * steepness))); }

/* A panel's sums [row][2] to outputs. */
static void finish(const Linear *layer, int64_t panel, int64_t num_rows, const __m512i *sums, const float *row_scales,
                   float *out) {
    const int64_t width = panel_outputs(layer), num_left = min(width, num_outputs(layer) - panel * width);
    out += panel * width;
    for (int64_t row = 0; row < num_rows; row++, out += num_outputs(layer)) {
        vec values[2];
        for (int64_t vector = 0; vector < 2; vector++) {
            const int64_t place = 2 * panel + vector;
            values[vector] = _mm512_castsi512_ps(sums[2 * row + vector]);
            if (layer->kind == INT8) {
                const __m512i sum = _mm512_sub_epi32(sums[2 * row + vector], layer->zeros[place]);
                values[vector] = _mm512_cvtepi32_ps(sum) * layer->scales[place] * row_scales[row];
            }
            if (layer->bias != NULL) values[vector] += layer->bias[place];
        }
        if (layer->steepness > 0) values[0] = activated(values[0], layer->steepness);
        if (layer->is_gated) values[0] *= values[1];
        else if (layer->steepness > 0) values[1] = activated(values[1], layer->steepness);
        store_part(out, num_left, values[0]);
        if (num_left > LANES) store_part(out + LANES, num_left - LANES, values[1]);
    }
}

/* sums[row][2] += a block of rows by a panel. Each group of rows fetches its part of the chunk that follows. */
static void multiply(const Linear *layer, int64_t panel, int64_t num_rows, const char *rows, __m512i *sums) {
    const int64_t steps = num_steps(layer), fetch_bytes = 2 * (int64_t)sizeof(__m512i) / divided_up(num_rows, MAX_TILE);
    for (int64_t start = 0; start < steps; start += CHUNK_STEPS) {
        const int64_t count = min(CHUNK_STEPS, steps - start);
        const __m512i *weight = layer->weight + (panel * steps + start) * 2;
        const char *next = (const char *)(weight + 2 * count);
        for (int64_t row = 0; row < num_rows; next += count * fetch_bytes) {
            const Group group = group_of(row, num_rows);
            const char *values = rows + (row * steps + start * group.size) * row_step_bytes(layer);
            TILES[group.size](layer->kind, values, weight, count / RUN_STEPS, next, fetch_bytes, sums + 2 * row);
            row += group.size;
        }
    }
}

/* All blocks of rows by this thread's panels. */
static void multiply_all(const Linear *layer, int64_t num_rows, const char *rows, const float *row_scales, float *out) {
    int64_t first, last;
    share(num_panels(layer), &first, &last);
    for (int64_t block = 0; block < divided_up(num_rows, BLOCK_ROWS); block++) {
        const int64_t start = block_start(block, num_rows), size = block_start(block + 1, num_rows) - start;
        for (int64_t panel = first; panel < last; panel++) {
            __m512i sums[2 * BLOCK_ROWS];
            memset(sums, 0, (size_t)size * 2 * sizeof *sums);
            multiply(layer, panel, size, rows + start * row_bytes(layer), sums);
            finish(layer, panel, size, sums, row_scales + start, out + start * num_outputs(layer));
        }
    }
}

/* Few rows, made ready by each thread for itself: threads that need not wait for one another. */
static void run_few(const Linear *layer, const float *x, int64_t num_rows, float *out) {
    _Alignas(64) char rows[FEW_BYTES];
    float *row_scales = (float *)(rows + num_rows * row_bytes(layer));
    prepare_all(layer, x, num_rows, 0, num_runs(layer), rows, row_scales);
    multiply_all(layer, num_rows, rows, row_scales, out);
}

/* Rows made ready by all threads together, as many at a time as there is `scratch` for. */
static void run_many(const Linear *layer, const float *x, int64_t num_rows, float *out, char *scratch) {
    float *row_scales = (float *)(scratch + min(num_rows, READY_ROWS) * row_bytes(layer));
    int64_t first, last;
    share(num_runs(layer), &first, &last);
    for (int64_t start = 0; start < num_rows; start += READY_ROWS) {
        const int64_t num_now = min(num_rows - start, READY_ROWS);
        prepare_all(layer, x + start * layer->num_inputs, num_now, first, last, scratch, row_scales);
#pragma omp barrier
        multiply_all(layer, num_now, scratch, row_scales, out + start * num_outputs(layer));
        if (start + num_now < num_rows) {
#pragma omp barrier
        }
    }
}

/* Rows `x` [num_rows, num_inputs] to `out` [num_rows, outputs]; for `scratch` see `linear_scratch_bytes`. */
void linear_run(const Linear *layer, const float *x, int64_t num_rows, float *out, char *scratch, int32_t num_threads) {
    const int is_few = num_rows * (row_bytes(layer) + (int64_t)sizeof(float)) <= FEW_BYTES;
#pragma omp parallel num_threads(num_threads)
    if (is_few) run_few(layer, x, num_rows, out);
    else run_many(layer, x, num_rows, out, scratch);
}
