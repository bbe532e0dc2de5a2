/* Blocks without experts. Each draws its own variants, so that attributes get their turn too. */
#include "tests/support/gen_impl.h"

#include <string.h>

static mc_value *
constant(mc_gen_func *f, double value)
{
    return mc_build_const(&f->b, value);
}

static mc_value *
positive(mc_gen_func *f, mc_value *x)
{
    return mc_gen_binary(f, MC_OP_ADD, mc_gen_unary(f, MC_OP_SOFTPLUS, x), constant(f, 0.5));
}

static mc_value *
unary_block(mc_gen_func *f, mc_value *x)
{
    static const mc_opcode any[] = {MC_OP_NEG,  MC_OP_SILU,  MC_OP_GELU,    MC_OP_GELU_TANH, MC_OP_RELU,
                                    MC_OP_TANH, MC_OP_RELU2, MC_OP_SIGMOID, MC_OP_SOFTPLUS,  MC_OP_FLOOR};
    static const mc_opcode of_positive[] = {MC_OP_LOG, MC_OP_LOG1P, MC_OP_SQRT};
    switch (mc_gen_pick(f->gen, 5)) {
    case 0: return mc_gen_unary(f, of_positive[mc_gen_pick(f->gen, 3)], positive(f, x));
    case 1: return mc_gen_unary(f, MC_OP_EXP, mc_gen_unary(f, MC_OP_TANH, x));
    case 2:
        return mc_gen_make(f, MC_OP_CLAMP, GEN_OPERANDS(x),
                           GEN_ATTRS(MC_A_FLOAT("lo", -0.5), MC_A_FLOAT("hi", 0.25 + mc_gen_pick(f->gen, 3))));
    case 3: return mc_gen_make(f, MC_OP_SOFTCAP, GEN_OPERANDS(x), GEN_ATTRS(MC_A_FLOAT("cap", 1.5)));
    default: return mc_gen_unary(f, any[mc_gen_pick(f->gen, f->gen->continuous ? 9 : 10)], x); /* floor is last */
    }
}

static mc_value *
binary_block(mc_gen_func *f, mc_value *x)
{
    static const mc_opcode ops[] = {MC_OP_ADD, MC_OP_SUB, MC_OP_MUL};
    int64_t n = mc_gen_width(x);
    mc_value *y = NULL;
    switch (mc_gen_pick(f->gen, 3)) {
    case 0: y = mc_gen_weight(f, "norm", MOEC_F32, 0, &n, 1); break;
    case 1: y = constant(f, 0.75); break;
    default:
        y = mc_gen_unary(f, MC_OP_SIGMOID, mc_gen_linear(f, x, mc_gen_chance(f->gen, 50) ? n : 1, "dense", 0));
        break;
    }
    if (mc_gen_chance(f->gen, 25)) return mc_gen_binary(f, MC_OP_DIV, x, positive(f, y));
    return mc_gen_binary(f, ops[mc_gen_pick(f->gen, 3)], x, y);
}

static mc_value *
norm_block(mc_gen_func *f, mc_value *x)
{
    int64_t n = mc_gen_width(x);
    mc_value *w = mc_gen_chance(f->gen, 70) ? mc_gen_weight(f, "norm", MOEC_BF16, 0, &n, 1) : NULL;
    mc_value *bias = mc_gen_chance(f->gen, 50) ? mc_gen_weight(f, "dense", MOEC_F32, 0, &n, 1) : NULL;
    switch (mc_gen_pick(f->gen, 4)) {
    case 0:
        return mc_gen_make(f, MC_OP_RMSNORM, GEN_OPERANDS(x, w),
                           GEN_ATTRS(MC_A_FLOAT("eps", 1e-5), MC_A_BOOL("plus_one", mc_gen_chance(f->gen, 30))));
    case 1: return mc_gen_make(f, MC_OP_LAYERNORM, GEN_OPERANDS(x, w, bias), GEN_ATTRS(MC_A_FLOAT("eps", 1e-5)));
    case 2: return mc_gen_unary(f, MC_OP_L2NORM, x);
    default: return mc_gen_unary(f, MC_OP_SOFTMAX, x);
    }
}

