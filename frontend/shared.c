/* Shared experts: always on, added to the routed ones (or averaged, joined, mixed). Several of equal form are one stack
 * of weights whose route chooses all of them with weight 1. */
#include "frontend/elab.h"

#include "ir/edit.h"

typedef enum combining { ADD, AVERAGE, CONCAT, MIX } combining;

static mc_val
one_expert(mc_elab *e, const mc_clause *c, mc_word label, mc_value *x)
{
    return mc_apply_to(e, mc_eval(e, c->of), label, mc_val_tensor(x, c->of->span), c->of->span);
}

/* The first n channels clamped to 1 are n equal scores: top n of them is 0 .. n - 1, each with weight 1. */
static mc_func *
route_to_all(mc_elab *e, mc_word label, int64_t n, mc_value *x)
{
    mc_frame *f = mc_frame_push(e, MC_FRAME_ROUTE, mc_elab_path(e, 0, label.text, MC_STR("route")), label.span);
    f->builder.span = label.span;
    mc_value *v = mc_func_add_formal(f->func, x->type, MC_STR("x"));
    const mc_named_attr cut[] = {MC_A_INT("axis", x->type->rank - 1), MC_A_INT("begin", 0), MC_A_INT("end", n)};
    const mc_named_attr one[] = {MC_A_FLOAT("lo", 1), MC_A_FLOAT("hi", 1)};
    const mc_named_attr all[] = {MC_A_INT("k", n)};
    v = mc_build1(&f->builder, MC_OP_SLICE, &v, 1, cut, 3);
    v = v ? mc_build1(&f->builder, MC_OP_CLAMP, &v, 1, one, 2) : NULL;
    mc_op *top = v ? mc_build(&f->builder, MC_OP_ROUTE_TOP, (mc_value *[]){v, v}, 2, all, 1) : NULL;
    bool ok = top && mc_build_return(&f->builder, (mc_value *[]){mc_result(top, 0), mc_result(top, 1)}, 2);
    mc_frame_pop(e);
    return ok ? f->func : NULL;
}

static mc_val
several_experts(mc_elab *e, const mc_clause *c, mc_word label, int64_t n, mc_value *x)
{
    const mc_type *out;
    int64_t params;
    if (n > mc_type_last(x->type).mul)
        return mc_elab_error(e, c->count->span, MC_E0319, "more shared experts than channels");
    mc_func *body = mc_expert_body(e, mc_eval(e, c->of), label, n, x->type, c->of->span, &out, &params);
    mc_func *route = body ? route_to_all(e, label, n, x) : NULL;
    if (!route) return mc_val_poison();
    if (!mc_dim_eq(mc_type_last(out), mc_type_last(x->type)))
        return mc_elab_error(e, c->of->span, MC_E0315,
                             "shared experts return %.*s but receive %.*s; an expert must keep its width",
                             MC_FMT(mc_shape_text(e, out)), MC_FMT(mc_shape_text(e, x->type)));
    const mc_named_attr attrs[] = {MC_A_FUNC("route", route), MC_A_FUNC("body", body), MC_A_INT("experts", n)};
    return mc_emit(e, c->span, MC_OP_MOE, &x, 1, attrs, 3);
}

static mc_val
gated(mc_elab *e, const mc_clause *c, mc_value *x, mc_val y)
{
    if (!c->stages || y.kind != MC_VAL_TENSOR) return y;
    mc_val gate = mc_run_gate(e, c->stages, x);
    if (gate.kind != MC_VAL_TENSOR) return mc_val_poison();
    if (!mc_shape_broadcast(y.as.tensor->type, gate.as.tensor->type))
        return mc_elab_error(e, c->stages->span, MC_E0310, "the gate %.*s does not fit the shared experts %.*s",
                             MC_FMT(mc_shape_text(e, gate.as.tensor->type)),
                             MC_FMT(mc_shape_text(e, y.as.tensor->type)));
    return mc_emit(e, c->stages->span, MC_OP_MUL, (mc_value *[]){y.as.tensor, gate.as.tensor}, 2, NULL, 0);
}

/* ---- how the two join ---- */

