/* fuse-moe: chains that backends compute in one go become one op.
 *
 *   needs     stage tensor or dist, canonical operand order, equal subexpressions merged
 *   keeps     the stage; every bit (each chain of additions keeps its order)
 *   refuses   (remark R0502 says why) when an intermediate has another use, gate and up read different rows, offsets or
 *             kinds of weight, the activation has no fused form, or the routing weights are on the input
 *
 * before:  %p = moe.permute %x, %tokens, %offsets
 *          %g = grouped_matmul %p, %wg, %offsets     %u = grouped_matmul %p, %wu, %offsets
 *          %a = silu %g     %h = mul %a, %u
 *          %o = grouped_matmul %h, %wd, %offsets
 *          %y = moe.unpermute %o, %offsets, %tokens, %gates
 *
 * after:   %h = moe.ffn_up %x, %wg, %wu, %offsets, %tokens {act = "silu"}
 *          %y = moe.ffn_down %h, %wd, %offsets, %tokens, %gates
 *
 * Also:    linear, linear, activation, mul on one input -> gated_linear
 *          add %r, (linear of one use) -> linear with %r as its residual
 *
 * With train = 1 what derivatives read stays apart: both matmuls of a pair stay and %a, %h become
 *          %h = glu %g, %u {act = "silu"}
 * grouped matmuls read the tokens' rows where they lie (operand `rows`) instead of a permuted copy, and the down
 * projection is fused only without bias and scale.
 */
#include "ir/build.h"
#include "passes/match.h"
#include "passes/pass.h"

#include <string.h>

/* act(gate) * up. `why` is NULL when it can be fused; `candidate` is false when it does not even look like it. */
typedef struct gated {
    mc_op *mul, *act, *gate, *up;
    bool candidate;
    const char *why;
} gated;

static const char *
refusal(mc_pass *p, const char *format, const mc_op *op)
{
    return mc_strf(p->scratch, format, mc_op_info_of(op)->text).data;
}

static bool
match_shape(mc_op *mul, mc_opcode matmul, gated *out)
{
    for (int side = 0; side < 2; side++) {
        const mc_value *a = mc_operand(mul, side);
        mc_op *act = a->def, *up = mc_def_is(mc_operand(mul, 1 - side), matmul);
        if (!act || !up || !mc_is_unary_elementwise(act->opcode)) continue;
        mc_op *gate = mc_def_is(mc_operand(act, 0), matmul);
        if (!gate || gate == up) continue;
        *out = (gated){.mul = mul, .act = act, .gate = gate, .up = up, .candidate = true};
        return true;
    }
    return false;
}

/* Packed together later, so they must be two stored matrices of one kind under one scope. */
static const char *
unpairable(const gated *g)
{
    const mc_value *wg = mc_operand_named(g->gate, "w"), *wu = mc_operand_named(g->up, "w");
    const mc_op *a = mc_def_is(wg, MC_OP_WEIGHT), *b = mc_def_is(wu, MC_OP_WEIGHT);
    if (!a || !b) return "a gate or up weight is computed, not stored";
    if (wg->type != wu->type) return "the gate and up weights differ in shape or element type";
    if (mc_attr_bool(a, "root") != mc_attr_bool(b, "root"))
        return "one of the gate and up weights is shared by its path";
    return NULL;
}

static gated
match_gated(mc_pass *p, mc_op *mul, mc_opcode matmul)
{
    gated g = {0};
    if (!match_shape(mul, matmul, &g)) return g;
    const mc_op *parts[] = {g.act, g.gate, g.up};
    for (int i = 0; i < 3 && !g.why; i++)
        if (!mc_value_has_one_use(&parts[i]->results[0])) g.why = refusal(p, "the '%s' has another use", parts[i]);
    if (!mc_is_fused_act(g.act->opcode)) g.why = refusal(p, "the activation '%s' has no fused form", g.act);
    if (!g.why) g.why = unpairable(&g);
    if (mc_operand(g.gate, 0) != mc_operand(g.up, 0)) g.why = "gate and up read different inputs";
    return g;
}

static mc_named_attr
act_attr(const gated *g)
{
    return (mc_named_attr)MC_A_STR("act", mc_str_of(mc_op_info_of(g->act)->text));
}

static void
replace(mc_op *old, mc_op *made)
{
    mc_value *from = mc_result(old, 0), *to = mc_result(made, 0);
    if (to->name.len == 0) to->name = from->name;
    mc_value_replace_uses(from, to);
    mc_op_remove(old);
}

/* mul -> made, and what fed only it goes. */
static void
replace_gated(const gated *g, mc_op *made)
{
    replace(g->mul, made);
    mc_op_remove(g->act);
    mc_op_remove(g->gate);
    mc_op_remove(g->up);
}

