/* Vectors of sixteen floats, and what their own operators (+ - * /) lack. */
#pragma once

#include <immintrin.h>
#include <stdint.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef __m512 vec;

/* In a register from here on: compilers would load it again for every sum, and it is loads that sums would wait for. */
INLINE vec held(vec value) {
    __asm__("" : "+v"(value));
    return value;
}

INLINE vec load(const float *from) { return _mm512_loadu_ps(from); }
INLINE void store(float *to, vec value) { _mm512_storeu_ps(to, value); }
INLINE vec all(float value) { return _mm512_set1_ps(value); }

/* The first `count` lanes, or all where there are more; 0 in the others. Nothing is read beyond them. */
INLINE __mmask16 first_lanes(int64_t count) { return count >= LANES ? 0xffff : (__mmask16)((1u << count) - 1); }
INLINE vec load_part(const float *from, int64_t count) { return _mm512_maskz_loadu_ps(first_lanes(count), from); }
INLINE void store_part(float *to, int64_t count, vec value) { _mm512_mask_storeu_ps(to, first_lanes(count), value); }

/* The larger of each pair; `second` where either is NaN. */
INLINE vec larger(vec first, vec second) { return _mm512_max_ps(first, second); }

/* 2^x with a relative error of 2^-22: infinity, 0 and NaN where they are exact or due. */
INLINE vec exp2_of(vec x) {
    const vec rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF); /* over the next lower whole number; 0 of infinities */
    vec power = all(1.8775767e-3f);                              /* least relative error of degree 5 from 0 to 1 */
    power = power * rest + all(8.9893406e-3f);
    power = power * rest + all(5.5826318e-2f);
    power = power * rest + all(2.4015361e-1f);
    power = power * rest + all(6.9315308e-1f);
    power = power * rest + all(0.99999994f);
    return _mm512_scalef_ps(power, x);
}

/* Lane by lane `first` and `second` side by side as bf16; where the processor has no such type, nobody asks for it. */
INLINE vec pair(vec first, vec second) {
#ifdef __AVX512BF16__
    const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                            21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    first = (vec)_mm512_permutexvar_epi16(places, (__m512i)_mm512_cvtne2ps_pbh(second, first));
#endif
    (void)second;
    return first;
}

/* Rows become columns: each step takes lane by lane what stands half of the rows apart. */
INLINE void transpose(vec rows[LANES]) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for (int span = 1; span < LANES; span *= 2) {
        vec next[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = _mm512_permutex2var_ps(rows[i], low, rows[i + LANES / 2]);
            next[2 * i + 1] = _mm512_permutex2var_ps(rows[i], high, rows[i + LANES / 2]);
        }
        for (int i = 0; i < LANES; i++) rows[i] = next[i];
    }
}
