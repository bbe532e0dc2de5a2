/* The rarer ways to choose: route.sparsemixer (PhiMoE), route.choose (expert choice), route.hash.
 *
 * sparsemixer  ptr: z, weights, ids                    i: T, E            f: eps
 * choose       ptr: value, weights, ids                i: T, E            f: factor
 * hash         ptr: x, planes, table, candidates       i: T, d, hashes, buckets, size */
#include "codegen/cpu/math.h"
#include "codegen/cpu/route.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

#include <stddef.h>

static bool
all_f32(mc_plan *p, const mc_op *op, int n)
{
    for (int i = 0; i < n; i++) {
        if (mc_operand(op, i)->type->dtype != MOEC_F32) return mc_plan_refuse(p, "an operand is not f32");
    }
    return true;
}

/* ---- sparsemixer ----------------------------------------------------------------------------------------------- */

/* The greatest of z without `taken`, and its share in the softmax over those near it. */
static LLVMValueRef
sparse_choice(mc_kb *kb, LLVMValueRef z, LLVMValueRef n, LLVMValueRef taken, LLVMValueRef twice, LLVMValueRef *weight)
{
    LLVMValueRef zero = kb_i64(kb, 0), one = kb_i64(kb, 1), init[2] = {kb_i32(kb, INT32_MIN), zero};
    kb_loop l = kb_loop_begin(kb, zero, n, one, 2, init);
    LLVMValueRef order = mc_route_order(kb, mc_get_f32(kb, z, l.i));
    LLVMValueRef better = kb_and(kb, kb_icmp(kb, LLVMIntNE, l.i, taken), kb_icmp(kb, LLVMIntSGT, order, l.v[0]));
    l.v[0] = kb_select(kb, better, order, l.v[0]);
    l.v[1] = kb_select(kb, better, l.i, l.v[1]);
    kb_loop_end(kb, &l);
    LLVMValueRef best = l.v[1], max = mc_get_f32(kb, z, best), sum = kb_f32(kb, 0);

    l = kb_loop_begin(kb, zero, n, one, 1, &sum);
    LLVMValueRef x = mc_get_f32(kb, z, l.i);
    LLVMValueRef gap = kb_fdiv(kb, kb_fsub(kb, max, x), kb_fmax(kb, max, kb_fabs(kb, x)));
    LLVMValueRef near = kb_and(kb, kb_icmp(kb, LLVMIntNE, l.i, taken), kb_fcmp(kb, LLVMRealULE, gap, twice));
    LLVMValueRef e = kb_exp(kb, kb_fsub(kb, x, max));
    l.v[0] = kb_select(kb, near, kb_fadd(kb, l.v[0], e), l.v[0]);
    kb_loop_end(kb, &l);
    *weight = kb_fdiv(kb, kb_f32(kb, 1), l.v[0]);
    return best;
}

static void
emit_sparsemixer(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef z = kb_arg_ptr(kb, 0), weights = kb_arg_ptr(kb, 1), ids = kb_arg_ptr(kb, 2), n = kb_arg_int(kb, 1);
    LLVMValueRef twice = kb_fmul(kb, kb_f32(kb, 2), kb_arg_float(kb, 0)), taken = kb_i64(kb, -1), w;
    kb_loop rows = mc_rows_begin(kb, kb_arg_int(kb, 0));
    LLVMValueRef row = kb_elem(kb, z, kb_mul(kb, rows.i, n), 4), at = kb_mul(kb, rows.i, kb_i64(kb, 2));
    for (int j = 0; j < 2; j++) {
        taken = sparse_choice(kb, row, n, taken, twice, &w);
        mc_set_f32(kb, weights, kb_add(kb, at, kb_i64(kb, j)), w);
        mc_set_i32(kb, ids, kb_add(kb, at, kb_i64(kb, j)), taken);
    }
    mc_rows_end(kb, &rows);
    kb_kernel_end(kb);
}