/* ---- dense ------------------------------------------------------------------------------------------------------- */

static mc_pass_result
fuse_dense(mc_pass *p, mc_op *mul)
{
    gated g = match_gated(p, mul, MC_OP_LINEAR);
    /* a product of two linears of different inputs is a gate on something else, not a feed-forward pair */
    if (!g.candidate || mc_operand(g.gate, 0) != mc_operand(g.up, 0)) return MC_UNCHANGED;
    if (mul->results[0].type != g.gate->results[0].type || mul->results[0].type != g.up->results[0].type)
        return MC_UNCHANGED;
    if (mc_operand_named(g.gate, "residual") || mc_operand_named(g.up, "residual")) g.why = "a linear has a residual";
    if (g.why) {
        mc_remark(p->diags, mul->span, MC_R0502, "gate and up stay two matmuls: %s", g.why);
        return MC_UNCHANGED;
    }
    if (!mc_fuel(p, mul)) return MC_UNCHANGED;
    mc_builder b = mc_builder_before(mul, p->diags);
    b.span = g.gate->span;
    mc_named_attr act = act_attr(&g);
    mc_op *made =
        mc_build(&b, MC_OP_GATED_LINEAR,
                 (mc_value *[]){mc_operand(g.gate, 0), mc_operand_named(g.gate, "w"), mc_operand_named(g.up, "w"),
                                mc_operand_named(g.gate, "bias"), mc_operand_named(g.up, "bias"),
                                mc_operand_named(g.gate, "scale"), mc_operand_named(g.up, "scale")},
                 7, &act, 1);
    if (!made) return MC_FAILED;
    mc_remark(p->diags, b.span, MC_R0501, "gate and up are one gated_linear");
    replace_gated(&g, made);
    return MC_CHANGED;
}

/* ---- experts ----------------------------------------------------------------------------------------------------- */

/* Why the first half of the experts, which ends in h, cannot be one op; NULL: it can, and g and permute are set. */
static const char *
match_up(mc_pass *p, const mc_value *h, gated *g, mc_op **permute)
{
    mc_op *mul = mc_def_is(h, MC_OP_MUL);
    if (!mul)
        return h->def ? refusal(p, "'%s' before the down projection is no product act(gate) * up", h->def)
                      : "the down projection reads an argument";
    *g = match_gated(p, mul, MC_OP_GROUPED_MATMUL);
    if (!g->candidate) return "the product before the down projection is not act(gate) * up";
    if (g->why) return g->why;
    *permute = mc_def_is(mc_operand(g->gate, 0), MC_OP_MOE_PERMUTE);
    if (!*permute) return "gate and up do not read permuted rows directly";
    if (mc_operand_named(*permute, "gates")) return "the routing weights are on the experts' input";
    if (mc_operand_named(g->gate, "rows") || mc_operand_named(g->up, "rows")) return "gate or up gathers its rows";
    const mc_value *offsets = mc_operand_named(*permute, "offsets");
    if (mc_operand_named(g->gate, "offsets") != offsets || mc_operand_named(g->up, "offsets") != offsets)
        return "gate, up and permute have different offsets";
    for (const mc_use *u = (*permute)->results[0].uses; u; u = u->next)
        if (u->user != g->gate && u->user != g->up) return refusal(p, "the '%s' has another use", *permute);
    return NULL;
}

static mc_value *
fuse_up(mc_pass *p, const gated *g, mc_op *permute)
{
    mc_builder b = mc_builder_before(g->mul, p->diags);
    b.span = g->gate->span;
    mc_named_attr act = act_attr(g);
    mc_op *made =
        mc_build(&b, MC_OP_MOE_FFN_UP,
                 (mc_value *[]){mc_operand(permute, 0), mc_operand_named(g->gate, "w"), mc_operand_named(g->up, "w"),
                                mc_operand_named(g->gate, "offsets"), mc_operand_named(permute, "rows"),
                                mc_operand_named(g->gate, "bias"), mc_operand_named(g->up, "bias"),
                                mc_operand_named(g->gate, "scale"), mc_operand_named(g->up, "scale")},
                 9, &act, 1);
    if (!made) return NULL;
    replace_gated(g, made);
    mc_op_remove(permute);
    return mc_result(made, 0);
}

static const char *
match_down(mc_pass *p, const mc_op *unpermute, mc_op **down)
{
    const mc_value *y = mc_operand(unpermute, 0);
    *down = mc_def_is(y, MC_OP_GROUPED_MATMUL);
    if (!*down)
        return y->def ? refusal(p, "what is combined comes from '%s', not from a matmul", y->def)
                      : "what is combined is an argument";
    if (!mc_value_has_one_use(y)) return refusal(p, "the '%s' has another use", *down);
    if (mc_operand_named(*down, "offsets") != mc_operand_named(unpermute, "offsets"))
        return "the down projection and unpermute have different offsets";
    if (mc_operand_named(*down, "rows")) return "the down projection gathers its rows";
    return NULL;
}

