/* Everything that only moves elements: copy, split, concat, slice, expand, tile, transpose. The one idea: all are
 * walks (codegen/plan/moves.h), so one kernel serves them all.
 *
 * ptr: x, y   i: sizes, steps in x, steps in y (elements), each outermost first */
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"
#include "codegen/plan/moves.h"

enum { CHUNK = 1024 };

/* ---- the kernel ------------------------------------------------------------------------------------------------ */

static LLVMTypeRef
element_type(const mc_kb *kb, int64_t bytes)
{
    return bytes == 8 ? kb->i64 : bytes == 4 ? kb->i32 : bytes == 2 ? kb->i16 : kb->i8;
}

/* Elements begin..end-1 of the innermost axis. */
static void
emit_run(mc_kb *kb, const mc_plan_kernel *k, LLVMValueRef x, LLVMValueRef y, LLVMValueRef begin, LLVMValueRef end,
         LLVMValueRef from, LLVMValueRef to)
{
    int64_t bytes = k->p[1], dense = k->p[2];
    if (dense && bytes == 4) {
        kb_vloop v = kb_vloop_begin(kb, begin, end, 0, NULL);
        while (kb_vloop_next(kb, &v)) {
            LLVMValueRef e = kb_load_masked(kb, kb->vi, kb_elem(kb, x, v.i, 4), 4, v.mask);
            kb_store_masked(kb, e, kb_elem(kb, y, v.i, 4), 4, v.mask);
        }
        return;
    }
    kb_loop l = kb_loop_begin(kb, begin, end, kb_i64(kb, 1), 0, NULL);
    LLVMValueRef at = kb_elem(kb, x, kb_mul(kb, l.i, from), bytes);
    LLVMValueRef e = kb_load(kb, element_type(kb, bytes), at, (unsigned)bytes);
    kb_store(kb, e, kb_elem(kb, y, kb_mul(kb, l.i, to), bytes), (unsigned)bytes);
    kb_loop_end(kb, &l);
}

static void
emit_move(mc_kb *kb, const mc_plan_kernel *k)
{
    int n = (int)k->p[0];
    LLVMValueRef size[MC_WALK_AXES], from[MC_WALK_AXES], to[MC_WALK_AXES];
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef x = kb_arg_ptr(kb, 0), y = kb_arg_ptr(kb, 1), outer = kb_i64(kb, 1), chunk = kb_i64(kb, CHUNK);
    for (int a = 0; a < n; a++) {
        size[a] = kb_arg_int(kb, a);
        from[a] = kb_arg_int(kb, n + a);
        to[a] = kb_arg_int(kb, 2 * n + a);
        if (a < n - 1) outer = kb_mul(kb, outer, size[a]);
    }
    LLVMValueRef chunks = kb_udiv(kb, kb_add(kb, size[n - 1], kb_i64(kb, CHUNK - 1)), chunk);
    kb_loop l = mc_rows_begin(kb, kb_mul(kb, outer, chunks));
    LLVMValueRef left = kb_udiv(kb, l.i, chunks), at_x = kb_i64(kb, 0), at_y = at_x;
    for (int a = n - 2; a >= 0; a--) {
        LLVMValueRef i = a ? kb_urem(kb, left, size[a]) : left;
        if (a) left = kb_udiv(kb, left, size[a]);
        at_x = kb_add(kb, at_x, kb_mul(kb, i, from[a]));
        at_y = kb_add(kb, at_y, kb_mul(kb, i, to[a]));
    }
    LLVMValueRef begin = kb_mul(kb, kb_urem(kb, l.i, chunks), chunk);
    LLVMValueRef end = kb_min(kb, size[n - 1], kb_add(kb, begin, chunk));
    emit_run(kb, k, kb_elem(kb, x, at_x, k->p[1]), kb_elem(kb, y, at_y, k->p[1]), begin, end, from[n - 1], to[n - 1]);
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

/* ---- walks ----------------------------------------------------------------------------------------------------- */

static void
launch_walk(mc_plan *p, mc_plan_walk *w)
{
    int64_t n_bytes = (int64_t)moec_dtype_bytes(w->x->type->dtype);
    mc_dim bytes = mc_dim_const(n_bytes);
    int last = w->n - 1;
    int64_t params[3] = {w->n, n_bytes, mc_walk_is_one(w->from[last]) && mc_walk_is_one(w->to[last])};
    mc_plan_launch(
        p, mc_plan_kernel_get(p, emit_move, params, 3, "move_%d_%d%s", w->n, (int)params[1], params[2] ? "" : "_gaps"));
    mc_plan_ptr_at(p, w->x, mc_plan_times(p, w->x_offset, bytes));
    mc_plan_ptr_at(p, w->y, mc_plan_times(p, w->y_offset, bytes));
    for (int a = 0; a < w->n; a++) mc_plan_int(p, w->size[a]);
    for (int a = 0; a < w->n; a++) mc_plan_int(p, w->from[a]);
    for (int a = 0; a < w->n; a++) mc_plan_int(p, w->to[a]);
}

void
mc_cpu_select_move(mc_plan *p, const mc_op *op)
{
    double value;
    if (op->opcode == MC_OP_COPY && mc_plan_is_const(mc_operand(op, 0), &value))
        mc_cpu_select_elementwise(p, op);
    else
        mc_plan_moves(p, op, launch_walk);
}
