/* Rows to experts and back: moe.dispatch, moe.permute, moe.unpermute, moe.identity, moe.capacity. The one idea: sorting
 * is one short sequential pass over the assignments, done by one thread; everything that touches rows is split so that
 * each output element belongs to one thread, which adds in ascending order of rows.
 *
 * dispatch   ptr: weights, ids, offsets, tokens, slots, gates   i: A, k, E            scratch: E cursors
 * permute    ptr: x, rows, offsets, gates, y                    i: A, d, E
 * unpermute  ptr: y, offsets, rows, gates, x                    i: T, d, E
 * identity   ptr: x, weights, ids, y                            i: T, d, k, first
 * capacity   ptr: weights, ids, kept_weights, kept_ids          i: T, k, E            f: factor */
#include "codegen/cpu/route.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

#include <stddef.h>

static kb_loop
count_to(mc_kb *kb, LLVMValueRef n, int n_carried, const LLVMValueRef *init)
{
    return kb_loop_begin(kb, kb_i64(kb, 0), n, kb_i64(kb, 1), n_carried, init);
}

static bool
need(mc_plan *p, const mc_value *v, moec_dtype dtype)
{
    if (!v || v->type->dtype == dtype) return true;
    return mc_plan_refuse(p, "an operand is %s, not %s", moec_dtype_name(v->type->dtype), moec_dtype_name(dtype));
}

/* ---- dispatch -------------------------------------------------------------------------------------------------- */

typedef struct dispatch {
    LLVMValueRef weights, ids, offsets, tokens, slots, gates, n, k, n_e, cursors;
} dispatch;

/* Counts the rows of every expert, then turns counts into cursors and offsets. */
static void
lay_offsets(mc_kb *kb, const dispatch *d)
{
    LLVMValueRef zero = kb_i64(kb, 0), one = kb_i64(kb, 1);
    kb_loop clear = count_to(kb, d->n_e, 0, NULL);
    mc_set_i32(kb, d->cursors, clear.i, zero);
    kb_loop_end(kb, &clear);
    kb_loop tally = count_to(kb, d->n, 0, NULL);
    LLVMValueRef id = mc_get_i32(kb, d->ids, tally.i);
    kb_if real = kb_if_begin(kb, kb_icmp(kb, LLVMIntULT, id, d->n_e));
    mc_set_i32(kb, d->cursors, id, kb_add(kb, mc_get_i32(kb, d->cursors, id), one));
    kb_if_end(kb, &real);
    kb_loop_end(kb, &tally);
    kb_loop lay = count_to(kb, d->n_e, 1, &zero);
    LLVMValueRef begin = lay.v[0];
    lay.v[0] = kb_add(kb, begin, mc_get_i32(kb, d->cursors, lay.i));
    mc_set_i32(kb, d->cursors, lay.i, begin);
    mc_set_i32(kb, d->offsets, lay.i, begin);
    kb_loop_end(kb, &lay);
    mc_set_i32(kb, d->offsets, d->n_e, lay.v[0]);
}

static void
place_rows(mc_kb *kb, const dispatch *d)
{
    kb_loop l = count_to(kb, d->n, 0, NULL);
    LLVMValueRef id = mc_get_i32(kb, d->ids, l.i);
    kb_if real = kb_if_begin(kb, kb_icmp(kb, LLVMIntULT, id, d->n_e));
    LLVMValueRef r = mc_get_i32(kb, d->cursors, id);
    mc_set_i32(kb, d->cursors, id, kb_add(kb, r, kb_i64(kb, 1)));
    mc_set_i32(kb, d->tokens, r, kb_udiv(kb, l.i, d->k));
    mc_set_i32(kb, d->slots, r, l.i);
    mc_set_f32(kb, d->gates, r, mc_get_f32(kb, d->weights, l.i));
    kb_if_end(kb, &real);
    kb_loop_end(kb, &l);
}

static void
emit_dispatch(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    kb_if first = kb_if_begin(kb, kb_icmp(kb, LLVMIntEQ, kb_thread(kb), kb_i64(kb, 0)));
    dispatch d = {.weights = kb_arg_ptr(kb, 0),
                  .ids = kb_arg_ptr(kb, 1),
                  .offsets = kb_arg_ptr(kb, 2),
                  .tokens = kb_arg_ptr(kb, 3),
                  .slots = kb_arg_ptr(kb, 4),
                  .gates = kb_arg_ptr(kb, 5),
                  .n = kb_arg_int(kb, 0),
                  .k = kb_arg_int(kb, 1),
                  .n_e = kb_arg_int(kb, 2),
                  .cursors = kb_scratch(kb)};
    lay_offsets(kb, &d);
    place_rows(kb, &d);
    kb_if_end(kb, &first);
    kb_kernel_end(kb);
}

