// Ops whose memory lives across steps: cache and conv1d. An element of the state is written by one thread, which is
// also the only one that may read it in the same launch.
//
// cache       ptr: x, state      i: B * S * units, S
// cache_copy  ptr: x, state, y   i: B * S * units, S, B     a unit is a U, a row of a position has UNITS
// conv1d      ptr: x, w, bias, state, y   i: B * d, S, d    grid: channels, spans of positions
#pragma once
#include "base.cuh"

// Rows (b, s) of x go to position past + s.
template <typename U, int UNITS>
MC_FN void
cache(const mc_args &a)
{
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= a.i[0]) return;
    i32 row = i32(i / UNITS), n_s = i32(a.i[1]), b = row / n_s;
    i64 to = i64(b) * a.cache_cap + past(a) + (row - b * n_s);
    arg<U>(a, 1)[to * UNITS + i % UNITS] = arg<const U>(a, 0)[i];
}

// Appends, and copies the whole history out: rows (b, c) of y come from x or from the state.
template <typename U, int UNITS>
MC_FN void
cache_copy(const mc_args &a)
{
    i32 old = i32(past(a)), n_s = i32(a.i[1]), n_c = old + n_s;
    for (i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x; i < a.i[2] * n_c * UNITS;
         i += i64(gridDim.x) * blockDim.x) {
        i32 row = i32(i / UNITS), b = row / n_c, c = row - b * n_c;
        U *kept = arg<U>(a, 1) + (i64(b) * a.cache_cap + c) * UNITS + i % UNITS;
        if (c >= old) *kept = arg<const U>(a, 0)[(i64(b) * n_s + c - old) * UNITS + i % UNITS];
        arg<U>(a, 2)[i] = *kept;
    }
}

enum { CONV_SPAN = 32 };

// The input of a channel at position t of this step: of the history when t < 0.
template <int TAPS, typename X>
MC_FN f32
conv_input(const X *x, const f32 *state, i64 d, i64 t)
{
    return t < 0 ? state[(t + TAPS - 1) * d] : to_float(x[t * d]);
}

// w is [d, 1, TAPS]. The first span reads the state before it writes it; the others need inputs of this step only.
template <int TAPS, typename X, typename Y>
MC_FN void
conv1d(const mc_args &a)
{
    i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x, n_s = a.i[1], d = a.i[2];
    if (at >= a.i[0]) return;
    i64 b = at / d, channel = at % d, first = i64(blockIdx.y) * CONV_SPAN, end = lesser(n_s, first + CONV_SPAN);
    const X *x = arg<const X>(a, 0) + b * n_s * d + channel;
    Y *y = arg<Y>(a, 4) + b * n_s * d + channel;
    const f32 *w = arg<const f32>(a, 1) + channel * TAPS, *bias = arg<const f32>(a, 2);
    f32 *state = arg<f32>(a, 3) + b * (TAPS - 1) * d + channel;
    f32 taps[TAPS], line[TAPS], more = bias ? bias[channel] : 0.0f;
#pragma unroll
    for (int j = 0; j < TAPS; j++) taps[j] = w[j];
#pragma unroll
    for (int j = 0; j < TAPS - 1; j++) line[j] = conv_input<TAPS>(x, state, d, first + j - (TAPS - 1));
    for (i64 t = first; t < end; t++) {
        line[TAPS - 1] = to_float(x[t * d]);
        f32 sum = 0;
#pragma unroll
        for (int j = 0; j < TAPS; j++) sum = fmaf(line[j], taps[j], sum);
        y[t * d] = from_float<Y>(bias ? sum + more : sum);
#pragma unroll
        for (int j = 0; j < TAPS - 1; j++) line[j] = line[j + 1];
    }
    if (first != 0) return;
    for (int i = 0; i < TAPS - 1; i++) // ascending: an old row is read before it is overwritten
        state[i * d] = conv_input<TAPS>(x, state, d, n_s + i - (TAPS - 1));
}
