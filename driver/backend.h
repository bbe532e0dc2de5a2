/* backend: the one place where the driver meets code generation. A build without LLVM has backend_none.c instead of
 * backend_cpu.c; everything else is the same. Code for GPUs (backend_gpu.c) is always there: NVRTC is found at run
 * time. */
#ifndef MC_DRIVER_BACKEND_H
#define MC_DRIVER_BACKEND_H

#include "driver/unit.h"
#include "runtime/abi.h"

typedef enum mc_code_kind { MC_CODE_OBJECT, MC_CODE_ASSEMBLY, MC_CODE_LLVM } mc_code_kind;

typedef struct mc_backend_target {
    const char *name;
    const char *compiler; /* "moec 0.1.0, LLVM 22.1.8" */
    const char *key;      /* everything about the target that decides the code */
    int64_t nr;           /* columns of a weight panel */
    const void *detail;
} mc_backend_target;

typedef struct mc_loaded mc_loaded; /* code in this process */

/* Whether some form of this op can be compiled for a CPU, for the table of coverage. */
bool mc_backend_has_kernel(mc_opcode opcode);
const char *mc_backend_compiler(void); /* "moec 0.1.0, LLVM 22.1.8" */
/* u->options->target, or this processor. False after E0602 or E0605. Lives in the unit's arena. */
bool mc_backend_find(mc_unit *u, mc_backend_target *out);
/* Appends the code of the unit's module (stage plan). False after an error. */
bool mc_backend_emit(mc_unit *u, const mc_backend_target *target, mc_code_kind kind, mc_buf *out);

moec_status mc_backend_load(const void *object, size_t n_bytes, const char *name, mc_loaded **out,
                            const moec_abi_model **out_abi, mc_fault *fault) MOEC_MUST_USE;
void mc_backend_unload(mc_loaded *loaded); /* NULL is allowed */

/* ---- GPUs ---- */

bool mc_backend_gpu_has_kernel(mc_opcode opcode);
/* Appends the image (runtime/image.h) of the unit's module, which @gpu or @gpu-train has brought to stage plan, for
 * u->options->gpu. False after E0701 .. E0704. */
bool mc_backend_gpu_emit(mc_unit *u, mc_buf *out);

#endif
