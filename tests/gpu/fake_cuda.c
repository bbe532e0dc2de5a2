/* A CUDA driver whose device is this process: errors, devices, contexts, and the switches that tests turn (README.md).
 */
#define _GNU_SOURCE
#include "tests/gpu/fake_cuda.h"
#include "tests/gpu/fake_lock.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PUBLIC __attribute__((visibility("default")))

enum { MAX_DEPTH = 16, MAX_ALL_FUNCTIONS = 128 };

fake_stats fake_now;

static fake_lock lock = FAKE_LOCK;
static bool initialized;
static struct CUctx_st contexts[FAKE_MAX_DEVICES];
static _Thread_local CUcontext current[MAX_DEPTH];
static _Thread_local int depth;

/* ---- switches ---------------------------------------------------------------------------------------------------- */

int
fake_number(const char *variable, int otherwise)
{
    const char *text = getenv(variable);
    return text && *text ? atoi(text) : otherwise;
}

uint32_t
fake_arch(void)
{
    const char *text = getenv("MOEC_FAKE_ARCH");
    unsigned major = 8, minor = 0;
    if (text && sscanf(text, "%u.%u", &major, &minor) != 2) return 80;
    return major * 10 + minor;
}

size_t
fake_memory_limit(void)
{
    const char *text = getenv("MOEC_FAKE_MEMORY");
    return text && *text ? (size_t)strtoull(text, NULL, 10) : (size_t)1 << 30;
}

uint32_t
fake_shared_limit(void)
{
    uint32_t arch = fake_arch();
    return arch >= 90 ? 232448 : arch == 80 ? 166912 : 101376;
}

/* ---- failures ---------------------------------------------------------------------------------------------------- */

