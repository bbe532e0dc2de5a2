/* sdpa and latent_sdpa: attention in one kernel for prefill and decode. The one idea: lanes are query rows. The rows of
 * a block are the (position, query head) pairs that share a key head; every lane runs the same scalar algorithm (online
 * softmax over blocks of MC_ATTEND_KEYS keys that begin at multiples of MC_ATTEND_KEYS), keys and values are broadcast
 * from memory, and nothing is ever added across lanes. So a query's bits depend on nothing but its keys, and odd head
 * sizes need no masks. A block of keys, then of values, is copied together once for up to four vectors of rows. Blocks
 * of very few rows, as in decoding without shared key heads, take another form of the same arithmetic
 * (attention_few.c).
 *
 *     scores[c][lane] = sum_i q[i][lane] * k[c][i]        TILE keys at a time in registers, i ascending
 *     out[j][lane]    = out[j][lane] * alpha + sum_c p[c][lane] * v[c][j]    TILE channels at a time, c ascending
 *
 * In latent_sdpa a key has two parts that lie apart; the first is the value too, and is read once for both. All heads
 * share a key, so blocks of rows are cut smaller when there are more threads than blocks: no bit depends on that.
 *
 * ptr: q, k, v, o, sinks, select, q_rot, k_rot   i: below   f: scale, softcap */
#include "codegen/cpu/attention.h"

#include "codegen/cpu/dot.h"
#include "codegen/cpu/math.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

#include <math.h>

enum { TILE = MC_DOT_TILE };
enum { I_B, I_S, I_H, I_KV, I_C, I_WINDOW, I_CHUNK, I_K_STATE, I_V_STATE, I_SELECT, I_ROT_STATE };
enum { P_WIDTH, P_VALUE, P_FLAGS, P_FEW, P_ROT };

/* Scratch, in floats. Arrays of [vectors][vl] are indexed by the row of the block. */
typedef struct areas {
    int64_t qt, out, scores, low, high, max, sum, alpha, block, total;
} areas;

static areas
lay_out(int64_t width, int64_t value, int vl)
{
    int64_t lanes = (int64_t)MC_ATTEND_VECTORS * vl, at = 0;
    areas a;
    int64_t *const starts[] = {&a.qt, &a.out, &a.scores, &a.low, &a.high, &a.max, &a.sum, &a.alpha, &a.block, &a.total};
    const int64_t sizes[] = {width * lanes,
                             value * lanes,
                             MC_ATTEND_KEYS * lanes,
                             lanes,
                             lanes,
                             lanes,
                             lanes,
                             lanes,
                             MC_ATTEND_KEYS * (width > value ? width : value),
                             0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        *starts[i] = at;
        at += sizes[i];
    }
    return a;
}

static int64_t
lane_bytes(const mc_kb *kb)
{
    return (int64_t)kb->vl * 4;
}

static LLVMValueRef
row_vector(mc_kb *kb, LLVMValueRef base, LLVMValueRef index)
{
    return kb_elem(kb, base, index, lane_bytes(kb));
}

static LLVMValueRef
load_vector(mc_kb *kb, LLVMValueRef base, LLVMValueRef index)
{
    return kb_load(kb, kb->vf, row_vector(kb, base, index), 4);
}

static void
load_scratch(mc_kb *kb, mc_attend *a)
{
    areas at = lay_out(a->width, a->value, kb->vl);
    LLVMValueRef scratch = kb_scratch(kb);
    a->qt = kb_gepi(kb, scratch, at.qt * 4);
    a->out = kb_gepi(kb, scratch, at.out * 4);
    a->scores = kb_gepi(kb, scratch, at.scores * 4);
    a->low = kb_gepi(kb, scratch, at.low * 4);
    a->high = kb_gepi(kb, scratch, at.high * 4);
    a->max = kb_gepi(kb, scratch, at.max * 4);
    a->sum = kb_gepi(kb, scratch, at.sum * 4);
    a->alpha = kb_gepi(kb, scratch, at.alpha * 4);
    a->block = kb_gepi(kb, scratch, at.block * 4);
}

