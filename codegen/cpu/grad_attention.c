/* sdpa_grad. The one idea: attention is computed again block by block, MC_GRAD_ROWS query rows against MC_GRAD_KEYS
 * keys, and every block takes part in five small products whose sums are single FMA chains, whatever the blocks are: in
 * ascending channel (scores, dp), in ascending key (dq), in ascending query row (dk, dv). Rows are the (position, query
 * head) pairs that share a key head, as in attention.c.
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
#include "codegen/cpu/grad_attention.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

enum { I_B, I_S, I_H, I_KV, I_C, I_WINDOW, I_CHUNK };
enum { P_WIDTH, P_VALUE, P_FLAGS, P_PART };

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
    const int64_t sizes[] = {MC_GRAD_ROWS * width,
                             MC_GRAD_ROWS * value,
                             MC_GRAD_ROWS * width,
                             MC_GRAD_ROWS * value,
                             MC_GRAD_ROWS * padded(width, vl),
                             MC_GRAD_KEYS * width,
                             MC_GRAD_KEYS * value,
                             MC_GRAD_ROWS,
                             MC_GRAD_ROWS,
                             MC_GRAD_ROWS,
                             MC_GRAD_ROWS,
                             MC_GRAD_ROWS,
                             (MC_GRAD_KEPT + 1) * 2 * MC_GRAD_KEYS * MC_GRAD_ROWS,
                             0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        *starts[i] = at;
        at += padded(sizes[i], 16);
    }
    return a;
}

static void
load_scratch(mc_kb *kb, mc_grad *g)
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
load_arguments(mc_kb *kb, mc_grad *g, const mc_plan_kernel *k)
{
    *g = (mc_grad){.a = {.width = k->p[P_WIDTH], .value = k->p[P_VALUE], .flags = k->p[P_FLAGS]}};
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

/* ---- by one thread ----------------------------------------------------------------------------------------------- */

static void
set_head(mc_kb *kb, mc_grad *g, LLVMValueRef task)
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
clear_keys(mc_kb *kb, const mc_grad *g, LLVMValueRef first, LLVMValueRef n)
{
    const mc_attend *a = &g->a;
    kb_loop l = mc_attend_count(kb, n, 0, NULL);
    LLVMValueRef position = kb_add(kb, kb_mul(kb, a->b, a->C), kb_add(kb, first, l.i));
    LLVMValueRef row = kb_add(kb, kb_mul(kb, position, a->KV), a->kv);
    mc_grad_fill_row(kb, kb_elem(kb, g->dk, row, a->width * 4), a->width);
    mc_grad_fill_row(kb, kb_elem(kb, g->dv, row, a->value * 4), a->value);
    kb_loop_end(kb, &l);
}

static void
copy_keys(mc_kb *kb, const mc_grad *g, const mc_grad_block *b)
{
    mc_attend_copy(kb, &g->a, g->a.k_base, g->a.k_step, g->a.width, b->first, b->n);
}

static void
copy_values(mc_kb *kb, const mc_grad *g, const mc_grad_block *b)
{
    mc_attend a = g->a;
    a.block = g->values;
    mc_attend_copy(kb, &a, a.v_base, a.v_step, a.value, b->first, b->n);
}

/* Keys from `first` on; their place among the kept, if they have one. */
static mc_grad_block
block_at(mc_kb *kb, const mc_grad *g, LLVMValueRef first, LLVMValueRef *kept)
{
    LLVMValueRef most = kb_i64(kb, MC_GRAD_KEPT),
                 number = kb_udiv(kb, kb_sub(kb, first, g->begin), kb_i64(kb, MC_GRAD_KEYS));
    mc_grad_block b = {.first = first, .n = kb_min(kb, kb_i64(kb, MC_GRAD_KEYS), kb_sub(kb, g->end, first))};
    *kept = kb_icmp(kb, LLVMIntSLT, number, most);
    b.scores = kb_elem(kb, g->kept, kb_min(kb, number, most), 2 * (int64_t)MC_GRAD_BLOCK_BYTES);
    b.dp = kb_gepi(kb, b.scores, MC_GRAD_BLOCK_BYTES);
    return b;
}

static void
shares_of(mc_kb *kb, const mc_grad *g, const mc_grad_block *b, LLVMValueRef kept)
{
    if (!mc_grad_keeps_weights(g)) {
        mc_grad_take_shares(kb, g, b, false);
        return;
    }
    kb_if c = kb_if_begin(kb, kept);
    mc_grad_take_shares(kb, g, b, true);
    kb_else(kb, &c);
    mc_grad_take_shares(kb, g, b, false);
    kb_if_end(kb, &c);
}

enum { MAXIMA, SUMS, SHARES, N_SWEEPS };

