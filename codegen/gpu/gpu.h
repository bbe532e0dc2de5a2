/* gpu: the GPU backend as the driver sees it. A module in stage plan becomes a descriptor with a cubin for each kernel
 * and architecture.
 *
 *     mc_gpu_options options = {.archs = archs, .n_archs = n, ...};
 *     mc_gpu_result r;
 *     if (mc_gpu_compile(module, &options, &diags, &r)) mc_image_write(r.abi, &buf);      runtime/image.h
 *     mc_gpu_result_fini(&r);
 */
#ifndef MC_CODEGEN_GPU_GPU_H
#define MC_CODEGEN_GPU_GPU_H

#include "codegen/gpu/toolchain.h"
#include "ir/ir.h"
#include "runtime/abi.h"

enum { MC_GPU_MAX_ARCHS = 4 };

typedef struct mc_gpu_options {
    uint32_t archs[MC_GPU_MAX_ARCHS]; /* 80, 89, 90, 100 */
    size_t n_archs;
    mc_str name;   /* of the model */
    mc_str rules;  /* weights block as .moe text */
    mc_str meta;   /* JSON object; empty: {} */
    uint64_t hash; /* identifies the artefact; 0: computed from the plan's text and the architectures */
    mc_gpu_toolchain toolchain;
} mc_gpu_options;

typedef struct mc_gpu_result {
    mc_arena *arena;
    const moec_abi_model *abi; /* in the arena */
    int n_kernels;
} mc_gpu_result;

/* Reads "sm_80,sm_90a" or "all" into options->archs. False after E0704. */
bool mc_gpu_archs_read(const char *text, mc_diags *d, mc_gpu_options *options);
/* "sm_90a"; NULL when there is no such architecture here. */
const char *mc_gpu_arch_name(uint32_t arch);

/* False after E0701 (an op without a kernel), E0702 or E0703; the result is then empty and needs no fini. */
bool mc_gpu_compile(const mc_module *plan, const mc_gpu_options *options, mc_diags *d, mc_gpu_result *out);
void mc_gpu_result_fini(mc_gpu_result *result);

/* Whether some form of this op can be compiled, for docs of coverage. */
bool mc_gpu_has_kernel(mc_opcode opcode);

#endif
