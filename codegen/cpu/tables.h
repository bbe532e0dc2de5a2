/* tables: a finished plan as LLVM constants, and the function that hands it out. */
#ifndef MC_CODEGEN_CPU_TABLES_H
#define MC_CODEGEN_CPU_TABLES_H

#include "codegen/cpu/kb.h"
#include "codegen/plan/plan.h"

typedef struct mc_cpu_names {
    const char *name, *rules, *meta, *query;
    uint64_t hash, weights_hash;
} mc_cpu_names;

/* kernels: the function of each plan->kernels entry, in order. */
void mc_cpu_tables_emit(mc_kb *kb, const mc_plan *p, const LLVMValueRef *kernels, const mc_cpu_names *names);

#endif
