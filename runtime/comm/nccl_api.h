/* nccl_api: NCCL, found at run time as the CUDA driver is (runtime/gpu/cuda_api.h): what is used of nccl.h is declared
 * here, with the layouts and numbers of NCCL 2.18, which later versions go on to take (a config says its size and
 * version). */
#ifndef MC_RUNTIME_COMM_NCCL_API_H
#define MC_RUNTIME_COMM_NCCL_API_H

#include "runtime/gpu/cuda_api.h"

typedef int ncclResult;
typedef struct ncclComm_st *ncclComm;

enum {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,

    ncclUint8 = 1,

    NCCL_CONFIG_UNDEF_INT = INT32_MIN,
    NCCL_CONFIG_VERSION = 21800 /* of the struct below */
};
#define NCCL_CONFIG_MAGIC 0xcafebeefu

typedef struct ncclUniqueId {
    char internal[128];
} ncclUniqueId;

typedef struct ncclConfig {
    size_t size;
    uint32_t magic, version;
    int blocking, cgaClusterSize, minCTAs, maxCTAs;
    const char *netName;
    int splitShare;
} ncclConfig;

_Static_assert(sizeof(ncclUniqueId) == 128 && sizeof(ncclConfig) == 48, "layouts of nccl.h");

enum { MC_NCCL_NEEDED = 21800 }; /* as ncclGetVersion says it: 2.18.0 */

typedef struct mc_nccl_api {
#define MC_NCCL_FN(type, name, parameters) type(*name) parameters;
#include "runtime/comm/nccl_api.def"
#undef MC_NCCL_FN
    int version;
} mc_nccl_api;

/* The library, loaded once for the process and never unloaded; threads may ask at the same time. $MOEC_NCCL names
 * another file than libnccl.so.2. A failure is not remembered. Errors: NOT_FOUND, MISMATCH (too old, or no NCCL). */
moec_status mc_nccl_get(const mc_nccl_api **out, mc_fault *error) MOEC_MUST_USE;

/* "2.28.9" */
void mc_nccl_version_text(int version, char *out, size_t n_bytes);

/* OK for ncclSuccess and ncclInProgress; else what failed, NCCL's words for it, and what to do. Errors: COMM. */
moec_status mc_nccl_check(const mc_nccl_api *nccl, ncclComm comm, ncclResult result, const char *call,
                          mc_fault *error) MOEC_MUST_USE;

#endif
