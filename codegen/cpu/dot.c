/* Eight chains at once hide the latency of FMA; keys are broadcast from memory, so they may lie anywhere. */
#include "codegen/cpu/dot.h"

void
mc_dot_more(mc_kb *kb, LLVMValueRef qt, int64_t width, const LLVMValueRef *key, LLVMValueRef *acc)
{
    int unroll = width % 4 == 0 ? 4 : width % 2 == 0 ? 2 : 1;
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, width), kb_i64(kb, unroll), MC_DOT_TILE, acc);
    for (int n = 0; n < unroll; n++) {
        LLVMValueRef i = kb_add(kb, l.i, kb_i64(kb, n));
        LLVMValueRef q = kb_load(kb, kb->vf, kb_elem(kb, qt, i, (int64_t)kb->vl * 4), 4);
        for (int u = 0; u < MC_DOT_TILE; u++) {
            LLVMValueRef k = kb_load(kb, kb->f32, kb_elem(kb, key[u], i, 4), 4);
            l.v[u] = kb_fma(kb, kb_splat(kb, k, kb->vl), q, l.v[u]);
        }
    }
    kb_loop_end(kb, &l);
    for (int u = 0; u < MC_DOT_TILE; u++) acc[u] = l.v[u];
}

void
mc_dot_tile(mc_kb *kb, LLVMValueRef qt, int64_t width, const LLVMValueRef *key, LLVMValueRef *acc)
{
    for (int u = 0; u < MC_DOT_TILE; u++) acc[u] = kb_const(kb->vf, 0);
    mc_dot_more(kb, qt, width, key, acc);
}
