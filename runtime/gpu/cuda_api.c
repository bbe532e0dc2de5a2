/* cuda_api: see cuda_api.h. Loading is done at most once and only when somebody asks for a GPU, so that a model for a
 * CPU never touches a driver. */
#include "runtime/gpu/cuda_api.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef CUresult get_proc_address(const char *name, void **out_address, int version, uint64_t flags, int *out_status);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static mc_cuda driver;
static bool loaded;

/* POSIX lets dlsym give functions as void *; C does not say how to convert. */
static void
set(void *function, void *address)
{
    memcpy(function, &address, sizeof address);
}

static moec_status
too_old(int version, const char *missing, mc_fault *error)
{
    return mc_fail(error, MOEC_ERR_DEVICE,
                   "the NVIDIA driver is too old: it speaks CUDA %d.%d, moec needs 12.0 or later (driver 525)%s%s; "
                   "install a newer driver",
                   version / 1000, version % 1000 / 10, missing ? "; it lacks " : "", missing ? missing : "");
}

static moec_status
find_functions(get_proc_address *get, mc_cuda *out, mc_fault *error)
{
    void *address;
    int status;
#define MC_CUDA_FN(name, version, parameters)                                                                          \
    address = NULL;                                                                                                    \
    if (get(#name, &address, version, 0, &status) != CUDA_SUCCESS || !address)                                         \
        return too_old(out->driver_version, #name, error);                                                             \
    set(&out->name, address);
#include "runtime/gpu/cuda_api.def"
#undef MC_CUDA_FN
    return MOEC_OK;
}

static moec_status
start(mc_cuda *cuda, mc_fault *error)
{
    CUresult r = cuda->cuInit(0);
    if (r == CUDA_ERROR_NO_DEVICE)
        return mc_fail(error, MOEC_ERR_DEVICE,
                       "no GPU: the NVIDIA driver sees no device (nvidia-smi lists them; CUDA_VISIBLE_DEVICES may hide "
                       "them)");
    if (r == CUDA_ERROR_STUB_LIBRARY)
        return mc_fail(error, MOEC_ERR_DEVICE,
                       "the libcuda found is the toolkit's stub, not a driver: take the stubs directory out of "
                       "LD_LIBRARY_PATH, or install the NVIDIA driver");
    return mc_cuda_check(cuda, r, "cuInit", error);
}

static moec_status
load(mc_cuda *out, mc_fault *error)
{
    const char *path = getenv("MOEC_CUDA_DRIVER");
    if (!path || !*path) path = "libcuda.so.1";
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *why = dlerror();
        return mc_fail(error, MOEC_ERR_DEVICE,
                       "no NVIDIA driver: %.300s; install one (nvidia-smi must list the GPU), or say where it is in "
                       "MOEC_CUDA_DRIVER",
                       why ? why : path);
    }
    CUresult (*get_version)(int *) = NULL;
    get_proc_address *get = NULL;
    set(&get_version, dlsym(library, "cuDriverGetVersion"));
    set(&get, dlsym(library, "cuGetProcAddress_v2"));
    moec_status s = MOEC_OK;
    if (!get_version || get_version(&out->driver_version) != CUDA_SUCCESS)
        s = mc_fail(error, MOEC_ERR_DEVICE, "%.300s is no CUDA driver: it has no cuDriverGetVersion", path);
    else if (out->driver_version < MC_CUDA_NEEDED || !get)
        s = too_old(out->driver_version, NULL, error);
    if (s == MOEC_OK) s = find_functions(get, out, error);
    if (s == MOEC_OK) s = start(out, error);
    if (s != MOEC_OK) dlclose(library);
    return s;
}

moec_status
mc_cuda_get(const mc_cuda **out, mc_fault *error)
{
    moec_status s = MOEC_OK;
    pthread_mutex_lock(&lock);
    if (!loaded) {
        mc_cuda fresh = {0};
        s = load(&fresh, error);
        if (s == MOEC_OK) driver = fresh;
        loaded = s == MOEC_OK;
    }
    pthread_mutex_unlock(&lock);
    *out = s == MOEC_OK ? &driver : NULL;
    return s;
}

bool
mc_cuda_is_sticky(CUresult r)
{
    return r == CUDA_ERROR_ILLEGAL_ADDRESS || r == CUDA_ERROR_LAUNCH_TIMEOUT || r == CUDA_ERROR_CONTEXT_IS_DESTROYED ||
           r == CUDA_ERROR_ASSERT || (r >= CUDA_ERROR_HARDWARE_STACK_ERROR && r <= CUDA_ERROR_LAUNCH_FAILED) ||
           r == CUDA_ERROR_ECC_UNCORRECTABLE || r == CUDA_ERROR_NVLINK_UNCORRECTABLE;
}

moec_status
mc_cuda_check(const mc_cuda *cuda, CUresult r, const char *call, mc_fault *error)
{
    const char *name = NULL, *text = NULL, *advice = "";
    if (r == CUDA_SUCCESS) return MOEC_OK;
    if (cuda->cuGetErrorName(r, &name) != CUDA_SUCCESS || !name) name = "unknown";
    if (cuda->cuGetErrorString(r, &text) != CUDA_SUCCESS || !text) text = "an error that this driver has no words for";
    if (mc_cuda_is_sticky(r))
        advice = "; the GPU context of this process is lost, by this or by earlier work of this or another library: "
                 "restart the process (compute-sanitizer finds the kernel at fault)";
    else if (r == CUDA_ERROR_OUT_OF_MEMORY)
        advice = "; ask for less (shorter sequences, fewer sequences), or end what else uses the GPU (nvidia-smi)";
    else if (r == CUDA_ERROR_NO_BINARY_FOR_GPU)
        advice = "; compile the model for this GPU (--gpu)";
    else if (r == CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)
        advice = "; the driver was updated while running: restart the machine";
    return mc_fail(error, r == CUDA_ERROR_OUT_OF_MEMORY ? MOEC_ERR_MEMORY : MOEC_ERR_DEVICE, "%s failed: %s (%d): %s%s",
                   call, name, r, text, advice);
}
