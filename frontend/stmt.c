/* Statements. */
#include "frontend/elab.h"

static mc_run
assign(mc_elab *e, const mc_stmt *s)
{
    mc_val values[MC_MAX_PARTS];
    size_t n_values = 0, n_names = 0;
    bool ok = true;
    for (const mc_name_list *n = s->names; n; n = n->next) n_names++;
    for (const mc_arg *a = s->values; a && n_values < MC_MAX_PARTS; a = a->next) {
        mc_val v = mc_eval(e, a->value);
        ok = ok && v.kind != MC_VAL_POISON;
        values[n_values++] = v;
    }
    mc_val_list list = {values, n_values, n_values};
    if (n_values == 1 && values[0].kind == MC_VAL_TUPLE) list = values[0].as.list;
    if (ok && list.n != n_names) {
        mc_elab_error(e, s->span, MC_E0317, "%zu name%s for %zu value%s", n_names, n_names == 1 ? "" : "s", list.n,
                      list.n == 1 ? "" : "s");
        ok = false;
    }
    size_t i = 0;
    for (const mc_name_list *n = s->names; n; n = n->next, i++) {
        mc_val v = i < list.n && (ok || list.n == n_names) ? list.items[i] : mc_val_poison();
        if (v.kind == MC_VAL_TUPLE)
            v = mc_elab_error(e, s->span, MC_E0317, "'%.*s' would stand for several tensors", MC_FMT(n->word.text));
        mc_scope_assign(e, n->word.text, v);
    }
    return e->fatal ? MC_RUN_FAILED : MC_RUN_ON;
}

/* zeros, ones, normal(s), uniform(a, b): kept as text for training. */
static bool
init_text(mc_elab *e, const mc_expr *x, mc_str *out)
{
    static const struct init {
        const char *name;
        size_t n_args;
    } inits[] = {{"zeros", 0}, {"ones", 0}, {"normal", 1}, {"uniform", 2}};
    const mc_expr *name = x->kind == MC_EXPR_CALL ? x->a : x;
    for (size_t i = 0; i < sizeof inits / sizeof inits[0]; i++) {
        if (name->kind != MC_EXPR_NAME || !mc_str_is(name->as.text, inits[i].name)) continue;
        size_t n = 0;
        mc_fn_arg *args = mc_eval_args(e, x->kind == MC_EXPR_CALL ? x->items : NULL, &n);
        bool ok = args && n == inits[i].n_args;
        for (size_t k = 0; ok && k < n; k++) ok = mc_val_is_number(args[k].value) && !args[k].name.text.len;
        if (!ok) break;
        mc_str list = MC_STR("");
        for (size_t k = 0; k < n; k++)
            list = mc_strf(e->arena, "%.*s%s%.*s", MC_FMT(list), k ? ", " : "",
                           MC_FMT(mc_val_str(e->module, args[k].value, e->arena)));
        *out = n ? mc_strf(e->arena, "%s(%.*s)", inits[i].name, MC_FMT(list)) : mc_str_of(inits[i].name);
        return true;
    }
    mc_elab_error(e, x->span, MC_E0306,
                  "'%.*s' does not say how to start a weight: zeros, ones, normal(s), uniform(a, b)",
                  MC_FMT(mc_elab_quote(e, x->span)));
    return false;
}

static mc_run
declare_weight(mc_elab *e, const mc_stmt *s)
{
    mc_dim dims[MC_MAX_RANK];
    mc_weight_spec spec = {.span = s->name.span, .leaf = s->name.text, .dims = dims};
    spec.rank = mc_shape_dims(e, &s->type, dims);
    bool ok = spec.rank >= 0 && mc_shape_dtype(e, s->type.dtype, MOEC_DTYPE_NONE, &spec.dtype);
    if (ok && s->value) ok = init_text(e, s->value, &spec.init);
    spec.role = mc_weight_role(e, false);
    mc_value *w = ok ? mc_weight_make(e, &spec) : NULL;
    mc_scope_declare(e, s->name.text, mc_val_tensor(w, s->span));
    return e->fatal ? MC_RUN_FAILED : MC_RUN_ON;
}

static mc_run
run_if(mc_elab *e, const mc_stmt *s)
{
    bool truth;
    if (!mc_eval_condition(e, s->value, &truth)) return MC_RUN_FAILED;
    mc_elab_see(e, s, truth);
    const mc_stmt *body = truth ? s->body : s->otherwise;
    if (!body) return MC_RUN_ON;
    mc_scope_push(e, false, NULL);
    mc_run run = mc_run_body(e, body);
    mc_scope_pop(e);
    return run;
}

static mc_run
run_return(mc_elab *e, const mc_stmt *s)
{
    MC_VEC(mc_val) values = {0};
    MC_VEC(mc_span) spans = {0};
    bool ok = true;
    for (const mc_arg *a = s->values; a; a = a->next) {
        mc_val v = mc_eval(e, a->value);
        ok = ok && v.kind != MC_VAL_POISON;
        mc_vec_push(e->arena, &values, v);
        mc_vec_push(e->arena, &spans, a->value->span);
    }
    if (!ok) return MC_RUN_FAILED;
    if (values.n == 1 && values.items[0].kind == MC_VAL_TUPLE) {
        e->results = values.items[0].as.list;
        e->result_spans = MC_NEW_N(e->arena, mc_span, e->results.n);
        for (size_t i = 0; i < e->results.n; i++) e->result_spans[i] = spans.items[0];
    } else {
        e->result_spans = spans.items;
        e->results = (mc_val_list){values.items, values.n, values.n};
    }
    return MC_RUN_RETURNED;
}

static mc_run
run_assert(mc_elab *e, const mc_stmt *s)
{
    bool holds;
    if (!mc_eval_condition(e, s->value, &holds)) return MC_RUN_FAILED;
    if (holds) return MC_RUN_ON;
    mc_str why = s->text.text.len ? s->text.text : mc_elab_quote(e, s->value->span);
    mc_elab_error(e, s->value->span, MC_E0316, "assertion failed: %.*s", MC_FMT(why));
    return MC_RUN_FAILED;
}

static mc_run
run_statement(mc_elab *e, const mc_stmt *s)
{
    switch (s->kind) {
    case MC_STMT_WEIGHT: return declare_weight(e, s);
    case MC_STMT_IF: return run_if(e, s);
    case MC_STMT_REPEAT: return mc_run_repeat(e, s);
    case MC_STMT_RETURN: return run_return(e, s);
    case MC_STMT_ASSERT: return run_assert(e, s);
    case MC_STMT_SET: return assign(e, s);
    }
    return MC_RUN_FAILED;
}

/* Goes on after a faulty statement where it can, so that one run reports several mistakes. */
mc_run
mc_run_body(mc_elab *e, const mc_stmt *body)
{
    mc_run result = MC_RUN_ON;
    for (const mc_stmt *s = body; s; s = s->next) {
        if (!mc_elab_step(e, s->span)) return MC_RUN_FAILED;
        mc_run run = run_statement(e, s);
        if (run == MC_RUN_RETURNED) return result == MC_RUN_ON ? run : result;
        if (run == MC_RUN_FAILED) result = run;
        if (e->fatal) return MC_RUN_FAILED;
    }
    return result;
}
