/* Declarations: the file, what it uses, and the embedded prelude become tables of names; params and dims get their
 * values, in the order of the text, with -D in place of what the text says. */
#include "frontend/elab.h"
#include "frontend/parse.h"

static bool
add_name(mc_elab *e, const mc_item *item)
{
    const mc_item *before = mc_map_get(&e->names, item->name.text);
    if (before) {
        mc_elab_error(e, item->name.span, MC_E0205, "'%.*s' is declared twice", MC_FMT(item->name.text));
        mc_elab_note(e, before->name.span, "first here");
        return false;
    }
    if (item->kind == MC_ITEM_DIM && mc_str_is(item->name.text, "C")) {
        mc_elab_error(e, item->name.span, MC_E0205,
                      "'C' is built in: the dimension of cached and new positions together");
        return false;
    }
    mc_map_set(&e->names, item->name.text, (void *)item);
    return true;
}

static void
add_block(mc_elab *e, const mc_item *item, bool is_prelude)
{
    mc_block *b = MC_NEW(e->arena, mc_block);
    *b = (mc_block){.item = item, .is_prelude = is_prelude};
    mc_map_set(is_prelude ? &e->prelude : &e->blocks, item->name.text, b);
}

static mc_file *
parse(mc_elab *e, uint32_t file)
{
    int before = e->diags->n_errors;
    mc_file *tree = mc_parse(e->arena, e->sources, file, e->diags);
    return e->diags->n_errors == before ? tree : NULL;
}

mc_file *
mc_elab_parse_snippet(mc_elab *e, const char *what, mc_str text)
{
    return parse(e, mc_sources_add(e->sources, mc_str_of(what), text));
}

typedef struct loading {
    mc_map seen; /* names of files */
    int n;
} loading;

static bool collect_file(mc_elab *e, loading *l, uint32_t file);

static bool
collect_used(mc_elab *e, loading *l, const mc_item *item)
{
    mc_str name, text, from = mc_source_of(e->sources, item->text.span)->name;
    if (++l->n > MC_MAX_USES) {
        mc_elab_error(e, item->text.span, MC_E0319, "more than %d files are used", MC_MAX_USES);
        return false;
    }
    const mc_elab_options *o = e->options;
    if (!o->load || !o->load(o->load_user, e->arena, from, item->text.text, &name, &text)) {
        mc_elab_error(e, item->text.span, MC_E0909, "cannot read \"%.*s\"", MC_FMT(item->text.text));
        return false;
    }
    if (!mc_map_set(&l->seen, name, l)) return true;
    return collect_file(e, l, mc_sources_add(e->sources, name, text));
}

static bool
collect_file(mc_elab *e, loading *l, uint32_t file)
{
    mc_file *tree = parse(e, file);
    if (!tree) return false;
    bool ok = true;
    for (const mc_item *item = tree->items; item; item = item->next) {
        bool named = item->kind == MC_ITEM_PARAM || item->kind == MC_ITEM_DIM || item->kind == MC_ITEM_BLOCK ||
                     item->kind == MC_ITEM_MODEL;
        if (named && !add_name(e, item)) continue;
        if (item->kind == MC_ITEM_BLOCK) add_block(e, item, false);
        if (item->kind == MC_ITEM_USE) ok = collect_used(e, l, item) && ok;
        mc_vec_push(e->arena, &e->items, item);
    }
    return ok;
}

bool
mc_elab_collect(mc_elab *e, uint32_t file)
{
    e->prelude_file = mc_sources_add(e->sources, MC_STR("prelude.moe"), mc_prelude_text());
    mc_file *prelude = parse(e, e->prelude_file);
    if (!prelude) return false;
    for (const mc_item *item = prelude->items; item; item = item->next) {
        if (item->kind == MC_ITEM_BLOCK) add_block(e, item, true);
    }
    loading l = {0};
    mc_map_init(&l.seen, e->arena);
    mc_map_set(&l.seen, mc_source_of(e->sources, (mc_span){file, 0, 0})->name, e);
    return collect_file(e, &l, file);
}