void
mc_cpu_select_dispatch(mc_plan *p, const mc_op *op)
{
    const mc_value *weights = mc_operand(op, 0), *ids = mc_operand(op, 1);
    int64_t experts = mc_attr_int(op, "experts");
    if (!need(p, weights, MOEC_F32) || !need(p, ids, MOEC_I32)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_dispatch, NULL, 0, "moe_dispatch"));
    mc_plan_ptr(p, weights);
    mc_plan_ptr(p, ids);
    for (int i = 0; i < 4; i++) mc_plan_ptr(p, mc_result(op, i));
    mc_plan_int(p, mc_plan_count(p, ids->type));
    mc_plan_int(p, mc_type_last(ids->type));
    mc_plan_const(p, experts);
    mc_plan_scratch(p, (uint64_t)experts * 4);
}

/* ---- permute and unpermute ------------------------------------------------------------------------------------- */

static void
emit_permute(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef x = kb_arg_ptr(kb, 0), rows = kb_arg_ptr(kb, 1), offsets = kb_arg_ptr(kb, 2),
                 gates = kb_arg_ptr(kb, 3);
    LLVMValueRef y = kb_arg_ptr(kb, 4), d = kb_arg_int(kb, 1), gate = NULL;
    kb_loop l = mc_rows_begin(kb, mc_get_i32(kb, offsets, kb_arg_int(kb, 2)));
    LLVMValueRef from = kb_elem(kb, x, kb_mul(kb, mc_get_i32(kb, rows, l.i), d), 4);
    LLVMValueRef to = kb_elem(kb, y, kb_mul(kb, l.i, d), 4);
    if (k->p[0]) gate = kb_splat(kb, mc_get_f32(kb, gates, l.i), kb->vl);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), d, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef e = kb_load_f32(kb, MOEC_F32, kb_elem(kb, from, v.i, 4), v.lanes, v.mask);
        if (gate) e = kb_fmul(kb, e, gate);
        kb_store_f32(kb, MOEC_F32, e, kb_elem(kb, to, v.i, 4), v.mask);
    }
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

void
mc_cpu_select_permute(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *rows = mc_operand(op, 1), *offsets = mc_operand(op, 2);
    const mc_value *gates = mc_operand(op, 3);
    int64_t gated = gates != NULL;
    if (!need(p, x, MOEC_F32) || !need(p, rows, MOEC_I32) || !need(p, offsets, MOEC_I32) || !need(p, gates, MOEC_F32))
        return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_permute, &gated, 1, "moe_permute%s", gated ? "_gated" : ""));
    mc_plan_ptr(p, x);
    mc_plan_ptr(p, rows);
    mc_plan_ptr(p, offsets);
    mc_plan_ptr(p, gates);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, rows->type->dims[0]);
    mc_plan_int(p, mc_type_last(x->type));
    mc_plan_const(p, mc_plan_need_const(p, offsets->type->dims[0], "the number of experts") - 1);
}

/* Columns are split over threads: every thread adds all rows, in ascending order, to its own columns. */
static void
emit_unpermute(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef y = kb_arg_ptr(kb, 0), offsets = kb_arg_ptr(kb, 1), rows = kb_arg_ptr(kb, 2),
                 gates = kb_arg_ptr(kb, 3);
    LLVMValueRef x = kb_arg_ptr(kb, 4), d = kb_arg_int(kb, 1), begin, end;
    LLVMValueRef used = mc_get_i32(kb, offsets, kb_arg_int(kb, 2));
    kb_split(kb, d, 16, &begin, &end);
    kb_loop clear = count_to(kb, kb_arg_int(kb, 0), 0, NULL);
    LLVMValueRef row = kb_elem(kb, x, kb_mul(kb, clear.i, d), 4);
    kb_vloop z = kb_vloop_begin(kb, begin, end, 0, NULL);
    while (kb_vloop_next(kb, &z)) kb_store_f32(kb, MOEC_F32, kb_const(kb->vf, 0), kb_elem(kb, row, z.i, 4), z.mask);
    kb_loop_end(kb, &clear);

    kb_loop l = count_to(kb, used, 0, NULL);
    LLVMValueRef to = kb_elem(kb, x, kb_mul(kb, mc_get_i32(kb, rows, l.i), d), 4);
    LLVMValueRef from = kb_elem(kb, y, kb_mul(kb, l.i, d), 4);
    LLVMValueRef gate = k->p[0] ? kb_splat(kb, mc_get_f32(kb, gates, l.i), kb->vl) : NULL;
    kb_vloop v = kb_vloop_begin(kb, begin, end, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef e = kb_load_f32(kb, MOEC_F32, kb_elem(kb, from, v.i, 4), v.lanes, v.mask);
        LLVMValueRef at = kb_elem(kb, to, v.i, 4), sum = kb_load_f32(kb, MOEC_F32, at, v.lanes, v.mask);
        kb_store_f32(kb, MOEC_F32, gate ? kb_fma(kb, gate, e, sum) : kb_fadd(kb, e, sum), at, v.mask);
    }
    kb_loop_end(kb, &l);
    kb_kernel_end(kb);
}