static mc_op *
build_down(mc_pass *p, mc_op *unpermute, const mc_op *down)
{
    mc_builder b = mc_builder_before(unpermute, p->diags);
    return mc_build_typed(&b, MC_OP_MOE_FFN_DOWN,
                          (mc_value *[]){mc_operand(down, 0), mc_operand_named(down, "w"),
                                         mc_operand_named(down, "offsets"), mc_operand_named(unpermute, "rows"),
                                         mc_operand_named(unpermute, "gates"), mc_operand_named(down, "bias"),
                                         mc_operand_named(down, "scale")},
                          7, NULL, 0, (const mc_type *[]){unpermute->results[0].type}, 1);
}

static mc_pass_result
fuse_experts(mc_pass *p, mc_op *unpermute)
{
    mc_op *down = NULL, *permute = NULL;
    gated g = {0};
    const char *why = match_down(p, unpermute, &down);
    if (why) {
        mc_remark(p->diags, unpermute->span, MC_R0502, "experts are not fused: %s", why);
        return MC_UNCHANGED;
    }
    why = match_up(p, mc_operand(down, 0), &g, &permute);
    if (!mc_fuel(p, unpermute)) return MC_UNCHANGED;
    if (!why && !fuse_up(p, &g, permute)) return MC_FAILED;
    mc_op *made = build_down(p, unpermute, down);
    if (!made) return MC_FAILED;
    if (why)
        mc_remark(p->diags, made->span, MC_R0502, "only the experts' down projection is fused: %s", why);
    else
        mc_remark(p->diags, made->span, MC_R0501, "experts are moe.ffn_up and moe.ffn_down");
    replace(unpermute, made);
    mc_op_remove(down);
    return MC_CHANGED;
}

/* ---- training ---------------------------------------------------------------------------------------------------- */

static mc_pass_result
fuse_glu(mc_pass *p, mc_op *mul)
{
    for (int side = 0; side < 2; side++) {
        mc_op *act = mc_operand(mul, side)->def;
        mc_value *up = mc_operand(mul, 1 - side);
        if (!act || !mc_is_fused_act(act->opcode)) continue;
        mc_value *gate = mc_operand(act, 0);
        if (gate->type != up->type || mul->results[0].type != up->type) continue;
        if (!mc_value_has_one_use(&act->results[0])) {
            mc_remark(p->diags, mul->span, MC_R0502, "no glu: %s", refusal(p, "the '%s' has another use", act));
            continue;
        }
        if (!mc_fuel(p, mul)) return MC_UNCHANGED;
        mc_builder b = mc_builder_before(mul, p->diags);
        mc_named_attr attr = MC_A_STR("act", mc_str_of(mc_op_info_of(act)->text));
        mc_op *made = mc_build(&b, MC_OP_GLU, (mc_value *[]){gate, up}, 2, &attr, 1);
        if (!made) return MC_FAILED;
        mc_remark(p->diags, b.span, MC_R0501, "the activation and the product after it are one glu");
        replace(mul, made);
        mc_op_remove(act);
        return MC_CHANGED;
    }
    return MC_UNCHANGED;
}

/* A down projection that fuse_down will take: fused, its weighted outputs need not be kept for the gates' derivative.
 */
static bool
is_weighted_down(const mc_op *matmul)
{
    const mc_value *y = &matmul->results[0];
    const mc_op *sum = mc_value_has_one_use(y) ? y->uses->user : NULL;
    return sum && sum->opcode == MC_OP_MOE_UNPERMUTE && mc_operand_named(sum, "gates") &&
           !mc_operand_named(matmul, "bias") && !mc_operand_named(matmul, "scale");
}

/* Why the readers of permuted rows cannot fetch the rows themselves; NULL: they can. */
static const char *
match_gather(mc_pass *p, const mc_op *permute)
{
    if (mc_operand_named(permute, "gates")) return "the routing weights are on the experts' input";
    for (const mc_use *u = permute->results[0].uses; u; u = u->next) {
        bool reads = u->user->opcode == MC_OP_GROUPED_MATMUL && u == &u->user->operands[0];
        if (!reads) return refusal(p, "'%s' reads them too", u->user);
        if (mc_operand_named(u->user, "rows")) return "a matmul gathers them once more";
        if (mc_operand_named(u->user, "offsets") != mc_operand_named(permute, "offsets"))
            return "a matmul and permute have different offsets";
        if (is_weighted_down(u->user)) return "a down projection is fused with the sum over experts instead";
    }
    return NULL;
}

