/* Ops that own weights: linear, embed, norms, conv1d. Each makes its weights under the call's label, or takes one that
 * exists (weight = @path). */
#include "frontend/builtins.h"

static mc_value *
make(mc_elab *e, mc_call *c, const char *leaf, const mc_dim *dims, int rank, const char *role)
{
    mc_weight_spec spec = {
        .span = c->span, .label = c->label.text, .leaf = mc_str_of(leaf), .dims = dims, .rank = rank};
    spec.role = role;
    return mc_weight_make(e, &spec);
}

static bool
fits(mc_elab *e, mc_call *c, const char *param, mc_value *w, const mc_dim *dims, int rank)
{
    const mc_type *want = mc_type_get(e->module, w->type->dtype, dims, rank);
    if (want == w->type) return true;
    mc_elab_error(e, mc_param(c, param)->span, MC_E0310, "%.*s needs a weight %.*s, '%.*s' is %.*s", MC_FMT(c->name),
                  MC_FMT(mc_shape_text(e, want)), MC_FMT(mc_elab_quote(e, mc_param(c, param)->span)),
                  MC_FMT(mc_shape_text(e, w->type)));
    return false;
}

/* The weight given, or a new one. NULL after an error. */
static mc_value *
given_or_made(mc_elab *e, mc_call *c, const mc_dim *dims, int rank, const char *role)
{
    mc_value *w;
    if (!mc_call_tensor_param(e, c, "weight", &w)) return NULL;
    if (!w) return make(e, c, "weight", dims, rank, role);
    return fits(e, c, "weight", w, dims, rank) ? w : NULL;
}

mc_val
mc_op_linear(mc_elab *e, mc_call *c)
{
    int64_t in, out = 0;
    bool bias = false;
    moec_dtype dtype;
    mc_value *x = mc_call_rows(e, c, &in);
    if (!x || !mc_param_needed(e, c, "out") || !mc_param_int(e, c, "out", 1, MC_MAX_DIM, &out) ||
        !mc_param_bool(e, c, "bias", &bias) || !mc_param_dtype(e, c, "dtype", &dtype))
        return mc_val_poison();
    const char *role = mc_weight_role(e, true);
    const mc_dim dims[] = {mc_dim_const(out), mc_dim_const(in)};
    mc_value *w = given_or_made(e, c, dims, 2, role);
    mc_value *b = w && bias ? make(e, c, "bias", dims, 1, role) : NULL;
    if (!w || (bias && !b)) return mc_val_poison();
    return mc_emit(e, c->span, MC_OP_LINEAR, (mc_value *[]){x, w, b}, bias ? 3 : 2, NULL, 0);
}

mc_val
mc_apply_linear(mc_elab *e, mc_value *x, int64_t out, mc_str label, bool bias, const char *role, mc_span span)
{
    const mc_dim dims[] = {mc_dim_const(out), mc_type_last(x->type)};
    mc_weight_spec spec = {
        .span = span, .label = label, .leaf = MC_STR("weight"), .dims = dims, .rank = 2, .role = role};
    mc_value *w = mc_weight_make(e, &spec), *b = NULL;
    if (w && bias) {
        spec.leaf = MC_STR("bias");
        spec.rank = 1;
        b = mc_weight_make(e, &spec);
    }
    if (!w || (bias && !b)) return mc_val_poison();
    return mc_emit(e, span, MC_OP_LINEAR, (mc_value *[]){x, w, b}, bias ? 3 : 2, NULL, 0);
}

mc_val
mc_op_embed(mc_elab *e, mc_call *c)
{
    int64_t vocab = 0, dim = 0;
    mc_value *ids = mc_call_tensor(e, c, 0);
    if (!ids || !mc_param_needed(e, c, "vocab") || !mc_param_needed(e, c, "dim") ||
        !mc_param_int(e, c, "vocab", 1, MC_MAX_DIM, &vocab) || !mc_param_int(e, c, "dim", 1, MC_MAX_DIM, &dim))
        return mc_val_poison();
    if (mc_type_is_float(ids->type))
        return mc_elab_error(e, c->tensor_spans[0], MC_E0318,
                             "embed looks up integers; declare its tensor as i32, not %.*s",
                             MC_FMT(mc_type_text(e->module, ids->type, e->arena)));
    const mc_dim dims[] = {mc_dim_const(vocab), mc_dim_const(dim)};
    mc_value *table = given_or_made(e, c, dims, 2, "embed");
    if (!table) return mc_val_poison();
    return mc_emit(e, c->span, MC_OP_EMBED, (mc_value *[]){ids, table}, 2, NULL, 0);
}

