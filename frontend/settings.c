/* precision, place and train: properties of the model that later stages read as text. A table says what each setting
 * takes; one engine checks it and writes it in canonical form. A later line of the same name wins. */
#include "frontend/elab.h"

#include <string.h>

typedef enum arg_kind {
    ARG_NOTHING,
    ARG_WORD, /* one of words */
    ARG_NUMBER,
    ARG_COUNT,    /* a whole number >= 0 */
    ARG_FUNCTION, /* one of words, perhaps with numbers: adamw(lr = 1e-3) */
    ARG_PAIR,     /* [o, i] */
    ARG_SCOPE,    /* a pair, or one of words */
    ARG_ROLES,
    ARG_EXCEPT, /* roles or "path.glob" */
    ARG_AXIS,
    ARG_AXES,
    ARG_MESH /* name = size, ... */
} arg_kind;

typedef struct named_def {
    const char *name;
    arg_kind kind;
    const char *words;
} named_def;

typedef struct setting_def {
    const char *name;
    arg_kind kind;
    const char *words;
    named_def named[5];
} setting_def;

#define FLOATS "bf16 f16 f32"
static const char roles[] = "embed head router experts shared attention dense norm";

/* clang-format off */
static const setting_def precision_defs[] = {
    {"storage", ARG_WORD, FLOATS, {{0}}}, {"compute", ARG_WORD, FLOATS, {{0}}}, {"accum", ARG_WORD, FLOATS, {{0}}},
    {"router",  ARG_WORD, FLOATS, {{0}}}, {"gates",   ARG_WORD, FLOATS, {{0}}}, {"norm",  ARG_WORD, FLOATS, {{0}}},
    {"logits",  ARG_WORD, FLOATS, {{0}}}, {"cache",   ARG_WORD, FLOATS, {{0}}},
    {"fp8",     ARG_WORD, "e4m3 e5m2",
     {{"block", ARG_PAIR, 0}, {"act", ARG_SCOPE, "tensor token"}, {"on", ARG_ROLES, 0}, {"except", ARG_EXCEPT, 0}}},
};
static const setting_def place_defs[] = {
    {"mesh",      ARG_MESH,    0, {{0}}},
    {"experts",   ARG_NOTHING, 0, {{"over", ARG_AXIS, 0}}},
    {"tokens",    ARG_NOTHING, 0, {{"over", ARG_AXES, 0}}},
    {"redundant", ARG_COUNT,   0, {{0}}},
    {"layout",    ARG_WORD,    "contiguous round_robin", {{0}}},
    {"nodes",     ARG_COUNT,   0, {{0}}},
    {"order",     ARG_WORD,    "strict tree", {{0}}},
    {"exchange",  ARG_WORD,    "auto expert rank node", {{0}}},
};
static const setting_def train_defs[] = {
    {"loss",           ARG_WORD,     "cross_entropy mse",          {{0}}},
    {"aux",            ARG_WORD,     "switch hf sequence device",  {{"weight", ARG_NUMBER, 0}}},
    {"z",              ARG_NUMBER,   0,                            {{0}}},
    {"bias",           ARG_WORD,     "sign ema",
     {{"rate", ARG_NUMBER, 0}, {"decay", ARG_NUMBER, 0}, {"schedule", ARG_WORD, "constant cosine warmup"}, {"until", ARG_NUMBER, 0}}},
    {"load_scale",     ARG_WORD,     "forward backward",           {{0}}},
    {"seed",           ARG_COUNT,    0,                            {{0}}},
    {"optimizer",      ARG_FUNCTION, "adamw",                      {{0}}},
    {"schedule",       ARG_FUNCTION, "cosine constant linear",     {{0}}},
    {"dropout",        ARG_NUMBER,   0,                            {{0}}},
    {"expert_dropout", ARG_NUMBER,   0,                            {{0}}},
};
static const struct function_def { const char *name, *params; } function_defs[] = {
    {"adamw", "lr betas eps decay clip"}, {"cosine", "warmup floor steps"}, {"constant", "warmup"}, {"linear", "warmup floor steps"},
};
static const struct block_def {
    const char *name;
    mc_item_kind kind;
    const setting_def *settings;
    size_t n;
} block_defs[] = {
    {"precision", MC_ITEM_PRECISION, precision_defs, sizeof precision_defs / sizeof precision_defs[0]},
    {"place",     MC_ITEM_PLACE,     place_defs,     sizeof place_defs / sizeof place_defs[0]},
    {"train",     MC_ITEM_TRAIN,     train_defs,     sizeof train_defs / sizeof train_defs[0]},
};
/* clang-format on */
enum { N_BLOCKS = sizeof block_defs / sizeof block_defs[0] };

