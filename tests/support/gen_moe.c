/* Blocks with experts: the node with a random route and body, the two expert ops, and the primitives by hand. */
#include "tests/support/gen_impl.h"

#include <string.h>

/* What a route is made of: scores z [..., E] and the number of choices. */
typedef struct route {
    int64_t E, k;
    mc_value *weights, *ids;
} route;

static bool
top(mc_gen_func *f, route *r, mc_value *value, mc_value *key)
{
    mc_op *op = key ? mc_gen_op(f, MC_OP_ROUTE_TOP, GEN_OPERANDS(value, key), GEN_ATTRS(MC_A_INT("k", r->k))) : NULL;
    if (!op) return false;
    r->weights = mc_result(op, 0);
    r->ids = mc_result(op, 1);
    return true;
}

static mc_value *
renorm(mc_gen_func *f, mc_value *w)
{
    switch (mc_gen_pick(f->gen, 4)) {
    case 0: return mc_gen_unary(f, MC_OP_ROUTE_RENORM, w);
    case 1: return mc_gen_make(f, MC_OP_ROUTE_RENORM, GEN_OPERANDS(w), GEN_ATTRS(MC_A_FLOAT("eps", 1e-20)));
    case 2: return mc_gen_make(f, MC_OP_ROUTE_RENORM, GEN_OPERANDS(w), GEN_ATTRS(MC_A_FLOAT("p", 2)));
    default: return mc_gen_make(f, MC_OP_ROUTE_RENORM, GEN_OPERANDS(w), GEN_ATTRS(MC_A_FLOAT("floor", 0.125)));
    }
}

/* sigmoid or softmax scores, a bias for the choice, groups, top, renorm, scale */
static bool
scored(mc_gen_func *f, route *r, mc_value *z)
{
    mc_gen *g = f->gen;
    mc_value *s = mc_gen_unary(f, mc_gen_chance(g, 50) ? MC_OP_SOFTMAX : MC_OP_SIGMOID, z), *key = s;
    if (mc_gen_chance(g, 50)) key = mc_gen_binary(f, MC_OP_ADD, s, mc_gen_weight(f, "router", MOEC_F32, 0, &r->E, 1));
    if (mc_gen_chance(g, 40)) {
        static const char *const by[] = {"max", "top2", "sum"};
        key = mc_gen_make(
            f, MC_OP_ROUTE_GROUPS, GEN_OPERANDS(key),
            GEN_ATTRS(MC_A_INT("n", 2), MC_A_INT("keep", 1), MC_A_STR("by", mc_str_of(by[mc_gen_pick(g, 3)]))));
        if (r->k > r->E / 2) r->k = r->E / 2; /* a key of -inf would be chosen */
    }
    if (!top(f, r, s, key)) return false;
    if (mc_gen_chance(g, 60)) r->weights = renorm(f, r->weights);
    if (mc_gen_chance(g, 30)) r->weights = mc_gen_binary(f, MC_OP_MUL, r->weights, mc_build_const(&f->b, 2.5));
    return r->weights != NULL;
}

static bool
two_results(route *r, mc_op *op)
{
    if (!op) return false;
    r->weights = mc_result(op, 0);
    r->ids = mc_result(op, 1);
    return true;
}

/* Candidates from planes or a table; their weights are the scores. Tables hold 0 and 1 only. */
static bool
hashed(mc_gen_func *f, route *r, mc_value *x, mc_value *z)
{
    if (f->tokens && mc_gen_chance(f->gen, 50)) {
        mc_value *table = mc_gen_weight(f, "router", MOEC_I32, 0, (int64_t[]){5, r->k}, 2);
        r->ids = mc_gen_make(f, MC_OP_ROUTE_LOOKUP, GEN_OPERANDS(table, f->tokens), GEN_NONE);
    } else {
        mc_value *planes = mc_gen_weight(f, "router", MOEC_F32, 0, (int64_t[]){2, mc_gen_width(x)}, 2);
        mc_value *table = mc_gen_weight(f, "router", MOEC_I32, 0, (int64_t[]){2, 3, 1}, 3);
        r->ids = mc_gen_make(f, MC_OP_ROUTE_HASH, GEN_OPERANDS(x, planes, table), GEN_NONE);
    }
    if (!r->ids || !z) return false;
    r->weights = mc_gen_unary(f, MC_OP_SOFTMAX, mc_gen_make(f, MC_OP_ROUTE_TAKE, GEN_OPERANDS(z, r->ids), GEN_NONE));
    return r->weights != NULL;
}

