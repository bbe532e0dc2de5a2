/* cpu: the CPU backend as the driver sees it. A module in stage plan becomes one LLVM module that holds every kernel,
 * the tables of moec_abi_model as constants, and one exported function, moec_abi_query_<name>.
 *
 *     mc_cpu_target_find("native", &diags, &options.target);
 *     mc_cpu_result r;
 *     if (mc_cpu_compile(module, &options, &diags, &r)) mc_cpu_emit(&r, MC_EMIT_OBJECT, &diags, &buf);
 *     mc_cpu_result_fini(&r);
 */
#ifndef MC_CODEGEN_CPU_CPU_H
#define MC_CODEGEN_CPU_CPU_H

#include "codegen/cpu/llvm_emit.h"
#include "codegen/cpu/target.h"
#include "ir/ir.h"

typedef struct mc_cpu_options {
    mc_cpu_target target;
    mc_str name;   /* of the model; other than letters, digits and _ become _ in the exported symbol */
    mc_str rules;  /* weights block as .moe text, for moec_abi_model.rules */
    mc_str meta;   /* JSON object, for moec_abi_model.meta; empty: {} */
    uint64_t hash; /* identifies the artefact; 0: computed from the plan's text and the target */
} mc_cpu_options;

typedef struct mc_cpu_result {
    mc_arena *arena;
    mc_kb *kb;
    const char *query; /* the exported symbol */
    uint64_t hash, weights_hash;
    int n_kernels;
} mc_cpu_result;

/* False after E0601 (an op without a kernel) or E0603; the result is then empty and needs no fini, but may have it. */
bool mc_cpu_compile(const mc_module *plan, const mc_cpu_options *options, mc_diags *d, mc_cpu_result *out);
/* Appends the code. False after E0603. */
bool mc_cpu_emit(const mc_cpu_result *result, mc_emit_kind kind, mc_diags *d, mc_buf *out);
void mc_cpu_result_fini(mc_cpu_result *result);

/* Whether some form of this op can be compiled, for docs of coverage. */
bool mc_cpu_has_kernel(mc_opcode opcode);

#endif