static bool print_arg(mc_elab *e, const mc_setting *s, const mc_expr *x, arg_kind kind, const char *words, mc_buf *out);

/* ---- kinds of arguments ---- */

/* The text of a word: a bare name, or a param that holds one. */
static mc_str
word_of(mc_elab *e, const mc_expr *x, const mc_strs *allowed)
{
    if (x->kind == MC_EXPR_NAME) {
        for (size_t i = 0; i < allowed->n; i++) {
            if (mc_str_eq(allowed->items[i], x->as.text)) return x->as.text;
        }
        const mc_val *v = mc_map_get(&e->values, x->as.text);
        if (v && (v->kind == MC_VAL_STRING || v->kind == MC_VAL_WORD)) return v->as.s;
        return x->as.text;
    }
    if (x->kind == MC_EXPR_STRING) return x->as.text;
    mc_val v = x->kind == MC_EXPR_COND || x->kind == MC_EXPR_CALL ? mc_eval(e, x) : mc_val_none(x->span);
    return v.kind == MC_VAL_STRING || v.kind == MC_VAL_WORD ? v.as.s : mc_elab_quote(e, x->span);
}

static bool
print_word(mc_elab *e, const mc_setting *s, const mc_expr *x, const char *words, mc_buf *out)
{
    mc_strs allowed = mc_elab_words(e, words);
    mc_str word = word_of(e, x, &allowed);
    for (size_t i = 0; i < allowed.n; i++) {
        if (!mc_str_eq(allowed.items[i], word)) continue;
        mc_buf_str(out, word);
        return true;
    }
    mc_elab_error(e, x->span, MC_E0306, "%.*s cannot be '%.*s'; it is one of %.*s%.*s", MC_FMT(s->name.text),
                  MC_FMT(word), MC_FMT(mc_elab_join(e, allowed.items, allowed.n)),
                  MC_FMT(mc_elab_hint(e, word, allowed.items, allowed.n)));
    return false;
}

static bool
print_number(mc_elab *e, const mc_setting *s, const mc_expr *x, mc_buf *out)
{
    mc_val v = mc_eval(e, x);
    if (v.kind == MC_VAL_POISON) return false;
    if (mc_val_is_number(v) && mc_val_number(v) >= 0) {
        mc_val_print(e->module, v, out);
        return true;
    }
    mc_elab_error(e, x->span, MC_E0306, "%.*s takes a number that is not negative", MC_FMT(s->name.text));
    return false;
}

static bool
print_pair(mc_elab *e, const mc_setting *s, const mc_expr *x, mc_buf *out)
{
    mc_val v = mc_eval(e, x);
    if (v.kind == MC_VAL_POISON) return false;
    bool good = v.kind == MC_VAL_LIST && v.as.list.n == 2;
    for (size_t i = 0; good && i < 2; i++) good = v.as.list.items[i].kind == MC_VAL_INT && v.as.list.items[i].as.i > 0;
    if (good)
        mc_val_print(e->module, v, out);
    else
        mc_elab_error(e, x->span, MC_E0306, "%.*s takes a block as [rows, columns]", MC_FMT(s->name.text));
    return good;
}