static bool
choose(mc_gen_func *f, route *r, mc_value *x)
{
    mc_gen *g = f->gen;
    mc_value *z = mc_gen_linear(f, x, r->E, "router", 0);
    bool ok;
    switch (mc_gen_pick(g, 6)) {
    case 0: /* top, then softmax over the chosen */
        ok = top(f, r, z, z);
        if (ok) r->weights = mc_gen_unary(f, MC_OP_SOFTMAX, r->weights);
        break;
    case 1:
        if (g->trainable) return scored(f, r, z);
        ok = two_results(r, mc_gen_op(f, MC_OP_ROUTE_SPARSEMIXER, GEN_OPERANDS(z), GEN_ATTRS(MC_A_FLOAT("eps", 0.1))));
        break;
    case 2: ok = hashed(f, r, x, z); break;
    case 3:
        if (g->by_token) return scored(f, r, z);
        z = mc_gen_unary(f, MC_OP_SOFTMAX, z);
        return two_results(r, mc_gen_op(f, MC_OP_ROUTE_CHOOSE, GEN_OPERANDS(z), GEN_ATTRS(MC_A_FLOAT("factor", 1.5))));
    default: ok = scored(f, r, z); break;
    }
    if (!ok || !r->weights || !mc_gen_chance(g, 30)) return ok && r->weights;
    mc_value *scales = mc_gen_weight(f, "router", MOEC_F32, 0, &r->E, 1); /* a learnt scale for each expert */
    mc_value *each = mc_gen_make(f, MC_OP_ROUTE_TAKE, GEN_OPERANDS(scales, r->ids), GEN_NONE);
    r->weights = mc_gen_binary(f, MC_OP_MUL, r->weights, each);
    return r->weights != NULL;
}

static route
some_experts(mc_gen *g)
{
    static const int64_t counts[] = {4, 6, 8};
    int64_t E = counts[mc_gen_pick(g, 3)];
    return (route){.E = E, .k = 1 + mc_gen_pick(g, 3)};
}

/* rows [R, d] -> [R, out] */
static mc_func *
body(mc_gen *g, int64_t d, int64_t out, int64_t experts)
{
    static const mc_opcode acts[] = {MC_OP_SILU, MC_OP_GELU, MC_OP_GELU_TANH, MC_OP_RELU, MC_OP_RELU2, MC_OP_SIGMOID};
    mc_gen_func f = mc_gen_func_begin(g, "expert");
    mc_dim dims[2] = {mc_gen_sym(g, "R"), mc_dim_const(d)};
    mc_value *x = mc_func_add_formal(f.func, mc_type_get(g->module, MOEC_F32, dims, 2), MC_STR("x"));
    int64_t width = 5 + mc_gen_pick(g, 12);
    mc_value *h = mc_gen_unary(&f, acts[mc_gen_pick(g, 6)], mc_gen_linear(&f, x, width, "experts", experts));
    if (mc_gen_chance(g, 70)) h = mc_gen_binary(&f, MC_OP_MUL, h, mc_gen_linear(&f, x, width, "experts", experts));
    if (g->trainable && mc_gen_chance(g, 30)) /* a parameter of all experts: its gradient sums over all their rows */
        h = mc_gen_binary(&f, MC_OP_MUL, h, mc_gen_weight(&f, "norm", MOEC_F32, 0, &width, 1));
    if (g->trainable && mc_gen_chance(g, 20)) h = mc_gen_linear(&f, h, width, "dense", 0);
    mc_value *y = mc_gen_linear(&f, h, out, "experts", experts);
    return y && mc_build_return(&f.b, &y, 1) ? f.func : NULL;
}

mc_value *
mc_gen_moe(mc_gen_func *f, mc_value *x)
{
    mc_gen *g = f->gen;
    route r = some_experts(g);
    bool with_tokens = f->tokens && mc_gen_chance(g, 50);
    int64_t identity = mc_gen_chance(g, 20) ? 2 : 0, real = r.E - identity;
    mc_func *experts = body(g, mc_gen_width(x), mc_gen_width(x), real);
    mc_gen_func inner = mc_gen_func_begin(g, "route");
    mc_value *in = mc_func_add_formal(inner.func, x->type, MC_STR("x"));
    if (with_tokens) inner.tokens = mc_func_add_formal(inner.func, f->tokens->type, MC_STR("tokens"));
    if (!experts || !choose(&inner, &r, in)) return NULL;
    if (!mc_build_return(&inner.b, (mc_value *[]){r.weights, r.ids}, 2)) return NULL;
    double capacity = g->by_token || mc_gen_chance(g, 60) ? 0 : 0.5 + 0.5 * mc_gen_pick(g, 3);
    mc_named_attr attrs[] = {MC_A_FUNC("route", inner.func),
                             MC_A_FUNC("body", experts),
                             MC_A_INT("experts", real),
                             MC_A_INT("identity", identity),
                             MC_A_BOOL("on_input", mc_gen_chance(g, 25)),
                             MC_A_FLOAT("capacity", capacity),
                             MC_A_STR("per", mc_gen_chance(g, 50) ? MC_STR("expert") : MC_STR("slot")),
                             MC_A_STR("drop", mc_gen_chance(g, 50) ? MC_STR("tail") : MC_STR("score"))};
    mc_value *operands[3] = {x, x, f->tokens};
    return mc_gen_make(f, MC_OP_MOE, operands, with_tokens ? 3 : 1, attrs, 8);
}

