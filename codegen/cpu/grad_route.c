/* Derivatives of choosing experts: route.scatter (of route.top and route.take) and route.mask (of moe.identity and
 * dropped choices). The one idea: a token is one thread's work, as in route.c.
 *
 * scatter  ptr: w, ids, y   i: T, k, E
 * mask     ptr: w, ids, y   i: T * k, from */
#include "codegen/cpu/route.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

static bool
need_choices(mc_plan *p, const mc_value *weights, const mc_value *ids)
{
    if (weights->type->dtype == MOEC_F32 && ids->type->dtype == MOEC_I32) return true;
    return mc_plan_refuse(p, "its weights must be f32 and its ids i32");
}

static void
emit_scatter(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    LLVMValueRef w = kb_arg_ptr(kb, 0), ids = kb_arg_ptr(kb, 1), y = kb_arg_ptr(kb, 2), zero = kb_i64(kb, 0);
    LLVMValueRef k = kb_arg_int(kb, 1), n_e = kb_arg_int(kb, 2);
    kb_loop rows = mc_rows_begin(kb, kb_arg_int(kb, 0));
    LLVMValueRef to = kb_elem(kb, y, kb_mul(kb, rows.i, n_e), 4), at = kb_mul(kb, rows.i, k);
    kb_vloop clear = kb_vloop_begin(kb, zero, n_e, 0, NULL);
    while (kb_vloop_next(kb, &clear))
        kb_store_f32(kb, MOEC_F32, kb_const(kb->vf, 0), kb_elem(kb, to, clear.i, 4), clear.mask);
    kb_loop l = kb_loop_begin(kb, zero, k, kb_i64(kb, 1), 0, NULL);
    LLVMValueRef j = kb_add(kb, at, l.i), id = mc_get_i32(kb, ids, j);
    kb_if real = kb_if_begin(kb, kb_icmp(kb, LLVMIntULT, id, n_e));
    mc_set_f32(kb, to, id, kb_fadd(kb, mc_get_f32(kb, to, id), mc_get_f32(kb, w, j)));
    kb_if_end(kb, &real);
    kb_loop_end(kb, &l);
    mc_rows_end(kb, &rows);
    kb_kernel_end(kb);
}

void
mc_cpu_select_route_scatter(mc_plan *p, const mc_op *op)
{
    const mc_value *w = mc_operand(op, 0), *ids = mc_operand(op, 1);
    if (!need_choices(p, w, ids)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_scatter, NULL, 0, "route_scatter"));
    mc_plan_ptr(p, w);
    mc_plan_ptr(p, ids);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_rows(p, ids->type));
    mc_plan_int(p, mc_type_last(ids->type));
    mc_plan_const(p, mc_attr_int(op, "experts"));
}

static void
emit_mask(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    LLVMValueRef w = kb_arg_ptr(kb, 0), ids = kb_arg_ptr(kb, 1), y = kb_arg_ptr(kb, 2), begin, end;
    LLVMValueRef from = kb_splat(kb, kb_convert(kb, kb_arg_int(kb, 1), kb->i32), kb->vl);
    kb_split(kb, kb_arg_int(kb, 0), 64, &begin, &end);
    kb_vloop v = kb_vloop_begin(kb, begin, end, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef id = kb_load_masked(kb, kb->vi, kb_elem(kb, ids, v.i, 4), 4, v.mask);
        LLVMValueRef x = kb_load_f32(kb, MOEC_F32, kb_elem(kb, w, v.i, 4), v.lanes, v.mask);
        x = kb_select(kb, kb_icmp(kb, LLVMIntSGE, id, from), x, kb_const(kb->vf, 0));
        kb_store_f32(kb, MOEC_F32, x, kb_elem(kb, y, v.i, 4), v.mask);
    }
    kb_kernel_end(kb);
}

void
mc_cpu_select_route_mask(mc_plan *p, const mc_op *op)
{
    const mc_value *w = mc_operand(op, 0), *ids = mc_operand(op, 1);
    if (!need_choices(p, w, ids)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_mask, NULL, 0, "route_mask"));
    mc_plan_ptr(p, w);
    mc_plan_ptr(p, ids);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_count(p, ids->type));
    mc_plan_const(p, mc_attr_int(op, "from"));
}
