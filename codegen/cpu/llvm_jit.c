/* LLJIT does the linking. Objects of ours refer to nothing outside themselves, so the main library gets no search of
 * the process: a missing symbol is a fault of the code generator and should be reported, not resolved by chance. */
#include "codegen/cpu/llvm_jit.h"

#include <llvm-c/Core.h>
#include <llvm-c/LLJIT.h>
#include <llvm-c/Target.h>
#include <pthread.h>
#include <stdlib.h>

struct mc_jit {
    LLVMOrcLLJITRef lljit;
};

static void
initialise_native(void)
{
    LLVMInitializeNativeTarget();
    LLVMInitializeNativeAsmPrinter();
}

static bool
check(LLVMErrorRef error, const char *what, mc_diags *d)
{
    if (!error) return true;
    char *message = LLVMGetErrorMessage(error);
    mc_error(d, (mc_span){0}, MC_E0603, "%s: %s", what, message);
    LLVMDisposeErrorMessage(message);
    return false;
}

mc_jit *
mc_jit_load(const void *object, size_t n_bytes, mc_diags *d)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, initialise_native);
    mc_jit *jit = calloc(1, sizeof *jit);
    if (!jit) {
        mc_error(d, (mc_span){0}, MC_E0603, "out of memory");
        return NULL;
    }
    if (!check(LLVMOrcCreateLLJIT(&jit->lljit, NULL), "LLVM's JIT does not start", d)) {
        free(jit);
        return NULL;
    }
    LLVMMemoryBufferRef copy = LLVMCreateMemoryBufferWithMemoryRangeCopy(object, n_bytes, "moec");
    LLVMOrcJITDylibRef library = LLVMOrcLLJITGetMainJITDylib(jit->lljit);
    if (!check(LLVMOrcLLJITAddObjectFile(jit->lljit, library, copy), "LLVM's JIT refuses the object", d)) {
        mc_jit_destroy(jit);
        return NULL;
    }
    return jit;
}

uintptr_t
mc_jit_symbol(mc_jit *jit, const char *name, mc_diags *d)
{
    LLVMOrcExecutorAddress address = 0;
    bool ok = check(LLVMOrcLLJITLookup(jit->lljit, &address, name), "LLVM's JIT cannot find or link a symbol", d);
    return ok ? (uintptr_t)address : 0;
}

void
mc_jit_destroy(mc_jit *jit)
{
    if (!jit) return;
    if (jit->lljit) {
        LLVMErrorRef error = LLVMOrcDisposeLLJIT(jit->lljit);
        if (error) LLVMConsumeError(error);
    }
    free(jit);
}
