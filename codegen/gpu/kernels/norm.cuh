// norm: rmsnorm, layernorm, l2norm, softmax.
//
// norm      ptr: x, y, [w], [bias]   i: rows, d, rows of w and bias (which repeat)   f: eps
// softmax   ptr: x, y                i: rows, d
#pragma once
#include "rows.cuh"

enum {
    NORM_MEAN = 1, /* the mean is subtracted */
    NORM_SUM = 2,  /* eps joins the sum of the squares, not their mean */
    NORM_W = 4,
    NORM_PLUS_ONE = 8, /* 1 + w */
    NORM_BIAS = 16,
    NORM_ROUND_BEFORE = 32 /* a narrow result is rounded before the weight too */
};

template <u32 FLAGS, typename Y>
MC_FN f32
weighted(f32 y, const f32 *e)
{
    if (FLAGS & NORM_ROUND_BEFORE) y = as_stored<Y>(y);
    if (FLAGS & NORM_W) y *= FLAGS & NORM_PLUS_ONE ? 1.0f + e[1] : e[1];
    if (FLAGS & NORM_BIAS) y += e[FLAGS & NORM_W ? 2 : 1];
    return y;
}

template <typename S, u32 FLAGS, typename X, typename W, typename Y>
MC_FN void
norm(const mc_args &a)
{
    constexpr bool has_w = FLAGS & NORM_W, has_bias = FLAGS & NORM_BIAS;
    S s(a);
    held<X, S> x(s, arg<const X>(a, 0) + s.start());
    f32 mean = 0;
    if (FLAGS & NORM_MEAN)
        mean = fold(
                   s, [](const f32 *e) { return e[0]; }, x) /
               f32(s.d);
    f32 sum = fold(
        s, [=](const f32 *e) { return (e[0] - mean) * (e[0] - mean); }, x);
    if (!(FLAGS & NORM_SUM)) sum /= f32(s.d);
    f32 scale = 1.0f / sqrtf(sum + f32(a.f[0]));
    auto normed = [=](const f32 *e) { return weighted<FLAGS, Y>((e[0] - mean) * scale, e); };
    Y *y = arg<Y>(a, 1) + s.start();
    i64 from = has_w || has_bias ? s.row % a.i[2] * s.d : 0;
    if (has_w && has_bias) {
        held<W, S, false> w(s, arg<const W>(a, 2) + from), bias(s, arg<const W>(a, 3) + from);
        write(s, y, normed, x, w, bias);
    } else if (has_w || has_bias) {
        held<W, S, false> w(s, arg<const W>(a, 2) + from);
        write(s, y, normed, x, w);
    } else {
        write(s, y, normed, x);
    }
}

template <typename S, typename X, typename Y>
MC_FN void
softmax(const mc_args &a)
{
    S s(a);
    held<X, S> x(s, arg<const X>(a, 0) + s.start());
    f32 most = greatest(s, x);
    f32 sum = fold(
        s, [=](const f32 *e) { return expf(e[0] - most); }, x);
    write(
        s, arg<Y>(a, 1) + s.start(), [=](const f32 *e) { return expf(e[0] - most) / sum; }, x);
}
