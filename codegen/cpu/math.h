/* math: functions of f32 that kernels need, as polynomials emitted inline from fma, mul and integer ops only, so that
 * scalars and vectors of every target give the same bits. Relative error at most 3e-7 unless said; NaN gives NaN; at
 * infinities and overflow the limits. x is a float or a vector of floats. */
#ifndef MC_CODEGEN_CPU_MATH_H
#define MC_CODEGEN_CPU_MATH_H

#include "codegen/cpu/kb.h"

LLVMValueRef kb_exp(mc_kb *kb, LLVMValueRef x);
LLVMValueRef kb_log(mc_kb *kb, LLVMValueRef x); /* -inf of 0, NaN below */
LLVMValueRef kb_log1p(mc_kb *kb, LLVMValueRef x);
LLVMValueRef kb_tanh(mc_kb *kb, LLVMValueRef x);
LLVMValueRef kb_erf(mc_kb *kb, LLVMValueRef x);
LLVMValueRef kb_rsqrt(mc_kb *kb, LLVMValueRef x); /* 1 / sqrt(x), both exactly rounded */

LLVMValueRef kb_sigmoid(mc_kb *kb, LLVMValueRef x);  /* 1 / (1 + exp(-x)) */
LLVMValueRef kb_silu(mc_kb *kb, LLVMValueRef x);     /* x / (1 + exp(-x)) */
LLVMValueRef kb_softplus(mc_kb *kb, LLVMValueRef x); /* log1p(exp x), x above 20 */
/* Error relative to |x|, as their formulas in f32 have: 1 + erf and 1 + tanh cancel for negative x. */
LLVMValueRef kb_gelu(mc_kb *kb, LLVMValueRef x);
LLVMValueRef kb_gelu_tanh(mc_kb *kb, LLVMValueRef x);
LLVMValueRef kb_relu(mc_kb *kb, LLVMValueRef x);
LLVMValueRef kb_relu2(mc_kb *kb, LLVMValueRef x);

typedef enum mc_act {
    MC_ACT_SILU,
    MC_ACT_GELU,
    MC_ACT_GELU_TANH,
    MC_ACT_RELU,
    MC_ACT_RELU2,
    MC_ACT_SIGMOID,
    MC_N_ACTS
} mc_act;

mc_act mc_act_find(mc_str name); /* "silu"; MC_N_ACTS when unknown */
const char *mc_act_name(mc_act act);
LLVMValueRef kb_act(mc_kb *kb, mc_act act, LLVMValueRef x);

#endif
