/* Derivatives of broadcasting and slicing: sum_to, unslice. The one idea: the elements of the result are dealt out to
 * the threads as one flat array, and each thread walks the rows that its part touches. */
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

enum { GRAIN = 16, MAX_AXES = MC_MAX_RANK, BLOCK = 8 };

/* A part of a row of the result: elements first..last-1 of row o. */
typedef struct part {
    LLVMValueRef begin, end, width;
    kb_loop rows;
    LLVMValueRef row, first, last;
} part;

static part
begin_part(mc_kb *kb, LLVMValueRef n_rows, LLVMValueRef width)
{
    part t = {.width = width};
    kb_split(kb, kb_mul(kb, n_rows, width), GRAIN, &t.begin, &t.end);
    LLVMValueRef divisor = kb_max(kb, width, kb_i64(kb, 1)), below = kb_sub(kb, divisor, kb_i64(kb, 1));
    LLVMValueRef first_row = kb_udiv(kb, t.begin, divisor), end_row = kb_udiv(kb, kb_add(kb, t.end, below), divisor);
    t.rows = kb_loop_begin(kb, first_row, end_row, kb_i64(kb, 1), 0, NULL);
    t.row = t.rows.i;
    LLVMValueRef start = kb_mul(kb, t.row, width);
    t.first = kb_max(kb, kb_sub(kb, t.begin, start), kb_i64(kb, 0));
    t.last = kb_min(kb, kb_sub(kb, t.end, start), width);
    return t;
}

static void
end_part(mc_kb *kb, part *t)
{
    kb_loop_end(kb, &t->rows);
}

/* to[i] = from[i - shift], or 0 without `from`. */
static void
emit_copy(mc_kb *kb, LLVMValueRef from, LLVMValueRef shift, LLVMValueRef to, LLVMValueRef begin, LLVMValueRef end)
{
    kb_vloop v = kb_vloop_begin(kb, begin, kb_max(kb, begin, end), 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef e = kb_const(kb->vf, 0);
        if (from) e = kb_load_f32(kb, MOEC_F32, kb_elem(kb, from, kb_sub(kb, v.i, shift), 4), v.lanes, v.mask);
        kb_store_f32(kb, MOEC_F32, e, kb_elem(kb, to, v.i, 4), v.mask);
    }
}

static bool
need_f32(mc_plan *p, const mc_op *op)
{
    return mc_operand(op, 0)->type->dtype == MOEC_F32 || mc_plan_refuse(p, "the operand is not f32");
}

/* ---- unslice --------------------------------------------------------------------------------------------------------
 * ptr: x, y   i: outer rows, elements of x in a row, of y, of y before x */

static void
emit_unslice(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef x = kb_arg_ptr(kb, 0), y = kb_arg_ptr(kb, 1), n_rows = kb_arg_int(kb, 0), n = kb_arg_int(kb, 1);
    LLVMValueRef width = kb_arg_int(kb, 2), start = kb_arg_int(kb, 3), stop = kb_add(kb, start, n);
    part t = begin_part(kb, n_rows, width);
    LLVMValueRef from = kb_elem(kb, x, kb_mul(kb, t.row, n), 4), to = kb_elem(kb, y, kb_mul(kb, t.row, width), 4);
    emit_copy(kb, NULL, NULL, to, t.first, kb_min(kb, t.last, start));
    emit_copy(kb, from, start, to, kb_max(kb, t.first, start), kb_min(kb, t.last, stop));
    emit_copy(kb, NULL, NULL, to, kb_max(kb, t.first, stop), t.last);
    end_part(kb, &t);
    kb_kernel_end(kb);
}

