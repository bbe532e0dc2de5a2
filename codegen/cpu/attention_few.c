/* sdpa for a few rows, where most lanes of the other form would idle. The one idea: for the scores lanes are keys (a
 * block of keys is turned in registers, vl x vl at a time), for the output lanes are channels; every chain keeps its
 * order (i ascending, c ascending), so the bits are those of the other form.
 *
 * Scratch: a->scores holds [rows][KEYS] scores, a->out [rows][value rounded up to vectors]; a->max and a->sum one float
 * a row. */
#include "codegen/cpu/attention.h"
#include "codegen/cpu/math.h"
#include "codegen/cpu/turn.h"

#include <math.h>

enum { CHANNEL_VECTORS = 8 }; /* of the output in registers at once */

static int64_t
padded(const mc_kb *kb, int64_t n)
{
    return (n + kb->vl - 1) / kb->vl * kb->vl;
}

/* ---- scores ---------------------------------------------------------------------------------------------------- */

/* Adds channels i..i+count-1 to the products of all keys of the block. A loop over tiles that keeps its sums in memory:
 * with all tiles at once LLVM moves their loads together and spills most of them. */
static void
add_channels(mc_kb *kb, const mc_attend *a, LLVMValueRef q, LLVMValueRef i, int count, LLVMValueRef sums)
{
    LLVMValueRef rows[64], mask = NULL;
    int vl = kb->vl;
    if (count < vl) {
        mask = kb_icmp(kb, LLVMIntSLT, kb_lane_ids(kb, vl), kb_splat(kb, kb_i32(kb, count), vl));
    }
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, MC_ATTEND_KEYS), kb_i64(kb, vl), 0, NULL);
    LLVMValueRef at = kb_elem(kb, kb_elem(kb, a->block, l.i, a->width * 4), i, 4), channel = kb_elem(kb, q, i, 4);
    for (int r = 0; r < vl; r++) rows[r] = kb_load_f32(kb, MOEC_F32, kb_gepi(kb, at, r * a->width * 4), vl, mask);
    mc_turn(kb, rows);
    LLVMValueRef to = kb_elem(kb, sums, l.i, 4), acc = kb_load(kb, kb->vf, to, 4);
    for (int n = 0; n < count; n++) {
        LLVMValueRef x = kb_load(kb, kb->f32, kb_gepi(kb, channel, n * 4), 4);
        acc = kb_fma(kb, rows[n], kb_splat(kb, x, vl), acc);
    }
    kb_store(kb, acc, to, 4);
    kb_loop_end(kb, &l);
}

/* Products of the row's query with the keys of the block, those past the n-th included. */
static void
dot_keys(mc_kb *kb, const mc_attend *a, LLVMValueRef q, LLVMValueRef sums)
{
    int64_t whole = a->width / kb->vl * kb->vl;
    for (int t = 0; t < MC_ATTEND_KEYS; t += kb->vl) kb_store(kb, kb_const(kb->vf, 0), kb_gepi(kb, sums, t * 4), 4);
    if (whole) {
        kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, whole), kb_i64(kb, kb->vl), 0, NULL);
        add_channels(kb, a, q, l.i, kb->vl, sums);
        kb_loop_end(kb, &l);
    }
    if (whole < a->width) add_channels(kb, a, q, kb_i64(kb, whole), (int)(a->width - whole), sums);
}

/* The positions of the block's keys j, j + 1, ... as lanes; -1 beyond the n-th. */
static LLVMValueRef
key_lanes(mc_kb *kb, const mc_attend *a, LLVMValueRef first, LLVMValueRef n, LLVMValueRef j)
{
    LLVMValueRef lanes = kb_add(kb, kb_lane_ids(kb, kb->vl), kb_splat(kb, kb_convert(kb, j, kb->i32), kb->vl));
    LLVMValueRef limit = kb_splat(kb, kb_convert(kb, n, kb->i32), kb->vl), none = kb_iconst(kb->vi, -1);
    LLVMValueRef real = kb_icmp(kb, LLVMIntSLT, lanes, limit);
    if (!(a->flags & MC_ATTEND_SELECT)) {
        LLVMValueRef key = kb_add(kb, lanes, kb_splat(kb, kb_convert(kb, first, kb->i32), kb->vl));
        return kb_select(kb, real, key, none);
    }
    LLVMValueRef key = kb_load_masked(kb, kb->vi, kb_elem(kb, a->list, kb_add(kb, first, j), 4), 4, real);
    LLVMValueRef known = kb_icmp(kb, LLVMIntULT, key, kb_splat(kb, kb_convert(kb, a->C, kb->i32), kb->vl));
    return kb_select(kb, kb_and(kb, real, known), key, none);
}

