/* Training ops on flat arrays: glu, glu_grad, unary_grad, fill, accumulate. The one idea: a kernel is a few arrays in,
 * a few out and a formula between, so one loop serves them all.
 *
 * ptr: operands, results   i: n   f: the op's own numbers */
#include "codegen/cpu/grad_math.h"
#include "codegen/cpu/select.h"

enum { GRAIN = 64, MAX_ARRAYS = 3, MAX_NUMBERS = 2, UNROLL = 4 };

typedef struct flat { /* a kernel being emitted */
    mc_opcode opcode, of;
    int n_in, n_out, n_numbers;
    LLVMValueRef in[MAX_ARRAYS], out[MAX_ARRAYS], numbers[MAX_NUMBERS];
} flat;

/* The vectors to store, for those loaded. */
static void
compute(mc_kb *kb, const flat *s, const LLVMValueRef *x, const LLVMValueRef *numbers, LLVMValueRef *y)
{
    mc_act act = s->of == MC_N_OPCODES ? MC_N_ACTS : mc_act_find(mc_str_of(mc_op_infos[s->of].text));
    switch (s->opcode) {
    case MC_OP_GLU: y[0] = kb_fmul(kb, kb_act(kb, act, x[0]), x[1]); break;
    case MC_OP_GLU_GRAD:
        y[0] = kb_act_grad(kb, act, x[0], kb_fmul(kb, x[2], x[1]));
        y[1] = kb_fmul(kb, x[2], kb_act(kb, act, x[0]));
        break;
    case MC_OP_UNARY_GRAD: y[0] = kb_unary_grad(kb, s->of, x[0], x[1], numbers); break;
    case MC_OP_FILL: y[0] = numbers[0]; break;
    default: y[0] = kb_fadd(kb, x[0], x[1]); break; /* accumulate: the gradient + d */
    }
}

static void
emit_vector(mc_kb *kb, const flat *s, LLVMValueRef i, int lanes, LLVMValueRef mask)
{
    LLVMValueRef x[MAX_ARRAYS], y[MAX_ARRAYS], numbers[MAX_NUMBERS];
    for (int a = 0; a < s->n_in; a++) x[a] = kb_load_f32(kb, MOEC_F32, kb_elem(kb, s->in[a], i, 4), lanes, mask);
    for (int n = 0; n < s->n_numbers; n++) numbers[n] = kb_splat(kb, s->numbers[n], lanes);
    compute(kb, s, x, numbers, y);
    for (int a = 0; a < s->n_out; a++) kb_store_f32(kb, MOEC_F32, y[a], kb_elem(kb, s->out[a], i, 4), mask);
}

/* Most formulas are one long chain of dependent steps, so UNROLL vectors go through them side by side. */
static void
emit_span(mc_kb *kb, const flat *s, LLVMValueRef n)
{
    LLVMValueRef begin, end, block = kb_i64(kb, (int64_t)UNROLL * kb->vl);
    kb_split(kb, n, GRAIN, &begin, &end);
    LLVMValueRef whole = kb_sub(kb, end, kb_srem(kb, kb_sub(kb, end, begin), block));
    kb_loop l = kb_loop_begin(kb, begin, whole, block, 0, NULL);
    emit_vector(kb, s, l.i, UNROLL * kb->vl, NULL);
    kb_loop_end(kb, &l);
    kb_vloop v = kb_vloop_begin(kb, whole, end, 0, NULL);
    while (kb_vloop_next(kb, &v)) emit_vector(kb, s, v.i, v.lanes, v.mask);
}

