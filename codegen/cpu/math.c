/* Elementary functions. Coefficients are minimax fits in the Lawson sense, made for these intervals and rounded to
 * f32. Range reduction never goes through a float-to-integer conversion: adding 1.5 * 2^23 leaves the integer in the
 * low bits of the sum, which is defined for every input, NaN included, and the same on every target. Clamps are written
 * so that a NaN passes through them. */
#include "codegen/cpu/math.h"

#include <math.h>

static const double LN2_HIGH = 0.693359375, LN2_LOW = -2.12194440e-4; /* r * high is exact for |r| < 2^15 */

static LLVMValueRef
constant(LLVMValueRef like, double x)
{
    return kb_const(LLVMTypeOf(like), x);
}

/* c[0] + x c[1] + ... + x^(n-1) c[n-1] */
static LLVMValueRef
polynomial(mc_kb *kb, LLVMValueRef x, const double *c, int n)
{
    LLVMValueRef p = constant(x, c[n - 1]);
    for (int i = n - 2; i >= 0; i--) p = kb_fma(kb, p, x, constant(x, c[i]));
    return p;
}

/* 2^e for integer lanes e in -126..127 */
static LLVMValueRef
power_of_two(mc_kb *kb, LLVMValueRef e, LLVMTypeRef f)
{
    LLVMTypeRef t = LLVMTypeOf(e);
    return kb_bits(kb, kb_shl(kb, kb_add(kb, e, kb_iconst(t, 127)), kb_iconst(t, 23)), f);
}

LLVMValueRef
kb_exp(mc_kb *kb, LLVMValueRef x)
{
    static const double C[] = {0.5,
                               0.1666666567325592,
                               0.04166629537940025,
                               0.008333496749401093,
                               0.001394465914927423,
                               0.00019790342776104808};
    const double magic = 12582912.0;
    LLVMTypeRef f = LLVMTypeOf(x), i = kb_like(kb->i32, x);
    x = kb_fmax(kb, constant(x, -104.0), kb_fmin(kb, constant(x, 89.0), x));
    LLVMValueRef t = kb_fma(kb, x, constant(x, 1.44269504088896341), constant(x, magic));
    LLVMValueRef r = kb_fsub(kb, t, constant(x, magic));
    LLVMValueRef y = kb_fma(kb, r, constant(x, -LN2_HIGH), x);
    y = kb_fma(kb, r, constant(x, -LN2_LOW), y);
    LLVMValueRef one_y = kb_fadd(kb, y, constant(x, 1.0));
    LLVMValueRef p = kb_fma(kb, polynomial(kb, y, C, 6), kb_fmul(kb, y, y), one_y);
    /* 2^e in two factors: e reaches 128 (overflow to infinity) and -150 (subnormals), beyond one exponent field. */
    LLVMValueRef e = kb_sub(kb, kb_bits(kb, t, i), kb_iconst(i, 0x4B400000));
    LLVMValueRef half = kb_ashr(kb, e, kb_iconst(i, 1));
    p = kb_fmul(kb, p, power_of_two(kb, half, f));
    return kb_fmul(kb, p, power_of_two(kb, kb_sub(kb, e, half), f));
}

