/* Routes: the stages in the order of the text. Each candidate has a value (it becomes the weight) and a key (it decides
 * the choice); they are one tensor until a stage sets the key apart. */
#include "frontend/route_stages.h"

typedef struct stage_def {
    const char *name, *params;
    bool has_weights;
    bool (*run)(mc_elab *e, mc_route_state *r, mc_call *c);
} stage_def;

static const stage_def stage_defs[] = {
#define MC_STAGE(name, params, has_weights) {#name, params " when dtype", has_weights, mc_stage_##name},
#include "frontend/stages.def"
#undef MC_STAGE
};
enum { N_STAGES = sizeof stage_defs / sizeof stage_defs[0] };

static const stage_def *
find_stage(mc_elab *e, const mc_route_stage *s)
{
    mc_str names[N_STAGES];
    for (int i = 0; i < N_STAGES; i++) {
        names[i] = mc_str_of(stage_defs[i].name);
        if (mc_str_eq(s->name.text, names[i])) return &stage_defs[i];
    }
    mc_str hint = mc_elab_hint(e, s->name.text, names, N_STAGES);
    if (!hint.len && mc_str_starts(s->name.text, "top")) hint = MC_STR(" (did you mean 'top'?)");
    mc_elab_error(e, s->name.span, MC_E0305, "route has no stage '%.*s'; stages: %.*s%.*s", MC_FMT(s->name.text),
                  MC_FMT(mc_elab_join(e, names, N_STAGES)), MC_FMT(hint));
    return NULL;
}

bool
mc_stage_emit(mc_elab *e, mc_span span, mc_opcode opcode, mc_value *const *operands, int n_operands,
              const mc_named_attr *attrs, int n_attrs, mc_value **v)
{
    mc_val made = mc_emit(e, span, opcode, operands, n_operands, attrs, n_attrs);
    if (made.kind != MC_VAL_TENSOR) return false;
    *v = made.as.tensor;
    return true;
}

void
mc_stage_set_value(mc_route_state *r, mc_value *v)
{
    if (r->key == r->value) r->key = v;
    r->value = v;
}

bool
mc_stage_needs_scores(mc_elab *e, mc_route_state *r, const mc_call *c)
{
    if (r->value) return true;
    mc_elab_error(e, c->span, MC_E0304,
                  "%.*s has nothing to work on: no stage before it has scored the experts; put it after linear",
                  MC_FMT(c->name));
    return false;
}

bool
mc_stage_before_choice(mc_elab *e, mc_route_state *r, const mc_call *c, const char *why)
{
    if (!r->chosen) return true;
    mc_elab_error(e, c->span, MC_E0304, "%.*s after %s has no effect: the choice is already made; %s", MC_FMT(c->name),
                  r->chosen_by, why);
    mc_elab_note(e, r->chosen_span, "the choice");
    return false;
}

mc_value *
mc_stage_weight(mc_elab *e, const mc_call *c, const char *leaf, const mc_dim *dims, int rank, moec_dtype dtype)
{
    mc_weight_spec spec = {
        .span = c->span, .label = c->label.text, .leaf = mc_str_of(leaf), .dims = dims, .rank = rank};
    spec.role = "router";
    spec.dtype = dtype;
    return mc_weight_make(e, &spec);
}

/* Arguments, `when`, then the stage's own function. */
static bool
run_stage(mc_elab *e, mc_route_state *r, const mc_route_stage *s)
{
    const stage_def *def = find_stage(e, s);
    if (!def) return false;
    size_t n;
    mc_fn_arg *args = mc_eval_args(e, s->args, &n);
    if (!args) return false;
    mc_strs params = mc_elab_words(e, def->params);
    mc_call c = {.span = s->span, .name = s->name.text, .param_names = params.items, .n_params = params.n};
    bool gate = mc_str_is(s->name.text, "linear");
    c.label = s->label.text.len ? s->label : (mc_word){gate ? MC_STR("gate") : s->name.text, s->name.span};
    if (s->label.text.len && !def->has_weights) {
        mc_elab_error(e, s->label.span, MC_E0306, "%s has no weights, so a label names nothing", def->name);
        return false;
    }
    bool on = true;
    moec_dtype dtype;
    if (!mc_call_bind(e, &c, args, n, false) || !mc_param_bool(e, &c, "when", &on) ||
        !mc_param_dtype(e, &c, "dtype", &dtype))
        return false;
    mc_elab_see(e, s, on);
    return !on || def->run(e, r, &c);
}

