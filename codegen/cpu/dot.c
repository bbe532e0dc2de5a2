/* Eight chains at once hide the latency of FMA; keys are broadcast from memory. One step of i a turn: with more, LLVM
 * moves loads up until a chain is spilled, which halves the speed (measured). */
#include "codegen/cpu/dot.h"

enum { UNROLLED_VECTORS = 32 };

static void
copy_vector(mc_kb *kb, LLVMValueRef from, LLVMValueRef to, LLVMValueRef mask)
{
    kb_store_f32(kb, MOEC_F32, kb_load_f32(kb, MOEC_F32, from, kb->vl, mask), to, mask);
}

void
mc_copy_row(mc_kb *kb, LLVMValueRef from, LLVMValueRef to, int64_t n)
{
    if (n <= (int64_t)UNROLLED_VECTORS * kb->vl) { /* no branch to mispredict, so that misses of several rows overlap */
        int64_t i = 0;
        for (; i + kb->vl <= n; i += kb->vl) copy_vector(kb, kb_gepi(kb, from, i * 4), kb_gepi(kb, to, i * 4), NULL);
        LLVMValueRef left = kb_splat(kb, kb_i32(kb, (int32_t)(n - i)), kb->vl);
        LLVMValueRef mask = kb_icmp(kb, LLVMIntSLT, kb_lane_ids(kb, kb->vl), left);
        if (i < n) copy_vector(kb, kb_gepi(kb, from, i * 4), kb_gepi(kb, to, i * 4), mask);
        return;
    }
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), kb_i64(kb, n), 0, NULL);
    while (kb_vloop_next(kb, &v)) copy_vector(kb, kb_elem(kb, from, v.i, 4), kb_elem(kb, to, v.i, 4), v.mask);
}

void
mc_dot_tile(mc_kb *kb, LLVMValueRef qt, int64_t width, LLVMValueRef keys, LLVMValueRef *acc)
{
    for (int u = 0; u < MC_DOT_TILE; u++) acc[u] = kb_const(kb->vf, 0);
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, width), kb_i64(kb, 1), MC_DOT_TILE, acc);
    LLVMValueRef q = kb_load(kb, kb->vf, kb_elem(kb, qt, l.i, (int64_t)kb->vl * 4), 4), at = kb_elem(kb, keys, l.i, 4);
    for (int u = 0; u < MC_DOT_TILE; u++) {
        LLVMValueRef k = kb_load(kb, kb->f32, kb_gepi(kb, at, u * width * 4), 4);
        l.v[u] = kb_fma(kb, kb_splat(kb, k, kb->vl), q, l.v[u]);
    }
    kb_loop_end(kb, &l);
    for (int u = 0; u < MC_DOT_TILE; u++) acc[u] = l.v[u];
}
