/* gpu_device: an open GPU, and what is kept with it until it is closed. */
#ifndef MC_RUNTIME_GPU_DEVICE_H
#define MC_RUNTIME_GPU_DEVICE_H

#include "moec/gpu.h"
#include "runtime/gpu/cuda_api.h"

#include <pthread.h>

struct moec_gpu {
    const mc_cuda *cuda;
    CUdevice device;
    CUcontext context; /* the primary one */
    moec_gpu_info info;
    bool reads_host;      /* kernels may read whatever the processor may */
    pthread_mutex_t lock; /* of what follows */
    struct mc_gpu_code *codes;
    struct mc_gpu_block *blocks;
};

/* Makes the GPU's context the calling thread's until leave; calls of the driver stand between the two. Errors: DEVICE.
 */
moec_status mc_gpu_enter(const moec_gpu *gpu, mc_fault *error) MOEC_MUST_USE;
void mc_gpu_leave(const moec_gpu *gpu);

/* At least one byte, 256-byte aligned; `what` is for the message. Errors: MEMORY (with what is free), DEVICE. */
moec_status mc_gpu_alloc(const moec_gpu *gpu, size_t n_bytes, const char *what, CUdeviceptr *out,
                         mc_fault *error) MOEC_MUST_USE;
void mc_gpu_free(const moec_gpu *gpu, CUdeviceptr at); /* 0 is allowed; enters by itself */

/* Whether work for the GPU may go to this stream. Errors: ARGUMENT (a stream of another device or context). */
moec_status mc_gpu_check_stream(const moec_gpu *gpu, CUstream stream, mc_fault *error) MOEC_MUST_USE;

enum { MC_GPU_POINTER_ALIGN = 16 };

static inline bool
mc_gpu_is_misaligned(const void *pointer)
{
    return (uintptr_t)pointer % MC_GPU_POINTER_ALIGN != 0;
}

/* A caller's buffer: at a multiple of 16, in memory that this GPU reads; NULL is let through. `what` ("input x") is for
 * the message. A wrong address would cost the whole process its context. Errors: ARGUMENT, DEVICE. */
moec_status mc_gpu_check_pointer(const moec_gpu *gpu, const void *pointer, const char *what,
                                 mc_fault *error) MOEC_MUST_USE;

/* Host memory for the tables of one call, taken from what earlier calls gave back. NULL: out of memory. */
void *mc_gpu_block_take(moec_gpu *gpu, size_t n_bytes);
void mc_gpu_block_give(moec_gpu *gpu, void *block);

static inline void *
mc_gpu_pointer(CUdeviceptr at)
{
    return (void *)(uintptr_t)at;
}

static inline CUdeviceptr
mc_gpu_address(const void *pointer)
{
    return (CUdeviceptr)(uintptr_t)pointer;
}

#endif