mc_block *
mc_elab_find_block(mc_elab *e, mc_str name)
{
    mc_block *own = mc_map_get(&e->blocks, name);
    return own ? own : mc_map_get(&e->prelude, name);
}

/* ---- values ---- */

static void
set_value(mc_elab *e, mc_str name, mc_val v)
{
    mc_map_set(&e->values, name, mc_arena_copy(e->arena, &v, sizeof v));
}

enum { MC_MAX_OWN_SYMS = MC_MAX_SYMS - 2 }; /* C and the rows of expert bodies need a place too */

static void
add_dims(mc_elab *e)
{
    for (size_t i = 0; i < e->items.n; i++) {
        const mc_item *item = e->items.items[i];
        if (item->kind != MC_ITEM_DIM) continue;
        if (e->module->n_syms == MC_MAX_OWN_SYMS) {
            mc_elab_error(e, item->name.span, MC_E0319, "more than %d dimensions", MC_MAX_OWN_SYMS);
            return;
        }
        int sym = mc_symbol_get(e->module, item->name.text);
        set_value(e, item->name.text, mc_val_dim(mc_dim_sym(sym), item->name.span));
    }
}

static void
set_range(mc_elab *e, const mc_item *item)
{
    int sym = mc_symbol_get(e->module, item->name.text);
    mc_val range = mc_eval(e, item->value);
    if (range.kind == MC_VAL_POISON || sym < 0) return;
    if (range.kind != MC_VAL_RANGE) {
        mc_elab_error(e, item->value->span, MC_E0306, "the bounds of a dimension are a range, as in 1..32768");
        return;
    }
    int64_t lo = range.as.range.lo, hi = range.as.range.hi;
    if (lo < 0 || hi < 1 || hi < lo || hi > MC_MAX_DIM) {
        mc_elab_error(e, item->value->span, hi > MC_MAX_DIM ? MC_E0319 : MC_E0306,
                      "the bounds of '%.*s' are %lld..%lld; they must satisfy 0 <= low <= high and 1 <= high <= 2^40",
                      MC_FMT(item->name.text), (long long)lo, (long long)hi);
        return;
    }
    e->module->syms[sym].lo = lo;
    e->module->syms[sym].hi = hi;
}

typedef struct define {
    const mc_expr *value;
    bool used;
} define;

/* "NAME=value" is read as `param NAME=value`. */
static void
read_defines(mc_elab *e, mc_map *defines)
{
    for (size_t i = 0; i < e->options->n_defines; i++) {
        mc_str text = mc_strf(e->arena, "moe 1\nparam %.*s\n", MC_FMT(e->options->defines[i]));
        mc_file *tree = mc_elab_parse_snippet(e, "-D", text);
        if (!tree) {
            e->n_errors++;
            continue;
        }
        mc_item *item = tree->items;
        if (!item || item->kind != MC_ITEM_PARAM || item->next) {
            mc_elab_error(e, (mc_span){0}, MC_E0912, "-D needs NAME=value, not '%.*s'", MC_FMT(e->options->defines[i]));
            continue;
        }
        define *d = MC_NEW(e->arena, define);
        d->value = item->value;
        mc_map_set(defines, item->name.text, d);
    }
}

static void
set_param(mc_elab *e, const mc_item *item, mc_map *defines)
{
    define *d = mc_map_get(defines, item->name.text);
    if (d) d->used = true;
    const mc_expr *x = d ? d->value : item->value;
    mc_val v = mc_eval(e, x);
    if (v.kind == MC_VAL_TENSOR || v.kind == MC_VAL_TUPLE || v.kind == MC_VAL_ROUTE)
        v = mc_elab_error(e, x->span, MC_E0309, "a param is a compile-time value, this is %s", mc_val_kind_text(v));
    v.span = item->name.span;
    set_value(e, item->name.text, v);
    mc_param_info info = {item->name.text, mc_val_str(e->module, v, e->arena), item->name.span, d != NULL};
    mc_vec_push(e->arena, &e->out->params, info);
}

