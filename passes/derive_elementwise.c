/* Derivatives: elementwise ops, casts, norms and softmax. */
#include "passes/derive.h"

bool
mc_derive_cast(mc_derive *d)
{
    const mc_type *x = mc_operand(d->op, 0)->type;
    mc_named_attr to = MC_A_DTYPE("to", x->dtype);
    mc_value *dy = mc_d_of(d, 0);
    return mc_d_give(d, 0, mc_build1(&d->b, MC_OP_CAST, &dy, 1, &to, 1));
}

bool
mc_derive_add(mc_derive *d)
{
    return mc_d_give(d, 0, mc_d_of(d, 0)) && mc_d_give(d, 1, mc_d_of(d, 0));
}

bool
mc_derive_sub(mc_derive *d)
{
    if (!mc_d_give(d, 0, mc_d_of(d, 0))) return false;
    return !mc_d_wants(d, 1) || mc_d_give(d, 1, mc_build_unary(&d->b, MC_OP_NEG, mc_d_of(d, 0)));
}

bool
mc_derive_mul(mc_derive *d)
{
    for (int i = 0; i < 2; i++) {
        if (!mc_d_wants(d, i)) continue;
        if (!mc_d_give(d, i, mc_d_op2(d, MC_OP_MUL, mc_d_of(d, 0), mc_d_operand(d, 1 - i)))) return false;
    }
    return true;
}

/* y = a / b: da = dy / b, db = -dy a / b^2 */
bool
mc_derive_div(mc_derive *d)
{
    mc_value *b = mc_d_operand(d, 1);
    if (!b) return false;
    if (mc_d_wants(d, 0) && !mc_d_give(d, 0, mc_d_op2(d, MC_OP_DIV, mc_d_of(d, 0), b))) return false;
    if (!mc_d_wants(d, 1)) return true;
    mc_value *above = mc_d_op2(d, MC_OP_MUL, mc_d_of(d, 0), mc_d_operand(d, 0));
    mc_value *whole = above ? mc_d_op2(d, MC_OP_DIV, above, mc_d_op2(d, MC_OP_MUL, b, b)) : NULL;
    return whole && mc_d_give(d, 1, mc_build_unary(&d->b, MC_OP_NEG, whole));
}

bool
mc_derive_unary(mc_derive *d)
{
    mc_opcode of = d->op->opcode;
    if (of == MC_OP_NEG) return mc_d_give(d, 0, mc_build_unary(&d->b, MC_OP_NEG, mc_d_of(d, 0)));
    mc_named_attr attrs[4] = {MC_A_STR("of", mc_str_of(mc_op_info_of(d->op)->text))};
    int n = 1;
    static const char *const names[] = {"lo", "hi", "cap"};
    for (int i = 0; i < 3; i++) {
        if (mc_attr_index(of, mc_str_of(names[i])) < 0) continue;
        attrs[n++] = (mc_named_attr)MC_A_FLOAT(names[i], mc_attr_float(d->op, names[i]));
    }
    mc_value *operands[] = {mc_d_operand(d, 0), mc_d_of(d, 0)};
    return operands[0] && mc_d_give(d, 0, mc_build1(&d->b, MC_OP_UNARY_GRAD, operands, 2, attrs, n));
}

bool
mc_derive_glu(mc_derive *d)
{
    mc_named_attr act = MC_A_STR("act", mc_attr_str(d->op, "act"));
    mc_value *operands[] = {mc_d_operand(d, 0), mc_d_operand(d, 1), mc_d_of(d, 0)};
    if (!operands[0] || !operands[1]) return false;
    mc_op *made = mc_build(&d->b, MC_OP_GLU_GRAD, operands, 3, &act, 1);
    return made && mc_d_give(d, 0, mc_result(made, 0)) && mc_d_give(d, 1, mc_result(made, 1));
}

bool
mc_derive_softmax(mc_derive *d)
{
    return mc_d_give(d, 0, mc_d_op2(d, MC_OP_SOFTMAX_GRAD, mc_d_result(d, 0), mc_d_of(d, 0)));
}

/* ---- norms: y = norm(x) * w + bias ----------------------------------------------------------------------------- */

static mc_value *
normalised(mc_derive *d, mc_value *x)
{
    mc_named_attr eps = MC_A_FLOAT("eps", mc_attr_float(d->op, "eps"));
    return x ? mc_build1(&d->b, d->op->opcode, &x, 1, &eps, 1) : NULL;
}

static mc_value *
times_weight(mc_derive *d, mc_value *dy, bool plus_one)
{
    mc_value *w = mc_d_operand(d, 1);
    if (plus_one && w) w = mc_d_op2(d, MC_OP_ADD, w, mc_build_const(&d->b, 1));
    return mc_d_op2(d, MC_OP_MUL, dy, w);
}

static bool
derive_norm(mc_derive *d, bool plus_one)
{
    mc_value *dy = mc_d_of(d, 0), *x = mc_d_operand(d, 0);
    if (!x) return false;
    bool weighted = mc_operand(d->op, 1) != NULL;
    if (mc_d_wants(d, 0)) {
        const mc_named_attr attrs[] = {MC_A_STR("of", mc_str_of(mc_op_info_of(d->op)->text)),
                                       MC_A_FLOAT("eps", mc_attr_float(d->op, "eps"))};
        mc_value *operands[] = {x, weighted ? times_weight(d, dy, plus_one) : dy};
        if (!operands[1]) return false;
        if (!mc_d_give(d, 0, mc_build1(&d->b, MC_OP_NORM_GRAD, operands, 2, attrs, 2))) return false;
    }
    if (mc_d_wants(d, 1) && !mc_d_give(d, 1, mc_d_op2(d, MC_OP_MUL, dy, normalised(d, x)))) return false;
    return !mc_d_wants(d, 2) || mc_d_give(d, 2, dy);
}

bool
mc_derive_rmsnorm(mc_derive *d)
{
    return derive_norm(d, mc_attr_bool(d->op, "plus_one"));
}

bool
mc_derive_layernorm(mc_derive *d)
{
    return derive_norm(d, false);
}

bool
mc_derive_l2norm(mc_derive *d)
{
    return derive_norm(d, false);
}
