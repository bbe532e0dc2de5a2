/* The table of ops, and the elementwise ones, which need nothing but their opcode. */
#include "frontend/builtins.h"

#include <math.h>

static mc_val
run_unary(mc_elab *e, mc_call *c)
{
    mc_value *x = mc_call_tensor(e, c, 0);
    if (!x) return mc_val_poison();
    if (!mc_type_is_float(x->type))
        return mc_elab_error(e, c->tensor_spans[0], MC_E0318, "%.*s needs floats, this is %.*s", MC_FMT(c->name),
                             MC_FMT(mc_type_text(e->module, x->type, e->arena)));
    return mc_emit(e, c->span, mc_builtin_find(c->name)->opcode, &x, 1, NULL, 0);
}

const mc_builtin mc_builtins[] = {
#define MC_BUILTIN(name, tensors, params, handler) {#name, tensors, params, mc_op_##handler, MC_N_OPCODES, NULL},
#define MC_UNARY(name, OPCODE, fold) {#name, "x", "", run_unary, MC_OP_##OPCODE, fold},
#include "frontend/builtins.def"
#undef MC_BUILTIN
#undef MC_UNARY
};
const size_t mc_n_builtins = sizeof mc_builtins / sizeof mc_builtins[0];

const mc_builtin *
mc_builtin_find(mc_str name)
{
    for (size_t i = 0; i < mc_n_builtins; i++) {
        if (mc_str_is(name, mc_builtins[i].name)) return &mc_builtins[i];
    }
    return NULL;
}

mc_value *
mc_call_tensor(mc_elab *e, mc_call *c, size_t i)
{
    mc_value *x = mc_tensor_of(e, c->tensors[i], c->tensor_spans[i], "this argument");
    if (!x || !mc_type_is_float(x->type)) return x;
    return mc_tensor_cast(e, x, MOEC_F32);
}

mc_value *
mc_call_rows(mc_elab *e, mc_call *c, int64_t *width)
{
    mc_value *x = mc_call_tensor(e, c, 0);
    if (!x) return NULL;
    bool constant = x->type->rank >= 1 && mc_dim_is_const(mc_type_last(x->type)) && mc_type_is_float(x->type);
    if (constant) {
        *width = mc_type_last(x->type).mul;
        return x;
    }
    mc_elab_error(e, c->tensor_spans[0], mc_type_is_float(x->type) ? MC_E0310 : MC_E0318,
                  "%.*s needs floats [..., d] with a constant d, this is %.*s", MC_FMT(c->name),
                  MC_FMT(mc_type_text(e->module, x->type, e->arena)));
    return NULL;
}

bool
mc_call_tensor_param(mc_elab *e, mc_call *c, const char *name, mc_value **out)
{
    const mc_call_param *p = mc_param(c, name);
    *out = NULL;
    if (!p) return true;
    if (!mc_val_is_tensor(p->value)) {
        mc_elab_error(e, p->span, MC_E0306, "%.*s: '%s' must be a tensor or @weight, this is %s", MC_FMT(c->name), name,
                      mc_val_kind_text(p->value));
        return false;
    }
    *out = mc_tensor_of(e, p->value, p->span, name);
    return *out != NULL;
}
