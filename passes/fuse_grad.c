/* fuse-grad: what backward functions compute piece by piece, in fewer sweeps over memory.
 *
 *   needs     stage tensor or dist, after autodiff, equal subexpressions merged
 *   keeps     the stage; results of forward functions bit by bit. Gradients are sums of the same terms in another order
 *   refuses   (remark R0502 says why) when an intermediate has another use or is needed too early
 *
 * before:  %da = grouped_dx %dy, %wd, %offsets, %tokens        after:  %da = grouped_dx %dy, %wd, %offsets, %tokens
 *          %h = glu %g, %u                                             %dg, %du, %h, %dgates =
 *          %dgates = row_dot %da, %h                                       moe.glu_grad %g, %u, %da, %gates
 *          %column = reshape %gates
 *          %dh = mul %da, %column
 *          %dg, %du = glu_grad %g, %u, %dh
 *
 *          %a = grouped_dx %du, %wu, %offsets                          %a = grouped_dx %du, %wu, %offsets
 *          %x = moe.unpermute %a, %offsets, %tokens
 *          %1 = add %dy, %x
 *          %b = grouped_dx %dg, %wg, %offsets                          %b = grouped_dx %dg, %wg, %offsets, _, %a
 *          %y = moe.unpermute %b, %offsets, %tokens                    %y = moe.unpermute %b, %offsets, %tokens
 *          %2 = add %1, %y                                             %2 = add %dy, %y
 *
 * Also:    add %r, (linear_dx or grouped_dx of one use) -> the product with %r as its residual
 *          accumulate (add %dw, %dw2) -> two accumulates, when a product can then add to the gradient in place;
 *          accumulates stand right after what they add
 */
#include "ir/build.h"
#include "passes/match.h"
#include "passes/pass.h"

static bool
stands_before(const mc_op *a, const mc_op *b)
{
    const mc_op *op = b->prev;
    while (op && op != a) op = op->prev;
    return op != NULL;
}

static bool
known_at(const mc_value *v, const mc_op *site)
{
    return !v->def || stands_before(v->def, site);
}

static void
take_place(mc_value *from, mc_value *to)
{
    if (to->name.len == 0) to->name = from->name;
    mc_value_replace_uses(from, to);
}

static mc_pass_result
not_fused(mc_pass *p, const mc_op *op, const char *what, const char *why)
{
    mc_remark(p->diags, op->span, MC_R0502, "%s: %s", what, why);
    return MC_UNCHANGED;
}

/* ---- through the activation of experts ------------------------------------------------------------------------- */

typedef struct expert_grad {
    mc_op *grad, *scaled; /* glu_grad, mul */
    mc_op *column, *glu;
    mc_op *dot; /* row_dot, or NULL when the gates want no derivative */
    mc_value *g, *u, *da, *gates;
} expert_grad;

/* mul %da, (reshape %gates to a column) */
static bool
match_scaled(expert_grad *e)
{
    for (int side = 0; side < 2; side++) {
        mc_op *column = mc_def_is(mc_operand(e->scaled, side), MC_OP_RESHAPE);
        mc_value *da = mc_operand(e->scaled, 1 - side), *gates = column ? mc_operand(column, 0) : NULL;
        const mc_type *t = column ? column->results[0].type : NULL;
        bool fits = gates && da->type == e->g->type && da->type->rank == 2 && gates->type->rank == 1 && t->rank == 2 &&
                    mc_dim_eq(t->dims[0], da->type->dims[0]) && mc_dim_eq(t->dims[1], mc_dim_const(1));
        if (!fits) continue;
        e->column = column;
        e->da = da;
        e->gates = gates;
        return true;
    }
    return false;
}

