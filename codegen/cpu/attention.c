/* sdpa and latent_sdpa: attention in one kernel for prefill and decode. The one idea: lanes are query rows. The rows of
 * a block are the (position, query head) pairs that share a key head; every lane runs the same scalar algorithm (online
 * softmax over blocks of KEYS keys that begin at multiples of KEYS), keys and values are broadcast from memory, and
 * nothing is ever added across lanes. So a query's bits depend on nothing but its keys, odd head sizes need no masks, K
 * and V are read as they lie, once per block of rows.
 *
 *     scores[c][lane] = sum_i q[i][lane] * k[c][i]        TILE keys at a time in registers, i ascending
 *     out[j][lane]    = out[j][lane] * alpha + sum_c p[c][lane] * v[c][j]    TILE channels at a time, c ascending
 *
 * In latent_sdpa a key has two parts that lie apart, and the first is the value too; there is one key head.
 *
 * ptr: q, k, v, o, sinks, select, q_rot, k_rot   i: below   f: scale, softcap */
#include "codegen/cpu/dot.h"
#include "codegen/cpu/math.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

#include <math.h>

enum { KEYS = 32, TILE = MC_DOT_TILE };
enum { I_B, I_S, I_H, I_KV, I_C, I_WINDOW, I_CHUNK, I_K_STATE, I_V_STATE, I_SELECT, I_ROT_STATE };
enum { P_WIDTH, P_VALUE, P_FLAGS, P_ROT };
enum { CAUSAL = 1, WINDOW = 2, CHUNKED = 4, SOFTCAP = 8, SINKS = 16, SELECT = 32, LATENT = 64 };

/* Stands for -inf where a finite number is needed: exp(anything - it) is never of inf - inf. */
static const double lowest = -1e30;

typedef struct attend {
    int64_t width, rot, value, flags; /* channels of q and k; of their second part; of v */
    LLVMValueRef q, k, v, o, sinks, select, q_rot, k_rot;
    LLVMValueRef S, H, KV, C, G, window, chunk, n_select;
    LLVMValueRef scale, cap;
    LLVMValueRef k_step, v_step, rot_step;        /* bytes between positions */
    LLVMValueRef qt, scores, out, low, high, max; /* scratch */
    /* of the block of rows at work */
    LLVMValueRef b, kv, s0, first, n_rows; /* row r of the block: s0 + (first + r) / G, head (first + r) mod G */
    LLVMValueRef k_base, v_base, rot_base, list;
} attend;

static int64_t
lane_bytes(const mc_kb *kb)
{
    return (int64_t)kb->vl * 4;
}

static uint64_t
scratch_bytes(int64_t width, int64_t value, int vl) /* width: of both parts */
{
    return (uint64_t)(width + value + KEYS + 3) * (uint64_t)vl * 4;
}

static LLVMValueRef
row_vector(mc_kb *kb, LLVMValueRef base, LLVMValueRef index)
{
    return kb_elem(kb, base, index, lane_bytes(kb));
}

static LLVMValueRef
broadcast(mc_kb *kb, LLVMValueRef p)
{
    return kb_splat(kb, kb_load(kb, kb->f32, p, 4), kb->vl);
}

static void
load_arguments(mc_kb *kb, attend *a, const mc_cpu_kernel *k)
{
    *a = (attend){.width = k->p[P_WIDTH], .rot = k->p[P_ROT], .value = k->p[P_VALUE], .flags = k->p[P_FLAGS]};
    a->q = kb_arg_ptr(kb, 0);
    a->k = kb_arg_ptr(kb, 1);
    a->v = kb_arg_ptr(kb, 2);
    a->o = kb_arg_ptr(kb, 3);
    if (a->flags & SINKS) a->sinks = kb_arg_ptr(kb, 4);
    if (a->flags & SELECT) a->select = kb_arg_ptr(kb, 5);
    a->S = kb_arg_int(kb, I_S);
    a->H = kb_arg_int(kb, I_H);
    a->KV = kb_arg_int(kb, I_KV);
    a->C = kb_arg_int(kb, I_C);
    a->G = kb_udiv(kb, a->H, a->KV);
    if (a->flags & WINDOW) a->window = kb_arg_int(kb, I_WINDOW);
    if (a->flags & CHUNKED) a->chunk = kb_arg_int(kb, I_CHUNK);
    if (a->flags & SELECT) a->n_select = kb_arg_int(kb, I_SELECT);
    a->scale = kb_splat(kb, kb_arg_float(kb, 0), kb->vl);
    if (a->flags & SOFTCAP) a->cap = kb_splat(kb, kb_arg_float(kb, 1), kb->vl);
    a->k_step = kb_mul(kb, a->KV, kb_i64(kb, a->width * 4));
    a->v_step = kb_mul(kb, a->KV, kb_i64(kb, a->value * 4));
    if (a->flags & LATENT) {
        a->q_rot = kb_arg_ptr(kb, 6);
        a->k_rot = kb_arg_ptr(kb, 7);
        a->rot_step = kb_mul(kb, a->KV, kb_i64(kb, a->rot * 4));
    }
    a->qt = kb_scratch(kb);
    a->scores = kb_gepi(kb, a->qt, (a->width + a->rot) * lane_bytes(kb));
    a->out = kb_gepi(kb, a->scores, KEYS * lane_bytes(kb));
    a->low = kb_gepi(kb, a->out, a->value * lane_bytes(kb));
    a->high = kb_gepi(kb, a->low, lane_bytes(kb));
    a->max = kb_gepi(kb, a->high, lane_bytes(kb));
}