static void
load_arguments(mc_kb *kb, mc_attend *a, const mc_plan_kernel *k)
{
    *a = (mc_attend){.width = k->p[P_WIDTH], .value = k->p[P_VALUE], .flags = k->p[P_FLAGS]};
    a->rot = k->p[P_ROT];
    a->q = kb_arg_ptr(kb, 0);
    a->k = kb_arg_ptr(kb, 1);
    a->v = kb_arg_ptr(kb, 2);
    a->o = kb_arg_ptr(kb, 3);
    if (a->flags & MC_ATTEND_SINKS) a->sinks = kb_arg_ptr(kb, 4);
    if (a->flags & MC_ATTEND_SELECT) a->select = kb_arg_ptr(kb, 5);
    a->S = kb_arg_int(kb, I_S);
    a->H = kb_arg_int(kb, I_H);
    a->KV = kb_arg_int(kb, I_KV);
    a->C = kb_arg_int(kb, I_C);
    a->G = kb_udiv(kb, a->H, a->KV);
    if (a->flags & MC_ATTEND_WINDOW) a->window = kb_arg_int(kb, I_WINDOW);
    if (a->flags & MC_ATTEND_CHUNKED) a->chunk = kb_arg_int(kb, I_CHUNK);
    if (a->flags & MC_ATTEND_SELECT) a->n_select = kb_arg_int(kb, I_SELECT);
    a->scale = kb_splat(kb, kb_arg_float(kb, 0), kb->vl);
    if (a->flags & MC_ATTEND_SOFTCAP) a->cap = kb_splat(kb, kb_arg_float(kb, 1), kb->vl);
    if (a->flags & MC_ATTEND_LATENT) {
        a->q_rot = kb_arg_ptr(kb, 6);
        a->k_rot = kb_arg_ptr(kb, 7);
    }
    a->k_step = kb_mul(kb, a->KV, kb_i64(kb, (a->width - a->rot) * 4));
    a->rot_step = kb_i64(kb, a->rot * 4);
    a->v_step = kb_mul(kb, a->KV, kb_i64(kb, a->value * 4));
    load_scratch(kb, a);
}

/* A sequence's keys: in a cache state there is room for cache_cap positions, else C follow each other. */
static LLVMValueRef
sequence_base(mc_kb *kb, const mc_attend *a, LLVMValueRef p, int state_arg, LLVMValueRef step, int64_t width)
{
    LLVMValueRef in_state = kb_icmp(kb, LLVMIntNE, kb_arg_int(kb, state_arg), kb_i64(kb, 0));
    LLVMValueRef positions = kb_select(kb, in_state, kb_cache_cap(kb), a->C);
    LLVMValueRef at = kb_mul(kb, kb_mul(kb, a->b, positions), step);
    return kb_gep(kb, p, kb_add(kb, at, kb_mul(kb, a->kv, kb_i64(kb, width * 4))));
}

static LLVMValueRef
divide_up(mc_kb *kb, LLVMValueRef n, int64_t by)
{
    return kb_udiv(kb, kb_add(kb, n, kb_i64(kb, by - 1)), kb_i64(kb, by));
}

/* Rows of a block, and how many blocks the rows of a group make. */
static LLVMValueRef
block_rows(mc_kb *kb, const mc_attend *a, LLVMValueRef groups, LLVMValueRef *blocks)
{
    int64_t most = (int64_t)MC_ATTEND_VECTORS * kb->vl;
    *blocks = divide_up(kb, a->n_rows, most);
    if (!(a->flags & MC_ATTEND_LATENT)) return kb_i64(kb, most);
    LLVMValueRef few = kb_icmp(kb, LLVMIntSLT, kb_mul(kb, groups, *blocks), kb_n_threads(kb));
    *blocks = kb_select(kb, few, divide_up(kb, a->n_rows, kb->vl), *blocks);
    return kb_select(kb, few, kb_i64(kb, kb->vl), kb_i64(kb, most));
}

