/* What a layer of the vision tower does beside its products, each in one pass over the rows. */
#include <math.h>

#include "vector.h"

/* Both halves of a row of `dim` turned by the angles of each pair (i, i + dim / 2), sixteen of them from `d` on. */
INLINE void turn(const float *from, const float *cos, const float *sin, int64_t half, int64_t d, vec turned[2]) {
    const int64_t rest = half - d;
    const vec first = load_part(from + d, rest), second = load_part(from + half + d, rest);
    const vec c = load_part(cos + d, rest), s = load_part(sin + d, rest);
    turned[0] = first * c - second * s;
    turned[1] = second * c + first * s;
}

/* Queries and keys turned by their positions, and with values put head by head, as attention reads them: qkv [num, 3,
   num_heads, dim], cos and sin [num, dim / 2] into the rows of heads [3, num_heads, stride, dim] from `heads` on. */
void place_heads(const float *qkv, const float *cos, const float *sin, float *heads, int64_t num, int64_t num_heads,
                 int64_t dim, int64_t stride, int num_threads) {
    const int64_t half = dim / 2;
#pragma omp parallel for num_threads(num_threads)
    for (int64_t row = 0; row < num; row++)
        for (int64_t head = 0; head < 3 * num_heads; head++) {
            const float *from = qkv + (row * 3 * num_heads + head) * dim;
            float *to = heads + (head * stride + row) * dim;
            for (int64_t d = 0; head < 2 * num_heads && d < half; d += LANES) {
                vec turned[2];
                turn(from, cos + row * half, sin + row * half, half, d, turned);
                store_part(to + d, half - d, turned[0]);
                store_part(to + half + d, half - d, turned[1]);
            }
            for (int64_t d = 0; head >= 2 * num_heads && d < dim; d += LANES)
                store_part(to + d, dim - d, load_part(from + d, dim - d));
        }
}

#ifdef __AVX512BF16__
INLINE void store_rounded(uint16_t *to, int64_t count, vec values) {
    _mm256_mask_storeu_epi16(to, first_lanes(count), (__m256i)_mm512_cvtneps_pbh(values));
}

/* The same rounded to bf16, for attention by pairs: values of two rows side by side; `num` and `dim` are even. */
void place_pairs(const float *qkv, const float *cos, const float *sin, uint16_t *heads, int64_t num, int64_t num_heads,
                 int64_t dim, int64_t stride, int num_threads) {
    const int64_t half = dim / 2, width = 3 * num_heads * dim;
#pragma omp parallel for num_threads(num_threads)
    for (int64_t row = 0; row < num; row += 2)
        for (int64_t head = 0; head < 3 * num_heads; head++) {
            const float *from = qkv + row * width + head * dim;
            uint16_t *to = heads + (head * stride + row) * dim;
            for (int64_t d = 0; head < 2 * num_heads && d < half; d += LANES)
                for (int64_t next = 0; next < 2; next++) {
                    const int64_t angles = (row + next) * half;
                    vec turned[2];
                    turn(from + next * width, cos + angles, sin + angles, half, d, turned);
                    store_rounded(to + next * dim + d, half - d, turned[0]);
                    store_rounded(to + next * dim + half + d, half - d, turned[1]);
                }
            for (int64_t d = 0; head >= 2 * num_heads && d < dim; d += LANES) {
                const vec first = load_part(from + d, dim - d), second = load_part(from + width + d, dim - d);
                store_part((float *)(to + 2 * d), dim - d, pair(first, second));
            }
        }
}
#endif

/* `out` is `rows` [num, dim] less their mean, over their deviation, by `weight` and `bias` [dim]; `added` [num, dim],
   where it is not null, is added to `rows` first. */
void add_and_normalize(float *rows, const float *added, const float *weight, const float *bias, float *out, int64_t num,
                       int64_t dim, float eps, int num_threads) {
#pragma omp parallel for num_threads(num_threads)
    for (int64_t row = 0; row < num; row++) {
        float *own = rows + row * dim;
        vec sum = all(0.0f), squares = all(0.0f);
        for (int64_t d = 0; d < dim; d += LANES) {
            vec values = load_part(own + d, dim - d);
            if (added) {
                values += load_part(added + row * dim + d, dim - d);
                store_part(own + d, dim - d, values);
            }
            sum += values;
        }
        const float mean = _mm512_reduce_add_ps(sum) / dim;
        for (int64_t d = 0; d < dim; d += LANES) {
            const vec part = _mm512_maskz_sub_ps(first_lanes(dim - d), load_part(own + d, dim - d), all(mean));
            squares += part * part;
        }
        const float scale = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / dim + eps);
        for (int64_t d = 0; d < dim; d += LANES) {
            const int64_t rest = dim - d;
            const vec part = (load_part(own + d, rest) - all(mean)) * all(scale);
            store_part(out + row * dim + d, rest, part * load_part(weight + d, rest) + load_part(bias + d, rest));
        }
    }
}
