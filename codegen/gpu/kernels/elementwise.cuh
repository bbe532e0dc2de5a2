// elementwise: results of one shape from operands that broadcast to it, by a formula that the code generator writes. A
// thread computes V neighbouring elements. Where an operand stretches, its axes say: bit a of them is set when it has
// axis a of the result (neighbouring axes on which the same operands stretch are one).
//
// ptr: operands, results   i: elements of a result, sizes of its axes, outermost first   f: the formula's numbers
#pragma once
#include "activation.cuh"
#include "growth.cuh"
#include "vectors.cuh"

template <typename T, u32 AXES> struct operand {
};
template <typename... T> struct results {
};

/* Where the element at `flat` of the result lies in an operand with these axes. */
template <int N, u32 AXES, typename I>
MC_FN i64
place_of(const mc_args &a, I flat)
{
    constexpr u32 all = (1u << N) - 1;
    if (AXES == all) return i64(flat);
    i64 at = 0, step = 1;
#pragma unroll
    for (int axis = N - 1; axis >= 0; axis--) {
        I size = I(a.i[1 + axis]), index = axis ? flat % size : flat;
        flat = axis ? flat / size : flat;
        if (!(AXES >> axis & 1)) continue;
        at += i64(index) * step;
        step *= i64(size);
    }
    return at;
}

template <int V, int N, typename T, u32 AXES, typename I>
MC_FN void
load_operand(const mc_args &a, int n, I flat, operand<T, AXES>, f32 *x)
{
    const T *p = arg<const T>(a, n) + place_of<N, AXES>(a, flat);
    if (AXES >> (N - 1) & 1) {
        load_floats<V>(p, x);
    } else {
        f32 one = to_float(*p);
#pragma unroll
        for (int j = 0; j < V; j++) x[j] = one;
    }
}

/* F::at(numbers, x, y): element j of operand n is x[n][j], of result n y[n][j]. */
template <typename F, int V, int N, typename I, typename... Y, typename... X>
MC_FN void
elementwise_at(const mc_args &a, I flat, results<Y...>, X... operands)
{
    constexpr int n_in = int(sizeof...(X)), n_out = int(sizeof...(Y));
    f32 x[n_in ? n_in : 1][V], y[n_out][V];
    int n = 0;
    ((load_operand<V, N>(a, n, flat, operands, x[n]), n++), ...);
#pragma unroll
    for (int j = 0; j < V; j++) F::at(a.f, x, y, j);
    n = 0;
    ((store_floats<V>(arg<Y>(a, n_in + n) + flat, y[n]), n++), ...);
}

/* Divisions of 32 bits are several times faster, and almost always enough. */
template <typename F, int V, int N, typename R, typename... X>
MC_FN void
elementwise(const mc_args &a)
{
    i64 step = i64(gridDim.x) * blockDim.x * V;
    for (i64 flat = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * V; flat < a.i[0]; flat += step) {
        if (N > 1 && a.i[0] >> 32 == 0) {
            elementwise_at<F, V, N>(a, u32(flat), R(), X()...);
        } else {
            elementwise_at<F, V, N>(a, u64(flat), R(), X()...);
        }
    }
}