void
mc_cpu_select_unpermute(mc_plan *p, const mc_op *op)
{
    const mc_value *y = mc_operand(op, 0), *offsets = mc_operand(op, 1), *rows = mc_operand(op, 2);
    const mc_value *gates = mc_operand(op, 3), *x = mc_result(op, 0);
    int64_t gated = gates != NULL;
    if (!need(p, y, MOEC_F32) || !need(p, rows, MOEC_I32) || !need(p, offsets, MOEC_I32) || !need(p, gates, MOEC_F32))
        return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_unpermute, &gated, 1, "moe_unpermute%s", gated ? "_gated" : ""));
    mc_plan_ptr(p, y);
    mc_plan_ptr(p, offsets);
    mc_plan_ptr(p, rows);
    mc_plan_ptr(p, gates);
    mc_plan_ptr(p, x);
    mc_plan_int(p, mc_plan_rows(p, x->type));
    mc_plan_int(p, mc_type_last(x->type));
    mc_plan_const(p, mc_plan_need_const(p, offsets->type->dims[0], "the number of experts") - 1);
}

/* ---- identity experts ------------------------------------------------------------------------------------------ */

static void
emit_identity(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    LLVMValueRef x = kb_arg_ptr(kb, 0), weights = kb_arg_ptr(kb, 1), ids = kb_arg_ptr(kb, 2), y = kb_arg_ptr(kb, 3);
    LLVMValueRef d = kb_arg_int(kb, 1), k = kb_arg_int(kb, 2), first = kb_arg_int(kb, 3), sum = kb_f32(kb, 0);
    kb_loop rows = mc_rows_begin(kb, kb_arg_int(kb, 0));
    LLVMValueRef at = kb_mul(kb, rows.i, k);
    kb_loop l = count_to(kb, k, 1, &sum);
    LLVMValueRef a = kb_add(kb, at, l.i), is = kb_icmp(kb, LLVMIntSGE, mc_get_i32(kb, ids, a), first);
    l.v[0] = kb_select(kb, is, kb_fadd(kb, l.v[0], mc_get_f32(kb, weights, a)), l.v[0]);
    kb_loop_end(kb, &l);
    LLVMValueRef start = kb_mul(kb, rows.i, d), w = kb_splat(kb, l.v[0], kb->vl);
    LLVMValueRef from = kb_elem(kb, x, start, 4), to = kb_elem(kb, y, start, 4);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), d, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef e = kb_load_f32(kb, MOEC_F32, kb_elem(kb, from, v.i, 4), v.lanes, v.mask);
        kb_store_f32(kb, MOEC_F32, kb_fmul(kb, e, w), kb_elem(kb, to, v.i, 4), v.mask);
    }
    mc_rows_end(kb, &rows);
    kb_kernel_end(kb);
}

void
mc_cpu_select_identity(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *weights = mc_operand(op, 1), *ids = mc_operand(op, 2);
    if (!need(p, x, MOEC_F32) || !need(p, weights, MOEC_F32) || !need(p, ids, MOEC_I32)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_identity, NULL, 0, "moe_identity"));
    mc_plan_ptr(p, x);
    mc_plan_ptr(p, weights);
    mc_plan_ptr(p, ids);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_rows(p, x->type));
    mc_plan_int(p, mc_type_last(x->type));
    mc_plan_int(p, mc_type_last(ids->type));
    mc_plan_const(p, mc_attr_int(op, "first"));
}

/* ---- capacity -------------------------------------------------------------------------------------------------- */

enum { P_SLOT, P_SCORE };

