/* sdpa_grad. The one idea: attention is computed again block by block, ROWS query rows against KEYS keys, and every
 * block takes part in five small products whose sums are single FMA chains, whatever the blocks are: in ascending
 * channel (scores, dp), in ascending key (dq), in ascending query row (dk, dv). Rows are the (position, query head)
 * pairs that share a key head, as in attention.c.
 *
 *     scores[key][row] = k . q     dp[key][row] = v . dy                        lanes are rows
 *     max, sum, mean: over the keys of each row; mean = sum of p * dp
 *     p = exp(score - max) / sum   ds = p * (dp - mean) * scale
 *     dq[row] += ds * k     dk[key] += ds * q     dv[key] += p * dy             lanes are channels
 *
 * The first blocks of keys keep scores and dp between the three sweeps over the keys; the others compute them again.
 * One thread owns a (sequence, key head) and goes through its rows. When there are too few of these for the threads,
 * three launches do the same: statistics by rows (kept where dq will be), dk and dv by keys, dq by rows; each visits
 * its pairs of blocks in the same order, so the bits are the same.
 *
 * ptr: q, k, v, dy, dq, dk, dv   i: below   f: scale, softcap */
#include "codegen/cpu/attention.h"
#include "codegen/cpu/dot.h"
#include "codegen/cpu/grad_product.h"
#include "codegen/cpu/math.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

#include <math.h>

enum { ROWS = 32, KEYS = 48, KEPT = 21, DQ_TILE = 4 };
enum { I_B, I_S, I_H, I_KV, I_C, I_WINDOW, I_CHUNK };
enum { P_WIDTH, P_VALUE, P_FLAGS, P_PART };
enum { BLOCK_BYTES = KEYS * ROWS * 4 }; /* of scores, and of dp after them */

typedef struct grad {
    mc_attend a; /* arguments, the rows at work, scratch: qt, block (keys), low, high, max, sum */
    LLVMValueRef dy, dq, dk, dv;
    LLVMValueRef dyt, q_rows, dy_rows, dq_rows, values, mean, kept; /* scratch */
    LLVMValueRef used, begin, end; /* rows of the block; the keys that they see, from a multiple of KEYS on */
} grad;

/* Scratch, in floats. */
typedef struct areas {
    int64_t qt, dyt, q_rows, dy_rows, dq_rows, keys, values, low, high, max, sum, mean, kept, total;
} areas;

static int64_t
padded(int64_t n, int vl)
{
    return (n + vl - 1) / vl * vl;
}

static areas
lay_out(int64_t width, int64_t value, int vl)
{
    int64_t at = 0;
    areas a;
    int64_t *const starts[] = {&a.qt,  &a.dyt,  &a.q_rows, &a.dy_rows, &a.dq_rows, &a.keys, &a.values,
                               &a.low, &a.high, &a.max,    &a.sum,     &a.mean,    &a.kept, &a.total};
    const int64_t sizes[] = {ROWS * width,
                             ROWS * value,
                             ROWS * width,
                             ROWS * value,
                             ROWS * padded(width, vl),
                             KEYS * width,
                             KEYS * value,
                             ROWS,
                             ROWS,
                             ROWS,
                             ROWS,
                             ROWS,
                             (KEPT + 1) * 2 * KEYS * ROWS,
                             0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        *starts[i] = at;
        at += padded(sizes[i], 16);
    }
    return a;
}

static void
load_scratch(mc_kb *kb, grad *g)
{
    areas at = lay_out(g->a.width, g->a.value, kb->vl);
    LLVMValueRef scratch = kb_scratch(kb);
    g->a.qt = kb_gepi(kb, scratch, at.qt * 4);
    g->dyt = kb_gepi(kb, scratch, at.dyt * 4);
    g->q_rows = kb_gepi(kb, scratch, at.q_rows * 4);
    g->dy_rows = kb_gepi(kb, scratch, at.dy_rows * 4);
    g->dq_rows = kb_gepi(kb, scratch, at.dq_rows * 4);
    g->a.block = kb_gepi(kb, scratch, at.keys * 4);
    g->values = kb_gepi(kb, scratch, at.values * 4);
    g->a.low = kb_gepi(kb, scratch, at.low * 4);
    g->a.high = kb_gepi(kb, scratch, at.high * 4);
    g->a.max = kb_gepi(kb, scratch, at.max * 4);
    g->a.sum = kb_gepi(kb, scratch, at.sum * 4);
    g->mean = kb_gepi(kb, scratch, at.mean * 4);
    g->kept = kb_gepi(kb, scratch, at.kept * 4);
}

