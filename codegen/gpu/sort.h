/* sort: launches of the counting sort of choices by expert (kernels/sort.cuh). */
#ifndef MC_CODEGEN_GPU_SORT_H
#define MC_CODEGEN_GPU_SORT_H

#include "codegen/gpu/kernel.h"

enum { MC_GPU_SORT_CHUNK = 2048, MC_GPU_SORT_EXPERTS = 2048 }; /* of a block; at most */

typedef enum mc_gpu_sort_step { MC_GPU_SORT_FIRST, MC_GPU_SORT_SUMS, MC_GPU_SORT_LAST } mc_gpu_sort_step;

/* Refuses more experts than a block has memory for. */
bool mc_gpu_sort_experts(mc_plan *p, int64_t experts);
/* A step's kernel, with its block and grid. */
mc_gpu_code mc_gpu_sort_code(const char *file, mc_str call, int64_t experts, mc_gpu_sort_step step);
/* The first four integers of every step: n of a group, n - CHUNK, experts, groups. */
void mc_gpu_sort_sizes(mc_plan *p, mc_dim n, int64_t experts, int64_t groups);

#endif
