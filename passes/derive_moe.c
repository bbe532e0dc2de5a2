/* Derivatives: routing, dispatch and experts.
 *
 * The down projection and the weighted sum are one op, so that its backward never needs the experts' outputs Y
 * (SonicMoE, arXiv 2512.14080):  dA' = Wd^T dO[token],  dg = <dA', A>,  dA = g dA',  dWd += dO[token] (g A)^T. */
#include "passes/derive.h"

/* v [A] as [A, 1] */
static mc_value *
column(mc_derive *d, mc_value *v)
{
    if (!v) return NULL;
    const mc_dim dims[] = {v->type->dims[0], mc_dim_const(1)};
    return mc_build_reshape(&d->b, v, dims, 2);
}

static mc_value *
build(mc_derive *d, mc_opcode opcode, mc_value *const *operands, int n, int n_required)
{
    for (int i = 0; i < n_required; i++)
        if (!operands[i]) return NULL;
    return mc_build1(&d->b, opcode, operands, n, NULL, 0);
}

/* An optional operand: NULL in *out when it is absent. */
static bool
optional(mc_derive *d, int i, mc_value **out)
{
    *out = mc_operand(d->op, i) ? mc_d_operand(d, i) : NULL;
    return *out || !mc_operand(d->op, i);
}

static mc_value *
unpermute(mc_derive *d, mc_value *y, mc_value *offsets, mc_value *rows, mc_value *gates, const mc_type *type)
{
    if (!y || !offsets || !rows) return NULL;
    mc_op *op =
        mc_build_typed(&d->b, MC_OP_MOE_UNPERMUTE, (mc_value *[]){y, offsets, rows, gates}, 4, NULL, 0, &type, 1);
    return op ? mc_result(op, 0) : NULL;
}

static mc_value *
permute(mc_derive *d, mc_value *x, mc_value *rows, mc_value *offsets, mc_value *gates)
{
    return build(d, MC_OP_MOE_PERMUTE, (mc_value *[]){x, rows, offsets, gates}, 4, 3);
}

/* ---- routing --------------------------------------------------------------------------------------------------- */

/* Keys outside the best groups became -inf; nothing chosen lies there, so nothing flows there. */
bool
mc_derive_route_groups(mc_derive *d)
{
    return mc_d_give(d, 0, mc_d_of(d, 0));
}

static mc_value *
scatter(mc_derive *d, mc_value *dw, mc_value *ids, int64_t experts)
{
    const mc_named_attr attr = MC_A_INT("experts", experts);
    return dw && ids ? mc_build1(&d->b, MC_OP_ROUTE_SCATTER, (mc_value *[]){dw, ids}, 2, &attr, 1) : NULL;
}

/* The weights are values at the chosen places; the key only chose. */
bool
mc_derive_route_top(mc_derive *d)
{
    if (!mc_d_of(d, 0) || !mc_d_wants(d, 0)) return true;
    int64_t experts = mc_dim_eval(mc_type_last(mc_operand(d->op, 0)->type), NULL);
    return mc_d_give(d, 0, scatter(d, mc_d_of(d, 0), mc_d_result(d, 1), experts));
}

bool
mc_derive_route_take(mc_derive *d)
{
    int64_t experts = mc_dim_eval(mc_type_last(mc_operand(d->op, 0)->type), NULL);
    return mc_d_give(d, 0, scatter(d, mc_d_of(d, 0), mc_d_operand(d, 1), experts));
}

bool
mc_derive_route_renorm(mc_derive *d)
{
    const mc_named_attr attrs[] = {MC_A_FLOAT("eps", mc_attr_float(d->op, "eps")),
                                   MC_A_FLOAT("p", mc_attr_float(d->op, "p")),
                                   MC_A_FLOAT("floor", mc_attr_float(d->op, "floor"))};
    mc_value *operands[] = {mc_d_operand(d, 0), mc_d_of(d, 0)};
    return operands[0] && mc_d_give(d, 0, mc_build1(&d->b, MC_OP_ROUTE_RENORM_GRAD, operands, 2, attrs, 3));
}

