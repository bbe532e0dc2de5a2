/* train_gemm_parts: the layers of a training matrix kernel, from the registers outwards. Private to
 * codegen/cpu/train_gemm*.c.
 *
 *   kernel     train_gemm.c          groups, this thread's panels of columns, blocks
 *     pack     train_gemm_pack.c     a block of a or b as micro panels [kc][width]
 *     tile     train_gemm_tile.c     mr x nr sums in registers over one block of k
 *     finish   train_gemm_finish.c   bias, residual, edges; the weighted sum of down */
#ifndef MC_CODEGEN_CPU_TRAIN_GEMM_PARTS_H
#define MC_CODEGEN_CPU_TRAIN_GEMM_PARTS_H

#include "codegen/cpu/train_gemm.h"

/* Steps of k of a block: a panel of b stays in L1. Columns: the block of b and the next one on its way stay in L2; dw
 * fetches nothing ahead but packs a, which pays with more columns. Rows: the block of a stays in L2, too. */
enum {
    MC_TRAIN_KC = 256,
    MC_TRAIN_COLUMNS = 128,
    MC_TRAIN_DW_COLUMNS = 256,
    MC_TRAIN_TILES = 16,
    MC_TRAIN_DOWN_ROWS = 512
};

/* void tile(i64 rows, i64 kc, ptr a, ptr b, ptr c, i64 c_stride, i1 first)
 * c[rows][nr] = [c, unless first] + a b: a: pointers to the rows; b: a panel; c_stride in bytes. */
LLVMValueRef mc_train_tile(mc_kb *kb);
/* The same with a as a panel [kc][mr]; rows is always mr. */
LLVMValueRef mc_train_panel_tile(mc_kb *kb);

/* void transpose(ptr rows, i64 row_bytes, i64 n_rows, i64 kc, ptr panel)
 * panel[k][j] = rows[min(j, n_rows - 1)][k] for j in 0..nr-1; panel has room for kc rounded up to the vector width. */
LLVMValueRef mc_train_transpose(mc_kb *kb);
/* void gather_b(ptr from, i64 row_bytes, ptr rows, i64 first, ptr gates, i64 n_columns, i64 kc, ptr panels,
 *               i64 panel_bytes)
 * panel[j / nr][k][j % nr] = gates[k] * from[s][j], s = rows[k], or first + k; zero where j >= n_columns.
 * gather_a: panels mr wide, without gates; panel_bytes has room for a vector more. */
LLVMValueRef mc_train_gather_b(mc_kb *kb);
LLVMValueRef mc_train_gather_a(mc_kb *kb);

/* void ahead(ptr p, i64 row_bytes, i64 from, i64 to, i64 lines)
 * Asks for cache lines 0..lines-1 of the rows from..to-1 of p. Nothing is read: any address will do. */
LLVMValueRef mc_train_ahead(mc_kb *kb);

/* void finish(ptr c, i64 c_stride, ptr y, i64 y_stride, ptr bias, ptr residual, i64 n_rows, i64 n_columns)
 * y = [residual +] (c [+ bias]) for up to nr columns; residual has the stride of y. Also copies tiles. */
LLVMValueRef mc_train_finish(mc_kb *kb);
/* void scatter(args, ptr c, i64 c_stride, i64 row, i64 n_rows, i64 column, i64 n_columns, ptr bias)
 * y[tokens[r]] = fma(gates[r], c[r] [+ bias], y[tokens[r]]) for the rows from `row` on, in order. */
LLVMValueRef mc_train_scatter(mc_kb *kb);

#endif