/* A sequence's keys: in a cache state there is room for cache_cap positions, else C follow each other. */
static LLVMValueRef
sequence_base(mc_kb *kb, const attend *a, LLVMValueRef p, int state_arg, LLVMValueRef step, int64_t width)
{
    LLVMValueRef in_state = kb_icmp(kb, LLVMIntNE, kb_arg_int(kb, state_arg), kb_i64(kb, 0));
    LLVMValueRef positions = kb_select(kb, in_state, kb_cache_cap(kb), a->C);
    LLVMValueRef at = kb_mul(kb, kb_mul(kb, a->b, positions), step);
    return kb_gep(kb, p, kb_add(kb, at, kb_mul(kb, a->kv, kb_i64(kb, width * 4))));
}

static LLVMValueRef
blocks_of(mc_kb *kb, LLVMValueRef n)
{
    return kb_udiv(kb, kb_add(kb, n, kb_i64(kb, kb->vl - 1)), kb_i64(kb, kb->vl));
}

/* Tasks: (sequence, key head, block of rows); with `select` every position has its own keys, so blocks end with it. */
static kb_loop
begin_tasks(mc_kb *kb, attend *a)
{
    bool select = a->flags & SELECT;
    a->n_rows = select ? a->G : kb_mul(kb, a->S, a->G);
    LLVMValueRef blocks = blocks_of(kb, a->n_rows), positions = select ? a->S : kb_i64(kb, 1);
    LLVMValueRef n = kb_mul(kb, kb_mul(kb, kb_arg_int(kb, I_B), a->KV), kb_mul(kb, positions, blocks));
    kb_loop l = mc_rows_dealt(kb, n);
    LLVMValueRef left = kb_udiv(kb, l.i, blocks);
    a->first = kb_mul(kb, kb_urem(kb, l.i, blocks), kb_i64(kb, kb->vl));
    a->s0 = kb_i64(kb, 0);
    if (select) {
        a->s0 = kb_urem(kb, left, a->S);
        left = kb_udiv(kb, left, a->S);
    }
    a->kv = kb_urem(kb, left, a->KV);
    a->b = kb_udiv(kb, left, a->KV);
    a->k_base = sequence_base(kb, a, a->k, I_K_STATE, a->k_step, a->width);
    a->v_base = sequence_base(kb, a, a->v, I_V_STATE, a->v_step, a->value);
    if (a->flags & LATENT) a->rot_base = sequence_base(kb, a, a->k_rot, I_ROT_STATE, a->rot_step, a->rot);
    if (select) {
        LLVMValueRef row = kb_add(kb, kb_mul(kb, a->b, a->S), a->s0);
        a->list = kb_elem(kb, a->select, kb_mul(kb, row, a->n_select), 4);
    }
    return l;
}

/* ---- rows in, rows out ------------------------------------------------------------------------------------------ */

typedef struct row {
    LLVMValueRef valid, position, head, index; /* index: of (b, s, head) */
} row;