/* max(1, ceil(T k / E * factor)), in f64 in this order as the definition says. */
static LLVMValueRef
capacity_of(mc_kb *kb, LLVMValueRef n_t, LLVMValueRef k, LLVMValueRef n_e)
{
    LLVMValueRef p = kb_gepi(kb, kb_param(kb, 0), (int64_t)offsetof(moec_kernel_args, f));
    LLVMValueRef factor = kb_load(kb, kb->f64, p, 8);
    LLVMValueRef c = kb_fmul(kb, kb_convert(kb, n_t, kb->f64), kb_convert(kb, k, kb->f64));
    c = kb_fmul(kb, kb_fdiv(kb, c, kb_convert(kb, n_e, kb->f64)), factor);
    c = kb_fneg(kb, kb_floor(kb, kb_fneg(kb, c))); /* ceil */
    c = kb_fmin(kb, kb_const(kb->f64, 0x1p62), kb_fmax(kb, kb_const(kb->f64, 1), c));
    return kb_convert(kb, c, kb->i64);
}

/* How many assignments of the same expert (and slot) stand before assignment a. Those of a token before it in the
 * order: all earlier ones, or all with a greater weight. */
static LLVMValueRef
rank_of(mc_kb *kb, const mc_plan_kernel *kernel, LLVMValueRef weights, LLVMValueRef ids, LLVMValueRef n, LLVMValueRef k,
        LLVMValueRef a)
{
    LLVMValueRef zero = kb_i64(kb, 0), step = kernel->p[P_SLOT] ? k : kb_i64(kb, 1);
    LLVMValueRef begin = kernel->p[P_SLOT] ? kb_urem(kb, a, k) : zero, id = mc_get_i32(kb, ids, a);
    LLVMValueRef mine = mc_route_order(kb, mc_get_f32(kb, weights, a));
    kb_loop l = kb_loop_begin(kb, begin, kernel->p[P_SCORE] ? n : a, step, 1, &zero);
    LLVMValueRef counts = kb_icmp(kb, LLVMIntEQ, mc_get_i32(kb, ids, l.i), id);
    if (kernel->p[P_SCORE]) {
        LLVMValueRef other = mc_route_order(kb, mc_get_f32(kb, weights, l.i));
        LLVMValueRef tie = kb_and(kb, kb_icmp(kb, LLVMIntEQ, other, mine), kb_icmp(kb, LLVMIntSLT, l.i, a));
        counts = kb_and(kb, counts, kb_or(kb, kb_icmp(kb, LLVMIntSGT, other, mine), tie));
    }
    l.v[0] = kb_add(kb, l.v[0], kb_zext(kb, counts, kb->i64));
    kb_loop_end(kb, &l);
    return l.v[0];
}

static void
emit_capacity(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    LLVMValueRef weights = kb_arg_ptr(kb, 0), ids = kb_arg_ptr(kb, 1), kept_w = kb_arg_ptr(kb, 2),
                 kept = kb_arg_ptr(kb, 3);
    LLVMValueRef k = kb_arg_int(kb, 1), n_e = kb_arg_int(kb, 2), n = kb_mul(kb, kb_arg_int(kb, 0), k);
    LLVMValueRef cap = capacity_of(kb, kb_arg_int(kb, 0), k, n_e);
    kb_loop l = mc_rows_dealt(kb, n);
    LLVMValueRef id = mc_get_i32(kb, ids, l.i), w = mc_get_f32(kb, weights, l.i);
    LLVMValueRef over = kb_icmp(kb, LLVMIntSGE, rank_of(kb, kernel, weights, ids, n, k, l.i), cap);
    LLVMValueRef dropped = kb_and(kb, kb_icmp(kb, LLVMIntULT, id, n_e), over);
    mc_set_f32(kb, kept_w, l.i, kb_select(kb, dropped, kb_f32(kb, 0), w));
    mc_set_i32(kb, kept, l.i, kb_select(kb, dropped, kb_i64(kb, -1), id));
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

void
mc_cpu_select_capacity(mc_plan *p, const mc_op *op)
{
    const mc_value *weights = mc_operand(op, 0), *ids = mc_operand(op, 1);
    if (!need(p, weights, MOEC_F32) || !need(p, ids, MOEC_I32)) return;
    int64_t params[2] = {
        [P_SLOT] = mc_str_is(mc_attr_str(op, "per"), "slot"), [P_SCORE] = mc_str_is(mc_attr_str(op, "drop"), "score")};
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_capacity, params, 2, "moe_capacity%s%s", params[P_SLOT] ? "_slot" : "",
                                         params[P_SCORE] ? "_score" : ""));
    mc_plan_ptr(p, weights);
    mc_plan_ptr(p, ids);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_ptr(p, mc_result(op, 1));
    mc_plan_int(p, mc_plan_rows(p, ids->type));
    mc_plan_int(p, mc_type_last(ids->type));
    mc_plan_const(p, mc_attr_int(op, "experts"));
    mc_plan_float(p, mc_attr_float(op, "factor"));
}
