/* As many floats at a time as a register holds, by the vector types that gcc and clang share: any processor, no
   intrinsics. (Wider types compile, too, but gcc keeps them in memory: forty times slower.)

   Whatever a caller does with one row, it does in the same order for every number of rows beside it, and nothing here
   is compiled with -ffast-math: so a row's result does not depend on its neighbours, to the last bit. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined __AVX512F__
#define LANES 16
#elif defined __AVX2__
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* lanes at any address */

INLINE long least(long a, long b) { return a < b ? a : b; }

INLINE lanes load(const float *from) { return *(const anywhere *)from; }

INLINE void store(float *to, lanes x) { *(anywhere *)to = x; }

INLINE lanes all(float x) { return (lanes){0} + x; }

/* The first `count` of up to LANES floats, zeros behind them. */
INLINE lanes take(const float *from, long count) {
    if (count >= LANES) return load(from);
    lanes x = {0};
    memcpy(&x, from, count * sizeof(float));
    return x;
}

INLINE void put(float *to, lanes x, long count) {
    if (count >= LANES) store(to, x);
    else memcpy(to, &x, count * sizeof(float));
}

INLINE float sum_of(lanes x) {
    float part[LANES];
    memcpy(part, &x, sizeof part);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

INLINE lanes choose(ints where, lanes yes, lanes no) { return (lanes)((where & (ints)yes) | (~where & (ints)no)); }

/* e^x within 2 units of the last place: 2^n times a polynomial of what is left, below ln(2) / 2. */
INLINE lanes exponential(lanes x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: what is added to it loses its fraction */
    x = choose(x < -87.0f, all(-87.0f), x);
    x = choose(x > 88.0f, all(88.0f), x);
    lanes n = (x * 1.44269504f + round) - round;
    lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    lanes p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (lanes)((__builtin_convertvector(n, ints) + 127) << 23);
}
