/* select: which function turns which op into launches of GPU kernels. Each family's file chooses kernels; the kernels
 * are in the .cuh file of the same name (codegen/gpu/kernels), because the order of arguments is an agreement between
 * the two. */
#ifndef MC_CODEGEN_GPU_SELECT_H
#define MC_CODEGEN_GPU_SELECT_H

#include "codegen/gpu/kernel.h"

extern const mc_plan_backend mc_gpu_backend;

/* THE table: OP(opcode, function) for every op that has kernels; ops that only name memory have `nothing`. */
#define OP(opcode, function) mc_plan_select_fn mc_gpu_select_##function;
#include "codegen/gpu/select.def"
#undef OP

#endif