static row
row_of(mc_kb *kb, const attend *a, LLVMValueRef lane)
{
    LLVMValueRef r = kb_add(kb, a->first, lane);
    row out = {.valid = kb_icmp(kb, LLVMIntSLT, r, a->n_rows)};
    r = kb_min(kb, r, kb_sub(kb, a->n_rows, kb_i64(kb, 1)));
    LLVMValueRef s = kb_add(kb, a->s0, kb_udiv(kb, r, a->G));
    out.head = kb_add(kb, kb_mul(kb, a->kv, a->G), kb_urem(kb, r, a->G));
    out.position = kb_add(kb, kb_sub(kb, a->C, a->S), s);
    out.index = kb_add(kb, kb_mul(kb, kb_add(kb, kb_mul(kb, a->b, a->S), s), a->H), out.head);
    return out;
}

/* Copies n floats between a row and a lane of vectors. */
static void
copy_lane(mc_kb *kb, LLVMValueRef from, int64_t from_step, LLVMValueRef to, int64_t to_step, int64_t n)
{
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, n), kb_i64(kb, 1), 0, NULL);
    LLVMValueRef e = kb_load(kb, kb->f32, kb_elem(kb, from, l.i, from_step), 4);
    kb_store(kb, e, kb_elem(kb, to, l.i, to_step), 4);
    kb_loop_end(kb, &l);
}

/* The first and last key that a query at `position` may see. */
static void
key_range(mc_kb *kb, const attend *a, LLVMValueRef position, LLVMValueRef *low, LLVMValueRef *high)
{
    LLVMValueRef one = kb_i64(kb, 1);
    *low = kb_i64(kb, 0);
    *high = a->flags & CAUSAL ? position : kb_sub(kb, a->C, one);
    if (a->flags & WINDOW) *low = kb_max(kb, *low, kb_add(kb, kb_sub(kb, position, a->window), one));
    if (a->flags & CHUNKED) {
        LLVMValueRef begin = kb_mul(kb, kb_udiv(kb, position, a->chunk), a->chunk);
        *low = kb_max(kb, *low, begin);
        *high = kb_min(kb, *high, kb_sub(kb, kb_add(kb, begin, a->chunk), one));
    }
}

/* Fills the lanes' queries, key ranges and first maxima. *low, *high: the range of all lanes together. */
static void
load_rows(mc_kb *kb, const attend *a, LLVMValueRef *low, LLVMValueRef *high)
{
    LLVMValueRef init[2] = {a->C, kb_i64(kb, -1)};
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, kb->vl), kb_i64(kb, 1), 2, init);
    row r = row_of(kb, a, l.i);
    LLVMValueRef lo, hi;
    key_range(kb, a, r.position, &lo, &hi);
    hi = kb_select(kb, r.valid, hi, kb_i64(kb, -1));
    l.v[0] = kb_select(kb, r.valid, kb_min(kb, l.v[0], lo), l.v[0]);
    l.v[1] = kb_max(kb, l.v[1], hi);
    kb_store(kb, kb_convert(kb, lo, kb->i32), kb_elem(kb, a->low, l.i, 4), 4);
    kb_store(kb, kb_convert(kb, hi, kb->i32), kb_elem(kb, a->high, l.i, 4), 4);
    LLVMValueRef max = kb_f32(kb, lowest);
    if (a->flags & SINKS) max = kb_fmax(kb, max, kb_load(kb, kb->f32, kb_elem(kb, a->sinks, r.head, 4), 4));
    kb_store(kb, max, kb_elem(kb, a->max, l.i, 4), 4);
    LLVMValueRef q = kb_elem(kb, a->q, r.index, a->width * 4);
    copy_lane(kb, q, 4, kb_elem(kb, a->qt, l.i, 4), lane_bytes(kb), a->width);
    if (a->flags & LATENT) {
        LLVMValueRef to = kb_elem(kb, row_vector(kb, a->qt, kb_i64(kb, a->width)), l.i, 4);
        copy_lane(kb, kb_elem(kb, a->q_rot, r.index, a->rot * 4), 4, to, lane_bytes(kb), a->rot);
    }
    kb_loop_end(kb, &l);
    *low = l.v[0];
    *high = l.v[1];
}

static void
zero_out(mc_kb *kb, const attend *a)
{
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, a->value), kb_i64(kb, 1), 0, NULL);
    kb_store(kb, kb_const(kb->vf, 0), row_vector(kb, a->out, l.i), 4);
    kb_loop_end(kb, &l);
}