/* Tasks: (sequence, key head, block of rows); with `select` every position has its own keys, so blocks end with it. */
static kb_loop
begin_tasks(mc_kb *kb, mc_attend *a)
{
    bool select = a->flags & MC_ATTEND_SELECT;
    a->n_rows = select ? a->G : kb_mul(kb, a->S, a->G);
    LLVMValueRef positions = select ? a->S : kb_i64(kb, 1), blocks;
    LLVMValueRef groups = kb_mul(kb, kb_mul(kb, kb_arg_int(kb, I_B), a->KV), positions);
    LLVMValueRef rows = block_rows(kb, a, groups, &blocks);
    kb_loop l = mc_rows_dealt(kb, kb_mul(kb, groups, blocks));
    LLVMValueRef left = kb_udiv(kb, l.i, blocks);
    a->first = kb_mul(kb, kb_urem(kb, l.i, blocks), rows);
    a->n_vectors = divide_up(kb, kb_min(kb, rows, kb_sub(kb, a->n_rows, a->first)), kb->vl);
    a->s0 = kb_i64(kb, 0);
    if (select) {
        a->s0 = kb_urem(kb, left, a->S);
        left = kb_udiv(kb, left, a->S);
    }
    a->kv = kb_urem(kb, left, a->KV);
    a->b = kb_udiv(kb, left, a->KV);
    a->k_base = sequence_base(kb, a, a->k, I_K_STATE, a->k_step, a->width - a->rot);
    if (a->rot) a->rot_base = sequence_base(kb, a, a->k_rot, I_ROT_STATE, a->rot_step, a->rot);
    a->v_base = sequence_base(kb, a, a->v, I_V_STATE, a->v_step, a->value);
    if (select) {
        LLVMValueRef row = kb_add(kb, kb_mul(kb, a->b, a->S), a->s0);
        a->list = kb_elem(kb, a->select, kb_mul(kb, row, a->n_select), 4);
    }
    return l;
}

kb_loop
mc_attend_count(mc_kb *kb, LLVMValueRef n, int n_carried, const LLVMValueRef *init)
{
    return kb_loop_begin(kb, kb_i64(kb, 0), n, kb_i64(kb, 1), n_carried, init);
}

/* ---- rows in, rows out ------------------------------------------------------------------------------------------ */

mc_attend_row
mc_attend_row_of(mc_kb *kb, const mc_attend *a, LLVMValueRef r)
{
    r = kb_add(kb, a->first, r);
    mc_attend_row out = {.valid = kb_icmp(kb, LLVMIntSLT, r, a->n_rows)};
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
    kb_loop l = mc_attend_count(kb, kb_i64(kb, n), 0, NULL);
    LLVMValueRef e = kb_load(kb, kb->f32, kb_elem(kb, from, l.i, from_step), 4);
    kb_store(kb, e, kb_elem(kb, to, l.i, to_step), 4);
    kb_loop_end(kb, &l);
}

/* Where the lane of row r begins in an array of [MC_ATTEND_VECTORS][n][vl]. */
static LLVMValueRef
lane_start(mc_kb *kb, LLVMValueRef base, LLVMValueRef r, int64_t n)
{
    LLVMValueRef vl = kb_i64(kb, kb->vl), vector = kb_mul(kb, kb_udiv(kb, r, vl), kb_i64(kb, n * kb->vl));
    return kb_elem(kb, base, kb_add(kb, vector, kb_urem(kb, r, vl)), 4);
}

void
mc_attend_range(mc_kb *kb, const mc_attend *a, LLVMValueRef position, LLVMValueRef *low, LLVMValueRef *high)
{
    LLVMValueRef one = kb_i64(kb, 1);
    *low = kb_i64(kb, 0);
    *high = a->flags & MC_ATTEND_CAUSAL ? position : kb_sub(kb, a->C, one);
    if (a->flags & MC_ATTEND_WINDOW) *low = kb_max(kb, *low, kb_add(kb, kb_sub(kb, position, a->window), one));
    if (a->flags & MC_ATTEND_CHUNKED) {
        LLVMValueRef begin = kb_mul(kb, kb_udiv(kb, position, a->chunk), a->chunk);
        *low = kb_max(kb, *low, begin);
        *high = kb_min(kb, *high, kb_sub(kb, kb_add(kb, begin, a->chunk), one));
    }
}

