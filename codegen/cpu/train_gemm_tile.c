/* The register loop: rows x nr sums, one FMA chain each, k ascending. The sums begin with zero or with what the block
 * of k before has left in memory, so cutting k into blocks changes no bit.
 *
 * a is read by broadcasts, either through one pointer a row (activations where they lie, gathered or not) or from a
 * panel [k][mr] (when k runs over rows). Registers are the budget, as in gemm_tile.c. */
#include "codegen/cpu/train_gemm_parts.h"

#include <assert.h>

enum { MAX_ACCUMULATORS = 24, MAX_ROWS = 8, MAX_VECTORS = 4 };

enum { PARAM_ROWS, PARAM_KC, PARAM_A, PARAM_B, PARAM_C, PARAM_C_STRIDE, PARAM_FIRST, N_PARAMS };

typedef struct tile {
    mc_kb *kb;
    int rows, vectors;
    bool panel;
    LLVMValueRef a[MAX_ROWS]; /* panel: the first only */
} tile;

static void
emit_steps(const tile *t, LLVMValueRef k, int n, LLVMValueRef *acc)
{
    mc_kb *kb = t->kb;
    int64_t nr = kb->target.nr, mr = kb->target.mr;
    LLVMValueRef b = kb_elem(kb, kb_param(kb, PARAM_B), k, nr * 4), a[MAX_ROWS], w[MAX_VECTORS];
    if (t->panel) a[0] = kb_elem(kb, t->a[0], k, mr * 4);
    for (int i = 0; !t->panel && i < t->rows; i++) a[i] = kb_elem(kb, t->a[i], k, 4);
    for (int u = 0; u < n; u++) {
        for (int j = 0; j < t->vectors; j++) w[j] = kb_load(kb, kb->vf, kb_gepi(kb, b, (u * nr + j * kb->vl) * 4), 16);
        for (int i = 0; i < t->rows; i++) {
            LLVMValueRef p = t->panel ? kb_gepi(kb, a[0], (u * mr + i) * 4) : kb_gepi(kb, a[i], 4 * u);
            LLVMValueRef x = kb_splat(kb, kb_load(kb, kb->f32, p, 4), kb->vl);
            for (int j = 0; j < t->vectors; j++) acc[i * t->vectors + j] = kb_fma(kb, x, w[j], acc[i * t->vectors + j]);
        }
    }
}

/* Where each row of c lies. */
static void
rows_of_c(const tile *t, LLVMValueRef *c)
{
    mc_kb *kb = t->kb;
    c[0] = kb_param(kb, PARAM_C);
    for (int i = 1; i < t->rows; i++) c[i] = kb_gep(kb, c[i - 1], kb_param(kb, PARAM_C_STRIDE));
}

static void
begin_sums(const tile *t, LLVMValueRef *acc)
{
    mc_kb *kb = t->kb;
    LLVMValueRef c[MAX_ROWS], zero = LLVMConstNull(kb->vf);
    kb_if first = kb_if_begin(kb, kb_param(kb, PARAM_FIRST));
    kb_else(kb, &first);
    rows_of_c(t, c);
    for (int i = 0; i < t->rows * t->vectors; i++) {
        LLVMValueRef p = kb_gepi(kb, c[i / t->vectors], (int64_t)(i % t->vectors) * kb->vl * 4);
        acc[i] = kb_load(kb, kb->vf, p, 4);
    }
    kb_if_end(kb, &first);
    for (int i = 0; i < t->rows * t->vectors; i++) acc[i] = kb_if_value(kb, &first, zero, acc[i]);
}

