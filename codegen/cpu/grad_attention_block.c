/* What sdpa_grad does with a block of rows, and with a block of rows and one of keys: grad_attention.h. */
#include "codegen/cpu/grad_attention.h"

#include "codegen/cpu/dot.h"
#include "codegen/cpu/grad_product.h"
#include "codegen/cpu/math.h"
#include "codegen/cpu/turn.h"

#include <math.h>

enum { DQ_TILE = 4 };

static int64_t
padded(const mc_kb *kb, int64_t n)
{
    return (n + kb->vl - 1) / kb->vl * kb->vl;
}

/* ---- one block of rows ------------------------------------------------------------------------------------------- */

static LLVMValueRef
scratch_row(mc_kb *kb, LLVMValueRef base, LLVMValueRef row, int64_t n)
{
    return kb_elem(kb, base, row, n * 4);
}

/* The rows of a block, a vector of them at a time. A loop when it runs, not here: the bodies are long. */
static kb_loop
each_vector(mc_kb *kb)
{
    return kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, MC_GRAD_ROWS), kb_i64(kb, kb->vl), 0, NULL);
}

/* columns[i][row] = rows[row][i]: n channels of all rows; those read beyond them are not stored. */
static void
turn_channels(mc_kb *kb, LLVMValueRef rows, LLVMValueRef columns, LLVMValueRef i, int count, int64_t n)
{
    LLVMValueRef square[64];
    for (int r = 0; r < MC_GRAD_ROWS; r += kb->vl) {
        for (int u = 0; u < kb->vl; u++)
            square[u] = kb_load(kb, kb->vf, kb_gepi(kb, kb_elem(kb, rows, i, 4), (r + u) * n * 4), 4);
        mc_turn(kb, square);
        LLVMValueRef to = kb_gepi(kb, scratch_row(kb, columns, i, MC_GRAD_ROWS), r * 4);
        for (int u = 0; u < count; u++) kb_store(kb, square[u], kb_gepi(kb, to, u * MC_GRAD_ROWS * 4), 4);
    }
}

/* A function of its own, (rows, columns): written out at every use it would be half of all code. */
static LLVMValueRef
turning(mc_kb *kb, int64_t n)
{
    mc_str name = mc_strf(kb->arena, "turn_rows_%lld", (long long)n);
    LLVMValueRef fn = kb_find(kb, name.data);
    if (fn) return fn;
    fn = kb_function_begin(kb, name.data, kb->t_void, (LLVMTypeRef[]){kb->ptr, kb->ptr}, 2);
    LLVMValueRef rows = kb_param(kb, 0), columns = kb_param(kb, 1);
    int64_t whole = n / kb->vl * kb->vl;
    if (whole) {
        kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, whole), kb_i64(kb, kb->vl), 0, NULL);
        turn_channels(kb, rows, columns, l.i, kb->vl, n);
        kb_loop_end(kb, &l);
    }
    if (whole < n) turn_channels(kb, rows, columns, kb_i64(kb, whole), (int)(n - whole), n);
    kb_function_end(kb, NULL);
    return fn;
}

static void
turn_rows(mc_kb *kb, LLVMValueRef rows, LLVMValueRef columns, int64_t n)
{
    kb_call(kb, turning(kb, n), (LLVMValueRef[]){rows, columns}, 2);
}

void
mc_grad_fill_row(mc_kb *kb, LLVMValueRef to, int64_t n)
{
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), kb_i64(kb, n), 0, NULL);
    while (kb_vloop_next(kb, &v)) kb_store_f32(kb, MOEC_F32, kb_const(kb->vf, 0), kb_elem(kb, to, v.i, 4), v.mask);
}

/* Positions ascend with the rows, and so do both ends of what they see. */
void
mc_grad_find_keys(mc_kb *kb, mc_grad *g)
{
    const mc_attend *a = &g->a;
    LLVMValueRef one = kb_i64(kb, 1), low, high, ignored;
    g->used = kb_min(kb, kb_i64(kb, MC_GRAD_ROWS), kb_sub(kb, a->n_rows, a->first));
    mc_attend_row top = mc_attend_row_of(kb, a, kb_i64(kb, 0)),
                  bottom = mc_attend_row_of(kb, a, kb_sub(kb, g->used, one));
    mc_attend_range(kb, a, top.position, &low, &ignored);
    mc_attend_range(kb, a, bottom.position, &ignored, &high);
    g->begin = kb_sub(kb, low, kb_urem(kb, low, kb_i64(kb, MC_GRAD_KEYS)));
    g->end = kb_min(kb, kb_add(kb, high, one), a->C);
}

