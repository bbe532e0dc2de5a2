/* Choosing experts: route.top, route.groups, route.take, route.lookup. The one idea: floats are compared as integers
 * that order as routing does (NaN first, ties by the lower index), so every choice is exact. A token is one thread's
 * work.
 *
 * top     ptr: value, key, weights, ids   i: T, E, k          scratch: orders and ids of the best so far
 * groups  ptr: key, y                     i: T, E, n, keep    scratch: orders of the groups
 * take    ptr: table, ids, y              i: T, k, E, step of the table for each token
 * lookup  ptr: table, tokens, ids         i: T, V, k */
#include "codegen/cpu/route.h"

#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

#include <math.h>

LLVMValueRef
mc_route_order(mc_kb *kb, LLVMValueRef x)
{
    LLVMTypeRef type = kb_like(kb->i32, x);
    LLVMValueRef nan = kb_fcmp(kb, LLVMRealUNO, x, x);
    LLVMValueRef bits = kb_bits(kb, kb_fadd(kb, x, kb_const(LLVMTypeOf(x), 0.0)), type); /* -0 + 0 is 0 */
    LLVMValueRef sign = kb_ashr(kb, bits, kb_iconst(type, 31));
    LLVMValueRef order = kb_xor(kb, bits, kb_and(kb, sign, kb_iconst(type, INT32_MAX)));
    return kb_select(kb, nan, kb_iconst(type, INT32_MAX), order);
}

LLVMValueRef
mc_get_f32(mc_kb *kb, LLVMValueRef p, LLVMValueRef i)
{
    return kb_load(kb, kb->f32, kb_elem(kb, p, i, 4), 4);
}

LLVMValueRef
mc_get_i32(mc_kb *kb, LLVMValueRef p, LLVMValueRef i)
{
    return kb_convert(kb, kb_load(kb, kb->i32, kb_elem(kb, p, i, 4), 4), kb->i64);
}

void
mc_set_f32(mc_kb *kb, LLVMValueRef p, LLVMValueRef i, LLVMValueRef x)
{
    kb_store(kb, x, kb_elem(kb, p, i, 4), 4);
}

void
mc_set_i32(mc_kb *kb, LLVMValueRef p, LLVMValueRef i, LLVMValueRef x)
{
    kb_store(kb, kb_convert(kb, x, kb->i32), kb_elem(kb, p, i, 4), 4);
}

static kb_loop
count_to(mc_kb *kb, LLVMValueRef n, int n_carried, const LLVMValueRef *init)
{
    return kb_loop_begin(kb, kb_i64(kb, 0), n, kb_i64(kb, 1), n_carried, init);
}

/* ---- route.top ------------------------------------------------------------------------------------------------- */

/* Puts (order, id) before the first entry that is smaller; those behind it move on, the last falls off. */
static void
insert_best(mc_kb *kb, LLVMValueRef orders, LLVMValueRef ids, LLVMValueRef k, LLVMValueRef order, LLVMValueRef id)
{
    LLVMValueRef carried[3] = {order, id, kb_bool(kb, false)};
    kb_loop l = count_to(kb, k, 3, carried);
    LLVMValueRef old = mc_get_i32(kb, orders, l.i), old_id = mc_get_i32(kb, ids, l.i);
    LLVMValueRef moves = kb_or(kb, l.v[2], kb_icmp(kb, LLVMIntSGT, l.v[0], old));
    mc_set_i32(kb, orders, l.i, kb_select(kb, moves, l.v[0], old));
    mc_set_i32(kb, ids, l.i, kb_select(kb, moves, l.v[1], old_id));
    l.v[0] = kb_select(kb, moves, old, l.v[0]);
    l.v[1] = kb_select(kb, moves, old_id, l.v[1]);
    l.v[2] = moves;
    kb_loop_end(kb, &l);
}

