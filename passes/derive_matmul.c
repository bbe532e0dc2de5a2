/* Derivatives: matmuls, attention, embedding, rotary positions. */
#include "passes/derive.h"

bool
mc_derive_linear(mc_derive *d)
{
    mc_value *dy = mc_d_of(d, 0);
    if (mc_operand_named(d->op, "scale")) return mc_d_refuse(d, "on FP8 weights");
    if (mc_d_wants(d, 0) && !mc_d_give(d, 0, mc_d_op2(d, MC_OP_LINEAR_DX, dy, mc_d_operand(d, 1)))) return false;
    if (mc_d_wants(d, 1)) {
        mc_value *rows = mc_d_defined_rows(d, dy), *x = rows ? mc_d_defined_rows(d, mc_d_operand(d, 0)) : NULL;
        if (!mc_d_give(d, 1, mc_d_op2(d, MC_OP_LINEAR_DW, rows, x))) return false;
    }
    return mc_d_give(d, 2, dy) && mc_d_give(d, 4, dy);
}

bool
mc_derive_embed(mc_derive *d)
{
    mc_value *operands[] = {mc_d_operand(d, 0), mc_d_of(d, 0)};
    const mc_type *table = mc_operand(d->op, 1)->type;
    if (!operands[0]) return false;
    mc_op *dw = mc_build_typed(&d->b, MC_OP_EMBED_DW, operands, 2, NULL, 0, &table, 1);
    return dw && mc_d_give(d, 1, mc_result(dw, 0));
}

/* A rotation's transpose is its inverse. */
bool
mc_derive_rope(mc_derive *d)
{
    mc_value *dy = mc_d_of(d, 0);
    mc_op *back =
        mc_op_create(d->b.func->module, MC_OP_ROPE, &dy, 1, &d->op->results[0].type, 1, d->op->attrs, d->op->span);
    mc_op_insert_before(d->b.func, d->b.before, back);
    mc_op_set_attr(back, "inverse", (mc_attr){.kind = MC_ATTR_BOOL, .as.b = !mc_attr_bool(d->op, "inverse")});
    return mc_d_give(d, 0, mc_result(back, 0));
}

bool
mc_derive_sdpa(mc_derive *d)
{
    if (mc_operand_named(d->op, "sinks")) return mc_d_refuse(d, "with sinks");
    if (mc_operand_named(d->op, "select")) return mc_d_refuse(d, "with selected keys");
    mc_value *operands[4] = {NULL, NULL, NULL, mc_d_of(d, 0)};
    for (int i = 0; i < 3; i++) {
        operands[i] = mc_d_operand(d, i);
        if (!operands[i]) return false;
    }
    const mc_named_attr attrs[] = {
        MC_A_FLOAT("scale", mc_attr_float(d->op, "scale")), MC_A_BOOL("causal", mc_attr_bool(d->op, "causal")),
        MC_A_INT("window", mc_attr_int(d->op, "window")), MC_A_INT("chunk", mc_attr_int(d->op, "chunk")),
        MC_A_FLOAT("softcap", mc_attr_float(d->op, "softcap"))};
    mc_op *made = mc_build(&d->b, MC_OP_SDPA_GRAD, operands, 4, attrs, 5);
    for (int i = 0; made && i < 3; i++)
        if (!mc_d_give(d, i, mc_result(made, i))) return false;
    return made != NULL;
}
