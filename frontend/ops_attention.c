/* Ops that know positions: rotary embedding, attention, caches and scans. */
#include "frontend/builtins.h"

#include <math.h>

/* ---- rotary embedding ---- */

static bool
read_scaling(mc_elab *e, mc_call *c, const char **kind, mc_attr *args)
{
    const mc_call_param *p = mc_param(c, "scaling");
    *kind = "none";
    *args = (mc_attr){.kind = MC_ATTR_FLOATS};
    if (!p) return true;
    if (p->value.kind == MC_VAL_SCALING) {
        *kind = p->value.as.scaling->kind;
        args->as.floats.items = (double *)p->value.as.scaling->args;
        args->as.floats.n = p->value.as.scaling->n_args;
        return true;
    }
    if (mc_val_is_number(p->value) && mc_val_number(p->value) > 0) {
        *kind = "linear";
        args->as.floats.items = MC_NEW(e->arena, double);
        args->as.floats.items[0] = mc_val_number(p->value);
        args->as.floats.n = 1;
        return true;
    }
    mc_elab_error(e, p->span, MC_E0306, "rope: 'scaling' is yarn(...), llama3(...), a factor, or none");
    return false;
}

mc_val
mc_op_rope(mc_elab *e, mc_call *c)
{
    int64_t width, dims = 0;
    double theta = 1e4;
    int adjacent = 0;
    const char *kind;
    mc_attr args;
    mc_value *x = mc_call_rows(e, c, &width);
    if (!x || !mc_param_real(e, c, "theta", &theta) || !mc_param_int(e, c, "dims", 2, width, &dims) ||
        !mc_param_word(e, c, "pairs", "half adjacent", &adjacent) || !read_scaling(e, c, &kind, &args))
        return mc_val_poison();
    if (x->type->rank != 4)
        return mc_elab_error(e, c->tensor_spans[0], MC_E0310, "rope rotates heads [B, S, H, h], this is %.*s",
                             MC_FMT(mc_shape_text(e, x->type)));
    if ((dims ? dims : width) % 2)
        return mc_elab_error(e, c->span, MC_E0306, "rope rotates pairs: %lld channels is an odd number",
                             (long long)(dims ? dims : width));
    if (!(theta > 0)) return mc_elab_error(e, mc_param(c, "theta")->span, MC_E0306, "rope: 'theta' must be above 0");
    const mc_named_attr attrs[] = {MC_A_FLOAT("theta", theta),
                                   MC_A_INT("dims", dims),
                                   MC_A_BOOL("adjacent", adjacent),
                                   MC_A_STR("scaling", mc_str_of(kind)),
                                   {"args", args}};
    return mc_emit(e, c->span, MC_OP_ROPE, &x, 1, attrs, args.as.floats.n ? 5 : 4);
}

static mc_val
scaling_value(mc_elab *e, const char *kind, const double *args, size_t n, mc_span span)
{
    mc_scaling *s = MC_NEW(e->arena, mc_scaling);
    s->kind = kind;
    s->n_args = n;
    for (size_t i = 0; i < n; i++) s->args[i] = args[i];
    return (mc_val){.kind = MC_VAL_SCALING, .span = span, .as.scaling = s};
}

/* Reads the named reals in order; each but the last n_zero must be above 0. */
static bool
read_reals(mc_elab *e, mc_call *c, const char *const *names, double *values, size_t n, size_t n_zero)
{
    for (size_t i = 0; i < n; i++) {
        if (!mc_param_real(e, c, names[i], &values[i])) return false;
        if (values[i] > 0 || (values[i] == 0 && i + n_zero >= n)) continue;
        const mc_call_param *p = mc_param(c, names[i]);
        mc_elab_error(e, p ? p->span : c->span, MC_E0306, "%.*s: '%s' must be above 0", MC_FMT(c->name), names[i]);
        return false;
    }
    return true;
}