/* One turn of a sweep: what is not kept is made again, then the sweep's own part. */
static void
sweep_block(mc_kb *kb, const mc_grad *g, LLVMValueRef sweep, LLVMValueRef first, bool shares)
{
    LLVMValueRef kept, is_first = kb_icmp(kb, LLVMIntEQ, sweep, kb_i64(kb, MAXIMA));
    mc_grad_block b = block_at(kb, g, first, &kept);
    LLVMValueRef fresh = kb_or(kb, is_first, kb_icmp(kb, LLVMIntEQ, kept, kb_bool(kb, false)));
    kb_if scores = kb_if_begin(kb, fresh);
    copy_keys(kb, g, &b);
    mc_grad_make_scores(kb, g, &b);
    kb_if_end(kb, &scores);
    kb_if dp = kb_if_begin(kb, kb_icmp(kb, LLVMIntEQ, is_first, kept));
    copy_values(kb, g, &b);
    mc_grad_make_dp(kb, g, &b);
    kb_if_end(kb, &dp);
    kb_if maxima = kb_if_begin(kb, is_first);
    mc_grad_take_max(kb, g, &b);
    kb_if_end(kb, &maxima);
    kb_if sums = kb_if_begin(kb, kb_icmp(kb, LLVMIntEQ, sweep, kb_i64(kb, SUMS)));
    mc_grad_take_sums(kb, g, &b);
    kb_if_end(kb, &sums);
    if (!shares) return;
    kb_if last = kb_if_begin(kb, kb_icmp(kb, LLVMIntEQ, sweep, kb_i64(kb, SHARES)));
    shares_of(kb, g, &b, kept);
    copy_keys(kb, g, &b);
    mc_grad_add_dq(kb, g, &b);
    mc_grad_add_dk_dv(kb, g, &b);
    kb_if_end(kb, &last);
}

/* The statistics of the rows at work, and with `shares` everything else, too. */
static void
sweep_keys(mc_kb *kb, const mc_grad *g, bool shares)
{
    mc_grad_start_statistics(kb, g);
    kb_loop sweep = mc_attend_count(kb, kb_i64(kb, shares ? N_SWEEPS : SHARES), 0, NULL);
    kb_loop l = kb_loop_begin(kb, g->begin, g->end, kb_i64(kb, MC_GRAD_KEYS), 0, NULL);
    sweep_block(kb, g, sweep.i, l.i, shares);
    kb_loop_end(kb, &l);
    kb_if sums = kb_if_begin(kb, kb_icmp(kb, LLVMIntEQ, sweep.i, kb_i64(kb, SUMS)));
    mc_grad_finish_statistics(kb, g);
    kb_if_end(kb, &sums);
    kb_loop_end(kb, &sweep);
}

static void
whole_heads(mc_kb *kb, mc_grad *g, LLVMValueRef heads)
{
    kb_loop task = mc_rows_dealt(kb, heads);
    set_head(kb, g, task.i);
    clear_keys(kb, g, kb_i64(kb, 0), g->a.C);
    kb_loop rows = kb_loop_begin(kb, kb_i64(kb, 0), g->a.n_rows, kb_i64(kb, MC_GRAD_ROWS), 0, NULL);
    g->a.first = rows.i;
    mc_grad_find_keys(kb, g);
    mc_grad_load_rows(kb, g);
    mc_grad_start_dq(kb, g);
    sweep_keys(kb, g, true);
    mc_grad_store_dq(kb, g);
    kb_loop_end(kb, &rows);
    mc_rows_end(kb, &task);
}

/* ---- by several threads ------------------------------------------------------------------------------------------ */

enum { STATISTICS = 3 }; /* floats at the beginning of a row of dq */

