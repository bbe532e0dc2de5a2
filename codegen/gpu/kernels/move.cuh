// move: everything that only moves elements: a walk over axes with a step in the source and a step in the result.
// Elements are units of 1 to 16 bytes: several neighbours that stay together are one.
//
// move      ptr: x, y   i: units, then sizes, steps in x, steps in y of N axes, each outermost first
// turn      ptr: x, y   i: units, size and step in y of the axis that is innermost in x, size and step in x of the one
//                          that is innermost in y, then as move for the N others
// unslice   ptr: x, y   i: units of y, units of y in a row, of x in a row, of y before x
#pragma once
#include "growth.cuh"

typedef vec<u32, 4> u128;

/* The place of walk element `flat`, in x and y. */
template <int N, typename I>
MC_FN void
walk(const mc_args &a, int first, I flat, i64 &x, i64 &y)
{
#pragma unroll
    for (int axis = N - 1; axis >= 0; axis--) {
        I size = I(a.i[first + axis]), index = axis ? flat % size : flat;
        flat = axis ? flat / size : flat;
        x += i64(index) * a.i[first + N + axis];
        y += i64(index) * a.i[first + 2 * N + axis];
    }
}

template <typename T, int N>
MC_FN void
move(const mc_args &a)
{
    i64 step = i64(gridDim.x) * blockDim.x;
    for (i64 flat = i64(blockIdx.x) * blockDim.x + threadIdx.x; flat < a.i[0]; flat += step) {
        i64 x = 0, y = 0;
        if (a.i[0] >> 32 == 0) {
            walk<N>(a, 1, u32(flat), x, y);
        } else {
            walk<N>(a, 1, u64(flat), x, y);
        }
        arg<T>(a, 1)[y] = arg<const T>(a, 0)[x];
    }
}

/* Tiles of 32 by 32 through shared memory, so that neighbours in x are read, and neighbours in y written, together. */
template <typename T, int N>
MC_FN void
turn(const mc_args &a)
{
    MC_SHARED T tile[32][33];
    int lane = int(threadIdx.x & 31), warp = int(threadIdx.x >> 5);
    i64 n_x = a.i[1], step_y = a.i[2], n_y = a.i[3], step_x = a.i[4];
    i64 tiles_x = (n_x + 31) / 32, tiles_y = (n_y + 31) / 32, tiles = tiles_x * tiles_y;
    for (int axis = 0; axis < N; axis++) tiles *= a.i[5 + axis];
    for (i64 t = blockIdx.x; t < tiles; t += gridDim.x) {
        i64 x = 0, y = 0, at_x = t % tiles_x * 32, at_y = t / tiles_x % tiles_y * 32;
        walk<N>(a, 5, u64(t / (tiles_x * tiles_y)), x, y);
        for (int i = warp; i < 32; i += 8)
            if (at_x + lane < n_x && at_y + i < n_y)
                tile[i][lane] = arg<const T>(a, 0)[x + at_x + lane + (at_y + i) * step_x];
        block_sync();
        for (int i = warp; i < 32; i += 8)
            if (at_y + lane < n_y && at_x + i < n_x)
                arg<T>(a, 1)[y + at_y + lane + (at_x + i) * step_y] = tile[lane][i];
        block_sync();
    }
}

template <typename T>
MC_FN void
unslice(const mc_args &a)
{
    i64 flat = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (flat >= a.i[0]) return;
    i64 row = flat / a.i[1], at = flat - row * a.i[1] - a.i[3];
    arg<T>(a, 1)[flat] = at >= 0 && at < a.i[2] ? arg<const T>(a, 0)[row * a.i[2] + at] : T{};
}
