/* Walking rows, and folding one into a number. The one idea: 16 partial results whatever the vector width, then halved
 * in a fixed tree. */
#include "codegen/cpu/rows.h"

enum { FOLD_LANES = 16 };

kb_loop
mc_rows_begin(mc_kb *kb, LLVMValueRef n_rows)
{
    LLVMValueRef begin, end;
    kb_split(kb, n_rows, 1, &begin, &end);
    return kb_loop_begin(kb, begin, end, kb_i64(kb, 1), 0, NULL);
}

kb_loop
mc_rows_dealt(mc_kb *kb, LLVMValueRef n_rows)
{
    return kb_loop_begin(kb, kb_thread(kb), n_rows, kb_n_threads(kb), 0, NULL);
}

void
mc_rows_end(mc_kb *kb, kb_loop *l)
{
    kb_loop_end(kb, l);
}

/* Lanes i + lane < n. */
static LLVMValueRef
mask_below(mc_kb *kb, LLVMValueRef i, LLVMValueRef n)
{
    LLVMValueRef left = kb_convert(kb, kb_sub(kb, n, i), kb->i32); /* may be negative: no lane */
    return kb_icmp(kb, LLVMIntSLT, kb_lane_ids(kb, kb->vl), kb_splat(kb, left, kb->vl));
}

/* One turn over 16 elements from i on, under masks. */
static void
fold_masked(mc_kb *kb, LLVMValueRef i, LLVMValueRef n, int n_acc, LLVMValueRef *acc, mc_fold_step *step, void *context)
{
    for (int v = 0; v < n_acc; v++) {
        LLVMValueRef at = kb_add(kb, i, kb_i64(kb, v * kb->vl)), mask = mask_below(kb, at, n);
        acc[v] = kb_keep(kb, mask, step(kb, context, at, mask, acc[v]), acc[v]);
    }
}

LLVMValueRef
mc_rows_fold(mc_kb *kb, LLVMValueRef n, double init, bool large, mc_fold_step *step, void *context,
             mc_fold_reduce *reduce)
{
    int n_acc = kb->vl < FOLD_LANES ? FOLD_LANES / kb->vl : 1;
    LLVMValueRef acc[FOLD_LANES], next[FOLD_LANES], stride = kb_i64(kb, (int64_t)n_acc * kb->vl);
    for (int v = 0; v < n_acc; v++) acc[v] = kb_const(kb->vf, init);
    LLVMValueRef whole = large ? n : kb_and(kb, n, kb_sub(kb, kb_i64(kb, 0), stride));
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), whole, stride, n_acc, acc);
    if (large) fold_masked(kb, l.i, n, n_acc, l.v, step, context);
    for (int v = 0; v < n_acc && !large; v++) {
        l.v[v] = step(kb, context, kb_add(kb, l.i, kb_i64(kb, v * kb->vl)), NULL, l.v[v]);
    }
    kb_loop_end(kb, &l);
    if (large) return reduce(kb, l.v, n_acc);

    for (int v = 0; v < n_acc; v++) next[v] = l.v[v];
    kb_if rest = kb_if_begin(kb, kb_icmp(kb, LLVMIntSLT, whole, n));
    fold_masked(kb, whole, n, n_acc, next, step, context);
    kb_if_end(kb, &rest);
    for (int v = 0; v < n_acc; v++) acc[v] = kb_if_value(kb, &rest, next[v], l.v[v]);
    return reduce(kb, acc, n_acc);
}
