// activation: the elementwise functions (op_NAME) and their derivatives (slope_NAME), named as in ir/ops.def. Accurate
// versions of everything: whoever reads an array to apply one waits for memory, not for arithmetic. Slopes are written
// so that a factor that goes to zero is formed without cancellation and meets no infinity for finite x.
#pragma once
#include "base.cuh"

/* clang-format off */
MC_FN f32 op_neg(f32 x) { return -x; }
MC_FN f32 op_sigmoid(f32 x) { return 1.0f / (1.0f + expf(-x)); }
MC_FN f32 op_silu(f32 x) { return x / (1.0f + expf(-x)); }
MC_FN f32 op_gelu(f32 x) { return x * (1.0f + erff(x * 0.70710678118654752f)) * 0.5f; }
MC_FN f32 op_relu(f32 x) { return x <= 0.0f ? 0.0f : x; } /* NaN stays */
MC_FN f32 op_relu2(f32 x) { return op_relu(x) * op_relu(x); }
MC_FN f32 op_tanh(f32 x) { return tanhf(x); }
MC_FN f32 op_exp(f32 x) { return expf(x); }
MC_FN f32 op_log(f32 x) { return logf(x); }
MC_FN f32 op_log1p(f32 x) { return log1pf(x); }
MC_FN f32 op_sqrt(f32 x) { return sqrtf(x); }
MC_FN f32 op_softplus(f32 x) { return x > 20.0f ? x : log1pf(expf(x)); }
MC_FN f32 op_floor(f32 x) { return floorf(x); }
MC_FN f32 op_clamp(f32 x, f32 lo, f32 hi) { return x < lo ? lo : x > hi ? hi : x; }
MC_FN f32 op_softcap(f32 x, f32 cap) { return cap * tanhf(x / cap); }
MC_FN f32 op_add(f32 a, f32 b) { return a + b; }
MC_FN f32 op_sub(f32 a, f32 b) { return a - b; }
MC_FN f32 op_mul(f32 a, f32 b) { return a * b; }
MC_FN f32 op_div(f32 a, f32 b) { return a / b; }

/* clang-format on */

MC_FN f32
op_gelu_tanh(f32 x)
{
    return x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * (x * x * x)))) * 0.5f;
}

/* ---- slopes --------------------------------------------------------------------------------------------------- */

MC_FN f32
one_minus_square(f32 t)
{
    return (1.0f - t) * (1.0f + t);
}

/* 1 where the condition holds, else 0; NaN where x is NaN. */
MC_FN f32
slope_step(f32 x, bool condition)
{
    return x != x ? x : condition ? 1.0f : 0.0f;
}

MC_FN f32
slope_sigmoid(f32 x)
{
    f32 s = op_sigmoid(x);
    return s * (1.0f - s);
}

MC_FN f32
slope_silu(f32 x)
{
    f32 s = op_sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

/* The normal distribution function plus x times its density. */
MC_FN f32
slope_gelu(f32 x)
{
    return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * (expf(-0.5f * x * x) * 0.39894228040143268f);
}

/* (1 + t) / 2 + x (1 - t^2) u' / 2 for t = tanh u, u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2). From 16 on 1 - t^2 is 0, and
 * its factors are held at x = 16 lest they overflow. */
MC_FN f32
slope_gelu_tanh(f32 x)
{
    f32 t = tanhf(0.79788456080286536f * (x + 0.044715f * (x * x * x)));
    f32 held = fmaxf(-16.0f, fminf(16.0f, x));
    f32 du = 0.5f * 0.79788456080286536f * (1.0f + 3 * 0.044715f * held * held);
    return 0.5f * (1.0f + t) + held * du * one_minus_square(t);
}

/* clang-format off */
MC_FN f32 slope_neg(f32) { return -1.0f; }
MC_FN f32 slope_relu(f32 x) { return slope_step(x, x > 0.0f); }
MC_FN f32 slope_relu2(f32 x) { return 2.0f * op_relu(x); }
MC_FN f32 slope_tanh(f32 x) { return one_minus_square(tanhf(x)); }
MC_FN f32 slope_exp(f32 x) { return expf(x); }
MC_FN f32 slope_log(f32 x) { return 1.0f / x; }
MC_FN f32 slope_log1p(f32 x) { return 1.0f / (1.0f + x); }
MC_FN f32 slope_sqrt(f32 x) { return 0.5f / sqrtf(x); }
MC_FN f32 slope_softplus(f32 x) { return x > 20.0f ? 1.0f : op_sigmoid(x); }
MC_FN f32 slope_floor(f32) { return 0.0f; }
MC_FN f32 slope_clamp(f32 x, f32 lo, f32 hi) { return slope_step(x, x >= lo && x <= hi); }
MC_FN f32 slope_softcap(f32 x, f32 cap) { return one_minus_square(tanhf(x / cap)); }
/* clang-format on */
