/* grad_math: derivatives of the elementwise ops, from the functions of math.h. */
#ifndef MC_CODEGEN_CPU_GRAD_MATH_H
#define MC_CODEGEN_CPU_GRAD_MATH_H

#include "codegen/cpu/math.h"
#include "ir/op.h"

/* dy * f'(x) for the elementwise op `of` (neg .. softcap). numbers: its own, as vectors like x: lo, hi of clamp, cap of
 * softcap. NULL for another op. */
LLVMValueRef kb_unary_grad(mc_kb *kb, mc_opcode of, LLVMValueRef x, LLVMValueRef dy, const LLVMValueRef *numbers);
/* The same for an activation. */
LLVMValueRef kb_act_grad(mc_kb *kb, mc_act act, LLVMValueRef x, LLVMValueRef dy);

#endif
