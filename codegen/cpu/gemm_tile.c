/* The register loop: rows x panels of accumulators, one FMA chain each, k ascending.
 *
 * Registers are the budget: accumulators, the weights of one step, one broadcast. Weights are widened one vector at a
 * time right before use; nothing else may stay live, or an accumulator is spilled in its own dependency chain and the
 * loop runs at half speed (tests/unit/test_cpu_gemm.c counts spills). */
#include "codegen/cpu/gemm_parts.h"

#include <assert.h>

enum { MAX_ACCUMULATORS = 24, MAX_ROWS = 8, MAX_VECTORS = 4 };

/* 2 vl FP8 weights as f16 bits, which are the values times 2^-8 (the factor is made good when the run is scaled), then
 * as two vectors of f32. */
static void
load_fp8(mc_kb *kb, LLVMValueRef p, LLVMValueRef *out)
{
    int n = 2 * kb->vl, low[32], high[32];
    LLVMTypeRef wide = kb_vector(kb->i16, n);
    LLVMValueRef raw = kb_convert(kb, kb_load(kb, kb_vector(kb->i8, n), p, 1), wide);
    LLVMValueRef half = kb_and(kb, kb_shl(kb, raw, kb_iconst(wide, 7)), kb_iconst(wide, 0xBF80));
    half = kb_bits(kb, half, kb_vector(kb->f16, n));
    for (int i = 0; i < kb->vl; i++) low[i] = i, high[i] = kb->vl + i;
    out[0] = kb_convert(kb, kb_shuffle(kb, half, half, low, kb->vl), kb->vf);
    out[1] = kb_convert(kb, kb_shuffle(kb, half, half, high, kb->vl), kb->vf);
}

/* One panel's weights of one k. */
static void
load_weights(mc_kb *kb, moec_dtype weight, LLVMValueRef p, int vectors, LLVMValueRef *out)
{
    int64_t size = (int64_t)moec_dtype_bytes(weight);
    if (weight == MOEC_F8E4M3)
        for (int j = 0; j < vectors; j += 2) load_fp8(kb, kb_gepi(kb, p, (int64_t)j * kb->vl), &out[j]);
    else
        for (int j = 0; j < vectors; j++)
            out[j] = kb_load_f32(kb, weight, kb_gepi(kb, p, j * size * kb->vl), kb->vl, NULL);
}

typedef struct tile {
    mc_kb *kb;
    moec_dtype weight;
    int rows, panels, vectors; /* vectors of a panel */
    int64_t step_bytes;        /* of a panel, for one k */
    LLVMValueRef row[MAX_ROWS], b[MC_GEMM_STREAMS_1], ahead;
} tile;

/* One step on panel p: its weights, then every row's sums with them. */
static void
emit_panel(const tile *t, int p, LLVMValueRef b, LLVMValueRef *x, LLVMValueRef *acc)
{
    mc_kb *kb = t->kb;
    LLVMValueRef w[MAX_VECTORS];
    load_weights(kb, t->weight, b, t->vectors, w);
    for (int i = 0; i < t->rows; i++) {
        LLVMValueRef a = kb_splat(kb, kb_load(kb, kb->f32, x[i], 4), kb->vl);
        LLVMValueRef *sums = &acc[(i * t->panels + p) * t->vectors];
        for (int j = 0; j < t->vectors; j++) sums[j] = kb_fma(kb, a, w[j], sums[j]);
    }
}

/* Steps k .. k + n - 1; ahead: with prefetches. */
static void
emit_steps(const tile *t, LLVMValueRef k, int n, bool ahead, LLVMValueRef *acc)
{
    mc_kb *kb = t->kb;
    LLVMValueRef base[MC_GEMM_STREAMS_1], a[MAX_ROWS], x[MAX_ROWS];
    for (int p = 0; p < t->panels; p++) base[p] = kb_elem(kb, t->b[p], k, t->step_bytes);
    for (int i = 0; i < t->rows; i++) a[i] = kb_elem(kb, t->row[i], k, 4);
    for (int u = 0; u < n; u++) {
        for (int i = 0; i < t->rows; i++) x[i] = kb_gepi(kb, a[i], 4 * u);
        for (int p = 0; p < t->panels; p++) {
            LLVMValueRef b = kb_gepi(kb, base[p], u * t->step_bytes);
            if (ahead && u * t->step_bytes % 64 == 0) kb_prefetch(kb, kb_gep(kb, b, t->ahead));
            emit_panel(t, p, b, x, acc);
        }
    }
}

