// gemv: products with so few rows that reading the weights is all the work. A warp takes four rows of the weight at a
// time, its lanes neighbouring pieces of 16 bytes along k, the next piece on its way while one is multiplied; rows of x
// come from the cache. Several warps may share four rows, each a part of k; their sums are added in a fixed order.
#pragma once
#include "vectors.cuh"

enum { GEMV_ROWS = 4, GEMV_LINES = 4, GEMV_WARPS = 8 };

/* 16 bytes, but no more elements than registers hold as floats. */
template <typename W, bool ALIGNED> struct gemv_piece {
    static constexpr int n = !ALIGNED ? 1 : sizeof(W) == 4 ? 4 : 8;
};

/* Where rows and lines lie: offsets in elements, for few rows and one matrix fit 32 bits. Lines 0 and 1 lie in w[0],
 * 2 and 3 in w[1]. */
template <typename X, typename W, int ROWS> struct gemv_operands {
    const X *x;
    const W *w[2];
    const f32 *scale[2]; /* null: none; otherwise factors of 128 k each */
    u32 row[ROWS], line[GEMV_LINES], scale_line[GEMV_LINES];

    MC_FN const W *
    weights(int c, i32 k) const
    {
        return w[c * 2 / GEMV_LINES] + (line[c] + u32(k));
    }

    MC_FN f32
    factor(int c, i32 k) const
    {
        const f32 *s = scale[c * 2 / GEMV_LINES];
        return s ? s[scale_line[c] + u32(k >> 7)] : 1.0f;
    }
};

/* Weights as floats, in units of gemv_unit. */
template <typename W, int V>
MC_FN void
gemv_widen(f32 (&y)[V], const vec<W, V> &w)
{
#pragma unroll
    for (int i = 0; i < V; i++) y[i] = to_float(w.v[i]);
}

/* FP8 moved into the fields of f16, two at a time, is the number times 2^-8, exactly; but NaN becomes 480. */
template <int V>
MC_FN void
gemv_widen(f32 (&y)[V], const vec<f8e4m3, V> &w)
{
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            u32 four = load_vec<1>(reinterpret_cast<const u32 *>(w.v + i)).v[0];
            u32 even = (four << 8 & 0x80008000) | (four << 7 & 0x3F803F80);
            u32 odd = (four & 0x80008000) | (four >> 1 & 0x3F803F80);
            y[i] = f16_widen(u16(even)), y[i + 1] = f16_widen(u16(odd));
            y[i + 2] = f16_widen(u16(even >> 16)), y[i + 3] = f16_widen(u16(odd >> 16));
        }
    } else {
        for (int i = 0; i < V; i++) y[i] = to_float(w.v[i]) * 0.00390625f;
    }
}

template <typename W>
MC_FN f32
gemv_unit()
{
    return sizeof(W) == 1 ? 256.0f : 1.0f;
}

/* sums[r][c] += x[r] . w[c] over this lane's k of from .. end - 1. */
template <int ROWS, int V, typename X, typename W>
MC_FN void
gemv_run(f32 (&sums)[ROWS][GEMV_LINES], const gemv_operands<X, W, ROWS> &o, i32 from, i32 end)
{
    constexpr bool SCALED = sizeof(W) == 1;
    constexpr bool AHEAD = ROWS == 1; /* more rows leave no registers for it */
    vec<W, V> now[GEMV_LINES], next[GEMV_LINES];
    i32 k = from + i32(threadIdx.x & 31) * V;
    if (AHEAD && k < end)
        for (int c = 0; c < GEMV_LINES; c++) now[c] = load_vec<V>(o.weights(c, k));
    for (; k < end; k += 32 * V) {
        i32 then = AHEAD ? k + 32 * V : k;
        if (then < end)
            for (int c = 0; c < GEMV_LINES; c++) (AHEAD ? next : now)[c] = load_vec<V>(o.weights(c, then));
        f32 e[ROWS][V], part[ROWS][GEMV_LINES];
        for (int r = 0; r < ROWS; r++) load_floats<V>(o.x + (o.row[r] + u32(k)), e[r]);
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < GEMV_LINES; c++) part[r][c] = SCALED ? 0.0f : sums[r][c];
#pragma unroll
        for (int c = 0; c < GEMV_LINES; c++) {
            f32 y[V];
            gemv_widen(y, now[c]);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int i = 0; i < V; i++) part[r][c] = fmaf(e[r][i], y[i], part[r][c]);
        }
#pragma unroll
        for (int c = 0; c < GEMV_LINES; c++) {
            f32 factor = SCALED ? o.factor(c, k) * gemv_unit<W>() : 1.0f;
#pragma unroll
            for (int r = 0; r < ROWS; r++) sums[r][c] = SCALED ? fmaf(part[r][c], factor, sums[r][c]) : part[r][c];
        }
        if (AHEAD)
            for (int c = 0; c < GEMV_LINES; c++) now[c] = next[c];
    }
}

/* How many warps share the k of four lines: more, while blocks would be idle and there is k enough. */
template <int V>
MC_FN i32
gemv_split(i64 lines, i32 k)
{
    i32 split = 1;
    while (split < GEMV_WARPS && lines * split < i64(gridDim.x) * (GEMV_LINES * GEMV_WARPS) && k > split * 32 * V)
        split *= 2;
    return split;
}

/* The part of k that belongs to part number `part` of `split`. */
template <int V>
MC_FN i32
gemv_bound(i32 k, i32 part, i32 split)
{
    i32 steps = (k + 32 * V - 1) / (32 * V), at = steps * part / split * (32 * V);
    return at < k ? at : k;
}

/* Sums of all lanes, then of the warps that share lines; finish(r, c, sum) for every row r and line c of the warp's
 * four. memory: f32[GEMV_WARPS][ROWS][GEMV_LINES]. All threads of the block call it. */
template <int ROWS, typename F>
MC_FN void
gemv_finish(const f32 (&sums)[ROWS][GEMV_LINES], f32 *memory, i32 split, F finish)
{
    enum { SIZE = ROWS * GEMV_LINES };
    i32 lane = i32(threadIdx.x & 31), warp = i32(threadIdx.x >> 5);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < GEMV_LINES; c++) {
            f32 total = warp_sum(sums[r][c]);
            if (lane == 0) memory[warp * SIZE + r * GEMV_LINES + c] = total;
        }
    block_sync();
    if (warp % split == 0 && lane < SIZE) finish(lane / GEMV_LINES, lane % GEMV_LINES, memory + warp * SIZE + lane);
    block_sync();
}

/* The sum of one element over the warps that share it; `at` is where gemv_finish points. */
template <int ROWS>
MC_FN f32
gemv_total(const f32 *at, i32 split)
{
    f32 total = at[0];
    for (i32 s = 1; s < split; s++) total = add_rn(total, at[s * ROWS * GEMV_LINES]);
    return total;
}
