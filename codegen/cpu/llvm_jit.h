/* llvm_jit: an object file made in memory becomes code that this process can call. Instances share nothing: any number
 * may be made, used and destroyed on different threads at once. */
#ifndef MC_CODEGEN_CPU_LLVM_JIT_H
#define MC_CODEGEN_CPU_LLVM_JIT_H

#include "ir/diag.h"

typedef struct mc_jit mc_jit;

/* Owned by the caller; NULL after E0603. The object is copied. */
mc_jit *mc_jit_load(const void *object, size_t n_bytes, mc_diags *d);
/* The address of an external symbol, valid until destroy; 0 after E0603. An integer, since C gives data and functions
 * different pointers and a symbol may be either. */
uintptr_t mc_jit_symbol(mc_jit *jit, const char *name, mc_diags *d);
void mc_jit_destroy(mc_jit *jit); /* NULL is allowed; frees the code */

#endif
