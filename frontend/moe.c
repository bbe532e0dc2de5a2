/* moe@label(x) { ... }: a `moe` op with the route as one function and the expert's body as another; what stands around
 * them (projections to a latent, shared experts) are ordinary ops. */
#include "frontend/elab.h"

#include "ir/edit.h"

typedef struct moe {
    mc_elab *e;
    const mc_expr *x;
    const mc_clause *route, *experts, *shared, *identity, *latent, *capacity, *combine;
    mc_value *input;  /* what the construct receives */
    mc_value *router; /* what the router reads */
    mc_value *rows;   /* what the experts read: input or its latent */
    int64_t width, n_experts, n_identity, latent_width;
    bool router_in_latent;
    mc_val latent_norm;
    double capacity_factor;
    int per, drop;
} moe;

static const mc_clause **
clause_slot(moe *m, mc_clause_kind kind)
{
    switch (kind) {
    case MC_CLAUSE_ROUTE: return &m->route;
    case MC_CLAUSE_EXPERTS: return &m->experts;
    case MC_CLAUSE_SHARED: return &m->shared;
    case MC_CLAUSE_IDENTITY: return &m->identity;
    case MC_CLAUSE_LATENT: return &m->latent;
    case MC_CLAUSE_CAPACITY: return &m->capacity;
    case MC_CLAUSE_COMBINE: return &m->combine;
    }
    return NULL;
}

static bool
sort_clauses(moe *m)
{
    mc_elab *e = m->e;
    for (const mc_clause *c = m->x->clauses; c; c = c->next) {
        const mc_clause **slot = clause_slot(m, c->kind);
        if (*slot) {
            mc_elab_error(e, c->span, MC_E0330, "moe takes one clause of this kind");
            mc_elab_note(e, (*slot)->span, "the first one");
            return false;
        }
        *slot = c;
    }
    if (!m->route) {
        mc_elab_error(e, m->x->span, MC_E0303,
                      "moe has no route; add, for example: route linear | softmax | top 2 | renorm");
        return false;
    }
    if (!m->experts) {
        mc_elab_error(e, m->x->span, MC_E0307, "moe has no experts; add, for example: experts 8 of swiglu(14336)");
        return false;
    }
    if (m->experts->stages) {
        mc_elab_error(e, m->experts->stages->span, MC_E0330,
                      "only shared experts have a gate; routed ones have the route");
        return false;
    }
    if (m->combine && !m->shared) {
        mc_elab_error(e, m->combine->span, MC_E0304, "combine has no effect without shared experts");
        return false;
    }
    return true;
}

/* Binds the arguments of a clause as if they were a call. */
static bool
bind_clause(mc_elab *e, const mc_clause *clause, const char *name, const char *params, mc_call *c)
{
    size_t n;
    mc_fn_arg *args = mc_eval_args(e, clause->args, &n);
    mc_strs names = mc_elab_words(e, params);
    *c = (mc_call){.span = clause->span, .name = mc_str_of(name), .param_names = names.items, .n_params = names.n};
    return args && mc_call_bind(e, c, args, n, false);
}

static bool
read_input(moe *m)
{
    mc_elab *e = m->e;
    size_t n;
    mc_fn_arg *args = mc_eval_args(e, m->x->items, &n);
    const mc_str tensors[] = {MC_STR_INIT("x")}, params[] = {MC_STR_INIT("router")};
    mc_call c = {.span = m->x->span,
                 .name = MC_STR("moe"),
                 .tensor_names = tensors,
                 .n_tensor_names = 1,
                 .param_names = params,
                 .n_params = 1};
    if (!args || !mc_call_bind(e, &c, args, n, false)) return false;
    mc_value *x = c.n_tensors ? mc_tensor_of(e, c.tensors[0], c.tensor_spans[0], "the input of moe") : NULL;
    if (c.n_tensors == 0) mc_elab_error(e, m->x->span, MC_E0307, "moe takes a tensor, as in moe(x) { ... }");
    if (!x) return false;
    bool good = mc_type_is_float(x->type) && x->type->rank >= 1 && mc_dim_is_const(mc_type_last(x->type));
    if (!good) {
        mc_elab_error(e, c.tensor_spans[0], mc_type_is_float(x->type) ? MC_E0310 : MC_E0318,
                      "moe takes floats [..., d] with a constant d, this is %.*s",
                      MC_FMT(mc_type_text(e->module, x->type, e->arena)));
        return false;
    }
    m->input = m->router = m->rows = mc_tensor_cast(e, x, MOEC_F32);
    m->width = mc_type_last(x->type).mul;
    const mc_call_param *router = mc_param(&c, "router");
    if (!router) return true;
    m->router = mc_tensor_of(e, router->value, router->span, "router");
    if (!m->router) return false;
    m->router = mc_tensor_cast(e, m->router, MOEC_F32);
    const mc_type *t = m->router->type;
    bool fits = t->rank == x->type->rank && mc_dim_is_const(mc_type_last(t));
    for (int i = 0; fits && i < t->rank - 1; i++) fits = mc_dim_eq(t->dims[i], x->type->dims[i]);
    if (!fits)
        mc_elab_error(e, router->span, MC_E0310, "the router's input %.*s does not go with the input %.*s",
                      MC_FMT(mc_shape_text(e, t)), MC_FMT(mc_shape_text(e, x->type)));
    return fits;
}