void
mc_cpu_select_unslice(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    if (!need_f32(p, op)) return;
    int64_t axis = mc_attr_int(op, "axis");
    int rank = x->type->rank, at = (int)(axis < 0 ? axis + rank : axis);
    mc_dim inner = mc_plan_product(p, x->type, at + 1, rank);
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_unslice, NULL, 0, "unslice"));
    mc_plan_ptr(p, x);
    mc_plan_ptr(p, y);
    mc_plan_int(p, mc_plan_product(p, x->type, 0, at));
    mc_plan_int(p, mc_plan_times(p, x->type->dims[at], inner));
    mc_plan_int(p, mc_plan_times(p, y->type->dims[at], inner));
    mc_plan_int(p, mc_plan_times(p, mc_dim_const(mc_attr_int(op, "begin")), inner));
}

/* ---- sum_to ---------------------------------------------------------------------------------------------------------
 * Axes of x that are neighbours and share a fate (kept, summed) are one.   ptr: x, y   i: sizes, outermost first */

typedef struct sum { /* a kernel being emitted */
    int n_axes, n_kept, n_summed;
    int kept[MAX_AXES], summed[MAX_AXES]; /* axes, outermost first */
    LLVMValueRef sizes[MAX_AXES], steps[MAX_AXES];
    LLVMValueRef x, y, zero, one;
} sum;

static LLVMValueRef
product_of(mc_kb *kb, const sum *s, const int *axes, int n)
{
    LLVMValueRef product = s->one;
    for (int i = 0; i < n; i++) product = kb_mul(kb, product, s->sizes[axes[i]]);
    return product;
}

/* p + where the index-th combination of these axes lies */
static LLVMValueRef
at_index(mc_kb *kb, const sum *s, LLVMValueRef p, const int *axes, int n, LLVMValueRef index)
{
    LLVMValueRef at = s->zero;
    for (int i = n - 1; i >= 0; i--) {
        LLVMValueRef here = i ? kb_urem(kb, index, s->sizes[axes[i]]) : index;
        if (i) index = kb_udiv(kb, index, s->sizes[axes[i]]);
        at = kb_add(kb, at, kb_mul(kb, here, s->steps[axes[i]]));
    }
    return kb_elem(kb, p, at, 4);
}

/* y += x[0] + x[1] ..., one after another, for elements first..last-1. */
static void
add_rows(mc_kb *kb, LLVMValueRef y, const LLVMValueRef *x, int n, LLVMValueRef first, LLVMValueRef last)
{
    kb_vloop v = kb_vloop_begin(kb, first, last, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef at = kb_elem(kb, y, v.i, 4), acc = kb_load_f32(kb, MOEC_F32, at, v.lanes, v.mask);
        for (int i = 0; i < n; i++) {
            acc = kb_fadd(kb, acc, kb_load_f32(kb, MOEC_F32, kb_elem(kb, x[i], v.i, 4), v.lanes, v.mask));
        }
        kb_store_f32(kb, MOEC_F32, acc, at, v.mask);
    }
}

/* The innermost axis is kept: whole rows are added to the result, which stays in the cache, BLOCK at a time. */
static void
emit_columns(mc_kb *kb, const sum *s)
{
    LLVMValueRef n_rows = product_of(kb, s, s->kept, s->n_kept - 1), block = kb_i64(kb, BLOCK);
    LLVMValueRef n = product_of(kb, s, s->summed, s->n_summed), rows[BLOCK];
    LLVMValueRef whole = kb_mul(kb, kb_udiv(kb, n, block), block);
    part t = begin_part(kb, n_rows, s->sizes[s->n_axes - 1]);
    LLVMValueRef x = at_index(kb, s, s->x, s->kept, s->n_kept - 1, t.row);
    LLVMValueRef y = kb_elem(kb, s->y, kb_mul(kb, t.row, t.width), 4);
    emit_copy(kb, NULL, NULL, y, t.first, t.last);
    kb_loop l = kb_loop_begin(kb, s->zero, whole, block, 0, NULL);
    for (int i = 0; i < BLOCK; i++) {
        rows[i] = at_index(kb, s, x, s->summed, s->n_summed, kb_add(kb, l.i, kb_i64(kb, i)));
    }
    add_rows(kb, y, rows, BLOCK, t.first, t.last);
    kb_loop_end(kb, &l);
    l = kb_loop_begin(kb, whole, n, s->one, 0, NULL);
    rows[0] = at_index(kb, s, x, s->summed, s->n_summed, l.i);
    add_rows(kb, y, rows, 1, t.first, t.last);
    kb_loop_end(kb, &l);
    end_part(kb, &t);
}

