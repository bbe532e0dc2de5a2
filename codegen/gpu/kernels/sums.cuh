// sums: sum_to. Neighbouring axes that are both kept or both summed are one, so they alternate: with N axes and the
// innermost KEPT or not, everything is known. What is summed for a result is cut into PARTS, whose sums are added up by
// a second kernel, in order.
//
// sum_columns, sum_folds   ptr: x, y   i: results, sizes of the axes, outermost first   scratch: PARTS * results, f32
// sum_parts                ptr: y      i: results, parts                                scratch: the same
#pragma once
#include "base.cuh"

/* Where the index-th combination of the axes N-1, N-3 ... (or N-2, N-4 ...) begins. */
template <int N, bool INNERMOST>
MC_FN i64
combination(const mc_args &a, i64 index)
{
    i64 at = 0, step = 1;
#pragma unroll
    for (int axis = N - 1; axis >= 0; axis--) {
        i64 size = a.i[1 + axis];
        if (((N - 1 - axis) % 2 == 0) == INNERMOST) {
            i64 i = axis > 1 ? index % size : index; /* axis 0 or 1 is the last of its kind */
            if (axis > 1) index /= size;
            at += i * step;
        }
        step *= size;
    }
    return at;
}

/* How many combinations of them there are. */
template <int N, bool INNERMOST>
MC_FN i64
combinations(const mc_args &a)
{
    i64 n = 1;
    for (int axis = N - 1 - !INNERMOST; axis >= 0; axis -= 2) n *= a.i[1 + axis];
    return n;
}

template <int PARTS>
MC_FN void
put_sum(const mc_args &a, i64 result, f32 sum)
{
    if (PARTS == 1) {
        arg<f32>(a, 1)[result] = sum;
    } else {
        static_cast<f32 *>(a.scratch)[blockIdx.y * a.i[0] + result] = sum;
    }
}

/* The innermost axis is kept: a warp has 32 neighbouring results, the 8 warps of a block share the sum. */
template <int N, int PARTS>
MC_FN void
sum_columns(const mc_args &a)
{
    MC_SHARED f32 sums[8][32];
    int lane = int(threadIdx.x & 31), warp = int(threadIdx.x >> 5);
    i64 result = i64(blockIdx.x) * 32 + lane, n = combinations<N, false>(a), part = (n + PARTS - 1) / PARTS;
    i64 begin = blockIdx.y * part, end = begin + part < n ? begin + part : n;
    f32 sum = 0;
    if (result < a.i[0]) {
        const f32 *x = arg<const f32>(a, 0) + combination<N, true>(a, result);
#pragma unroll 4
        for (i64 i = begin + warp; i < end; i += 8) sum += x[combination<N, false>(a, i)];
    }
    sums[warp][lane] = sum;
    block_sync();
    if (warp || result >= a.i[0]) return;
    for (int i = 1; i < 8; i++) sum += sums[i][lane];
    put_sum<PARTS>(a, result, sum);
}

/* The innermost axis is summed: a warp has one result. */
template <int N, int PARTS>
MC_FN void
sum_folds(const mc_args &a)
{
    int lane = int(threadIdx.x & 31);
    i64 result = i64(blockIdx.x) * 8 + (threadIdx.x >> 5), n = combinations<N, true>(a), part = (n + PARTS - 1) / PARTS;
    i64 begin = blockIdx.y * part, end = begin + part < n ? begin + part : n;
    f32 sum = 0;
    if (result >= a.i[0]) return; /* the whole warp */
    const f32 *x = arg<const f32>(a, 0) + combination<N, false>(a, result);
#pragma unroll 4
    for (i64 i = begin + lane; i < end; i += 32) sum += x[combination<N, true>(a, i)];
    sum = warp_sum(sum);
    if (lane == 0) put_sum<PARTS>(a, result, sum);
}

MC_FN void
sum_parts(const mc_args &a)
{
    i64 result = i64(blockIdx.x) * blockDim.x + threadIdx.x, n = a.i[0];
    if (result >= n) return;
    f32 sum = 0;
    for (i64 part = 0; part < a.i[1]; part++) sum += static_cast<const f32 *>(a.scratch)[part * n + result];
    arg<f32>(a, 0)[result] = sum;
}