/* Products become scores, -inf where the row must not look; returns the maximum with `max`. */
static LLVMValueRef
mask_scores(mc_kb *kb, const mc_attend *a, const mc_attend_row *r, LLVMValueRef first, LLVMValueRef n, LLVMValueRef max,
            LLVMValueRef scores)
{
    LLVMValueRef lo, hi, all = kb_splat(kb, max, kb->vl);
    mc_attend_range(kb, a, r->position, &lo, &hi);
    lo = kb_splat(kb, kb_convert(kb, lo, kb->i32), kb->vl);
    hi = kb_splat(kb, kb_convert(kb, hi, kb->i32), kb->vl);
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, MC_ATTEND_KEYS), kb_i64(kb, kb->vl), 1, &all);
    LLVMValueRef key = key_lanes(kb, a, first, n, l.i), at = kb_elem(kb, scores, l.i, 4);
    LLVMValueRef s = kb_fmul(kb, kb_load(kb, kb->vf, at, 4), a->scale);
    if (a->flags & MC_ATTEND_SOFTCAP) s = kb_fmul(kb, a->cap, kb_tanh(kb, kb_fdiv(kb, s, a->cap)));
    LLVMValueRef seen = kb_and(kb, kb_icmp(kb, LLVMIntSGE, key, lo), kb_icmp(kb, LLVMIntSLE, key, hi));
    s = kb_select(kb, seen, s, kb_const(kb->vf, -HUGE_VAL));
    kb_store(kb, s, at, 4);
    l.v[0] = kb_fmax(kb, l.v[0], s);
    kb_loop_end(kb, &l);
    return kb_reduce_max(kb, &l.v[0], 1);
}

/* Scores in `weights` become exp(score - max), added to sum one after another. */
static LLVMValueRef
add_weights(mc_kb *kb, LLVMValueRef weights, LLVMValueRef n, LLVMValueRef max, LLVMValueRef sum)
{
    LLVMValueRef wide = kb_splat(kb, max, kb->vl);
    kb_loop e = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, MC_ATTEND_KEYS), kb_i64(kb, kb->vl), 0, NULL);
    LLVMValueRef at = kb_elem(kb, weights, e.i, 4);
    kb_store(kb, kb_exp(kb, kb_fsub(kb, kb_load(kb, kb->vf, at, 4), wide)), at, 4);
    kb_loop_end(kb, &e);
    kb_loop l = mc_attend_count(kb, n, 1, &sum);
    l.v[0] = kb_fadd(kb, l.v[0], kb_load(kb, kb->f32, kb_elem(kb, weights, l.i, 4), 4));
    kb_loop_end(kb, &l);
    return l.v[0];
}

/* ---- values ---------------------------------------------------------------------------------------------------- */

/* `vectors` vectors of channels from j on, of which the last has `last` channels, take the block's values. */
static void
add_values(mc_kb *kb, const mc_attend *a, LLVMValueRef out, LLVMValueRef weights, LLVMValueRef alpha, LLVMValueRef j,
           int vectors, int last, LLVMValueRef first, LLVMValueRef n)
{
    LLVMValueRef acc[CHANNEL_VECTORS], to = kb_elem(kb, out, j, 4), from = kb_elem(kb, a->v_base, j, 4), mask = NULL;
    int64_t bytes = (int64_t)kb->vl * 4;
    if (last < kb->vl) {
        mask = kb_icmp(kb, LLVMIntSLT, kb_lane_ids(kb, kb->vl), kb_splat(kb, kb_i32(kb, last), kb->vl));
    }
    for (int v = 0; v < vectors; v++) {
        acc[v] = kb_fmul(kb, kb_load(kb, kb->vf, kb_gepi(kb, to, v * bytes), 4), alpha);
    }
    kb_loop l = mc_attend_count(kb, n, vectors, acc);
    LLVMValueRef p = kb_splat(kb, kb_load(kb, kb->f32, kb_elem(kb, weights, l.i, 4), 4), kb->vl);
    LLVMValueRef key = kb_max(kb, mc_attend_key(kb, a, kb_add(kb, first, l.i)), kb_i64(kb, 0));
    LLVMValueRef row = kb_gep(kb, from, kb_mul(kb, key, a->v_step));
    for (int v = 0; v < vectors; v++) {
        LLVMValueRef here = kb_gepi(kb, row, v * bytes);
        LLVMValueRef x = kb_load_f32(kb, MOEC_F32, here, kb->vl, v + 1 == vectors ? mask : NULL);
        l.v[v] = kb_fma(kb, x, p, l.v[v]);
    }
    kb_loop_end(kb, &l);
    for (int v = 0; v < vectors; v++) kb_store(kb, l.v[v], kb_gepi(kb, to, v * bytes), 4);
}

static void
value_row(mc_kb *kb, const mc_attend *a, LLVMValueRef out, LLVMValueRef weights, LLVMValueRef alpha, LLVMValueRef first,
          LLVMValueRef n)
{
    int64_t step = (int64_t)CHANNEL_VECTORS * kb->vl, whole = a->value / step * step, left = a->value - whole;
    alpha = kb_splat(kb, alpha, kb->vl);
    if (whole) {
        kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, whole), kb_i64(kb, step), 0, NULL);
        add_values(kb, a, out, weights, alpha, l.i, CHANNEL_VECTORS, kb->vl, first, n);
        kb_loop_end(kb, &l);
    }
    if (left) {
        int vectors = (int)(padded(kb, left) / kb->vl), last = (int)(left - (int64_t)(vectors - 1) * kb->vl);
        add_values(kb, a, out, weights, alpha, kb_i64(kb, whole), vectors, last, first, n);
    }
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */

