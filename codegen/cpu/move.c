/* Everything that only moves elements: copy, split, concat, slice, expand, tile, transpose. The one idea: each is a
 * walk over axes with a step in the source and a step in the result, so one kernel serves them all.
 *
 * ptr: x, y   i: sizes, steps in x, steps in y (elements), each outermost first */
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

enum { MAX_AXES = MC_MAX_RANK + 1, CHUNK = 1024 };

typedef struct walk {
    int n;
    mc_dim size[MAX_AXES], from[MAX_AXES], to[MAX_AXES];
} walk;

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
    LLVMValueRef size[MAX_AXES], from[MAX_AXES], to[MAX_AXES];
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

static bool
is_one(mc_dim d)
{
    return mc_dim_eq(d, mc_dim_const(1));
}

/* outer step == inner size * inner step */
static bool
follows(mc_dim outer_step, mc_dim size, mc_dim inner_step)
{
    mc_dim run;
    return mc_dim_mul(size, inner_step, &run) && mc_dim_eq(run, outer_step);
}

/* Adds an axis inside those added before, merging it with its neighbour when both sides go on without a gap. */
static void
add_axis(walk *w, mc_dim size, mc_dim from, mc_dim to)
{
    if (is_one(size)) return;
    int last = w->n - 1;
    mc_dim joined;
    if (w->n && follows(w->from[last], size, from) && follows(w->to[last], size, to) &&
        mc_dim_mul(w->size[last], size, &joined)) {
        w->size[last] = joined;
        w->from[last] = from;
        w->to[last] = to;
        return;
    }
    w->size[w->n] = size;
    w->from[w->n] = from;
    w->to[w->n++] = to;
}

static void
launch_walk(mc_plan *p, const mc_value *x, mc_dim x_offset, const mc_value *y, mc_dim y_offset, walk *w)
{
    mc_dim one = mc_dim_const(1), bytes = mc_dim_const((int64_t)moec_dtype_bytes(x->type->dtype));
    if (!w->n) {
        w->size[0] = w->from[0] = w->to[0] = one;
        w->n = 1;
    }
    int last = w->n - 1;
    int64_t params[3] = {w->n, (int64_t)moec_dtype_bytes(x->type->dtype), is_one(w->from[last]) && is_one(w->to[last])};
    mc_plan_launch(
        p, mc_plan_kernel_get(p, emit_move, params, 3, "move_%d_%d%s", w->n, (int)params[1], params[2] ? "" : "_gaps"));
    mc_plan_ptr_at(p, x, mc_plan_times(p, x_offset, bytes));
    mc_plan_ptr_at(p, y, mc_plan_times(p, y_offset, bytes));
    for (int a = 0; a < w->n; a++) mc_plan_int(p, w->size[a]);
    for (int a = 0; a < w->n; a++) mc_plan_int(p, w->from[a]);
    for (int a = 0; a < w->n; a++) mc_plan_int(p, w->to[a]);
}

static int
axis_of(const mc_op *op, int rank)
{
    int64_t axis = mc_attr_int(op, "axis");
    return (int)(axis < 0 ? axis + rank : axis);
}

static void
select_split(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0);
    mc_dim one = mc_dim_const(1);
    int64_t offset = 0;
    for (int i = 0; i < op->n_results; i++) {
        const mc_value *part = mc_result(op, i);
        mc_dim width = mc_type_last(part->type);
        walk w = {0};
        add_axis(&w, mc_plan_rows(p, x->type), mc_type_last(x->type), width);
        add_axis(&w, width, one, one);
        launch_walk(p, x, mc_dim_const(offset), part, mc_dim_const(0), &w);
        offset += mc_plan_need_const(p, width, "a part of a split");
    }
}

static void
select_concat(mc_plan *p, const mc_op *op)
{
    const mc_value *y = mc_result(op, 0);
    int axis = axis_of(op, y->type->rank);
    mc_dim one = mc_dim_const(1), inner = mc_plan_product(p, y->type, axis + 1, y->type->rank);
    mc_dim run = mc_plan_times(p, y->type->dims[axis], inner);
    int64_t done = 0;
    for (int i = 0; i < op->n_operands; i++) {
        const mc_value *x = mc_operand(op, i);
        mc_dim part = mc_plan_times(p, x->type->dims[axis], inner);
        walk w = {0};
        add_axis(&w, mc_plan_product(p, x->type, 0, axis), part, run);
        add_axis(&w, part, one, one);
        launch_walk(p, x, mc_dim_const(0), y, mc_plan_times(p, mc_dim_const(done), inner), &w);
        if (i + 1 < op->n_operands) done += mc_plan_need_const(p, x->type->dims[axis], "a joined axis");
    }
}

static void
select_transpose(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    const mc_attr *perm = mc_attr_get(op, "perm");
    walk w = {0};
    for (int a = 0; a < y->type->rank; a++) {
        int source = (int)perm->as.ints.items[a];
        add_axis(&w, y->type->dims[a], mc_plan_product(p, x->type, source + 1, x->type->rank),
                 mc_plan_product(p, y->type, a + 1, y->type->rank));
    }
    launch_walk(p, x, mc_dim_const(0), y, mc_dim_const(0), &w);
}

/* slice, expand, tile: outer x (what happens on the axis) x inner. */
static void
select_along_axis(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    int axis = axis_of(op, x->type->rank);
    mc_dim zero = mc_dim_const(0), one = mc_dim_const(1), inner = mc_plan_product(p, x->type, axis + 1, x->type->rank);
    mc_dim outer = mc_plan_product(p, x->type, 0, axis), offset = zero;
    mc_dim from = mc_plan_times(p, x->type->dims[axis], inner), to = mc_plan_times(p, y->type->dims[axis], inner);
    walk w = {0};
    add_axis(&w, outer, from, to);
    if (op->opcode == MC_OP_SLICE) {
        offset = mc_plan_times(p, mc_dim_const(mc_attr_int(op, "begin")), inner);
        add_axis(&w, to, one, one);
    } else {
        add_axis(&w, mc_dim_const(mc_attr_int(op, "n")), zero, from);
        add_axis(&w, from, one, one);
    }
    launch_walk(p, x, offset, y, zero, &w);
}

void
mc_cpu_select_move(mc_plan *p, const mc_op *op)
{
    double value;
    if (op->opcode == MC_OP_COPY && mc_plan_is_const(mc_operand(op, 0), &value)) {
        mc_cpu_select_elementwise(p, op);
        return;
    }
    switch (op->opcode) {
    case MC_OP_SPLIT: select_split(p, op); break;
    case MC_OP_CONCAT: select_concat(p, op); break;
    case MC_OP_TRANSPOSE: select_transpose(p, op); break;
    case MC_OP_COPY: {
        mc_dim one = mc_dim_const(1);
        walk w = {0};
        add_axis(&w, mc_plan_count(p, mc_operand(op, 0)->type), one, one);
        launch_walk(p, mc_operand(op, 0), mc_dim_const(0), mc_result(op, 0), mc_dim_const(0), &w);
        break;
    }
    default: select_along_axis(p, op); break;
    }
}