/* Mixture of attention in small: rows to their experts, something in between, and back. */
mc_value *
mc_gen_expert_ops(mc_gen_func *f, mc_value *x)
{
    mc_gen *g = f->gen;
    route r = some_experts(g);
    if (!choose(f, &r, x)) return NULL;
    int64_t d = mc_gen_width(x), middle = 4;
    mc_func *there = body(g, d, middle, r.E), *back = body(g, middle, d, r.E), *direct = body(g, d, d, r.E);
    if (!there || !back || !direct) return NULL;
    if (mc_gen_chance(g, 30))
        return mc_gen_make(f, MC_OP_EXPERT_SUM, GEN_OPERANDS(x, r.weights, r.ids),
                           GEN_ATTRS(MC_A_FUNC("body", direct), MC_A_INT("experts", r.E)));
    mc_value *z = mc_gen_make(f, MC_OP_EXPERT_MAP, GEN_OPERANDS(x, r.ids),
                              GEN_ATTRS(MC_A_FUNC("body", there), MC_A_INT("experts", r.E)));
    z = mc_gen_unary(f, MC_OP_TANH, z);
    return mc_gen_make(f, MC_OP_EXPERT_SUM, GEN_OPERANDS(z, r.weights, r.ids),
                       GEN_ATTRS(MC_A_FUNC("body", back), MC_A_INT("experts", r.E)));
}

static mc_value *
stack(mc_gen_func *f, int64_t E, int64_t out, int64_t in)
{
    return mc_gen_weight(f, "experts", MOEC_BF16, 0, (int64_t[]){E, out, in}, 3);
}

static mc_value *
typed(mc_gen_func *f, mc_opcode opcode, mc_value *const *operands, int n, const mc_type *type)
{
    mc_op *op = operands[0] ? mc_build_typed(&f->b, opcode, operands, n, NULL, 0, &type, 1) : NULL;
    return op ? mc_result(op, 0) : NULL;
}

/* What expand-moe or fuse-moe would make. */
mc_value *
mc_gen_primitives(mc_gen_func *f, mc_value *x)
{
    mc_gen *g = f->gen;
    route r = some_experts(g);
    int64_t d = mc_gen_width(x), F = 5 + mc_gen_pick(g, 12);
    if (!choose(f, &r, x)) return NULL;
    if (!g->by_token && mc_gen_chance(g, 50)) {
        mc_op *op = mc_gen_op(f, MC_OP_MOE_CAPACITY, GEN_OPERANDS(r.weights, r.ids),
                              GEN_ATTRS(MC_A_INT("experts", r.E), MC_A_FLOAT("factor", 1.0)));
        if (!two_results(&r, op)) return NULL;
    }
    mc_op *plan = mc_gen_op(f, MC_OP_MOE_DISPATCH, GEN_OPERANDS(r.weights, r.ids), GEN_ATTRS(MC_A_INT("experts", r.E)));
    if (!plan) return NULL;
    mc_value *offsets = &plan->results[0], *tokens = &plan->results[1], *gates = &plan->results[3];
    mc_value *down = stack(f, r.E, d, F), *y;
    if (!g->trainable && mc_gen_chance(g, 50)) {
        mc_value *h =
            mc_gen_make(f, MC_OP_MOE_FFN_UP, GEN_OPERANDS(x, stack(f, r.E, F, d), stack(f, r.E, F, d), offsets, tokens),
                        GEN_ATTRS(MC_A_STR("act", MC_STR("silu"))));
        y = typed(f, MC_OP_MOE_FFN_DOWN, GEN_OPERANDS(h, down, offsets, tokens, gates), x->type);
    } else {
        mc_value *rows = mc_gen_make(f, MC_OP_MOE_PERMUTE, GEN_OPERANDS(x, tokens, offsets), GEN_NONE);
        mc_value *h = mc_gen_make(f, MC_OP_GROUPED_MATMUL, GEN_OPERANDS(rows, stack(f, r.E, F, d), offsets), GEN_NONE);
        h = mc_gen_unary(f, MC_OP_RELU2, h);
        h = mc_gen_make(f, MC_OP_GROUPED_MATMUL, GEN_OPERANDS(h, down, offsets), GEN_NONE);
        y = typed(f, MC_OP_MOE_UNPERMUTE, GEN_OPERANDS(h, offsets, tokens, gates), x->type);
    }
    if (!y || !mc_gen_chance(g, 30)) return y;
    mc_value *same =
        mc_gen_make(f, MC_OP_MOE_IDENTITY, GEN_OPERANDS(x, r.weights, r.ids), GEN_ATTRS(MC_A_INT("first", 1)));
    return mc_gen_binary(f, MC_OP_ADD, y, same);
}
