/* Expressions. Compile-time parts become numbers, lists and functions at once; tensor parts become ops at the cursor
 * of the function being built. */
#include "frontend/elab.h"

#include "runtime/base/dtype.h"

static const char *const words[] = {"half",  "adjacent", "before",  "after", "expert", "slot", "tail",
                                    "score", "add",      "average", "mix",   "max",    "top2", "sum"};
enum { N_WORDS = sizeof words / sizeof words[0] };

static bool
is_word(mc_str name)
{
    for (int i = 0; i < N_WORDS; i++) {
        if (mc_str_is(name, words[i])) return true;
    }
    return mc_dtype_parse(name) != MOEC_DTYPE_NONE;
}

static void
name_candidates(mc_elab *e, mc_strs *names)
{
    for (mc_scope *s = e->scope; s; s = s->is_block ? NULL : s->parent) {
        for (mc_binding *b = s->first; b; b = b->next) mc_vec_push(e->arena, names, b->name);
    }
    for (size_t i = 0; i < e->values.n; i++) mc_vec_push(e->arena, names, e->values.entries[i].key);
    for (size_t i = 0; i < e->blocks.n; i++) mc_vec_push(e->arena, names, e->blocks.entries[i].key);
    for (size_t i = 0; i < e->prelude.n; i++) mc_vec_push(e->arena, names, e->prelude.entries[i].key);
    for (size_t i = 0; i < mc_n_builtins; i++) mc_vec_push(e->arena, names, mc_str_of(mc_builtins[i].name));
    for (int i = 0; i < N_WORDS; i++) mc_vec_push(e->arena, names, mc_str_of(words[i]));
}

/* The name may be a formal of the block that is called around it: a frequent slip. */
static mc_val
unknown_name(mc_elab *e, const mc_expr *x)
{
    mc_str name = x->as.text;
    const mc_item *later = mc_map_get(&e->names, name);
    if (later && later->kind == MC_ITEM_PARAM)
        return mc_elab_error(e, x->span, MC_E0201, "'%.*s' is declared further down; a param may use earlier ones only",
                             MC_FMT(name));
    mc_strs names = {0}, params = {0};
    name_candidates(e, &names);
    for (size_t i = 0; i < e->values.n; i++) mc_vec_push(e->arena, &params, e->values.entries[i].key);
    mc_str hint = mc_elab_hint(e, name, names.items, names.n);
    if (hint.len == 0 && params.n)
        hint = mc_strf(e->arena, " (params and dims: %.*s)", MC_FMT(mc_elab_join(e, params.items, params.n)));
    return mc_elab_error(e, x->span, MC_E0201, "'%.*s' is not defined here%.*s", MC_FMT(name), MC_FMT(hint));
}

static mc_val
eval_name(mc_elab *e, const mc_expr *x)
{
    mc_str name = x->as.text;
    mc_binding *b = mc_scope_find(e, name);
    if (b) return mc_frame_import(e, b->value, x->span);
    const mc_val *value = mc_map_get(&e->values, name);
    if (value) return *value;
    if (mc_str_is(name, "C")) return mc_val_dim(mc_dim_sym(mc_symbol_get(e->module, name)), x->span);
    mc_val fn = mc_fn_of(e, name, x->span);
    if (fn.kind == MC_VAL_FN) return fn;
    if (is_word(name)) return mc_val_text(MC_VAL_WORD, name, x->span);
    return unknown_name(e, x);
}

static mc_val
eval_list(mc_elab *e, const mc_expr *x)
{
    MC_VEC(mc_val) items = {0};
    size_t total = 0;
    bool ok = true;
    for (const mc_arg *a = x->items; a; a = a->next) {
        mc_val v = mc_eval(e, a->value);
        total += 1 + (v.kind == MC_VAL_LIST ? v.as.list.total : 0);
        if (mc_val_is_tensor(v) || v.kind == MC_VAL_TUPLE)
            v = mc_elab_error(e, a->value->span, MC_E0309, "a list holds compile-time values, this is %s",
                              mc_val_kind_text(v));
        ok = ok && v.kind != MC_VAL_POISON;
        mc_vec_push(e->arena, &items, v);
    }
    if (!ok) return mc_val_poison();
    if (total > MC_MAX_LIST) return mc_elab_error(e, x->span, MC_E0319, "a list of more than %d items", MC_MAX_LIST);
    mc_val v = {.kind = MC_VAL_LIST, .span = x->span};
    v.as.list = (mc_val_list){items.items, items.n, total};
    return v;
}