/* max, sum and mean of the rows at work, to where dq will be, or from there. */
static void
move_statistics(mc_kb *kb, const mc_grad *g, bool store)
{
    LLVMValueRef lanes[STATISTICS] = {g->a.max, g->a.sum, g->mean};
    kb_loop l = mc_attend_count(kb, kb_i64(kb, MC_GRAD_ROWS), 0, NULL);
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
begin_blocks(mc_kb *kb, mc_grad *g, LLVMValueRef heads, LLVMValueRef n, int64_t size, LLVMValueRef *first)
{
    LLVMValueRef blocks = kb_udiv(kb, kb_add(kb, n, kb_i64(kb, size - 1)), kb_i64(kb, size));
    kb_loop l = mc_rows_dealt(kb, kb_mul(kb, heads, blocks));
    set_head(kb, g, kb_udiv(kb, l.i, blocks));
    *first = kb_mul(kb, kb_urem(kb, l.i, blocks), kb_i64(kb, size));
    return l;
}

static void
statistics_by_rows(mc_kb *kb, mc_grad *g, LLVMValueRef heads)
{
    kb_loop task = begin_blocks(kb, g, heads, g->a.n_rows, MC_GRAD_ROWS, &g->a.first);
    mc_grad_find_keys(kb, g);
    mc_grad_load_rows(kb, g);
    sweep_keys(kb, g, false);
    move_statistics(kb, g, true);
    mc_rows_end(kb, &task);
}

static void
make_shares(mc_kb *kb, const mc_grad *g, const mc_grad_block *b)
{
    copy_keys(kb, g, b);
    mc_grad_make_scores(kb, g, b);
    copy_values(kb, g, b);
    mc_grad_make_dp(kb, g, b);
    mc_grad_take_shares(kb, g, b, false);
}

static void
dq_by_rows(mc_kb *kb, mc_grad *g, LLVMValueRef heads)
{
    LLVMValueRef kept;
    kb_loop task = begin_blocks(kb, g, heads, g->a.n_rows, MC_GRAD_ROWS, &g->a.first);
    mc_grad_find_keys(kb, g);
    mc_grad_load_rows(kb, g);
    move_statistics(kb, g, false);
    mc_grad_start_dq(kb, g);
    kb_loop l = kb_loop_begin(kb, g->begin, g->end, kb_i64(kb, MC_GRAD_KEYS), 0, NULL);
    mc_grad_block b = block_at(kb, g, l.i, &kept);
    make_shares(kb, g, &b);
    mc_grad_add_dq(kb, g, &b);
    kb_loop_end(kb, &l);
    mc_grad_store_dq(kb, g);
    mc_rows_end(kb, &task);
}

static void
dk_dv_by_keys(mc_kb *kb, mc_grad *g, LLVMValueRef heads)
{
    LLVMValueRef first, kept;
    kb_loop task = begin_blocks(kb, g, heads, g->a.C, MC_GRAD_KEYS, &first);
    clear_keys(kb, g, first, kb_min(kb, kb_i64(kb, MC_GRAD_KEYS), kb_sub(kb, g->a.C, first)));
    kb_loop rows = kb_loop_begin(kb, kb_i64(kb, 0), g->a.n_rows, kb_i64(kb, MC_GRAD_ROWS), 0, NULL);
    g->a.first = rows.i;
    mc_grad_find_keys(kb, g);
    LLVMValueRef sees = kb_and(kb, kb_icmp(kb, LLVMIntSGE, first, g->begin), kb_icmp(kb, LLVMIntSLT, first, g->end));
    kb_if seen = kb_if_begin(kb, sees);
    mc_grad_load_rows(kb, g);
    move_statistics(kb, g, false);
    mc_grad_block b = block_at(kb, g, first, &kept);
    make_shares(kb, g, &b);
    mc_grad_add_dk_dv(kb, g, &b);
    kb_if_end(kb, &seen);
    kb_loop_end(kb, &rows);
    mc_rows_end(kb, &task);
}

/* ---- kernels ----------------------------------------------------------------------------------------------------- */

enum { FIRST, BY_KEYS, BY_ROWS, N_PARTS, ALONE = N_PARTS };

static void
emit_sdpa_grad(mc_kb *kb, const mc_plan_kernel *k)
{
    int64_t part = k->p[P_PART];
    kb_kernel_begin(kb, k->name.data);
    mc_grad g;
    load_arguments(kb, &g, k);
    LLVMValueRef heads = kb_mul(kb, kb_arg_int(kb, I_B), g.a.KV);
    /* Split, the work is nearly twice as much. */
    LLVMValueRef few = kb_icmp(kb, LLVMIntSLT, kb_mul(kb, heads, kb_i64(kb, 2)), kb_n_threads(kb));
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

/* ---- selection --------------------------------------------------------------------------------------------------- */

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
give_arguments(mc_plan *p, const mc_op *op)
{
    const mc_value *q = mc_operand(op, 0), *k = mc_operand(op, 1);
    for (int i = 0; i < 4; i++) mc_plan_ptr(p, mc_operand(op, i));
    for (int i = 0; i < 3; i++) mc_plan_ptr(p, mc_result(op, i));
    for (int i = 0; i < 3; i++) mc_plan_int(p, q->type->dims[i]);
    mc_plan_int(p, k->type->dims[2]);
    mc_plan_int(p, k->type->dims[1]);
    mc_plan_const(p, mc_attr_int(op, "window"));
    mc_plan_const(p, mc_attr_int(op, "chunk"));
    mc_plan_float(p, mc_attr_float(op, "scale"));
    mc_plan_float(p, mc_attr_float(op, "softcap"));
}

void
mc_cpu_select_attention_grad(mc_plan *p, const mc_op *op)
{
    for (int i = 0; i < 4; i++) {
        if (mc_operand(op, i)->type->dtype != MOEC_F32 || mc_plan_in_state(mc_operand(op, i))) {
            mc_plan_refuse(p, "its operands must be f32 tensors of this step");
            return;
        }
    }
    int64_t width = mc_plan_need_const(p, mc_type_last(mc_operand(op, 0)->type), "the width of a head");
    int64_t value = mc_plan_need_const(p, mc_type_last(mc_operand(op, 2)->type), "the width of a value");
    if (p->failed) return;
    int64_t params[4] = {[P_WIDTH] = width, [P_VALUE] = value, [P_FLAGS] = flags_of(op), [P_PART] = ALONE};
    int n = width < STATISTICS ? 1 : N_PARTS;
    for (int i = 0; i < n; i++) {
        if (n > 1) params[P_PART] = i;
        mc_plan_launch(p, mc_plan_kernel_get(p, emit_sdpa_grad, params, 4, "sdpa_grad_%d_%d_%d_%d", (int)width,
                                             (int)value, (int)params[P_FLAGS], (int)params[P_PART]));
        give_arguments(p, op);
    }
    mc_plan_scratch(p, (uint64_t)lay_out(width, value, p->vl).total * 4 + 256);
}