/* x = m * 2^e with m in [sqrt(1/2), sqrt(2)); log(1 + f) = f - f^2/2 + f^3 P(f) for f = m - 1. */
LLVMValueRef
kb_log(mc_kb *kb, LLVMValueRef x)
{
    static const double C[] = {0.3333333432674408,   -0.25000014901161194, 0.2000098079442978,
                               -0.16666939854621887, 0.14238665997982025,  -0.12433202564716339,
                               0.11788231134414673,  -0.11485736817121506, 0.06728098541498184};
    LLVMTypeRef f = LLVMTypeOf(x), i = kb_like(kb->i32, x);
    LLVMValueRef small = kb_fcmp(kb, LLVMRealOLT, x, constant(x, 0x1p-126));
    LLVMValueRef scaled = kb_select(kb, small, kb_fmul(kb, x, constant(x, 0x1p23)), x);
    LLVMValueRef bias = kb_select(kb, small, constant(x, -23.0), constant(x, 0.0));
    LLVMValueRef u = kb_bits(kb, scaled, i);
    /* Taking away the bits of sqrt(1/2) puts the exponent's boundary there instead of at a power of two. */
    LLVMValueRef e = kb_ashr(kb, kb_sub(kb, u, kb_iconst(i, 0x3F3504F3)), kb_iconst(i, 23));
    LLVMValueRef m = kb_bits(kb, kb_sub(kb, u, kb_shl(kb, e, kb_iconst(i, 23))), f);
    LLVMValueRef n = kb_fadd(kb, kb_convert(kb, e, f), bias);
    LLVMValueRef y = kb_fsub(kb, m, constant(x, 1.0)), y2 = kb_fmul(kb, y, y);
    LLVMValueRef p = kb_fmul(kb, kb_fmul(kb, y2, y), polynomial(kb, y, C, 9));
    p = kb_fma(kb, n, constant(x, LN2_LOW), p);
    p = kb_fma(kb, y2, constant(x, -0.5), p);
    p = kb_fma(kb, n, constant(x, LN2_HIGH), kb_fadd(kb, y, p));
    LLVMValueRef nan = kb_bits(kb, kb_iconst(i, 0x7FC00000), f);
    p = kb_select(kb, kb_fcmp(kb, LLVMRealOLT, x, constant(x, INFINITY)), p, x);
    p = kb_select(kb, kb_fcmp(kb, LLVMRealOEQ, x, constant(x, 0.0)), constant(x, -INFINITY), p);
    return kb_select(kb, kb_fcmp(kb, LLVMRealOLT, x, constant(x, 0.0)), nan, p);
}

/* log(u) for u = 1 + x as rounded, plus what the rounding lost, (x - (u - 1)) / u. */
LLVMValueRef
kb_log1p(mc_kb *kb, LLVMValueRef x)
{
    LLVMValueRef one = constant(x, 1.0), zero = constant(x, 0.0);
    LLVMValueRef u = kb_fadd(kb, x, one);
    LLVMValueRef lost = kb_fdiv(kb, kb_fsub(kb, x, kb_fsub(kb, u, one)), u);
    LLVMValueRef ordinary =
        kb_and(kb, kb_fcmp(kb, LLVMRealOGT, u, zero), kb_fcmp(kb, LLVMRealOLT, u, constant(x, INFINITY)));
    LLVMValueRef y = kb_fadd(kb, kb_log(kb, u), kb_select(kb, ordinary, lost, zero));
    return kb_select(kb, kb_fcmp(kb, LLVMRealOEQ, x, zero), x, y); /* keeps the sign of zero */
}

LLVMValueRef
kb_tanh(mc_kb *kb, LLVMValueRef x)
{
    static const double C[] = {-0.3333328068256378, 0.13331441581249237, -0.05373971536755562, 0.02063908986747265,
                               -0.0057049901224672794};
    LLVMValueRef size = kb_fabs(kb, x), z = kb_fmul(kb, x, x), one = constant(x, 1.0);
    LLVMValueRef near = kb_fma(kb, kb_fmul(kb, z, polynomial(kb, z, C, 5)), x, x);
    LLVMValueRef e = kb_exp(kb, kb_fadd(kb, size, size));
    LLVMValueRef far = kb_fsub(kb, one, kb_fdiv(kb, constant(x, 2.0), kb_fadd(kb, e, one)));
    LLVMValueRef is_near = kb_fcmp(kb, LLVMRealOLT, size, constant(x, 0.625));
    return kb_copysign(kb, kb_select(kb, is_near, near, far), x); /* of -0 too */
}

/* Near zero x + x P(x^2); further out 1 - exp(Q(|x|)), and from 4 on the result is 1 to the last bit. */
LLVMValueRef
kb_erf(mc_kb *kb, LLVMValueRef x)
{
    static const double NEAR[] = {0.12837915122509003,   -0.3761247992515564,  0.11281682550907135,
                                  -0.026761719956994057, 0.004985940642654896, -0.0005953742074780166};
    static const double FAR[] = {-0.00019567477283999324, -1.1276756525039673, -0.6371822357177734,
                                 -0.10393159836530685,    0.02222692221403122, -0.0030432178173214197,
                                 0.00019593727483879775};
    LLVMValueRef size = kb_fabs(kb, x), z = kb_fmul(kb, x, x);
    LLVMValueRef near = kb_fma(kb, polynomial(kb, z, NEAR, 6), x, x);
    LLVMValueRef capped = kb_fmin(kb, constant(x, 4.0), size);
    LLVMValueRef far = kb_fsub(kb, constant(x, 1.0), kb_exp(kb, polynomial(kb, capped, FAR, 7)));
    LLVMValueRef is_near = kb_fcmp(kb, LLVMRealOLT, size, constant(x, 0.927734375));
    return kb_select(kb, is_near, near, kb_copysign(kb, far, x));
}

