/* rows: how kernels share an array or a row among threads (the other side: kernels/vectors.cuh, kernels/rows.cuh).
 * Addresses of tensors are multiples of 16 bytes; which elements may be read together follows from sizes that are known
 * when a model is compiled. */
#ifndef MC_CODEGEN_GPU_ROWS_H
#define MC_CODEGEN_GPU_ROWS_H

#include "codegen/gpu/kernel.h"

enum { MC_GPU_FLAT_THREADS = 128 }; /* of a block, where every element is treated by itself */

/* How many neighbours one thread takes: at most 8, 16 bytes of the narrowest type, and n is a multiple of it. */
uint32_t mc_gpu_width(mc_dim n, size_t least_bytes);
/* The smallest element among operands (without absent ones and constants) and results. */
size_t mc_gpu_least_bytes(const mc_op *op);

bool mc_gpu_is_float(moec_dtype dtype); /* kernels read and write it as floats: f32, bf16, f16 */
/* Refuses an op with operands or results of other types. */
bool mc_gpu_need_floats(mc_plan *p, const mc_op *op);

/* The kernel, named after its call: "norm<span<64, 16, 4>, 0, f32>(a);" is norm_span_64_16_4_0_f32_a. */
mc_plan_kernel *mc_gpu_kernel_of(mc_plan *p, const mc_gpu_code *code);

/* The integers of a launch. Those that follow the number of cached positions are given for one position, and the kernel
 * multiplies them (kernels/growth.cuh); its call is "name<...>(a);", and it walks on when its blocks are too few. */
typedef struct mc_gpu_sizes {
    mc_dim items[MOEC_ABI_MAX_INTS];
    int n;
    uint32_t grows; /* bit i: item i does */
} mc_gpu_sizes;

void mc_gpu_sizes_add(mc_plan *p, mc_gpu_sizes *s, mc_dim d);
void mc_gpu_sizes_call(mc_plan *p, const mc_gpu_sizes *s, mc_gpu_code *code); /* once all have been added */
void mc_gpu_sizes_push(mc_plan *p, const mc_gpu_sizes *s);

/* Launches function<span, parameters> along the last axis of x, with its first two integers, rows and d. `code` has the
 * file and the prelude. */
void mc_gpu_rows_launch(mc_plan *p, mc_gpu_code code, const mc_type *x, size_t least_bytes, const char *function,
                        mc_str parameters);

#endif