static bool
print_role(mc_elab *e, const mc_setting *s, const mc_expr *x, mc_buf *out)
{
    mc_strs allowed = mc_elab_words(e, roles);
    mc_str word = x->kind == MC_EXPR_NAME ? x->as.text : mc_elab_quote(e, x->span);
    for (size_t i = 0; i < allowed.n; i++) {
        if (!mc_str_eq(allowed.items[i], word)) continue;
        mc_buf_str(out, word);
        return true;
    }
    mc_elab_error(e, x->span, MC_E0340, "%.*s has no role '%.*s'; roles: %.*s%.*s", MC_FMT(s->name.text), MC_FMT(word),
                  MC_FMT(mc_elab_join(e, allowed.items, allowed.n)),
                  MC_FMT(mc_elab_hint(e, word, allowed.items, allowed.n)));
    return false;
}

static bool
print_list(mc_elab *e, const mc_setting *s, const mc_expr *x, arg_kind kind, mc_buf *out)
{
    if (x->kind != MC_EXPR_LIST) {
        mc_elab_error(e, x->span, MC_E0306, "%.*s takes a list here, as in [a, b]", MC_FMT(s->name.text));
        return false;
    }
    mc_buf_putc(out, '[');
    for (const mc_arg *a = x->items; a; a = a->next) {
        if (a != x->items) mc_buf_puts(out, ", ");
        bool glob = kind == ARG_EXCEPT && a->value->kind == MC_EXPR_STRING;
        if (glob)
            mc_buf_printf(out, "\"%.*s\"", MC_FMT(a->value->as.text));
        else if (!(kind == ARG_AXES ? print_arg(e, s, a->value, ARG_AXIS, NULL, out) : print_role(e, s, a->value, out)))
            return false;
    }
    mc_buf_putc(out, ']');
    return true;
}

static bool
print_axis(mc_elab *e, const mc_setting *s, const mc_expr *x, mc_buf *out)
{
    if (x->kind != MC_EXPR_NAME) {
        mc_elab_error(e, x->span, MC_E0306, "%.*s takes the name of an axis of the mesh", MC_FMT(s->name.text));
        return false;
    }
    mc_axis_use use = {{x->as.text, x->span}, mc_str_is(s->name.text, "experts")};
    mc_vec_push(e->arena, &e->axis_uses, use);
    mc_buf_str(out, x->as.text);
    return true;
}

static bool
print_function(mc_elab *e, const mc_setting *s, const mc_expr *x, const char *words, mc_buf *out)
{
    const mc_expr *name = x->kind == MC_EXPR_CALL ? x->a : x;
    if (!print_word(e, s, name, words, out)) return false;
    const struct function_def *f = function_defs;
    while (!mc_str_is(name->as.text, f->name)) f++;
    mc_strs params = mc_elab_words(e, f->params);
    size_t n = 0;
    mc_fn_arg *args = mc_eval_args(e, x->kind == MC_EXPR_CALL ? x->items : NULL, &n);
    mc_call c = {.span = x->span, .name = name->as.text, .param_names = params.items, .n_params = params.n};
    if (!args || !mc_call_bind(e, &c, args, n, false)) return false;
    for (size_t i = 0, printed = 0; i < c.n_params; i++) {
        if (!c.params[i].given) continue;
        mc_val v = c.params[i].value;
        if (!mc_val_is_number(v) && v.kind != MC_VAL_LIST) {
            mc_elab_error(e, c.params[i].span, MC_E0306, "%s: '%.*s' is a number or a list of numbers", f->name,
                          MC_FMT(params.items[i]));
            return false;
        }
        mc_buf_printf(out, "%s%.*s = ", printed++ ? ", " : "(", MC_FMT(params.items[i]));
        mc_val_print(e->module, v, out);
    }
    if (n) mc_buf_putc(out, ')');
    return true;
}

