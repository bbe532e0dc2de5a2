/* rmsnorm, layernorm, l2norm, softmax and derivatives along the last axis: kernels/norm.cuh, kernels/grad_rows.cuh. */
#include "codegen/gpu/rows.h"
#include "codegen/gpu/select.h"

/* The bits of norm.cuh. */
enum { NORM_MEAN = 1, NORM_SUM = 2, NORM_W = 4, NORM_PLUS_ONE = 8, NORM_BIAS = 16, NORM_ROUND_BEFORE = 32 };

static const char *
type_of(const mc_value *v)
{
    return mc_gpu_type(v->type->dtype);
}

static unsigned
norm_flags(const mc_op *op, const mc_value *w, const mc_value *bias)
{
    unsigned flags = 0;
    if (op->opcode == MC_OP_LAYERNORM) flags |= NORM_MEAN;
    if (op->opcode == MC_OP_L2NORM) flags |= NORM_SUM;
    if (w) flags |= NORM_W;
    if (bias) flags |= NORM_BIAS;
    if (op->opcode != MC_OP_RMSNORM) return flags;
    if (w && mc_attr_bool(op, "plus_one")) flags |= NORM_PLUS_ONE;
    bool narrow = mc_result(op, 0)->type->dtype != MOEC_F32;
    if (w && narrow && mc_str_is(mc_attr_str(op, "round"), "before")) flags |= NORM_ROUND_BEFORE;
    return flags;
}

void
mc_gpu_select_norm(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    const mc_value *w = op->opcode == MC_OP_L2NORM ? NULL : mc_operand(op, 1);
    const mc_value *bias = op->opcode == MC_OP_LAYERNORM ? mc_operand(op, 2) : NULL;
    const mc_value *repeated = w ? w : bias;
    if (!mc_gpu_need_floats(p, op)) return;
    if (w && bias && w->type != bias->type) {
        mc_plan_refuse(p, "its weight and its bias differ in type or shape");
        return;
    }
    mc_str parameters = mc_strf(p->arena, "%u, %s, %s, %s", norm_flags(op, w, bias), type_of(x),
                                repeated ? type_of(repeated) : "f32", type_of(y));
    mc_gpu_code code = {.file = "norm.cuh"};
    mc_gpu_rows_launch(p, code, x->type, mc_gpu_least_bytes(op), "norm", parameters);
    mc_gpu_value(p, x);
    mc_gpu_value(p, y);
    if (w) mc_gpu_value(p, w);
    if (bias) mc_gpu_value(p, bias);
    mc_gpu_int(p, repeated ? mc_plan_rows(p, repeated->type) : mc_dim_const(1));
    mc_plan_float(p, mc_attr_float(op, "eps"));
}

void
mc_gpu_select_softmax(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    if (!mc_gpu_need_floats(p, op)) return;
    mc_gpu_code code = {.file = "norm.cuh"};
    mc_gpu_rows_launch(p, code, x->type, mc_gpu_least_bytes(op), "softmax",
                       mc_strf(p->arena, "%s, %s", type_of(x), type_of(y)));
    mc_gpu_value(p, x);
    mc_gpu_value(p, y);
}

/* ---- derivatives ------------------------------------------------------------------------------------------------ */

static int
norm_of(const mc_op *op)
{
    mc_opcode of = mc_opcode_find(mc_attr_str(op, "of"));
    return of == MC_OP_RMSNORM ? 0 : of == MC_OP_LAYERNORM ? 1 : 2; /* NORM_GRAD_ of grad_rows.cuh */
}

/* row_dot, softmax_grad, norm_grad: two operands, one result */
void
mc_gpu_select_row_pair(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *dy = mc_operand(op, 1), *y = mc_result(op, 0);
    if (!mc_gpu_need_floats(p, op)) return;
    bool norm = op->opcode == MC_OP_NORM_GRAD;
    mc_str types = mc_strf(p->arena, "%s, %s, %s", type_of(x), type_of(dy), type_of(y));
    if (norm) types = mc_strf(p->arena, "%d, %.*s", norm_of(op), MC_FMT(types));
    mc_gpu_code code = {.file = "grad_rows.cuh"};
    mc_gpu_rows_launch(p, code, x->type, mc_gpu_least_bytes(op), mc_op_info_of(op)->text, types);
    mc_gpu_value(p, x);
    mc_gpu_value(p, dy);
    mc_gpu_value(p, y);
    if (norm) mc_plan_float(p, mc_attr_float(op, "eps"));
}

void
mc_gpu_select_moe_glu_grad(mc_plan *p, const mc_op *op)
{
    const mc_value *g = mc_operand(op, 0), *u = mc_operand(op, 1), *da = mc_operand(op, 2), *gates = mc_operand(op, 3);
    const mc_value *dg = mc_result(op, 0), *du = mc_result(op, 1), *h = mc_result(op, 2), *dgates = mc_result(op, 3);
    if (!mc_gpu_need_floats(p, op)) return;
    mc_str act = mc_attr_str(op, "act");
    mc_gpu_code code = {.file = "grad_rows.cuh"};
    code.prelude = mc_strf(p->arena,
                           "struct %.*s_act {\n"
                           "    static MC_FN f32 value(f32 x) { return op_%.*s(x); }\n"
                           "    static MC_FN f32 slope(f32 x) { return slope_%.*s(x); }\n"
                           "};",
                           MC_FMT(act), MC_FMT(act), MC_FMT(act));
    mc_str parameters =
        mc_strf(p->arena, "%.*s_act, %s, %s, %s, %s, %s, %s, %s, %s", MC_FMT(act), type_of(g), type_of(u), type_of(da),
                type_of(gates), type_of(dg), type_of(du), type_of(h), type_of(dgates));
    mc_gpu_rows_launch(p, code, g->type, mc_gpu_least_bytes(op), "moe_glu_grad", parameters);
    for (int i = 0; i < op->n_operands; i++) mc_gpu_value(p, mc_operand(op, i));
    for (int i = 0; i < op->n_results; i++) mc_gpu_value(p, mc_result(op, i));
}
