/* embed: rows of a table, widened. The runtime has checked the ids (moec_abi_tensor.limit).
 *
 * ptr: ids, table, y   i: number of ids, d */
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"
#include "runtime/base/dtype.h"

static void
emit_embed(mc_kb *kb, const mc_cpu_kernel *k)
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
mc_cpu_select_embed(mc_cpu_plan *p, const mc_op *op)
{
    const mc_value *ids = mc_operand(op, 0), *table = mc_operand(op, 1), *y = mc_result(op, 0);
    moec_dtype dtype = table->type->dtype;
    if (ids->type->dtype != MOEC_I32 || y->type->dtype != MOEC_F32 || !mc_dtype_is_float(dtype) || dtype == MOEC_F64) {
        mc_cpu_refuse(p, "ids must be i32, the result f32 and the table of a float type up to 32 bits");
        return;
    }
    int64_t params[1] = {dtype};
    mc_cpu_launch(p, mc_cpu_kernel_get(p, emit_embed, params, 1, "embed_%s", moec_dtype_name(dtype)));
    mc_cpu_ptr(p, ids);
    mc_cpu_ptr(p, table);
    mc_cpu_ptr(p, y);
    mc_cpu_int(p, mc_cpu_count(p, ids->type));
    mc_cpu_int(p, table->type->dims[1]);
}