static void
unknown_define(mc_elab *e, mc_str name)
{
    mc_strs params = {0};
    for (size_t i = 0; i < e->out->params.n; i++) mc_vec_push(e->arena, &params, e->out->params.items[i].name);
    mc_elab_error(e, (mc_span){0}, MC_E0912, "-D %.*s: the model has no such param; it has %.*s%.*s", MC_FMT(name),
                  MC_FMT(mc_elab_join(e, params.items, params.n)),
                  MC_FMT(mc_elab_hint(e, name, params.items, params.n)));
}

typedef struct callee_default {
    mc_fn_arg *args;
    size_t n;
} callee_default;

static void
set_default(mc_elab *e, const mc_item *item)
{
    mc_val fn = mc_fn_of(e, item->name.text, item->name.span);
    if (fn.kind != MC_VAL_FN) {
        mc_strs names = {0};
        for (size_t i = 0; i < mc_n_builtins; i++) mc_vec_push(e->arena, &names, mc_str_of(mc_builtins[i].name));
        for (size_t i = 0; i < e->prelude.n; i++) mc_vec_push(e->arena, &names, e->prelude.entries[i].key);
        for (size_t i = 0; i < e->blocks.n; i++) mc_vec_push(e->arena, &names, e->blocks.entries[i].key);
        mc_elab_error(e, item->name.span, MC_E0201, "'%.*s' is no block or operation%.*s", MC_FMT(item->name.text),
                      MC_FMT(mc_elab_hint(e, item->name.text, names.items, names.n)));
        return;
    }
    callee_default *d = MC_NEW(e->arena, callee_default);
    d->args = mc_eval_args(e, item->args, &d->n);
    if (!d->args) return;
    for (size_t i = 0; i < d->n; i++) {
        if (d->args[i].name.text.len) continue;
        mc_elab_error(e, d->args[i].span, MC_E0306, "defaults are named, as in default rmsnorm(eps = 1e-5)");
        return;
    }
    if (mc_call_check(e, fn.as.fn, d->args, d->n, item->name.span)) mc_map_set(&e->defaults, item->name.text, d);
}

const mc_fn_arg *
mc_elab_defaults(mc_elab *e, mc_str callee, size_t *out_n)
{
    const callee_default *d = mc_map_get(&e->defaults, callee);
    *out_n = d ? d->n : 0;
    return d ? d->args : NULL;
}

static void
check_assert(mc_elab *e, const mc_item *item)
{
    bool holds;
    if (!mc_eval_condition(e, item->value, &holds) || holds) return;
    mc_str why = item->text.text.len ? item->text.text : mc_elab_quote(e, item->value->span);
    mc_elab_error(e, item->value->span, MC_E0316, "assertion failed: %.*s", MC_FMT(why));
}

void
mc_elab_file_values(mc_elab *e)
{
    mc_map defines;
    mc_map_init(&defines, e->arena);
    add_dims(e);
    read_defines(e, &defines);
    for (size_t i = 0; i < e->items.n; i++) {
        if (e->items.items[i]->kind == MC_ITEM_PARAM) set_param(e, e->items.items[i], &defines);
    }
    for (size_t i = 0; i < defines.n; i++) {
        if (!((define *)defines.entries[i].value)->used) unknown_define(e, defines.entries[i].key);
    }
    for (size_t i = 0; i < e->items.n; i++) {
        const mc_item *item = e->items.items[i];
        if (item->kind == MC_ITEM_DIM && item->value) set_range(e, item);
        if (item->kind == MC_ITEM_ASSERT) check_assert(e, item);
        if (item->kind == MC_ITEM_DEFAULT) set_default(e, item);
    }
}
