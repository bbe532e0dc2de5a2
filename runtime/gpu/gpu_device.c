/* Opening a GPU and its memory. The primary context is retained, as every library of a process does, and never reset.
 */
#include "runtime/gpu/gpu_device.h"

#include "runtime/abi_model.h"
#include "runtime/gpu/gpu_code.h"

#include <stdlib.h>

/* ---- host memory of calls -----------------------------------------------------------------------------------------
 */

typedef struct mc_gpu_block {
    struct mc_gpu_block *next;
    size_t n_bytes;
} mc_gpu_block;

enum { BLOCK_HEAD = 64 };
_Static_assert(sizeof(mc_gpu_block) <= BLOCK_HEAD, "what follows the head is aligned");

void *
mc_gpu_block_take(moec_gpu *gpu, size_t n_bytes)
{
    pthread_mutex_lock(&gpu->lock);
    mc_gpu_block **at = &gpu->blocks;
    while (*at && (*at)->n_bytes < n_bytes) at = &(*at)->next;
    mc_gpu_block *block = *at;
    if (block) *at = block->next;
    pthread_mutex_unlock(&gpu->lock);
    if (!block) {
        block = malloc(BLOCK_HEAD + n_bytes);
        if (!block) return NULL;
        block->n_bytes = n_bytes;
    }
    return (unsigned char *)block + BLOCK_HEAD;
}

void
mc_gpu_block_give(moec_gpu *gpu, void *memory)
{
    mc_gpu_block *block = (mc_gpu_block *)(void *)((unsigned char *)memory - BLOCK_HEAD);
    pthread_mutex_lock(&gpu->lock);
    block->next = gpu->blocks;
    gpu->blocks = block;
    pthread_mutex_unlock(&gpu->lock);
}

static void
free_blocks(moec_gpu *gpu)
{
    while (gpu->blocks) {
        mc_gpu_block *block = gpu->blocks;
        gpu->blocks = block->next;
        free(block);
    }
}

/* ---- contexts --------------------------------------------------------------------------------------------------- */

moec_status
mc_gpu_enter(const moec_gpu *gpu, mc_fault *error)
{
    return MC_CUDA(gpu->cuda, error, cuCtxPushCurrent, gpu->context);
}

void
mc_gpu_leave(const moec_gpu *gpu)
{
    CUcontext ours;
    gpu->cuda->cuCtxPopCurrent(&ours);
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

uint32_t
moec_gpu_count(void)
{
    const mc_cuda *cuda;
    mc_fault ignored;
    int n = 0;
    if (mc_cuda_get(&cuda, &ignored) != MOEC_OK || cuda->cuDeviceGetCount(&n) != CUDA_SUCCESS || n < 0) return 0;
    return (uint32_t)n;
}

static moec_status
attribute(const moec_gpu *gpu, int which, uint32_t *out, mc_fault *error)
{
    int value = 0;
    moec_status s = MC_CUDA(gpu->cuda, error, cuDeviceGetAttribute, &value, which, gpu->device);
    *out = (uint32_t)value;
    return s;
}

static moec_status
describe(moec_gpu *gpu, mc_fault *error)
{
    moec_gpu_info *info = &gpu->info;
    uint32_t major = 0, minor = 0, pageable = 0;
    size_t n_bytes = 0;
    moec_status s = MC_CUDA(gpu->cuda, error, cuDeviceGetName, info->name, (int)sizeof info->name - 1, gpu->device);
    if (s == MOEC_OK) s = attribute(gpu, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &major, error);
    if (s == MOEC_OK) s = attribute(gpu, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &minor, error);
    if (s == MOEC_OK) s = attribute(gpu, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &info->n_multiprocessors, error);
    if (s == MOEC_OK)
        s = attribute(gpu, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &info->shared_bytes, error);
    if (s == MOEC_OK) s = attribute(gpu, CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS, &pageable, error);
    if (s == MOEC_OK) s = MC_CUDA(gpu->cuda, error, cuDeviceTotalMem, &n_bytes, gpu->device);
    gpu->reads_host = pageable != 0;
    info->arch = 10 * major + minor;
    info->memory_bytes = n_bytes;
    return s;
}

/* The first call in the context: one that earlier work has broken says so here. */
static moec_status
try_context(const moec_gpu *gpu, mc_fault *error)
{
    size_t unused, total;
    moec_status s = mc_gpu_enter(gpu, error);
    if (s == MOEC_OK) {
        s = MC_CUDA(gpu->cuda, error, cuMemGetInfo, &unused, &total);
        mc_gpu_leave(gpu);
    }
    if (s != MOEC_OK) gpu->cuda->cuDevicePrimaryCtxRelease(gpu->device);
    return s;
}

static moec_status
open_device(moec_gpu *gpu, int32_t ordinal, mc_fault *error)
{
    int n = 0;
    moec_status s = MC_CUDA(gpu->cuda, error, cuDeviceGetCount, &n);
    if (s != MOEC_OK) return s;
    if (ordinal < 0 || ordinal >= n)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "there is no GPU %d: this process sees %d, numbered from 0", ordinal,
                       n);
    gpu->info.ordinal = ordinal;
    s = MC_CUDA(gpu->cuda, error, cuDeviceGet, &gpu->device, ordinal);
    if (s == MOEC_OK) s = describe(gpu, error);
    if (s == MOEC_OK) s = MC_CUDA(gpu->cuda, error, cuDevicePrimaryCtxRetain, &gpu->context, gpu->device);
    return s == MOEC_OK ? try_context(gpu, error) : s;
}

