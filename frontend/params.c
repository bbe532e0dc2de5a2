/* Reading the compile-time arguments of a call, with the checks that every op needs. A value of none counts as not
 * given. Each function leaves *value alone when the argument is absent, so the caller's default stands. */
#include "frontend/elab.h"

#include <assert.h>

#include "runtime/base/dtype.h"

static int
index_of(const mc_call *c, const char *name)
{
    for (size_t i = 0; i < c->n_params; i++) {
        if (mc_str_is(c->param_names[i], name)) return (int)i;
    }
    assert(!"no such parameter in the signature");
    return 0;
}

const mc_call_param *
mc_param(const mc_call *c, const char *name)
{
    const mc_call_param *p = &c->params[index_of(c, name)];
    return p->given && p->value.kind != MC_VAL_NONE ? p : NULL;
}

bool
mc_param_needed(mc_elab *e, const mc_call *c, const char *name)
{
    if (mc_param(c, name)) return true;
    mc_elab_error(e, c->span, MC_E0307, "%.*s needs '%s'", MC_FMT(c->name), name);
    return false;
}

static bool
wrong_kind(mc_elab *e, const mc_call *c, const char *name, const mc_call_param *p, const char *wanted)
{
    bool run_time = mc_val_is_tensor(p->value) || p->value.kind == MC_VAL_DIM;
    mc_elab_error(e, p->span, run_time ? MC_E0309 : MC_E0306, "%.*s: '%s' must be %s, this is %s", MC_FMT(c->name),
                  name, wanted, mc_val_kind_text(p->value));
    return false;
}

bool
mc_param_int(mc_elab *e, const mc_call *c, const char *name, int64_t lo, int64_t hi, int64_t *value)
{
    const mc_call_param *p = mc_param(c, name);
    if (!p) return true;
    if (p->value.kind != MC_VAL_INT) return wrong_kind(e, c, name, p, "a whole number");
    if (p->value.as.i < lo || p->value.as.i > hi) {
        mc_elab_error(e, p->span, p->value.as.i > hi ? MC_E0319 : MC_E0306,
                      "%.*s: '%s' is %lld; it must be in %lld..%lld", MC_FMT(c->name), name, (long long)p->value.as.i,
                      (long long)lo, (long long)hi);
        return false;
    }
    *value = p->value.as.i;
    return true;
}

bool
mc_param_real(mc_elab *e, const mc_call *c, const char *name, double *value)
{
    const mc_call_param *p = mc_param(c, name);
    if (!p) return true;
    if (!mc_val_is_number(p->value)) return wrong_kind(e, c, name, p, "a number");
    *value = mc_val_number(p->value);
    return true;
}

bool
mc_param_bool(mc_elab *e, const mc_call *c, const char *name, bool *value)
{
    const mc_call_param *p = mc_param(c, name);
    if (!p) return true;
    if (p->value.kind != MC_VAL_BOOL) return wrong_kind(e, c, name, p, "true or false");
    *value = p->value.as.b;
    return true;
}

bool
mc_param_word(mc_elab *e, const mc_call *c, const char *name, const char *allowed, int *value)
{
    const mc_call_param *p = mc_param(c, name);
    if (!p) return true;
    mc_strs words = mc_elab_words(e, allowed);
    bool text = p->value.kind == MC_VAL_WORD || p->value.kind == MC_VAL_STRING;
    mc_str word = text ? p->value.as.s : p->value.kind == MC_VAL_FN ? p->value.as.fn->name : MC_STR("");
    for (size_t i = 0; i < words.n; i++) {
        if (!mc_str_eq(word, words.items[i])) continue;
        *value = (int)i;
        return true;
    }
    mc_elab_error(e, p->span, MC_E0306, "%.*s: '%s' is one of %.*s%.*s", MC_FMT(c->name), name,
                  MC_FMT(mc_elab_join(e, words.items, words.n)), MC_FMT(mc_elab_hint(e, word, words.items, words.n)));
    return false;
}

bool
mc_param_dtype(mc_elab *e, const mc_call *c, const char *name, moec_dtype *value)
{
    const mc_call_param *p = mc_param(c, name);
    if (!p) return true;
    moec_dtype dtype = p->value.kind == MC_VAL_WORD ? mc_dtype_parse(p->value.as.s) : MOEC_DTYPE_NONE;
    if (dtype == MOEC_F32 || dtype == MOEC_BF16 || dtype == MOEC_F16 || dtype == MOEC_I32) {
        *value = dtype;
        return true;
    }
    mc_elab_error(e, p->span, MC_E0318, "%.*s: '%s' is one of f32, bf16, f16, i32", MC_FMT(c->name), name);
    return false;
}
