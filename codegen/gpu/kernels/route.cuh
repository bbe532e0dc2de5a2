// route: ways to experts that need no scores.
//
// lookup  ptr: table, tokens, ids            i: T k, k, V
// hash    ptr: x, planes, table, candidates  i: T hashes, hashes, d, buckets, size      a warp: (token, hash)
#pragma once
#include "activation.cuh"

MC_FN void
lookup(const mc_args &a)
{
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x, k = a.i[1], V = a.i[2];
    if (i >= a.i[0]) return;
    i64 row = arg<const i32>(a, 1)[i / k] % V;
    if (row < 0) row += V;
    arg<i32>(a, 2)[i] = arg<const i32>(a, 0)[row * k + i % k];
}

template <typename X>
MC_FN void
hash(const mc_args &a)
{
    int lane = int(threadIdx.x & 31);
    i64 i = i64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5);
    i64 hashes = a.i[1], d = a.i[2], buckets = a.i[3], size = a.i[4], h = i % hashes;
    if (i >= a.i[0]) return;
    const X *x = arg<const X>(a, 0) + i / hashes * d;
    const f32 *plane = arg<const f32>(a, 1) + h * d;
    f32 dot = 0;
    for (i64 j = lane; j < d; j += 32) dot = fmaf(to_float(x[j]), plane[j], dot);
    f32 at = floorf(op_sigmoid(warp_sum(dot)) * f32(buckets));
    i64 bucket = at >= f32(buckets) ? buckets - 1 : at > 0 ? i64(at) : 0; // NaN: bucket 0
    const i32 *from = arg<const i32>(a, 2) + (h * buckets + bucket) * size;
    i32 *to = arg<i32>(a, 3) + i * size;
    for (i64 j = lane; j < size; j += 32) to[j] = from[j];
}
