/* Weights on a GPU: the packed bytes as one block, so that an address on the device is as far from its beginning as on
 * the host. */
#include "runtime/gpu/gpu_weights.h"
#include "runtime/gpu/gpu_session.h"

#include <stdlib.h>

static moec_status
upload(mc_gpu_weights *w, const mc_gpu_weights_source *from, mc_fault *error)
{
    const mc_cuda *cuda = w->gpu->cuda;
    moec_status s = mc_gpu_alloc(w->gpu, from->n_bytes, "weights", &w->data, error);
    if (s == MOEC_OK && from->n_bytes)
        s = MC_CUDA(cuda, error, cuMemcpyHtoDAsync, w->data, from->data, from->n_bytes, NULL);
    if (s == MOEC_OK) s = MC_CUDA(cuda, error, cuStreamSynchronize, NULL);
    for (uint32_t i = 0; s == MOEC_OK && i < from->n_weights; i++)
        w->addresses[i] =
            mc_gpu_pointer(w->data + (CUdeviceptr)((const unsigned char *)from->addresses[i] - from->data));
    return s;
}

moec_status
mc_gpu_weights_make(moec_gpu *gpu, const mc_gpu_weights_source *from, mc_gpu_weights **out, mc_fault *error)
{
    mc_gpu_weights *w = calloc(1, sizeof *w);
    *out = NULL;
    if (w) w->addresses = calloc((size_t)from->n_weights + 1, sizeof *w->addresses);
    if (!w || !w->addresses) {
        free(w);
        return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    }
    w->gpu = gpu;
    moec_status s = upload(w, from, error);
    if (s != MOEC_OK)
        mc_gpu_weights_free(w);
    else
        *out = w;
    return s;
}

void
mc_gpu_weights_free(mc_gpu_weights *w)
{
    mc_gpu_free(w->gpu, w->data);
    free(w->addresses);
    free(w);
}
