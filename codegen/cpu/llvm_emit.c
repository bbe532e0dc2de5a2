/* From module to bytes. No pass runs before code generation: kernels are written in their final form, and measured, the
 * standard pipeline doubled compile time without changing an instruction. */
#include "codegen/cpu/llvm_emit.h"

#include <llvm-c/Analysis.h>
#include <llvm-c/Target.h>
#include <pthread.h>
#include <stdio.h>

/* LLVM reports what code generation cannot do through its context; only the first report is kept. */
static void
on_diagnostic(LLVMDiagnosticInfoRef info, void *context)
{
    mc_buf *first = context;
    if (LLVMGetDiagInfoSeverity(info) != LLVMDSError || first->len) return;
    char *text = LLVMGetDiagInfoDescription(info);
    mc_buf_puts(first, text);
    LLVMDisposeMessage(text);
}

static bool
fail(mc_diags *d, const char *what, char *message)
{
    mc_error(d, (mc_span){0}, MC_E0603, "%s: %s", what, message ? message : "no reason given");
    if (message) LLVMDisposeMessage(message);
    return false;
}

static bool
generate(LLVMModuleRef module, LLVMTargetMachineRef machine, mc_emit_kind kind, mc_diags *d, mc_buf *out)
{
    LLVMMemoryBufferRef code = NULL;
    char *message = NULL;
    LLVMSetTargetMachineAsmVerbosity(machine, kind == MC_EMIT_ASSEMBLY);
    LLVMCodeGenFileType type = kind == MC_EMIT_OBJECT ? LLVMObjectFile : LLVMAssemblyFile;
    if (LLVMTargetMachineEmitToMemoryBuffer(machine, module, type, &message, &code))
        return fail(d, "LLVM cannot emit the module", message);
    mc_buf_write(out, LLVMGetBufferStart(code), LLVMGetBufferSize(code));
    LLVMDisposeMemoryBuffer(code);
    return true;
}

static bool
emit_code(mc_kb *kb, LLVMTargetMachineRef machine, mc_emit_kind kind, mc_diags *d, mc_buf *out)
{
    mc_buf problem = {0};
    LLVMContextSetDiagnosticHandler(kb->ctx, on_diagnostic, &problem);
    LLVMModuleRef copy = LLVMCloneModule(kb->module); /* code generation changes the module */
    bool ok = generate(copy, machine, kind, d, out);
    LLVMDisposeModule(copy);
    LLVMContextSetDiagnosticHandler(kb->ctx, NULL, NULL);
    if (ok && problem.len) ok = mc_error(d, (mc_span){0}, MC_E0603, "LLVM refused the module: %s", problem.data);
    mc_buf_fini(&problem);
    return ok;
}

bool
mc_kb_emit(mc_kb *kb, mc_emit_kind kind, mc_diags *d, mc_buf *out)
{
    char *message = NULL;
    LLVMTargetMachineRef machine = mc_cpu_target_machine(&kb->target, d);
    if (!machine) return false;
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(machine);
    LLVMSetModuleDataLayout(kb->module, layout);
    LLVMDisposeTargetData(layout);
    bool ok = true;
    if (LLVMVerifyModule(kb->module, LLVMReturnStatusAction, &message)) {
        ok = fail(d, "the generated module is malformed", message);
        message = NULL;
    } else if (kind == MC_EMIT_LLVM) {
        char *text = LLVMPrintModuleToString(kb->module);
        mc_buf_puts(out, text);
        LLVMDisposeMessage(text);
    } else {
        ok = emit_code(kb, machine, kind, d, out);
    }
    if (message) LLVMDisposeMessage(message);
    LLVMDisposeTargetMachine(machine);
    return ok;
}

static char compiler_name[64];

static void
make_compiler_name(void)
{
    unsigned major, minor, patch;
    LLVMGetVersion(&major, &minor, &patch);
    snprintf(compiler_name, sizeof compiler_name, "moec %s, LLVM %u.%u.%u", MOEC_VERSION_STRING, major, minor, patch);
}

const char *
mc_cpu_compiler_name(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_compiler_name);
    return compiler_name;
}