static mc_pass_result
fuse_gather(mc_pass *p, mc_op *permute)
{
    mc_value *permuted = &permute->results[0];
    if (!mc_value_has_uses(permuted)) return MC_UNCHANGED;
    const char *why = match_gather(p, permute);
    if (why) {
        mc_remark(p->diags, permute->span, MC_R0502, "permuted rows stay an array: %s", why);
        return MC_UNCHANGED;
    }
    if (!mc_fuel(p, permute)) return MC_UNCHANGED;
    int at = mc_operand_index(MC_OP_GROUPED_MATMUL, "rows");
    while (permuted->uses) {
        mc_op *matmul = permuted->uses->user;
        mc_op_set_operand(matmul, 0, mc_operand_named(permute, "x"));
        mc_op_set_operand(matmul, at, mc_operand_named(permute, "rows"));
    }
    mc_remark(p->diags, permute->span, MC_R0501, "matmuls read the tokens' rows where they lie");
    mc_op_remove(permute);
    return MC_CHANGED;
}

/* With a bias or scale the derivatives need the experts' outputs apart. */
static mc_pass_result
fuse_down(mc_pass *p, mc_op *unpermute)
{
    mc_op *down = NULL;
    const char *why = match_down(p, unpermute, &down);
    if (!why && mc_operand_named(down, "bias")) why = "it has a bias";
    if (!why && mc_operand_named(down, "scale")) why = "it has a scale";
    if (why) {
        mc_remark(p->diags, unpermute->span, MC_R0502, "the down projection is not fused: %s", why);
        return MC_UNCHANGED;
    }
    if (!mc_fuel(p, unpermute)) return MC_UNCHANGED;
    mc_op *made = build_down(p, unpermute, down);
    if (!made) return MC_FAILED;
    mc_remark(p->diags, made->span, MC_R0501, "the down projection and the sum over experts are moe.ffn_down");
    replace(unpermute, made);
    mc_op_remove(down);
    return MC_CHANGED;
}

/* ---- residual ---------------------------------------------------------------------------------------------------- */

static mc_pass_result
fuse_residual(mc_pass *p, mc_op *add)
{
    const mc_type *type = add->results[0].type;
    mc_op *shared = NULL;
    for (int side = 1; side >= 0; side--) {
        mc_op *linear = mc_def_is(mc_operand(add, side), MC_OP_LINEAR);
        mc_value *other = mc_operand(add, 1 - side);
        if (!linear || linear->results[0].type != type || other->type != type || mc_operand_named(linear, "residual"))
            continue;
        if (!mc_value_has_one_use(&linear->results[0])) {
            shared = linear;
            continue;
        }
        if (!mc_fuel(p, add)) return MC_UNCHANGED;
        mc_builder b = mc_builder_before(add, p->diags);
        b.span = linear->span;
        mc_op *made = mc_build(&b, MC_OP_LINEAR,
                               (mc_value *[]){mc_operand(linear, 0), mc_operand(linear, 1), mc_operand(linear, 2),
                                              mc_operand(linear, 3), other},
                               5, NULL, 0);
        if (!made) return MC_FAILED;
        mc_remark(p->diags, b.span, MC_R0501, "the addition after this linear is part of it");
        replace(add, made);
        mc_op_remove(linear);
        return MC_CHANGED;
    }
    if (shared)
        mc_remark(p->diags, add->span, MC_R0502, "the addition stays apart: the 'linear' before it has another use");
    return MC_UNCHANGED;
}

static mc_pass_result
run(mc_pass *p, mc_func *f)
{
    mc_pass_result result = MC_UNCHANGED;
    bool train = mc_pass_option(p, "train") != 0;
    mc_op *next;
    for (mc_op *op = f->first; op; op = next) {
        next = op->next;
        mc_pass_result r = MC_UNCHANGED;
        if (op->opcode == MC_OP_MUL) r = train ? fuse_glu(p, op) : fuse_dense(p, op);
        if (op->opcode == MC_OP_ADD) r = fuse_residual(p, op);
        if (op->opcode == MC_OP_MOE_UNPERMUTE) r = train ? fuse_down(p, op) : fuse_experts(p, op);
        if (op->opcode == MC_OP_MOE_PERMUTE && train) r = fuse_gather(p, op);
        if (r == MC_FAILED) return r;
        if (r == MC_CHANGED) result = r;
    }
    return result;
}

mc_pass_result
mc_pass_fuse_moe(mc_pass *p, mc_module *m)
{
    return mc_pass_over_funcs(p, m, run);
}