static mc_val
mixed(mc_elab *e, mc_value *x, mc_value *routed, mc_value *shared, mc_span span)
{
    mc_val scores = mc_apply_linear(e, x, 2, MC_STR("combine"), false, "shared", span);
    if (scores.kind != MC_VAL_TENSOR) return scores;
    mc_val parts = mc_emit(e, span, MC_OP_SOFTMAX, &scores.as.tensor, 1, NULL, 0);
    if (parts.kind != MC_VAL_TENSOR) return parts;
    mc_value *sides[] = {routed, shared};
    for (int i = 0; i < 2; i++) {
        const mc_named_attr cut[] = {MC_A_INT("axis", -1), MC_A_INT("begin", i), MC_A_INT("end", i + 1)};
        mc_val part = mc_emit(e, span, MC_OP_SLICE, &parts.as.tensor, 1, cut, 3);
        if (part.kind != MC_VAL_TENSOR) return part;
        mc_val side = mc_emit(e, span, MC_OP_MUL, (mc_value *[]){sides[i], part.as.tensor}, 2, NULL, 0);
        if (side.kind != MC_VAL_TENSOR) return side;
        sides[i] = side.as.tensor;
    }
    return mc_emit(e, span, MC_OP_ADD, sides, 2, NULL, 0);
}

static mc_val
join(mc_elab *e, combining how, mc_value *x, mc_value *routed, mc_value *shared, mc_span span)
{
    mc_value *both[] = {routed, shared};
    if (how == MIX) return mixed(e, x, routed, shared, span);
    if (how == CONCAT) {
        mc_val v = mc_emit(e, span, MC_OP_CONCAT, both, 2, NULL, 0);
        if (v.kind != MC_VAL_TENSOR) return v;
        return mc_apply_linear(e, v.as.tensor, mc_type_last(x->type).mul, MC_STR("combine"), false, "shared", span);
    }
    mc_val sum = mc_emit(e, span, MC_OP_ADD, both, 2, NULL, 0);
    if (how == ADD || sum.kind != MC_VAL_TENSOR) return sum;
    mc_value *half = mc_build_const(&e->frame->builder, 0.5);
    return mc_emit(e, span, MC_OP_MUL, (mc_value *[]){sum.as.tensor, half}, 2, NULL, 0);
}

static bool
read_combine(mc_elab *e, const mc_clause *c, int *how)
{
    size_t n;
    *how = ADD;
    if (!c) return true;
    mc_fn_arg *args = mc_eval_args(e, c->args, &n);
    const mc_str names[] = {MC_STR_INIT("how")};
    mc_call call = {.span = c->span, .name = MC_STR("combine"), .param_names = names, .n_params = 1};
    return args && mc_call_bind(e, &call, args, n, false) &&
           mc_param_word(e, &call, "how", "add average concat mix", how);
}

static mc_val
shared_sum(mc_elab *e, const mc_clause *c, int64_t n, mc_value *x)
{
    mc_word label = c->label.text.len ? c->label : (mc_word){MC_STR("shared_experts"), c->span};
    mc_region region = e->region;
    e->region = MC_REGION_SHARED;
    mc_val y = n == 1 ? one_expert(e, c, label, x) : several_experts(e, c, label, n, x);
    y = gated(e, c, x, y);
    e->region = region;
    if (y.kind != MC_VAL_TENSOR && y.kind != MC_VAL_POISON)
        return mc_elab_error(e, c->of->span, MC_E0317, "a shared expert gives one tensor");
    if (y.kind == MC_VAL_TENSOR && y.as.tensor->type != x->type)
        return mc_elab_error(e, c->of->span, MC_E0315,
                             "shared experts return %.*s but receive %.*s; an expert must keep its width",
                             MC_FMT(mc_shape_text(e, y.as.tensor->type)), MC_FMT(mc_shape_text(e, x->type)));
    return y;
}

mc_val
mc_add_shared(mc_elab *e, const mc_shared_spec *spec, mc_value *x, mc_val routed, mc_span span)
{
    enum { MAX_SHARED = 1024 };
    const mc_clause *c = spec->clause;
    int64_t n = 0;
    int how;
    if (!c) return routed;
    if (!mc_eval_int(e, c->count, "the number of shared experts", 0, MAX_SHARED, &n) ||
        !read_combine(e, spec->combine, &how))
        return mc_val_poison();
    if (n == 0) return routed;
    mc_val shared = shared_sum(e, c, n, x);
    if (shared.kind != MC_VAL_TENSOR || routed.kind != MC_VAL_TENSOR) return mc_val_poison();
    return join(e, (combining)how, x, routed.as.tensor, shared.as.tensor, spec->combine ? spec->combine->span : span);
}