static void
load_arguments(mc_kb *kb, grad *g, const mc_cpu_kernel *k)
{
    *g = (grad){.a = {.width = k->p[P_WIDTH], .value = k->p[P_VALUE], .flags = k->p[P_FLAGS]}};
    mc_attend *a = &g->a;
    a->q = kb_arg_ptr(kb, 0);
    a->k = kb_arg_ptr(kb, 1);
    a->v = kb_arg_ptr(kb, 2);
    g->dy = kb_arg_ptr(kb, 3);
    g->dq = kb_arg_ptr(kb, 4);
    g->dk = kb_arg_ptr(kb, 5);
    g->dv = kb_arg_ptr(kb, 6);
    a->S = kb_arg_int(kb, I_S);
    a->H = kb_arg_int(kb, I_H);
    a->KV = kb_arg_int(kb, I_KV);
    a->C = kb_arg_int(kb, I_C);
    a->G = kb_udiv(kb, a->H, a->KV);
    a->s0 = kb_i64(kb, 0);
    a->n_rows = kb_mul(kb, a->S, a->G);
    if (a->flags & MC_ATTEND_WINDOW) a->window = kb_arg_int(kb, I_WINDOW);
    if (a->flags & MC_ATTEND_CHUNKED) a->chunk = kb_arg_int(kb, I_CHUNK);
    a->scale = kb_splat(kb, kb_arg_float(kb, 0), kb->vl);
    if (a->flags & MC_ATTEND_SOFTCAP) a->cap = kb_splat(kb, kb_arg_float(kb, 1), kb->vl);
    a->k_step = kb_mul(kb, a->KV, kb_i64(kb, a->width * 4));
    a->v_step = kb_mul(kb, a->KV, kb_i64(kb, a->value * 4));
    load_scratch(kb, g);
}

/* ---- one block of rows ----------------------------------------------------------------------------------------------
 */

static LLVMValueRef
scratch_row(mc_kb *kb, LLVMValueRef base, LLVMValueRef row, int64_t n)
{
    return kb_elem(kb, base, row, n * 4);
}

/* A row to its place among rows, and to its lane among columns. */
static void
load_row(mc_kb *kb, LLVMValueRef from, LLVMValueRef r, int64_t n, LLVMValueRef rows, LLVMValueRef columns)
{
    mc_copy_row(kb, from, scratch_row(kb, rows, r, n), n);
    LLVMValueRef lane = kb_elem(kb, columns, r, 4);
    kb_loop l = mc_attend_count(kb, kb_i64(kb, n), 0, NULL);
    kb_store(kb, kb_load(kb, kb->f32, kb_elem(kb, from, l.i, 4), 4), kb_elem(kb, lane, l.i, ROWS * 4), 4);
    kb_loop_end(kb, &l);
}

static void
fill_row(mc_kb *kb, LLVMValueRef to, int64_t n)
{
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), kb_i64(kb, n), 0, NULL);
    while (kb_vloop_next(kb, &v)) kb_store_f32(kb, MOEC_F32, kb_const(kb->vf, 0), kb_elem(kb, to, v.i, 4), v.mask);
}

/* Rows past the last see no key; what they hold is a copy of the last. */
static void
load_rows(mc_kb *kb, grad *g)
{
    const mc_attend *a = &g->a;
    LLVMValueRef init[2] = {a->C, kb_i64(kb, -1)}, lo, hi;
    kb_loop l = mc_attend_count(kb, kb_i64(kb, ROWS), 2, init);
    mc_attend_row r = mc_attend_row_of(kb, a, l.i);
    mc_attend_range(kb, a, r.position, &lo, &hi);
    hi = kb_select(kb, r.valid, kb_min(kb, hi, kb_sub(kb, a->C, kb_i64(kb, 1))), kb_i64(kb, -1));
    l.v[0] = kb_select(kb, r.valid, kb_min(kb, l.v[0], lo), l.v[0]);
    l.v[1] = kb_max(kb, l.v[1], hi);
    kb_store(kb, kb_convert(kb, lo, kb->i32), kb_elem(kb, a->low, l.i, 4), 4);
    kb_store(kb, kb_convert(kb, hi, kb->i32), kb_elem(kb, a->high, l.i, 4), 4);
    load_row(kb, kb_elem(kb, a->q, r.index, a->width * 4), l.i, a->width, g->q_rows, a->qt);
    load_row(kb, kb_elem(kb, g->dy, r.index, a->value * 4), l.i, a->value, g->dy_rows, g->dyt);
    kb_loop_end(kb, &l);
    g->begin = kb_sub(kb, l.v[0], kb_urem(kb, l.v[0], kb_i64(kb, KEYS)));
    g->end = kb_add(kb, l.v[1], kb_i64(kb, 1));
    g->used = kb_min(kb, kb_i64(kb, ROWS), kb_sub(kb, a->n_rows, a->first));
}