mc_val
mc_op_yarn(mc_elab *e, mc_call *c)
{
    static const char *const names[] = {"factor", "original", "beta_fast", "beta_slow", "mscale", "mscale_all"};
    double v[MC_MAX_SCALING_ARGS] = {0, 0, 32, 1, 0, 0, 1, 0};
    bool truncate = true;
    if (!mc_param_needed(e, c, "factor") || !mc_param_needed(e, c, "original") || !read_reals(e, c, names, v, 6, 2) ||
        !mc_param_bool(e, c, "truncate", &truncate) || !mc_param_real(e, c, "attention_factor", &v[7]))
        return mc_val_poison();
    v[6] = truncate;
    if (v[7] < 0) return mc_elab_error(e, c->span, MC_E0306, "yarn: 'attention_factor' cannot be negative");
    return scaling_value(e, "yarn", v, 8, c->span);
}

mc_val
mc_op_llama3(mc_elab *e, mc_call *c)
{
    static const char *const names[] = {"factor", "low", "high", "original"};
    double v[] = {0, 1, 4, 0};
    if (!mc_param_needed(e, c, "factor") || !mc_param_needed(e, c, "original") || !read_reals(e, c, names, v, 4, 0))
        return mc_val_poison();
    return scaling_value(e, "llama3", v, 4, c->span);
}

/* What DeepSeek multiplies the softmax scale by, squared, when a context is stretched. */
mc_val
mc_op_yarn_mscale(mc_elab *e, mc_call *c)
{
    static const char *const names[] = {"factor", "m"};
    double v[] = {0, 1};
    if (!mc_param_needed(e, c, "factor") || !read_reals(e, c, names, v, 2, 1)) return mc_val_poison();
    return mc_val_real(v[0] > 1 ? 0.1 * v[1] * log(v[0]) + 1 : 1, c->span);
}

/* ---- attention ---- */

static bool
check_sdpa(mc_elab *e, mc_call *c, mc_value *const *t)
{
    for (size_t i = 0; i < 3; i++) {
        if (t[i]->type->rank == 4) continue;
        mc_elab_error(e, c->tensor_spans[i], MC_E0310, "sdpa: %.*s is [B, %s, heads, h], this is %.*s",
                      MC_FMT(c->tensor_names[i]), i ? "C" : "S", MC_FMT(mc_shape_text(e, t[i]->type)));
        return false;
    }
    const mc_type *q = t[0]->type, *k = t[1]->type, *v = t[2]->type;
    bool fits = mc_dim_eq(q->dims[0], k->dims[0]) && mc_dim_eq(q->dims[3], k->dims[3]) &&
                mc_dim_eq(k->dims[0], v->dims[0]) && mc_dim_eq(k->dims[1], v->dims[1]) &&
                mc_dim_eq(k->dims[2], v->dims[2]);
    if (!fits) {
        mc_elab_error(e, c->span, MC_E0310, "sdpa: q %.*s, k %.*s and v %.*s do not fit together",
                      MC_FMT(mc_shape_text(e, q)), MC_FMT(mc_shape_text(e, k)), MC_FMT(mc_shape_text(e, v)));
        for (size_t i = 0; i < 3; i++)
            if (c->tensors[i].span.file)
                mc_elab_note(e, c->tensors[i].span, "%.*s is made here", MC_FMT(c->tensor_names[i]));
        return false;
    }
    mc_dim group;
    if (mc_dim_div(q->dims[2], k->dims[2], &group) && mc_dim_is_const(group)) return true;
    mc_elab_error(e, c->span, MC_E0311, "sdpa: %.*s query heads do not divide over %.*s key heads",
                  MC_FMT(mc_val_str(e->module, mc_val_dim(q->dims[2], c->span), e->arena)),
                  MC_FMT(mc_val_str(e->module, mc_val_dim(k->dims[2], c->span), e->arena)));
    return false;
}

