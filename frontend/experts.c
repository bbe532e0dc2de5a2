/* Expert bodies as functions over rows, and the primitives expert_map and expert_sum. */
#include "frontend/builtins.h"

/* The symbol for the number of rows of an expert: R, or another name when the file has an R of its own. */
static int
row_symbol(mc_elab *e)
{
    mc_str name = MC_STR("R");
    for (int i = 1; mc_map_has(&e->values, name); i++) name = mc_strf(e->arena, "R%d", i);
    return mc_symbol_get(e->module, name);
}

static bool
check_rows(mc_elab *e, mc_value *y, int rows, mc_span span)
{
    if (y->type->rank == 2 && mc_dim_eq(y->type->dims[0], mc_dim_sym(rows))) return true;
    mc_elab_error(e, span, MC_E0315, "an expert returns one row for each row it receives; this one returns %.*s",
                  MC_FMT(mc_shape_text(e, y->type)));
    return false;
}

static int64_t
new_params(mc_elab *e, size_t first, int64_t experts)
{
    int64_t n = 0;
    for (size_t i = first; i < e->out->weights.n; i++) {
        const mc_type *t = e->out->weights.items[i].type;
        mc_dim elems;
        if (mc_dims_product(t->dims, t->rank, &elems) && __builtin_add_overflow(n, elems.mul / experts, &n)) return 0;
    }
    return n;
}

static mc_value *
run_body(mc_elab *e, mc_frame *frame, mc_val fn, mc_word label, int64_t width, mc_span span)
{
    int rows = row_symbol(e);
    const mc_dim dims[] = {mc_dim_sym(rows), mc_dim_const(width)};
    frame->builder.span = mc_elab_user_span(e, span);
    mc_value *x = mc_func_add_formal(frame->func, mc_type_get(e->module, MOEC_F32, dims, 2), MC_STR("x"));
    mc_val y = mc_apply_to(e, fn, label, mc_val_tensor(x, span), span);
    if (y.kind == MC_VAL_TUPLE)
        y = mc_elab_error(e, span, MC_E0317, "an expert gives one tensor, this one gives %zu", y.as.list.n);
    mc_value *t = y.kind == MC_VAL_POISON ? NULL : mc_tensor_of(e, y, span, "what an expert returns");
    if (!t || !check_rows(e, t, rows, span)) return NULL;
    return mc_build_return(&frame->builder, &t, 1) ? t : NULL;
}

mc_func *
mc_expert_body(mc_elab *e, mc_val fn, mc_word label, int64_t experts, const mc_type *x, mc_span span,
               const mc_type **out_type, int64_t *out_params)
{
    if (fn.kind == MC_VAL_POISON) return NULL;
    if (e->frame->kind == MC_FRAME_EXPERT) {
        mc_elab_error(e, span, MC_E0331, "experts inside an expert are not supported in this version");
        return NULL;
    }
    mc_region region = e->region;
    size_t first = e->out->weights.n;
    mc_frame *frame = mc_frame_push(e, MC_FRAME_EXPERT, mc_elab_path(e, 0, label.text, MC_STR("")), span);
    frame->experts = experts;
    if (region != MC_REGION_SHARED) e->region = MC_REGION_EXPERTS;
    mc_value *y = run_body(e, frame, fn, label, mc_type_last(x).mul, span);
    e->region = region;
    mc_frame_pop(e);
    if (!y) return NULL;
    *out_type = y->type;
    *out_params = new_params(e, first, experts);
    return frame->func;
}

/* ---- expert_map, expert_sum ---- */

typedef struct primitive {
    mc_value *x;
    const mc_route_val *route;
    mc_func *body;
} primitive;

static bool
check_choices(mc_elab *e, mc_call *c, const mc_type *x, const mc_type *ids)
{
    bool per_choice = x->rank == ids->rank + 1;
    bool fits = per_choice || x->rank == ids->rank;
    for (int i = 0; fits && i < ids->rank - !per_choice; i++) fits = mc_dim_eq(x->dims[i], ids->dims[i]);
    if (fits) return true;
    mc_elab_error(e, c->tensor_spans[0], MC_E0310,
                  "%.*s: %.*s fits neither [..., d] nor [..., k, d] of the choices %.*s", MC_FMT(c->name),
                  MC_FMT(mc_shape_text(e, x)), MC_FMT(mc_shape_text(e, ids)));
    return false;
}