static bool
match_experts(mc_op *grad, expert_grad *out)
{
    expert_grad e = {.grad = grad, .scaled = mc_def_is(mc_operand(grad, 2), MC_OP_MUL)};
    e.g = mc_operand(grad, 0);
    e.u = mc_operand(grad, 1);
    if (!e.scaled || !match_scaled(&e)) return false;
    for (const mc_use *use = e.g->uses; use; use = use->next) {
        mc_op *op = use->user;
        bool same = op->opcode == MC_OP_GLU && mc_operand(op, 0) == e.g && mc_operand(op, 1) == e.u &&
                    mc_str_eq(mc_attr_str(op, "act"), mc_attr_str(grad, "act"));
        if (same) e.glu = op;
    }
    if (!e.glu) return false;
    const mc_value *h = &e.glu->results[0];
    for (const mc_use *use = h->uses; use; use = use->next) {
        bool dot = use->user->opcode == MC_OP_ROW_DOT;
        if (dot && (mc_operand(use->user, 0) == e.da || mc_operand(use->user, 1) == e.da)) e.dot = use->user;
    }
    *out = e;
    return true;
}

/* The first op that reads something which the fused op will make. */
static mc_op *
first_reader(const expert_grad *e)
{
    mc_op *op = e->grad->func->first;
    for (; op != e->grad && op != e->scaled; op = op->next)
        for (int i = 0; i < op->n_operands; i++)
            if (mc_operand(op, i) == &e->glu->results[0]) return op;
    return op;
}

static mc_pass_result
fuse_experts(mc_pass *p, mc_op *grad)
{
    static const char what[] = "the derivative through the activation stays several ops";
    expert_grad e;
    if (!match_experts(grad, &e)) return MC_UNCHANGED;
    if (!mc_value_has_one_use(&e.scaled->results[0])) return not_fused(p, grad, what, "the 'mul' has another use");
    mc_op *site = first_reader(&e);
    if (!known_at(e.g, site) || !known_at(e.u, site) || !known_at(e.da, site) || !known_at(e.gates, site))
        return not_fused(p, grad, what, "the 'glu' is needed before all inputs are known");
    if (!mc_fuel(p, grad)) return MC_UNCHANGED;
    mc_builder b = mc_builder_before(site, p->diags);
    b.span = grad->span;
    mc_named_attr act = MC_A_STR("act", mc_attr_str(grad, "act"));
    mc_op *made = mc_build(&b, MC_OP_MOE_GLU_GRAD, (mc_value *[]){e.g, e.u, e.da, e.gates}, 4, &act, 1);
    if (!made) return MC_FAILED;
    mc_remark(p->diags, b.span, MC_R0501, "the derivatives through the activation and of the gates are one sweep");
    take_place(&grad->results[0], &made->results[0]);
    take_place(&grad->results[1], &made->results[1]);
    take_place(&e.glu->results[0], &made->results[2]);
    if (e.dot) take_place(&e.dot->results[0], &made->results[3]);
    mc_op_remove(grad);
    mc_op_remove(e.scaled);
    if (!mc_value_has_uses(&e.column->results[0])) mc_op_remove(e.column);
    if (e.dot) mc_op_remove(e.dot);
    mc_op_remove(e.glu);
    return MC_CHANGED;
}

/* ---- rows of experts back to tokens ---------------------------------------------------------------------------- */

/* A plain moe.unpermute of what a grouped_dx made for nothing else, itself read once. */
static mc_op *
match_unpermute(mc_value *v)
{
    mc_op *op = mc_def_is(v, MC_OP_MOE_UNPERMUTE);
    if (!op || mc_operand_named(op, "gates") || !mc_value_has_one_use(v)) return NULL;
    const mc_value *y = mc_operand(op, 0);
    return mc_def_is(y, MC_OP_GROUPED_DX) && mc_value_has_one_use(y) ? op : NULL;
}

/* Nothing is stretched. */
static bool
is_plain(const mc_op *add)
{
    const mc_type *type = add->results[0].type;
    return mc_operand(add, 0)->type == type && mc_operand(add, 1)->type == type;
}