static void
emit_tile(tile *t)
{
    mc_kb *kb = t->kb;
    int n_acc = t->rows * t->vectors, unroll = kb->target.unroll;
    assert(n_acc <= MAX_ACCUMULATORS && t->rows <= MAX_ROWS && t->vectors <= MAX_VECTORS);
    assert(n_acc + t->vectors + 1 < kb->target.n_registers);
    LLVMValueRef acc[MAX_ACCUMULATORS], c[MAX_ROWS], zero = kb_i64(kb, 0), kc = kb_param(kb, PARAM_KC);
    t->a[0] = kb_param(kb, PARAM_A);
    for (int i = 0; !t->panel && i < t->rows; i++)
        t->a[i] = kb_load(kb, kb->ptr, kb_gepi(kb, kb_param(kb, PARAM_A), 8 * i), 8);
    begin_sums(t, acc);
    LLVMValueRef whole = kb_and(kb, kc, kb_i64(kb, -(int64_t)unroll));
    kb_loop main_loop = kb_loop_begin(kb, zero, whole, kb_i64(kb, unroll), n_acc, acc);
    emit_steps(t, main_loop.i, unroll, main_loop.v);
    kb_loop_end(kb, &main_loop);
    kb_loop rest = kb_loop_begin(kb, whole, kc, kb_i64(kb, 1), n_acc, main_loop.v);
    emit_steps(t, rest.i, 1, rest.v);
    kb_loop_end(kb, &rest);
    rows_of_c(t, c);
    for (int i = 0; i < n_acc; i++)
        kb_store(kb, rest.v[i], kb_gepi(kb, c[i / t->vectors], (int64_t)(i % t->vectors) * kb->vl * 4), 4);
}

static LLVMValueRef
tile_function(mc_kb *kb, int rows, bool panel)
{
    const char *name = mc_strf(kb->arena, "train_tile_%s%d", panel ? "panel" : "", rows).data;
    LLVMValueRef fn = kb_find(kb, name);
    if (fn) return fn;
    LLVMTypeRef params[N_PARAMS] = {kb->i64, kb->i64, kb->ptr, kb->ptr, kb->ptr, kb->i64, kb->i1};
    fn = kb_function_begin(kb, name, kb->t_void, params, N_PARAMS);
    tile t = {.kb = kb, .rows = rows, .vectors = kb->target.nr / kb->vl, .panel = panel};
    emit_tile(&t);
    kb_function_end(kb, NULL);
    return fn;
}

LLVMValueRef
mc_train_panel_tile(mc_kb *kb)
{
    return tile_function(kb, kb->target.mr, true);
}

LLVMValueRef
mc_train_tile(mc_kb *kb)
{
    LLVMValueRef fn = kb_find(kb, "train_tile"), args[N_PARAMS], tiles[MAX_ROWS];
    if (fn) return fn;
    int n = kb->target.mr;
    assert(n <= MAX_ROWS);
    LLVMTypeRef params[N_PARAMS] = {kb->i64, kb->i64, kb->ptr, kb->ptr, kb->ptr, kb->i64, kb->i1};
    for (int i = 0; i < n; i++) tiles[i] = tile_function(kb, i + 1, false);
    fn = kb_function_begin(kb, "train_tile", kb->t_void, params, N_PARAMS);
    for (int i = 0; i < N_PARAMS; i++) args[i] = kb_param(kb, i);
    LLVMBasicBlockRef after = LLVMAppendBasicBlockInContext(kb->ctx, fn, "after");
    LLVMBasicBlockRef never = LLVMAppendBasicBlockInContext(kb->ctx, fn, "never");
    LLVMValueRef choice = LLVMBuildSwitch(kb->b, args[PARAM_ROWS], never, (unsigned)n);
    for (int i = 0; i < n; i++) {
        LLVMBasicBlockRef block = LLVMAppendBasicBlockInContext(kb->ctx, fn, "rows");
        LLVMAddCase(choice, kb_i64(kb, i + 1), block);
        LLVMPositionBuilderAtEnd(kb->b, block);
        kb_call(kb, tiles[i], args, N_PARAMS);
        LLVMBuildBr(kb->b, after);
    }
    LLVMPositionBuilderAtEnd(kb->b, never);
    LLVMBuildUnreachable(kb->b);
    LLVMPositionBuilderAtEnd(kb->b, after);
    kb_function_end(kb, NULL);
    return fn;
}
