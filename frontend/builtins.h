/* builtins: the handlers of builtins.def, one for each op of the language, in ops_*.c. */
#ifndef MC_FRONTEND_BUILTINS_H
#define MC_FRONTEND_BUILTINS_H

#include "frontend/elab.h"

#define MC_BUILTIN(name, tensors, params, handler) mc_val mc_op_##handler(mc_elab *e, mc_call *c);
#define MC_UNARY(name, OPCODE, fold)
#include "frontend/builtins.def"
#undef MC_BUILTIN
#undef MC_UNARY

/* The i-th tensor of the call as an activation in f32 (or integers as they are); NULL after an error. */
mc_value *mc_call_tensor(mc_elab *e, mc_call *c, size_t i);
/* The same, but it must have an axis, whose size is constant; *width is that size. */
mc_value *mc_call_rows(mc_elab *e, mc_call *c, int64_t *width);
/* A tensor given as a parameter (weight = @path, sinks = s); *out NULL when absent or none. */
bool mc_call_tensor_param(mc_elab *e, mc_call *c, const char *name, mc_value **out);

#endif