static void
start_statistics(mc_kb *kb, const grad *g)
{
    for (int r = 0; r < ROWS; r += kb->vl) {
        kb_store(kb, kb_const(kb->vf, MC_ATTEND_LOWEST), kb_gepi(kb, g->a.max, r * 4), 4);
        kb_store(kb, kb_const(kb->vf, 0), kb_gepi(kb, g->a.sum, r * 4), 4);
        kb_store(kb, kb_const(kb->vf, 0), kb_gepi(kb, g->mean, r * 4), 4);
    }
}

/* From sums over exp(score - max) to what a share is multiplied with, and the mean of dp. A row without keys: 0. */
static void
finish_statistics(mc_kb *kb, const grad *g)
{
    for (int r = 0; r < ROWS; r += kb->vl) {
        LLVMValueRef at = kb_gepi(kb, g->a.sum, r * 4), mean_at = kb_gepi(kb, g->mean, r * 4);
        LLVMValueRef sum = kb_load(kb, kb->vf, at, 4), zero = kb_const(kb->vf, 0);
        LLVMValueRef share = kb_fdiv(kb, kb_const(kb->vf, 1), sum);
        share = kb_select(kb, kb_fcmp(kb, LLVMRealOEQ, sum, zero), zero, share);
        kb_store(kb, share, at, 4);
        kb_store(kb, kb_fmul(kb, kb_load(kb, kb->vf, mean_at, 4), share), mean_at, 4);
    }
}

static void
start_dq(mc_kb *kb, const grad *g)
{
    fill_row(kb, g->dq_rows, ROWS * padded(g->a.width, kb->vl));
}

static void
store_dq(mc_kb *kb, const grad *g)
{
    kb_loop l = mc_attend_count(kb, g->used, 0, NULL);
    mc_attend_row r = mc_attend_row_of(kb, &g->a, l.i);
    LLVMValueRef from = scratch_row(kb, g->dq_rows, l.i, padded(g->a.width, kb->vl));
    mc_copy_row(kb, from, kb_elem(kb, g->dq, r.index, g->a.width * 4), g->a.width);
    kb_loop_end(kb, &l);
}

/* ---- a block of rows and a block of keys ----------------------------------------------------------------------------
 */

typedef struct block {
    LLVMValueRef first, n; /* keys */
    LLVMValueRef scores, dp;
} block;

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
    mc_product p = {.a_row = width * 4, .a_step = 4, .b_step = ROWS * 4, .columns = ROWS, .rows = mc_product_rows(kb)};
    mc_product_emit(kb, &p, x, columns, out, kb_i64(kb, ROWS * 4), whole_tiles(kb, n), kb_i64(kb, width));
}

static void
make_scores(mc_kb *kb, const grad *g, const block *b)
{
    by_rows(kb, g->a.block, g->a.qt, g->a.width, b->n, b->scores);
    for (int r = 0; r < ROWS; r += kb->vl) {
        LLVMValueRef low = kb_load(kb, kb->vi, kb_gepi(kb, g->a.low, r * 4), 4);
        LLVMValueRef high = kb_load(kb, kb->vi, kb_gepi(kb, g->a.high, r * 4), 4);
        kb_loop l = mc_attend_count(kb, b->n, 0, NULL);
        LLVMValueRef at = kb_gepi(kb, scratch_row(kb, b->scores, l.i, ROWS), r * 4);
        LLVMValueRef s = kb_fmul(kb, kb_load(kb, kb->vf, at, 4), g->a.scale);
        if (g->a.flags & MC_ATTEND_SOFTCAP) s = kb_fmul(kb, g->a.cap, kb_tanh(kb, kb_fdiv(kb, s, g->a.cap)));
        LLVMValueRef key = kb_splat(kb, kb_convert(kb, kb_add(kb, b->first, l.i), kb->i32), kb->vl);
        LLVMValueRef seen = kb_and(kb, kb_icmp(kb, LLVMIntSGE, key, low), kb_icmp(kb, LLVMIntSLE, key, high));
        kb_store(kb, kb_select(kb, seen, s, kb_const(kb->vf, -HUGE_VAL)), at, 4);
        kb_loop_end(kb, &l);
    }
}

