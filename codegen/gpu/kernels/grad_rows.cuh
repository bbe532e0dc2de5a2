// grad_rows: derivatives along the last axis.
//
// row_dot        ptr: a, b, y           softmax_grad   ptr: y, dy, dx
// norm_grad      ptr: x, dy, dx         f: eps
// moe_glu_grad   ptr: g, u, da, gates, dg, du, h, dgates
// i: rows, d
#pragma once
#include "activation.cuh"
#include "rows.cuh"

template <typename S, typename A, typename B, typename Y>
MC_FN void
row_dot(const mc_args &a)
{
    S s(a);
    held<A, S, false> x(s, arg<const A>(a, 0) + s.start());
    held<B, S, false> y(s, arg<const B>(a, 1) + s.start());
    f32 dot = fold(
        s, [](const f32 *e) { return e[0] * e[1]; }, x, y);
    if (s.valid && s.lane == 0) arg<Y>(a, 2)[s.row] = from_float<Y>(dot);
}

template <typename S, typename Y, typename DY, typename DX>
MC_FN void
softmax_grad(const mc_args &a)
{
    S s(a);
    held<Y, S> y(s, arg<const Y>(a, 0) + s.start());
    held<DY, S> dy(s, arg<const DY>(a, 1) + s.start());
    f32 dot = fold(
        s, [](const f32 *e) { return e[0] * e[1]; }, y, dy);
    write(
        s, arg<DX>(a, 2) + s.start(), [=](const f32 *e) { return e[0] * (e[1] - dot); }, y, dy);
}

enum { NORM_GRAD_RMS, NORM_GRAD_LAYER, NORM_GRAD_L2 };

/* dx = root (dy - mean_dy - (x - mean) root * slope), slope = root * mean(dy (x - mean)) (for l2norm the sum); of
 * powers of root only the first is formed, which cannot overflow. */
template <typename S, int OF, typename X, typename DY, typename DX>
MC_FN void
norm_grad(const mc_args &a)
{
    S s(a);
    held<X, S> x(s, arg<const X>(a, 0) + s.start());
    held<DY, S> dy(s, arg<const DY>(a, 1) + s.start());
    f32 d = f32(s.d), mean = 0, mean_dy = 0;
    if (OF == NORM_GRAD_LAYER) {
        mean = fold(
                   s, [](const f32 *e) { return e[0]; }, x) /
               d;
        mean_dy = fold(
                      s, [](const f32 *e) { return e[0]; }, dy) /
                  d;
    }
    f32 squares = fold(
        s, [=](const f32 *e) { return (e[0] - mean) * (e[0] - mean); }, x);
    f32 dot = fold(
        s, [=](const f32 *e) { return (e[0] - mean) * e[1]; }, x, dy);
    if (OF != NORM_GRAD_L2) {
        squares /= d;
        dot /= d;
    }
    f32 root = 1.0f / sqrtf(squares + f32(a.f[0])), slope = root * dot;
    auto dx = [=](const f32 *e) { return root * (e[1] - mean_dy - (e[0] - mean) * root * slope); };
    write(s, arg<DX>(a, 2) + s.start(), dx, x, dy);
}

/* ACT has value(x) and slope(x). One sweep; rows past the last chosen one hold anything, which stays in them. */
template <typename S, typename ACT, typename G, typename U, typename DA, typename W, typename DG, typename DU,
          typename H, typename DW>
MC_FN void
moe_glu_grad(const mc_args &a)
{
    constexpr int V = S::vector;
    S s(a);
    const G *g = arg<const G>(a, 0) + s.start();
    const U *u = arg<const U>(a, 1) + s.start();
    const DA *da = arg<const DA>(a, 2) + s.start();
    DG *dg = arg<DG>(a, 4) + s.start();
    DU *du = arg<DU>(a, 5) + s.start();
    H *h = arg<H>(a, 6) + s.start();
    f32 gate = to_float(arg<const W>(a, 3)[s.row]), sum = 0;
    s.each([&](int, int at) {
        f32 xg[V], xu[V], xda[V], ydg[V], ydu[V], yh[V];
        load_floats<V>(g + at, xg);
        load_floats<V>(u + at, xu);
        load_floats<V>(da + at, xda);
#pragma unroll
        for (int j = 0; j < V; j++) {
            f32 value = ACT::value(xg[j]), dh = gate * xda[j];
            yh[j] = value * xu[j];
            ydg[j] = dh * xu[j] * ACT::slope(xg[j]);
            ydu[j] = dh * value;
            sum += xda[j] * yh[j];
        }
        if (!s.valid) return;
        store_floats<V>(dg + at, ydg);
        store_floats<V>(du + at, ydu);
        store_floats<V>(h + at, yh);
    });
    sum = lanes_sum(s, sum);
    if (s.valid && s.lane == 0) arg<DW>(a, 7)[s.row] = from_float<DW>(sum);
}