/* Rows past the last see no key; what they hold is a copy of the last. */
void
mc_grad_load_rows(mc_kb *kb, const mc_grad *g)
{
    const mc_attend *a = &g->a;
    kb_loop l = mc_attend_count(kb, kb_i64(kb, MC_GRAD_ROWS), 0, NULL);
    LLVMValueRef low, high;
    mc_attend_row r = mc_attend_row_of(kb, a, l.i);
    mc_attend_range(kb, a, r.position, &low, &high);
    high = kb_select(kb, r.valid, high, kb_i64(kb, -1));
    kb_store(kb, kb_convert(kb, low, kb->i32), kb_elem(kb, a->low, l.i, 4), 4);
    kb_store(kb, kb_convert(kb, high, kb->i32), kb_elem(kb, a->high, l.i, 4), 4);
    LLVMValueRef q = kb_elem(kb, a->q, r.index, a->width * 4), dy = kb_elem(kb, g->dy, r.index, a->value * 4);
    mc_copy_row(kb, q, scratch_row(kb, g->q_rows, l.i, a->width), a->width);
    mc_copy_row(kb, dy, scratch_row(kb, g->dy_rows, l.i, a->value), a->value);
    kb_loop_end(kb, &l);
    turn_rows(kb, g->q_rows, a->qt, a->width);
    turn_rows(kb, g->dy_rows, g->dyt, a->value);
}

void
mc_grad_start_statistics(mc_kb *kb, const mc_grad *g)
{
    kb_loop rows = each_vector(kb);
    kb_store(kb, kb_const(kb->vf, MC_ATTEND_LOWEST), kb_elem(kb, g->a.max, rows.i, 4), 4);
    kb_store(kb, kb_const(kb->vf, 0), kb_elem(kb, g->a.sum, rows.i, 4), 4);
    kb_store(kb, kb_const(kb->vf, 0), kb_elem(kb, g->mean, rows.i, 4), 4);
    kb_loop_end(kb, &rows);
}

/* From sums over exp(score - max) to what a share is multiplied with, and the mean of dp. A row without keys: 0. */
void
mc_grad_finish_statistics(mc_kb *kb, const mc_grad *g)
{
    kb_loop rows = each_vector(kb);
    LLVMValueRef at = kb_elem(kb, g->a.sum, rows.i, 4), mean_at = kb_elem(kb, g->mean, rows.i, 4);
    LLVMValueRef sum = kb_load(kb, kb->vf, at, 4), zero = kb_const(kb->vf, 0);
    LLVMValueRef share = kb_fdiv(kb, kb_const(kb->vf, 1), sum);
    share = kb_select(kb, kb_fcmp(kb, LLVMRealOEQ, sum, zero), zero, share);
    kb_store(kb, share, at, 4);
    kb_store(kb, kb_fmul(kb, kb_load(kb, kb->vf, mean_at, 4), share), mean_at, 4);
    kb_loop_end(kb, &rows);
}

void
mc_grad_start_dq(mc_kb *kb, const mc_grad *g)
{
    mc_grad_fill_row(kb, g->dq_rows, MC_GRAD_ROWS * padded(kb, g->a.width));
}

void
mc_grad_store_dq(mc_kb *kb, const mc_grad *g)
{
    kb_loop l = mc_attend_count(kb, g->used, 0, NULL);
    mc_attend_row r = mc_attend_row_of(kb, &g->a, l.i);
    LLVMValueRef from = scratch_row(kb, g->dq_rows, l.i, padded(kb, g->a.width));
    mc_copy_row(kb, from, kb_elem(kb, g->dq, r.index, g->a.width * 4), g->a.width);
    kb_loop_end(kb, &l);
}

/* ---- a block of rows and a block of keys ------------------------------------------------------------------------- */

static LLVMValueRef
whole_tiles(mc_kb *kb, LLVMValueRef n)
{
    LLVMValueRef rows = kb_i64(kb, mc_product_rows(kb));
    return kb_mul(kb, kb_udiv(kb, kb_add(kb, n, kb_sub(kb, rows, kb_i64(kb, 1))), rows), rows);
}

/* out[key][row] = sum over channels of x[key][channel] * columns[channel][row]; some keys more than n. */
static void
by_rows(mc_kb *kb, LLVMValueRef x, LLVMValueRef columns, int64_t width, LLVMValueRef n, LLVMValueRef out)
{
    mc_product p = {.a_row = width * 4,
                    .a_step = 4,
                    .b_step = MC_GRAD_ROWS * 4,
                    .columns = MC_GRAD_ROWS,
                    .rows = mc_product_rows(kb)};
    mc_product_emit(kb, &p, x, columns, out, kb_i64(kb, MC_GRAD_ROWS * 4), whole_tiles(kb, n), kb_i64(kb, width));
}