static void
make_dp(mc_kb *kb, const grad *g, const block *b)
{
    by_rows(kb, g->values, g->dyt, g->a.value, b->n, b->dp);
}

static void
take_max(mc_kb *kb, const grad *g, const block *b)
{
    for (int r = 0; r < ROWS; r += kb->vl) {
        LLVMValueRef at = kb_gepi(kb, g->a.max, r * 4), max = kb_load(kb, kb->vf, at, 4);
        kb_loop l = mc_attend_count(kb, b->n, 1, &max);
        LLVMValueRef s = kb_load(kb, kb->vf, kb_gepi(kb, scratch_row(kb, b->scores, l.i, ROWS), r * 4), 4);
        l.v[0] = kb_fmax(kb, l.v[0], s);
        kb_loop_end(kb, &l);
        kb_store(kb, l.v[0], at, 4);
    }
}

static bool
keeps_weights(const grad *g)
{
    return !(g->a.flags & MC_ATTEND_SOFTCAP); /* whose derivative needs the scores */
}

/* Scores become exp(score - max). */
static void
take_sums(mc_kb *kb, const grad *g, const block *b)
{
    for (int r = 0; r < ROWS; r += kb->vl) {
        LLVMValueRef sum_at = kb_gepi(kb, g->a.sum, r * 4), mean_at = kb_gepi(kb, g->mean, r * 4);
        LLVMValueRef max = kb_load(kb, kb->vf, kb_gepi(kb, g->a.max, r * 4), 4);
        LLVMValueRef init[2] = {kb_load(kb, kb->vf, sum_at, 4), kb_load(kb, kb->vf, mean_at, 4)};
        kb_loop l = mc_attend_count(kb, b->n, 2, init);
        LLVMValueRef at = kb_gepi(kb, scratch_row(kb, b->scores, l.i, ROWS), r * 4);
        LLVMValueRef dp = kb_load(kb, kb->vf, kb_gepi(kb, scratch_row(kb, b->dp, l.i, ROWS), r * 4), 4);
        LLVMValueRef p = kb_exp(kb, kb_fsub(kb, kb_load(kb, kb->vf, at, 4), max));
        if (keeps_weights(g)) kb_store(kb, p, at, 4);
        l.v[0] = kb_fadd(kb, l.v[0], p);
        l.v[1] = kb_fma(kb, p, dp, l.v[1]);
        kb_loop_end(kb, &l);
        kb_store(kb, l.v[0], sum_at, 4);
        kb_store(kb, l.v[1], mean_at, 4);
    }
}

/* Scores (or, with `weights`, what take_sums made of them) become shares, dp becomes ds; up to whole tiles of keys. */
static void
take_shares(mc_kb *kb, const grad *g, const block *b, bool weights)
{
    for (int r = 0; r < ROWS; r += kb->vl) {
        LLVMValueRef max = kb_load(kb, kb->vf, kb_gepi(kb, g->a.max, r * 4), 4);
        LLVMValueRef share = kb_load(kb, kb->vf, kb_gepi(kb, g->a.sum, r * 4), 4);
        LLVMValueRef mean = kb_load(kb, kb->vf, kb_gepi(kb, g->mean, r * 4), 4), one = kb_const(kb->vf, 1);
        kb_loop l = mc_attend_count(kb, b->n, 0, NULL);
        LLVMValueRef at = kb_gepi(kb, scratch_row(kb, b->scores, l.i, ROWS), r * 4);
        LLVMValueRef dp_at = kb_gepi(kb, scratch_row(kb, b->dp, l.i, ROWS), r * 4), s = kb_load(kb, kb->vf, at, 4);
        LLVMValueRef p = kb_fmul(kb, weights ? s : kb_exp(kb, kb_fsub(kb, s, max)), share);
        LLVMValueRef ds = kb_fmul(kb, p, kb_fsub(kb, kb_load(kb, kb->vf, dp_at, 4), mean));
        if (g->a.flags & MC_ATTEND_SOFTCAP) { /* 1 - tanh^2; a key that is not seen has -inf */
            LLVMValueRef t = kb_fmax(kb, kb_const(kb->vf, -1), kb_fdiv(kb, s, g->a.cap));
            ds = kb_fmul(kb, ds, kb_fma(kb, kb_fneg(kb, t), t, one));
        }
        kb_store(kb, p, at, 4);
        kb_store(kb, kb_fmul(kb, ds, g->a.scale), dp_at, 4);
        kb_loop_end(kb, &l);
    }
    LLVMValueRef from = scratch_row(kb, b->scores, b->n, ROWS), left = kb_sub(kb, whole_tiles(kb, b->n), b->n);
    LLVMValueRef dp_from = scratch_row(kb, b->dp, b->n, ROWS);
    kb_loop l = mc_attend_count(kb, left, 0, NULL);
    fill_row(kb, scratch_row(kb, from, l.i, ROWS), ROWS);
    fill_row(kb, scratch_row(kb, dp_from, l.i, ROWS), ROWS);
    kb_loop_end(kb, &l);
}