void
mc_attend_start(mc_kb *kb, const mc_attend *a, LLVMValueRef head, LLVMValueRef *max, LLVMValueRef *sum)
{
    *max = kb_f32(kb, MC_ATTEND_LOWEST);
    *sum = kb_f32(kb, 0);
    if (!(a->flags & MC_ATTEND_SINKS)) return;
    *max = kb_fmax(kb, *max, kb_load(kb, kb->f32, kb_elem(kb, a->sinks, head, 4), 4));
    LLVMValueRef any = kb_fcmp(kb, LLVMRealUGT, *max, kb_f32(kb, MC_ATTEND_LOWEST));
    *sum = kb_select(kb, any, kb_f32(kb, 1), *sum);
}

/* Fills the lanes' queries, key ranges and first sums. *low, *high: the range of all lanes together. */
static void
load_rows(mc_kb *kb, const mc_attend *a, LLVMValueRef *low, LLVMValueRef *high)
{
    LLVMValueRef init[2] = {a->C, kb_i64(kb, -1)};
    kb_loop l = mc_attend_count(kb, kb_mul(kb, a->n_vectors, kb_i64(kb, kb->vl)), 2, init);
    mc_attend_row r = mc_attend_row_of(kb, a, l.i);
    LLVMValueRef lo, hi;
    mc_attend_range(kb, a, r.position, &lo, &hi);
    hi = kb_select(kb, r.valid, hi, kb_i64(kb, -1));
    l.v[0] = kb_select(kb, r.valid, kb_min(kb, l.v[0], lo), l.v[0]);
    l.v[1] = kb_max(kb, l.v[1], hi);
    kb_store(kb, kb_convert(kb, lo, kb->i32), kb_elem(kb, a->low, l.i, 4), 4);
    kb_store(kb, kb_convert(kb, hi, kb->i32), kb_elem(kb, a->high, l.i, 4), 4);
    LLVMValueRef max, sum;
    mc_attend_start(kb, a, r.head, &max, &sum);
    kb_store(kb, max, kb_elem(kb, a->max, l.i, 4), 4);
    kb_store(kb, sum, kb_elem(kb, a->sum, l.i, 4), 4);
    LLVMValueRef to = lane_start(kb, a->qt, l.i, a->width);
    int64_t own = a->width - a->rot;
    copy_lane(kb, kb_elem(kb, a->q, r.index, own * 4), 4, to, lane_bytes(kb), own);
    if (a->rot) {
        LLVMValueRef q = kb_elem(kb, a->q_rot, r.index, a->rot * 4);
        copy_lane(kb, q, 4, kb_gepi(kb, to, own * lane_bytes(kb)), lane_bytes(kb), a->rot);
    }
    kb_loop_end(kb, &l);
    *low = l.v[0];
    *high = l.v[1];
    kb_loop zero = mc_attend_count(kb, kb_mul(kb, a->n_vectors, kb_i64(kb, a->value)), 0, NULL);
    kb_store(kb, kb_const(kb->vf, 0), row_vector(kb, a->out, zero.i), 4);
    kb_loop_end(kb, &zero);
}

static void
store_rows(mc_kb *kb, const mc_attend *a)
{
    LLVMValueRef zero = kb_const(kb->vf, 0), value = kb_i64(kb, a->value);
    kb_loop l = mc_attend_count(kb, kb_mul(kb, a->n_vectors, value), 0, NULL);
    LLVMValueRef p = row_vector(kb, a->out, l.i), sum = load_vector(kb, a->sum, kb_udiv(kb, l.i, value));
    LLVMValueRef none = kb_fcmp(kb, LLVMRealOEQ, sum, zero); /* a row that sees no key gives 0 */
    kb_store(kb, kb_select(kb, none, zero, kb_fdiv(kb, kb_load(kb, kb->vf, p, 4), sum)), p, 4);
    kb_loop_end(kb, &l);
    LLVMValueRef n = kb_min(kb, kb_mul(kb, a->n_vectors, kb_i64(kb, kb->vl)), kb_sub(kb, a->n_rows, a->first));
    kb_loop lanes = mc_attend_count(kb, n, 0, NULL);
    mc_attend_row r = mc_attend_row_of(kb, a, lanes.i);
    LLVMValueRef o = kb_elem(kb, a->o, r.index, a->value * 4);
    copy_lane(kb, lane_start(kb, a->out, lanes.i, a->value), lane_bytes(kb), o, 4, a->value);
    kb_loop_end(kb, &lanes);
}

