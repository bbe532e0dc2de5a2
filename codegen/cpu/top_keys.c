/* top_keys: the n visible keys with the greatest index scores, in ascending order of position. The one idea: positions
 * that beat the n-th best so far are appended to a buffer of 2n; when it is full, the n-th best is found by a binary
 * search over the bits of the scores' orders and the losers are squeezed out. So positions stay in order by themselves.
 *
 * Lanes are index heads: the score of a key adds up w * relu(q . k) over the lanes, in a fixed tree.
 *
 * ptr: q, k, w, select   i: B, S, C, whether k lies in a state
 * scratch: queries [vectors of heads][width][vl], weights [vectors][vl], orders [2n], positions [2n],
 *          keys [tile][width] */
#include "codegen/cpu/dot.h"
#include "codegen/cpu/route.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

enum { I_B, I_S, I_C, I_STATE };
enum { P_WIDTH, P_HEADS, P_N };

typedef struct finder {
    int64_t width, heads, n, vectors;
    LLVMValueRef q, w, select, keys; /* of the query at work */
    LLVMValueRef qt, wt, orders, positions, tile;
} finder;

static int64_t
vectors_of(int64_t heads, int vl)
{
    return (heads + vl - 1) / vl;
}

static kb_loop
count_to(mc_kb *kb, LLVMValueRef n, int n_carried, const LLVMValueRef *init)
{
    return kb_loop_begin(kb, kb_i64(kb, 0), n, kb_i64(kb, 1), n_carried, init);
}

/* Head j to lane j mod vl of vector j / vl; lanes without a head have weight 0. */
static void
load_query(mc_kb *kb, const finder *f)
{
    LLVMValueRef vl = kb_i64(kb, kb->vl), zero = kb_f32(kb, 0);
    kb_loop l = count_to(kb, kb_i64(kb, f->vectors * kb->vl), 0, NULL);
    LLVMValueRef real = kb_icmp(kb, LLVMIntSLT, l.i, kb_i64(kb, f->heads));
    LLVMValueRef head = kb_min(kb, l.i, kb_i64(kb, f->heads - 1));
    mc_set_f32(kb, f->wt, l.i, kb_select(kb, real, mc_get_f32(kb, f->w, head), zero));
    LLVMValueRef vector = kb_mul(kb, kb_udiv(kb, l.i, vl), kb_i64(kb, f->width * kb->vl));
    LLVMValueRef to = kb_add(kb, vector, kb_urem(kb, l.i, vl)), from = kb_mul(kb, head, kb_i64(kb, f->width));
    kb_loop c = count_to(kb, kb_i64(kb, f->width), 0, NULL);
    LLVMValueRef x = mc_get_f32(kb, f->q, kb_add(kb, from, c.i));
    mc_set_f32(kb, f->qt, kb_add(kb, to, kb_mul(kb, c.i, vl)), x);
    kb_loop_end(kb, &c);
    kb_loop_end(kb, &l);
}

/* Scores of MC_DOT_TILE keys that lie one after another. */
static void
score_tile(mc_kb *kb, const finder *f, LLVMValueRef keys, LLVMValueRef *scores)
{
    LLVMValueRef acc[MC_DOT_TILE], zero = kb_const(kb->vf, 0);
    for (int u = 0; u < MC_DOT_TILE; u++) acc[u] = zero;
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, f->vectors), kb_i64(kb, 1), MC_DOT_TILE, acc);
    LLVMValueRef dots[MC_DOT_TILE], w = kb_load(kb, kb->vf, kb_elem(kb, f->wt, l.i, (int64_t)kb->vl * 4), 4);
    mc_dot_tile(kb, kb_elem(kb, f->qt, l.i, f->width * kb->vl * 4), f->width, keys, dots);
    for (int u = 0; u < MC_DOT_TILE; u++) l.v[u] = kb_fma(kb, w, kb_fmax(kb, zero, dots[u]), l.v[u]);
    kb_loop_end(kb, &l);
    for (int u = 0; u < MC_DOT_TILE; u++) scores[u] = kb_reduce_add(kb, &l.v[u], 1);
}

/* ---- the buffer ------------------------------------------------------------------------------------------------ */

/* How many of the first `count` orders are at least `bound`. */
static LLVMValueRef
count_at_least(mc_kb *kb, const finder *f, LLVMValueRef count, LLVMValueRef bound)
{
    LLVMValueRef zero = kb_iconst(kb->vi, 0), limit = kb_splat(kb, bound, kb->vl), off = kb_iconst(kb->vi, INT32_MIN);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), count, 1, &zero);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef x = kb_load_masked(kb, kb->vi, kb_elem(kb, f->orders, v.i, 4), 4, v.mask);
        LLVMValueRef in = kb_icmp(kb, LLVMIntSGE, kb_keep(kb, v.mask, x, off), limit);
        v.v[0] = kb_add(kb, v.v[0], kb_zext(kb, in, kb->vi));
    }
    LLVMValueRef sum = kb_i32(kb, 0);
    for (int lane = 0; lane < kb->vl; lane++) sum = kb_add(kb, sum, kb_extract(kb, v.v[0], lane));
    return kb_convert(kb, sum, kb->i64);
}