static bool
print_arg(mc_elab *e, const mc_setting *s, const mc_expr *x, arg_kind kind, const char *words, mc_buf *out)
{
    int64_t count;
    switch (kind) {
    case ARG_WORD: return print_word(e, s, x, words, out);
    case ARG_NUMBER: return print_number(e, s, x, out);
    case ARG_COUNT:
        if (!mc_eval_int(e, x, "this setting", 0, INT64_MAX, &count)) return false;
        mc_buf_printf(out, "%lld", (long long)count);
        return true;
    case ARG_FUNCTION: return print_function(e, s, x, words, out);
    case ARG_SCOPE:
        if (x->kind != MC_EXPR_LIST) return print_word(e, s, x, words, out);
        return print_pair(e, s, x, out);
    case ARG_PAIR: return print_pair(e, s, x, out);
    case ARG_ROLES:
    case ARG_EXCEPT:
    case ARG_AXES: return print_list(e, s, x, kind, out);
    case ARG_AXIS: return print_axis(e, s, x, out);
    case ARG_NOTHING:
    case ARG_MESH: break;
    }
    return false;
}

/* ---- lines ---- */

static bool
print_named(mc_elab *e, const mc_setting *s, const setting_def *def, const mc_arg *a, mc_buf *out)
{
    mc_strs names = {0};
    for (const named_def *n = def->named; n->name; n++) {
        mc_vec_push(e->arena, &names, mc_str_of(n->name));
        if (!mc_str_eq(a->name.text, mc_str_of(n->name))) continue;
        mc_buf_printf(out, "%s%s = ", out->len ? ", " : "", n->name);
        return print_arg(e, s, a->value, n->kind, n->words, out);
    }
    mc_elab_error(e, a->name.span, MC_E0202, "%.*s has no parameter '%.*s'%s%.*s%.*s", MC_FMT(s->name.text),
                  MC_FMT(a->name.text), names.n ? "; it has " : "", MC_FMT(mc_elab_join(e, names.items, names.n)),
                  MC_FMT(mc_elab_hint(e, a->name.text, names.items, names.n)));
    return false;
}

static bool
read_mesh(mc_elab *e, const mc_setting *s)
{
    for (const mc_arg *a = s->args; a; a = a->next) {
        mc_axis axis = {a->name.text, 0, a->value->span};
        if (!a->name.text.len) {
            mc_elab_error(e, a->value->span, MC_E0306, "mesh names its axes, as in mesh dp = 4, ep = 8");
            return false;
        }
        if (!mc_eval_int(e, a->value, "an axis of the mesh", 1, 1 << 20, &axis.size)) return false;
        size_t i = 0;
        while (i < e->mesh.n && !mc_str_eq(e->mesh.items[i].name, axis.name)) i++;
        if (i < e->mesh.n)
            e->mesh.items[i] = axis;
        else
            mc_vec_push(e->arena, &e->mesh, axis);
    }
    return true;
}

static bool
print_setting(mc_elab *e, const mc_setting *s, const setting_def *def, mc_buf *out)
{
    bool positional = false;
    for (const mc_arg *a = s->args; a; a = a->next) {
        if (a->name.text.len) {
            if (!print_named(e, s, def, a, out)) return false;
            continue;
        }
        if (positional || def->kind == ARG_NOTHING || a != s->args) {
            mc_elab_error(e, a->value->span, MC_E0306, "%.*s takes %s", MC_FMT(s->name.text),
                          def->kind == ARG_NOTHING ? "named arguments only" : "one value, then named arguments");
            return false;
        }
        positional = true;
        if (!print_arg(e, s, a->value, def->kind, def->words, out)) return false;
    }
    if (positional || def->kind == ARG_NOTHING) return true;
    mc_elab_error(e, s->name.span, MC_E0307, "%.*s needs a value", MC_FMT(s->name.text));
    return false;
}

