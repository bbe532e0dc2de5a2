/* narrow: what matrix products and attention read is rounded to the precision they compute in. For GPUs, whose tensor
 * cores multiply bf16 and f16.
 *
 *   needs     stage tensor or dist, experts expanded; option train: f32 parameters are rounded too, where they are read
 *   keeps     sums: they stay f32; what the text wants in f32 (router, by default; norms; results)
 *   refuses   nothing
 *
 * The precision is `compute` of the precision block, else `storage`, else the type of the model's matrices (FP8: bf16).
 * A product whose weight is stored in another type, or whose role is router while `router` is f32, stays as it is;
 * attention too while `cache` is f32.
 *
 * before:  %h = rmsnorm %x, %n : f32                     after:  %h = rmsnorm %x, %n {to = bf16} : bf16
 *          %k = linear %h, %w : f32                              %k = linear %h, %w {to = bf16} : bf16
 *          %keys = cache %k                                      %keys = cache %k
 *          %o = sdpa %q, %keys, %v                               %o = sdpa %qb, %keys, %vb {to = bf16} : bf16
 *          %y = linear %o, %wo, _, _, %x                         %y = linear %o, %wo, _, _, %x {to = f32} : f32
 *
 * The one idea: first every such operand becomes a cast; then casts rise, through ops that only move elements, to the
 * op that made the value, which can round its result itself. A value that anybody reads in f32 stays, beside its cast.
 */
#include "ir/build.h"
#include "passes/match.h"
#include "passes/pass.h"

#include <string.h>

typedef struct narrowing {
    mc_pass *pass;
    mc_module *module;
    moec_dtype to;
    bool router, cache, train; /* what may be narrow beside the rest */
    mc_map roles;              /* path of a weight -> the op that has its role */
    mc_map casts;              /* id of a value's op and its number -> the cast */
} narrowing;

/* ---- which products ------------------------------------------------------------------------------------------- */

typedef struct product {
    mc_opcode opcode;
    const char *operands[4]; /* what it multiplies, without the weight */
    const char *weight;      /* NULL: it has none */
} product;

static const product products[] = {
    {MC_OP_LINEAR, {"x"}, "w"},           {MC_OP_GATED_LINEAR, {"x"}, "w_gate"},
    {MC_OP_HEAD_LINEAR, {"x"}, "w"},      {MC_OP_GROUPED_MATMUL, {"x"}, "w"},
    {MC_OP_MOE_FFN_UP, {"x"}, "w_gate"},  {MC_OP_MOE_FFN_DOWN, {"h"}, "w"},
    {MC_OP_SDPA, {"q", "k", "v"}, NULL},  {MC_OP_LATENT_SDPA, {"q", "c", "q_rot", "k_rot"}, NULL},
    {MC_OP_LINEAR_DX, {"dy"}, "w"},       {MC_OP_GROUPED_DX, {"dy"}, "w"},
    {MC_OP_LINEAR_DW, {"dy", "x"}, NULL}, {MC_OP_GROUPED_DW, {"dy", "x"}, NULL},
};

static const product *
product_of(const mc_op *op)
{
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        if (products[i].opcode == op->opcode) return &products[i];
    return NULL;
}

static bool
is_router(const narrowing *n, mc_str path)
{
    const mc_op *weight = mc_map_get(&n->roles, path);
    return weight && mc_str_is(mc_attr_str(weight, "role"), "router");
}

/* The router's weight gradient is known by where it goes. */
static bool
is_router_gradient(const narrowing *n, const mc_op *op)
{
    for (const mc_use *use = op->results[0].uses; use; use = use->next)
        if (use->user->opcode == MC_OP_ACCUMULATE && is_router(n, mc_attr_str(use->user, "path"))) return true;
    return false;
}

/* Whether the product is computed in n->to: its weight is stored so, or in FP8, or may be rounded. */
static bool
wanted(const narrowing *n, const mc_op *op, const product *p)
{
    bool attention = op->opcode == MC_OP_SDPA || op->opcode == MC_OP_LATENT_SDPA;
    if (attention && !n->cache && !n->train) return false; /* a cast would be of the whole history */
    if (!p->weight) return n->router || !is_router_gradient(n, op);
    const mc_value *w = mc_operand(op, mc_operand_index(op->opcode, p->weight));
    const mc_op *weight = mc_def_is(w, MC_OP_WEIGHT);
    if (!weight || (!n->router && mc_str_is(mc_attr_str(weight, "role"), "router"))) return false;
    moec_dtype stored = w->type->dtype;
    return stored == n->to || stored == MOEC_F8E4M3 || (n->train && stored == MOEC_F32);
}

