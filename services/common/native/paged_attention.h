/* What a step computes of attention, and by which jobs: the same for all layers. */
#pragma once

#include <stdint.h>

#define MAX_QUERIES 32 /* of a job */

/* Rows of one sequence, whose last one is token `end` - 1. `table`: where its block ids begin. One row is a stream. */
typedef struct {
    int64_t first_row, num_rows, end, table;
} Chunk;

/* `num_rows` rows from `row` on, the last of which sees tokens up to `last`, over tokens [first, last). `partial`: where
   the result goes that is to be merged; -1 where there is no other range. */
typedef struct {
    int64_t row, num_rows, head, table, first, last, partial;
} Job;

typedef struct {
    int64_t row, head, partial, num_partials;
} Merge;

/* A step, the same for all layers. A row of `partials` is a query's sums, its greatest score and its total. */
typedef struct {
    int64_t num_heads, num_kv_heads, head_dim, block_size; /* of the model and its cache */
    int64_t num_rows, num_chunks, num_jobs, num_merges, num_partials;
    const float *frequencies; /* [head_dim / 2] */
    const int64_t *axes;      /* [head_dim / 2] */
    const int64_t *slots;     /* [num_rows] */
    const int64_t *positions; /* [3, num_rows] */
    const Chunk *chunks;
    const int64_t *blocks; /* all tables, one after the other */
    float *rotation;       /* [num_rows, 2, head_dim / 2]: cosines, sines */
    Job *jobs;
    Merge *merges;
    float *partials; /* [num_partials, heads of a key head, head_dim + 2] */
} Step;

static inline int64_t least(int64_t first, int64_t second) { return first < second ? first : second; }
static inline int64_t group_of(const Step *step) { return step->num_heads / step->num_kv_heads; }
