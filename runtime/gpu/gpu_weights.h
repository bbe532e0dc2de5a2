/* gpu_weights: a copy of packed weights on a GPU. weights.c owns the copies. */
#ifndef MC_RUNTIME_GPU_WEIGHTS_H
#define MC_RUNTIME_GPU_WEIGHTS_H

#include "runtime/gpu/gpu_device.h"

typedef struct mc_gpu_weights {
    struct mc_gpu_weights *next;
    moec_gpu *gpu;
    CUdeviceptr data;
    void **addresses;
} mc_gpu_weights;

typedef struct mc_gpu_weights_source {
    const unsigned char *data; /* all of them, one after another */
    size_t n_bytes;
    void *const *addresses;
    uint32_t n_weights;
} mc_gpu_weights_source;

/* In the GPU's context. Returns when the copy is complete. Errors: MEMORY, DEVICE. */
moec_status mc_gpu_weights_make(moec_gpu *gpu, const mc_gpu_weights_source *from, mc_gpu_weights **out,
                                mc_fault *error) MOEC_MUST_USE;
void mc_gpu_weights_free(mc_gpu_weights *weights);

#endif