void
mc_cpu_select_route_sparsemixer(mc_plan *p, const mc_op *op)
{
    const mc_value *z = mc_operand(op, 0);
    if (!all_f32(p, op, 1)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_sparsemixer, NULL, 0, "route_sparsemixer"));
    mc_plan_ptr(p, z);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_ptr(p, mc_result(op, 1));
    mc_plan_int(p, mc_plan_rows(p, z->type));
    mc_plan_int(p, mc_type_last(z->type));
    mc_plan_float(p, mc_attr_float(op, "eps"));
}

/* ---- expert choice --------------------------------------------------------------------------------------------- */

/* min(T, max(1, ceil(T * factor / E))), in f64 in this order as the definition says. */
static LLVMValueRef
tokens_per_expert(mc_kb *kb, LLVMValueRef n_t, LLVMValueRef n_e)
{
    LLVMValueRef p = kb_gepi(kb, kb_param(kb, 0), (int64_t)offsetof(moec_kernel_args, f));
    LLVMValueRef factor = kb_load(kb, kb->f64, p, 8), t = kb_convert(kb, n_t, kb->f64);
    LLVMValueRef want = kb_fdiv(kb, kb_fmul(kb, t, factor), kb_convert(kb, n_e, kb->f64));
    want = kb_fneg(kb, kb_floor(kb, kb_fneg(kb, want))); /* ceil */
    want = kb_fmin(kb, t, kb_fmax(kb, kb_const(kb->f64, 1), want));
    return kb_convert(kb, want, kb->i32);
}

/* Lanes are experts: token t is taken where fewer than n tokens stand before it in the expert's order. */
static void
emit_choose(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef value = kb_arg_ptr(kb, 0), weights = kb_arg_ptr(kb, 1), ids = kb_arg_ptr(kb, 2);
    LLVMValueRef n_t = kb_arg_int(kb, 0), n_e = kb_arg_int(kb, 1), zero = kb_iconst(kb->vi, 0);
    LLVMValueRef limit = kb_splat(kb, tokens_per_expert(kb, n_t, n_e), kb->vl);
    kb_loop rows = mc_rows_begin(kb, n_t);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), n_e, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef at = kb_add(kb, kb_mul(kb, rows.i, n_e), v.i);
        LLVMValueRef x = kb_load_f32(kb, MOEC_F32, kb_elem(kb, value, at, 4), v.lanes, v.mask);
        LLVMValueRef mine = mc_route_order(kb, x);
        kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), n_t, kb_i64(kb, 1), 1, &zero);
        LLVMValueRef p = kb_elem(kb, value, kb_add(kb, kb_mul(kb, l.i, n_e), v.i), 4);
        LLVMValueRef other = mc_route_order(kb, kb_load_f32(kb, MOEC_F32, p, v.lanes, v.mask));
        LLVMValueRef earlier = kb_splat(kb, kb_icmp(kb, LLVMIntSLT, l.i, rows.i), v.lanes);
        LLVMValueRef tie = kb_and(kb, kb_icmp(kb, LLVMIntEQ, other, mine), earlier);
        LLVMValueRef before = kb_or(kb, kb_icmp(kb, LLVMIntSGT, other, mine), tie);
        l.v[0] = kb_add(kb, l.v[0], kb_zext(kb, before, kb->vi));
        kb_loop_end(kb, &l);
        LLVMValueRef taken = kb_icmp(kb, LLVMIntSLT, l.v[0], limit);
        LLVMValueRef id = kb_add(kb, kb_splat(kb, kb_convert(kb, v.i, kb->i32), v.lanes), kb_lane_ids(kb, v.lanes));
        LLVMValueRef w = kb_select(kb, taken, x, kb_const(kb->vf, 0));
        kb_store_f32(kb, MOEC_F32, w, kb_elem(kb, weights, at, 4), v.mask);
        kb_store_masked(kb, kb_select(kb, taken, id, kb_iconst(kb->vi, -1)), kb_elem(kb, ids, at, 4), 4, v.mask);
    }
    mc_rows_end(kb, &rows);
    kb_kernel_end(kb);
}