mc_val
mc_op_sdpa(mc_elab *e, mc_call *c)
{
    mc_value *t[5] = {0};
    for (size_t i = 0; i < 3; i++) {
        t[i] = mc_call_tensor(e, c, i);
        if (!t[i]) return mc_val_poison();
    }
    if (!check_sdpa(e, c, t)) return mc_val_poison();
    double width = mc_dim_is_const(t[0]->type->dims[3]) ? (double)t[0]->type->dims[3].mul : 1, softcap = 0;
    double scale = 1 / sqrt(width);
    bool causal = true;
    int64_t window = 0, chunk = 0;
    if (!mc_param_real(e, c, "scale", &scale) || !mc_param_int(e, c, "window", 1, INT32_MAX, &window) ||
        !mc_param_real(e, c, "softcap", &softcap) || !mc_param_bool(e, c, "causal", &causal) ||
        !mc_param_int(e, c, "chunk", 1, INT32_MAX, &chunk) || !mc_call_tensor_param(e, c, "sinks", &t[3]) ||
        !mc_call_tensor_param(e, c, "select", &t[4]))
        return mc_val_poison();
    if (softcap < 0) return mc_elab_error(e, c->span, MC_E0306, "sdpa: 'softcap' cannot be negative");
    const mc_named_attr attrs[] = {MC_A_FLOAT("scale", scale), MC_A_BOOL("causal", causal), MC_A_INT("window", window),
                                   MC_A_INT("chunk", chunk), MC_A_FLOAT("softcap", softcap)};
    return mc_emit(e, c->span, MC_OP_SDPA, t, t[4] ? 5 : t[3] ? 4 : 3, attrs, 5);
}

mc_val
mc_op_cache(mc_elab *e, mc_call *c)
{
    int64_t window = 0;
    mc_value *x = mc_call_tensor(e, c, 0);
    if (!x || !mc_param_int(e, c, "window", 1, INT32_MAX, &window)) return mc_val_poison();
    const mc_val *s = mc_map_get(&e->values, MC_STR("S"));
    bool new_positions = x->type->rank >= 2 && s && s->kind == MC_VAL_DIM && mc_dim_eq(x->type->dims[1], s->as.dim);
    if (!new_positions)
        return mc_elab_error(
            e, c->tensor_spans[0], MC_E0310,
            "cache takes [B, S, ...]: the second axis must be the dim S of the new positions, this is %.*s",
            MC_FMT(mc_shape_text(e, x->type)));
    e->has_cache = true;
    const mc_named_attr attrs[] = {MC_A_INT("window", window)};
    return mc_emit(e, c->span, MC_OP_CACHE, &x, 1, attrs, 1);
}

mc_val
mc_op_position(mc_elab *e, mc_call *c)
{
    mc_value *x = mc_call_tensor(e, c, 0);
    if (!x) return mc_val_poison();
    if (x->type->rank < 2)
        return mc_elab_error(e, c->tensor_spans[0], MC_E0310, "position takes [B, S, ...], this is %.*s",
                             MC_FMT(mc_shape_text(e, x->type)));
    return mc_emit(e, c->span, MC_OP_POSITION, &x, 1, NULL, 0);
}

mc_val
mc_op_top_keys(mc_elab *e, mc_call *c)
{
    mc_value *t[3];
    int64_t n = 0;
    for (size_t i = 0; i < 3; i++) {
        t[i] = mc_call_tensor(e, c, i);
        if (!t[i]) return mc_val_poison();
    }
    if (!mc_param_needed(e, c, "n") || !mc_param_int(e, c, "n", 1, INT32_MAX, &n)) return mc_val_poison();
    const mc_named_attr attrs[] = {MC_A_INT("n", n)};
    return mc_emit(e, c->span, MC_OP_TOP_KEYS, t, 3, attrs, 1);
}

mc_val
mc_op_selective_scan(mc_elab *e, mc_call *c)
{
    mc_value *t[5];
    for (size_t i = 0; i < 5; i++) {
        t[i] = mc_call_tensor(e, c, i);
        if (!t[i]) return mc_val_poison();
    }
    return mc_emit(e, c->span, MC_OP_SELECTIVE_SCAN, t, 5, NULL, 0);
}

mc_val
mc_op_delta_scan(mc_elab *e, mc_call *c)
{
    mc_value *t[5];
    for (size_t i = 0; i < 5; i++) {
        t[i] = mc_call_tensor(e, c, i);
        if (!t[i]) return mc_val_poison();
    }
    double scale = 1;
    if (t[0]->type->rank == 4 && mc_dim_is_const(mc_type_last(t[0]->type)))
        scale = 1 / sqrt((double)mc_type_last(t[0]->type).mul);
    if (!mc_param_real(e, c, "scale", &scale)) return mc_val_poison();
    const mc_named_attr attrs[] = {MC_A_FLOAT("scale", scale)};
    return mc_emit(e, c->span, MC_OP_DELTA_SCAN, t, 5, attrs, 1);
}