static bool
read_latent(moe *m)
{
    mc_elab *e = m->e;
    mc_call c;
    m->latent_norm = mc_val_none(m->x->span);
    if (!m->latent) return true;
    if (!bind_clause(e, m->latent, "latent", "width router norm", &c) || !mc_param_needed(e, &c, "width") ||
        !mc_param_int(e, &c, "width", 1, MC_MAX_DIM, &m->latent_width) ||
        !mc_param_bool(e, &c, "router", &m->router_in_latent))
        return false;
    const mc_call_param *norm = mc_param(&c, "norm");
    if (norm) m->latent_norm = norm->value;
    if (m->router_in_latent && m->router != m->input) {
        mc_elab_error(e, m->latent->span, MC_E0330,
                      "the router reads either the latent (router = true) or another tensor");
        return false;
    }
    mc_val v = mc_apply_linear(e, m->input, m->latent_width, MC_STR("latent_down"), false, mc_weight_role(e, false),
                               m->latent->span);
    if (v.kind != MC_VAL_TENSOR) return false;
    m->rows = v.as.tensor;
    if (m->router_in_latent) m->router = m->rows;
    return true;
}

static bool
read_numbers(moe *m)
{
    enum { MAX_EXPERTS = 1 << 20 };
    mc_elab *e = m->e;
    mc_call c;
    if (!mc_eval_int(e, m->experts->count, "the number of experts", 1, MAX_EXPERTS, &m->n_experts)) return false;
    if (m->identity && (!bind_clause(e, m->identity, "identity", "n", &c) || !mc_param_needed(e, &c, "n") ||
                        !mc_param_int(e, &c, "n", 0, MAX_EXPERTS, &m->n_identity)))
        return false;
    if (!m->capacity) return true;
    if (!bind_clause(e, m->capacity, "capacity", "factor per drop", &c) || !mc_param_needed(e, &c, "factor") ||
        !mc_param_real(e, &c, "factor", &m->capacity_factor) || !mc_param_word(e, &c, "per", "expert slot", &m->per) ||
        !mc_param_word(e, &c, "drop", "tail score", &m->drop))
        return false;
    if (m->capacity_factor > 0) {
        if (e->has_cache)
            mc_elab_warn(
                e, m->capacity->span, MC_W0305,
                "capacity makes a token's output depend on the other tokens of its batch, also when generating");
        return true;
    }
    mc_elab_error(e, m->capacity->span, MC_E0306,
                  "the capacity factor must be above 0; leave the clause out to drop nothing");
    return false;
}

/* ---- the route's function ---- */

typedef struct route {
    mc_func *func;
    mc_route_state state;
    mc_value **inputs; /* of the moe op beside x */
    int n_inputs;
} route;

static bool
build_route(moe *m, route *out)
{
    mc_elab *e = m->e;
    mc_frame *f = mc_frame_push(e, MC_FRAME_ROUTE, mc_elab_path(e, 0, MC_STR("route"), MC_STR("")), m->route->span);
    f->builder.span = mc_elab_user_span(e, m->route->span);
    out->func = f->func;
    out->state = (mc_route_state){.span = m->route->span, .n_experts = m->n_experts + m->n_identity};
    out->state.input = mc_func_add_formal(f->func, m->router->type, MC_STR("x"));
    bool ok = mc_run_route(e, m->route->stages, &out->state) &&
              mc_build_return(&f->builder, (mc_value *[]){out->state.value, out->state.ids}, 2);
    mc_frame_pop(e);
    if (!ok || (f->captures.n == 0 && m->router == m->rows)) return ok;
    out->inputs = MC_NEW_N(e->arena, mc_value *, f->captures.n + 1);
    out->inputs[out->n_inputs++] = m->router;
    for (size_t i = 0; i < f->captures.n; i++) out->inputs[out->n_inputs++] = f->captures.items[i].outer;
    return true;
}

static bool
check_route(moe *m, const route *r)
{
    mc_elab *e = m->e;
    if (r->state.chosen_tokens && (m->capacity || m->n_identity)) {
        mc_elab_error(e, r->state.chosen_span, MC_E0330,
                      "choose_tokens cannot be combined with %s: experts choose a fixed number of tokens",
                      m->capacity ? "capacity" : "identity");
        return false;
    }
    if (r->state.on_input && m->n_identity) {
        mc_elab_error(e, m->identity->span, MC_E0330, "on_input cannot be combined with identity experts");
        return false;
    }
    return true;
}

