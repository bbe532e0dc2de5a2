/* One table of targets. "native" is the host's own processor and features under the widest of the table's shapes that
 * it can run: kernels stay the same, only instruction scheduling and selection are tuned. */
#include "codegen/cpu/target.h"

#include <llvm-c/Core.h>
#include <llvm-c/Target.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const mc_cpu_target TARGETS[] = {
    /* name, triple, cpu, llvm features, needs, is_host, vl, nr, mr, unroll, registers */
    {"x86-64-v3", "x86_64-unknown-linux-gnu", "x86-64-v3", "+avx2,+fma,+f16c,+bmi2",
     "avx2,fma,f16c,bmi2", false, 8, 16, 6, 2, 16},
    {"x86-64-v4", "x86_64-unknown-linux-gnu", "x86-64-v4",
     "+avx2,+fma,+f16c,+bmi2,+avx512f,+avx512bw,+avx512dq,+avx512vl",
     "avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512dq,avx512vl", false, 16, 32, 8, 2, 32},
    {"aarch64", "aarch64-unknown-linux-gnu", "neoverse-n1", "+neon",
     "neon", false, 4, 16, 6, 1, 32},
};
/* clang-format on */
enum { N_TARGETS = sizeof TARGETS / sizeof TARGETS[0] };

static const char *
copy_and_dispose(mc_arena *arena, char *message)
{
    const char *copy = mc_str_dup(arena, mc_str_of(message)).data;
    LLVMDisposeMessage(message);
    return copy;
}

/* Does the host have every feature named in `needs`? LLVM lists the host's as "+avx2,-amx,...". */
static bool
host_has(const char *needs, const char *host_features)
{
    for (const char *at = needs; *at;) {
        size_t len = strcspn(at, ",");
        bool found = false;
        for (const char *h = host_features; *h && !found;) {
            size_t host_len = strcspn(h, ",");
            found = host_len == len + 1 && h[0] == '+' && memcmp(h + 1, at, len) == 0;
            h += host_len + (h[host_len] == ',');
        }
        if (!found) return false;
        at += len + (at[len] == ',');
    }
    return true;
}

static bool
same_architecture(const char *triple, const char *host_triple)
{
    size_t len = strcspn(triple, "-");
    return strncmp(triple, host_triple, len) == 0 && host_triple[len] == '-';
}

static bool
host_runs(const mc_cpu_target *t, const char *host_triple, const char *host_features)
{
    return same_architecture(t->triple, host_triple) && host_has(t->needs, host_features);
}

static bool
find_native(mc_diags *d, const char *host_triple, const char *host_features, mc_cpu_target *out)
{
    const mc_cpu_target *best = NULL;
    for (int i = 0; i < N_TARGETS; i++)
        if (host_runs(&TARGETS[i], host_triple, host_features) && (!best || TARGETS[i].vl > best->vl))
            best = &TARGETS[i];
    if (!best)
        return mc_error(
            d, (mc_span){0}, MC_E0602,
            "this processor (%s) is below what CPU code needs: x86-64 with AVX2, FMA, F16C and BMI2, or AArch64",
            host_triple);
    *out = *best;
    out->triple = host_triple;
    out->cpu = copy_and_dispose(d->arena, LLVMGetHostCPUName());
    out->llvm_features = host_features;
    out->is_host = true;
    return true;
}

bool
mc_cpu_target_find(const char *name, mc_diags *d, mc_cpu_target *out)
{
    const char *host_triple = copy_and_dispose(d->arena, LLVMGetDefaultTargetTriple());
    const char *host_features = copy_and_dispose(d->arena, LLVMGetHostCPUFeatures());
    if (strcmp(name, "native") == 0) return find_native(d, host_triple, host_features, out);
    for (int i = 0; i < N_TARGETS; i++) {
        if (strcmp(name, TARGETS[i].name) != 0) continue;
        *out = TARGETS[i];
        out->is_host = host_runs(&TARGETS[i], host_triple, host_features);
        return true;
    }
    return mc_error(d, (mc_span){0}, MC_E0602, "no CPU target '%s': native, x86-64-v3, x86-64-v4 or aarch64", name);
}

static void
initialise_targets(void)
{
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
    LLVMInitializeAArch64TargetInfo();
    LLVMInitializeAArch64Target();
    LLVMInitializeAArch64TargetMC();
    LLVMInitializeAArch64AsmPrinter();
}

LLVMTargetMachineRef
mc_cpu_target_machine(const mc_cpu_target *t, mc_diags *d)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, initialise_targets);
    LLVMTargetRef target = NULL;
    char *message = NULL;
    if (LLVMGetTargetFromTriple(t->triple, &target, &message)) {
        mc_error(d, (mc_span){0}, MC_E0603, "LLVM has no target '%s': %s", t->triple, message);
        LLVMDisposeMessage(message);
        return NULL;
    }
    LLVMTargetMachineRef machine = LLVMCreateTargetMachine(target, t->triple, t->cpu, t->llvm_features,
                                                           LLVMCodeGenLevelDefault, LLVMRelocPIC, LLVMCodeModelDefault);
    if (!machine) mc_error(d, (mc_span){0}, MC_E0603, "LLVM cannot make code for '%s', cpu '%s'", t->triple, t->cpu);
    return machine;
}