/* ---- one block of keys ------------------------------------------------------------------------------------------ */

LLVMValueRef
mc_attend_key(mc_kb *kb, const mc_attend *a, LLVMValueRef j)
{
    if (!(a->flags & MC_ATTEND_SELECT)) return j;
    LLVMValueRef key = kb_convert(kb, kb_load(kb, kb->i32, kb_elem(kb, a->list, j, 4), 4), kb->i64);
    return kb_select(kb, kb_icmp(kb, LLVMIntULT, key, a->C), key, kb_i64(kb, -1));
}

/* `width` channels of each key or value, to a->block from channel `at` on, where a row has `row` of them. */
static void
copy_part(mc_kb *kb, const mc_attend *a, LLVMValueRef base, LLVMValueRef step, int64_t width, int64_t at, int64_t row,
          LLVMValueRef first, LLVMValueRef n)
{
    kb_loop l = mc_attend_count(kb, n, 0, NULL);
    LLVMValueRef key = kb_max(kb, mc_attend_key(kb, a, kb_add(kb, first, l.i)), kb_i64(kb, 0));
    LLVMValueRef to = kb_gepi(kb, kb_elem(kb, a->block, l.i, row * 4), at * 4);
    mc_copy_row(kb, kb_gep(kb, base, kb_mul(kb, key, step)), to, width);
    kb_loop_end(kb, &l);
}

void
mc_attend_copy(mc_kb *kb, const mc_attend *a, LLVMValueRef base, LLVMValueRef step, int64_t width, LLVMValueRef first,
               LLVMValueRef n)
{
    copy_part(kb, a, base, step, width, 0, width, first, n);
}

/* Products of the block's keys with one vector of rows, to `scores`; whole tiles, so some past the last key. */
static void
dot_block(mc_kb *kb, const mc_attend *a, LLVMValueRef qt, LLVMValueRef scores, LLVMValueRef n)
{
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), n, kb_i64(kb, TILE), 0, NULL);
    LLVMValueRef acc[TILE];
    mc_dot_tile(kb, qt, a->width, kb_elem(kb, a->block, l.i, a->width * 4), acc);
    LLVMValueRef at = row_vector(kb, scores, l.i);
    for (int u = 0; u < TILE; u++) kb_store(kb, acc[u], kb_gepi(kb, at, u * lane_bytes(kb)), 4);
    kb_loop_end(kb, &l);
}

/* Products become scores, -inf where the row must not look; returns the maximum with `max`. */
static LLVMValueRef
mask_block(mc_kb *kb, const mc_attend *a, LLVMValueRef v, LLVMValueRef scores, LLVMValueRef first, LLVMValueRef n,
           LLVMValueRef max)
{
    LLVMValueRef low = kb_load(kb, kb->vi, row_vector(kb, a->low, v), 4);
    LLVMValueRef high = kb_load(kb, kb->vi, row_vector(kb, a->high, v), 4);
    kb_loop l = mc_attend_count(kb, n, 1, &max);
    LLVMValueRef at = row_vector(kb, scores, l.i), s = kb_fmul(kb, kb_load(kb, kb->vf, at, 4), a->scale);
    if (a->flags & MC_ATTEND_SOFTCAP) s = kb_fmul(kb, a->cap, kb_tanh(kb, kb_fdiv(kb, s, a->cap)));
    LLVMValueRef key = mc_attend_key(kb, a, kb_add(kb, first, l.i));
    LLVMValueRef c = kb_splat(kb, kb_convert(kb, key, kb->i32), kb->vl);
    LLVMValueRef seen = kb_and(kb, kb_icmp(kb, LLVMIntSGE, c, low), kb_icmp(kb, LLVMIntSLE, c, high));
    s = kb_select(kb, seen, s, kb_const(kb->vf, -HUGE_VAL));
    kb_store(kb, s, at, 4);
    l.v[0] = kb_fmax(kb, l.v[0], s);
    kb_loop_end(kb, &l);
    return l.v[0];
}