static void
add_dq(mc_kb *kb, const grad *g, const block *b)
{
    int64_t row = padded(g->a.width, kb->vl);
    mc_product p = {
        .a_row = 4, .a_step = ROWS * 4, .b_step = g->a.width * 4, .columns = row, .rows = DQ_TILE, .adds = true};
    mc_product_emit(kb, &p, b->dp, g->a.block, g->dq_rows, kb_i64(kb, row * 4), kb_i64(kb, ROWS), b->n);
}

/* y[key] += sum over rows of x[key][row] * rows[row], for the keys of the block. */
static void
by_keys(mc_kb *kb, const grad *g, const block *b, LLVMValueRef x, LLVMValueRef rows, int64_t width, LLVMValueRef y,
        LLVMValueRef step)
{
    LLVMValueRef at = kb_mul(kb, kb_add(kb, kb_mul(kb, g->a.b, g->a.C), b->first), step);
    y = kb_gep(kb, y, kb_add(kb, at, kb_mul(kb, g->a.kv, kb_i64(kb, width * 4))));
    mc_product p = {.a_row = ROWS * 4,
                    .a_step = 4,
                    .b_step = width * 4,
                    .columns = width,
                    .rows = mc_product_rows(kb),
                    .adds = true};
    LLVMValueRef n = kb_min(kb, whole_tiles(kb, b->n), kb_sub(kb, g->a.C, b->first)); /* past n: += 0 */
    mc_product_emit(kb, &p, x, rows, y, step, n, g->used);
}

static void
add_dk_dv(mc_kb *kb, const grad *g, const block *b)
{
    by_keys(kb, g, b, b->dp, g->q_rows, g->a.width, g->dk, g->a.k_step);
    by_keys(kb, g, b, b->scores, g->dy_rows, g->a.value, g->dv, g->a.v_step);
}

/* ---- everything by one thread
 * ---------------------------------------------------------------------------------------- */

static void
set_head(mc_kb *kb, grad *g, LLVMValueRef task)
{
    mc_attend *a = &g->a;
    a->kv = kb_urem(kb, task, a->KV);
    a->b = kb_udiv(kb, task, a->KV);
    LLVMValueRef at = kb_mul(kb, a->b, a->C);
    a->k_base = kb_gep(kb, a->k, kb_add(kb, kb_mul(kb, at, a->k_step), kb_mul(kb, a->kv, kb_i64(kb, a->width * 4))));
    a->v_base = kb_gep(kb, a->v, kb_add(kb, kb_mul(kb, at, a->v_step), kb_mul(kb, a->kv, kb_i64(kb, a->value * 4))));
}

/* dk and dv of n keys. */
static void
clear_keys(mc_kb *kb, const grad *g, LLVMValueRef first, LLVMValueRef n)
{
    const mc_attend *a = &g->a;
    kb_loop l = mc_attend_count(kb, n, 0, NULL);
    LLVMValueRef position = kb_add(kb, kb_mul(kb, a->b, a->C), kb_add(kb, first, l.i));
    LLVMValueRef row = kb_add(kb, kb_mul(kb, position, a->KV), a->kv);
    fill_row(kb, kb_elem(kb, g->dk, row, a->width * 4), a->width);
    fill_row(kb, kb_elem(kb, g->dv, row, a->value * 4), a->value);
    kb_loop_end(kb, &l);
}

static void
copy_keys(mc_kb *kb, const grad *g, const block *b)
{
    mc_attend_copy(kb, &g->a, g->a.k_base, g->a.k_step, g->a.width, b->first, b->n);
}

