#include "driver/train/train_random.h"

#include <math.h>

uint64_t
mc_train_bits(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint64_t z = seed + UINT64_C(0x9E3779B97F4A7C15) * (1 + index) + UINT64_C(0xD1B54A32D192ED03) * stream;
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

double
mc_train_uniform(uint64_t seed, uint64_t stream, uint64_t index)
{
    return (double)(mc_train_bits(seed, stream, index) >> 11) * 0x1p-53;
}

double
mc_train_normal(uint64_t seed, uint64_t stream, uint64_t index)
{
    const double two_pi = 6.283185307179586;
    double u = mc_train_uniform(seed, stream, 2 * index), v = mc_train_uniform(seed, stream, 2 * index + 1);
    return sqrt(-2 * log(1 - u)) * cos(two_pi * v);
}

/* The high word of a product of 64 by 64 bits, from four products of halves. */
uint64_t
mc_train_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n)
{
    uint64_t bits = mc_train_bits(seed, stream, index), a = bits >> 32, b = bits & UINT32_MAX;
    uint64_t c = n >> 32, d = n & UINT32_MAX;
    uint64_t middle = (b * d >> 32) + (a * d & UINT32_MAX) + (b * c & UINT32_MAX);
    return a * c + (a * d >> 32) + (b * c >> 32) + (middle >> 32);
}

uint64_t
mc_train_stream(const char *name)
{
    uint64_t h = UINT64_C(0xCBF29CE484222325);
    for (; *name; name++) h = (h ^ (unsigned char)*name) * UINT64_C(0x100000001B3);
    return h;
}
