/* llvm_emit: a finished module as an object file, assembly or .ll text, in memory. Same module, same bytes. */
#ifndef MC_CODEGEN_CPU_LLVM_EMIT_H
#define MC_CODEGEN_CPU_LLVM_EMIT_H

#include "codegen/cpu/kb.h"

typedef enum mc_emit_kind { MC_EMIT_OBJECT, MC_EMIT_ASSEMBLY, MC_EMIT_LLVM } mc_emit_kind;

/* Verifies, then appends to out. The module stays as it was, so several kinds can be emitted one after another.
 * Assembly is verbose: it says where registers are spilled. False after E0603. */
bool mc_kb_emit(mc_kb *kb, mc_emit_kind kind, mc_diags *d, mc_buf *out);

/* "moec 0.1.0, LLVM 22.1.8": for moec_abi_model.compiler. A static string. */
const char *mc_cpu_compiler_name(void);

#endif
