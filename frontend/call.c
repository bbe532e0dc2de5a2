/* Calls. Tensors come first and in order, then compile-time values by position or name. A call without its tensors is
 * a function value that keeps what it was given; a later call may add to it or overrule it. */
#include "frontend/elab.h"

#include <math.h>

mc_val
mc_fn_of(mc_elab *e, mc_str name, mc_span span)
{
    const mc_block *block = mc_elab_find_block(e, name);
    const mc_builtin *builtin = block ? NULL : mc_builtin_find(name);
    if (!block && !builtin) return mc_val_poison();
    mc_fn *fn = MC_NEW(e->arena, mc_fn);
    *fn = (mc_fn){.name = name, .block = block, .builtin = builtin};
    return (mc_val){.kind = MC_VAL_FN, .span = span, .as.fn = fn};
}

mc_fn_arg *
mc_eval_args(mc_elab *e, const mc_arg *args, size_t *out_n)
{
    size_t n = 0, i = 0;
    bool ok = true;
    for (const mc_arg *a = args; a; a = a->next) n++;
    mc_fn_arg *out = MC_NEW_N(e->arena, mc_fn_arg, n + 1);
    for (const mc_arg *a = args; a; a = a->next, i++) {
        out[i] = (mc_fn_arg){.name = a->name, .value = mc_eval(e, a->value), .span = a->value->span};
        if (out[i].value.kind == MC_VAL_TUPLE)
            out[i].value = mc_elab_error(e, a->value->span, MC_E0317,
                                         "this gives several tensors; name them first, as in a, b = ...");
        ok = ok && out[i].value.kind != MC_VAL_POISON;
    }
    *out_n = n;
    return ok ? out : NULL;
}

/* ---- putting arguments in their places ---- */

static bool
unknown_param(mc_elab *e, const mc_call *c, mc_word name)
{
    mc_str hint = mc_elab_hint(e, name.text, c->param_names, c->n_params);
    if (c->n_params == 0)
        mc_elab_error(e, name.span, MC_E0202, "%.*s has no parameter '%.*s'; it has none", MC_FMT(c->name),
                      MC_FMT(name.text));
    else
        mc_elab_error(e, name.span, MC_E0202, "%.*s has no parameter '%.*s'; it has %.*s%.*s", MC_FMT(c->name),
                      MC_FMT(name.text), MC_FMT(mc_elab_join(e, c->param_names, c->n_params)), MC_FMT(hint));
    return false;
}

static int
find_name(const mc_str *names, size_t n, mc_str name)
{
    for (size_t i = 0; i < n; i++) {
        if (mc_str_eq(names[i], name)) return (int)i;
    }
    return -1;
}

typedef struct placing {
    mc_elab *e;
    mc_call *c;
    int *levels; /* of the params; -1: not given */
    bool *tensor_given;
    size_t next_param, next_tensor;
    bool variadic;
} placing;

static bool
twice(placing *p, mc_str name, mc_span span)
{
    mc_elab_error(p->e, span, MC_E0306, "%.*s: '%.*s' is given twice", MC_FMT(p->c->name), MC_FMT(name));
    return false;
}

static bool
set_param(placing *p, size_t i, const mc_fn_arg *a)
{
    if (p->levels[i] == a->level) return twice(p, p->c->param_names[i], a->span);
    p->levels[i] = a->level;
    p->c->params[i] = (mc_call_param){true, a->value, a->span};
    return true;
}

static bool
set_tensor(placing *p, size_t i, const mc_fn_arg *a)
{
    if (p->tensor_given[i]) return twice(p, p->variadic ? MC_STR("tensor") : p->c->tensor_names[i], a->span);
    p->tensor_given[i] = true;
    p->c->tensors[i] = a->value;
    p->c->tensor_spans[i] = a->span;
    p->c->n_tensors++;
    return true;
}

static bool
place_named(placing *p, const mc_fn_arg *a)
{
    mc_call *c = p->c;
    int i = find_name(c->param_names, c->n_params, a->name.text);
    if (i >= 0) return set_param(p, (size_t)i, a);
    i = find_name(c->tensor_names, c->n_tensor_names, a->name.text);
    if (i < 0) return unknown_param(p->e, c, a->name);
    if (mc_val_is_tensor(a->value)) return set_tensor(p, (size_t)i, a);
    mc_elab_error(p->e, a->span, MC_E0306, "%.*s: '%.*s' must be a tensor, this is %s", MC_FMT(c->name),
                  MC_FMT(a->name.text), mc_val_kind_text(a->value));
    return false;
}