/* The greatest bound that at least n orders reach, from the top bit down. */
static LLVMValueRef
nth_best(mc_kb *kb, const finder *f, LLVMValueRef count)
{
    LLVMValueRef bits = kb_i32(kb, 0), sign = kb_i32(kb, INT32_MIN);
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, 32), kb_i64(kb, 1), 1, &bits);
    LLVMValueRef bit = kb_lshr(kb, sign, kb_convert(kb, l.i, kb->i32)), with = kb_or(kb, l.v[0], bit);
    LLVMValueRef reached = count_at_least(kb, f, count, kb_xor(kb, with, sign)); /* unsigned bits as a signed order */
    l.v[0] = kb_select(kb, kb_icmp(kb, LLVMIntSGE, reached, kb_i64(kb, f->n)), with, l.v[0]);
    kb_loop_end(kb, &l);
    return kb_xor(kb, l.v[0], sign);
}

/* Keeps the n best of `count` > n entries, of equal ones the first; *bound becomes the n-th best order. */
static void
squeeze(mc_kb *kb, const finder *f, LLVMValueRef count, LLVMValueRef *bound)
{
    LLVMValueRef limit = nth_best(kb, f, count), wide = kb_convert(kb, limit, kb->i64), zero = kb_i64(kb, 0);
    kb_loop greater = count_to(kb, count, 1, &zero);
    LLVMValueRef above = kb_icmp(kb, LLVMIntSGT, mc_get_i32(kb, f->orders, greater.i), wide);
    greater.v[0] = kb_add(kb, greater.v[0], kb_zext(kb, above, kb->i64));
    kb_loop_end(kb, &greater);
    LLVMValueRef carried[2] = {zero, kb_sub(kb, kb_i64(kb, f->n), greater.v[0])}; /* kept; ties still wanted */
    kb_loop l = count_to(kb, count, 2, carried);
    LLVMValueRef order = mc_get_i32(kb, f->orders, l.i), position = mc_get_i32(kb, f->positions, l.i);
    LLVMValueRef tie = kb_and(kb, kb_icmp(kb, LLVMIntEQ, order, wide), kb_icmp(kb, LLVMIntSGT, l.v[1], zero));
    LLVMValueRef keep = kb_or(kb, kb_icmp(kb, LLVMIntSGT, order, wide), tie);
    kb_if kept = kb_if_begin(kb, keep);
    mc_set_i32(kb, f->orders, l.v[0], order);
    mc_set_i32(kb, f->positions, l.v[0], position);
    kb_if_end(kb, &kept);
    l.v[0] = kb_add(kb, l.v[0], kb_zext(kb, keep, kb->i64));
    l.v[1] = kb_sub(kb, l.v[1], kb_zext(kb, tie, kb->i64));
    kb_loop_end(kb, &l);
    *bound = wide;
}

/* carried: entries in the buffer, order that a newcomer must beat. */
static void
offer(mc_kb *kb, const finder *f, LLVMValueRef position, LLVMValueRef score, LLVMValueRef real, LLVMValueRef *carried)
{
    LLVMValueRef order = kb_convert(kb, mc_route_order(kb, score), kb->i64), count = carried[0], bound = carried[1];
    kb_if better = kb_if_begin(kb, kb_and(kb, real, kb_icmp(kb, LLVMIntSGT, order, bound)));
    mc_set_i32(kb, f->orders, count, order);
    mc_set_i32(kb, f->positions, count, position);
    LLVMValueRef more = kb_add(kb, count, kb_i64(kb, 1)), squeezed;
    kb_if full = kb_if_begin(kb, kb_icmp(kb, LLVMIntEQ, more, kb_i64(kb, 2 * f->n)));
    squeeze(kb, f, more, &squeezed);
    kb_if_end(kb, &full);
    LLVMValueRef count_in = kb_if_value(kb, &full, kb_i64(kb, f->n), more);
    LLVMValueRef bound_in = kb_if_value(kb, &full, squeezed, bound);
    kb_if_end(kb, &better);
    carried[0] = kb_if_value(kb, &better, count_in, count);
    carried[1] = kb_if_value(kb, &better, bound_in, bound);
}