void
mc_grad_make_scores(mc_kb *kb, const mc_grad *g, const mc_grad_block *b)
{
    by_rows(kb, g->a.block, g->a.qt, g->a.width, b->n, b->scores);
    kb_loop rows = each_vector(kb);
    LLVMValueRef low = kb_load(kb, kb->vi, kb_elem(kb, g->a.low, rows.i, 4), 4);
    LLVMValueRef high = kb_load(kb, kb->vi, kb_elem(kb, g->a.high, rows.i, 4), 4);
    kb_loop l = mc_attend_count(kb, b->n, 0, NULL);
    LLVMValueRef at = kb_elem(kb, scratch_row(kb, b->scores, l.i, MC_GRAD_ROWS), rows.i, 4);
    LLVMValueRef s = kb_fmul(kb, kb_load(kb, kb->vf, at, 4), g->a.scale);
    if (g->a.flags & MC_ATTEND_SOFTCAP) s = kb_fmul(kb, g->a.cap, kb_tanh(kb, kb_fdiv(kb, s, g->a.cap)));
    LLVMValueRef key = kb_splat(kb, kb_convert(kb, kb_add(kb, b->first, l.i), kb->i32), kb->vl);
    LLVMValueRef seen = kb_and(kb, kb_icmp(kb, LLVMIntSGE, key, low), kb_icmp(kb, LLVMIntSLE, key, high));
    kb_store(kb, kb_select(kb, seen, s, kb_const(kb->vf, -HUGE_VAL)), at, 4);
    kb_loop_end(kb, &l);
    kb_loop_end(kb, &rows);
}

void
mc_grad_make_dp(mc_kb *kb, const mc_grad *g, const mc_grad_block *b)
{
    by_rows(kb, g->values, g->dyt, g->a.value, b->n, b->dp);
}

void
mc_grad_take_max(mc_kb *kb, const mc_grad *g, const mc_grad_block *b)
{
    kb_loop rows = each_vector(kb);
    LLVMValueRef at = kb_elem(kb, g->a.max, rows.i, 4), max = kb_load(kb, kb->vf, at, 4);
    kb_loop l = mc_attend_count(kb, b->n, 1, &max);
    LLVMValueRef s = kb_load(kb, kb->vf, kb_elem(kb, scratch_row(kb, b->scores, l.i, MC_GRAD_ROWS), rows.i, 4), 4);
    l.v[0] = kb_fmax(kb, l.v[0], s);
    kb_loop_end(kb, &l);
    kb_store(kb, l.v[0], at, 4);
    kb_loop_end(kb, &rows);
}

bool
mc_grad_keeps_weights(const mc_grad *g)
{
    return !(g->a.flags & MC_ATTEND_SOFTCAP); /* whose derivative needs the scores */
}

/* Scores become exp(score - max). */
void
mc_grad_take_sums(mc_kb *kb, const mc_grad *g, const mc_grad_block *b)
{
    kb_loop rows = each_vector(kb);
    LLVMValueRef sum_at = kb_elem(kb, g->a.sum, rows.i, 4), mean_at = kb_elem(kb, g->mean, rows.i, 4);
    LLVMValueRef max = kb_load(kb, kb->vf, kb_elem(kb, g->a.max, rows.i, 4), 4);
    LLVMValueRef init[2] = {kb_load(kb, kb->vf, sum_at, 4), kb_load(kb, kb->vf, mean_at, 4)};
    kb_loop l = mc_attend_count(kb, b->n, 2, init);
    LLVMValueRef at = kb_elem(kb, scratch_row(kb, b->scores, l.i, MC_GRAD_ROWS), rows.i, 4);
    LLVMValueRef dp = kb_load(kb, kb->vf, kb_elem(kb, scratch_row(kb, b->dp, l.i, MC_GRAD_ROWS), rows.i, 4), 4);
    LLVMValueRef p = kb_exp(kb, kb_fsub(kb, kb_load(kb, kb->vf, at, 4), max));
    if (mc_grad_keeps_weights(g)) kb_store(kb, p, at, 4);
    l.v[0] = kb_fadd(kb, l.v[0], p);
    l.v[1] = kb_fma(kb, p, dp, l.v[1]);
    kb_loop_end(kb, &l);
    kb_store(kb, l.v[0], sum_at, 4);
    kb_store(kb, l.v[1], mean_at, 4);
    kb_loop_end(kb, &rows);
}

