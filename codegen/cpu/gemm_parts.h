/* gemm_parts: the layers of a matrix kernel, from the registers outwards. Private to codegen/cpu/gemm*.c.
 *
 *   kernel     gemm.c          groups, this thread's panels, blocks of rows and panels
 *     chain    gemm_chain.c    one tile over all of k: picks the tile function; FP8 runs and their scales
 *       tile   gemm_tile.c     the register loop
 *     finish   gemm_finish.c   bias, activation, residual or weighted sum; the columns that exist
 *
 * A tile leaves its sums in a small buffer on the stack and the finishing function reads them back: some twenty
 * cycles in thousands, for which the register loops are shared by all kernels of one weight dtype. */
#ifndef MC_CODEGEN_CPU_GEMM_PARTS_H
#define MC_CODEGEN_CPU_GEMM_PARTS_H

#include "codegen/cpu/gemm.h"

/* The shapes of tiles: 1..mr rows on one panel; for one and two rows also several panels at once, because a single
 * stream from memory does not keep enough cache misses in flight. */
enum { MC_GEMM_STREAMS_1 = 4, MC_GEMM_STREAMS_2 = 2, MC_GEMM_BLOCK_TILES = 8, MC_GEMM_RUN = 128 };

static inline int
mc_gemm_panels(const mc_cpu_target *t, int shape)
{
    return shape == t->mr ? MC_GEMM_STREAMS_1 : shape == t->mr + 1 ? MC_GEMM_STREAMS_2 : 1;
}

static inline int
mc_gemm_rows(const mc_cpu_target *t, int shape)
{
    return shape < t->mr ? shape + 1 : shape - t->mr + 1;
}

static inline int
mc_gemm_n_shapes(const mc_cpu_target *t)
{
    return t->mr + 2;
}

static inline bool
mc_gemm_is_pair(const mc_gemm_spec *spec)
{
    return spec->kind == MC_GEMM_GATED || spec->kind == MC_GEMM_MOE_UP;
}

/* Columns of y that a panel holds. */
static inline int
mc_gemm_columns(const mc_kb *kb, const mc_gemm_spec *spec)
{
    return mc_gemm_is_pair(spec) ? kb->target.nr / 2 : kb->target.nr;
}

/* void tile(i64 k_begin, i64 k_end, ptr rows, ptr b, i64 b_stride, i64 ahead, ptr out)
 * rows: pointers to the rows of x; b: the first panel, the others b_stride bytes apart; ahead: prefetch distance in
 * bytes, 0 costs nothing; out: f32 [rows][panels * nr], 64-byte aligned. */
LLVMValueRef mc_gemm_tile(mc_kb *kb, moec_dtype weight, int shape);
/* void widen(i64 k, ptr b, ptr out): an FP8 panel as f32, times 2^-8 as in the register loop. */
LLVMValueRef mc_gemm_widen_panel(mc_kb *kb);

/* What a chain needs beside the kernel's own arguments. */
typedef struct mc_gemm_tile_at {
    LLVMValueRef shape; /* i64: row count - 1, or mr and mr + 1 for the streams */
    LLVMValueRef rows, b, b_stride, ahead, out;
    LLVMValueRef group, panel; /* for scales: the group, the first panel, */
    LLVMValueRef panel_step;   /* and how many panels lie between two streams */
} mc_gemm_tile_at;

/* Emits the call. from_scratch: b is a panel that mc_gemm_widen_panel has made. */
void mc_gemm_chain(mc_kb *kb, const mc_gemm_spec *spec, bool from_scratch, const mc_gemm_tile_at *at);

/* void finish(args, ptr sums, i64 sums_stride, i64 n_rows, i64 row, i64 panel, i64 group)
 * sums: this panel's part of a tile's out; sums_stride: bytes between its rows; row: the first row, among all groups.
 */
LLVMValueRef mc_gemm_finish(mc_kb *kb, const mc_gemm_spec *spec);

#endif
