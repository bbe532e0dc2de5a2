/* target: the processors that the CPU backend knows, and what their kernels need to know about them. */
#ifndef MC_CODEGEN_CPU_TARGET_H
#define MC_CODEGEN_CPU_TARGET_H

#include "ir/diag.h"

#include <llvm-c/TargetMachine.h>

typedef struct mc_cpu_target {
    const char *name;          /* "x86-64-v3": as asked for, or what "native" stands for */
    const char *triple;        /* "x86_64-unknown-linux-gnu" */
    const char *cpu;           /* LLVM's target-cpu */
    const char *llvm_features; /* LLVM's target-features, "+avx2,+fma,..." */
    const char *needs;         /* what moec_abi_model.features says: "avx2,fma,f16c,bmi2" */
    bool is_host;              /* its code runs in this process */
    int vl;                    /* f32 lanes of a vector register */
    int nr;                    /* columns of a weight panel, a multiple of vl */
    int mr;                    /* most rows of a register tile */
    int unroll;                /* steps of k in a tile's loop */
    int n_registers;           /* vector registers */
} mc_cpu_target;

/* name: "native", "x86-64-v3", "x86-64-v4", "aarch64". False after E0602. Strings live in d->arena or forever. */
bool mc_cpu_target_find(const char *name, mc_diags *d, mc_cpu_target *out);

/* Owned by the caller (LLVMDisposeTargetMachine); NULL after E0603. Initialises LLVM's targets once. */
LLVMTargetMachineRef mc_cpu_target_machine(const mc_cpu_target *t, mc_diags *d);

#endif
