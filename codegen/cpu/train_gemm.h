/* train_gemm: the matrix kernels of training. All operands are plain row-major f32 arrays of the caller; blocks of them
 * are packed into this thread's scratch on the way. Every output element is one f32 FMA chain in ascending k, as in
 * gemm.h, whatever the blocks, the tiles or the number of threads.
 *
 *   rows   y[r] = [residual[r] +] (a[s] W[e] [+ bias[e]])      s = a_rows[r], or r; W[e] = b[e]^T, or b[e] as it lies
 *   down   y[t] = sum over the rows r with tokens[r] = t, ascending, of          zeroed by the kernel
 *                 fma(gates[r], a[r] b[e]^T [+ bias[e]], .), gates absent: 1
 *   dw     y[e][o][i] = [what it holds,] + a[s][o] * (gates[r] * b[t][i]) ...    s = a_rows[r], or r; t = b_rows[r], or
 * r
 *
 * over the rows r in offsets[e]..offsets[e+1]-1; without offsets there is one e and rows 0..ROWS-1. y null (dw): the
 * gradient is not wanted, nothing is done. Absent optional operands are null pointers. */
#ifndef MC_CODEGEN_CPU_TRAIN_GEMM_H
#define MC_CODEGEN_CPU_TRAIN_GEMM_H

#include "codegen/cpu/kb.h"

enum { /* moec_kernel_args.ptr */
       MC_TRAIN_Y = 0,
       MC_TRAIN_A = 1,
       MC_TRAIN_B = 2,
       MC_TRAIN_BIAS = 3,
       MC_TRAIN_OFFSETS = 4,
       MC_TRAIN_A_ROWS = 5, /* down: tokens */
       MC_TRAIN_B_ROWS = 6,
       MC_TRAIN_GATES = 7,
       MC_TRAIN_RESIDUAL = 8
};

enum { /* moec_kernel_args.i */
       MC_TRAIN_GROUPS = 0,
       MC_TRAIN_ROWS = 1,       /* without offsets: how many rows. down: rows of y */
       MC_TRAIN_WIDTH = 2,      /* rows, down: columns of a, the length of a chain. dw: rows of y[e] */
       MC_TRAIN_N = 3,          /* columns of y */
       MC_TRAIN_AS_IT_LIES = 4, /* rows: b[e] is [WIDTH][N], not [N][WIDTH] */
       MC_TRAIN_ACCUMULATE = 5  /* dw: the chain begins with what y holds; else with 0 */
};

typedef enum mc_train_kind { MC_TRAIN_KIND_ROWS, MC_TRAIN_KIND_DOWN, MC_TRAIN_KIND_DW } mc_train_kind;

/* "train_rows": the name under which mc_train_kernel makes the kernel. */
const char *mc_train_kernel_name(mc_train_kind kind);
/* Adds it to the module on first demand. Shapes are run-time arguments. */
const char *mc_train_kernel(mc_kb *kb, mc_train_kind kind);
/* Bytes of scratch that it needs per thread. */
size_t mc_train_scratch_bytes(const mc_cpu_target *target, mc_train_kind kind);

#endif