/* Result 0 where result 1 names an expert. */
static bool
derive_masked(mc_derive *d)
{
    if (!mc_d_of(d, 0)) return true;
    return mc_d_give(d, 0, mc_d_op2(d, MC_OP_ROUTE_MASK, mc_d_of(d, 0), mc_d_result(d, 1)));
}

bool
mc_derive_route_choose(mc_derive *d)
{
    return derive_masked(d);
}

bool
mc_derive_moe_capacity(mc_derive *d)
{
    return derive_masked(d);
}

/* ---- dispatch and combine -------------------------------------------------------------------------------------- */

/* gates[r] = weights[slots[r]] */
bool
mc_derive_moe_dispatch(mc_derive *d)
{
    if (!mc_d_of(d, 3)) return true;
    mc_value *dgates = column(d, mc_d_of(d, 3));
    mc_value *back = dgates ? unpermute(d, dgates, mc_d_result(d, 0), mc_d_result(d, 2), NULL, dgates->type) : NULL;
    return back && mc_d_give(d, 0, mc_d_reshape(d, back, mc_operand(d->op, 0)->type));
}

bool
mc_derive_moe_permute(mc_derive *d)
{
    mc_value *rows = mc_d_operand(d, 1), *offsets = mc_d_operand(d, 2), *gates;
    const mc_type *x = mc_operand(d->op, 0)->type;
    if (!rows || !offsets || !optional(d, 3, &gates)) return false;
    if (mc_d_wants(d, 0) && !mc_d_give(d, 0, unpermute(d, mc_d_of(d, 0), offsets, rows, gates, x))) return false;
    if (!mc_d_wants(d, 3)) return true;
    mc_value *plain = permute(d, mc_d_operand(d, 0), rows, offsets, NULL);
    return mc_d_give(d, 3, mc_d_op2(d, MC_OP_ROW_DOT, mc_d_of(d, 0), plain));
}

bool
mc_derive_moe_unpermute(mc_derive *d)
{
    mc_value *offsets = mc_d_operand(d, 1), *rows = mc_d_operand(d, 2), *gates;
    if (!rows || !offsets || !optional(d, 3, &gates)) return false;
    if (mc_d_wants(d, 0) && !mc_d_give(d, 0, permute(d, mc_d_of(d, 0), rows, offsets, gates))) return false;
    if (!mc_d_wants(d, 3)) return true;
    mc_value *plain = permute(d, mc_d_of(d, 0), rows, offsets, NULL);
    return mc_d_give(d, 3, mc_d_op2(d, MC_OP_ROW_DOT, plain, mc_d_operand(d, 0)));
}

/* y = x * (sum of the weights of identity experts) */
bool
mc_derive_moe_identity(mc_derive *d)
{
    mc_value *dy = mc_d_of(d, 0), *ids = mc_d_operand(d, 2);
    const mc_named_attr first = MC_A_INT("first", mc_attr_int(d->op, "first"));
    const mc_named_attr from = MC_A_INT("from", mc_attr_int(d->op, "first"));
    if (!ids) return false;
    if (mc_d_wants(d, 0)) {
        mc_value *operands[] = {dy, mc_d_operand(d, 1), ids};
        if (!operands[1] || !mc_d_give(d, 0, mc_build1(&d->b, MC_OP_MOE_IDENTITY, operands, 3, &first, 1)))
            return false;
    }
    if (!mc_d_wants(d, 1)) return true;
    const mc_type *weights = mc_operand(d->op, 1)->type;
    mc_value *dot = mc_d_op2(d, MC_OP_ROW_DOT, dy, mc_d_operand(d, 0));
    const mc_type *one = mc_type_with_last(d->b.func->module, weights, mc_dim_const(1));
    mc_value *all = dot ? mc_d_op2(d, MC_OP_MUL, mc_d_fill(d, weights, 1), mc_d_reshape(d, dot, one)) : NULL;
    return all && mc_d_give(d, 1, mc_build1(&d->b, MC_OP_ROUTE_MASK, (mc_value *[]){all, ids}, 2, &from, 1));
}

/* ---- experts --------------------------------------------------------------------------------------------------- */

