/* Makes ops at a cursor, after inference has accepted them. */
#include "ir/build.h"

#include <assert.h>

#include "ir/infer.h"

mc_builder
mc_builder_at_end(mc_func *f, mc_diags *diags)
{
    return (mc_builder){.func = f, .span = f->span, .diags = diags};
}

mc_builder
mc_builder_before(mc_op *op, mc_diags *diags)
{
    return (mc_builder){.func = op->func, .before = op, .span = op->span, .diags = diags};
}

enum { MAX_ATTRS = 16 };

/* Named attributes into the order of the table. */
static bool
place_attrs(mc_builder *b, mc_opcode opcode, const mc_named_attr *attrs, int n_attrs, mc_attr *out)
{
    const mc_op_info *info = &mc_op_infos[opcode];
    assert(info->n_attrs <= MAX_ATTRS);
    for (int i = 0; i < n_attrs; i++) {
        int at = mc_attr_index(opcode, mc_str_of(attrs[i].name));
        if (at < 0) return mc_error(b->diags, b->span, MC_E0404, "%s has no attribute %s", info->text, attrs[i].name);
        out[at] = attrs[i].attr;
    }
    return true;
}

mc_op *
mc_build_typed(mc_builder *b, mc_opcode opcode, mc_value *const *operands, int n_operands, const mc_named_attr *attrs,
               int n_attrs, const mc_type *const *types, int n_types)
{
    mc_attr placed[MAX_ATTRS] = {{0}};
    if (!place_attrs(b, opcode, attrs, n_attrs, placed)) return NULL;
    mc_infer in = {.module = b->func->module,
                   .opcode = opcode,
                   .operands = operands,
                   .n_operands = n_operands,
                   .attrs = placed,
                   .span = b->span,
                   .diags = b->diags};
    if (n_types > MC_MAX_RESULTS) {
        mc_error(b->diags, b->span, MC_E0403, "%s: %d results", mc_op_infos[opcode].text, n_types);
        return NULL;
    }
    for (int i = 0; i < n_types; i++) in.results[i] = types[i];
    in.n_results = n_types;
    if (!mc_infer_run(&in)) return NULL;
    mc_op *op = mc_op_create(b->func->module, opcode, operands, n_operands, in.results, in.n_results, placed, b->span);
    mc_op_insert_before(b->func, b->before, op);
    return op;
}

mc_op *
mc_build(mc_builder *b, mc_opcode opcode, mc_value *const *operands, int n_operands, const mc_named_attr *attrs,
         int n_attrs)
{
    return mc_build_typed(b, opcode, operands, n_operands, attrs, n_attrs, NULL, 0);
}

mc_value *
mc_build1(mc_builder *b, mc_opcode opcode, mc_value *const *operands, int n_operands, const mc_named_attr *attrs,
          int n_attrs)
{
    mc_op *op = mc_build(b, opcode, operands, n_operands, attrs, n_attrs);
    return op ? mc_result(op, 0) : NULL;
}

mc_value *
mc_build_unary(mc_builder *b, mc_opcode opcode, mc_value *x)
{
    return mc_build1(b, opcode, &x, 1, NULL, 0);
}

mc_value *
mc_build_binary(mc_builder *b, mc_opcode opcode, mc_value *x, mc_value *y)
{
    return mc_build1(b, opcode, (mc_value *[]){x, y}, 2, NULL, 0);
}

mc_value *
mc_build_const(mc_builder *b, double value)
{
    const mc_type *type = mc_type_scalar(b->func->module, MOEC_F32);
    const mc_named_attr attrs[] = {MC_A_FLOAT("value", value)};
    mc_op *op = mc_build_typed(b, MC_OP_CONST, NULL, 0, attrs, 1, &type, 1);
    return op ? mc_result(op, 0) : NULL;
}

mc_value *
mc_build_weight(mc_builder *b, mc_str path, bool root, const char *role, int64_t experts, const mc_type *type)
{
    const mc_named_attr attrs[] = {
        MC_A_STR("path", path),
        MC_A_BOOL("root", root),
        MC_A_STR("role", mc_str_of(role)),
        MC_A_INT("experts", experts),
    };
    mc_op *op = mc_build_typed(b, MC_OP_WEIGHT, NULL, 0, attrs, 4, &type, 1);
    return op ? mc_result(op, 0) : NULL;
}

mc_value *
mc_build_reshape(mc_builder *b, mc_value *x, const mc_dim *dims, int rank)
{
    if (rank > MC_MAX_RANK) {
        mc_error(b->diags, b->span, MC_E0319, "reshape: %d axes; there can be at most %d", rank, MC_MAX_RANK);
        return NULL;
    }
    const mc_type *type = mc_type_get(b->func->module, x->type->dtype, dims, rank);
    mc_op *op = mc_build_typed(b, MC_OP_RESHAPE, &x, 1, NULL, 0, &type, 1);
    return op ? mc_result(op, 0) : NULL;
}

mc_op *
mc_build_call(mc_builder *b, mc_func *callee, mc_str scope, mc_value *const *args, int n_args)
{
    const mc_named_attr attrs[] = {MC_A_FUNC("callee", callee), MC_A_STR("scope", scope)};
    const mc_type *types[MC_MAX_RESULTS];
    int n = 0;
    const mc_op *end = callee->last;
    bool ends = end && end->opcode == MC_OP_RETURN;
    for (; ends && n < end->n_operands && n < MC_MAX_RESULTS; n++) types[n] = end->operands[n].value->type;
    return mc_build_typed(b, MC_OP_CALL, args, n_args, attrs, 2, types, n);
}

mc_op *
mc_build_return(mc_builder *b, mc_value *const *values, int n_values)
{
    return mc_build(b, MC_OP_RETURN, values, n_values, NULL, 0);
}
