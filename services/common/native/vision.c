/* What a layer of the vision tower does beside its products, each in one pass over the rows. */
#include <math.h>

#include "vector.h"

/* `to` [dim] is `from` turned by the angles of each pair (i, i + dim / 2). */
INLINE void turn(const float *from, const float *cos, const float *sin, float *to, int64_t half) {
    for (int64_t d = 0; d < half; d += LANES) {
        const int64_t rest = half - d;
        const vec first = load_part(from + d, rest), second = load_part(from + half + d, rest);
        const vec c = load_part(cos + d, rest), s = load_part(sin + d, rest);
        store_part(to + d, rest, first * c - second * s);
        store_part(to + half + d, rest, second * c + first * s);
    }
}

/* Queries and keys turned by their positions, and with values put head by head, as attention reads them: qkv [num,
   3, num_heads, dim], cos and sin [num, dim / 2] into the rows of heads [3, num_heads, stride, dim] from `heads` on. */
void place_heads(const float *qkv, const float *cos, const float *sin, float *heads, int64_t num, int64_t num_heads,
                 int64_t dim, int64_t stride, int num_threads) {
    const int64_t half = dim / 2;
#pragma omp parallel for num_threads(num_threads)
    for (int64_t row = 0; row < num; row++)
        for (int64_t head = 0; head < 3 * num_heads; head++) {
            const float *from = qkv + (row * 3 * num_heads + head) * dim;
            float *to = heads + (head * stride + row) * dim;
            if (head < 2 * num_heads)
                turn(from, cos + row * half, sin + row * half, to, half);
            else
                for (int64_t d = 0; d < dim; d += LANES) store_part(to + d, dim - d, load_part(from + d, dim - d));
        }
}

/* `out` is `rows` [num, dim] less their mean, over their deviation, by `weight` and `bias` [dim]; `added` [num, dim], where
   it is not null, is added to `rows` first. */
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