bool
mc_eval_condition(mc_elab *e, const mc_expr *x, bool *out)
{
    mc_val v = mc_eval(e, x);
    if (v.kind == MC_VAL_POISON) return false;
    if (v.kind == MC_VAL_BOOL) {
        *out = v.as.b;
        return true;
    }
    bool run_time = mc_val_is_tensor(v) || v.kind == MC_VAL_DIM;
    mc_elab_error(e, x->span, run_time ? MC_E0309 : MC_E0306,
                  "a condition is true or false at compile time; '%.*s' is %s", MC_FMT(mc_elab_quote(e, x->span)),
                  mc_val_kind_text(v));
    return false;
}

bool
mc_eval_int(mc_elab *e, const mc_expr *x, const char *what, int64_t lo, int64_t hi, int64_t *out)
{
    mc_val v = mc_eval(e, x);
    if (v.kind == MC_VAL_POISON) return false;
    bool run_time = mc_val_is_tensor(v) || v.kind == MC_VAL_DIM;
    if (v.kind != MC_VAL_INT) {
        mc_elab_error(e, x->span, run_time ? MC_E0309 : MC_E0306,
                      "%s must be a whole number known at compile time; '%.*s' is %s", what,
                      MC_FMT(mc_elab_quote(e, x->span)), mc_val_kind_text(v));
        return false;
    }
    if (v.as.i < lo || v.as.i > hi) {
        mc_elab_error(e, x->span, v.as.i > hi ? MC_E0319 : MC_E0306, "%s is %lld; it must be in %lld..%lld", what,
                      (long long)v.as.i, (long long)lo, (long long)hi);
        return false;
    }
    *out = v.as.i;
    return true;
}

static mc_val
eval_logic(mc_elab *e, const mc_expr *x)
{
    bool a, b, is_and = x->op == MC_BIN_AND;
    if (!mc_eval_condition(e, x->a, &a)) return mc_val_poison();
    if (a != is_and) return mc_val_bool(a, x->span);
    if (!mc_eval_condition(e, x->b, &b)) return mc_val_poison();
    return mc_val_bool(b, x->span);
}

static mc_val
eval_binary(mc_elab *e, const mc_expr *x)
{
    if (x->op == MC_BIN_AND || x->op == MC_BIN_OR) return eval_logic(e, x);
    mc_val a = mc_eval(e, x->a), b = mc_eval(e, x->b);
    if (a.kind == MC_VAL_POISON || b.kind == MC_VAL_POISON) return mc_val_poison();
    if (a.kind == MC_VAL_TUPLE || b.kind == MC_VAL_TUPLE)
        return mc_elab_error(e, a.kind == MC_VAL_TUPLE ? x->a->span : x->b->span, MC_E0317,
                             "this gives several tensors; name them first, as in a, b = ...");
    bool arithmetic = x->op == MC_BIN_ADD || x->op == MC_BIN_SUB || x->op == MC_BIN_MUL || x->op == MC_BIN_DIV;
    if (!mc_val_is_tensor(a) && !mc_val_is_tensor(b)) return mc_arith(e, x->span, x->op, a, b);
    if (arithmetic) return mc_tensor_binary(e, x, a, b);
    return mc_elab_error(e, x->span, MC_E0309, "'%.*s' needs values known at compile time; %s is a tensor",
                         MC_FMT(mc_elab_quote(e, x->span)), mc_val_is_tensor(a) ? "the left side" : "the right side");
}