/* One like `to` among the terms of the sum v, with no reader but that sum. */
static mc_op *
find_term(mc_value *v, const mc_op *to, int depth)
{
    enum { MAX_TERMS = 16 };
    mc_op *op = match_unpermute(v);
    bool same = op && mc_operand(op, 1) == mc_operand(to, 1) && mc_operand(op, 2) == mc_operand(to, 2) &&
                v->type == to->results[0].type && mc_operand(op, 0)->type == mc_operand(to, 0)->type;
    if (same) return op;
    mc_op *add = mc_def_is(v, MC_OP_ADD);
    if (!add || depth == MAX_TERMS || v->type != to->results[0].type || !mc_value_has_one_use(v) || !is_plain(add))
        return NULL;
    mc_op *found = find_term(mc_operand(add, 0), to, depth + 1);
    return found ? found : find_term(mc_operand(add, 1), to, depth + 1);
}

/* Takes an op's result, which one add reads, out of that sum. */
static void
leave_sum(mc_op *op)
{
    mc_op *add = op->results[0].uses->user;
    mc_value *other = mc_operand(add, 0) == &op->results[0] ? mc_operand(add, 1) : mc_operand(add, 0);
    take_place(&add->results[0], other);
    mc_op_remove(add);
    mc_op_remove(op);
}

static mc_pass_result
fuse_sum(mc_pass *p, mc_op *add)
{
    int residual = mc_operand_index(MC_OP_GROUPED_DX, "residual");
    for (int side = 1; side >= 0 && is_plain(add); side--) {
        mc_op *one = match_unpermute(mc_operand(add, side)), *two = NULL;
        if (one) two = find_term(mc_operand(add, 1 - side), one, 0);
        if (!two) continue;
        mc_op *last = mc_operand(one, 0)->def, *first = mc_operand(two, 0)->def;
        if (stands_before(last, first)) {
            mc_op *other = last;
            last = first;
            first = other;
        }
        if (mc_operand(last, residual))
            return not_fused(p, add, "rows are added as tokens", "the later 'grouped_dx' has a residual already");
        if (!mc_fuel(p, add)) return MC_UNCHANGED;
        mc_op *gone = mc_operand(one, 0)->def == first ? one : two;
        mc_remark(p->diags, last->span, MC_R0501, "two derivatives of the same rows are one array");
        leave_sum(gone);
        mc_op_set_operand(last, residual, &first->results[0]);
        return MC_CHANGED;
    }
    return MC_UNCHANGED;
}

/* ---- residuals ------------------------------------------------------------------------------------------------- */

static mc_pass_result
fuse_residual(mc_pass *p, mc_op *add)
{
    for (int side = 1; side >= 0 && is_plain(add); side--) {
        mc_value *product = mc_operand(add, side), *other = mc_operand(add, 1 - side);
        mc_op *op = product->def;
        if (!op || (op->opcode != MC_OP_LINEAR_DX && op->opcode != MC_OP_GROUPED_DX)) continue;
        int at = mc_operand_index(op->opcode, "residual");
        if (mc_operand(op, at) || !mc_value_has_one_use(product)) continue;
        if (!mc_fuel(p, add)) return MC_UNCHANGED;
        mc_remark(p->diags, add->span, MC_R0501, "the addition after this '%s' is part of it", mc_op_info_of(op)->text);
        /* the product moves to where the other term is known */
        mc_op_move_before(add, op);
        mc_op_set_operand(op, at, other);
        take_place(&add->results[0], product);
        mc_op_remove(add);
        return MC_CHANGED;
    }
    return MC_UNCHANGED;
}

/* ---- gradients of parameters ----------------------------------------------------------------------------------- */

static bool
adds_in_place(const mc_value *v)
{
    bool adds = v->def && (v->def->opcode == MC_OP_LINEAR_DW || v->def->opcode == MC_OP_GROUPED_DW ||
                           v->def->opcode == MC_OP_EMBED_DW);
    return adds && mc_value_has_one_use(v);
}