static void
copy_values(mc_kb *kb, const grad *g, const block *b)
{
    mc_attend a = g->a;
    a.block = g->values;
    mc_attend_copy(kb, &a, a.v_base, a.v_step, a.value, b->first, b->n);
}

/* Keys from `first` on; their place among the kept, if they have one. */
static block
block_at(mc_kb *kb, const grad *g, LLVMValueRef first, LLVMValueRef *kept)
{
    LLVMValueRef most = kb_i64(kb, KEPT), number = kb_udiv(kb, kb_sub(kb, first, g->begin), kb_i64(kb, KEYS));
    block b = {.first = first, .n = kb_min(kb, kb_i64(kb, KEYS), kb_sub(kb, g->end, first))};
    *kept = kb_icmp(kb, LLVMIntSLT, number, most);
    b.scores = kb_elem(kb, g->kept, kb_min(kb, number, most), 2 * (int64_t)BLOCK_BYTES);
    b.dp = kb_gepi(kb, b.scores, BLOCK_BYTES);
    return b;
}

static void
shares_of(mc_kb *kb, const grad *g, const block *b, LLVMValueRef kept)
{
    if (!keeps_weights(g)) {
        take_shares(kb, g, b, false);
        return;
    }
    kb_if c = kb_if_begin(kb, kept);
    take_shares(kb, g, b, true);
    kb_else(kb, &c);
    take_shares(kb, g, b, false);
    kb_if_end(kb, &c);
}

enum { MAXIMA, SUMS, SHARES, N_SWEEPS };

/* One turn of a sweep: what is not kept is made again, then the sweep's own part. */
static void
sweep_block(mc_kb *kb, const grad *g, LLVMValueRef sweep, LLVMValueRef first, bool shares)
{
    LLVMValueRef kept, is_first = kb_icmp(kb, LLVMIntEQ, sweep, kb_i64(kb, MAXIMA));
    block b = block_at(kb, g, first, &kept);
    LLVMValueRef fresh = kb_or(kb, is_first, kb_icmp(kb, LLVMIntEQ, kept, kb_bool(kb, false)));
    kb_if scores = kb_if_begin(kb, fresh);
    copy_keys(kb, g, &b);
    make_scores(kb, g, &b);
    kb_if_end(kb, &scores);
    kb_if dp = kb_if_begin(kb, kb_icmp(kb, LLVMIntEQ, is_first, kept));
    copy_values(kb, g, &b);
    make_dp(kb, g, &b);
    kb_if_end(kb, &dp);
    kb_if maxima = kb_if_begin(kb, is_first);
    take_max(kb, g, &b);
    kb_if_end(kb, &maxima);
    kb_if sums = kb_if_begin(kb, kb_icmp(kb, LLVMIntEQ, sweep, kb_i64(kb, SUMS)));
    take_sums(kb, g, &b);
    kb_if_end(kb, &sums);
    if (!shares) return;
    kb_if last = kb_if_begin(kb, kb_icmp(kb, LLVMIntEQ, sweep, kb_i64(kb, SHARES)));
    shares_of(kb, g, &b, kept);
    copy_keys(kb, g, &b);
    add_dq(kb, g, &b);
    add_dk_dv(kb, g, &b);
    kb_if_end(kb, &last);
}

/* The statistics of the rows at work, and with `shares` everything else, too. */
static void
sweep_keys(mc_kb *kb, const grad *g, bool shares)
{
    start_statistics(kb, g);
    kb_loop sweep = mc_attend_count(kb, kb_i64(kb, shares ? N_SWEEPS : SHARES), 0, NULL);
    kb_loop l = kb_loop_begin(kb, g->begin, g->end, kb_i64(kb, KEYS), 0, NULL);
    sweep_block(kb, g, sweep.i, l.i, shares);
    kb_loop_end(kb, &l);
    kb_if sums = kb_if_begin(kb, kb_icmp(kb, LLVMIntEQ, sweep.i, kb_i64(kb, SUMS)));
    finish_statistics(kb, g);
    kb_if_end(kb, &sums);
    kb_loop_end(kb, &sweep);
}

static void
whole_heads(mc_kb *kb, grad *g, LLVMValueRef heads)
{
    kb_loop task = mc_rows_dealt(kb, heads);
    set_head(kb, g, task.i);
    clear_keys(kb, g, kb_i64(kb, 0), g->a.C);
    kb_loop rows = kb_loop_begin(kb, kb_i64(kb, 0), g->a.n_rows, kb_i64(kb, ROWS), 0, NULL);
    g->a.first = rows.i;
    load_rows(kb, g);
    start_dq(kb, g);
    sweep_keys(kb, g, true);
    store_dq(kb, g);
    kb_loop_end(kb, &rows);
    mc_rows_end(kb, &task);
}

