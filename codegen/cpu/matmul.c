/* Launches of the matrix kernels (gemm.h): which kind and weight format, and where its arguments come from. Shapes are
 * run-time arguments, so a model has one kernel for each kind, format and activation. Weights that lie row by row, as
 * in training, have kernels of their own (matmul_train.c). */
#include "codegen/cpu/gemm.h"
#include "codegen/cpu/select.h"

/* Operands by their number in ops.def; -1: the op has none. */
typedef struct ports {
    mc_gemm_kind kind;
    int w, bias, scale, bias2, scale2, offsets, tokens, gates, residual;
} ports;

static ports
ports_of(mc_opcode opcode)
{
    switch (opcode) {
    case MC_OP_LINEAR: return (ports){MC_GEMM_LINEAR, 1, 2, 3, -1, -1, -1, -1, -1, 4};
    case MC_OP_GATED_LINEAR: return (ports){MC_GEMM_GATED, 1, 3, 5, 4, 6, -1, -1, -1, -1};
    case MC_OP_GROUPED_MATMUL: return (ports){MC_GEMM_GROUPED, 1, 3, 4, -1, -1, 2, -1, -1, -1};
    case MC_OP_MOE_FFN_UP: return (ports){MC_GEMM_MOE_UP, 1, 5, 7, 6, 8, 3, 4, -1, -1};
    default: return (ports){MC_GEMM_MOE_DOWN, 1, 5, 6, -1, -1, 2, 3, 4, -1};
    }
}

static bool
check_operands(mc_plan *p, const mc_op *op, const ports *at)
{
    const mc_value *w = mc_operand(op, at->w);
    bool pair = at->kind == MC_GEMM_GATED || at->kind == MC_GEMM_MOE_UP;
    if (!w->def || w->def->opcode != MC_OP_PACKED) return mc_plan_refuse(p, "its weight is not a weight of the model");
    mc_str layout = mc_attr_str(w->def, "layout");
    if (!mc_str_is(layout, pair ? "pair_panels" : "panels") || mc_attr_int(w->def, "nr") != p->target->nr) {
        return mc_plan_refuse(p, "its weight is packed as %.*s with nr = %lld, but %s takes %s with nr = %d",
                              MC_FMT(layout), (long long)mc_attr_int(w->def, "nr"), p->target->name,
                              pair ? "pair_panels" : "panels", p->target->nr);
    }
    if (pair && mc_operand(op, at->w + 1) != w) return mc_plan_refuse(p, "its two weights are not packed as one");
    if (!mc_gemm_has_weight(w->type->dtype)) {
        return mc_plan_refuse(p, "no kernel reads weights of type %s", moec_dtype_name(w->type->dtype));
    }
    for (int i = 0; i < op->n_operands; i++) {
        const mc_value *v = mc_operand(op, i);
        if (!v || v == w) continue;
        moec_dtype want = i == at->offsets || i == at->tokens ? MOEC_I32 : MOEC_F32;
        if (v->type->dtype != want) return mc_plan_refuse(p, "an operand is %s", moec_dtype_name(v->type->dtype));
    }
    return true;
}

static const mc_value *
port(const mc_op *op, int i)
{
    return i < 0 ? NULL : mc_operand(op, i);
}

static const mc_plan_kernel *
kernel_for(mc_plan *p, const mc_op *op, mc_gemm_kind kind, moec_dtype weight, int64_t k)
{
    static const char *const names[] = {"linear", "gated", "moe_up", "grouped", "moe_down"};
    bool pair = kind == MC_GEMM_GATED || kind == MC_GEMM_MOE_UP;
    mc_gemm_spec *spec = MC_NEW(p->arena, mc_gemm_spec);
    spec->kind = kind;
    spec->weight = weight;
    spec->act = pair ? mc_act_find(mc_attr_str(op, "act")) : MC_ACT_SILU;
    mc_plan_scratch(p, mc_gemm_scratch_bytes(p->target, spec, k));
    mc_plan_kernel *kernel =
        mc_plan_kernel_get(p, NULL, NULL, 0, "gemm_%s_%s%s%s", names[kind], moec_dtype_name(weight), pair ? "_" : "",
                           pair ? mc_act_name(spec->act) : "");
    if (!kernel->data) kernel->data = spec;
    return kernel;
}

static bool
lies_in_rows(const mc_op *op, const ports *at)
{
    const mc_op *w = mc_operand(op, at->w)->def;
    bool pair = at->kind == MC_GEMM_GATED || at->kind == MC_GEMM_MOE_UP;
    return !pair && w && w->opcode == MC_OP_PACKED && mc_str_is(mc_attr_str(w, "layout"), "rows");
}

void
mc_cpu_select_matmul(mc_plan *p, const mc_op *op)
{
    ports at = ports_of(op->opcode);
    if (lies_in_rows(op, &at)) {
        mc_cpu_select_matmul_train(p, op);
        return;
    }
    if (op->opcode == MC_OP_GROUPED_MATMUL && mc_operand(op, 5)) {
        mc_plan_refuse(p, "rows are gathered only where weights lie row by row");
        return;
    }
    if (!check_operands(p, op, &at)) return;
    const mc_value *x = mc_operand(op, 0), *w = mc_operand(op, at.w), *y = mc_result(op, 0);
    bool grouped = at.offsets >= 0;
    mc_dim k = mc_type_last(x->type), n = mc_type_last(y->type);
    int64_t k_const = mc_plan_need_const(p, k, "the input width of a matrix");
    mc_plan_launch(p, kernel_for(p, op, at.kind, w->type->dtype, k_const));
    const int order[] = {at.bias, at.scale, at.bias2, at.scale2, at.offsets, at.tokens, at.gates, at.residual};
    mc_plan_ptr(p, y);
    mc_plan_ptr(p, x);
    mc_plan_ptr(p, w);
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) mc_plan_ptr(p, port(op, order[i]));
    mc_plan_int(p, grouped ? w->type->dims[0] : mc_plan_rows(p, x->type));
    mc_plan_int(p, k);
    mc_plan_int(p, n);
    mc_plan_int(p, k);
    mc_plan_int(p, n);
    mc_plan_int(p, n);
    mc_plan_int(p, mc_plan_rows(p, y->type));
}
