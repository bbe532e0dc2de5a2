/* hopper: the form of matrix products that sm_90a runs (kernels/hopper.cuh). */
#ifndef MC_CODEGEN_GPU_HOPPER_H
#define MC_CODEGEN_GPU_HOPPER_H

#include "codegen/gpu/matmul.h"

/* Gives a product's kernel its other form, where there is one: 16-bit elements of one type, weights by rows. Sizes do
 * not decide here but in the kernel, which falls back to the portable one: launches of many sizes share a kernel. */
void mc_gpu_hopper_product(mc_plan *p, mc_plan_kernel *kernel, const mc_gpu_product *product);

#endif