static void
take_block(mc_kb *kb, const mc_attend *a, LLVMValueRef rows, LLVMValueRef first, LLVMValueRef n)
{
    mc_attend_copy(kb, a, a->k_base, a->k_step, a->width, first, n);
    kb_loop l = mc_attend_count(kb, rows, 0, NULL);
    mc_attend_row r = mc_attend_row_of(kb, a, l.i);
    LLVMValueRef weights = kb_elem(kb, a->scores, l.i, MC_ATTEND_KEYS * 4);
    LLVMValueRef max_at = kb_elem(kb, a->max, l.i, 4), sum_at = kb_elem(kb, a->sum, l.i, 4);
    dot_keys(kb, a, kb_elem(kb, a->q, r.index, a->width * 4), weights);
    LLVMValueRef old = kb_load(kb, kb->f32, max_at, 4), max = mask_scores(kb, a, &r, first, n, old, weights);
    LLVMValueRef alpha = kb_exp(kb, kb_fsub(kb, old, max)), sum = kb_load(kb, kb->f32, sum_at, 4);
    sum = add_weights(kb, weights, n, max, kb_fmul(kb, sum, alpha));
    kb_store(kb, max, max_at, 4);
    kb_store(kb, sum, sum_at, 4);
    value_row(kb, a, kb_elem(kb, a->out, l.i, padded(kb, a->value) * 4), weights, alpha, first, n);
    kb_loop_end(kb, &l);
}

/* Starts every row; *low, *high: the range of keys of all together. */
static void
start_rows(mc_kb *kb, const mc_attend *a, LLVMValueRef rows, LLVMValueRef *low, LLVMValueRef *high)
{
    LLVMValueRef init[2] = {a->C, kb_i64(kb, -1)}, lo, hi, max, sum;
    kb_loop l = mc_attend_count(kb, rows, 2, init);
    mc_attend_row r = mc_attend_row_of(kb, a, l.i);
    mc_attend_range(kb, a, r.position, &lo, &hi);
    mc_attend_start(kb, a, r.head, &max, &sum);
    kb_store(kb, max, kb_elem(kb, a->max, l.i, 4), 4);
    kb_store(kb, sum, kb_elem(kb, a->sum, l.i, 4), 4);
    LLVMValueRef out = kb_elem(kb, a->out, l.i, padded(kb, a->value) * 4);
    kb_loop z = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, a->value), kb_i64(kb, kb->vl), 0, NULL);
    kb_store(kb, kb_const(kb->vf, 0), kb_elem(kb, out, z.i, 4), 4);
    kb_loop_end(kb, &z);
    l.v[0] = kb_min(kb, l.v[0], lo);
    l.v[1] = kb_max(kb, l.v[1], hi);
    kb_loop_end(kb, &l);
    *low = l.v[0];
    *high = l.v[1];
}

static void
store_rows(mc_kb *kb, const mc_attend *a, LLVMValueRef rows)
{
    LLVMValueRef zero = kb_const(kb->vf, 0);
    kb_loop l = mc_attend_count(kb, rows, 0, NULL);
    mc_attend_row r = mc_attend_row_of(kb, a, l.i);
    LLVMValueRef sum = kb_splat(kb, kb_load(kb, kb->f32, kb_elem(kb, a->sum, l.i, 4), 4), kb->vl);
    LLVMValueRef none = kb_fcmp(kb, LLVMRealOEQ, sum, zero), o = kb_elem(kb, a->o, r.index, a->value * 4);
    LLVMValueRef out = kb_elem(kb, a->out, l.i, padded(kb, a->value) * 4);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), kb_i64(kb, a->value), 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef x = kb_fdiv(kb, kb_load(kb, kb->vf, kb_elem(kb, out, v.i, 4), 4), sum);
        kb_store_f32(kb, MOEC_F32, kb_select(kb, none, zero, x), kb_elem(kb, o, v.i, 4), v.mask);
    }
    kb_loop_end(kb, &l);
}

void
mc_attend_few(mc_kb *kb, const mc_attend *a)
{
    LLVMValueRef rows = kb_sub(kb, a->n_rows, a->first), begin, end;
    start_rows(kb, a, rows, &begin, &end);
    end = kb_add(kb, end, kb_i64(kb, 1));
    begin = kb_and(kb, begin, kb_i64(kb, -MC_ATTEND_KEYS));
    if (a->flags & MC_ATTEND_SELECT) {
        begin = kb_i64(kb, 0);
        end = mc_attend_list_end(kb, a);
    }
    kb_loop l = kb_loop_begin(kb, begin, end, kb_i64(kb, MC_ATTEND_KEYS), 0, NULL);
    take_block(kb, a, rows, l.i, kb_min(kb, kb_i64(kb, MC_ATTEND_KEYS), kb_sub(kb, end, l.i)));
    kb_loop_end(kb, &l);
    store_rows(kb, a, rows);
}