/* Scores become exp(score - max); returns sum + what they add up to. */
static LLVMValueRef
exp_block(mc_kb *kb, LLVMValueRef scores, LLVMValueRef n, LLVMValueRef max, LLVMValueRef sum)
{
    kb_loop l = mc_attend_count(kb, n, 1, &sum);
    LLVMValueRef at = row_vector(kb, scores, l.i);
    LLVMValueRef p = kb_exp(kb, kb_fsub(kb, kb_load(kb, kb->vf, at, 4), max));
    kb_store(kb, p, at, 4);
    l.v[0] = kb_fadd(kb, l.v[0], p);
    kb_loop_end(kb, &l);
    return l.v[0];
}

/* Whether some row of vector v may see keys first..first+MC_ATTEND_KEYS-1. To skip the others changes no bit of their
 * results. */
static LLVMValueRef
sees_block(mc_kb *kb, const mc_attend *a, LLVMValueRef v, LLVMValueRef first)
{
    if (a->flags & MC_ATTEND_SELECT) return kb_bool(kb, true);
    LLVMValueRef begin = kb_splat(kb, kb_convert(kb, first, kb->i32), kb->vl);
    LLVMValueRef end = kb_add(kb, begin, kb_iconst(kb->vi, MC_ATTEND_KEYS)), at = row_vector(kb, a->low, v);
    LLVMValueRef low = kb_icmp(kb, LLVMIntSLT, kb_load(kb, kb->vi, at, 4), end);
    at = row_vector(kb, a->high, v);
    LLVMValueRef both = kb_and(kb, low, kb_icmp(kb, LLVMIntSGE, kb_load(kb, kb->vi, at, 4), begin));
    LLVMValueRef args[1] = {both};
    LLVMTypeRef type = LLVMTypeOf(both);
    return kb_intrinsic(kb, "llvm.vector.reduce.or", &type, 1, args, 1);
}

/* From the block's keys to the weights of its values, for every vector of rows. */
static void
weigh_block(mc_kb *kb, const mc_attend *a, LLVMValueRef first, LLVMValueRef n)
{
    kb_loop l = mc_attend_count(kb, a->n_vectors, 0, NULL);
    kb_if sees = kb_if_begin(kb, sees_block(kb, a, l.i, first));
    LLVMValueRef scores = kb_elem(kb, a->scores, l.i, MC_ATTEND_KEYS * lane_bytes(kb));
    dot_block(kb, a, kb_elem(kb, a->qt, l.i, a->width * lane_bytes(kb)), scores, n);
    LLVMValueRef old = load_vector(kb, a->max, l.i), max = mask_block(kb, a, l.i, scores, first, n, old);
    LLVMValueRef alpha = kb_exp(kb, kb_fsub(kb, old, max)), sum = load_vector(kb, a->sum, l.i);
    sum = exp_block(kb, scores, n, max, kb_fmul(kb, sum, alpha));
    kb_store(kb, max, row_vector(kb, a->max, l.i), 4);
    kb_store(kb, sum, row_vector(kb, a->sum, l.i), 4);
    kb_store(kb, alpha, row_vector(kb, a->alpha, l.i), 4);
    kb_if_end(kb, &sees);
    kb_loop_end(kb, &l);
}