/* bias [E, O]: db[e] = the sum of the rows of expert e, a grouped_dw against ones */
static bool
give_bias(mc_derive *d, int operand, mc_value *dy, mc_value *offsets)
{
    if (!mc_d_wants(d, operand)) return true;
    const mc_dim dims[] = {dy->type->dims[0], mc_dim_const(1)};
    mc_value *ones = mc_d_fill(d, mc_type_get(d->b.func->module, MOEC_F32, dims, 2), 1);
    mc_value *db = build(d, MC_OP_GROUPED_DW, (mc_value *[]){dy, ones, offsets}, 3, 3);
    return db && mc_d_give(d, operand, mc_d_reshape(d, db, mc_operand(d->op, operand)->type));
}

bool
mc_derive_grouped_matmul(mc_derive *d)
{
    enum { X, W, OFFSETS, BIAS, SCALE, ROWS };
    mc_value *dy = mc_d_of(d, 0), *offsets = mc_d_operand(d, OFFSETS), *rows;
    if (mc_operand(d->op, SCALE)) return mc_d_refuse(d, "on FP8 weights");
    if (!offsets || !optional(d, ROWS, &rows)) return false;
    if (mc_d_wants(d, X)) {
        mc_value *dx = build(d, MC_OP_GROUPED_DX, (mc_value *[]){dy, mc_d_operand(d, W), offsets}, 3, 3);
        if (rows) dx = unpermute(d, dx, offsets, rows, NULL, mc_operand(d->op, X)->type);
        if (!mc_d_give(d, X, dx)) return false;
    }
    if (mc_d_wants(d, W)) {
        mc_value *operands[] = {dy, mc_d_operand(d, X), offsets, NULL, rows};
        if (!mc_d_give(d, W, build(d, MC_OP_GROUPED_DW, operands, 5, 3))) return false;
    }
    return give_bias(d, BIAS, dy, offsets);
}

bool
mc_derive_moe_ffn_down(mc_derive *d)
{
    enum { H, W, OFFSETS, TOKENS, GATES, BIAS, SCALE };
    mc_value *dy = mc_d_of(d, 0), *offsets = mc_d_operand(d, OFFSETS), *tokens = mc_d_operand(d, TOKENS), *gates;
    if (mc_operand(d->op, SCALE)) return mc_d_refuse(d, "on FP8 weights");
    if (mc_operand(d->op, BIAS)) return mc_d_refuse(d, "with a bias: run 'fuse-moe' with train = 1");
    if (!offsets || !tokens || !optional(d, GATES, &gates)) return false;
    if (mc_d_wants(d, H) || mc_d_wants(d, GATES)) {
        mc_value *da = build(d, MC_OP_GROUPED_DX, (mc_value *[]){dy, mc_d_operand(d, W), offsets, tokens}, 4, 4);
        if (!da) return false;
        if (mc_d_wants(d, GATES) && !mc_d_give(d, GATES, mc_d_op2(d, MC_OP_ROW_DOT, da, mc_d_operand(d, H))))
            return false;
        if (mc_d_wants(d, H) && !mc_d_give(d, H, gates ? mc_d_op2(d, MC_OP_MUL, da, column(d, gates)) : da))
            return false;
    }
    if (!mc_d_wants(d, W)) return true;
    mc_value *operands[] = {dy, mc_d_operand(d, H), offsets, tokens, NULL, gates};
    return mc_d_give(d, W, build(d, MC_OP_GROUPED_DW, operands, 6, 3));
}

/* ---- losses ---------------------------------------------------------------------------------------------------- */

bool
mc_derive_moe_balance(mc_derive *d)
{
    const mc_named_attr per = MC_A_STR("per", mc_attr_str(d->op, "per"));
    const mc_type *scores = mc_operand(d->op, 0)->type;
    mc_value *operands[] = {mc_d_operand(d, 1), mc_d_of(d, 0)};
    if (!operands[0]) return false;
    mc_op *made = mc_build_typed(&d->b, MC_OP_MOE_BALANCE_GRAD, operands, 2, &per, 1, &scores, 1);
    return made && mc_d_give(d, 0, mc_result(made, 0));
}

bool
mc_derive_moe_z_loss(mc_derive *d)
{
    return mc_d_give(d, 0, mc_d_op2(d, MC_OP_MOE_Z_LOSS_GRAD, mc_d_operand(d, 0), mc_d_of(d, 0)));
}
