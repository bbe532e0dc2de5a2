// growth: sizes that follow the number of cached positions. A launch is the same for many of them, so it gives such a
// size for one position, and its kernel asks how many there are.
#pragma once
#include "base.cuh"

/* The arguments with the integers of the bits of GROWS multiplied by past + i[AT], the new positions. */
template <u32 GROWS, int AT>
MC_FN mc_args
grown(const mc_args &a)
{
    mc_args g = a;
    i64 positions = past(a) + a.i[AT];
#pragma unroll
    for (int k = 0; k < 24; k++)
        if (GROWS >> k & 1) g.i[k] *= positions;
    return g;
}
