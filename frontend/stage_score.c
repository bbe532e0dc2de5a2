/* Stages that make and transform scores. */
#include "frontend/route_stages.h"

static bool
unary(mc_elab *e, mc_route_state *r, mc_call *c, mc_opcode opcode)
{
    mc_value *v = r->value;
    if (!mc_stage_needs_scores(e, r, c) || !mc_stage_emit(e, c->span, opcode, &v, 1, NULL, 0, &v)) return false;
    mc_stage_set_value(r, v);
    return true;
}

static bool
binary(mc_elab *e, mc_route_state *r, mc_call *c, mc_opcode opcode, mc_value *by)
{
    mc_value *v;
    if (!by || !mc_stage_emit(e, c->span, opcode, (mc_value *[]){r->value, by}, 2, NULL, 0, &v)) return false;
    mc_stage_set_value(r, v);
    return true;
}

static bool
positive(mc_elab *e, mc_call *c, const char *name, double *value)
{
    if (!mc_param_needed(e, c, name) || !mc_param_real(e, c, name, value)) return false;
    if (*value > 0) return true;
    mc_elab_error(e, mc_param(c, name)->span, MC_E0306, "%.*s: '%s' must be above 0", MC_FMT(c->name), name);
    return false;
}

bool
mc_stage_linear(mc_elab *e, mc_route_state *r, mc_call *c)
{
    bool bias = false;
    if (!mc_param_bool(e, c, "bias", &bias)) return false;
    if (r->value) {
        mc_elab_error(e, c->span, MC_E0330, "a route scores its experts once: this is a second linear");
        return false;
    }
    mc_val v = mc_apply_linear(e, r->input, r->n_experts, c->label.text, bias, "router", c->span);
    if (v.kind != MC_VAL_TENSOR) return false;
    r->value = r->key = v.as.tensor;
    return true;
}

bool
mc_stage_softmax(mc_elab *e, mc_route_state *r, mc_call *c)
{
    if (r->chosen_tokens) {
        mc_elab_error(e, c->span, MC_E0330,
                      "softmax cannot follow choose_tokens: not every expert took the token; use renorm");
        return false;
    }
    *(r->chosen ? &r->softmax_after : &r->softmax_before) = true;
    if (r->chosen) r->softmax_span = c->span;
    return unary(e, r, c, MC_OP_SOFTMAX);
}

bool
mc_stage_sigmoid(mc_elab *e, mc_route_state *r, mc_call *c)
{
    return unary(e, r, c, MC_OP_SIGMOID);
}

bool
mc_stage_sqrtsoftplus(mc_elab *e, mc_route_state *r, mc_call *c)
{
    return unary(e, r, c, MC_OP_SOFTPLUS) && unary(e, r, c, MC_OP_SQRT);
}

/* Biases are updated between steps and tiny beside 1, so they are kept in f32. */
static mc_value *
bias_weight(mc_elab *e, mc_route_state *r, mc_call *c)
{
    const mc_dim n = mc_dim_const(r->n_experts);
    if (!mc_stage_needs_scores(e, r, c)) return NULL;
    if (r->candidates) {
        mc_elab_error(e, c->span, MC_E0304, "%.*s must stand before hash, while there is a score for every expert",
                      MC_FMT(c->name));
        return NULL;
    }
    r->has_bias = true;
    return mc_stage_weight(e, c, "", &n, 1, MOEC_F32);
}

bool
mc_stage_select_bias(mc_elab *e, mc_route_state *r, mc_call *c)
{
    if (!mc_stage_before_choice(e, r, c, "put it before top")) return false;
    mc_value *b = bias_weight(e, r, c);
    return b && mc_stage_emit(e, c->span, MC_OP_ADD, (mc_value *[]){r->key, b}, 2, NULL, 0, &r->key);
}

bool
mc_stage_logit_bias(mc_elab *e, mc_route_state *r, mc_call *c)
{
    if (!mc_stage_before_choice(e, r, c, "put it right after linear")) return false;
    return binary(e, r, c, MC_OP_ADD, bias_weight(e, r, c));
}

bool
mc_stage_renorm(mc_elab *e, mc_route_state *r, mc_call *c)
{
    double eps = 0, p = 1, floor = 0;
    mc_value *v = r->value;
    if (!mc_stage_needs_scores(e, r, c) || !mc_param_real(e, c, "eps", &eps) || !mc_param_real(e, c, "p", &p) ||
        !mc_param_real(e, c, "floor", &floor))
        return false;
    if (eps < 0 || floor < 0 || !(p > 0)) {
        mc_elab_error(e, c->span, MC_E0306, "renorm: 'eps' and 'floor' cannot be negative, 'p' must be above 0");
        return false;
    }
    if (r->chosen && r->k == 1 && eps < 1e-6 && floor == 0 && !r->chosen_tokens)
        mc_elab_warn(e, c->span, MC_W0302, "renorm of a single weight always gives 1, and the router gets no gradient");
    const mc_named_attr attrs[] = {MC_A_FLOAT("eps", eps), MC_A_FLOAT("p", p), MC_A_FLOAT("floor", floor)};
    if (!mc_stage_emit(e, c->span, MC_OP_ROUTE_RENORM, &v, 1, attrs, 3, &v)) return false;
    mc_stage_set_value(r, v);
    return true;
}