/* Channels j..j+count-1 of one vector of rows take the block's values. */
static void
value_tile(mc_kb *kb, const mc_attend *a, LLVMValueRef out, LLVMValueRef scores, LLVMValueRef alpha, LLVMValueRef j,
           int count, LLVMValueRef n)
{
    int64_t row = a->rot ? a->width : a->value; /* latents are keys and values in one */
    LLVMValueRef acc[TILE], base = kb_elem(kb, a->block, j, 4), to = row_vector(kb, out, j);
    for (int u = 0; u < count; u++) {
        acc[u] = kb_fmul(kb, kb_load(kb, kb->vf, kb_gepi(kb, to, u * lane_bytes(kb)), 4), alpha);
    }
    kb_loop l = mc_attend_count(kb, n, count, acc);
    LLVMValueRef p = load_vector(kb, scores, l.i), v = kb_elem(kb, base, l.i, row * 4);
    for (int u = 0; u < count; u++) {
        LLVMValueRef x = kb_load(kb, kb->f32, kb_gepi(kb, v, u * 4), 4);
        l.v[u] = kb_fma(kb, kb_splat(kb, x, kb->vl), p, l.v[u]);
    }
    kb_loop_end(kb, &l);
    for (int u = 0; u < count; u++) kb_store(kb, l.v[u], kb_gepi(kb, to, u * lane_bytes(kb)), 4);
}

static void
add_values(mc_kb *kb, const mc_attend *a, LLVMValueRef first, LLVMValueRef n)
{
    int64_t whole = a->value / TILE * TILE;
    kb_loop v = mc_attend_count(kb, a->n_vectors, 0, NULL);
    kb_if sees = kb_if_begin(kb, sees_block(kb, a, v.i, first));
    LLVMValueRef out = kb_elem(kb, a->out, v.i, a->value * lane_bytes(kb)), alpha = load_vector(kb, a->alpha, v.i);
    LLVMValueRef scores = kb_elem(kb, a->scores, v.i, MC_ATTEND_KEYS * lane_bytes(kb));
    if (whole) {
        kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, whole), kb_i64(kb, TILE), 0, NULL);
        value_tile(kb, a, out, scores, alpha, l.i, TILE, n);
        kb_loop_end(kb, &l);
    }
    if (a->value > whole) value_tile(kb, a, out, scores, alpha, kb_i64(kb, whole), (int)(a->value - whole), n);
    kb_if_end(kb, &sees);
    kb_loop_end(kb, &v);
}

LLVMValueRef
mc_attend_list_end(mc_kb *kb, const mc_attend *a)
{
    LLVMValueRef end = kb_i64(kb, 0);
    kb_loop l = mc_attend_count(kb, a->n_select, 1, &end);
    LLVMValueRef used = kb_icmp(kb, LLVMIntSGE, mc_attend_key(kb, a, l.i), kb_i64(kb, 0));
    l.v[0] = kb_select(kb, used, kb_add(kb, l.i, kb_i64(kb, 1)), l.v[0]);
    kb_loop_end(kb, &l);
    return l.v[0];
}

static void
attend_rows(mc_kb *kb, const mc_attend *a)
{
    LLVMValueRef begin, end;
    load_rows(kb, a, &begin, &end);
    end = kb_add(kb, end, kb_i64(kb, 1));
    begin = kb_and(kb, begin, kb_i64(kb, -MC_ATTEND_KEYS));
    if (a->flags & MC_ATTEND_SELECT) {
        begin = kb_i64(kb, 0);
        end = mc_attend_list_end(kb, a);
    }
    kb_loop l = kb_loop_begin(kb, begin, end, kb_i64(kb, MC_ATTEND_KEYS), 0, NULL);
    LLVMValueRef n = kb_min(kb, kb_i64(kb, MC_ATTEND_KEYS), kb_sub(kb, end, l.i));
    int64_t own = a->width - a->rot;
    copy_part(kb, a, a->k_base, a->k_step, own, 0, a->width, l.i, n);
    if (a->rot) copy_part(kb, a, a->rot_base, a->rot_step, a->rot, own, a->width, l.i, n);
    weigh_block(kb, a, l.i, n);
    if (!a->rot) mc_attend_copy(kb, a, a->v_base, a->v_step, a->value, l.i, n);
    add_values(kb, a, l.i, n);
    kb_loop_end(kb, &l);
    store_rows(kb, a);
}