static void
emit_flat(mc_kb *kb, const mc_plan_kernel *k)
{
    flat s = {.opcode = (mc_opcode)k->p[0],
              .of = (mc_opcode)k->p[1],
              .n_in = (int)k->p[2],
              .n_out = (int)k->p[3],
              .n_numbers = (int)k->p[4]};
    kb_kernel_begin(kb, k->name.data);
    for (int i = 0; i < s.n_in; i++) s.in[i] = kb_arg_ptr(kb, i);
    for (int i = 0; i < s.n_out; i++) s.out[i] = kb_arg_ptr(kb, s.n_in + i);
    for (int i = 0; i < s.n_numbers; i++) s.numbers[i] = kb_arg_float(kb, i);
    LLVMValueRef n = kb_arg_int(kb, 0);
    if (s.opcode == MC_OP_ACCUMULATE) { /* the parameter may be frozen: no gradient */
        kb_if wanted = kb_if_begin(kb, kb_icmp(kb, LLVMIntNE, s.out[0], LLVMConstPointerNull(kb->ptr)));
        emit_span(kb, &s, n);
        kb_if_end(kb, &wanted);
    } else {
        emit_span(kb, &s, n);
    }
    kb_kernel_end(kb);
}

/* `of` is MC_N_OPCODES when the op names no other. */
static void
launch_flat(mc_plan *p, const mc_op *op, mc_opcode of, int n_in, int n_out, int n_numbers)
{
    int64_t params[5] = {op->opcode, of, n_in, n_out, n_numbers};
    mc_plan_launch(p,
                   mc_plan_kernel_get(p, emit_flat, params, 5, "%s%s%s", mc_op_info_of(op)->text,
                                      of == MC_N_OPCODES ? "" : "_", of == MC_N_OPCODES ? "" : mc_op_infos[of].text));
}

static bool
all_f32(mc_plan *p, const mc_op *op)
{
    for (int i = 0; i < op->n_operands; i++) {
        if (mc_operand(op, i)->type->dtype != MOEC_F32) return mc_plan_refuse(p, "an operand is not f32");
    }
    for (int i = 0; i < op->n_results; i++) {
        if (mc_result(op, i)->type->dtype != MOEC_F32) return mc_plan_refuse(p, "a result is not f32");
    }
    return true;
}

void
mc_cpu_select_flat(mc_plan *p, const mc_op *op)
{
    if (!all_f32(p, op)) return;
    mc_opcode of = MC_N_OPCODES;
    if (op->opcode == MC_OP_UNARY_GRAD) of = mc_opcode_find(mc_attr_str(op, "of"));
    if (op->opcode == MC_OP_GLU || op->opcode == MC_OP_GLU_GRAD) of = mc_opcode_find(mc_attr_str(op, "act"));
    int n_numbers = of == MC_OP_CLAMP ? 2 : of == MC_OP_SOFTCAP || op->opcode == MC_OP_FILL;
    launch_flat(p, op, of, op->n_operands, op->n_results, n_numbers);
    for (int i = 0; i < op->n_operands; i++) mc_plan_ptr(p, mc_operand(op, i));
    for (int i = 0; i < op->n_results; i++) mc_plan_ptr(p, mc_result(op, i));
    mc_plan_int(p, mc_plan_count(p, mc_result(op, 0)->type));
    if (of == MC_OP_CLAMP) {
        mc_plan_float(p, mc_attr_float(op, "lo"));
        mc_plan_float(p, mc_attr_float(op, "hi"));
    }
    if (of == MC_OP_SOFTCAP) mc_plan_float(p, mc_attr_float(op, "cap"));
    if (op->opcode == MC_OP_FILL) mc_plan_float(p, mc_attr_float(op, "value"));
}

/* Whether d's op has written into the gradient itself. */
static bool
lies_in(const mc_value *d, const mc_value *gradient)
{
    while (d != gradient && d->place.kind == MC_PLACE_VIEW) d = d->place.base;
    return d == gradient;
}

void
mc_cpu_select_accumulate(mc_plan *p, const mc_op *op)
{
    const mc_value *d = mc_operand(op, 0), *gradient = mc_operand(op, 1);
    if (!gradient) {
        mc_plan_refuse(p, "it has no gradient to add to (run lower-to-plan first)");
        return;
    }
    if (lies_in(d, gradient) || !all_f32(p, op)) return;
    launch_flat(p, op, MC_N_OPCODES, 2, 1, 0);
    mc_plan_ptr(p, gradient);
    mc_plan_ptr(p, d);
    mc_plan_ptr(p, gradient);
    mc_plan_int(p, mc_plan_count(p, d->type));
}