/* Scores (or, with `weights`, what take_sums made of them) become shares, dp becomes ds; up to whole tiles of keys. */
void
mc_grad_take_shares(mc_kb *kb, const mc_grad *g, const mc_grad_block *b, bool weights)
{
    kb_loop rows = each_vector(kb);
    LLVMValueRef max = kb_load(kb, kb->vf, kb_elem(kb, g->a.max, rows.i, 4), 4);
    LLVMValueRef share = kb_load(kb, kb->vf, kb_elem(kb, g->a.sum, rows.i, 4), 4);
    LLVMValueRef mean = kb_load(kb, kb->vf, kb_elem(kb, g->mean, rows.i, 4), 4), one = kb_const(kb->vf, 1);
    kb_loop l = mc_attend_count(kb, b->n, 0, NULL);
    LLVMValueRef at = kb_elem(kb, scratch_row(kb, b->scores, l.i, MC_GRAD_ROWS), rows.i, 4);
    LLVMValueRef dp_at = kb_elem(kb, scratch_row(kb, b->dp, l.i, MC_GRAD_ROWS), rows.i, 4),
                 s = kb_load(kb, kb->vf, at, 4);
    LLVMValueRef p = kb_fmul(kb, weights ? s : kb_exp(kb, kb_fsub(kb, s, max)), share);
    LLVMValueRef ds = kb_fmul(kb, p, kb_fsub(kb, kb_load(kb, kb->vf, dp_at, 4), mean));
    if (g->a.flags & MC_ATTEND_SOFTCAP) { /* 1 - tanh^2; a key that is not seen has -inf */
        LLVMValueRef t = kb_fmax(kb, kb_const(kb->vf, -1), kb_fdiv(kb, s, g->a.cap));
        ds = kb_fmul(kb, ds, kb_fma(kb, kb_fneg(kb, t), t, one));
    }
    kb_store(kb, p, at, 4);
    kb_store(kb, kb_fmul(kb, ds, g->a.scale), dp_at, 4);
    kb_loop_end(kb, &l);
    kb_loop_end(kb, &rows);
    LLVMValueRef from = scratch_row(kb, b->scores, b->n, MC_GRAD_ROWS), left = kb_sub(kb, whole_tiles(kb, b->n), b->n);
    LLVMValueRef dp_from = scratch_row(kb, b->dp, b->n, MC_GRAD_ROWS);
    kb_loop beyond = mc_attend_count(kb, left, 0, NULL);
    mc_grad_fill_row(kb, scratch_row(kb, from, beyond.i, MC_GRAD_ROWS), MC_GRAD_ROWS);
    mc_grad_fill_row(kb, scratch_row(kb, dp_from, beyond.i, MC_GRAD_ROWS), MC_GRAD_ROWS);
    kb_loop_end(kb, &beyond);
}

void
mc_grad_add_dq(mc_kb *kb, const mc_grad *g, const mc_grad_block *b)
{
    int64_t row = padded(kb, g->a.width);
    mc_product p = {.a_row = 4,
                    .a_step = MC_GRAD_ROWS * 4,
                    .b_step = g->a.width * 4,
                    .columns = row,
                    .rows = DQ_TILE,
                    .adds = true};
    mc_product_emit(kb, &p, b->dp, g->a.block, g->dq_rows, kb_i64(kb, row * 4), kb_i64(kb, MC_GRAD_ROWS), b->n);
}

/* y[key] += sum over rows of x[key][row] * rows[row], for the keys of the block. */
static void
by_keys(mc_kb *kb, const mc_grad *g, const mc_grad_block *b, LLVMValueRef x, LLVMValueRef rows, int64_t width,
        LLVMValueRef y, LLVMValueRef step)
{
    LLVMValueRef at = kb_mul(kb, kb_add(kb, kb_mul(kb, g->a.b, g->a.C), b->first), step);
    y = kb_gep(kb, y, kb_add(kb, at, kb_mul(kb, g->a.kv, kb_i64(kb, width * 4))));
    mc_product p = {.a_row = MC_GRAD_ROWS * 4,
                    .a_step = 4,
                    .b_step = width * 4,
                    .columns = width,
                    .rows = mc_product_rows(kb),
                    .adds = true};
    LLVMValueRef n = kb_min(kb, whole_tiles(kb, b->n), kb_sub(kb, g->a.C, b->first)); /* past n: += 0 */
    mc_product_emit(kb, &p, x, rows, y, step, n, g->used);
}

void
mc_grad_add_dk_dv(mc_kb *kb, const mc_grad *g, const mc_grad_block *b)
{
    by_keys(kb, g, b, b->dp, g->q_rows, g->a.width, g->dk, g->a.k_step);
    by_keys(kb, g, b, b->scores, g->dy_rows, g->a.value, g->dv, g->a.v_step);
}