static void
emit_attention(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    mc_attend a;
    load_arguments(kb, &a, k);
    kb_loop l = begin_tasks(kb, &a);
    if (k->p[P_FEW]) {
        LLVMValueRef rows = kb_sub(kb, a.n_rows, a.first);
        kb_if few = kb_if_begin(kb, kb_icmp(kb, LLVMIntSLE, rows, kb_i64(kb, MC_ATTEND_FEW)));
        mc_attend_few(kb, &a);
        kb_else(kb, &few);
        attend_rows(kb, &a);
        kb_if_end(kb, &few);
    } else {
        attend_rows(kb, &a);
    }
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

/* ---- selection -------------------------------------------------------------------------------------------------- */

static int64_t
flags_of(const mc_op *op)
{
    int64_t flags = op->opcode == MC_OP_LATENT_SDPA ? MC_ATTEND_LATENT : 0;
    if (mc_attr_bool(op, "causal")) flags |= MC_ATTEND_CAUSAL;
    if (mc_attr_int(op, "window")) flags |= MC_ATTEND_WINDOW;
    if (mc_attr_int(op, "chunk")) flags |= MC_ATTEND_CHUNKED;
    if (mc_attr_float(op, "softcap") != 0) flags |= MC_ATTEND_SOFTCAP;
    if (!(flags & MC_ATTEND_LATENT) && mc_operand(op, 3)) flags |= MC_ATTEND_SINKS;
    if (mc_operand(op, 4)) flags |= MC_ATTEND_SELECT;
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
give_arguments(mc_plan *p, const mc_op *op, const parts *a)
{
    const mc_value *pointers[] = {a->q, a->k, a->v, mc_result(op, 0), a->sinks, a->select, a->q_rot, a->k_rot};
    for (size_t i = 0; i < sizeof pointers / sizeof *pointers; i++) mc_plan_ptr(p, pointers[i]);
    for (int i = 0; i < 3; i++) mc_plan_int(p, a->q->type->dims[i]);
    mc_plan_int(p, a->k_rot ? mc_dim_const(1) : a->k->type->dims[2]);
    mc_plan_int(p, a->k->type->dims[1]);
    mc_plan_const(p, mc_attr_int(op, "window"));
    mc_plan_const(p, mc_attr_int(op, "chunk"));
    mc_plan_const(p, mc_plan_in_state(a->k));
    mc_plan_const(p, mc_plan_in_state(a->v));
    mc_plan_int(p, a->select ? a->select->type->dims[2] : mc_dim_const(0));
    mc_plan_const(p, a->k_rot && mc_plan_in_state(a->k_rot));
    mc_plan_float(p, mc_attr_float(op, "scale"));
    mc_plan_float(p, mc_attr_float(op, "softcap"));
}

void
mc_cpu_select_attention(mc_plan *p, const mc_op *op)
{
    parts a = parts_of(op);
    for (int i = 0; i < 4; i++) {
        if (mc_operand(op, i) && mc_operand(op, i)->type->dtype != MOEC_F32) {
            mc_plan_refuse(p, "an operand is not f32");
            return;
        }
    }
    int64_t width = mc_plan_need_const(p, mc_type_last(a.q->type), "the width of a head");
    int64_t value = mc_plan_need_const(p, mc_type_last(a.v->type), "the width of a value");
    int64_t rot = a.k_rot ? mc_plan_need_const(p, mc_type_last(a.k_rot->type), "the width of a rotated key") : 0;
    mc_dim group; /* query heads of a key head: a step of one position has as many rows */
    bool few = !a.k_rot && mc_dim_div(a.q->type->dims[2], a.k->type->dims[2], &group) &&
               mc_plan_need_const(p, group, "the number of heads") <= MC_ATTEND_FEW;
    width += rot;
    int64_t params[5] = {[P_WIDTH] = width, [P_VALUE] = value, [P_FLAGS] = flags_of(op), [P_FEW] = few, [P_ROT] = rot};
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_attention, params, 5, "sdpa_%d_%d_%d%s", (int)width, (int)value,
                                         (int)params[P_FLAGS], few ? "_few" : ""));
    give_arguments(p, op, &a);
    mc_plan_scratch(p, (uint64_t)lay_out(width, value, p->vl).total * 4);
}