static void
emit_tile(tile *t)
{
    mc_kb *kb = t->kb;
    int width = t->panels * t->vectors, n_acc = t->rows * width;
    assert(n_acc <= MAX_ACCUMULATORS && t->rows <= MAX_ROWS && t->vectors <= MAX_VECTORS);
    assert(n_acc + t->vectors + 1 < kb->target.n_registers); /* one spare, for what widening needs */
    LLVMValueRef begin = kb_param(kb, 0), end = kb_param(kb, 1), out = kb_param(kb, 6);
    t->ahead = kb_param(kb, 5);
    t->b[0] = kb_param(kb, 3);
    for (int p = 1; p < t->panels; p++) t->b[p] = kb_gep(kb, t->b[p - 1], kb_param(kb, 4));
    for (int i = 0; i < t->rows; i++) t->row[i] = kb_load(kb, kb->ptr, kb_gepi(kb, kb_param(kb, 2), 8 * i), 8);
    LLVMValueRef zero[MAX_ACCUMULATORS];
    for (int i = 0; i < n_acc; i++) zero[i] = LLVMConstNull(kb->vf);

    int unroll = kb->target.unroll; /* streams: at least a cache line a turn, or they would prefetch each line twice */
    while (t->panels > 1 && unroll * t->step_bytes < 64) unroll *= 2;
    LLVMValueRef whole = kb_and(kb, kb_sub(kb, end, begin), kb_i64(kb, -(int64_t)unroll));
    LLVMValueRef middle = kb_add(kb, begin, whole);
    kb_loop main_loop = kb_loop_begin(kb, begin, middle, kb_i64(kb, unroll), n_acc, zero);
    emit_steps(t, main_loop.i, unroll, true, main_loop.v);
    kb_loop_end(kb, &main_loop);
    if (unroll > 1) {
        kb_loop rest = kb_loop_begin(kb, middle, end, kb_i64(kb, 1), n_acc, main_loop.v);
        emit_steps(t, rest.i, 1, false, rest.v);
        kb_loop_end(kb, &rest);
        for (int i = 0; i < n_acc; i++) main_loop.v[i] = rest.v[i];
    }
    for (int i = 0; i < n_acc; i++) kb_store(kb, main_loop.v[i], kb_gepi(kb, out, (int64_t)i * kb->vl * 4), 16);
}

LLVMValueRef
mc_gemm_tile(mc_kb *kb, moec_dtype weight, int shape)
{
    int rows = mc_gemm_rows(&kb->target, shape), panels = mc_gemm_panels(&kb->target, shape);
    const char *name = mc_strf(kb->arena, "tile_%s_%dx%d", moec_dtype_name(weight), rows, panels).data;
    LLVMValueRef fn = kb_find(kb, name);
    if (fn) return fn;
    LLVMTypeRef params[7] = {kb->i64, kb->i64, kb->ptr, kb->ptr, kb->i64, kb->i64, kb->ptr};
    fn = kb_function_begin(kb, name, kb->t_void, params, 7);
    tile t = {.kb = kb, .weight = weight, .rows = rows, .panels = panels, .vectors = kb->target.nr / kb->vl};
    t.step_bytes = (int64_t)moec_dtype_bytes(weight) * kb->target.nr;
    emit_tile(&t);
    kb_function_end(kb, NULL);
    return fn;
}

LLVMValueRef
mc_gemm_widen_panel(mc_kb *kb)
{
    LLVMValueRef fn = kb_find(kb, "widen_panel");
    if (fn) return fn;
    LLVMTypeRef params[3] = {kb->i64, kb->ptr, kb->ptr};
    fn = kb_function_begin(kb, "widen_panel", kb->t_void, params, 3);
    LLVMValueRef b = kb_param(kb, 1), out = kb_param(kb, 2);
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_param(kb, 0), kb_i64(kb, 1), 0, NULL);
    LLVMValueRef from = kb_elem(kb, b, l.i, kb->target.nr), to = kb_elem(kb, out, l.i, (int64_t)kb->target.nr * 4);
    LLVMValueRef w[MAX_VECTORS];
    int vectors = kb->target.nr / kb->vl;
    load_weights(kb, MOEC_F8E4M3, from, vectors, w);
    for (int j = 0; j < vectors; j++) kb_store(kb, w[j], kb_gepi(kb, to, (int64_t)j * kb->vl * 4), 16);
    kb_loop_end(kb, &l);
    kb_function_end(kb, NULL);
    return fn;
}