static bool
finish(mc_elab *e, mc_route_state *r)
{
    if (!r->chosen) {
        mc_elab_error(e, r->span, MC_E0303,
                      "the route never selects experts; add 'top k' (or choose_tokens, lookup, sparsemixer)");
        return false;
    }
    if (r->softmax_before && r->softmax_after)
        mc_elab_warn(e, r->softmax_span, MC_W0301,
                     "softmax both before and after %s: the second one flattens the weights", r->chosen_by);
    return true;
}

bool
mc_run_route(mc_elab *e, const mc_route_stage *stages, mc_route_state *r)
{
    mc_region region = e->region;
    e->region = MC_REGION_ROUTER;
    r->n_candidates = r->n_experts;
    bool ok = true;
    for (const mc_route_stage *s = stages; s && ok; s = s->next) ok = run_stage(e, r, s);
    e->region = region;
    return ok && finish(e, r);
}

/* ---- the gate of shared experts ---- */

static const char gate_stages[] = "linear sigmoid softmax tanh silu relu softplus scale";

static mc_val
gate_linear(mc_elab *e, const mc_route_stage *s, const mc_fn_arg *args, size_t n, mc_value *x)
{
    mc_strs params = mc_elab_words(e, "out bias dtype");
    mc_call c = {.span = s->span, .name = s->name.text, .param_names = params.items, .n_params = params.n};
    int64_t out = 0;
    bool bias = false;
    moec_dtype dtype;
    if (!mc_call_bind(e, &c, args, n, false) || !mc_param_needed(e, &c, "out") ||
        !mc_param_int(e, &c, "out", 1, MC_MAX_DIM, &out) || !mc_param_bool(e, &c, "bias", &bias) ||
        !mc_param_dtype(e, &c, "dtype", &dtype))
        return mc_val_poison();
    mc_str label = s->label.text.len ? s->label.text : MC_STR("shared_gate");
    return mc_apply_linear(e, x, out, label, bias, "shared", s->span);
}

static mc_val
gate_stage(mc_elab *e, const mc_route_stage *s, mc_value *x)
{
    size_t n;
    mc_fn_arg *args = mc_eval_args(e, s->args, &n);
    if (!args) return mc_val_poison();
    mc_strs names = mc_elab_words(e, gate_stages);
    bool known = false;
    for (size_t i = 0; i < names.n; i++) known = known || mc_str_eq(names.items[i], s->name.text);
    if (!known)
        return mc_elab_error(e, s->name.span, MC_E0305, "a gate has no stage '%.*s'; stages: %.*s%.*s",
                             MC_FMT(s->name.text), MC_FMT(mc_elab_join(e, names.items, names.n)),
                             MC_FMT(mc_elab_hint(e, s->name.text, names.items, names.n)));
    if (mc_str_is(s->name.text, "linear")) return gate_linear(e, s, args, n, x);
    if (mc_str_is(s->name.text, "scale")) {
        if (n != 1 || !mc_val_is_number(args[0].value))
            return mc_elab_error(e, s->span, MC_E0306, "scale takes one number");
        mc_value *by = mc_build_const(&e->frame->builder, mc_val_number(args[0].value));
        return mc_emit(e, s->span, MC_OP_MUL, (mc_value *[]){x, by}, 2, NULL, 0);
    }
    if (n) return mc_elab_error(e, s->span, MC_E0306, "%.*s takes no arguments", MC_FMT(s->name.text));
    mc_opcode opcode = mc_opcode_find(s->name.text);
    return mc_emit(e, s->span, opcode, &x, 1, NULL, 0);
}

mc_val
mc_run_gate(mc_elab *e, const mc_route_stage *stages, mc_value *x)
{
    mc_val v = mc_val_tensor(x, stages->span);
    for (const mc_route_stage *s = stages; s && v.kind == MC_VAL_TENSOR; s = s->next) v = gate_stage(e, s, v.as.tensor);
    return v;
}