static void
emit_top(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    LLVMValueRef value = kb_arg_ptr(kb, 0), key = kb_arg_ptr(kb, 1), weights = kb_arg_ptr(kb, 2),
                 ids = kb_arg_ptr(kb, 3);
    LLVMValueRef n_e = kb_arg_int(kb, 1), k = kb_arg_int(kb, 2), orders = kb_scratch(kb),
                 best = kb_elem(kb, orders, k, 4);
    LLVMValueRef last = kb_sub(kb, k, kb_i64(kb, 1));
    kb_loop rows = mc_rows_begin(kb, kb_arg_int(kb, 0));
    LLVMValueRef in = kb_mul(kb, rows.i, n_e), out = kb_mul(kb, rows.i, k);

    kb_loop fill = count_to(kb, k, 0, NULL);
    mc_set_i32(kb, orders, fill.i, kb_i64(kb, INT32_MIN));
    mc_set_i32(kb, best, fill.i, kb_i64(kb, 0));
    kb_loop_end(kb, &fill);

    kb_loop scan = count_to(kb, n_e, 0, NULL);
    LLVMValueRef order = kb_convert(kb, mc_route_order(kb, mc_get_f32(kb, key, kb_add(kb, in, scan.i))), kb->i64);
    kb_if better = kb_if_begin(kb, kb_icmp(kb, LLVMIntSGT, order, mc_get_i32(kb, orders, last)));
    insert_best(kb, orders, best, k, order, scan.i);
    kb_if_end(kb, &better);
    kb_loop_end(kb, &scan);

    kb_loop give = count_to(kb, k, 0, NULL);
    LLVMValueRef id = mc_get_i32(kb, best, give.i), at = kb_add(kb, out, give.i);
    mc_set_i32(kb, ids, at, id);
    mc_set_f32(kb, weights, at, mc_get_f32(kb, value, kb_add(kb, in, id)));
    kb_loop_end(kb, &give);
    mc_rows_end(kb, &rows);
    kb_kernel_end(kb);
}

static bool
need(mc_plan *p, const mc_value *v, moec_dtype dtype)
{
    if (v->type->dtype == dtype) return true;
    return mc_plan_refuse(p, "an operand is %s, not %s", moec_dtype_name(v->type->dtype), moec_dtype_name(dtype));
}

void
mc_cpu_select_route_top(mc_plan *p, const mc_op *op)
{
    const mc_value *value = mc_operand(op, 0), *key = mc_operand(op, 1);
    int64_t k = mc_attr_int(op, "k");
    if (!need(p, value, MOEC_F32) || !need(p, key, MOEC_F32) || !need(p, mc_result(op, 1), MOEC_I32)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_top, NULL, 0, "route_top"));
    mc_plan_ptr(p, value);
    mc_plan_ptr(p, key);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_ptr(p, mc_result(op, 1));
    mc_plan_int(p, mc_plan_rows(p, value->type));
    mc_plan_int(p, mc_type_last(value->type));
    mc_plan_const(p, k);
    mc_plan_scratch(p, (uint64_t)k * 8);
}

/* ---- route.groups ---------------------------------------------------------------------------------------------- */

enum { BY_MAX, BY_TOP2, BY_SUM };

static LLVMValueRef
group_sum(mc_kb *kb, LLVMValueRef keys, LLVMValueRef size)
{
    LLVMValueRef sum = kb_f32(kb, 0);
    kb_loop l = count_to(kb, size, 1, &sum);
    l.v[0] = kb_fadd(kb, l.v[0], mc_get_f32(kb, keys, l.i));
    kb_loop_end(kb, &l);
    return l.v[0];
}

