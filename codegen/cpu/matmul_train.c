/* Launches of the training matrix kernels (train_gemm.h): products with a weight that lies row by row as its owner has
 * it, and their derivatives. One table says where each op has its operands; the kernels are the same three for all. */
#include "codegen/cpu/select.h"
#include "codegen/cpu/target.h"
#include "codegen/cpu/train_gemm.h"

/* Operands by their number in ops.def; -1: the op has none. */
typedef struct ports {
    mc_train_kind kind;
    bool as_it_lies;
    int bias, offsets, a_rows, b_rows, gates, residual;
} ports;

static ports
ports_of(mc_opcode opcode)
{
    switch (opcode) {
    case MC_OP_LINEAR: return (ports){MC_TRAIN_KIND_ROWS, false, 2, -1, -1, -1, -1, 4};
    case MC_OP_GROUPED_MATMUL: return (ports){MC_TRAIN_KIND_ROWS, false, 3, 2, 5, -1, -1, -1};
    case MC_OP_MOE_FFN_DOWN: return (ports){MC_TRAIN_KIND_DOWN, false, 5, 2, 3, -1, 4, -1};
    case MC_OP_LINEAR_DX: return (ports){MC_TRAIN_KIND_ROWS, true, -1, -1, -1, -1, -1, 2};
    case MC_OP_GROUPED_DX: return (ports){MC_TRAIN_KIND_ROWS, true, -1, 2, 3, -1, -1, 4};
    case MC_OP_LINEAR_DW: return (ports){MC_TRAIN_KIND_DW, false, -1, -1, -1, -1, -1, -1};
    default: return (ports){MC_TRAIN_KIND_DW, false, -1, 2, 3, 4, 5, -1};
    }
}

static void
emit(mc_kb *kb, const mc_plan_kernel *k)
{
    mc_train_kernel(kb, (mc_train_kind)k->p[0]);
}

static bool
check_operands(mc_plan *p, const mc_op *op, const ports *at)
{
    for (int i = 0; i < op->n_operands; i++) {
        const mc_value *v = mc_operand(op, i);
        bool known = i < 2 || i == at->bias || i == at->offsets || i == at->a_rows || i == at->b_rows ||
                     i == at->gates || i == at->residual;
        if (!v) continue;
        if (!known) return mc_plan_refuse(p, "weights that lie row by row have no scales");
        moec_dtype want = i == at->offsets || i == at->a_rows || i == at->b_rows ? MOEC_I32 : MOEC_F32;
        if (v->type->dtype != want)
            return mc_plan_refuse(p, "an operand is %s, not %s", moec_dtype_name(v->type->dtype),
                                  moec_dtype_name(want));
    }
    return true;
}

static const mc_value *
port(const mc_op *op, int i)
{
    return i < 0 ? NULL : mc_operand(op, i);
}

static const mc_plan_kernel *
kernel_for(mc_plan *p, mc_train_kind kind)
{
    int64_t params[1] = {kind};
    mc_plan_scratch(p, mc_train_scratch_bytes(p->target, kind));
    return mc_plan_kernel_get(p, emit, params, 1, "%s", mc_train_kernel_name(kind));
}

void
mc_cpu_select_matmul_train(mc_plan *p, const mc_op *op)
{
    ports at = ports_of(op->opcode);
    if (!check_operands(p, op, &at)) return;
    const mc_value *a = mc_operand(op, 0), *b = mc_operand(op, 1), *y = mc_result(op, 0);
    bool dw = at.kind == MC_TRAIN_KIND_DW, down = at.kind == MC_TRAIN_KIND_DOWN;
    mc_plan_launch(p, kernel_for(p, at.kind));
    const int order[] = {at.bias, at.offsets, at.a_rows, at.b_rows, at.gates, at.residual};
    mc_plan_ptr(p, y);
    mc_plan_ptr(p, a);
    mc_plan_ptr(p, b);
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) mc_plan_ptr(p, port(op, order[i]));
    mc_plan_int(p, at.offsets < 0 ? mc_dim_const(1) : dw ? y->type->dims[0] : b->type->dims[0]);
    mc_plan_int(p, mc_plan_rows(p, down ? y->type : a->type));
    mc_plan_int(p, mc_type_last(a->type));
    mc_plan_int(p, mc_type_last(y->type));
    mc_plan_const(p, at.as_it_lies);
    mc_plan_const(p, dw && mc_plan_in_gradient(y));
}
