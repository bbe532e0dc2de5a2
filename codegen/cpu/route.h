/* route: what the routing kernels share. */
#ifndef MC_CODEGEN_CPU_ROUTE_H
#define MC_CODEGEN_CPU_ROUTE_H

#include "codegen/cpu/kb.h"

/* An i32 that orders as routing does: NaN greatest, -0 equal to 0, -inf above INT32_MIN. x: f32, scalar or vector. */
LLVMValueRef mc_route_order(mc_kb *kb, LLVMValueRef x);

/* Scalar access to arrays of f32 and i32; integers widened to i64. */
LLVMValueRef mc_get_f32(mc_kb *kb, LLVMValueRef p, LLVMValueRef i);
LLVMValueRef mc_get_i32(mc_kb *kb, LLVMValueRef p, LLVMValueRef i);
void mc_set_f32(mc_kb *kb, LLVMValueRef p, LLVMValueRef i, LLVMValueRef x);
void mc_set_i32(mc_kb *kb, LLVMValueRef p, LLVMValueRef i, LLVMValueRef x);

#endif