/* The two greatest keys, by order, with their values. */
static LLVMValueRef
group_best(mc_kb *kb, LLVMValueRef keys, LLVMValueRef size, bool two)
{
    LLVMValueRef none = kb_i32(kb, INT32_MIN), zero = kb_f32(kb, 0), init[4] = {none, none, zero, zero};
    kb_loop l = count_to(kb, size, 4, init);
    LLVMValueRef x = mc_get_f32(kb, keys, l.i), order = mc_route_order(kb, x);
    LLVMValueRef first = kb_icmp(kb, LLVMIntSGT, order, l.v[0]), second = kb_icmp(kb, LLVMIntSGT, order, l.v[1]);
    l.v[1] = kb_select(kb, first, l.v[0], kb_select(kb, second, order, l.v[1]));
    l.v[3] = kb_select(kb, first, l.v[2], kb_select(kb, second, x, l.v[3]));
    l.v[0] = kb_select(kb, first, order, l.v[0]);
    l.v[2] = kb_select(kb, first, x, l.v[2]);
    kb_loop_end(kb, &l);
    return two ? kb_fadd(kb, l.v[2], l.v[3]) : l.v[2];
}

/* How many groups stand before group g. */
static LLVMValueRef
group_rank(mc_kb *kb, LLVMValueRef orders, LLVMValueRef n, LLVMValueRef g)
{
    LLVMValueRef mine = mc_get_i32(kb, orders, g), rank = kb_i64(kb, 0);
    kb_loop l = count_to(kb, n, 1, &rank);
    LLVMValueRef other = mc_get_i32(kb, orders, l.i);
    LLVMValueRef tie = kb_and(kb, kb_icmp(kb, LLVMIntEQ, other, mine), kb_icmp(kb, LLVMIntSLT, l.i, g));
    LLVMValueRef before = kb_or(kb, kb_icmp(kb, LLVMIntSGT, other, mine), tie);
    l.v[0] = kb_add(kb, l.v[0], kb_zext(kb, before, kb->i64));
    kb_loop_end(kb, &l);
    return l.v[0];
}

static void
emit_groups(mc_kb *kb, const mc_plan_kernel *k)
{
    int64_t by = k->p[0];
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef key = kb_arg_ptr(kb, 0), y = kb_arg_ptr(kb, 1), n_e = kb_arg_int(kb, 1), n = kb_arg_int(kb, 2);
    LLVMValueRef keep = kb_arg_int(kb, 3), size = kb_udiv(kb, n_e, n), orders = kb_scratch(kb);
    kb_loop rows = mc_rows_begin(kb, kb_arg_int(kb, 0));
    LLVMValueRef at = kb_mul(kb, rows.i, n_e), in = kb_elem(kb, key, at, 4), out = kb_elem(kb, y, at, 4);

    kb_loop score = count_to(kb, n, 0, NULL);
    LLVMValueRef keys = kb_elem(kb, in, kb_mul(kb, score.i, size), 4);
    LLVMValueRef s = by == BY_SUM ? group_sum(kb, keys, size) : group_best(kb, keys, size, by == BY_TOP2);
    mc_set_i32(kb, orders, score.i, mc_route_order(kb, s));
    kb_loop_end(kb, &score);

    kb_loop g = count_to(kb, n, 0, NULL);
    LLVMValueRef kept = kb_icmp(kb, LLVMIntSLT, group_rank(kb, orders, n, g.i), keep);
    LLVMValueRef begin = kb_mul(kb, g.i, size), out_of = kb_const(kb->vf, -HUGE_VAL);
    kb_vloop v = kb_vloop_begin(kb, begin, kb_add(kb, begin, size), 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef x = kb_load_f32(kb, MOEC_F32, kb_elem(kb, in, v.i, 4), v.lanes, v.mask);
        x = kb_select(kb, kb_splat(kb, kept, v.lanes), x, out_of);
        kb_store_f32(kb, MOEC_F32, x, kb_elem(kb, out, v.i, 4), v.mask);
    }
    kb_loop_end(kb, &g);
    mc_rows_end(kb, &rows);
    kb_kernel_end(kb);
}

void
mc_cpu_select_route_groups(mc_plan *p, const mc_op *op)
{
    const mc_value *key = mc_operand(op, 0);
    mc_str by = mc_attr_str(op, "by");
    int64_t n = mc_attr_int(op, "n"), form = mc_str_is(by, "max") ? BY_MAX : mc_str_is(by, "top2") ? BY_TOP2 : BY_SUM;
    if (!need(p, key, MOEC_F32)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_groups, &form, 1, "route_groups_%d", (int)form));
    mc_plan_ptr(p, key);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_rows(p, key->type));
    mc_plan_int(p, mc_type_last(key->type));
    mc_plan_const(p, n);
    mc_plan_const(p, mc_attr_int(op, "keep"));
    mc_plan_scratch(p, (uint64_t)n * 4);
}

