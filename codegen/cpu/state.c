/* Ops whose memory lives across steps: cache and conv1d. The one idea: a position's row is written by one thread, which
 * is also the one that reads it in the same launch, so no barrier is needed inside.
 *
 * cache   ptr: x, state, [y]            i: B, S, C, words a row (of 4 bytes)
 * conv1d  ptr: x, w, bias, state, y     i: B, S, d */
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

static void
copy_words(mc_kb *kb, LLVMValueRef from, LLVMValueRef to, LLVMValueRef also, LLVMValueRef n)
{
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), n, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef e = kb_load_masked(kb, kb->vi, kb_elem(kb, from, v.i, 4), 4, v.mask);
        kb_store_masked(kb, e, kb_elem(kb, to, v.i, 4), 4, v.mask);
        if (also) kb_store_masked(kb, e, kb_elem(kb, also, v.i, 4), 4, v.mask);
    }
}

/* Appends only: rows (b, s) of x go to position past + s. */
static void
emit_append(mc_kb *kb, LLVMValueRef x, LLVMValueRef state, LLVMValueRef n_s, LLVMValueRef words)
{
    LLVMValueRef past = kb_past(kb), cap = kb_cache_cap(kb);
    kb_loop l = mc_rows_begin(kb, kb_mul(kb, kb_arg_int(kb, 0), n_s));
    LLVMValueRef b = kb_udiv(kb, l.i, n_s), s = kb_urem(kb, l.i, n_s);
    LLVMValueRef to = kb_add(kb, kb_mul(kb, b, cap), kb_add(kb, past, s));
    copy_words(kb, kb_elem(kb, x, kb_mul(kb, l.i, words), 4), kb_elem(kb, state, kb_mul(kb, to, words), 4), NULL,
               words);
    mc_rows_end(kb, &l);
}

/* Appends, and copies the whole history out: rows (b, c) of y come from x or from the state. */
static void
emit_append_copy(mc_kb *kb, LLVMValueRef x, LLVMValueRef state, LLVMValueRef n_s, LLVMValueRef words)
{
    LLVMValueRef past = kb_past(kb), cap = kb_cache_cap(kb), y = kb_arg_ptr(kb, 2), n_c = kb_arg_int(kb, 2);
    kb_loop l = mc_rows_begin(kb, kb_mul(kb, kb_arg_int(kb, 0), n_c));
    LLVMValueRef b = kb_udiv(kb, l.i, n_c), c = kb_urem(kb, l.i, n_c);
    LLVMValueRef kept = kb_elem(kb, state, kb_mul(kb, kb_add(kb, kb_mul(kb, b, cap), c), words), 4);
    LLVMValueRef out = kb_elem(kb, y, kb_mul(kb, l.i, words), 4);
    kb_if is_new = kb_if_begin(kb, kb_icmp(kb, LLVMIntSGE, c, past));
    LLVMValueRef s = kb_add(kb, kb_mul(kb, b, n_s), kb_sub(kb, c, past));
    copy_words(kb, kb_elem(kb, x, kb_mul(kb, s, words), 4), kept, out, words);
    kb_else(kb, &is_new);
    copy_words(kb, kept, out, NULL, words);
    kb_if_end(kb, &is_new);
    mc_rows_end(kb, &l);
}

static void
emit_cache(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef x = kb_arg_ptr(kb, 0), state = kb_arg_ptr(kb, 1), n_s = kb_arg_int(kb, 1), words = kb_arg_int(kb, 3);
    (k->p[0] ? emit_append_copy : emit_append)(kb, x, state, n_s, words);
    kb_kernel_end(kb);
}

void
mc_cpu_select_cache(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    mc_dim row = mc_plan_product(p, x->type, 2, x->type->rank);
    int64_t bytes = mc_plan_need_const(p, row, "a row of a cache") * (int64_t)moec_dtype_bytes(x->type->dtype);
    if (bytes % 4) {
        mc_plan_refuse(p, "a position takes %lld bytes, which is not a multiple of 4", (long long)bytes);
        return;
    }
    int64_t copies = !mc_plan_in_state(y);
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_cache, &copies, 1, "cache%s", copies ? "_copy" : ""));
    mc_plan_ptr(p, x);
    mc_plan_ptr_state(p);
    if (copies) mc_plan_ptr(p, y);
    mc_plan_int(p, x->type->dims[0]);
    mc_plan_int(p, x->type->dims[1]);
    mc_plan_int(p, y->type->dims[1]);
    mc_plan_const(p, bytes / 4);
}

/* ---- conv1d ------------------------------------------------------------------------------------------------------ */

enum { MAX_TAPS = 16 };

typedef struct conv {
    LLVMValueRef x, state, y; /* of one sequence, at the first channel of the vector */
    LLVMValueRef w[MAX_TAPS], bias, n_s, d, mask;
    int taps;
} conv;

/* The input at position t of this step: of the history when t < 0. */
static LLVMValueRef
input_at(mc_kb *kb, const conv *c, LLVMValueRef t)
{
    LLVMValueRef old = kb_icmp(kb, LLVMIntSLT, t, kb_i64(kb, 0));
    LLVMValueRef row = kb_select(kb, old, kb_add(kb, t, kb_i64(kb, c->taps - 1)), t);
    LLVMValueRef p = kb_elem(kb, kb_select(kb, old, c->state, c->x), kb_mul(kb, row, c->d), 4);
    return kb_load_f32(kb, MOEC_F32, p, kb->vl, c->mask);
}