CUresult
fake_refuse(CUresult code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("fake device: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return code;
}

void
fake_lose(CUcontext context, CUresult code, const char *why)
{
    if (context->lost == CUDA_SUCCESS) context->lost = fake_refuse(code, "%s", why);
}

/* How often each function was called, for $MOEC_FAKE_FAIL=function:call:code,... */
static CUresult
planned_failure(const char *function)
{
    static struct {
        const char *name;
        int n;
    } calls[MAX_ALL_FUNCTIONS];
    int at = 0;
    while (at < MAX_ALL_FUNCTIONS - 1 && calls[at].name && strcmp(calls[at].name, function) != 0) at++;
    calls[at].name = function;
    calls[at].n++;
    const char *plan = getenv("MOEC_FAKE_FAIL");
    for (const char *p = plan ? plan : ""; *p;) {
        char name[64];
        int call, code, n = 0;
        if (sscanf(p, "%63[^:]:%d:%d%n", name, &call, &code, &n) != 3) break;
        if (strcmp(name, function) == 0 && call == calls[at].n) return code;
        p += n;
        p += *p == ',';
    }
    return CUDA_SUCCESS;
}

static bool
loses_context(CUresult code)
{
    return code == 700 || code == 702 || code == 709 || code == 710 || (code >= 714 && code <= 719);
}

CUcontext
fake_context(void)
{
    return depth ? current[depth - 1] : NULL;
}

CUresult
fake_enter(const char *function, bool needs_context)
{
    fake_lock_take(&lock);
    CUcontext c = fake_context();
    CUresult r = planned_failure(function);
    if (r != CUDA_SUCCESS) {
        if (c && loses_context(r) && c->lost == CUDA_SUCCESS) c->lost = r;
    } else if (!initialized) {
        r = FAKE_NOT_INITIALIZED;
    } else if (needs_context) {
        r = !c || !c->references ? FAKE_INVALID_CONTEXT : c->lost;
    }
    if (r != CUDA_SUCCESS) fake_lock_give(&lock);
    return r;
}

CUresult
fake_leave(CUresult result)
{
    fake_lock_give(&lock);
    return result;
}

void
fake_pause(void)
{
    static const struct timespec moment = {0, 100000};
    fake_lock_give(&lock);
    nanosleep(&moment, NULL);
    fake_lock_take(&lock);
}

static const struct {
    CUresult code;
    const char *name, *text;
} errors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {FAKE_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {FAKE_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_STUB_LIBRARY, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {FAKE_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {FAKE_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {FAKE_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU",
     "no kernel image is available for execution on the device"},
    {FAKE_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {FAKE_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {FAKE_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {FAKE_TOO_MANY_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {FAKE_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {FAKE_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {FAKE_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {FAKE_INVALID_CLUSTER, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "a cluster size that the device does not have"},
};

static int
find_error(CUresult code)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) return (int)i;
    return -1;
}

CUresult
cuGetErrorName(CUresult error, const char **out_name)
{
    int at = find_error(error);
    *out_name = at < 0 ? NULL : errors[at].name;
    return at < 0 ? FAKE_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult
cuGetErrorString(CUresult error, const char **out_text)
{
    int at = find_error(error);
    *out_text = at < 0 ? NULL : errors[at].text;
    return at < 0 ? FAKE_INVALID_VALUE : CUDA_SUCCESS;
}

/* ---- finding the driver's functions -------------------------------------------------------------------------------
 */

PUBLIC CUresult cuDriverGetVersion(int *out_version);
PUBLIC CUresult cuGetProcAddress_v2(const char *name, void **out_address, int version, uint64_t flags, int *out_status);
PUBLIC fake_stats_fn fake_cuda_stats;

CUresult
cuDriverGetVersion(int *out_version)
{
    *out_version = fake_number("MOEC_FAKE_DRIVER_VERSION", 12040);
    return CUDA_SUCCESS;
}

CUresult
cuGetProcAddress_v2(const char *name, void **out_address, int version, uint64_t flags, int *out_status)
{
    static const struct {
        const char *name;
        int version;
        void (*address)(void); /* of any type */
    } all[] = {
#define MC_CUDA_FN(function, since, parameters) {#function, since, (void (*)(void))function},
#include "runtime/gpu/cuda_api.def"
#undef MC_CUDA_FN
    };
    int driver;
    const char *lacks = getenv("MOEC_FAKE_LACKS");
    cuDriverGetVersion(&driver);
    *out_address = NULL;
    if (flags) return FAKE_INVALID_VALUE;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (strcmp(all[i].name, name) != 0 || all[i].version > driver || version < all[i].version) continue;
        if (lacks && strcmp(lacks, name) == 0) continue;
        memcpy(out_address, &all[i].address, sizeof *out_address);
    }
    if (out_status) *out_status = *out_address ? 0 : 1;
    return *out_address ? CUDA_SUCCESS : FAKE_NOT_FOUND;
}

void
fake_cuda_stats(fake_stats *out)
{
    fake_lock_take(&lock);
    *out = fake_now;
    fake_lock_give(&lock);
}

/* ---- devices -------------------------------------------------------------------------------------------------------
 */

static int
count_devices(void)
{
    int n = fake_number("MOEC_FAKE_DEVICES", 1);
    return n < 0 ? 0 : n > FAKE_MAX_DEVICES ? FAKE_MAX_DEVICES : n;
}

CUresult
cuInit(unsigned flags)
{
    if (flags) return FAKE_INVALID_VALUE;
    if (fake_number("MOEC_FAKE_STUB", 0)) return CUDA_ERROR_STUB_LIBRARY;
    if (count_devices() == 0) return CUDA_ERROR_NO_DEVICE;
    fake_lock_take(&lock);
    CUresult r = planned_failure("cuInit");
    for (int i = 0; i < FAKE_MAX_DEVICES; i++) contexts[i].device = i;
    if (r == CUDA_SUCCESS) initialized = true;
    fake_lock_give(&lock);
    return r;
}

CUresult
cuDeviceGetCount(int *out_count)
{
    ENTER(false);
    *out_count = count_devices();
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuDeviceGet(CUdevice *out_device, int ordinal)
{
    ENTER(false);
    if (ordinal < 0 || ordinal >= count_devices()) LEAVE(FAKE_INVALID_DEVICE);
    *out_device = ordinal;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuDeviceGetName(char *out_name, int n_bytes, CUdevice device)
{
    ENTER(false);
    snprintf(out_name, (size_t)n_bytes, "Fake device %d", device);
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuDeviceTotalMem(size_t *out_bytes, CUdevice device)
{
    ENTER(false);
    if (device < 0 || device >= count_devices()) LEAVE(FAKE_INVALID_DEVICE);
    *out_bytes = fake_memory_limit();
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuDeviceGetAttribute(int *out_value, int attribute, CUdevice device)
{
    ENTER(false);
    if (device < 0 || device >= count_devices()) LEAVE(FAKE_INVALID_DEVICE);
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *out_value = fake_number("MOEC_FAKE_MULTIPROCESSORS", 2); break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *out_value = (int)(fake_arch() / 10); break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *out_value = (int)(fake_arch() % 10); break;
    case CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS: *out_value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *out_value = (int)fake_shared_limit(); break;
    default: LEAVE(fake_refuse(FAKE_INVALID_VALUE, "device attribute %d is not known here", attribute));
    }
    LEAVE(CUDA_SUCCESS);
}

/* ---- contexts ------------------------------------------------------------------------------------------------------
 */

CUresult
cuDevicePrimaryCtxRetain(CUcontext *out_context, CUdevice device)
{
    ENTER(false);
    if (device < 0 || device >= count_devices()) LEAVE(FAKE_INVALID_DEVICE);
    CUcontext c = &contexts[device];
    if (c->references++ == 0) fake_now.contexts++;
    *out_context = c;
    LEAVE(c->lost);
}

CUresult
cuDevicePrimaryCtxRelease(CUdevice device)
{
    ENTER(false);
    if (device < 0 || device >= count_devices()) LEAVE(FAKE_INVALID_DEVICE);
    CUcontext c = &contexts[device];
    if (c->references == 0) LEAVE(FAKE_INVALID_CONTEXT);
    if (--c->references == 0) {
        fake_finish_all(c);
        fake_forget_memory(device);
        fake_now.contexts--;
        c->lost = CUDA_SUCCESS;
    }
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuCtxGetCurrent(CUcontext *out_context)
{
    ENTER(false);
    *out_context = fake_context();
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuCtxPushCurrent(CUcontext context)
{
    ENTER(false);
    if (!context || !context->references) LEAVE(FAKE_INVALID_CONTEXT);
    if (depth == MAX_DEPTH) LEAVE(fake_refuse(FAKE_INVALID_CONTEXT, "contexts are pushed and never popped"));
    current[depth++] = context;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuCtxPopCurrent(CUcontext *out_context)
{
    ENTER(false);
    if (depth == 0) LEAVE(FAKE_INVALID_CONTEXT);
    depth--;
    if (out_context) *out_context = current[depth];
    LEAVE(CUDA_SUCCESS);
}
