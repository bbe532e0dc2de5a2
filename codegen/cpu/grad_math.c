/* Derivatives of the elementwise ops. Each is its textbook formula, written so that a factor that goes to zero is
 * formed without cancellation (1 - tanh^2 as (1 - t)(1 + t)) and meets no infinity for finite x. Terms that a value
 * shares with its derivative (the exponential of a sigmoid) are spelled twice: instruction selection merges them. */
#include "codegen/cpu/grad_math.h"

#define SQRT_HALF 0.70710678118654752
#define SQRT_2_BY_PI 0.79788456080286536     /* sqrt(2 / pi) */
#define ONE_BY_SQRT_2_PI 0.39894228040143268 /* 1 / sqrt(2 pi) */
#define CUBE 0.044715

static LLVMValueRef
constant(LLVMValueRef like, double x)
{
    return kb_const(LLVMTypeOf(like), x);
}

static LLVMValueRef
times(mc_kb *kb, LLVMValueRef x, double c)
{
    return kb_fmul(kb, x, constant(x, c));
}

/* (1 - t) (1 + t) */
static LLVMValueRef
one_minus_square(mc_kb *kb, LLVMValueRef t)
{
    LLVMValueRef one = constant(t, 1.0);
    return kb_fmul(kb, kb_fsub(kb, one, t), kb_fadd(kb, one, t));
}

/* s (1 + x (1 - s)) */
static LLVMValueRef
silu_slope(mc_kb *kb, LLVMValueRef x)
{
    LLVMValueRef one = constant(x, 1.0), s = kb_sigmoid(kb, x);
    return kb_fmul(kb, s, kb_fma(kb, x, kb_fsub(kb, one, s), one));
}

/* The normal distribution function plus x times its density. */
static LLVMValueRef
gelu_slope(mc_kb *kb, LLVMValueRef x)
{
    LLVMValueRef erf = kb_erf(kb, times(kb, x, SQRT_HALF));
    LLVMValueRef below = times(kb, kb_fadd(kb, erf, constant(x, 1.0)), 0.5);
    LLVMValueRef density = times(kb, kb_exp(kb, kb_fmul(kb, x, times(kb, x, -0.5))), ONE_BY_SQRT_2_PI);
    return kb_fma(kb, x, density, below);
}

/* (1 + t) / 2 + x (1 - t^2) u' / 2 for t = tanh u, u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2). From 16 on 1 - t^2 is 0, and
 * its factors are held at x = 16 lest they overflow. */
static LLVMValueRef
gelu_tanh_slope(mc_kb *kb, LLVMValueRef x)
{
    LLVMValueRef one = constant(x, 1.0), x3 = kb_fmul(kb, kb_fmul(kb, x, x), x);
    LLVMValueRef u = kb_fma(kb, x3, constant(x, CUBE), x);
    LLVMValueRef t = kb_tanh(kb, times(kb, u, SQRT_2_BY_PI));
    LLVMValueRef held = kb_fmax(kb, constant(x, -16.0), kb_fmin(kb, constant(x, 16.0), x));
    LLVMValueRef du = kb_fma(kb, kb_fmul(kb, held, held), constant(x, 3 * CUBE), one);
    LLVMValueRef bend = kb_fmul(kb, times(kb, kb_fmul(kb, held, du), 0.5 * SQRT_2_BY_PI), one_minus_square(kb, t));
    return kb_fma(kb, kb_fadd(kb, t, one), constant(x, 0.5), bend);
}

static LLVMValueRef
sigmoid_slope(mc_kb *kb, LLVMValueRef x)
{
    LLVMValueRef s = kb_sigmoid(kb, x);
    return kb_fmul(kb, s, kb_fsub(kb, constant(x, 1.0), s));
}

/* 1 where the condition holds, else 0; NaN where x is NaN. */
static LLVMValueRef
step(mc_kb *kb, LLVMValueRef x, LLVMValueRef condition)
{
    LLVMValueRef slope = kb_select(kb, condition, constant(x, 1.0), constant(x, 0.0));
    return kb_select(kb, kb_fcmp(kb, LLVMRealUNO, x, x), x, slope);
}

static LLVMValueRef
clamp_slope(mc_kb *kb, LLVMValueRef x, const LLVMValueRef *bounds)
{
    LLVMValueRef above = kb_fcmp(kb, LLVMRealOGE, x, bounds[0]), below = kb_fcmp(kb, LLVMRealOLE, x, bounds[1]);
    return step(kb, x, kb_and(kb, above, below));
}

LLVMValueRef
kb_unary_grad(mc_kb *kb, mc_opcode of, LLVMValueRef x, LLVMValueRef dy, const LLVMValueRef *numbers)
{
    LLVMValueRef one = constant(x, 1.0), zero = constant(x, 0.0);
    switch (of) {
    case MC_OP_NEG: return kb_fneg(kb, dy);
    case MC_OP_SILU: return kb_fmul(kb, dy, silu_slope(kb, x));
    case MC_OP_GELU: return kb_fmul(kb, dy, gelu_slope(kb, x));
    case MC_OP_GELU_TANH: return kb_fmul(kb, dy, gelu_tanh_slope(kb, x));
    case MC_OP_RELU: return kb_fmul(kb, dy, step(kb, x, kb_fcmp(kb, LLVMRealOGT, x, zero)));
    case MC_OP_RELU2: return kb_fmul(kb, dy, times(kb, kb_relu(kb, x), 2.0));
    case MC_OP_SIGMOID: return kb_fmul(kb, dy, sigmoid_slope(kb, x));
    case MC_OP_TANH: return kb_fmul(kb, dy, one_minus_square(kb, kb_tanh(kb, x)));
    case MC_OP_EXP: return kb_fmul(kb, dy, kb_exp(kb, x));
    case MC_OP_LOG: return kb_fdiv(kb, dy, x);
    case MC_OP_LOG1P: return kb_fdiv(kb, dy, kb_fadd(kb, one, x));
    case MC_OP_SQRT: return kb_fdiv(kb, times(kb, dy, 0.5), kb_sqrt(kb, x));
    case MC_OP_SOFTPLUS: {
        LLVMValueRef straight = kb_fcmp(kb, LLVMRealOGT, x, constant(x, 20.0));
        return kb_select(kb, straight, dy, kb_fmul(kb, dy, kb_sigmoid(kb, x)));
    }
    case MC_OP_FLOOR: return kb_fmul(kb, dy, zero);
    case MC_OP_CLAMP: return kb_fmul(kb, dy, clamp_slope(kb, x, numbers));
    case MC_OP_SOFTCAP: return kb_fmul(kb, dy, one_minus_square(kb, kb_tanh(kb, kb_fdiv(kb, x, numbers[0]))));
    default: return NULL;
    }
}

LLVMValueRef
kb_act_grad(mc_kb *kb, mc_act act, LLVMValueRef x, LLVMValueRef dy)
{
    return kb_unary_grad(kb, mc_opcode_find(mc_str_of(mc_act_name(act))), x, dy, NULL);
}