/* ---- norms ---- */

/* weight = none: no weight; absent: a new one. False after an error. */
static bool
norm_weight(mc_elab *e, mc_call *c, int64_t width, mc_value **out)
{
    const mc_dim dim = mc_dim_const(width);
    for (size_t i = 0; i < c->n_params; i++) {
        bool off =
            mc_str_is(c->param_names[i], "weight") && c->params[i].given && c->params[i].value.kind == MC_VAL_NONE;
        if (!off) continue;
        *out = NULL;
        return true;
    }
    *out = given_or_made(e, c, &dim, 1, "norm");
    return *out != NULL;
}

static bool
read_eps(mc_elab *e, mc_call *c, double *eps)
{
    if (!mc_param_real(e, c, "eps", eps)) return false;
    if (*eps >= 0) return true;
    mc_elab_error(e, mc_param(c, "eps")->span, MC_E0306, "%.*s: 'eps' cannot be negative", MC_FMT(c->name));
    return false;
}

mc_val
mc_op_rmsnorm(mc_elab *e, mc_call *c)
{
    static const char *const rounds[] = {"before", "after"};
    int64_t width;
    double eps = 1e-6;
    bool plus_one = false;
    int round = 1;
    mc_value *x = mc_call_rows(e, c, &width), *w;
    if (!x || !read_eps(e, c, &eps) || !mc_param_bool(e, c, "plus_one", &plus_one) ||
        !mc_param_word(e, c, "round", "before after", &round) || !norm_weight(e, c, width, &w))
        return mc_val_poison();
    if (w && plus_one) mc_weight_begins(w, "zeros");
    const mc_named_attr attrs[] = {MC_A_FLOAT("eps", eps), MC_A_BOOL("plus_one", plus_one),
                                   MC_A_STR("round", mc_str_of(rounds[round]))};
    return mc_emit(e, c->span, MC_OP_RMSNORM, (mc_value *[]){x, w}, w ? 2 : 1, attrs, 3);
}

mc_val
mc_op_layernorm(mc_elab *e, mc_call *c)
{
    int64_t width;
    double eps = 1e-5;
    bool bias = true;
    mc_value *x = mc_call_rows(e, c, &width), *w, *b = NULL;
    if (!x || !read_eps(e, c, &eps) || !mc_param_bool(e, c, "bias", &bias) || !norm_weight(e, c, width, &w))
        return mc_val_poison();
    const mc_dim dim = mc_dim_const(width);
    if (bias && w) b = make(e, c, "bias", &dim, 1, "norm");
    if (bias && w && !b) return mc_val_poison();
    const mc_named_attr attrs[] = {MC_A_FLOAT("eps", eps)};
    return mc_emit(e, c->span, MC_OP_LAYERNORM, (mc_value *[]){x, w, b}, b ? 3 : w ? 2 : 1, attrs, 1);
}

mc_val
mc_op_l2norm(mc_elab *e, mc_call *c)
{
    int64_t width;
    double eps = 1e-6;
    mc_value *x = mc_call_rows(e, c, &width);
    if (!x || !read_eps(e, c, &eps)) return mc_val_poison();
    const mc_named_attr attrs[] = {MC_A_FLOAT("eps", eps)};
    return mc_emit(e, c->span, MC_OP_L2NORM, &x, 1, attrs, 1);
}

mc_val
mc_op_conv1d(mc_elab *e, mc_call *c)
{
    int64_t width, size = 0;
    bool bias = false;
    mc_value *x = mc_call_rows(e, c, &width);
    if (!x || !mc_param_needed(e, c, "size") || !mc_param_int(e, c, "size", 1, 1 << 16, &size) ||
        !mc_param_bool(e, c, "bias", &bias))
        return mc_val_poison();
    const char *role = mc_weight_role(e, false);
    const mc_dim dims[] = {mc_dim_const(width), mc_dim_const(1), mc_dim_const(size)};
    mc_value *w = make(e, c, "weight", dims, 3, role);
    mc_value *b = w && bias ? make(e, c, "bias", dims, 1, role) : NULL;
    if (!w || (bias && !b)) return mc_val_poison();
    return mc_emit(e, c->span, MC_OP_CONV1D, (mc_value *[]){x, w, b}, b ? 3 : 2, NULL, 0);
}
