/* rows: how kernels that work along the last axis walk it. Each row is computed by one thread from its own elements in
 * one fixed order, so a row's bits depend on nothing else. */
#ifndef MC_CODEGEN_CPU_ROWS_H
#define MC_CODEGEN_CPU_ROWS_H

#include "codegen/cpu/kb.h"

/* for (row in this thread's share of [0, n_rows)) */
kb_loop mc_rows_begin(mc_kb *kb, LLVMValueRef n_rows);
void mc_rows_end(mc_kb *kb, kb_loop *l);
/* The same, dealt out one by one: for rows of rising cost. */
kb_loop mc_rows_dealt(mc_kb *kb, LLVMValueRef n_rows);

/* Folds elements 0..n-1 into lanes: element i goes to lane i mod 16 of the total, so that the result has the same bits
 * on every vector width. `step` gets the index of its first element, a mask (NULL: all) and the lanes so far. A `large`
 * step is emitted for every 16 elements under a mask; others twice, the first time without. */
typedef LLVMValueRef mc_fold_step(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc);
typedef LLVMValueRef mc_fold_reduce(mc_kb *kb, const LLVMValueRef *v, int n);

LLVMValueRef mc_rows_fold(mc_kb *kb, LLVMValueRef n, double init, bool large, mc_fold_step *step, void *context,
                          mc_fold_reduce *reduce);

#endif
