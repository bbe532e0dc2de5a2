/* cuda_api: the CUDA driver, found at run time. Nothing of CUDA is needed to build: what is used of cuda.h is declared
 * here, with the layouts and numbers of the CUDA Driver API reference (CUDA 12.0 and later:
 * docs.nvidia.com/cuda/cuda-driver-api, modules "Data types used by CUDA driver", "Execution Control", "Tensor Map
 * Object Management"). Every pointer of a driver object is opaque. */
#ifndef MC_RUNTIME_GPU_CUDA_API_H
#define MC_RUNTIME_GPU_CUDA_API_H

#include "runtime/base/file.h"

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_STUB_LIBRARY = 34,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_ECC_UNCORRECTABLE = 214,
    CUDA_ERROR_NVLINK_UNCORRECTABLE = 220,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_LAUNCH_TIMEOUT = 702,
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709,
    CUDA_ERROR_ASSERT = 710,
    CUDA_ERROR_HARDWARE_STACK_ERROR = 714,
    CUDA_ERROR_LAUNCH_FAILED = 719, /* 715 to 718: illegal instruction, misaligned address, address space, pc */
    CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803,

    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS = 88,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,

    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 14,

    CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION = 4,

    CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2,
    CU_POINTER_ATTRIBUTE_IS_MANAGED = 8,
    CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9,
    CU_MEMORYTYPE_HOST = 1,
    CU_MEMORYTYPE_DEVICE = 2,

    CU_STREAM_NON_BLOCKING = 1,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
    CU_STREAM_CAPTURE_STATUS_NONE = 0,
    CU_EVENT_DEFAULT = 0,
    CU_EVENT_DISABLE_TIMING = 2,

    CU_TENSOR_MAP_DATA_TYPE_UINT8 = 0,
    CU_TENSOR_MAP_DATA_TYPE_INT32 = 3,
    CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6,
    CU_TENSOR_MAP_DATA_TYPE_FLOAT32 = 7,
    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9,
    CU_TENSOR_MAP_INTERLEAVE_NONE = 0,
    CU_TENSOR_MAP_SWIZZLE_NONE = 0, /* then 32, 64 and 128 bytes */
    CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2,
    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0
};

typedef struct CUlaunchAttribute {
    int id;
    char pad[4];
    union {
        char pad[64];
        struct {
            unsigned x, y, z;
        } clusterDim;
    } value;
} CUlaunchAttribute;

typedef struct CUlaunchConfig {
    unsigned gridDimX, gridDimY, gridDimZ;
    unsigned blockDimX, blockDimY, blockDimZ;
    unsigned sharedMemBytes;
    CUstream hStream;
    CUlaunchAttribute *attrs;
    unsigned numAttrs;
} CUlaunchConfig;

/* The driver asks for 64-byte alignment (128 since CUDA 13). */
typedef struct CUtensorMap {
    _Alignas(128) uint64_t opaque[16];
} CUtensorMap;

_Static_assert(sizeof(CUlaunchAttribute) == 72 && sizeof(CUlaunchConfig) == 56 && sizeof(CUtensorMap) == 128,
               "layouts of cuda.h");

enum { MC_CUDA_NEEDED = 12000 }; /* as cuDriverGetVersion says it: 12.0 */

typedef struct mc_cuda {
#define MC_CUDA_FN(name, version, parameters) CUresult(*name) parameters;
#include "runtime/gpu/cuda_api.def"
#undef MC_CUDA_FN
    int driver_version;
} mc_cuda;

/* The driver, loaded once for the process and never unloaded; threads may ask at the same time. $MOEC_CUDA_DRIVER
 * names another file than libcuda.so.1. A failure is not remembered.
 * Errors: DEVICE (no driver, one that is too old, or one that cannot start). */
moec_status mc_cuda_get(const mc_cuda **out, mc_fault *error) MOEC_MUST_USE;

/* OK for CUDA_SUCCESS; else what failed, what CUDA says about it and what to do. Errors: DEVICE, MEMORY (the GPU's). */
moec_status mc_cuda_check(const mc_cuda *cuda, CUresult result, const char *call, mc_fault *error) MOEC_MUST_USE;
/* Whether the context is lost: every later call in this process fails too. */
bool mc_cuda_is_sticky(CUresult result);

/* MC_CUDA(cuda, error, cuStreamSynchronize, stream) */
#define MC_CUDA(cuda, error, name, ...) mc_cuda_check((cuda), (cuda)->name(__VA_ARGS__), #name, (error))

#endif