/* Before linear it scales the router's input. */
bool
mc_stage_scale(mc_elab *e, mc_route_state *r, mc_call *c)
{
    double by = 1;
    if (!mc_param_needed(e, c, "by") || !mc_param_real(e, c, "by", &by)) return false;
    mc_value *factor = mc_build_const(&e->frame->builder, by);
    if (r->value) return binary(e, r, c, MC_OP_MUL, factor);
    return mc_stage_emit(e, c->span, MC_OP_MUL, (mc_value *[]){r->input, factor}, 2, NULL, 0, &r->input);
}

bool
mc_stage_expert_scale(mc_elab *e, mc_route_state *r, mc_call *c)
{
    const mc_dim n = mc_dim_const(r->n_experts);
    if (!mc_stage_needs_scores(e, r, c)) return false;
    mc_value *s = mc_stage_weight(e, c, "", &n, 1, MOEC_F32);
    if (s) mc_weight_begins(s, "ones");
    mc_value *ids = r->chosen ? r->ids : r->candidates;
    if (s && ids && !mc_stage_emit(e, c->span, MC_OP_ROUTE_TAKE, (mc_value *[]){s, ids}, 2, NULL, 0, &s)) return false;
    return binary(e, r, c, MC_OP_MUL, s);
}

bool
mc_stage_temperature(mc_elab *e, mc_route_state *r, mc_call *c)
{
    double t = 1;
    if (!mc_stage_needs_scores(e, r, c) || !positive(e, c, "t", &t)) return false;
    return binary(e, r, c, MC_OP_DIV, mc_build_const(&e->frame->builder, t));
}

bool
mc_stage_softcap(mc_elab *e, mc_route_state *r, mc_call *c)
{
    double cap = 1;
    mc_value *v = r->value;
    if (!mc_stage_needs_scores(e, r, c) || !positive(e, c, "cap", &cap)) return false;
    const mc_named_attr attrs[] = {MC_A_FLOAT("cap", cap)};
    if (!mc_stage_emit(e, c->span, MC_OP_SOFTCAP, &v, 1, attrs, 1, &v)) return false;
    mc_stage_set_value(r, v);
    return true;
}

bool
mc_stage_rmsnorm(mc_elab *e, mc_route_state *r, mc_call *c)
{
    double eps = 1e-6;
    bool plus_one = false;
    if (!mc_param_real(e, c, "eps", &eps) || !mc_param_bool(e, c, "plus_one", &plus_one)) return false;
    if (r->value || eps < 0) {
        mc_elab_error(e, c->span, r->value ? MC_E0304 : MC_E0306,
                      r->value ? "rmsnorm normalises the router's input: put it before linear"
                               : "rmsnorm: 'eps' cannot be negative");
        return false;
    }
    const mc_dim d = mc_type_last(r->input->type);
    mc_weight_spec spec = {.span = c->span, .label = c->label.text, .leaf = MC_STR("weight"), .dims = &d, .rank = 1};
    spec.role = "norm";
    mc_value *w = mc_weight_make(e, &spec);
    if (w && plus_one) mc_weight_begins(w, "zeros");
    const mc_named_attr attrs[] = {MC_A_FLOAT("eps", eps), MC_A_BOOL("plus_one", plus_one)};
    return w && mc_stage_emit(e, c->span, MC_OP_RMSNORM, (mc_value *[]){r->input, w}, 2, attrs, 2, &r->input);
}

/* ---- stages that act in training only: checked, kept as text, no ops ---- */

static bool
training(mc_elab *e, mc_route_state *r, mc_call *c, const char *param)
{
    double amount = 0;
    if (param && (!mc_param_needed(e, c, param) || !mc_param_real(e, c, param, &amount))) return false;
    if (amount < 0) {
        mc_elab_error(e, mc_param(c, param)->span, MC_E0306, "%.*s: '%s' cannot be negative", MC_FMT(c->name), param);
        return false;
    }
    mc_str text = param ? mc_strf(e->arena, "%.*s(%.*s)", MC_FMT(c->name),
                                  MC_FMT(mc_val_str(e->module, mc_param(c, param)->value, e->arena)))
                        : c->name;
    mc_vec_push(e->arena, &r->training, text);
    return true;
}

bool
mc_stage_jitter(mc_elab *e, mc_route_state *r, mc_call *c)
{
    if (!r->value) return training(e, r, c, "eps");
    mc_elab_error(e, c->span, MC_E0304, "jitter multiplies the router's input: put it before linear");
    return false;
}

bool
mc_stage_noise(mc_elab *e, mc_route_state *r, mc_call *c)
{
    return mc_stage_needs_scores(e, r, c) && mc_stage_before_choice(e, r, c, "put it before top") &&
           training(e, r, c, "std");
}

bool
mc_stage_perturb(mc_elab *e, mc_route_state *r, mc_call *c)
{
    return mc_stage_needs_scores(e, r, c) && mc_stage_before_choice(e, r, c, "put it before top") &&
           training(e, r, c, "std");
}

bool
mc_stage_straight_through(mc_elab *e, mc_route_state *r, mc_call *c)
{
    if (r->chosen) return training(e, r, c, NULL);
    mc_elab_error(e, c->span, MC_E0304,
                  "straight_through changes the gradient of the chosen weights: put it after top");
    return false;
}