static void
find_keys(mc_kb *kb, const finder *f, LLVMValueRef seen)
{
    LLVMValueRef carried[2] = {kb_i64(kb, 0), kb_i64(kb, INT32_MIN)}, last = kb_sub(kb, seen, kb_i64(kb, 1));
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), seen, kb_i64(kb, MC_DOT_TILE), 2, carried);
    LLVMValueRef scores[MC_DOT_TILE];
    kb_loop row = count_to(kb, kb_i64(kb, MC_DOT_TILE), 0, NULL);
    LLVMValueRef from = kb_min(kb, kb_add(kb, l.i, row.i), last);
    mc_copy_row(kb, kb_elem(kb, f->keys, from, f->width * 4), kb_elem(kb, f->tile, row.i, f->width * 4), f->width);
    kb_loop_end(kb, &row);
    score_tile(kb, f, f->tile, scores);
    LLVMValueRef buffer = kb_alloca(kb, MC_DOT_TILE * 4, 4); /* so that the code of an offer stands here once */
    for (int u = 0; u < MC_DOT_TILE; u++) mc_set_f32(kb, buffer, kb_i64(kb, u), scores[u]);
    kb_loop each = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, MC_DOT_TILE), kb_i64(kb, 1), 2, l.v);
    LLVMValueRef c = kb_add(kb, l.i, each.i), real = kb_icmp(kb, LLVMIntSLT, c, seen);
    offer(kb, f, c, mc_get_f32(kb, buffer, each.i), real, each.v);
    kb_loop_end(kb, &each);
    l.v[0] = each.v[0];
    l.v[1] = each.v[1];
    kb_loop_end(kb, &l);

    LLVMValueRef count = l.v[0], n = kb_i64(kb, f->n), unused;
    kb_if over = kb_if_begin(kb, kb_icmp(kb, LLVMIntSGT, count, n));
    squeeze(kb, f, count, &unused);
    kb_if_end(kb, &over);
    kb_loop give = count_to(kb, n, 0, NULL);
    LLVMValueRef used = kb_icmp(kb, LLVMIntSLT, give.i, count);
    LLVMValueRef position = mc_get_i32(kb, f->positions, give.i);
    mc_set_i32(kb, f->select, give.i, kb_select(kb, used, position, kb_i64(kb, -1)));
    kb_loop_end(kb, &give);
}

static void
emit_top_keys(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    finder f = {.width = k->p[P_WIDTH], .heads = k->p[P_HEADS], .n = k->p[P_N]};
    f.vectors = vectors_of(f.heads, kb->vl);
    LLVMValueRef q = kb_arg_ptr(kb, 0), keys = kb_arg_ptr(kb, 1), w = kb_arg_ptr(kb, 2), select = kb_arg_ptr(kb, 3);
    LLVMValueRef n_s = kb_arg_int(kb, I_S), n_c = kb_arg_int(kb, I_C);
    LLVMValueRef in_state = kb_icmp(kb, LLVMIntNE, kb_arg_int(kb, I_STATE), kb_i64(kb, 0));
    LLVMValueRef positions = kb_select(kb, in_state, kb_cache_cap(kb), n_c);
    f.qt = kb_scratch(kb);
    f.wt = kb_gepi(kb, f.qt, f.vectors * f.width * kb->vl * 4);
    f.orders = kb_gepi(kb, f.wt, f.vectors * kb->vl * 4);
    f.positions = kb_gepi(kb, f.orders, f.n * 8);
    f.tile = kb_gepi(kb, f.positions, f.n * 8);
    kb_loop rows = mc_rows_dealt(kb, kb_mul(kb, kb_arg_int(kb, I_B), n_s)); /* (sequence, position) */
    LLVMValueRef b = kb_udiv(kb, rows.i, n_s), s = kb_urem(kb, rows.i, n_s);
    f.q = kb_elem(kb, q, rows.i, f.heads * f.width * 4);
    f.w = kb_elem(kb, w, rows.i, f.heads * 4);
    f.select = kb_elem(kb, select, rows.i, f.n * 4);
    f.keys = kb_elem(kb, keys, kb_mul(kb, b, positions), f.width * 4);
    load_query(kb, &f);
    find_keys(kb, &f, kb_add(kb, kb_sub(kb, n_c, n_s), kb_add(kb, s, kb_i64(kb, 1))));
    mc_rows_end(kb, &rows);
    kb_kernel_end(kb);
}

void
mc_cpu_select_top_keys(mc_plan *p, const mc_op *op)
{
    const mc_value *q = mc_operand(op, 0), *k = mc_operand(op, 1), *w = mc_operand(op, 2);
    int64_t params[3] = {[P_WIDTH] = mc_plan_need_const(p, q->type->dims[3], "the width of a head"),
                         [P_HEADS] = mc_plan_need_const(p, q->type->dims[2], "the number of heads"),
                         [P_N] = mc_attr_int(op, "n")};
    if (params[P_N] > 1 << 20 || q->type->dtype != MOEC_F32 || k->type->dtype != MOEC_F32 ||
        w->type->dtype != MOEC_F32) {
        mc_plan_refuse(p, "its operands must be f32, and n at most 2^20");
        return;
    }
    int64_t vectors = vectors_of(params[P_HEADS], p->vl);
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_top_keys, params, 3, "top_keys_%d_%d_%d", (int)params[P_WIDTH],
                                         (int)params[P_HEADS], (int)params[P_N]));
    mc_plan_ptr(p, q);
    mc_plan_ptr(p, k);
    mc_plan_ptr(p, w);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, q->type->dims[0]);
    mc_plan_int(p, q->type->dims[1]);
    mc_plan_int(p, k->type->dims[1]);
    mc_plan_const(p, mc_plan_in_state(k));
    mc_plan_scratch(
        p, (uint64_t)(vectors * (params[P_WIDTH] + 1) * p->vl + 4 * params[P_N] + MC_DOT_TILE * params[P_WIDTH]) * 4);
}