/* ---- route.take, route.lookup ---------------------------------------------------------------------------------- */

/* A dropped choice (-1) takes nothing: 0. */
static void
emit_take(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    LLVMValueRef table = kb_arg_ptr(kb, 0), ids = kb_arg_ptr(kb, 1), y = kb_arg_ptr(kb, 2), k = kb_arg_int(kb, 1);
    LLVMValueRef n_e = kb_arg_int(kb, 2), step = kb_arg_int(kb, 3), zero = kb_i64(kb, 0);
    kb_loop rows = mc_rows_begin(kb, kb_arg_int(kb, 0));
    LLVMValueRef from = kb_mul(kb, rows.i, step), at = kb_mul(kb, rows.i, k);
    kb_loop l = count_to(kb, k, 0, NULL);
    LLVMValueRef j = kb_add(kb, at, l.i), id = mc_get_i32(kb, ids, j), real = kb_icmp(kb, LLVMIntULT, id, n_e);
    LLVMValueRef x = mc_get_f32(kb, table, kb_add(kb, from, kb_select(kb, real, id, zero)));
    mc_set_f32(kb, y, j, kb_select(kb, real, x, kb_f32(kb, 0)));
    kb_loop_end(kb, &l);
    mc_rows_end(kb, &rows);
    kb_kernel_end(kb);
}

void
mc_cpu_select_route_take(mc_plan *p, const mc_op *op)
{
    const mc_value *table = mc_operand(op, 0), *ids = mc_operand(op, 1);
    if (!need(p, table, MOEC_F32) || !need(p, ids, MOEC_I32)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_take, NULL, 0, "route_take"));
    mc_plan_ptr(p, table);
    mc_plan_ptr(p, ids);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_rows(p, ids->type));
    mc_plan_int(p, mc_type_last(ids->type));
    mc_plan_int(p, mc_type_last(table->type));
    mc_plan_int(p, table->type->rank > 1 ? mc_type_last(table->type) : mc_dim_const(0));
}

static void
emit_lookup(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    LLVMValueRef table = kb_arg_ptr(kb, 0), tokens = kb_arg_ptr(kb, 1), ids = kb_arg_ptr(kb, 2);
    LLVMValueRef n_v = kb_arg_int(kb, 1), k = kb_arg_int(kb, 2);
    kb_loop rows = mc_rows_begin(kb, kb_arg_int(kb, 0));
    LLVMValueRef row = kb_srem(kb, mc_get_i32(kb, tokens, rows.i), n_v);
    row = kb_select(kb, kb_icmp(kb, LLVMIntSLT, row, kb_i64(kb, 0)), kb_add(kb, row, n_v), row);
    LLVMValueRef from = kb_mul(kb, row, k), to = kb_mul(kb, rows.i, k);
    kb_loop l = count_to(kb, k, 0, NULL);
    mc_set_i32(kb, ids, kb_add(kb, to, l.i), mc_get_i32(kb, table, kb_add(kb, from, l.i)));
    kb_loop_end(kb, &l);
    mc_rows_end(kb, &rows);
    kb_kernel_end(kb);
}

void
mc_cpu_select_route_lookup(mc_plan *p, const mc_op *op)
{
    const mc_value *table = mc_operand(op, 0), *tokens = mc_operand(op, 1);
    if (!need(p, table, MOEC_I32) || !need(p, tokens, MOEC_I32)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_lookup, NULL, 0, "route_lookup"));
    mc_plan_ptr(p, table);
    mc_plan_ptr(p, tokens);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_count(p, tokens->type));
    mc_plan_int(p, table->type->dims[0]);
    mc_plan_int(p, table->type->dims[1]);
}
