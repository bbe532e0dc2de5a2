/* embed: rows of a table, widened; embed_dw: its derivative. The runtime has checked the ids (moec_abi_tensor.limit).
 *
 * embed     ptr: ids, table, y     i: number of ids, d
 * embed_dw  ptr: ids, dy, dtable   i: number of ids, d, V   a gradient buffer is added to, unless it is null */
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"
#include "runtime/base/dtype.h"

static void
emit_embed(mc_kb *kb, const mc_plan_kernel *k)
{
    moec_dtype dtype = (moec_dtype)k->p[0];
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef ids = kb_arg_ptr(kb, 0), table = kb_arg_ptr(kb, 1), y = kb_arg_ptr(kb, 2), d = kb_arg_int(kb, 1);
    kb_loop l = mc_rows_begin(kb, kb_arg_int(kb, 0));
    LLVMValueRef id = kb_convert(kb, kb_load(kb, kb->i32, kb_elem(kb, ids, l.i, 4), 4), kb->i64);
    LLVMValueRef from = kb_elem(kb, table, kb_mul(kb, id, d), (int64_t)moec_dtype_bytes(dtype));
    LLVMValueRef to = kb_elem(kb, y, kb_mul(kb, l.i, d), 4);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), d, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef at = kb_elem(kb, from, v.i, (int64_t)moec_dtype_bytes(dtype));
        kb_store_f32(kb, MOEC_F32, kb_load_f32(kb, dtype, at, v.lanes, v.mask), kb_elem(kb, to, v.i, 4), v.mask);
    }
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

void
mc_cpu_select_embed(mc_plan *p, const mc_op *op)
{
    const mc_value *ids = mc_operand(op, 0), *table = mc_operand(op, 1), *y = mc_result(op, 0);
    moec_dtype dtype = table->type->dtype;
    if (ids->type->dtype != MOEC_I32 || y->type->dtype != MOEC_F32 || !mc_dtype_is_float(dtype) || dtype == MOEC_F64) {
        mc_plan_refuse(p, "ids must be i32, the result f32 and the table of a float type up to 32 bits");
        return;
    }
    int64_t params[1] = {dtype};
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_embed, params, 1, "embed_%s", moec_dtype_name(dtype)));
    mc_plan_ptr(p, ids);
    mc_plan_ptr(p, table);
    mc_plan_ptr(p, y);
    mc_plan_int(p, mc_plan_count(p, ids->type));
    mc_plan_int(p, table->type->dims[1]);
}

/* ---- embed_dw ---------------------------------------------------------------------------------------------------- */

/* Columns are split over threads: every thread adds all rows, in ascending order, to its own columns. */
static void
add_rows(mc_kb *kb, LLVMValueRef ids, LLVMValueRef dy, LLVMValueRef table, LLVMValueRef d, LLVMValueRef begin,
         LLVMValueRef end)
{
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_arg_int(kb, 0), kb_i64(kb, 1), 0, NULL);
    LLVMValueRef id = kb_convert(kb, kb_load(kb, kb->i32, kb_elem(kb, ids, l.i, 4), 4), kb->i64);
    LLVMValueRef from = kb_elem(kb, dy, kb_mul(kb, l.i, d), 4), to = kb_elem(kb, table, kb_mul(kb, id, d), 4);
    kb_vloop v = kb_vloop_begin(kb, begin, end, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef at = kb_elem(kb, to, v.i, 4), sum = kb_load_f32(kb, MOEC_F32, at, v.lanes, v.mask);
        sum = kb_fadd(kb, sum, kb_load_f32(kb, MOEC_F32, kb_elem(kb, from, v.i, 4), v.lanes, v.mask));
        kb_store_f32(kb, MOEC_F32, sum, at, v.mask);
    }
    kb_loop_end(kb, &l);
}

static void
clear_columns(mc_kb *kb, LLVMValueRef table, LLVMValueRef d, LLVMValueRef begin, LLVMValueRef end)
{
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_arg_int(kb, 2), kb_i64(kb, 1), 0, NULL);
    LLVMValueRef row = kb_elem(kb, table, kb_mul(kb, l.i, d), 4);
    kb_vloop v = kb_vloop_begin(kb, begin, end, 0, NULL);
    while (kb_vloop_next(kb, &v)) kb_store_f32(kb, MOEC_F32, kb_const(kb->vf, 0), kb_elem(kb, row, v.i, 4), v.mask);
    kb_loop_end(kb, &l);
}

static void
emit_embed_dw(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef ids = kb_arg_ptr(kb, 0), dy = kb_arg_ptr(kb, 1), table = kb_arg_ptr(kb, 2), d = kb_arg_int(kb, 1);
    LLVMValueRef begin, end;
    kb_split(kb, d, 16, &begin, &end);
    if (k->p[0]) {
        LLVMValueRef there = kb_icmp(kb, LLVMIntNE, table, LLVMConstPointerNull(kb->ptr));
        kb_if wanted = kb_if_begin(kb, there);
        add_rows(kb, ids, dy, table, d, begin, end);
        kb_if_end(kb, &wanted);
    } else {
        clear_columns(kb, table, d, begin, end);
        add_rows(kb, ids, dy, table, d, begin, end);
    }
    kb_kernel_end(kb);
}

void
mc_cpu_select_embed_dw(mc_plan *p, const mc_op *op)
{
    const mc_value *ids = mc_operand(op, 0), *dy = mc_operand(op, 1), *table = mc_result(op, 0);
    if (ids->type->dtype != MOEC_I32 || dy->type->dtype != MOEC_F32 || table->type->dtype != MOEC_F32) {
        mc_plan_refuse(p, "ids must be i32, the rest f32");
        return;
    }
    int64_t in_gradient = mc_plan_in_gradient(table);
    mc_plan_launch(p,
                   mc_plan_kernel_get(p, emit_embed_dw, &in_gradient, 1, "embed_dw%s", in_gradient ? "_gradient" : ""));
    mc_plan_ptr(p, ids);
    mc_plan_ptr(p, dy);
    mc_plan_ptr(p, table);
    mc_plan_int(p, mc_plan_count(p, ids->type));
    mc_plan_int(p, table->type->dims[1]);
    mc_plan_int(p, table->type->dims[0]);
}
