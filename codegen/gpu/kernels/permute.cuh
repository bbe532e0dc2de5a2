// permute: rows of tokens to rows of experts, and what needs no expert.
//
// permute   ptr: x, rows, offsets, gates, y   i: A, d, E                  blocks: a row, PIECES * 128 vectors of it
// identity  ptr: x, weights, ids, y           i: T, d, k, first           the same
#pragma once
#include "vectors.cuh"

constexpr int PIECES = 4, PERMUTE_THREADS = 128;

// y[0 .. d - 1] = x * by, the part of this block.
template <typename X, typename Y, int V>
MC_FN void
scale_row(const X *x, Y *y, i64 d, f32 by)
{
    f32 part[PIECES][V];
    i64 begin = (i64(blockIdx.y) * PIECES * PERMUTE_THREADS + threadIdx.x) * V;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        i64 at = begin + i * (PERMUTE_THREADS * V);
        if (at < d) load_floats<V>(x + at, part[i]);
    }
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        i64 at = begin + i * (PERMUTE_THREADS * V);
#pragma unroll
        for (int j = 0; j < V; j++) part[i][j] *= by;
        if (at < d) store_floats<V>(y + at, part[i]);
    }
}

template <typename X, typename Y, int V, bool GATED>
MC_FN void
permute(const mc_args &a)
{
    i64 r = blockIdx.x, d = a.i[1];
    if (r >= arg<const i32>(a, 2)[a.i[2]]) return;
    f32 gate = GATED ? arg<const f32>(a, 3)[r] : 1.0f;
    scale_row<X, Y, V>(arg<const X>(a, 0) + arg<const i32>(a, 1)[r] * d, arg<Y>(a, 4) + r * d, d, gate);
}

template <typename X, typename Y, int V>
MC_FN void
identity(const mc_args &a)
{
    i64 t = blockIdx.x, d = a.i[1], k = a.i[2];
    const f32 *weights = arg<const f32>(a, 1) + t * k;
    const i32 *ids = arg<const i32>(a, 2) + t * k;
    f32 sum = 0;
    for (i64 j = 0; j < k; j++)
        if (ids[j] >= a.i[3]) sum += weights[j];
    scale_row<X, Y, V>(arg<const X>(a, 0) + t * d, arg<Y>(a, 3) + t * d, d, sum);
}