moec_status
moec_gpu_open(int32_t ordinal, moec_gpu **out_gpu, moec_error *error)
{
    mc_fault e = {{0}};
    *out_gpu = NULL;
    moec_gpu *gpu = calloc(1, sizeof *gpu);
    if (!gpu) return mc_give(error, &e, mc_fail(&e, MOEC_ERR_MEMORY, "out of memory"));
    moec_status s = mc_cuda_get(&gpu->cuda, &e);
    if (s == MOEC_OK) s = open_device(gpu, ordinal, &e);
    if (s == MOEC_OK && pthread_mutex_init(&gpu->lock, NULL) != 0) {
        gpu->cuda->cuDevicePrimaryCtxRelease(gpu->device);
        s = mc_fail(&e, MOEC_ERR_MEMORY, "out of memory");
    }
    if (s != MOEC_OK)
        free(gpu);
    else
        *out_gpu = gpu;
    return mc_give(error, &e, s);
}

void
moec_gpu_close(moec_gpu *gpu)
{
    mc_fault ignored;
    if (!gpu) return;
    if (mc_gpu_enter(gpu, &ignored) == MOEC_OK) {
        mc_gpu_code_free_all(gpu);
        mc_gpu_leave(gpu);
    }
    gpu->cuda->cuDevicePrimaryCtxRelease(gpu->device);
    free_blocks(gpu);
    pthread_mutex_destroy(&gpu->lock);
    free(gpu);
}

void
moec_gpu_describe(const moec_gpu *gpu, moec_gpu_info *out_info)
{
    *out_info = gpu->info;
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

moec_status
mc_gpu_alloc(const moec_gpu *gpu, size_t n_bytes, const char *what, CUdeviceptr *out, mc_fault *error)
{
    *out = 0;
    CUresult r = gpu->cuda->cuMemAlloc(out, n_bytes ? n_bytes : 1);
    if (r != CUDA_ERROR_OUT_OF_MEMORY) return mc_cuda_check(gpu->cuda, r, "cuMemAlloc", error);
    size_t unused = 0, total = 0;
    gpu->cuda->cuMemGetInfo(&unused, &total);
    return mc_fail(error, MOEC_ERR_MEMORY,
                   "GPU %d has no room for %s: %.1f MB asked, %.1f of %.1f MB free; ask for less (shorter or fewer "
                   "sequences), or end what else uses the GPU (nvidia-smi)",
                   gpu->info.ordinal, what, (double)n_bytes / 1e6, (double)unused / 1e6, (double)total / 1e6);
}

void
mc_gpu_free(const moec_gpu *gpu, CUdeviceptr at)
{
    mc_fault ignored;
    if (!at || mc_gpu_enter(gpu, &ignored) != MOEC_OK) return;
    gpu->cuda->cuMemFree(at);
    mc_gpu_leave(gpu);
}

moec_status
mc_gpu_check_stream(const moec_gpu *gpu, CUstream stream, mc_fault *error)
{
    CUcontext context = NULL;
    if (!stream) return MOEC_OK;
    moec_status s = MC_CUDA(gpu->cuda, error, cuStreamGetCtx, stream, &context);
    if (s != MOEC_OK || context == gpu->context) return s;
    return mc_fail(
        error, MOEC_ERR_ARGUMENT,
        "the stream belongs to another device or context than GPU %d: give one of this GPU's primary context",
        gpu->info.ordinal);
}

moec_status
mc_gpu_check_pointer(const moec_gpu *gpu, const void *pointer, const char *what, mc_fault *error)
{
    int attributes[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                        CU_POINTER_ATTRIBUTE_IS_MANAGED};
    unsigned type = 0, managed = 0; /* a driver may write four bytes */
    int ordinal = -1;
    void *values[] = {&type, &ordinal, &managed};
    if (!pointer) return MOEC_OK;
    if (mc_gpu_is_misaligned(pointer))
        return mc_fail(error, MOEC_ERR_ARGUMENT, "%s is at an address that is no multiple of %d bytes", what,
                       (int)MC_GPU_POINTER_ALIGN);
    moec_status s = MC_CUDA(gpu->cuda, error, cuPointerGetAttributes, 3, attributes, values, mc_gpu_address(pointer));
    if (s != MOEC_OK || managed || type == CU_MEMORYTYPE_HOST) return s; /* pinned memory is within reach */
    if (type != CU_MEMORYTYPE_DEVICE && !gpu->reads_host)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "%s is memory of the processor; memory of GPU %d is wanted", what,
                       gpu->info.ordinal);
    if (type == CU_MEMORYTYPE_DEVICE && ordinal != gpu->info.ordinal)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "%s lies on GPU %d, but the call is for GPU %d", what, ordinal,
                       gpu->info.ordinal);
    return MOEC_OK;
}