static void
keep(mc_elab *e, mc_item_kind kind, mc_setting_text t)
{
    mc_setting_texts *list = kind == MC_ITEM_PRECISION ? &e->precision : kind == MC_ITEM_PLACE ? &e->place : &e->train;
    for (size_t i = 0; i < list->n; i++) {
        bool same = mc_str_eq(list->items[i].name, t.name);
        if (same && mc_str_is(t.name, "aux")) same = mc_str_eq(list->items[i].text, t.text); /* several may hold */
        if (!same) continue;
        list->items[i] = t;
        return;
    }
    mc_vec_push(e->arena, list, t);
}

static void
read_setting(mc_elab *e, const struct block_def *block, const mc_setting *s)
{
    mc_strs names = {0};
    for (size_t i = 0; i < block->n; i++) {
        const setting_def *def = &block->settings[i];
        mc_vec_push(e->arena, &names, mc_str_of(def->name));
        if (!mc_str_is(s->name.text, def->name)) continue;
        mc_buf text = {0};
        bool ok = def->kind == ARG_MESH ? read_mesh(e, s) : print_setting(e, s, def, &text);
        if (ok)
            keep(e, block->kind,
                 (mc_setting_text){s->name.text, mc_str_dup(e->arena, mc_buf_view(&text)), s->name.span});
        mc_buf_fini(&text);
        return;
    }
    mc_elab_error(e, s->name.span, MC_E0206, "'%.*s' is not a setting of %s: %.*s%.*s", MC_FMT(s->name.text),
                  block->name, MC_FMT(mc_elab_join(e, names.items, names.n)),
                  MC_FMT(mc_elab_hint(e, s->name.text, names.items, names.n)));
}

static void
read_block(mc_elab *e, const mc_item *item)
{
    for (int i = 0; i < N_BLOCKS; i++) {
        if (block_defs[i].kind != item->kind) continue;
        if (item->kind == MC_ITEM_TRAIN) e->trains = true;
        for (const mc_setting *s = item->settings; s; s = s->next) read_setting(e, &block_defs[i], s);
    }
}

/* --set precision.router=bf16 is read as `precision { router bf16 }`. */
static void
read_override(mc_elab *e, mc_str text)
{
    const char *dot = memchr(text.data, '.', text.len), *equals = memchr(text.data, '=', text.len);
    bool shaped = dot && equals && dot < equals;
    mc_str block = mc_str_slice(text, 0, shaped ? (size_t)(dot - text.data) : 0);
    mc_file *tree = NULL;
    if (shaped) {
        mc_str name = mc_str_slice(text, block.len + 1, (size_t)(equals - text.data));
        mc_str value = mc_str_slice(text, (size_t)(equals - text.data) + 1, text.len);
        mc_str snippet = mc_strf(e->arena, "moe 1\n%.*s {\n%.*s %.*s\n}\n", MC_FMT(block), MC_FMT(name), MC_FMT(value));
        tree = mc_elab_parse_snippet(e, "--set", snippet);
        if (!tree) {
            e->n_errors++;
            return;
        }
    }
    const mc_item *item = tree ? tree->items : NULL;
    bool good = item && !item->next && item->settings && !item->settings->next;
    for (int i = 0; good && i < N_BLOCKS; i++) {
        if (item->kind != block_defs[i].kind) continue;
        read_block(e, item);
        return;
    }
    mc_elab_error(e, (mc_span){0}, MC_E0912, "--set needs BLOCK.NAME=VALUE with precision, place or train, not '%.*s'",
                  MC_FMT(text));
}

void
mc_elab_settings(mc_elab *e)
{
    for (size_t i = 0; i < e->items.n && !e->fatal; i++) read_block(e, e->items.items[i]);
    for (size_t i = 0; i < e->options->n_settings && !e->fatal; i++) read_override(e, e->options->settings[i]);
    for (size_t i = 0; i < e->precision.n; i++) {
        const mc_setting_text *t = &e->precision.items[i];
        if (!mc_str_is(t->name, "storage")) continue;
        e->storage = mc_str_is(t->text, "f32") ? MOEC_F32 : mc_str_is(t->text, "f16") ? MOEC_F16 : MOEC_BF16;
    }
}
