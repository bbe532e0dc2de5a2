// rows: kernels along the last axis. A row of D elements is spread over LANES threads, V neighbouring elements each; up
// to 32 lanes are a part of a warp (a block then has several rows), more are a block. D is 0 where only a.i[1] knows
// it. Sums are made in an order that depends on nothing but D, LANES and V.
//
//     span<4096, 512, 4> s(a);                          the block's row, of a.i[0] rows of a.i[1] elements
//     held<f32, span<4096, 512, 4>> x(s, arg<f32>(a, 0) + s.start());       in registers if there are not too many
//     f32 total = fold(s, [](const f32 *e) { return e[0]; }, x);            e[k]: the element of the k-th array
//     write(s, arg<bf16>(a, 1) + s.start(), [=](const f32 *e) { return e[0] / total; }, x);
#pragma once
#include "vectors.cuh"

template <int D, int LANES, int V> struct span {
    static constexpr int lanes = LANES, vector = V;
    static constexpr int n = (D + LANES * V - 1) / (LANES * V); /* vectors of a thread */
    static constexpr bool few = D && n * V <= (LANES > 512 ? 16 : 32);
    int lane, d;
    i64 row;
    bool valid; /* else the row is another thread's, and is only read */

    MC_FN
    span(const mc_args &a)
    {
        constexpr int rows = LANES > 32 ? 1 : 256 / LANES;
        lane = int(threadIdx.x) % LANES;
        d = D ? D : int(a.i[1]);
        row = i64(blockIdx.x) * rows + int(threadIdx.x) / LANES;
        valid = row < a.i[0];
        if (!valid) row = a.i[0] - 1;
    }

    MC_FN i64
    start() const
    {
        return row * d;
    }

    /* f(number of the vector, index of its first element) for those of this thread */
    template <typename F>
    MC_FN void
    each(F f) const
    {
        if constexpr (few) {
#pragma unroll
            for (int i = 0; i < n; i++) {
                int at = (i * LANES + lane) * V;
                if (at < D) f(i, at);
            }
        } else {
            for (int at = lane * V; at < d; at += LANES * V) f(0, at);
        }
    }
};

/* The elements of a row that a thread looks at: read once, or again every time. */
template <typename T, typename S, bool KEPT = S::few> struct held {
    static constexpr int V = S::vector;
    const T *from;
    f32 x[KEPT ? S::n * V : 1];

    MC_FN
    held(const S &s, const T *row)
        : from(row)
    {
        if (KEPT) s.each([&](int i, int at) { load_floats<V>(from + at, x + (KEPT ? i * V : 0)); });
    }

    MC_FN void
    get(int i, int at, f32 *out) const
    {
        if (KEPT) {
#pragma unroll
            for (int j = 0; j < V; j++) out[j] = x[KEPT ? i * V + j : 0];
        } else {
            load_floats<V>(from + at, out);
        }
    }
};

template <typename S>
MC_FN f32
lanes_sum(const S &, f32 x)
{
    if constexpr (S::lanes > 32) {
        return block_sum(x);
    } else {
        for (int mask = S::lanes / 2; mask; mask >>= 1) x += shfl_xor(x, mask);
        return x;
    }
}

template <typename S>
MC_FN f32
lanes_max(const S &, f32 x)
{
    if constexpr (S::lanes > 32) {
        return block_max(x);
    } else {
        for (int mask = S::lanes / 2; mask; mask >>= 1) x = fmaxf(x, shfl_xor(x, mask));
        return x;
    }
}

/* f(e) for every element of this thread */
template <typename S, typename F, typename... H>
MC_FN void
each_element(const S &s, F f, const H &...arrays)
{
    constexpr int V = S::vector, n = int(sizeof...(H));
    s.each([&](int i, int at) {
        f32 x[n][V], e[n];
        int k = 0;
        (arrays.get(i, at, x[k++]), ...);
#pragma unroll
        for (int j = 0; j < V; j++) {
#pragma unroll
            for (k = 0; k < n; k++) e[k] = x[k][j];
            f(e);
        }
    });
}

template <typename S, typename F, typename... H>
MC_FN f32
fold(const S &s, F f, const H &...arrays)
{
    f32 sum = 0;
    each_element(
        s, [&](const f32 *e) { sum += f(e); }, arrays...);
    return lanes_sum(s, sum);
}

template <typename S, typename H>
MC_FN f32
greatest(const S &s, const H &array)
{
    f32 most = -INFINITY;
    each_element(
        s, [&](const f32 *e) { most = fmaxf(most, e[0]); }, array);
    return lanes_max(s, most);
}

template <typename Y, typename S, typename F, typename... H>
MC_FN void
write(const S &s, Y *to, F f, const H &...arrays)
{
    constexpr int V = S::vector, n = int(sizeof...(H));
    if (!s.valid) return;
    s.each([&](int i, int at) {
        f32 x[n][V], e[n], y[V];
        int k = 0;
        (arrays.get(i, at, x[k++]), ...);
#pragma unroll
        for (int j = 0; j < V; j++) {
#pragma unroll
            for (k = 0; k < n; k++) e[k] = x[k][j];
            y[j] = f(e);
        }
        store_floats<V>(to + at, y);
    });
}