static void
store_rows(mc_kb *kb, const attend *a, LLVMValueRef sum)
{
    LLVMValueRef zero = kb_const(kb->vf, 0), none = kb_fcmp(kb, LLVMRealOEQ, sum, zero); /* sees no key: 0 */
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, a->value), kb_i64(kb, 1), 0, NULL);
    LLVMValueRef p = row_vector(kb, a->out, l.i);
    kb_store(kb, kb_select(kb, none, zero, kb_fdiv(kb, kb_load(kb, kb->vf, p, 4), sum)), p, 4);
    kb_loop_end(kb, &l);
    LLVMValueRef n = kb_min(kb, kb_i64(kb, kb->vl), kb_sub(kb, a->n_rows, a->first));
    kb_loop lanes = kb_loop_begin(kb, kb_i64(kb, 0), n, kb_i64(kb, 1), 0, NULL);
    row r = row_of(kb, a, lanes.i);
    LLVMValueRef o = kb_elem(kb, a->o, r.index, a->value * 4);
    copy_lane(kb, kb_elem(kb, a->out, lanes.i, 4), lane_bytes(kb), o, 4, a->value);
    kb_loop_end(kb, &lanes);
}

/* ---- one block of keys ------------------------------------------------------------------------------------------ */

/* Where the keys come from: slot j of the list, or position j itself. -1 for an empty slot. */
static LLVMValueRef
key_at(mc_kb *kb, const attend *a, LLVMValueRef j)
{
    if (!(a->flags & SELECT)) return j;
    LLVMValueRef key = kb_convert(kb, kb_load(kb, kb->i32, kb_elem(kb, a->list, j, 4), 4), kb->i64);
    return kb_select(kb, kb_icmp(kb, LLVMIntULT, key, a->C), key, kb_i64(kb, -1));
}

static LLVMValueRef
memory_of(mc_kb *kb, LLVMValueRef base, LLVMValueRef step, LLVMValueRef key)
{
    return kb_gep(kb, base, kb_mul(kb, kb_max(kb, key, kb_i64(kb, 0)), step));
}

static LLVMValueRef
finish_score(mc_kb *kb, const attend *a, LLVMValueRef dot, LLVMValueRef key, LLVMValueRef real)
{
    LLVMValueRef s = kb_fmul(kb, dot, a->scale);
    if (a->flags & SOFTCAP) s = kb_fmul(kb, a->cap, kb_tanh(kb, kb_fdiv(kb, s, a->cap)));
    LLVMValueRef c = kb_splat(kb, kb_convert(kb, key, kb->i32), kb->vl);
    LLVMValueRef low = kb_load(kb, kb->vi, a->low, 4), high = kb_load(kb, kb->vi, a->high, 4);
    LLVMValueRef seen = kb_and(kb, kb_icmp(kb, LLVMIntSGE, c, low), kb_icmp(kb, LLVMIntSLE, c, high));
    seen = kb_and(kb, seen, kb_splat(kb, real, kb->vl));
    return kb_select(kb, seen, s, kb_const(kb->vf, -HUGE_VAL));
}

/* Scores of keys first..first+n-1 (n <= KEYS) go to scratch, rounded up to whole tiles with -inf; returns the maxima.
 */
static LLVMValueRef
score_block(mc_kb *kb, const attend *a, LLVMValueRef first, LLVMValueRef n, LLVMValueRef max)
{
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), n, kb_i64(kb, TILE), 1, &max);
    LLVMValueRef keys[TILE], real[TILE], memory[TILE], acc[TILE], last = kb_sub(kb, n, kb_i64(kb, 1));
    for (int u = 0; u < TILE; u++) {
        LLVMValueRef j = kb_add(kb, l.i, kb_i64(kb, u));
        real[u] = kb_icmp(kb, LLVMIntSLT, j, n);
        keys[u] = key_at(kb, a, kb_add(kb, first, kb_min(kb, j, last)));
        memory[u] = memory_of(kb, a->k_base, a->k_step, keys[u]);
    }
    mc_dot_tile(kb, a->qt, a->width, memory, acc);
    if (a->flags & LATENT) {
        for (int u = 0; u < TILE; u++) memory[u] = memory_of(kb, a->rot_base, a->rot_step, keys[u]);
        mc_dot_more(kb, row_vector(kb, a->qt, kb_i64(kb, a->width)), a->rot, memory, acc);
    }
    for (int u = 0; u < TILE; u++) {
        LLVMValueRef s = finish_score(kb, a, acc[u], keys[u], real[u]);
        kb_store(kb, s, row_vector(kb, a->scores, kb_add(kb, l.i, kb_i64(kb, u))), 4);
        l.v[0] = kb_fmax(kb, l.v[0], s);
    }
    kb_loop_end(kb, &l);
    return l.v[0];
}

