/* fake_cuda: the parts of the fake driver among themselves. Every entry point begins with ENTER, which takes the one
 * lock, looks whether the call is to fail ($MOEC_FAKE_FAIL) or the context is lost, and ends with LEAVE. */
#ifndef MC_TESTS_GPU_FAKE_CUDA_H
#define MC_TESTS_GPU_FAKE_CUDA_H

#include "runtime/gpu/cuda_api.h"
#include "tests/gpu/emulate.h"
#include "tests/gpu/fake.h"

/* Numbers of cuda.h that the runtime has no use for. */
enum {
    FAKE_INVALID_VALUE = 1,
    FAKE_NOT_INITIALIZED = 3,
    FAKE_INVALID_DEVICE = 101,
    FAKE_INVALID_IMAGE = 200,
    FAKE_INVALID_CONTEXT = 201,
    FAKE_INVALID_HANDLE = 400,
    FAKE_NOT_FOUND = 500,
    FAKE_NOT_READY = CUDA_ERROR_NOT_READY,
    FAKE_TOO_MANY_RESOURCES = 701,
    FAKE_CAPTURE_UNSUPPORTED = 900,
    FAKE_CAPTURE_INVALIDATED = 901,
    FAKE_CAPTURE_IMPLICIT = 906,
    FAKE_INVALID_CLUSTER = 912
};

enum { FAKE_MAX_DEVICES = 4 };

/* Prototypes of all entry points; one that is not written here is one that this driver does not have. */
#define MC_CUDA_FN(name, version, parameters) __attribute__((weak, visibility("default"))) CUresult name parameters;
#include "runtime/gpu/cuda_api.def"
#undef MC_CUDA_FN

struct CUctx_st { /* the primary context of a device */
    int device, references;
    CUresult lost; /* the error that every call gives now */
};

extern fake_stats fake_now;

/* The number of the call's result; the lock is held when it is CUDA_SUCCESS. */
CUresult fake_enter(const char *function, bool needs_context);
CUresult fake_leave(CUresult result);
void fake_pause(void); /* lets other threads in for a moment */
#define ENTER(needs_context)                                                                                           \
    CUresult entered = fake_enter(__func__, needs_context);                                                            \
    if (entered != CUDA_SUCCESS) return entered
#define LEAVE(result) return fake_leave(result)

CUcontext fake_context(void); /* of this thread */
/* Says why on standard error, and gives the code back. */
CUresult fake_refuse(CUresult code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Loses the context. */
void fake_lose(CUcontext context, CUresult code, const char *why);

int fake_number(const char *variable, int otherwise);
uint32_t fake_arch(void); /* 80, 89, 90, 100 */
size_t fake_memory_limit(void);
uint32_t fake_shared_limit(void); /* bytes of a block, when it asks for them */

/* Memory (fake_memory.c). Whether n bytes at the address are (part of) one block; kind CU_MEMORYTYPE_*. */
bool fake_is_memory(uint64_t address, size_t n, unsigned kind);
void fake_forget_memory(int device); /* its context is gone */
/* In sanitized builds device memory is out of bounds except while the device works. */
void fake_open_memory(void);
void fake_close_memory(void);

/* Work (fake_stream.c). */
typedef struct fake_work {
    enum { FAKE_COPY, FAKE_SET, FAKE_LAUNCH, FAKE_GRAPH, FAKE_RECORD, FAKE_WAIT, FAKE_FOREIGN } kind;
    uint64_t to, from; /* COPY, SET: addresses */
    size_t n;          /* bytes; elements of SET */
    unsigned value, element;
    void *kept;          /* COPY: the bytes themselves; LAUNCH: the arguments. Freed with the work */
    CUfunction function; /* LAUNCH */
    emulate_launch launch;
    CUgraphExec graph;
    CUevent event;
    uint64_t mark; /* RECORD, WAIT: which record of the event */
    fake_done_fn *done;
    void *argument; /* FOREIGN */
} fake_work;

/* Appends work to a stream (or to what it captures); takes over work.kept. */
CUresult fake_append(CUstream stream, fake_work work);
bool fake_is_capturing(void); /* any stream of this thread's context; then many calls are refused */
CUresult fake_spoil_capture(void);
void fake_finish_all(CUcontext context); /* what can be done now */
void fake_wait_for_device(CUcontext context);
CUresult fake_run_launch(CUcontext context, const fake_work *work); /* fake_module.c */

#endif