static mc_value *
linear_block(mc_gen_func *f, mc_value *x)
{
    return mc_gen_linear(f, x, 3 + mc_gen_pick(f->gen, 18), "dense", 0);
}

static mc_value *
gated_block(mc_gen_func *f, mc_value *x)
{
    static const char *const acts[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid"};
    int act = mc_gen_pick(f->gen, 6);
    int64_t dims[2] = {5 + mc_gen_pick(f->gen, 20), mc_gen_width(x)};
    if (f->gen->trainable || mc_gen_chance(f->gen, 50)) {
        mc_value *g = mc_gen_unary(f, mc_opcode_find(mc_str_of(acts[act])), mc_gen_linear(f, x, dims[0], "dense", 0));
        return mc_gen_binary(f, MC_OP_MUL, g, mc_gen_linear(f, x, dims[0], "dense", 0));
    }
    mc_value *gate = mc_gen_weight(f, "dense", MOEC_BF16, 0, dims, 2);
    mc_value *up = mc_gen_weight(f, "dense", MOEC_BF16, 0, dims, 2);
    mc_value *bias = mc_gen_chance(f->gen, 30) ? mc_gen_weight(f, "dense", MOEC_F32, 0, dims, 1) : NULL;
    return mc_gen_make(f, MC_OP_GATED_LINEAR, GEN_OPERANDS(x, gate, up, bias),
                       GEN_ATTRS(MC_A_STR("act", mc_str_of(acts[act]))));
}

static mc_named_attr
ints(const char *name, int64_t *items, size_t n)
{
    return (mc_named_attr){name, {.kind = MC_ATTR_INTS, .as.ints = {items, n}}};
}

static mc_named_attr
floats(const char *name, double *items, size_t n)
{
    return (mc_named_attr){name, {.kind = MC_ATTR_FLOATS, .as.floats = {items, n}}};
}

static mc_value *
split_block(mc_gen_func *f, mc_value *x)
{
    int64_t n = mc_gen_width(x), first = 1 + mc_gen_pick(f->gen, (int)n - 1), sizes[2] = {first, n - first};
    mc_op *op = mc_gen_op(f, MC_OP_SPLIT, GEN_OPERANDS(x), GEN_ATTRS(ints("sizes", sizes, 2)));
    if (!op) return NULL;
    if (mc_gen_chance(f->gen, 50))
        return mc_gen_make(f, MC_OP_CONCAT, GEN_OPERANDS(&op->results[1], &op->results[0]), GEN_NONE);
    return mc_gen_make(f, MC_OP_CONCAT, GEN_OPERANDS(&op->results[1], &op->results[0], x),
                       GEN_ATTRS(MC_A_INT("axis", 2)));
}

static mc_value *
shape_block(mc_gen_func *f, mc_value *x)
{
    int64_t n = mc_gen_width(x);
    if (n % 2) x = mc_gen_linear(f, x, n = 6, "dense", 0);
    switch (mc_gen_pick(f->gen, 5)) {
    case 0: {
        int64_t perm[4] = {0, 1, 3, 2};
        mc_value *y = mc_gen_reshape(f, x, (int64_t[]){2, n / 2}, 2);
        y = mc_gen_make(f, MC_OP_TRANSPOSE, GEN_OPERANDS(y), GEN_ATTRS(ints("perm", perm, 4)));
        return mc_gen_reshape(f, y, &n, 1);
    }
    case 1: {
        mc_value *y = mc_gen_reshape(f, x, (int64_t[]){1, n}, 2);
        y = mc_gen_make(f, MC_OP_EXPAND, GEN_OPERANDS(y), GEN_ATTRS(MC_A_INT("n", 2)));
        return mc_gen_reshape(f, y, (int64_t[]){2 * n}, 1);
    }
    case 2: return mc_gen_make(f, MC_OP_TILE, GEN_OPERANDS(x), GEN_ATTRS(MC_A_INT("n", 2)));
    case 3:
        return mc_gen_make(f, MC_OP_SLICE, GEN_OPERANDS(x),
                           GEN_ATTRS(MC_A_INT("axis", 2), MC_A_INT("begin", 1), MC_A_INT("end", n)));
    default: return split_block(f, x);
    }
}

/* ---- attention ---- */

static mc_value *
heads(mc_gen_func *f, mc_value *x, int64_t n_heads, int64_t width)
{
    return mc_gen_reshape(f, mc_gen_linear(f, x, n_heads * width, "attention", 0), (int64_t[]){n_heads, width}, 2);
}

static mc_value *
rope(mc_gen_func *f, mc_value *x)
{
    static double llama3[4] = {8, 1, 4, 64}, yarn[8] = {4, 64, 32, 1, 1, 0.5, 1, 0}, linear[1] = {2};
    mc_named_attr attrs[5] = {MC_A_FLOAT("theta", 1000), MC_A_BOOL("adjacent", mc_gen_chance(f->gen, 50)),
                              MC_A_INT("dims", mc_gen_chance(f->gen, 30) ? 4 : 0)};
    switch (mc_gen_pick(f->gen, 4)) {
    case 0: return mc_gen_make(f, MC_OP_ROPE, GEN_OPERANDS(x), attrs, 3);
    case 1: attrs[4] = floats("args", llama3, 4); break;
    case 2: attrs[4] = floats("args", yarn, 8); break;
    default: attrs[4] = floats("args", linear, 1); break;
    }
    size_t n = attrs[4].attr.as.floats.n;
    attrs[3] = (mc_named_attr)MC_A_STR("scaling", n == 4   ? MC_STR("llama3")
                                                  : n == 8 ? MC_STR("yarn")
                                                           : MC_STR("linear"));
    return mc_gen_make(f, MC_OP_ROPE, GEN_OPERANDS(x), attrs, 5);
}

static mc_value *
attention_block(mc_gen_func *f, mc_value *x)
{
    mc_gen *g = f->gen;
    int64_t KV = 1 + mc_gen_pick(g, 2), H = KV * (1 + mc_gen_pick(g, 2)), h = 6, hv = mc_gen_chance(g, 50) ? 6 : 4;
    mc_value *q = heads(f, x, H, h), *k = heads(f, x, KV, h), *v = heads(f, x, KV, hv), *sinks = NULL, *select = NULL;
    if (mc_gen_chance(g, 70)) {
        mc_gen saved = *g; /* q and k turn alike */
        q = rope(f, q);
        int names = g->n_names;
        *g = saved;
        g->n_names = names;
        k = rope(f, k);
    }
    int64_t window = mc_gen_chance(g, 30) ? 1 + mc_gen_pick(g, 5) : 0;
    k = mc_gen_make(f, MC_OP_CACHE, GEN_OPERANDS(k), GEN_ATTRS(MC_A_INT("window", window)));
    v = mc_gen_make(f, MC_OP_CACHE, GEN_OPERANDS(v), GEN_ATTRS(MC_A_INT("window", window)));
    if (!g->trainable && mc_gen_chance(g, 30)) sinks = mc_gen_weight(f, "attention", MOEC_F32, 0, &H, 1);
    if (!g->trainable && mc_gen_chance(g, 30)) {
        mc_value *iq = heads(f, x, 2, 4), *ik = mc_gen_unary(f, MC_OP_CACHE, heads(f, x, 1, 4));
        mc_value *iw = mc_gen_linear(f, x, 2, "attention", 0);
        select = mc_gen_make(f, MC_OP_TOP_KEYS, GEN_OPERANDS(iq, ik, iw), GEN_ATTRS(MC_A_INT("n", 3)));
    }
    mc_value *o = mc_gen_make(f, MC_OP_SDPA, GEN_OPERANDS(q, k, v, sinks, select),
                              GEN_ATTRS(MC_A_FLOAT("scale", 0.4), MC_A_INT("window", window),
                                        MC_A_INT("chunk", mc_gen_chance(g, 20) ? 3 : 0),
                                        MC_A_FLOAT("softcap", mc_gen_chance(g, 30) ? 2 : 0)));
    return mc_gen_reshape(f, o, (int64_t[]){H * hv}, 1);
}

/* Latent attention as absorb-mla leaves it: one stored matrix on both sides. */
static mc_value *
latent_block(mc_gen_func *f, mc_value *x)
{
    static const moec_dtype dtypes[] = {MOEC_F32, MOEC_BF16, MOEC_F16, MOEC_F8E4M3};
    mc_gen *g = f->gen;
    int64_t H = 1 + mc_gen_pick(g, 3), nope = 3, value = 2, rot = 4, latent = 5 + mc_gen_pick(g, 14);
    moec_dtype dtype = g->f32 ? MOEC_F32 : dtypes[mc_gen_pick(g, 4)];
    mc_value *qn = heads(f, x, H, nope), *qr = heads(f, x, H, rot);
    mc_value *c = mc_gen_unary(f, MC_OP_CACHE, mc_gen_linear(f, x, latent, "attention", 0));
    mc_value *kr = mc_gen_unary(f, MC_OP_CACHE, heads(f, x, 1, rot));
    mc_value *w = mc_gen_weight(f, "attention", dtype, 0, (int64_t[]){H * (nope + value), latent}, 2);
    mc_value *scale = dtype == MOEC_F8E4M3 ? mc_gen_weight(f, "attention", MOEC_F32, 0, (int64_t[]){1, 1}, 2) : NULL;
    mc_value *q = mc_gen_make(f, MC_OP_HEAD_LINEAR, GEN_OPERANDS(qn, w, scale),
                              GEN_ATTRS(MC_A_INT("begin", 0), MC_A_INT("end", nope), MC_A_BOOL("transposed", true)));
    mc_value *o = mc_gen_make(f, MC_OP_LATENT_SDPA, GEN_OPERANDS(q, c, qr, kr),
                              GEN_ATTRS(MC_A_FLOAT("scale", 0.3), MC_A_INT("window", mc_gen_chance(g, 30) ? 4 : 0)));
    mc_value *y = mc_gen_make(f, MC_OP_HEAD_LINEAR, GEN_OPERANDS(o, w, scale),
                              GEN_ATTRS(MC_A_INT("begin", nope), MC_A_INT("end", nope + value)));
    return mc_gen_reshape(f, y, (int64_t[]){H * value}, 1);
}

static mc_value *
position_block(mc_gen_func *f, mc_value *x)
{
    mc_value *p = mc_gen_reshape(f, mc_gen_unary(f, MC_OP_POSITION, x), (int64_t[]){1}, 1);
    return mc_gen_binary(f, MC_OP_ADD, x, mc_gen_binary(f, MC_OP_MUL, p, constant(f, 0.125)));
}

static mc_value *
embed_block(mc_gen_func *f, mc_value *x)
{
    if (!f->tokens) return linear_block(f, x);
    mc_value *table = mc_gen_weight(f, "embed", mc_gen_chance(f->gen, 50) ? MOEC_BF16 : MOEC_F32, 0,
                                    (int64_t[]){7, mc_gen_width(x)}, 2);
    return mc_gen_binary(f, MC_OP_ADD, x, mc_gen_make(f, MC_OP_EMBED, GEN_OPERANDS(f->tokens, table), GEN_NONE));
}

static mc_value *
cast_block(mc_gen_func *f, mc_value *x)
{
    if (f->gen->continuous) return norm_block(f, x);
    moec_dtype narrow = mc_gen_chance(f->gen, 50) ? MOEC_BF16 : MOEC_F16;
    mc_value *y = mc_gen_make(f, MC_OP_CAST, GEN_OPERANDS(x), GEN_ATTRS(MC_A_DTYPE("to", narrow)));
    return mc_gen_make(f, MC_OP_CAST, GEN_OPERANDS(y), GEN_ATTRS(MC_A_DTYPE("to", MOEC_F32)));
}

/* ---- scans ---- */

static mc_value *
conv_block(mc_gen_func *f, mc_value *x)
{
    int64_t n = mc_gen_width(x);
    mc_value *w = mc_gen_weight(f, "dense", MOEC_F32, 0, (int64_t[]){n, 1, 1 + mc_gen_pick(f->gen, 4)}, 3);
    mc_value *bias = mc_gen_chance(f->gen, 50) ? mc_gen_weight(f, "dense", MOEC_F32, 0, &n, 1) : NULL;
    return mc_gen_make(f, MC_OP_CONV1D, GEN_OPERANDS(x, w, bias), GEN_NONE);
}

static mc_value *
selective_scan_block(mc_gen_func *f, mc_value *x)
{
    int64_t n = mc_gen_width(x), states = 3;
    mc_value *dt = mc_gen_unary(f, MC_OP_SIGMOID, mc_gen_linear(f, x, n, "dense", 0));
    mc_value *log_a = mc_gen_weight(f, "norm", MOEC_F32, 0, (int64_t[]){n, states}, 2);
    mc_value *a = mc_gen_unary(f, MC_OP_NEG, mc_gen_unary(f, MC_OP_EXP, log_a));
    mc_value *b = mc_gen_linear(f, x, states, "dense", 0), *c = mc_gen_linear(f, x, states, "dense", 0);
    return mc_gen_make(f, MC_OP_SELECTIVE_SCAN, GEN_OPERANDS(x, dt, a, b, c), GEN_NONE);
}

static mc_value *
delta_scan_block(mc_gen_func *f, mc_value *x)
{
    int64_t H = 2, HK = 1 + mc_gen_pick(f->gen, 2);
    mc_value *q = mc_gen_unary(f, MC_OP_L2NORM, heads(f, x, HK, 4));
    mc_value *k = mc_gen_unary(f, MC_OP_L2NORM, heads(f, x, HK, 4)), *v = heads(f, x, H, 3);
    mc_value *g = mc_gen_unary(f, MC_OP_NEG, positive(f, mc_gen_linear(f, x, H, "dense", 0)));
    mc_value *beta = mc_gen_unary(f, MC_OP_SIGMOID, mc_gen_linear(f, x, H, "dense", 0));
    mc_value *y = mc_gen_make(f, MC_OP_DELTA_SCAN, GEN_OPERANDS(q, k, v, g, beta), GEN_ATTRS(MC_A_FLOAT("scale", 0.5)));
    return mc_gen_reshape(f, y, (int64_t[]){H * 3}, 1);
}

/* ---- calls ---- */

/* A function of two or three plain blocks, called twice with different weights. */
static mc_value *
call_block(mc_gen_func *f, mc_value *x)
{
    mc_gen *g = f->gen;
    mc_gen_func inner = mc_gen_func_begin(g, "layer");
    mc_value *y = mc_func_add_formal(inner.func, x->type, MC_STR("x")), *in = y;
    for (int i = 2 + mc_gen_pick(g, 2); i > 0 && y; i--) y = mc_gen_any_block(&inner, y, true);
    y = y ? mc_gen_linear(&inner, y, mc_gen_width(x), "dense", 0) : NULL;
    y = mc_gen_make(&inner, MC_OP_RMSNORM, GEN_OPERANDS(y), GEN_ATTRS(MC_A_FLOAT("eps", 1e-3)));
    y = y ? mc_gen_binary(&inner, MC_OP_ADD, in, y) : NULL;
    if (!y || !mc_build_return(&inner.b, &y, 1)) return NULL;
    for (int i = 0; i < 2 && x; i++) {
        mc_str scope = mc_strf(g->module->arena, "layers.%d", g->n_names++);
        mc_op *call = mc_build_call(&f->b, inner.func, scope, &x, 1);
        x = call ? mc_result(call, 0) : NULL;
    }
    return x;
}

mc_value *
mc_gen_any_block(mc_gen_func *f, mc_value *x, bool plain)
{
    static mc_gen_block *const blocks[] = {unary_block,          binary_block,   norm_block,       linear_block,
                                           gated_block,          shape_block,    attention_block,  attention_block,
                                           latent_block,         position_block, cast_block,       conv_block,
                                           selective_scan_block, embed_block,    delta_scan_block, mc_gen_primitives,
                                           call_block,           mc_gen_moe,     mc_gen_moe,       mc_gen_expert_ops};
    enum { N = sizeof blocks / sizeof blocks[0], N_PLAIN = N - 4 };
    mc_gen_block *block = blocks[mc_gen_pick(f->gen, plain ? N_PLAIN : N)];
    bool no_derivative =
        block == latent_block || block == conv_block || block == selective_scan_block || block == delta_scan_block;
    return f->gen->trainable && no_derivative ? linear_block(f, x) : block(f, x);
}
