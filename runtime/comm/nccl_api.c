/* nccl_api: see nccl_api.h. Loaded only when somebody opens a group with it. */
#include "runtime/comm/nccl_api.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static mc_nccl_api library;
static bool loaded;

void
mc_nccl_version_text(int version, char *out, size_t n_bytes)
{
    if (version >= 10000) /* since 2.9 */
        snprintf(out, n_bytes, "%d.%d.%d", version / 10000, version % 10000 / 100, version % 100);
    else
        snprintf(out, n_bytes, "%d.%d.%d", version / 1000, version % 1000 / 100, version % 100);
}

static moec_status
find_functions(void *handle, const char *path, mc_nccl_api *out, mc_fault *error)
{
    void *address;
    /* POSIX lets dlsym give functions as void *; C does not say how to convert. */
#define MC_NCCL_FN(type, name, parameters)                                                                             \
    address = dlsym(handle, #name);                                                                                    \
    if (!address)                                                                                                      \
        return mc_fail(error, MOEC_ERR_MISMATCH,                                                                       \
                       "%.300s is not the NCCL that moec needs (2.18 or later): it has no " #name, path);              \
    memcpy(&out->name, &address, sizeof address);
#include "runtime/comm/nccl_api.def"
#undef MC_NCCL_FN
    return MOEC_OK;
}

static moec_status
check_version(const char *path, mc_nccl_api *out, mc_fault *error)
{
    char text[32];
    if (out->ncclGetVersion(&out->version) != ncclSuccess)
        return mc_fail(error, MOEC_ERR_MISMATCH, "%.300s does not say which NCCL it is", path);
    mc_nccl_version_text(out->version, text, sizeof text);
    if (out->version >= MC_NCCL_NEEDED) return MOEC_OK;
    return mc_fail(error, MOEC_ERR_MISMATCH,
                   "%.300s is NCCL %s, moec needs 2.18 or later: install a newer one, or name its file in MOEC_NCCL",
                   path, text);
}

static moec_status
load(mc_nccl_api *out, mc_fault *error)
{
    const char *path = getenv("MOEC_NCCL");
    if (!path || !*path) path = "libnccl.so.2";
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *why = dlerror();
        return mc_fail(error, MOEC_ERR_NOT_FOUND,
                       "no NCCL: %.300s; install it (2.18 or later), or say where libnccl.so.2 is in MOEC_NCCL",
                       why ? why : path);
    }
    moec_status s = find_functions(handle, path, out, error);
    if (s == MOEC_OK) s = check_version(path, out, error);
    if (s != MOEC_OK) dlclose(handle);
    return s;
}

moec_status
mc_nccl_get(const mc_nccl_api **out, mc_fault *error)
{
    moec_status s = MOEC_OK;
    pthread_mutex_lock(&lock);
    if (!loaded) {
        mc_nccl_api fresh = {0};
        s = load(&fresh, error);
        if (s == MOEC_OK) library = fresh;
        loaded = s == MOEC_OK;
    }
    pthread_mutex_unlock(&lock);
    *out = s == MOEC_OK ? &library : NULL;
    return s;
}

moec_status
mc_nccl_check(const mc_nccl_api *nccl, ncclComm comm, ncclResult result, const char *call, mc_fault *error)
{
    if (result == ncclSuccess || result == ncclInProgress) return MOEC_OK;
    const char *text = nccl->ncclGetErrorString(result), *last = nccl->ncclGetLastError(comm), *advice = "";
    if (result == ncclInvalidUsage)
        advice = "; every rank needs a GPU of its own";
    else if (result == ncclUnhandledCudaError)
        advice = "; the GPU or its driver failed";
    else if (result == ncclSystemError || result == ncclRemoteError)
        advice = "; NCCL_SOCKET_IFNAME says which network it uses";
    return mc_fail(error, MOEC_ERR_COMM, "%s failed: %s (%d)%s%.400s%s; NCCL_DEBUG=WARN says more", call,
                   text ? text : "?", result, last && *last ? ": " : "", last ? last : "", advice);
}