/* ---- by several threads --------------------------------------------------------------------------------------------
 */

enum { STATISTICS = 3 }; /* floats at the beginning of a row of dq */

/* max, sum and mean of the rows at work, to where dq will be, or from there. */
static void
move_statistics(mc_kb *kb, const grad *g, bool store)
{
    LLVMValueRef lanes[STATISTICS] = {g->a.max, g->a.sum, g->mean};
    kb_loop l = mc_attend_count(kb, kb_i64(kb, ROWS), 0, NULL);
    mc_attend_row r = mc_attend_row_of(kb, &g->a, l.i); /* rows past the last are the last again */
    LLVMValueRef row = kb_elem(kb, g->dq, r.index, g->a.width * 4);
    kb_if real = kb_if_begin(kb, store ? r.valid : kb_bool(kb, true));
    for (int i = 0; i < STATISTICS; i++) {
        LLVMValueRef lane = kb_elem(kb, lanes[i], l.i, 4), there = kb_gepi(kb, row, i * 4);
        kb_store(kb, kb_load(kb, kb->f32, store ? lane : there, 4), store ? there : lane, 4);
    }
    kb_if_end(kb, &real);
    kb_loop_end(kb, &l);
}

/* Blocks of `n` things of every head as tasks; sets the head and returns the loop, *first the block's first thing. */
static kb_loop
begin_blocks(mc_kb *kb, grad *g, LLVMValueRef heads, LLVMValueRef n, int64_t size, LLVMValueRef *first)
{
    LLVMValueRef blocks = kb_udiv(kb, kb_add(kb, n, kb_i64(kb, size - 1)), kb_i64(kb, size));
    kb_loop l = mc_rows_dealt(kb, kb_mul(kb, heads, blocks));
    set_head(kb, g, kb_udiv(kb, l.i, blocks));
    *first = kb_mul(kb, kb_urem(kb, l.i, blocks), kb_i64(kb, size));
    return l;
}

static void
statistics_by_rows(mc_kb *kb, grad *g, LLVMValueRef heads)
{
    kb_loop task = begin_blocks(kb, g, heads, g->a.n_rows, ROWS, &g->a.first);
    load_rows(kb, g);
    sweep_keys(kb, g, false);
    move_statistics(kb, g, true);
    mc_rows_end(kb, &task);
}

static void
make_shares(mc_kb *kb, const grad *g, const block *b)
{
    copy_keys(kb, g, b);
    make_scores(kb, g, b);
    copy_values(kb, g, b);
    make_dp(kb, g, b);
    take_shares(kb, g, b, false);
}

static void
dq_by_rows(mc_kb *kb, grad *g, LLVMValueRef heads)
{
    LLVMValueRef kept;
    kb_loop task = begin_blocks(kb, g, heads, g->a.n_rows, ROWS, &g->a.first);
    load_rows(kb, g);
    move_statistics(kb, g, false);
    start_dq(kb, g);
    kb_loop l = kb_loop_begin(kb, g->begin, g->end, kb_i64(kb, KEYS), 0, NULL);
    block b = block_at(kb, g, l.i, &kept);
    make_shares(kb, g, &b);
    add_dq(kb, g, &b);
    kb_loop_end(kb, &l);
    store_dq(kb, g);
    mc_rows_end(kb, &task);
}

static void
dk_dv_by_keys(mc_kb *kb, grad *g, LLVMValueRef heads)
{
    LLVMValueRef first, kept;
    kb_loop task = begin_blocks(kb, g, heads, g->a.C, KEYS, &first);
    clear_keys(kb, g, first, kb_min(kb, kb_i64(kb, KEYS), kb_sub(kb, g->a.C, first)));
    kb_loop rows = kb_loop_begin(kb, kb_i64(kb, 0), g->a.n_rows, kb_i64(kb, ROWS), 0, NULL);
    g->a.first = rows.i;
    load_rows(kb, g);
    LLVMValueRef sees = kb_and(kb, kb_icmp(kb, LLVMIntSGE, first, g->begin), kb_icmp(kb, LLVMIntSLT, first, g->end));
    kb_if seen = kb_if_begin(kb, sees);
    move_statistics(kb, g, false);
    block b = block_at(kb, g, first, &kept);
    make_shares(kb, g, &b);
    add_dk_dv(kb, g, &b);
    kb_if_end(kb, &seen);
    kb_loop_end(kb, &rows);
    mc_rows_end(kb, &task);
}

