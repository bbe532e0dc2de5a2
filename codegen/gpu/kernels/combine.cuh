// combine: every token adds up the rows that experts made of it, in ascending order of rows. A block finds the rows of
// its token in a list (the inverse map of moe.dispatch, or one made here), sorts the few there are, and adds.
//
// clear    ptr: -                                      i: T, A, T + A, bytes of scratch before the list
// list     ptr: rows, offsets                          i: T, A, E, bytes
//          scratch: list [A] of rows by token, -1 where there is none; then how many each token has [T]
// combine  ptr: y, gates, list, x                      i: T, d, bytes        blocks: a token, COMBINE_THREADS vectors
//          y null: in scratch; list null: in scratch after `bytes`; at most K rows a token
// combine_few  the same, with i[3] = T d: a thread for every element, where rows are short
#pragma once
#include "vectors.cuh"

constexpr int COMBINE_THREADS = 128, IN_FLIGHT = 4;
constexpr i32 NO_ROW = 0x7FFFFFFF;

MC_FN i32 *
combine_scratch(const mc_args &a, i64 bytes)
{
    return reinterpret_cast<i32 *>(static_cast<u8 *>(a.scratch) + bytes);
}

MC_FN void
combine_clear(const mc_args &a)
{
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < a.i[2]) combine_scratch(a, a.i[3])[i] = i < a.i[1] ? -1 : 0;
}

// The order within a token's list is left to chance: combine sorts it.
template <int K>
MC_FN void
combine_list(const mc_args &a)
{
    i64 r = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (r >= a.i[1] || r >= arg<const i32>(a, 1)[a.i[2]]) return;
    i32 *list = combine_scratch(a, a.i[3]), *counts = list + a.i[1], t = arg<const i32>(a, 0)[r];
    if (t < 0 || t >= a.i[0]) return;
    i32 at = atomic_add(&counts[t], 1);
    if (at < K) list[i64(t) * K + at] = i32(r);
}

// The rows of a token and their gates in ascending order; returns how many.
template <int K, bool GATED>
MC_FN int
rows_of_token(const i32 *list, const f32 *gates, i32 *rows, f32 *weights)
{
    MC_SHARED i32 loose[K];
    MC_SHARED i32 count;
    int tid = int(threadIdx.x);
    if (tid < 32) {
        int n = 0;
        for (int begin = 0; begin < K; begin += 32) {
            i32 r = begin + tid < K ? list[begin + tid] : -1;
            u32 lanes = ballot(r >= 0);
            if (r >= 0) loose[n + __popc(lanes & ((1u << tid) - 1))] = r;
            n += __popc(lanes);
        }
        if (tid == 0) count = n;
    }
    block_sync();
    int n = count;
    for (int i = tid; i < n; i += COMBINE_THREADS) {
        i32 r = loose[i];
        int before = 0;
        for (int j = 0; j < n; j++) before += loose[j] < r;
        rows[before] = r;
        if (GATED) weights[before] = gates[r];
    }
    block_sync();
    return n;
}

template <typename Y, typename X, int K, int V, bool GATED>
MC_FN void
combine(const mc_args &a)
{
    MC_SHARED i32 rows[K];
    MC_SHARED f32 weights[K];
    i64 t = blockIdx.x, d = a.i[1], at = (i64(blockIdx.y) * COMBINE_THREADS + threadIdx.x) * V;
    const Y *y = a.ptr[0] ? arg<const Y>(a, 0) : static_cast<const Y *>(a.scratch);
    const i32 *list = a.ptr[2] ? arg<const i32>(a, 2) : combine_scratch(a, a.i[2]);
    int n = rows_of_token<K, GATED>(list + t * K, arg<const f32>(a, 1), rows, weights);
    if (at >= d) return;
    f32 sum[V];
#pragma unroll
    for (int j = 0; j < V; j++) sum[j] = 0;
    for (int s = 0; s < n; s += IN_FLIGHT) {
        f32 part[IN_FLIGHT][V];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++)
            if (s + i < n) load_floats<V>(y + rows[s + i] * d + at, part[i]);
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) {
            if (s + i >= n) break;
#pragma unroll
            for (int j = 0; j < V; j++) sum[j] = GATED ? fmaf(weights[s + i], part[i][j], sum[j]) : sum[j] + part[i][j];
        }
    }
    store_floats<V>(arg<X>(a, 3) + t * d + at, sum);
}

// A thread finds the next row of its token again and again.
template <typename Y, typename X, int K, bool GATED>
MC_FN void
combine_few(const mc_args &a)
{
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x, d = a.i[1], t = i / d;
    if (i >= a.i[3]) return;
    const Y *y = a.ptr[0] ? arg<const Y>(a, 0) : static_cast<const Y *>(a.scratch);
    const i32 *list = (a.ptr[2] ? arg<const i32>(a, 2) : combine_scratch(a, a.i[2])) + t * K;
    f32 sum = 0;
    i32 last = -1;
    for (;;) {
        i32 next = NO_ROW;
        for (int j = 0; j < K; j++)
            if (list[j] > last && list[j] < next) next = list[j];
        if (next == NO_ROW) break;
        f32 x = to_float(y[next * d + i % d]);
        sum = GATED ? fmaf(arg<const f32>(a, 1)[next], x, sum) : sum + x;
        last = next;
    }
    arg<X>(a, 3)[i] = from_float<X>(sum);
}