LLVMValueRef
kb_rsqrt(mc_kb *kb, LLVMValueRef x)
{
    return kb_fdiv(kb, constant(x, 1.0), kb_sqrt(kb, x));
}

/* ---- activations ---------------------------------------------------------------------------------------------- */

static LLVMValueRef
one_plus_exp_minus(mc_kb *kb, LLVMValueRef x)
{
    return kb_fadd(kb, constant(x, 1.0), kb_exp(kb, kb_fneg(kb, x)));
}

LLVMValueRef
kb_sigmoid(mc_kb *kb, LLVMValueRef x)
{
    return kb_fdiv(kb, constant(x, 1.0), one_plus_exp_minus(kb, x));
}

LLVMValueRef
kb_silu(mc_kb *kb, LLVMValueRef x)
{
    return kb_fdiv(kb, x, one_plus_exp_minus(kb, x));
}

LLVMValueRef
kb_softplus(mc_kb *kb, LLVMValueRef x)
{
    LLVMValueRef above = kb_fcmp(kb, LLVMRealOGT, x, constant(x, 20.0));
    return kb_select(kb, above, x, kb_log1p(kb, kb_exp(kb, x)));
}

static LLVMValueRef
half_x_one_plus(mc_kb *kb, LLVMValueRef x, LLVMValueRef s)
{
    return kb_fmul(kb, kb_fmul(kb, x, constant(x, 0.5)), kb_fadd(kb, s, constant(x, 1.0)));
}

LLVMValueRef
kb_gelu(mc_kb *kb, LLVMValueRef x)
{
    return half_x_one_plus(kb, x, kb_erf(kb, kb_fmul(kb, x, constant(x, 0.70710678118654752))));
}

LLVMValueRef
kb_gelu_tanh(mc_kb *kb, LLVMValueRef x)
{
    LLVMValueRef x3 = kb_fmul(kb, kb_fmul(kb, x, x), x);
    LLVMValueRef u = kb_fma(kb, x3, constant(x, 0.044715), x);
    return half_x_one_plus(kb, x, kb_tanh(kb, kb_fmul(kb, u, constant(x, 0.79788456080286536))));
}

LLVMValueRef
kb_relu(mc_kb *kb, LLVMValueRef x)
{
    return kb_fmax(kb, constant(x, 0.0), x);
}

LLVMValueRef
kb_relu2(mc_kb *kb, LLVMValueRef x)
{
    LLVMValueRef r = kb_relu(kb, x);
    return kb_fmul(kb, r, r);
}

/* clang-format off */
static const struct {
    const char *name;
    LLVMValueRef (*emit)(mc_kb *kb, LLVMValueRef x);
} ACTS[MC_N_ACTS] = {
    [MC_ACT_SILU] = {"silu", kb_silu},
    [MC_ACT_GELU] = {"gelu", kb_gelu},
    [MC_ACT_GELU_TANH] = {"gelu_tanh", kb_gelu_tanh},
    [MC_ACT_RELU] = {"relu", kb_relu},
    [MC_ACT_RELU2] = {"relu2", kb_relu2},
    [MC_ACT_SIGMOID] = {"sigmoid", kb_sigmoid},
};
/* clang-format on */

mc_act
mc_act_find(mc_str name)
{
    int a = 0;
    while (a < MC_N_ACTS && !mc_str_is(name, ACTS[a].name)) a++;
    return (mc_act)a;
}

const char *
mc_act_name(mc_act act)
{
    return ACTS[act].name;
}

LLVMValueRef
kb_act(mc_kb *kb, mc_act act, LLVMValueRef x)
{
    return ACTS[act].emit(kb, x);
}