void
mc_cpu_select_route_choose(mc_plan *p, const mc_op *op)
{
    const mc_value *value = mc_operand(op, 0);
    if (!all_f32(p, op, 1)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_choose, NULL, 0, "route_choose"));
    mc_plan_ptr(p, value);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_ptr(p, mc_result(op, 1));
    mc_plan_int(p, mc_plan_rows(p, value->type));
    mc_plan_int(p, mc_type_last(value->type));
    mc_plan_float(p, mc_attr_float(op, "factor"));
}

/* ---- hash ------------------------------------------------------------------------------------------------------ */

typedef struct dot {
    LLVMValueRef x, plane;
} dot;

static LLVMValueRef
step_dot(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    const dot *d = context;
    LLVMValueRef x = kb_load_f32(kb, MOEC_F32, kb_elem(kb, d->x, i, 4), kb->vl, mask);
    return kb_fma(kb, x, kb_load_f32(kb, MOEC_F32, kb_elem(kb, d->plane, i, 4), kb->vl, mask), acc);
}

static void
emit_hash(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef x = kb_arg_ptr(kb, 0), planes = kb_arg_ptr(kb, 1), table = kb_arg_ptr(kb, 2), y = kb_arg_ptr(kb, 3);
    LLVMValueRef d = kb_arg_int(kb, 1), hashes = kb_arg_int(kb, 2), buckets = kb_arg_int(kb, 3),
                 size = kb_arg_int(kb, 4);
    LLVMValueRef zero = kb_i64(kb, 0), one = kb_i64(kb, 1), n = kb_convert(kb, buckets, kb->f32);
    kb_loop rows = mc_rows_begin(kb, kb_mul(kb, kb_arg_int(kb, 0), hashes)); /* (token, hash) */
    LLVMValueRef h = kb_urem(kb, rows.i, hashes), t = kb_udiv(kb, rows.i, hashes);
    dot ctx = {kb_elem(kb, x, kb_mul(kb, t, d), 4), kb_elem(kb, planes, kb_mul(kb, h, d), 4)};
    LLVMValueRef at = kb_fmul(kb, kb_sigmoid(kb, mc_rows_fold(kb, d, 0, false, step_dot, &ctx, kb_reduce_add)), n);
    at = kb_select(kb, kb_fcmp(kb, LLVMRealOGE, at, kb_f32(kb, 0)), at, kb_f32(kb, 0)); /* NaN: bucket 0 */
    LLVMValueRef bucket = kb_min(kb, kb_convert(kb, at, kb->i64), kb_sub(kb, buckets, one));
    LLVMValueRef from = kb_mul(kb, kb_add(kb, kb_mul(kb, h, buckets), bucket), size), to = kb_mul(kb, rows.i, size);
    kb_loop l = kb_loop_begin(kb, zero, size, one, 0, NULL);
    mc_set_i32(kb, y, kb_add(kb, to, l.i), mc_get_i32(kb, table, kb_add(kb, from, l.i)));
    kb_loop_end(kb, &l);
    mc_rows_end(kb, &rows);
    kb_kernel_end(kb);
}

void
mc_cpu_select_route_hash(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *planes = mc_operand(op, 1), *table = mc_operand(op, 2);
    if (!all_f32(p, op, 2)) return;
    if (table->type->dtype != MOEC_I32) {
        mc_plan_refuse(p, "the table is not i32");
        return;
    }
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_hash, NULL, 0, "route_hash"));
    mc_plan_ptr(p, x);
    mc_plan_ptr(p, planes);
    mc_plan_ptr(p, table);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_rows(p, x->type));
    mc_plan_int(p, mc_type_last(x->type));
    for (int a = 0; a < 3; a++) mc_plan_int(p, table->type->dims[a]);
}
