/* Code on the fake device: modules, launches with the checks that a driver makes, and tensor maps. A kernel's library
 * is opened when it is first needed. */
#define _GNU_SOURCE
#include "tests/gpu/fake_cuda.h"

#include "runtime/abi.h"

#include <stdlib.h>
#include <string.h>

struct CUfunc_st {
    CUmodule module;
    emulate_kernel *kernel; /* NULL: not opened yet */
    char name[sizeof(((emulate_image *)0)->name)];
    uint32_t dynamic_shared; /* that launches may ask for */
    bool large_clusters;
};

struct CUmod_st {
    CUcontext context;
    unsigned char *bytes;
    emulate_image image;
    struct CUfunc_st function;
};

/* ---- modules -------------------------------------------------------------------------------------------------------
 */

/* Code for 8.0 runs on every 8.x; sm_90a and sm_100a code runs on nothing else. */
static bool
runs_here(uint32_t code)
{
    uint32_t device = fake_arch();
    return code >= 90 ? code == device : code / 10 == device / 10 && code <= device;
}

CUresult
cuModuleLoadData(CUmodule *out_module, const void *image)
{
    ENTER(true);
    if (fake_is_capturing()) LEAVE(fake_spoil_capture());
    CUmodule m = calloc(1, sizeof *m);
    if (!m) LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
    CUresult r = CUDA_SUCCESS;
    memcpy(&m->image, image, sizeof m->image.magic);
    if (memcmp(m->image.magic, EMULATE_MAGIC, sizeof m->image.magic) != 0) {
        r = fake_refuse(FAKE_INVALID_IMAGE, "this is not code that the fake NVRTC made");
    } else {
        memcpy(&m->image, image, sizeof m->image);
        if (!runs_here(m->image.arch)) r = CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    size_t n = sizeof m->image + m->image.n_bytes;
    if (r == CUDA_SUCCESS && !(m->bytes = malloc(n))) r = CUDA_ERROR_OUT_OF_MEMORY;
    if (r != CUDA_SUCCESS) {
        free(m);
        LEAVE(r);
    }
    memcpy(m->bytes, image, n);
    m->context = fake_context();
    m->function.module = m;
    memcpy(m->function.name, m->image.name, sizeof m->function.name);
    fake_now.modules++;
    *out_module = m;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuModuleUnload(CUmodule module)
{
    ENTER(false);
    if (!module) LEAVE(FAKE_INVALID_HANDLE);
    fake_finish_all(module->context);
    emulate_unload(module->function.kernel);
    free(module->bytes);
    free(module);
    fake_now.modules--;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuModuleGetFunction(CUfunction *out_function, CUmodule module, const char *name)
{
    ENTER(true);
    if (!module) LEAVE(FAKE_INVALID_HANDLE);
    if (strcmp(module->image.name, name) != 0) LEAVE(FAKE_NOT_FOUND);
    *out_function = &module->function;
    LEAVE(CUDA_SUCCESS);
}

/* ---- functions -----------------------------------------------------------------------------------------------------
 */

static CUresult
open_kernel(CUfunction f)
{
    if (!f->kernel) f->kernel = emulate_load(f->module->bytes, f->name);
    return f->kernel ? CUDA_SUCCESS : fake_refuse(CUDA_ERROR_LAUNCH_FAILED, "%s", emulate_error());
}

static uint32_t
static_shared(CUfunction f)
{
    return f->kernel ? (uint32_t)(f->kernel->host->shared_end - f->kernel->host->shared) : 0;
}

CUresult
cuFuncGetAttribute(int *out_value, int attribute, CUfunction function)
{
    ENTER(true);
    if (!function) LEAVE(FAKE_INVALID_HANDLE);
    if (attribute != CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) LEAVE(FAKE_INVALID_VALUE);
    CUresult r = function->module->image.n_bytes ? open_kernel(function) : CUDA_SUCCESS;
    *out_value = (int)static_shared(function);
    LEAVE(r);
}

CUresult
cuFuncSetAttribute(CUfunction function, int attribute, int value)
{
    ENTER(true);
    if (!function || value < 0) LEAVE(FAKE_INVALID_VALUE);
    if (attribute == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) {
        function->large_clusters = value != 0;
    } else if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        if ((uint32_t)value > fake_shared_limit()) LEAVE(FAKE_INVALID_VALUE);
        function->dynamic_shared = (uint32_t)value;
    } else {
        LEAVE(FAKE_INVALID_VALUE);
    }
    LEAVE(CUDA_SUCCESS);
}

/* ---- launches ------------------------------------------------------------------------------------------------------
 */

enum { MAX_YZ = 65535, FREE_SHARED = 48 << 10, PORTABLE_CLUSTER = 8, MAX_CLUSTER = 16 };

static CUresult
check_cluster(const CUlaunchConfig *c, const struct CUfunc_st *f)
{
    for (unsigned i = 0; i < c->numAttrs; i++) {
        if (c->attrs[i].id != CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) continue;
        unsigned x = c->attrs[i].value.clusterDim.x, y = c->attrs[i].value.clusterDim.y;
        unsigned z = c->attrs[i].value.clusterDim.z;
        if (x == 0 || y == 0 || z == 0) return FAKE_INVALID_CLUSTER;
        if (c->gridDimX % x || c->gridDimY % y || c->gridDimZ % z) return FAKE_INVALID_CLUSTER;
        unsigned most = fake_arch() < 90 ? 1 : f->large_clusters ? MAX_CLUSTER : PORTABLE_CLUSTER;
        if ((uint64_t)x * y * z > most) return FAKE_INVALID_CLUSTER;
    }
    return CUDA_SUCCESS;
}

static CUresult
check_launch(const CUlaunchConfig *c, CUfunction f)
{
    uint64_t threads = (uint64_t)c->blockDimX * c->blockDimY * c->blockDimZ;
    if (!c->gridDimX || !c->gridDimY || !c->gridDimZ || !threads)
        return fake_refuse(FAKE_INVALID_VALUE, "%s: an empty grid or block", f->name);
    if (c->gridDimX > INT32_MAX || c->gridDimY > MAX_YZ || c->gridDimZ > MAX_YZ)
        return fake_refuse(FAKE_INVALID_VALUE, "%s: a grid of %u x %u x %u blocks", f->name, c->gridDimX, c->gridDimY,
                           c->gridDimZ);
    if (threads > f->module->image.n_threads)
        return fake_refuse(FAKE_TOO_MANY_RESOURCES, "%s: %llu threads, made for %u", f->name,
                           (unsigned long long)threads, f->module->image.n_threads);
    if (c->sharedMemBytes > FREE_SHARED && c->sharedMemBytes > f->dynamic_shared)
        return fake_refuse(FAKE_INVALID_VALUE, "%s: %u bytes of shared memory without having asked for so many",
                           f->name, c->sharedMemBytes);
    if (c->sharedMemBytes + static_shared(f) > fake_shared_limit())
        return fake_refuse(FAKE_INVALID_VALUE, "%s: %u + %u bytes of shared memory", f->name, c->sharedMemBytes,
                           static_shared(f));
    return check_cluster(c, f);
}

CUresult
cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra)
{
    ENTER(true);
    if (!config || !function || !parameters || extra) LEAVE(FAKE_INVALID_VALUE);
    if (function->module->context != fake_context()) LEAVE(FAKE_INVALID_HANDLE);
    CUresult r = open_kernel(function);
    if (r == CUDA_SUCCESS) r = check_launch(config, function);
    if (r != CUDA_SUCCESS) LEAVE(r);
    fake_work w = {.kind = FAKE_LAUNCH, .function = function, .kept = malloc(sizeof(moec_gpu_args))};
    if (!w.kept) LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
    memcpy(w.kept, parameters[0], sizeof(moec_gpu_args));
    w.launch = (emulate_launch){.grid = {config->gridDimX, config->gridDimY, config->gridDimZ},
                                .block = {config->blockDimX, config->blockDimY, config->blockDimZ},
                                .shared_bytes = config->sharedMemBytes};
    fake_now.launches++;
    LEAVE(fake_append(config->hStream, w));
}

static bool
may_be_read(const void *p)
{
    uint64_t address = (uintptr_t)p;
    return !p || fake_is_memory(address, 0, CU_MEMORYTYPE_DEVICE) || fake_is_memory(address, 0, CU_MEMORYTYPE_HOST);
}

CUresult
fake_run_launch(CUcontext context, const fake_work *w)
{
    const moec_gpu_args *a = w->kept;
    const char *name = w->function->name;
    (void)context;
    for (int i = 0; i < MOEC_ABI_MAX_PTRS; i++)
        if (!may_be_read(a->ptr[i]))
            return fake_refuse(CUDA_ERROR_ILLEGAL_ADDRESS, "%s: ptr[%d] is no memory of the device", name, i);
    if (!may_be_read(a->past) || !may_be_read(a->scratch))
        return fake_refuse(CUDA_ERROR_ILLEGAL_ADDRESS, "%s: past or scratch is no memory of the device", name);
    emulate_launch launch = w->launch;
    launch.order = (uint32_t)fake_number("MOEC_FAKE_ORDER", 0);
    void *params[] = {w->kept};
    if (emulate_run(w->function->kernel, &launch, params)) return CUDA_SUCCESS;
    return fake_refuse(CUDA_ERROR_LAUNCH_FAILED, "%s", emulate_error());
}

/* ---- tensor maps ----------------------------------------------------------------------------------------------------
 */

static unsigned
element_bytes(int dtype)
{
    static const unsigned char bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    return dtype >= 0 && dtype < (int)sizeof bytes ? bytes[dtype] : 0;
}

/* The rules of the driver's reference for maps without interleaving. NULL: none is broken. */
static const char *
broken_rule(unsigned bytes, uint32_t rank, uint64_t address, const uint64_t *dims, const uint64_t *strides,
            const uint32_t *box, const uint32_t *element_strides, int swizzle)
{
    if (!bytes) return "an element type that there is not";
    if (rank < 1 || rank > 5) return "a rank that is not 1 to 5";
    if (address % 16) return "an address that is no multiple of 16";
    for (uint32_t i = 0; i < rank; i++) {
        if (dims[i] < 1 || dims[i] > (uint64_t)1 << 32) return "a dimension that is not 1 to 2^32";
        if (box[i] < 1 || box[i] > 256) return "a box that is not 1 to 256";
        if (element_strides[i] < 1 || element_strides[i] > 8) return "an element stride that is not 1 to 8";
        if (i && (strides[i - 1] % 16 || strides[i - 1] >= (uint64_t)1 << 40))
            return "a stride that is no multiple of 16";
    }
    if (box[0] * bytes % 16) return "an inner box that is no multiple of 16 bytes";
    if (swizzle < 0 || swizzle > 3) return "a swizzle that there is not";
    if (swizzle && box[0] * bytes > 16u << swizzle) return "an inner box greater than the swizzle";
    return NULL;
}

CUresult
cuTensorMapEncodeTiled(CUtensorMap *out_map, int dtype, uint32_t rank, void *address, const uint64_t *dims,
                       const uint64_t *strides, const uint32_t *box, const uint32_t *element_strides, int interleave,
                       int swizzle, int promotion, int fill)
{
    ENTER(true);
    if ((uintptr_t)out_map % 64 || interleave || promotion < 0 || promotion > 3 || fill < 0 || fill > 1)
        LEAVE(FAKE_INVALID_VALUE);
    const char *broken =
        broken_rule(element_bytes(dtype), rank, (uintptr_t)address, dims, strides, box, element_strides, swizzle);
    if (broken) LEAVE(fake_refuse(FAKE_INVALID_VALUE, "a tensor map with %s", broken));
    memset(out_map, 0, sizeof *out_map);
    out_map->opaque[0] = (uintptr_t)address;
    out_map->opaque[1] = (uint64_t)dtype | (uint64_t)rank << 8 | (uint64_t)swizzle << 16;
    for (uint32_t i = 0; i < rank; i++) {
        out_map->opaque[2 + i] = dims[i];
        out_map->opaque[7 + i] = box[i];
    }
    LEAVE(CUDA_SUCCESS);
}