static bool
read_primitive(mc_elab *e, mc_call *c, primitive *p)
{
    int64_t width, params = 0;
    const mc_type *out;
    p->x = mc_call_rows(e, c, &width);
    if (!p->x || !mc_param_needed(e, c, "f")) return false;
    if (c->tensors[1].kind != MC_VAL_ROUTE) {
        mc_elab_error(e, c->tensor_spans[1], MC_E0306,
                      "%.*s: 'r' is a route, as in r = route(x, n) { ... }, this is %s", MC_FMT(c->name),
                      mc_val_kind_text(c->tensors[1]));
        return false;
    }
    p->route = c->tensors[1].as.route;
    if (!check_choices(e, c, p->x->type, p->route->ids->type)) return false;
    const mc_call_param *f = mc_param(c, "f");
    mc_word label = {0};
    if (f->value.kind == MC_VAL_FN) {
        const mc_fn *fn = f->value.as.fn;
        label = fn->label.text.len ? fn->label : (mc_word){fn->name, f->span};
    }
    p->body = mc_expert_body(e, f->value, label, p->route->n_experts, p->x->type, f->span, &out, &params);
    if (!p->body) return false;
    int64_t idle;
    if (!__builtin_mul_overflow(params, p->route->n_experts - p->route->k, &idle)) e->inactive += idle;
    return true;
}

mc_val
mc_op_expert_map(mc_elab *e, mc_call *c)
{
    primitive p;
    if (!read_primitive(e, c, &p)) return mc_val_poison();
    const mc_named_attr attrs[] = {MC_A_FUNC("body", p.body), MC_A_INT("experts", p.route->n_experts)};
    return mc_emit(e, c->span, MC_OP_EXPERT_MAP, (mc_value *[]){p.x, p.route->ids}, 2, attrs, 2);
}

mc_val
mc_op_expert_sum(mc_elab *e, mc_call *c)
{
    primitive p;
    if (!read_primitive(e, c, &p)) return mc_val_poison();
    const mc_named_attr attrs[] = {MC_A_FUNC("body", p.body), MC_A_INT("experts", p.route->n_experts)};
    return mc_emit(e, c->span, MC_OP_EXPERT_SUM, (mc_value *[]){p.x, p.route->weights, p.route->ids}, 3, attrs, 2);
}

/* route@label(x, n) { ... }: the stages at the cursor, without a function of their own. */
static bool
route_arguments(mc_elab *e, const mc_expr *x, mc_route_state *r)
{
    size_t n;
    mc_fn_arg *args = mc_eval_args(e, x->items, &n);
    const mc_str tensors[] = {MC_STR_INIT("x")}, params[] = {MC_STR_INIT("n")};
    mc_call c = {.span = x->span,
                 .name = MC_STR("route"),
                 .tensor_names = tensors,
                 .n_tensor_names = 1,
                 .param_names = params,
                 .n_params = 1};
    int64_t width;
    if (!args || !mc_call_bind(e, &c, args, n, false)) return false;
    if (c.n_tensors == 0 || !mc_param_needed(e, &c, "n")) {
        mc_elab_error(e, x->span, MC_E0307,
                      "route takes a tensor and the number of experts, as in route(x, 8) { ... }");
        return false;
    }
    r->input = mc_call_rows(e, &c, &width);
    return r->input && mc_param_int(e, &c, "n", 1, 1 << 20, &r->n_experts);
}

mc_val
mc_eval_route(mc_elab *e, const mc_expr *x)
{
    if (!e->frame) return mc_elab_error(e, x->span, MC_E0309, "tensors exist only inside a block or model");
    mc_route_state r = {.span = x->span};
    if (!route_arguments(e, x, &r)) return mc_val_poison();
    bool pushed = mc_label_push(e, x->label.text);
    bool ok = mc_run_route(e, x->stages, &r);
    mc_label_pop(e, pushed);
    if (!ok) return mc_val_poison();
    if (r.on_input)
        return mc_elab_error(e, x->span, MC_E0330,
                             "on_input cannot stand in a route(...): only moe knows the experts' input");
    mc_moe_info info = {x->span, r.n_experts, r.has_bias};
    mc_vec_push(e->arena, &e->moes, info);
    mc_route_val *v = MC_NEW(e->arena, mc_route_val);
    *v = (mc_route_val){r.value, r.ids, r.n_experts, r.k};
    return (mc_val){.kind = MC_VAL_ROUTE, .span = x->span, .as.route = v};
}
