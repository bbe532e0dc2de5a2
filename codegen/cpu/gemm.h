/* gemm: the matrix kernels. Every output element is one f32 FMA chain in ascending k, whatever the tile, the number of
 * rows or of threads, so results are bit-identical in all of them. With FP8 weights and scales each run of 128 k is
 * such a chain, and the runs are added up in order by fma(run, scale, total).
 *
 * All kernels share one layout of arguments; they use what applies. Absent optional operands are null pointers. x, y,
 * bias, scale, gates are f32, offsets and tokens i32; strides count elements. A "group" is an expert; dense kernels
 * have one.
 *
 *   linear      y[r] = [residual[r] +] (x[r] W^T [+ bias])                            r in 0..rows-1, W panels
 *   gated       y[r] = act(x[r] Wg^T [+ bias]) * (x[r] Wu^T [+ bias2])                 W pair_panels
 *   moe_up      y[r] = act(x[t] Wg[e]^T [+ bias[e]]) * (x[t] Wu[e]^T [+ bias2[e]])    r in offsets[e]..offsets[e+1]-1,
 *                                                                                     t = tokens[r]
 *   grouped     y[r] = x[r] W[e]^T [+ bias[e]]                                        r as above
 *   moe_down    y[t] = sum over the rows r with tokens[r] = t, ascending, of          zeroed by the kernel
 *                      fma(gates[r], x[r] W[e]^T [+ bias[e]], .), gates absent: 1
 *
 * FP8 weights (f8e4m3): scale is [groups, ceil(N/128), ceil(K/128)], of W or Wg; scale2 of Wu. The kernels decode the
 * format's NaN codes 0x7F and 0xFF as 480: whoever packs weights must refuse them. */
#ifndef MC_CODEGEN_CPU_GEMM_H
#define MC_CODEGEN_CPU_GEMM_H

#include "codegen/cpu/kb.h"
#include "codegen/cpu/math.h"

enum { /* moec_kernel_args.ptr */
       MC_GEMM_Y = 0,
       MC_GEMM_X = 1,
       MC_GEMM_W = 2,
       MC_GEMM_BIAS = 3,
       MC_GEMM_SCALE = 4,
       MC_GEMM_BIAS2 = 5,
       MC_GEMM_SCALE2 = 6,
       MC_GEMM_OFFSETS = 7,
       MC_GEMM_TOKENS = 8,
       MC_GEMM_GATES = 9,
       MC_GEMM_RESIDUAL = 10
};

enum {                   /* moec_kernel_args.i */
       MC_GEMM_ROWS = 0, /* linear, gated: rows of x. The others: groups */
       MC_GEMM_K = 1,
       MC_GEMM_N = 2, /* columns of y: of one of the two matrices when gated */
       MC_GEMM_X_STRIDE = 3,
       MC_GEMM_Y_STRIDE = 4,
       MC_GEMM_RESIDUAL_STRIDE = 5,
       MC_GEMM_Y_ROWS = 6 /* moe_down: rows of y */
};

typedef enum mc_gemm_kind {
    MC_GEMM_LINEAR,
    MC_GEMM_GATED,
    MC_GEMM_MOE_UP,
    MC_GEMM_GROUPED,
    MC_GEMM_MOE_DOWN
} mc_gemm_kind;

typedef struct mc_gemm_spec {
    mc_gemm_kind kind;
    moec_dtype weight; /* bf16, f16, f32, f8e4m3 */
    mc_act act;        /* gated and moe_up */
} mc_gemm_spec;

/* Can weights of this dtype be read? */
bool mc_gemm_has_weight(moec_dtype weight);
/* The name of the kernel, which is made in the module on first demand. Shapes are run-time arguments, so models need
 * few. */
const char *mc_gemm_kernel(mc_kb *kb, const mc_gemm_spec *spec);
/* Bytes of scratch that the kernel needs per thread for this K. */
size_t mc_gemm_scratch_bytes(const mc_cpu_target *target, const mc_gemm_spec *spec, int64_t k);

#endif