static void
convolve(mc_kb *kb, const conv *c)
{
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), c->n_s, kb_i64(kb, 1), 0, NULL);
    LLVMValueRef sum = kb_const(kb->vf, 0);
    for (int j = 0; j < c->taps; j++) {
        sum = kb_fma(kb, input_at(kb, c, kb_add(kb, l.i, kb_i64(kb, j - c->taps + 1))), c->w[j], sum);
    }
    if (c->bias) sum = kb_fadd(kb, sum, c->bias);
    kb_store_f32(kb, MOEC_F32, sum, kb_elem(kb, c->y, kb_mul(kb, l.i, c->d), 4), c->mask);
    kb_loop_end(kb, &l);
    for (int i = 0; i < c->taps - 1; i++) { /* ascending: an old row is read before it is overwritten */
        LLVMValueRef e = input_at(kb, c, kb_add(kb, c->n_s, kb_i64(kb, i - c->taps + 1)));
        LLVMValueRef at = kb_mul(kb, kb_i64(kb, i), c->d);
        kb_store_f32(kb, MOEC_F32, e, kb_elem(kb, c->state, at, 4), c->mask);
    }
}

/* w is [d, 1, taps]: the same tap of neighbouring channels lies `taps` apart. */
static void
load_taps(mc_kb *kb, conv *c, LLVMValueRef w, LLVMValueRef channel)
{
    LLVMValueRef last = kb_sub(kb, c->d, kb_i64(kb, 1));
    for (int j = 0; j < c->taps; j++) c->w[j] = kb_const(kb->vf, 0);
    for (int lane = 0; lane < kb->vl; lane++) {
        LLVMValueRef i = kb_min(kb, kb_add(kb, channel, kb_i64(kb, lane)), last);
        LLVMValueRef p = kb_elem(kb, w, i, (int64_t)c->taps * 4);
        for (int j = 0; j < c->taps; j++) {
            LLVMValueRef e = kb_load(kb, kb->f32, kb_gepi(kb, p, j * 4), 4);
            c->w[j] = LLVMBuildInsertElement(kb->b, c->w[j], e, kb_i32(kb, lane), "");
        }
    }
}

static void
emit_conv1d(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    bool has_bias = k->p[1];
    conv c = {.taps = (int)k->p[0], .n_s = kb_arg_int(kb, 1), .d = kb_arg_int(kb, 2)};
    LLVMValueRef x = kb_arg_ptr(kb, 0), w = kb_arg_ptr(kb, 1), bias = kb_arg_ptr(kb, 2), state = kb_arg_ptr(kb, 3);
    LLVMValueRef y = kb_arg_ptr(kb, 4), vl = kb_i64(kb, kb->vl);
    LLVMValueRef vectors = kb_udiv(kb, kb_add(kb, c.d, kb_i64(kb, kb->vl - 1)), vl);
    kb_loop l = mc_rows_begin(kb, kb_mul(kb, kb_arg_int(kb, 0), vectors));
    LLVMValueRef b = kb_udiv(kb, l.i, vectors), channel = kb_mul(kb, kb_urem(kb, l.i, vectors), vl);
    LLVMValueRef left = kb_convert(kb, kb_sub(kb, c.d, channel), kb->i32);
    c.mask = kb_icmp(kb, LLVMIntSLT, kb_lane_ids(kb, kb->vl), kb_splat(kb, left, kb->vl));
    LLVMValueRef start = kb_add(kb, kb_mul(kb, kb_mul(kb, b, c.n_s), c.d), channel);
    LLVMValueRef kept = kb_add(kb, kb_mul(kb, kb_mul(kb, b, kb_i64(kb, c.taps - 1)), c.d), channel);
    c.x = kb_elem(kb, x, start, 4);
    c.y = kb_elem(kb, y, start, 4);
    c.state = kb_elem(kb, state, kept, 4);
    if (has_bias) c.bias = kb_load_f32(kb, MOEC_F32, kb_elem(kb, bias, channel, 4), kb->vl, c.mask);
    load_taps(kb, &c, w, channel);
    convolve(kb, &c);
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

void
mc_cpu_select_conv1d(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *w = mc_operand(op, 1), *bias = mc_operand(op, 2);
    int64_t params[2] = {mc_plan_need_const(p, w->type->dims[2], "the width of a convolution"), bias != NULL};
    if (params[0] > MAX_TAPS || x->type->dtype != MOEC_F32 || w->type->dtype != MOEC_F32) {
        mc_plan_refuse(p, "it must be in f32 and at most %d wide", (int)MAX_TAPS);
        return;
    }
    mc_plan_launch(p,
                   mc_plan_kernel_get(p, emit_conv1d, params, 2, "conv1d_%d%s", (int)params[0], bias ? "_bias" : ""));
    mc_plan_ptr(p, x);
    mc_plan_ptr(p, w);
    mc_plan_ptr(p, bias);
    mc_plan_ptr_state(p);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, x->type->dims[0]);
    mc_plan_int(p, x->type->dims[1]);
    mc_plan_int(p, x->type->dims[2]);
}