static bool
place_positional(placing *p, const mc_fn_arg *a)
{
    mc_call *c = p->c;
    bool takes_tensors = c->n_tensor_names > 0 || p->variadic;
    if (takes_tensors && mc_val_is_tensor(a->value)) {
        while (p->next_tensor < c->n_tensor_names && p->tensor_given[p->next_tensor]) p->next_tensor++;
        if (p->variadic || p->next_tensor < c->n_tensor_names) return set_tensor(p, p->next_tensor++, a);
        mc_elab_error(p->e, a->span, MC_E0306, "%.*s takes %zu tensor%s: %.*s; this is one more", MC_FMT(c->name),
                      c->n_tensor_names, c->n_tensor_names == 1 ? "" : "s",
                      MC_FMT(mc_elab_join(p->e, c->tensor_names, c->n_tensor_names)));
        return false;
    }
    if (p->next_param < c->n_params) return set_param(p, p->next_param++, a);
    if (c->n_params)
        mc_elab_error(p->e, a->span, MC_E0306, "%.*s takes %zu compile-time values: %.*s; this is one more",
                      MC_FMT(c->name), c->n_params, MC_FMT(mc_elab_join(p->e, c->param_names, c->n_params)));
    else
        mc_elab_error(p->e, a->span, MC_E0306, "%.*s takes no compile-time values", MC_FMT(c->name));
    return false;
}

bool
mc_call_bind(mc_elab *e, mc_call *c, const mc_fn_arg *args, size_t n_args, bool variadic)
{
    size_t n_tensors = variadic ? n_args : c->n_tensor_names;
    c->params = MC_NEW_N(e->arena, mc_call_param, c->n_params + 1);
    c->tensors = MC_NEW_N(e->arena, mc_val, n_tensors + 1);
    c->tensor_spans = MC_NEW_N(e->arena, mc_span, n_tensors + 1);
    placing p = {.e = e, .c = c, .variadic = variadic};
    p.levels = MC_NEW_N(e->arena, int, c->n_params + 1);
    p.tensor_given = MC_NEW_N(e->arena, bool, n_tensors + 1);
    for (size_t i = 0; i < c->n_params; i++) p.levels[i] = -1;
    bool ok = true;
    for (size_t i = 0; i < n_args && ok; i++)
        ok = args[i].name.text.len ? place_named(&p, &args[i]) : place_positional(&p, &args[i]);
    return ok;
}

/* ---- what is called ---- */

static void
block_signature(mc_elab *e, const mc_block *b, mc_call *c)
{
    mc_strs tensors = {0}, params = {0};
    for (const mc_formal *f = b->item->formals; f; f = f->next) {
        if (f->is_tensor) {
            mc_vec_push(e->arena, &tensors, f->name.text);
        } else {
            mc_vec_push(e->arena, &params, f->name.text);
        }
    }
    c->tensor_names = tensors.items;
    c->n_tensor_names = tensors.n;
    c->param_names = params.items;
    c->n_params = params.n;
}

static bool
is_variadic(const mc_fn *fn)
{
    return fn->builtin && mc_str_is(mc_str_of(fn->builtin->tensors), "*");
}

static void
signature(mc_elab *e, const mc_fn *fn, mc_call *c)
{
    c->name = fn->name;
    if (fn->block) {
        block_signature(e, fn->block, c);
        return;
    }
    mc_strs params = mc_elab_words(e, fn->builtin->params);
    c->param_names = params.items;
    c->n_params = params.n;
    if (is_variadic(fn)) return;
    mc_strs tensors = mc_elab_words(e, fn->builtin->tensors);
    c->tensor_names = tensors.items;
    c->n_tensor_names = tensors.n;
}

bool
mc_call_check(mc_elab *e, const mc_fn *fn, const mc_fn_arg *args, size_t n_args, mc_span span)
{
    mc_call c = {.span = span};
    signature(e, fn, &c);
    return mc_call_bind(e, &c, args, n_args, is_variadic(fn));
}

static void
fill_defaults(mc_elab *e, mc_call *c)
{
    size_t n;
    const mc_fn_arg *defaults = mc_elab_defaults(e, c->name, &n);
    for (size_t i = 0; i < n; i++) {
        int at = find_name(c->param_names, c->n_params, defaults[i].name.text);
        if (at >= 0 && !c->params[at].given) c->params[at] = (mc_call_param){true, defaults[i].value, defaults[i].span};
    }
}

