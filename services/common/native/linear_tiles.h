/* The inner loops of linear.c: a few rows times a panel of weights, with every sum in a register.

   A panel is two vectors of output columns wide, and stored step after step in the order of reading. A step is two
   vectors of 32-bit words, a word a column: its next two weights of 16 bits, or four of 8. Rows are stored run after
   run, the steps of a run being together: of the first row, of the second, and so on. */
#pragma once

#include <stddef.h>

#include "vector.h"

#define EACH_ROW _Pragma("GCC unroll 16") for (int row = 0; row < num_rows; row++)

enum {
    MAX_TILE = 12, /* rows: their sums take 24 of 32 registers */
    RUN_STEPS = 8, /* a step has two 32-bit values of a row, or with 8 bits one */
};

enum { BF16, FP16, INT8 };

/* What a step has of a column's weights in 16 bits, exact in fp32. Those of fp16 lie apart: first ones, second ones. */
INLINE void unpack(const __m512i *word, const int kind, vec *first, vec *second) {
    if (kind == FP16) {
        *first = _mm512_cvtph_ps(((const __m256i *)word)[0]);
        *second = _mm512_cvtph_ps(((const __m256i *)word)[1]);
    } else { /* bf16 is the upper half of fp32 */
        *first = _mm512_castsi512_ps(_mm512_slli_epi32(*word, 16));
        *second = _mm512_castsi512_ps(_mm512_and_si512(*word, _mm512_set1_epi32((int)0xffff0000u)));
    }
}

/* sums[row][2] += products over some runs. Meanwhile what comes next is fetched, `fetch_bytes` a step. */
INLINE void tile_16_bits(const int num_rows, const int kind, const float *x, const __m512i *weight, int64_t num_runs,
                         const char *next, int64_t fetch_bytes, vec *sums) {
    vec own[MAX_TILE][2];
    EACH_ROW own[row][0] = own[row][1] = all(0.0f);
    for (int64_t run = 0; run < num_runs; run++, x += 2 * RUN_STEPS * num_rows) {
        for (int64_t step = 0; step < RUN_STEPS; step++, weight += 2, next += fetch_bytes) {
            __builtin_prefetch(next);
            __builtin_prefetch(next + fetch_bytes / 2);
            vec first[2], second[2];
            unpack(weight, kind, &first[0], &second[0]);
            unpack(weight + 1, kind, &first[1], &second[1]);
            EACH_ROW {
                const vec value = all(x[2 * (RUN_STEPS * row + step)]);
                own[row][0] = _mm512_fmadd_ps(value, first[0], own[row][0]);
                own[row][1] = _mm512_fmadd_ps(value, first[1], own[row][1]);
            }
            EACH_ROW {
                const vec value = all(x[2 * (RUN_STEPS * row + step) + 1]);
                own[row][0] = _mm512_fmadd_ps(value, second[0], own[row][0]);
                own[row][1] = _mm512_fmadd_ps(value, second[1], own[row][1]);
            }
        }
    }
    EACH_ROW {
        sums[2 * row] += own[row][0];
        sums[2 * row + 1] += own[row][1];
    }
}

#ifdef __AVX512VNNI__
/* __m512i is of longer numbers: sums would leave their registers. */
typedef int32_t Ints __attribute__((vector_size(64)));

/* The same in whole numbers: four unsigned values of a row by as many signed weights. */
INLINE void tile_8_bits(const int num_rows, const int32_t *x, const __m512i *weight, int64_t num_runs,
                        const char *next, int64_t fetch_bytes, Ints *sums) {
    Ints own[MAX_TILE][2];
    EACH_ROW own[row][0] = own[row][1] = (Ints){0};
    for (int64_t run = 0; run < num_runs; run++, x += RUN_STEPS * num_rows) {
        for (int64_t step = 0; step < RUN_STEPS; step++, weight += 2, next += fetch_bytes) {
            __builtin_prefetch(next);
            __builtin_prefetch(next + fetch_bytes / 2);
            const __m512i first = weight[0], second = weight[1];
            EACH_ROW {
                const __m512i values = _mm512_set1_epi32(x[RUN_STEPS * row + step]);
                own[row][0] = (Ints)_mm512_dpbusd_epi32((__m512i)own[row][0], values, first);
                own[row][1] = (Ints)_mm512_dpbusd_epi32((__m512i)own[row][1], values, second);
            }
        }
    }
    EACH_ROW {
        sums[2 * row] += own[row][0];
        sums[2 * row + 1] += own[row][1];
    }
}
#define TILE_8_BITS(NUM_ROWS) tile_8_bits(NUM_ROWS, x, weight, num_runs, next, fetch_bytes, sums)
#else
#define TILE_8_BITS(NUM_ROWS) (void)0
#endif

typedef void Tile(int kind, const void *x, const __m512i *weight, int64_t num_runs, const char *next,
                  int64_t fetch_bytes, void *sums);

#define TILE(NUM_ROWS)                                                                                       \
    static void tile_##NUM_ROWS(int kind, const void *x, const __m512i *weight, int64_t num_runs,             \
                              const char *next, int64_t fetch_bytes, void *sums) {                           \
        if (kind == BF16) tile_16_bits(NUM_ROWS, BF16, x, weight, num_runs, next, fetch_bytes, sums);           \
        else if (kind == FP16) tile_16_bits(NUM_ROWS, FP16, x, weight, num_runs, next, fetch_bytes, sums);      \
        else TILE_8_BITS(NUM_ROWS);                                                                              \
    }
TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)

static Tile *const TILES[MAX_TILE + 1] = { /* by the number of rows */
        NULL,   tile_1, tile_2, tile_3, tile_4,  tile_5,  tile_6,
        tile_7, tile_8, tile_9, tile_10, tile_11, tile_12,
};
