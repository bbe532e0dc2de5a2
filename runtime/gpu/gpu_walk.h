/* gpu_walk: the launches of a plan, queued on a stream. */
#ifndef MC_RUNTIME_GPU_WALK_H
#define MC_RUNTIME_GPU_WALK_H

#include "runtime/exec.h"
#include "runtime/gpu/gpu_code.h"

typedef struct mc_gpu_walk {
    moec_gpu *gpu;
    const mc_gpu_code *code;
    mc_exec *x; /* prepared; slab, weights, states and scratch are the device's */
    CUstream stream;
    CUdeviceptr past; /* of an int64; 0: nothing is cached */
    mc_fault *error;
    moec_status status;
} mc_gpu_walk;

/* Bytes of scratch memory that the launches need at the sizes x was prepared for. Errors: RANGE. */
moec_status mc_gpu_scratch_bytes(const mc_exec *x, size_t *out, mc_fault *error) MOEC_MUST_USE;

/* Queues one kernel, in the GPU's context, with a->ptr (on the device), a->i and a->f: w->x has the descriptor,
 * cache_cap and scratch. Gives w->status, which is to be OK before. Errors: DEVICE, RANGE (a grid that is too large).
 */
moec_status mc_gpu_launch(mc_gpu_walk *w, uint32_t kernel, const moec_kernel_args *a) MOEC_MUST_USE;

/* Whether every launch of a run can be made, before the first of them is queued: once for given sizes. Errors: RANGE.
 */
moec_status mc_gpu_walk_check(mc_gpu_walk *w, uint32_t func, uint32_t weight_base, void *const *args) MOEC_MUST_USE;

/* Queues function `func`, in the GPU's context: args are its formals, then its results, on the device. With
 * x->launch_seconds it waits for each launch. Errors: DEVICE. */
moec_status mc_gpu_walk_run(mc_gpu_walk *w, uint32_t func, uint32_t weight_base, void *const *args) MOEC_MUST_USE;

#endif
