/* gpu_code: a model's kernels in a device. Loaded when the model is first used there, kept until the GPU is closed. */
#ifndef MC_RUNTIME_GPU_CODE_H
#define MC_RUNTIME_GPU_CODE_H

#include "runtime/abi_model.h"
#include "runtime/gpu/gpu_device.h"

typedef struct mc_gpu_kernel_code {
    CUmodule module;
    CUfunction function;
    uint32_t code; /* index into abi->gpu->codes */
} mc_gpu_kernel_code;

typedef struct mc_gpu_code {
    struct mc_gpu_code *next;
    uint64_t image; /* hash of the image it came from */
    uint32_t n_kernels;
    mc_gpu_kernel_code kernels[];
} mc_gpu_code;

/* Errors: UNSUPPORTED (a model for CPUs, no code for this device), DEVICE, MEMORY. */
moec_status mc_gpu_code_get(moec_gpu *gpu, const moec_model *model, const mc_gpu_code **out,
                            mc_fault *error) MOEC_MUST_USE;
/* In the GPU's context. */
void mc_gpu_code_free_all(moec_gpu *gpu);

#endif