/* ---- casts ---------------------------------------------------------------------------------------------------- */

static mc_value *
cast_of(narrowing *n, mc_value *v)
{
    mc_str key = mc_strf(n->pass->scratch, "%p", (void *)v);
    mc_value *known = mc_map_get(&n->casts, key);
    if (known) return known;
    mc_op *after = v->def ? v->def->next : v->func->first;
    mc_builder b = mc_builder_before(after, n->pass->diags);
    mc_named_attr to = MC_A_DTYPE("to", n->to);
    mc_value *y = mc_build1(&b, MC_OP_CAST, &v, 1, &to, 1);
    if (y) mc_map_set(&n->casts, key, y);
    return y;
}

static bool
narrow_operand(narrowing *n, mc_op *op, const char *name)
{
    int i = mc_operand_index(op->opcode, name);
    mc_value *v = mc_operand(op, i);
    if (v->type->dtype != MOEC_F32) return true;
    mc_value *narrow = cast_of(n, v);
    if (narrow) mc_op_set_operand(op, i, narrow);
    return narrow != NULL;
}

/* The result keeps its type, which would follow the first operand otherwise. */
static bool
narrow_product(narrowing *n, mc_op *op, const product *p)
{
    bool has_to = op->opcode != MC_OP_LINEAR_DW && op->opcode != MC_OP_GROUPED_DW;
    if (has_to && mc_attr_dtype(op, "to") == MOEC_DTYPE_NONE)
        mc_op_set_attr(op, "to", (mc_attr){.kind = MC_ATTR_DTYPE, .as.dtype = op->results[0].type->dtype});
    for (int i = 0; i < 4 && p->operands[i]; i++)
        if (!narrow_operand(n, op, p->operands[i])) return false;
    const mc_value *w = p->weight ? mc_operand(op, mc_operand_index(op->opcode, p->weight)) : NULL;
    if (!w || w->type->dtype != MOEC_F32) return true;
    if (op->opcode == MC_OP_MOE_FFN_UP || op->opcode == MC_OP_GATED_LINEAR)
        if (!narrow_operand(n, op, "w_up")) return false;
    return narrow_operand(n, op, p->weight);
}

/* ---- casts rise ----------------------------------------------------------------------------------------------- */

static bool
is_our_cast(const narrowing *n, const mc_op *op)
{
    return op->opcode == MC_OP_CAST && op->results[0].type->dtype == n->to;
}

static bool
only_cast(const narrowing *n, const mc_value *v)
{
    if (!v->uses || v->type->dtype != MOEC_F32) return false;
    for (const mc_use *use = v->uses; use; use = use->next)
        if (!is_our_cast(n, use->user)) return false;
    return true;
}

/* v becomes narrow; its casts are v itself. */
static void
absorb_casts(narrowing *n, mc_value *v)
{
    v->type = mc_type_with_dtype(n->module, v->type, n->to);
    while (v->uses && v->uses->user->opcode == MC_OP_CAST) {
        mc_op *cast = v->uses->user;
        mc_value_replace_uses(&cast->results[0], v);
        mc_op_remove(cast);
    }
}

static bool
rounds_itself(const mc_op *op)
{
    switch ((int)op->opcode) {
    case MC_OP_LINEAR: return !mc_operand_named(op, "residual");
    case MC_OP_LINEAR_DX:
    case MC_OP_GROUPED_DX: return !mc_operand_named(op, "residual");
    case MC_OP_GATED_LINEAR:
    case MC_OP_HEAD_LINEAR:
    case MC_OP_RMSNORM:
    case MC_OP_LAYERNORM:
    case MC_OP_ROPE:
    case MC_OP_SDPA:
    case MC_OP_LATENT_SDPA:
    case MC_OP_GROUPED_MATMUL:
    case MC_OP_MOE_UNPERMUTE:
    case MC_OP_MOE_FFN_UP:
    case MC_OP_MOE_FFN_DOWN:
    case MC_OP_GLU:
    case MC_OP_GLU_GRAD:
    case MC_OP_MOE_GLU_GRAD: return true;
    }
    return false;
}

/* Elements move, unchanged, from its first operand to its only result. */
static bool
only_moves(const narrowing *n, const mc_op *op)
{
    switch ((int)op->opcode) {
    case MC_OP_RESHAPE:
    case MC_OP_SLICE:
    case MC_OP_EXPAND:
    case MC_OP_TILE:
    case MC_OP_TRANSPOSE: return true;
    case MC_OP_CACHE: return n->cache;
    case MC_OP_MOE_PERMUTE: return !mc_operand_named(op, "gates");
    }
    return false;
}