/* Scores become exp(score - max); returns sum + what they add up to. */
static LLVMValueRef
exp_block(mc_kb *kb, const attend *a, LLVMValueRef n, LLVMValueRef max, LLVMValueRef sum)
{
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), n, kb_i64(kb, 1), 1, &sum);
    LLVMValueRef at = row_vector(kb, a->scores, l.i);
    LLVMValueRef p = kb_exp(kb, kb_fsub(kb, kb_load(kb, kb->vf, at, 4), max));
    kb_store(kb, p, at, 4);
    l.v[0] = kb_fadd(kb, l.v[0], p);
    kb_loop_end(kb, &l);
    return l.v[0];
}

/* Channels j..j+count-1 of the output take this block's values. */
static void
value_tile(mc_kb *kb, const attend *a, LLVMValueRef j, int count, LLVMValueRef first, LLVMValueRef n,
           LLVMValueRef alpha)
{
    LLVMValueRef acc[TILE], base = kb_elem(kb, a->v_base, j, 4);
    for (int u = 0; u < count; u++) {
        LLVMValueRef p = row_vector(kb, a->out, kb_add(kb, j, kb_i64(kb, u)));
        acc[u] = kb_fmul(kb, kb_load(kb, kb->vf, p, 4), alpha);
    }
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), n, kb_i64(kb, 1), count, acc);
    LLVMValueRef p = kb_load(kb, kb->vf, row_vector(kb, a->scores, l.i), 4);
    LLVMValueRef v = memory_of(kb, base, a->v_step, key_at(kb, a, kb_add(kb, first, l.i)));
    for (int u = 0; u < count; u++) l.v[u] = kb_fma(kb, broadcast(kb, kb_gepi(kb, v, u * 4)), p, l.v[u]);
    kb_loop_end(kb, &l);
    for (int u = 0; u < count; u++) {
        kb_store(kb, l.v[u], row_vector(kb, a->out, kb_add(kb, j, kb_i64(kb, u))), 4);
    }
}

static void
value_block(mc_kb *kb, const attend *a, LLVMValueRef first, LLVMValueRef n, LLVMValueRef alpha)
{
    int64_t whole = a->value / TILE * TILE;
    if (whole) {
        kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, whole), kb_i64(kb, TILE), 0, NULL);
        value_tile(kb, a, l.i, TILE, first, n, alpha);
        kb_loop_end(kb, &l);
    }
    if (a->value > whole) value_tile(kb, a, kb_i64(kb, whole), (int)(a->value - whole), first, n, alpha);
}

/* The slots of the list up to the last that is used. */
static LLVMValueRef
list_end(mc_kb *kb, const attend *a)
{
    LLVMValueRef end = kb_i64(kb, 0);
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), a->n_select, kb_i64(kb, 1), 1, &end);
    LLVMValueRef used = kb_icmp(kb, LLVMIntSGE, key_at(kb, a, l.i), kb_i64(kb, 0));
    l.v[0] = kb_select(kb, used, kb_add(kb, l.i, kb_i64(kb, 1)), l.v[0]);
    kb_loop_end(kb, &l);
    return l.v[0];
}

static void
attend_rows(mc_kb *kb, const attend *a)
{
    LLVMValueRef begin, end, zero = kb_const(kb->vf, 0);
    load_rows(kb, a, &begin, &end);
    zero_out(kb, a);
    end = kb_add(kb, end, kb_i64(kb, 1));
    begin = kb_and(kb, begin, kb_i64(kb, -KEYS));
    if (a->flags & SELECT) {
        begin = kb_i64(kb, 0);
        end = list_end(kb, a);
    }
    LLVMValueRef state[2] = {kb_load(kb, kb->vf, a->max, 4), zero}; /* maximum and sum so far */
    if (a->flags & SINKS) { /* a sink is a key whose score is known and whose value is 0 */
        LLVMValueRef any = kb_fcmp(kb, LLVMRealUGT, state[0], kb_const(kb->vf, lowest));
        state[1] = kb_select(kb, any, kb_const(kb->vf, 1.0), zero);
    }
    kb_loop l = kb_loop_begin(kb, begin, end, kb_i64(kb, KEYS), 2, state);
    LLVMValueRef n = kb_min(kb, kb_i64(kb, KEYS), kb_sub(kb, end, l.i));
    LLVMValueRef max = score_block(kb, a, l.i, n, l.v[0]);
    LLVMValueRef alpha = kb_exp(kb, kb_fsub(kb, l.v[0], max));
    LLVMValueRef sum = exp_block(kb, a, n, max, kb_fmul(kb, l.v[1], alpha));
    value_block(kb, a, l.i, n, alpha);
    l.v[0] = max;
    l.v[1] = sum;
    kb_loop_end(kb, &l);
    store_rows(kb, a, l.v[1]);
}

