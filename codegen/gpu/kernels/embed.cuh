// embed: rows of a table; embed_dw: its derivative.
//
// embed          ptr: ids, table, y              i: elements of y, rows of the table
// embed_links    ptr: ids                        i: number of ids              scratch: number of ids, i32
// embed_clear    ptr: dtable                     i: its elements
// embed_dw       ptr: ids, dy, dtable            i: number of ids, d, rows of the table    scratch: the links
#pragma once
#include "vectors.cuh"

/* An id that the table lacks gives a row of NaN, which stops whoever samples from what follows. */
template <typename T, typename Y, int V, int D>
MC_FN void
embed(const mc_args &a)
{
    i64 at = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    if (at >= a.i[0]) return;
    i64 row = at / D, id = arg<const i32>(a, 0)[row];
    f32 x[V];
    if (id >= 0 && id < a.i[1]) {
        load_floats<V>(arg<const T>(a, 1) + id * D + (at - row * D), x);
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) x[j] = NAN;
    }
    store_floats<V>(arg<Y>(a, 2) + at, x);
}

/* The equal ids of a batch as a chain: links[t] is the next t of the same id, NO_NEXT after the last, and NOT_FIRST
 * joins all but the first. A warp looks for the neighbours of one t. */
enum : u32 { NOT_FIRST = 0x80000000u, NO_NEXT = 0x7FFFFFFFu };

MC_FN void
embed_links(const mc_args &a)
{
    const i32 *ids = arg<const i32>(a, 0);
    i32 n = i32(a.i[0]), lane = i32(threadIdx.x & 31), t = i32((blockIdx.x * blockDim.x + threadIdx.x) >> 5);
    if (t >= n) return; /* the whole warp */
    i32 id = ids[t];
    u32 next = NO_NEXT, first = 0;
    for (i32 from = t + 1; from < n && next == NO_NEXT; from += 32) {
        u32 same = ballot(from + lane < n && ids[from + lane] == id);
        if (same) next = u32(from + __ffs(i32(same)) - 1);
    }
    for (i32 from = t - 32; from > -32 && !first; from -= 32)
        if (ballot(from + lane >= 0 && ids[from + lane] == id)) first = NOT_FIRST;
    if (lane == 0) static_cast<u32 *>(a.scratch)[t] = next | first;
}

MC_FN void
embed_clear(const mc_args &a)
{
    i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < a.i[0]) arg<f32>(a, 0)[at] = 0;
}

/* Block x, y: the chain that begins at t = x, columns of part y. */
template <typename DY, int V, bool IN_GRADIENT>
MC_FN void
embed_dw(const mc_args &a)
{
    const u32 *links = static_cast<const u32 *>(a.scratch);
    i64 t = blockIdx.x, d = a.i[1], column = (i64(blockIdx.y) * blockDim.x + threadIdx.x) * V;
    i64 id = arg<const i32>(a, 0)[t];
    f32 *to = arg<f32>(a, 2);
    if (!to || column >= d || id < 0 || id >= a.i[2] || links[t] & NOT_FIRST) return;
    to += id * d + column;
    f32 sum[V];
    if (IN_GRADIENT) {
        load_floats<V>(to, sum);
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) sum[j] = 0;
    }
    while (t != NO_NEXT) {
        f32 x[V];
        load_floats<V>(arg<const DY>(a, 1) + t * d + column, x);
        t = links[t] & NO_NEXT;
#pragma unroll
        for (int j = 0; j < V; j++) sum[j] += x[j];
    }
    store_floats<V>(to, sum);
}
