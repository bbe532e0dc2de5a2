/* moec/gpu.h: running compiled models on an NVIDIA GPU. The same objects and calls as in moec/runtime.h and
 * moec/train.h, with a device:
 *
 *     moec_gpu *gpu;
 *     moec_gpu_open(0, &gpu, &error);
 *     moec_session_options options = {.gpu = gpu};
 *     moec_session_create(model, weights, &options, &session, &error);       a model from moec_model_from_image
 *
 * Rules
 *   - The driver (libcuda.so.1, or $MOEC_CUDA_DRIVER) is looked for by moec_gpu_open, and needed by nothing else.
 *   - A moec_gpu uses the device's primary context, as the CUDA runtime and PyTorch do, and never resets it. It may be
 * used by any number of threads; it outlives its sessions and whatever weights were used with it.
 *   - Streams are the caller's or a session's own. A step only queues work: no allocation, no synchronisation, so it
 * may be captured.
 *   - Addresses of the caller's on the device are at multiples of 16 bytes. Values there are not looked at.
 *   - What fails on the device is MOEC_ERR_DEVICE, with the driver's name for it and what to do; after an error that
 * breaks the context (an illegal address, say, by whatever library) every further call says so: the process must start
 * again.
 */
#ifndef MOEC_GPU_H
#define MOEC_GPU_H

#include "moec/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What an artefact exports as moec_gpu_image_<name>: the image of a model, for moec_model_from_image. A struct, because
 * the linkers of programs copy data of shared libraries, whose size they must know. */
typedef struct moec_gpu_image {
    const void *data;
    size_t n_bytes;
} moec_gpu_image;

typedef struct moec_gpu_info {
    char name[128];  /* "NVIDIA H200" */
    int32_t ordinal; /* among those that CUDA_VISIBLE_DEVICES lets through */
    uint32_t arch;   /* compute capability: 90 is 9.0 */
    uint32_t n_multiprocessors;
    uint32_t shared_bytes; /* that a block may have */
    uint64_t memory_bytes;
} moec_gpu_info;

/* How many devices there are; 0 when there is no driver. */
MOEC_API uint32_t moec_gpu_count(void);

/* Errors: DEVICE (no driver, one that is too old, no device, a context that an earlier error has broken), ARGUMENT (no
 * such ordinal), MEMORY. */
MOEC_API moec_status moec_gpu_open(int32_t ordinal, moec_gpu **out_gpu, moec_error *error) MOEC_MUST_USE;
MOEC_API void moec_gpu_close(moec_gpu *gpu); /* NULL is allowed */
MOEC_API void moec_gpu_describe(const moec_gpu *gpu, moec_gpu_info *out_info);

/* Whether the model has code for this device. Errors: UNSUPPORTED, with the --gpu that is missing. */
MOEC_API moec_status moec_model_check_gpu(const moec_model *model, const moec_gpu *gpu,
                                          moec_error *error) MOEC_MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
