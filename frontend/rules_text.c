/* weights { ... }: the rules are checked here and kept as text, one a line, with {=P} replaced and every number
 * evaluated. Whoever has a checkpoint matches them against its tensors. */
#include "frontend/elab.h"

/* What whoever reads the rules is prepared for. */
enum { MAX_TARGETS = 8, MAX_RULE_STAGES = 8, MAX_WILD = 8, MAX_PATTERN_BYTES = 500 };

/* What a pattern contains. */
typedef struct pattern {
    mc_str text;   /* {=P} replaced */
    mc_strs names; /* of {name} */
    size_t n_wild; /* * and ** */
} pattern;

static bool
bad_pattern(mc_elab *e, mc_word word, const char *why)
{
    mc_elab_error(e, word.span, MC_E0306, "\"%.*s\": %s", MC_FMT(word.text), why);
    return false;
}

static bool
is_name(mc_str s)
{
    for (size_t i = 0; i < s.len; i++) {
        char c = s.data[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
        if (!letter && (i == 0 || c < '0' || c > '9')) return false;
    }
    return s.len > 0;
}

/* {=P}: the value of a param. */
static bool
put_param(mc_elab *e, mc_word word, mc_str name, mc_buf *out)
{
    const mc_val *v = mc_map_get(&e->values, name);
    if (v && v->kind == MC_VAL_POISON) return false;
    if (v && (v->kind == MC_VAL_INT || v->kind == MC_VAL_STRING || v->kind == MC_VAL_WORD)) {
        if (v->kind == MC_VAL_INT)
            mc_val_print(e->module, *v, out);
        else
            mc_buf_str(out, v->as.s);
        return true;
    }
    if (v) return bad_pattern(e, word, "{=...} takes a param that is a whole number or a string");
    mc_strs params = {0};
    for (size_t i = 0; i < e->values.n; i++) mc_vec_push(e->arena, &params, e->values.entries[i].key);
    mc_elab_error(e, word.span, MC_E0201, "'%.*s' in \"%.*s\" is no param%.*s", MC_FMT(name), MC_FMT(word.text),
                  MC_FMT(mc_elab_hint(e, name, params.items, params.n)));
    return false;
}

static bool
read_braces(mc_elab *e, mc_word word, size_t *at, pattern *p, mc_buf *out)
{
    size_t end = *at + 1;
    while (end < word.text.len && word.text.data[end] != '}') end++;
    if (end == word.text.len) return bad_pattern(e, word, "'{' is not closed");
    mc_str inside = mc_str_slice(word.text, *at + 1, end);
    *at = end + 1;
    if (inside.len && inside.data[0] == '=') return put_param(e, word, mc_str_slice(inside, 1, inside.len), out);
    if (!is_name(inside)) return bad_pattern(e, word, "{name} matches one part of a path; {=P} inserts a param");
    mc_vec_push(e->arena, &p->names, inside);
    mc_buf_printf(out, "{%.*s}", MC_FMT(inside));
    return true;
}

static bool
read_pattern(mc_elab *e, mc_word word, pattern *p)
{
    mc_buf out = {0};
    bool ok = word.text.len > 0 || bad_pattern(e, word, "the pattern is empty");
    *p = (pattern){0};
    for (size_t i = 0; i < word.text.len && ok;) {
        char c = word.text.data[i];
        if (c == '{') {
            ok = read_braces(e, word, &i, p, &out);
            continue;
        }
        if (c == '"' || c == '\\' || (unsigned char)c < 0x20) ok = bad_pattern(e, word, "a name has no such character");
        if (c == '}') ok = bad_pattern(e, word, "'}' without '{'");
        if (c == '*') {
            p->n_wild++;
            if (i + 1 < word.text.len && word.text.data[i + 1] == '*') mc_buf_putc(&out, word.text.data[i++]);
        }
        mc_buf_putc(&out, c);
        i++;
    }
    if (ok && (out.len > MAX_PATTERN_BYTES || p->n_wild + p->names.n > MAX_WILD)) {
        mc_elab_error(e, word.span, MC_E0319, "a pattern has at most %d bytes and %d wildcards", MAX_PATTERN_BYTES,
                      MAX_WILD);
        ok = false;
    }
    p->text = mc_str_dup(e->arena, mc_buf_view(&out));
    mc_buf_fini(&out);
    return ok;
}

/* ---- stages of a rule ---- */

static const struct rule_stage {
    const char *name, *params;
    size_t n_needed;
} rule_stages[] = {{"split", "axis", 0}, {"unzip", "axis", 0},  {"transpose", "a b", 2},   {"reshape", "*", 1},
                   {"stack", "", 0},     {"concat", "axis", 0}, {"add", "by", 1},          {"scale", "by", 1},
                   {"cast", "", 0},      {"mxfp4", "", 0},      {"fp8", "rows columns", 0}};
enum { N_RULE_STAGES = sizeof rule_stages / sizeof rule_stages[0] };

static const struct rule_stage *
find_rule_stage(mc_elab *e, const mc_route_stage *s)
{
    mc_str names[N_RULE_STAGES];
    for (int i = 0; i < N_RULE_STAGES; i++) {
        names[i] = mc_str_of(rule_stages[i].name);
        if (mc_str_eq(names[i], s->name.text)) return &rule_stages[i];
    }
    mc_elab_error(e, s->name.span, MC_E0305, "a weights rule has no stage '%.*s'; stages: %.*s%.*s",
                  MC_FMT(s->name.text), MC_FMT(mc_elab_join(e, names, N_RULE_STAGES)),
                  MC_FMT(mc_elab_hint(e, s->name.text, names, N_RULE_STAGES)));
    return NULL;
}

static bool
put_value(mc_elab *e, const mc_fn_arg *a, const struct rule_stage *def, mc_buf *out)
{
    bool real = mc_str_is(mc_str_of(def->params), "by");
    bool good = real ? mc_val_is_number(a->value)
                     : a->value.kind == MC_VAL_INT && a->value.as.i >= 0 && a->value.as.i <= MC_MAX_DIM;
    if (good)
        mc_val_print(e->module, a->value, out);
    else
        mc_elab_error(e, a->span, MC_E0306, "%s takes %s", def->name,
                      real ? "a number" : "whole numbers that are not negative");
    return good;
}

/* reshape(16, 10752, 6144): any number of dims; everything else has named parameters. */
static bool
put_reshape(mc_elab *e, const mc_route_stage *s, const struct rule_stage *def, const mc_fn_arg *args, size_t n,
            mc_buf *out)
{
    mc_buf_putc(out, '(');
    for (size_t i = 0; i < n; i++) {
        if (args[i].name.text.len || n > MC_MAX_RANK) {
            mc_elab_error(e, args[i].span, MC_E0306, "reshape takes up to %d sizes", MC_MAX_RANK);
            return false;
        }
        if (i) mc_buf_puts(out, ", ");
        if (!put_value(e, &args[i], def, out)) return false;
    }
    mc_buf_putc(out, ')');
    if (n == 0) mc_elab_error(e, s->span, MC_E0307, "reshape needs sizes");
    return n > 0;
}

static bool
put_stage(mc_elab *e, const mc_route_stage *s, mc_buf *out)
{
    size_t n, given = 0;
    const struct rule_stage *def = find_rule_stage(e, s);
    mc_fn_arg *args = def ? mc_eval_args(e, s->args, &n) : NULL;
    if (!args) return false;
    mc_buf_printf(out, " | %s", def->name);
    if (mc_str_is(mc_str_of(def->params), "*")) return put_reshape(e, s, def, args, n, out);
    mc_strs params = mc_elab_words(e, def->params);
    mc_call c = {.span = s->span, .name = s->name.text, .param_names = params.items, .n_params = params.n};
    if (!mc_call_bind(e, &c, args, n, false)) return false;
    for (size_t i = 0; i < c.n_params; i++) {
        if (!c.params[i].given) continue;
        const mc_fn_arg a = {.value = c.params[i].value, .span = c.params[i].span};
        mc_buf_puts(out, given++ ? ", " : "(");
        if (mc_str_is(params.items[i], "axis")) mc_buf_puts(out, "axis = ");
        if (!put_value(e, &a, def, out)) return false;
    }
    if (given) mc_buf_putc(out, ')');
    bool half = mc_str_is(s->name.text, "fp8") && given == 1;
    if (half) mc_elab_error(e, s->span, MC_E0307, "fp8 needs both sides of a block, as in fp8(128, 128)");
    if (given < def->n_needed) mc_elab_error(e, s->span, MC_E0307, "%s needs %s", def->name, def->params);
    return given >= def->n_needed && !half;
}

/* ---- rules ---- */

static bool
has_name(const mc_strs *names, mc_str name)
{
    for (size_t i = 0; i < names->n; i++) {
        if (mc_str_eq(names->items[i], name)) return true;
    }
    return false;
}

/* Every target must be able to fill the source's wildcards; one name may be in no target, which stacks. */
static bool
check_source(mc_elab *e, const mc_rule *r, const pattern *targets, size_t n_targets, const pattern *source)
{
    mc_strs alone = {0};
    for (size_t t = 0; t < n_targets; t++) {
        if (source->n_wild > targets[t].n_wild)
            return bad_pattern(e, r->source, "it has more unnamed wildcards than the target");
    }
    for (size_t i = 0; i < source->names.n; i++) {
        mc_str name = source->names.items[i];
        size_t found = 0;
        for (size_t t = 0; t < n_targets; t++) found += has_name(&targets[t].names, name);
        if (found && found < n_targets) return bad_pattern(e, r->source, "a name in it stands in some targets only");
        if (!found && !has_name(&alone, name)) mc_vec_push(e->arena, &alone, name);
    }
    if (alone.n > 1)
        return bad_pattern(e, r->source,
                           "only one name may stand on the right alone: the one whose tensors are stacked");
    return true;
}

static bool
divides(const mc_rule *r)
{
    for (const mc_route_stage *s = r->stages; s; s = s->next) {
        if (mc_str_is(s->name.text, "split") || mc_str_is(s->name.text, "unzip")) return true;
    }
    return false;
}

static bool
put_targets(mc_elab *e, const mc_rule *r, const pattern *source, mc_buf *out)
{
    pattern targets[MAX_TARGETS];
    size_t n = 0;
    for (const mc_name_list *t = r->targets; t; t = t->next) {
        if (n == MAX_TARGETS) {
            mc_elab_error(e, t->word.span, MC_E0319, "more than %d patterns in one rule", MAX_TARGETS);
            return false;
        }
        if (!read_pattern(e, t->word, &targets[n])) return false;
        mc_buf_printf(out, "%s\"%.*s\"", n ? ", " : "", MC_FMT(targets[n].text));
        n++;
    }
    if (r->is_ignore) return true;
    if (divides(r) != (n > 1)) {
        mc_elab_error(
            e, r->span, MC_E0306,
            "several targets and a stage that divides the source, split(axis) or unzip(axis), belong together");
        return false;
    }
    return check_source(e, r, targets, n, source);
}

static bool
put_rule(mc_elab *e, const mc_rule *r, mc_buf *out)
{
    pattern source = {0};
    int n_stages = 0;
    if (r->is_ignore) mc_buf_puts(out, "ignore ");
    if (!r->is_ignore && !read_pattern(e, r->source, &source)) return false;
    if (!put_targets(e, r, &source, out)) return false;
    if (r->is_ignore) return true;
    mc_buf_printf(out, " <- \"%.*s\"", MC_FMT(source.text));
    for (const mc_route_stage *s = r->stages; s; s = s->next) {
        if (n_stages++ == MAX_RULE_STAGES) {
            mc_elab_error(e, s->span, MC_E0319, "more than %d stages in one rule", MAX_RULE_STAGES);
            return false;
        }
        if (!put_stage(e, s, out)) return false;
    }
    return true;
}

static void
read_map(mc_elab *e, const mc_item *item)
{
    mc_str name = item->name.text.len ? item->name.text : MC_STR("default");
    for (size_t i = 0; i < e->out->maps.n; i++) {
        if (!mc_str_eq(e->out->maps.items[i], name)) continue;
        mc_elab_error(e, item->name.text.len ? item->name.span : item->span, MC_E0205,
                      "two weights blocks are named '%.*s'", MC_FMT(name));
        return;
    }
    mc_buf text = {0};
    for (const mc_rule *r = item->rules; r; r = r->next) {
        size_t before = text.len;
        if (put_rule(e, r, &text))
            mc_buf_putc(&text, '\n');
        else
            text.len = before;
    }
    mc_module_set_meta(e->module, mc_strf(e->arena, "weights.%.*s", MC_FMT(name)), mc_buf_view(&text));
    mc_buf_fini(&text);
    mc_vec_push(e->arena, &e->out->maps, name);
}

void
mc_elab_rules(mc_elab *e)
{
    for (size_t i = 0; i < e->items.n; i++) {
        if (e->items.items[i]->kind == MC_ITEM_WEIGHTS) read_map(e, e->items.items[i]);
    }
    const mc_elab_result *r = e->out;
    mc_str chosen = e->options->weights_map;
    if (chosen.len && !has_name(&(mc_strs){.items = r->maps.items, .n = r->maps.n}, chosen)) {
        mc_elab_error(e, (mc_span){0}, MC_E0201, "no weights block '%.*s'%s%.*s", MC_FMT(chosen),
                      r->maps.n ? "; there is " : "", MC_FMT(mc_elab_join(e, r->maps.items, r->maps.n)));
        return;
    }
    if (!chosen.len && r->maps.n == 1) chosen = r->maps.items[0];
    if (chosen.len) mc_module_set_meta(e->module, MC_STR("weights"), chosen);
}