static void
emit_attention(mc_kb *kb, const mc_cpu_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    attend a;
    load_arguments(kb, &a, k);
    kb_loop l = begin_tasks(kb, &a);
    attend_rows(kb, &a);
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

/* ---- selection -------------------------------------------------------------------------------------------------- */

static int64_t
flags_of(const mc_op *op)
{
    int64_t flags = op->opcode == MC_OP_LATENT_SDPA ? LATENT : 0;
    if (mc_attr_bool(op, "causal")) flags |= CAUSAL;
    if (mc_attr_int(op, "window")) flags |= WINDOW;
    if (mc_attr_int(op, "chunk")) flags |= CHUNKED;
    if (mc_attr_float(op, "softcap") != 0) flags |= SOFTCAP;
    if (!(flags & LATENT) && mc_operand(op, 3)) flags |= SINKS;
    if (mc_operand(op, 4)) flags |= SELECT;
    return flags;
}

/* The operands of either op by their part in it. */
typedef struct parts {
    const mc_value *q, *k, *v, *sinks, *select, *q_rot, *k_rot;
} parts;

static parts
parts_of(const mc_op *op)
{
    parts a = {.q = mc_operand(op, 0), .k = mc_operand(op, 1), .select = mc_operand(op, 4)};
    if (op->opcode == MC_OP_LATENT_SDPA) {
        a.v = a.k;
        a.q_rot = mc_operand(op, 2);
        a.k_rot = mc_operand(op, 3);
    } else {
        a.v = mc_operand(op, 2);
        a.sinks = mc_operand(op, 3);
    }
    return a;
}

static void
give_arguments(mc_cpu_plan *p, const mc_op *op, const parts *a)
{
    const mc_value *pointers[] = {a->q, a->k, a->v, mc_result(op, 0), a->sinks, a->select, a->q_rot, a->k_rot};
    for (size_t i = 0; i < sizeof pointers / sizeof *pointers; i++) mc_cpu_ptr(p, pointers[i]);
    for (int i = 0; i < 3; i++) mc_cpu_int(p, a->q->type->dims[i]);
    mc_cpu_int(p, a->k_rot ? mc_dim_const(1) : a->k->type->dims[2]);
    mc_cpu_int(p, a->k->type->dims[1]);
    mc_cpu_const(p, mc_attr_int(op, "window"));
    mc_cpu_const(p, mc_attr_int(op, "chunk"));
    mc_cpu_const(p, mc_cpu_in_state(a->k));
    mc_cpu_const(p, mc_cpu_in_state(a->v));
    mc_cpu_int(p, a->select ? a->select->type->dims[2] : mc_dim_const(0));
    mc_cpu_const(p, a->k_rot && mc_cpu_in_state(a->k_rot));
    mc_cpu_float(p, mc_attr_float(op, "scale"));
    mc_cpu_float(p, mc_attr_float(op, "softcap"));
}

void
mc_cpu_select_attention(mc_cpu_plan *p, const mc_op *op)
{
    parts a = parts_of(op);
    for (int i = 0; i < 4; i++) {
        if (mc_operand(op, i) && mc_operand(op, i)->type->dtype != MOEC_F32) {
            mc_cpu_refuse(p, "an operand is not f32");
            return;
        }
    }
    int64_t params[4] = {[P_WIDTH] = mc_cpu_need_const(p, mc_type_last(a.q->type), "the width of a head"),
                         [P_VALUE] = mc_cpu_need_const(p, mc_type_last(a.v->type), "the width of a value"),
                         [P_FLAGS] = flags_of(op)};
    if (a.k_rot) params[P_ROT] = mc_cpu_need_const(p, mc_type_last(a.k_rot->type), "the width of a rotated key");
    mc_cpu_launch(p, mc_cpu_kernel_get(p, emit_attention, params, 4, "sdpa_%d_%d_%d_%d", (int)params[P_WIDTH],
                                       (int)params[P_ROT], (int)params[P_VALUE], (int)params[P_FLAGS]));
    give_arguments(p, op, &a);
    mc_cpu_scratch(p, scratch_bytes(params[P_WIDTH] + params[P_ROT], params[P_VALUE], p->vl));
}