static mc_val
partial(mc_elab *e, const mc_fn *fn, mc_word label, mc_fn_arg *args, size_t n_args, mc_span span)
{
    mc_fn *made = mc_arena_copy(e->arena, fn, sizeof *made);
    made->args = args;
    made->n_args = n_args;
    if (label.text.len) made->label = label;
    for (size_t i = 0; i < n_args; i++) {
        mc_val v = args[i].value;
        bool has = v.kind == MC_VAL_TENSOR || v.kind == MC_VAL_ROUTE || (v.kind == MC_VAL_FN && v.as.fn->has_tensor);
        made->has_tensor = made->has_tensor || has;
    }
    return (mc_val){.kind = MC_VAL_FN, .span = span, .as.fn = made};
}

/* What the function was given before, one level older, then the new arguments. */
static mc_fn_arg *
merge_args(mc_elab *e, const mc_fn *fn, const mc_fn_arg *args, size_t n_args)
{
    int level = 0;
    mc_fn_arg *all = MC_NEW_N(e->arena, mc_fn_arg, fn->n_args + n_args + 1);
    for (size_t i = 0; i < fn->n_args; i++) {
        all[i] = fn->args[i];
        if (all[i].level >= level) level = all[i].level + 1;
    }
    for (size_t i = 0; i < n_args; i++) {
        all[fn->n_args + i] = args[i];
        all[fn->n_args + i].level = level;
    }
    return all;
}

/* sqrt(2.0) and the like, at compile time. */
static mc_val
fold(mc_elab *e, const mc_fn *fn, mc_val v, mc_span span)
{
    double r = fn->builtin->fold(mc_val_number(v));
    if (isfinite(r)) return mc_val_real(r, span);
    return mc_elab_error(e, span, MC_E0306, "'%.*s' is not a finite number", MC_FMT(mc_elab_quote(e, span)));
}

mc_val
mc_apply(mc_elab *e, const mc_fn *fn, mc_word label, const mc_fn_arg *args, size_t n_args, mc_span span)
{
    enum { MAX_ARGS = 4096 };
    size_t n = fn->n_args + n_args;
    if (n > MAX_ARGS) return mc_elab_error(e, span, MC_E0319, "more than %d arguments", MAX_ARGS);
    mc_fn_arg *all = merge_args(e, fn, args, n_args);
    if (fn->builtin && fn->builtin->fold && n == 1 && !all[0].name.text.len && mc_val_is_number(all[0].value))
        return fold(e, fn, all[0].value, span);
    mc_call c = {.span = span};
    signature(e, fn, &c);
    bool variadic = is_variadic(fn), takes_tensors = variadic || c.n_tensor_names > 0;
    if (!mc_call_bind(e, &c, all, n, variadic)) return mc_val_poison();
    if (takes_tensors && c.n_tensors == 0) return partial(e, fn, label, all, n, span);
    for (size_t i = 0; i < c.n_tensor_names; i++) {
        if (c.tensors[i].kind != MC_VAL_POISON) continue;
        return mc_elab_error(e, span, MC_E0307, "%.*s: the tensor '%.*s' is missing", MC_FMT(c.name),
                             MC_FMT(c.tensor_names[i]));
    }
    c.label = label.text.len ? label : fn->label.text.len ? fn->label : (mc_word){fn->name, span};
    fill_defaults(e, &c);
    return fn->block ? mc_inline_block(e, fn->block, &c) : fn->builtin->run(e, &c);
}

mc_val
mc_apply_to(mc_elab *e, mc_val fn, mc_word label, mc_val x, mc_span span)
{
    if (fn.kind == MC_VAL_POISON || x.kind == MC_VAL_POISON) return mc_val_poison();
    if (fn.kind != MC_VAL_FN)
        return mc_elab_error(e, span, MC_E0308, "a function of one tensor is needed here, this is %s",
                             mc_val_kind_text(fn));
    const mc_fn_arg arg = {.value = x, .span = span};
    return mc_apply(e, fn.as.fn, label, &arg, 1, span);
}

mc_val
mc_call_expr(mc_elab *e, const mc_expr *x)
{
    bool named = x->a->kind == MC_EXPR_NAME;
    if (named && mc_str_is(x->a->as.text, "config") && !mc_scope_find(e, x->a->as.text)) return mc_config_call(e, x);
    mc_val fn = mc_eval(e, x->a);
    size_t n;
    const mc_fn_arg *args = mc_eval_args(e, x->items, &n);
    if (fn.kind == MC_VAL_POISON || !args) return mc_val_poison();
    if (fn.kind != MC_VAL_FN)
        return mc_elab_error(e, x->a->span, MC_E0308, "'%.*s' is %s and cannot be called",
                             MC_FMT(mc_elab_quote(e, x->a->span)), mc_val_kind_text(fn));
    return mc_apply(e, fn.as.fn, x->label, args, n, x->span);
}