static LLVMValueRef
step_sum(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    return kb_fadd(kb, acc, kb_load_f32(kb, MOEC_F32, kb_elem(kb, context, i, 4), kb->vl, mask));
}

/* The innermost axis is summed: each element of the result is a sum of folds. */
static void
emit_folds(mc_kb *kb, const sum *s)
{
    LLVMValueRef n = product_of(kb, s, s->summed, s->n_summed - 1), nothing = kb_f32(kb, 0);
    kb_loop o = mc_rows_begin(kb, product_of(kb, s, s->kept, s->n_kept));
    LLVMValueRef x = at_index(kb, s, s->x, s->kept, s->n_kept, o.i);
    kb_loop l = kb_loop_begin(kb, s->zero, n, s->one, 1, &nothing);
    LLVMValueRef run = at_index(kb, s, x, s->summed, s->n_summed - 1, l.i);
    LLVMValueRef folded = mc_rows_fold(kb, s->sizes[s->n_axes - 1], 0, false, step_sum, run, kb_reduce_add);
    l.v[0] = kb_fadd(kb, l.v[0], folded);
    kb_loop_end(kb, &l);
    kb_store(kb, l.v[0], kb_elem(kb, s->y, o.i, 4), 4);
    mc_rows_end(kb, &o);
}

static void
emit_sum_to(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    int64_t kept = k->p[1];
    sum s = {.n_axes = (int)k->p[0], .zero = kb_i64(kb, 0), .one = kb_i64(kb, 1)};
    s.x = kb_arg_ptr(kb, 0);
    s.y = kb_arg_ptr(kb, 1);
    for (int a = 0; a < s.n_axes; a++) {
        s.sizes[a] = kb_arg_int(kb, a);
        if (kept >> a & 1) {
            s.kept[s.n_kept++] = a;
        } else {
            s.summed[s.n_summed++] = a;
        }
    }
    LLVMValueRef step = s.one;
    for (int a = s.n_axes - 1; a >= 0; a--) {
        s.steps[a] = step;
        step = kb_mul(kb, step, s.sizes[a]);
    }
    if (kept >> (s.n_axes - 1) & 1) {
        emit_columns(kb, &s);
    } else {
        emit_folds(kb, &s);
    }
    kb_kernel_end(kb);
}

void
mc_cpu_select_sum_to(mc_plan *p, const mc_op *op)
{
    const mc_type *x = mc_operand(op, 0)->type, *y = mc_result(op, 0)->type;
    mc_dim sizes[MAX_AXES], one = mc_dim_const(1);
    int64_t kept = 0;
    int n = 0;
    if (!need_f32(p, op)) return;
    for (int a = 0; a < x->rank; a++) {
        if (mc_dim_eq(x->dims[a], one)) continue;
        int at = a - (x->rank - y->rank);
        int64_t keep = at >= 0 && mc_dim_eq(y->dims[at], x->dims[a]);
        if (n && (kept >> (n - 1) & 1) == keep) {
            sizes[n - 1] = mc_plan_times(p, sizes[n - 1], x->dims[a]);
        } else {
            sizes[n] = x->dims[a];
            kept |= keep << n++;
        }
    }
    if (!n) { /* one element */
        sizes[n++] = one;
        kept = 1;
    }
    int64_t params[2] = {n, kept};
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_sum_to, params, 2, "sum_to_%d_%d", n, (int)kept));
    mc_plan_ptr(p, mc_operand(op, 0));
    mc_plan_ptr(p, mc_result(op, 0));
    for (int a = 0; a < n; a++) mc_plan_int(p, sizes[a]);
}
