// rope and position. The cosines and sines of a position are computed once for 16 heads, so no table limits the length
// of a sequence. Angles are reduced in f64 (good to 4e-11 at position 1e6), the polynomials on [-pi/4, pi/4] are in
// f32.
//
// rope      ptr: x, y   i: rows (B * S), S, H     grid: rows, heads / ROPE_HEADS
// position  ptr: p      i: B * S, S
#pragma once
#include "vectors.cuh"

enum { ROPE_HEADS = 16 };

// Coefficients: Cephes sinf and cosf.
MC_FN void
rope_angle(f64 angle, f32 &sine, f32 &cosine)
{
    f64 turns = rint(angle * 0.63661977236758134308);
    i32 quadrant = i32(i64(turns) & 3);
    f32 r = f32(fma(turns, -1.57079632679489661923, angle)), z = r * r;
    f32 odd = fmaf(fmaf(-1.9515295891e-4f, z, 8.3321608736e-3f), z, -1.6666654611e-1f), s = fmaf(odd * z, r, r);
    f32 c = fmaf(fmaf(fmaf(2.443315711809948e-5f, z, -1.388731625493765e-3f), z, 4.166664568298827e-2f), z * z,
                 fmaf(z, -0.5f, 1.0f));
    sine = quadrant & 1 ? c : s;
    cosine = quadrant & 1 ? s : c;
    if (quadrant & 2) sine = -sine;
    if (quadrant == 1 || quadrant == 2) cosine = -cosine;
}

// V pairs from pair i on.
template <int WIDTH, int HALF, bool ADJACENT, int V, typename X, typename Y>
MC_FN void
rope_turn(const X *x, Y *y, int i, const f32 *sines, const f32 *cosines)
{
    f32 a[2 * V], b[2 * V];
    constexpr int TOGETHER = WIDTH % (2 * V) ? V : 2 * V; // a row is a multiple of these
    if (ADJACENT) {
#pragma unroll
        for (int n = 0; n < 2 * V; n += TOGETHER) load_floats<TOGETHER>(x + 2 * i + n, a + n);
    } else {
        load_floats<V>(x + i, a);
        load_floats<V>(x + HALF + i, a + V);
    }
#pragma unroll
    for (int n = 0; n < V; n++) {
        int first = ADJACENT ? 2 * n : n, second = ADJACENT ? first + 1 : V + n;
        f32 s = sines[i + n], c = cosines[i + n];
        b[first] = fmaf(a[first], c, -(a[second] * s));
        b[second] = fmaf(a[second], c, a[first] * s);
    }
    if (ADJACENT) {
#pragma unroll
        for (int n = 0; n < 2 * V; n += TOGETHER) store_floats<TOGETHER>(y + 2 * i + n, b + n);
    } else {
        store_floats<V>(y + i, b);
        store_floats<V>(y + HALF + i, b + V);
    }
}

// The first 2 HALF of WIDTH channels are turned; V divides HALF and WIDTH.
template <int WIDTH, int HALF, bool ADJACENT, bool INVERSE, int V, typename X, typename Y>
MC_FN void
rope(const mc_args &a, const f64 *frequencies, f32 factor)
{
    MC_SHARED f32 sines[HALF];
    MC_SHARED f32 cosines[HALF];
    i64 row = blockIdx.x, position = past(a) + row % a.i[1];
    for (int i = int(threadIdx.x); i < HALF; i += int(blockDim.x)) {
        f32 s, c;
        rope_angle(frequencies[i] * f64(position), s, c);
        sines[i] = (INVERSE ? -s : s) * factor;
        cosines[i] = c * factor;
    }
    block_sync();
    constexpr int TURNS = HALF / V, PARTS = TURNS + (WIDTH - 2 * HALF) / V;
    int first = int(blockIdx.y) * ROPE_HEADS, heads = lesser(int(a.i[2]) - first, int(ROPE_HEADS));
    i64 start = (row * a.i[2] + first) * WIDTH;
    for (int part = int(threadIdx.x); part < heads * PARTS; part += int(blockDim.x)) {
        int head = part / PARTS, i = part % PARTS;
        const X *x = arg<const X>(a, 0) + start + head * WIDTH;
        Y *y = arg<Y>(a, 1) + start + head * WIDTH;
        if (i < TURNS) {
            rope_turn<WIDTH, HALF, ADJACENT, V>(x, y, i * V, sines, cosines);
        } else {
            f32 kept[V];
            load_floats<V>(x + 2 * HALF + (i - TURNS) * V, kept);
            store_floats<V>(y + 2 * HALF + (i - TURNS) * V, kept);
        }
    }
}

template <typename Y>
MC_FN void
position(const mc_args &a)
{
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < a.i[0]) arg<Y>(a, 0)[i] = from_float<Y>(f32(past(a) + i % a.i[1]));
}