static mc_val
eval_index(mc_elab *e, const mc_expr *x)
{
    mc_val a = mc_eval(e, x->a);
    if (a.kind == MC_VAL_POISON) return a;
    if (mc_val_is_tensor(a)) return mc_tensor_index(e, x, a);
    if (a.kind != MC_VAL_LIST && a.kind != MC_VAL_STRING)
        return mc_elab_error(e, x->a->span, MC_E0306, "only lists, strings and tensors can be indexed, this is %s",
                             mc_val_kind_text(a));
    size_t n = a.kind == MC_VAL_LIST ? a.as.list.n : a.as.s.len;
    int64_t i;
    if (!x->items || x->items->next || n == 0)
        return mc_elab_error(e, x->span, MC_E0306, n ? "a list or string takes one index" : "nothing to index here");
    if (!mc_eval_int(e, x->items->value, "the index", -(int64_t)n, (int64_t)n - 1, &i)) return mc_val_poison();
    if (i < 0) i += (int64_t)n;
    if (a.kind == MC_VAL_LIST) return a.as.list.items[i];
    return mc_val_text(MC_VAL_STRING, mc_str_slice(a.as.s, (size_t)i, (size_t)i + 1), x->span);
}

static mc_val
eval_negate(mc_elab *e, const mc_expr *x)
{
    mc_val a = mc_eval(e, x->a);
    if (a.kind == MC_VAL_POISON) return a;
    if (!mc_val_is_tensor(a)) return mc_arith_negate(e, x->span, a);
    mc_value *t = mc_tensor_operand(e, a, x->a->span);
    return t ? mc_emit(e, x->span, MC_OP_NEG, &t, 1, NULL, 0) : mc_val_poison();
}

static mc_val
eval_kind(mc_elab *e, const mc_expr *x)
{
    bool truth;
    switch (x->kind) {
    case MC_EXPR_INT: return mc_val_int(x->as.integer, x->span);
    case MC_EXPR_REAL: return mc_val_real(x->as.real, x->span);
    case MC_EXPR_STRING: return mc_val_text(MC_VAL_STRING, x->as.text, x->span);
    case MC_EXPR_BOOL: return mc_val_bool(x->as.boolean, x->span);
    case MC_EXPR_NONE: return mc_val_none(x->span);
    case MC_EXPR_NAME: return eval_name(e, x);
    case MC_EXPR_WEIGHT: return mc_val_text(MC_VAL_WREF, x->as.text, x->span);
    case MC_EXPR_LIST: return eval_list(e, x);
    case MC_EXPR_COND:
        if (!mc_eval_condition(e, x->a, &truth)) return mc_val_poison();
        mc_elab_see(e, x, truth);
        return mc_eval(e, truth ? x->b : x->c);
    case MC_EXPR_NOT: return mc_eval_condition(e, x->a, &truth) ? mc_val_bool(!truth, x->span) : mc_val_poison();
    case MC_EXPR_NEG: return eval_negate(e, x);
    case MC_EXPR_BINARY: return eval_binary(e, x);
    case MC_EXPR_INDEX: return eval_index(e, x);
    case MC_EXPR_CALL: return mc_call_expr(e, x);
    case MC_EXPR_MOE: return mc_eval_moe(e, x);
    case MC_EXPR_ROUTE: return mc_eval_route(e, x);
    case MC_EXPR_SLICE:
    case MC_EXPR_ELLIPSIS: return mc_elab_error(e, x->span, MC_E0306, "this stands only inside [ ] after a tensor");
    case MC_EXPR_ERROR: return mc_val_poison();
    }
    return mc_val_poison();
}

mc_val
mc_eval(mc_elab *e, const mc_expr *x)
{
    if (!x || !mc_elab_step(e, x->span)) return mc_val_poison();
    if (e->depth >= MC_MAX_EVAL_DEPTH) {
        mc_elab_error(e, x->span, MC_E0319, "expressions and blocks are nested more than %d deep", MC_MAX_EVAL_DEPTH);
        e->fatal = true;
        return mc_val_poison();
    }
    e->depth++;
    mc_val v = eval_kind(e, x);
    e->depth--;
    return v;
}