/* Training-only stages leave no op, only a note for the trainer. */
static void
keep_training(moe *m, const route *r)
{
    mc_elab *e = m->e;
    if (r->state.training.n == 0) return;
    mc_buf text = {0};
    for (size_t i = 0; i < r->state.training.n; i++) {
        if (i) mc_buf_puts(&text, " | ");
        mc_buf_str(&text, r->state.training.items[i]);
    }
    mc_str key = mc_strf(e->arena, "train.route.%.*s", MC_FMT(mc_elab_path(e, 0, MC_STR(""), MC_STR(""))));
    mc_module_set_meta(e->module, key, mc_buf_view(&text));
    mc_buf_fini(&text);
}

/* ---- the op ---- */

static bool
same_width(moe *m, const mc_type *out, int64_t width)
{
    if (mc_dim_eq(mc_type_last(out), mc_dim_const(width))) return true;
    mc_elab_error(m->e, m->experts->of->span, MC_E0315,
                  "experts return width %lld but receive width %lld; an expert must keep its width (use 'latent %lld' "
                  "to work in fewer)",
                  (long long)mc_type_last(out).mul, (long long)width, (long long)mc_type_last(out).mul);
    return false;
}

static mc_val
emit_moe(moe *m, const route *r, mc_func *body)
{
    static const char *const per[] = {"expert", "slot"}, *const drop[] = {"tail", "score"};
    mc_elab *e = m->e;
    mc_value **operands = MC_NEW_N(e->arena, mc_value *, r->n_inputs + 1);
    operands[0] = m->rows;
    for (int i = 0; i < r->n_inputs; i++) operands[i + 1] = r->inputs[i];
    const mc_named_attr attrs[] = {MC_A_FUNC("route", r->func),
                                   MC_A_FUNC("body", body),
                                   MC_A_INT("experts", m->n_experts),
                                   MC_A_INT("identity", m->n_identity),
                                   MC_A_BOOL("on_input", r->state.on_input),
                                   MC_A_FLOAT("capacity", m->capacity_factor),
                                   MC_A_STR("per", mc_str_of(per[m->per])),
                                   MC_A_STR("drop", mc_str_of(drop[m->drop]))};
    return mc_emit(e, m->x->span, MC_OP_MOE, operands, r->n_inputs + 1, attrs, 8);
}

static mc_val
routed_experts(moe *m)
{
    mc_elab *e = m->e;
    route r = {0};
    const mc_type *out;
    int64_t params = 0, idle, width = mc_type_last(m->rows->type).mul;
    if (e->frame->kind == MC_FRAME_EXPERT)
        return mc_elab_error(e, m->x->span, MC_E0331, "experts inside an expert are not supported in this version");
    bool route_ok = build_route(m, &r) && check_route(m, &r);
    mc_word label = m->experts->label.text.len ? m->experts->label : (mc_word){MC_STR("experts"), m->experts->span};
    mc_func *body = mc_expert_body(e, mc_eval(e, m->experts->of), label, m->n_experts, m->rows->type,
                                   m->experts->of->span, &out, &params);
    if (!body || !same_width(m, out, width) || !route_ok) return mc_val_poison();
    int64_t active = r.state.active < m->n_experts ? r.state.active : m->n_experts;
    if (!__builtin_mul_overflow(params, m->n_experts - active, &idle)) e->inactive += idle;
    mc_moe_info info = {m->route->span, m->n_experts, r.state.has_bias};
    mc_vec_push(e->arena, &e->moes, info);
    keep_training(m, &r);
    return emit_moe(m, &r, body);
}

static mc_val
leave_latent(moe *m, mc_val y)
{
    mc_elab *e = m->e;
    if (!m->latent || y.kind != MC_VAL_TENSOR) return y;
    if (m->latent_norm.kind != MC_VAL_NONE) {
        bool labelled = m->latent_norm.kind == MC_VAL_FN && m->latent_norm.as.fn->label.text.len;
        mc_word label = {labelled ? m->latent_norm.as.fn->label.text : MC_STR("latent_norm"), m->latent->span};
        y = mc_apply_to(e, m->latent_norm, label, y, m->latent->span);
        if (y.kind != MC_VAL_TENSOR) return mc_val_poison();
    }
    return mc_apply_linear(e, y.as.tensor, m->width, MC_STR("latent_up"), false, mc_weight_role(e, false),
                           m->latent->span);
}

static mc_val
inside_label(moe *m)
{
    if (!read_latent(m) || !read_numbers(m)) return mc_val_poison();
    mc_val y = leave_latent(m, routed_experts(m));
    mc_shared_spec shared = {m->shared, m->combine};
    return mc_add_shared(m->e, &shared, m->input, y, m->x->span);
}

mc_val
mc_eval_moe(mc_elab *e, const mc_expr *x)
{
    moe m = {.e = e, .x = x};
    if (!e->frame) return mc_elab_error(e, x->span, MC_E0309, "tensors exist only inside a block or model");
    if (!sort_clauses(&m) || !read_input(&m)) return mc_val_poison();
    bool pushed = mc_label_push(e, x->label.text.len ? x->label.text : MC_STR("moe"));
    mc_val y = inside_label(&m);
    mc_label_pop(e, pushed);
    return y;
}