/* ---- kernels --------------------------------------------------------------------------------------------------------
 */

enum { FIRST, BY_KEYS, BY_ROWS, N_PARTS, ALONE = N_PARTS };

static void
emit_sdpa_grad(mc_kb *kb, const mc_cpu_kernel *k)
{
    int64_t part = k->p[P_PART];
    kb_kernel_begin(kb, k->name.data);
    grad g;
    load_arguments(kb, &g, k);
    LLVMValueRef heads = kb_mul(kb, kb_arg_int(kb, I_B), g.a.KV);
    LLVMValueRef few = kb_icmp(kb, LLVMIntSLE, kb_mul(kb, heads, kb_i64(kb, 2)), kb_n_threads(kb));
    if (part == ALONE) few = kb_bool(kb, false);
    kb_if split = kb_if_begin(kb, few);
    if (part == FIRST) statistics_by_rows(kb, &g, heads);
    if (part == BY_KEYS) dk_dv_by_keys(kb, &g, heads);
    if (part == BY_ROWS) dq_by_rows(kb, &g, heads);
    kb_else(kb, &split);
    if (part == FIRST || part == ALONE) whole_heads(kb, &g, heads);
    kb_if_end(kb, &split);
    kb_kernel_end(kb);
}

/* ---- selection ------------------------------------------------------------------------------------------------------
 */

static int64_t
flags_of(const mc_op *op)
{
    int64_t flags = 0;
    if (mc_attr_bool(op, "causal")) flags |= MC_ATTEND_CAUSAL;
    if (mc_attr_int(op, "window")) flags |= MC_ATTEND_WINDOW;
    if (mc_attr_int(op, "chunk")) flags |= MC_ATTEND_CHUNKED;
    if (mc_attr_float(op, "softcap") != 0) flags |= MC_ATTEND_SOFTCAP;
    return flags;
}

static void
give_arguments(mc_cpu_plan *p, const mc_op *op)
{
    const mc_value *q = mc_operand(op, 0), *k = mc_operand(op, 1);
    for (int i = 0; i < 4; i++) mc_cpu_ptr(p, mc_operand(op, i));
    for (int i = 0; i < 3; i++) mc_cpu_ptr(p, mc_result(op, i));
    for (int i = 0; i < 3; i++) mc_cpu_int(p, q->type->dims[i]);
    mc_cpu_int(p, k->type->dims[2]);
    mc_cpu_int(p, k->type->dims[1]);
    mc_cpu_const(p, mc_attr_int(op, "window"));
    mc_cpu_const(p, mc_attr_int(op, "chunk"));
    mc_cpu_float(p, mc_attr_float(op, "scale"));
    mc_cpu_float(p, mc_attr_float(op, "softcap"));
}

void
mc_cpu_select_attention_grad(mc_cpu_plan *p, const mc_op *op)
{
    for (int i = 0; i < 4; i++) {
        if (mc_operand(op, i)->type->dtype != MOEC_F32 || mc_cpu_in_state(mc_operand(op, i))) {
            mc_cpu_refuse(p, "its operands must be f32 tensors of this step");
            return;
        }
    }
    int64_t width = mc_cpu_need_const(p, mc_type_last(mc_operand(op, 0)->type), "the width of a head");
    int64_t value = mc_cpu_need_const(p, mc_type_last(mc_operand(op, 2)->type), "the width of a value");
    if (p->failed) return;
    int64_t params[4] = {[P_WIDTH] = width, [P_VALUE] = value, [P_FLAGS] = flags_of(op), [P_PART] = ALONE};
    int n = width < STATISTICS ? 1 : N_PARTS;
    for (int i = 0; i < n; i++) {
        if (n > 1) params[P_PART] = i;
        mc_cpu_launch(p, mc_cpu_kernel_get(p, emit_sdpa_grad, params, 4, "sdpa_grad_%d_%d_%d_%d", (int)width,
                                           (int)value, (int)params[P_FLAGS], (int)params[P_PART]));
        give_arguments(p, op);
    }
    mc_cpu_scratch(p, (uint64_t)lay_out(width, value, p->vl).total * 4 + 256);
}
