/* grad_product: small matrix products out of scratch memory, for kernels that make several of the same block.
 *
 *     out[m][n] (+)= sum over k of a(m, k) * b[k][n]        one FMA chain in ascending k
 *
 * Elements of `a` are broadcast and may lie anyhow; rows of `b` are read in whole vectors, beyond `columns` too. */
#ifndef MC_CODEGEN_CPU_GRAD_PRODUCT_H
#define MC_CODEGEN_CPU_GRAD_PRODUCT_H

#include "codegen/cpu/kb.h"

typedef struct mc_product {
    int64_t a_row, a_step; /* bytes from a(m, k) to a(m + 1, k) and to a(m, k + 1) */
    int64_t b_step;        /* bytes from b[k] to b[k + 1] */
    int64_t columns;       /* of out; nothing is written beyond them */
    int rows;              /* of a register tile, at most mc_product_rows */
    bool adds;             /* the chains go on from what out holds */
} mc_product;

/* Rows of the greatest tile: with two vectors of columns it fills the registers. */
int mc_product_rows(const mc_kb *kb);
/* m rows: whole tiles, then row by row. out_row: bytes between rows of out. */
void mc_product_emit(mc_kb *kb, const mc_product *p, LLVMValueRef a, LLVMValueRef b, LLVMValueRef out,
                     LLVMValueRef out_row, LLVMValueRef m, LLVMValueRef k);

#endif