/* accumulate (add %a, %b): %b stays with this op, %a gets one of its own before it. Sums of sums likewise. */
static mc_pass_result
split_sum(mc_pass *p, mc_op *accumulate)
{
    mc_value *sum = mc_operand(accumulate, 0);
    mc_op *add = mc_def_is(sum, MC_OP_ADD);
    if (!add || !mc_value_has_one_use(sum) || !is_plain(add) || mc_operand(accumulate, 1)) return MC_UNCHANGED;
    mc_value *a = mc_operand(add, 0), *b = mc_operand(add, 1);
    if (!adds_in_place(a) && !adds_in_place(b)) return MC_UNCHANGED;
    if (!mc_fuel(p, accumulate)) return MC_UNCHANGED;
    mc_builder at = mc_builder_before(accumulate, p->diags);
    mc_named_attr attrs[] = {MC_A_STR("path", mc_attr_str(accumulate, "path")),
                             MC_A_BOOL("root", mc_attr_bool(accumulate, "root"))};
    mc_op *part = mc_build(&at, MC_OP_ACCUMULATE, &a, 1, attrs, 2);
    if (!part) return MC_FAILED;
    mc_remark(p->diags, accumulate->span, MC_R0501, "the parts of a gradient are added to it one by one");
    mc_op_set_operand(accumulate, 0, b);
    mc_op_remove(add);
    return split_sum(p, part) == MC_FAILED || split_sum(p, accumulate) == MC_FAILED ? MC_FAILED : MC_CHANGED;
}

/* Memory of what was added is free sooner. */
static mc_pass_result
move_up(mc_pass *p, mc_op *accumulate)
{
    const mc_op *def = mc_operand(accumulate, 0)->def;
    mc_op *place = def ? def->next : accumulate;
    while (place != accumulate && place->opcode == MC_OP_ACCUMULATE) place = place->next;
    if (place == accumulate || mc_operand(accumulate, 1) || !mc_fuel(p, accumulate)) return MC_UNCHANGED;
    mc_op_move_before(place, accumulate);
    return MC_CHANGED;
}

/* ---- the function ---------------------------------------------------------------------------------------------- */

static mc_pass_result
sweep(mc_pass *p, mc_func *f, mc_opcode opcode, mc_pass_result (*fuse)(mc_pass *p, mc_op *op))
{
    mc_pass_result result = MC_UNCHANGED;
    mc_op *next;
    for (mc_op *op = f->first; op; op = next) {
        next = op->next;
        if (op->opcode != opcode) continue;
        mc_pass_result r = fuse(p, op);
        if (r == MC_FAILED) return r;
        if (r == MC_CHANGED) result = r;
    }
    return result;
}

/* Sums of rows first: once a product has taken a sum as its residual, the terms are no longer seen. */
static mc_pass_result
run(mc_pass *p, mc_func *f)
{
    static const struct {
        mc_opcode opcode;
        mc_pass_result (*fuse)(mc_pass *p, mc_op *op);
    } sweeps[] = {{MC_OP_GLU_GRAD, fuse_experts},
                  {MC_OP_ADD, fuse_sum},
                  {MC_OP_ADD, fuse_residual},
                  {MC_OP_ACCUMULATE, split_sum},
                  {MC_OP_ACCUMULATE, move_up}};
    mc_pass_result result = MC_UNCHANGED;
    for (size_t i = 0; i < sizeof sweeps / sizeof sweeps[0]; i++) {
        mc_pass_result r = sweep(p, f, sweeps[i].opcode, sweeps[i].fuse);
        if (r == MC_FAILED) return r;
        if (r == MC_CHANGED) result = r;
    }
    return result;
}

mc_pass_result
mc_pass_fuse_grad(mc_pass *p, mc_module *m)
{
    return mc_pass_over_funcs(p, m, run);
}