/* All results that `to` speaks of. */
static bool
raise_into(narrowing *n, mc_op *op)
{
    int n_results = op->opcode == MC_OP_MOE_GLU_GRAD ? 3 : op->n_results;
    for (int i = 0; i < n_results; i++)
        if (!only_cast(n, mc_result(op, i))) return false;
    if (!mc_fuel(n->pass, op)) return false;
    mc_op_set_attr(op, "to", (mc_attr){.kind = MC_ATTR_DTYPE, .as.dtype = n->to});
    if (op->opcode == MC_OP_RMSNORM) /* the f32 result is what was rounded */
        mc_op_set_attr(op, "round", (mc_attr){.kind = MC_ATTR_STR, .as.s = MC_STR("after")});
    for (int i = 0; i < n_results; i++) absorb_casts(n, mc_result(op, i));
    return true;
}

static bool
raise_through(narrowing *n, mc_op *op)
{
    if (!only_cast(n, mc_result(op, 0)) || !mc_fuel(n->pass, op)) return false;
    mc_value *narrow = cast_of(n, mc_operand(op, 0));
    if (!narrow) return false;
    mc_op_set_operand(op, 0, narrow);
    absorb_casts(n, mc_result(op, 0));
    return true;
}

/* From the last op to the first: a cast that rises meets every op above it. */
static bool
raise_casts(narrowing *n, mc_func *f)
{
    bool changed = false;
    mc_op *prev;
    for (mc_op *op = f->last; op; op = prev) {
        if (rounds_itself(op))
            changed |= raise_into(n, op);
        else if (only_moves(n, op))
            changed |= raise_through(n, op);
        prev = op->prev;
    }
    return changed;
}

/* ---- the pass ------------------------------------------------------------------------------------------------- */

static moec_dtype
read_dtype(mc_str text)
{
    return mc_str_is(text, "bf16") ? MOEC_BF16 : mc_str_is(text, "f16") ? MOEC_F16 : MOEC_F32;
}

/* What the model's matrices are stored in. */
static moec_dtype
stored_type(const mc_module *m)
{
    MC_FOR_FUNCS(f, m)
    {
        MC_FOR_OPS(op, f)
        {
            const product *p = product_of(op);
            if (!p || !p->weight) continue;
            const mc_value *w = mc_operand(op, mc_operand_index(op->opcode, p->weight));
            if (!mc_def_is(w, MC_OP_WEIGHT) || mc_str_is(mc_attr_str(w->def, "role"), "router")) continue;
            return w->type->dtype == MOEC_F8E4M3 ? MOEC_BF16 : w->type->dtype;
        }
    }
    return MOEC_F32;
}

static void
read_policy(narrowing *n)
{
    mc_str compute = mc_module_meta(n->module, "precision.compute");
    mc_str storage = mc_module_meta(n->module, "precision.storage");
    mc_str router = mc_module_meta(n->module, "precision.router"), cache = mc_module_meta(n->module, "precision.cache");
    n->to = compute.len ? read_dtype(compute) : storage.len ? read_dtype(storage) : stored_type(n->module);
    n->router = router.len && !mc_str_is(router, "f32");
    n->cache = !mc_str_is(cache, "f32");
}

static void
read_roles(narrowing *n)
{
    MC_FOR_FUNCS(f, n->module)
    {
        MC_FOR_OPS(op, f) if (op->opcode == MC_OP_WEIGHT) mc_map_set(&n->roles, mc_attr_str(op, "path"), op);
    }
}

static mc_pass_result
narrow_func(narrowing *n, mc_func *f)
{
    bool changed = false;
    mc_map_init(&n->casts, n->pass->scratch);
    MC_FOR_OPS(op, f)
    {
        const product *p = product_of(op);
        if (!p || !wanted(n, op, p) || !mc_fuel(n->pass, op)) continue;
        if (!narrow_product(n, op, p)) return MC_FAILED;
        changed = true;
    }
    changed |= raise_casts(n, f);
    return changed ? MC_CHANGED : MC_UNCHANGED;
}

mc_pass_result
mc_pass_narrow(mc_pass *p, mc_module *m)
{
    narrowing n = {.pass = p, .module = m, .train = mc_pass_option(p, "train") != 0};
    read_policy(&n);
    if (n.to != MOEC_BF16 && n.to != MOEC_F16) return MC_UNCHANGED;
    mc_map_init(&n.roles, p->scratch);
    read_roles(&n);
    mc_pass_result result = MC_UNCHANGED;
    MC_FOR_FUNCS(f, m)
    {
        mc_pass_result r = narrow_func(&n, f);
        if (r == MC_FAILED) return MC_FAILED;
        if (r == MC_CHANGED) result = MC_CHANGED;
    }
    return result;
}
