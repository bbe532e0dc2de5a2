/* Pipeline text to steps and back, by recursive descent over the characters: the grammar is too small for a lexer.
 * Named pipelines are parsed where they are used, so that order constraints see through them. */
#include "passes/pipeline.h"

#include <ctype.h>
#include <string.h>

enum { MAX_DEPTH = 8 };

typedef struct parser {
    mc_str text;
    size_t at;
    int depth;
    mc_arena *arena;
    mc_diags *diags;
} parser;

static bool
fail(parser *p, const char *what)
{
    return mc_error(p->diags, (mc_span){0}, MC_E0501, "pipeline '%.*s', character %zu: %s", MC_FMT(p->text), p->at + 1,
                    what);
}

static void
skip_spaces(parser *p)
{
    while (p->at < p->text.len && (p->text.data[p->at] == ' ' || p->text.data[p->at] == '\n')) p->at++;
}

static bool
accept(parser *p, char c)
{
    skip_spaces(p);
    if (p->at >= p->text.len || p->text.data[p->at] != c) return false;
    p->at++;
    return true;
}

static mc_str
word(parser *p)
{
    skip_spaces(p);
    size_t begin = p->at;
    while (p->at < p->text.len) {
        unsigned char c = (unsigned char)p->text.data[p->at];
        if (!isalnum(c) && c != '-' && c != '_') break;
        p->at++;
    }
    return mc_str_slice(p->text, begin, p->at);
}

static bool
integer(mc_str s, int64_t *out)
{
    bool minus = s.len > 1 && s.data[0] == '-';
    int64_t value = 0;
    for (size_t i = minus; i < s.len; i++) {
        if (!isdigit((unsigned char)s.data[i])) return false;
        if (__builtin_mul_overflow(value, (int64_t)10, &value)) return false;
        if (__builtin_add_overflow(value, (int64_t)(s.data[i] - '0'), &value)) return false;
    }
    *out = minus ? -value : value;
    return s.len > 0;
}

static bool
setting(parser *p, mc_step *step)
{
    size_t begin = p->at;
    mc_str key = word(p);
    const mc_pass_option_info *info = NULL;
    for (int i = 0; i < step->pass->n_options; i++)
        if (mc_str_is(key, step->pass->options[i].name)) info = &step->pass->options[i];
    if (!info) {
        p->at = begin;
        return fail(p, mc_strf(p->arena, "'%s' has no option '%.*s'", step->pass->name, MC_FMT(key)).data);
    }
    if (!accept(p, '=')) return fail(p, "expected '=' after an option's name");
    int64_t value;
    if (!integer(word(p), &value) || value < info->least || value > info->greatest)
        return fail(p, mc_strf(p->arena, "option '%s' takes an integer from %lld to %lld", info->name,
                               (long long)info->least, (long long)info->greatest)
                           .data);
    for (size_t i = 0; i < step->settings.n; i++)
        if (mc_str_eq(step->settings.items[i].key, key)) return fail(p, "an option is given twice");
    mc_vec_push(p->arena, &step->settings, (mc_pass_setting){mc_str_of(info->name), value});
    return true;
}

static bool
unknown(parser *p, size_t begin, mc_str name, bool pipeline)
{
    mc_str names[64] = {{0}};
    size_t n = 0;
    if (pipeline)
        for (int i = 0; i < mc_n_named_pipelines && n < 64; i++) names[n++] = mc_str_of(mc_named_pipelines[i].name);
    else
        for (int i = 0; i < mc_n_passes && n < 64; i++) names[n++] = mc_str_of(mc_passes[i].name);
    mc_str near = mc_str_nearest(name, names, n);
    p->at = begin;
    const char *kind = pipeline ? "pipeline" : "pass";
    mc_str text = name.len == 0 ? mc_strf(p->arena, "expected the name of a %s", kind)
                  : near.len
                      ? mc_strf(p->arena, "no %s '%.*s' (did you mean '%.*s'?)", kind, MC_FMT(name), MC_FMT(near))
                      : mc_strf(p->arena, "no %s '%.*s'", kind, MC_FMT(name));
    return fail(p, text.data);
}

static bool steps(parser *p, mc_pipeline *out);

static bool
named_step(parser *p, mc_step *step)
{
    size_t begin = p->at;
    mc_str name = word(p);
    step->kind = MC_STEP_NAMED;
    step->named = mc_pipeline_find(name);
    if (!step->named) return unknown(p, begin, name, true);
    parser inner = {.text = mc_str_of(step->named->text), .depth = p->depth, .arena = p->arena, .diags = p->diags};
    if (!steps(&inner, &step->body)) return false;
    return inner.at == inner.text.len || fail(&inner, "expected ',' or the end");
}

static bool
pass_step(parser *p, size_t begin, mc_str name, mc_step *step)
{
    step->kind = MC_STEP_PASS;
    step->pass = mc_pass_find(name);
    if (!step->pass) return unknown(p, begin, name, false);
    if (!accept(p, '{')) return true;
    do {
        skip_spaces(p);
        if (!setting(p, step)) return false;
    } while (!accept(p, '}'));
    return true;
}

static bool
step_of(parser *p, mc_step *step)
{
    if (accept(p, '@')) return named_step(p, step);
    skip_spaces(p);
    size_t begin = p->at;
    mc_str name = word(p);
    if (!mc_str_is(name, "repeat") || !accept(p, '(')) return pass_step(p, begin, name, step);
    step->kind = MC_STEP_REPEAT;
    return steps(p, &step->body) && (accept(p, ')') || fail(p, "expected ',' or ')'"));
}

static bool
steps(parser *p, mc_pipeline *out)
{
    if (++p->depth > MAX_DEPTH) return fail(p, "nested too deeply");
    do {
        mc_step step = {0};
        if (!step_of(p, &step)) return false;
        mc_vec_push(p->arena, out, step);
    } while (accept(p, ','));
    p->depth--;
    skip_spaces(p);
    return true;
}

bool
mc_pipeline_parse(mc_str text, mc_arena *arena, mc_diags *diags, mc_pipeline *out)
{
    *out = (mc_pipeline){0};
    parser p = {.text = mc_str_dup(arena, text), .arena = arena, .diags = diags};
    if (!steps(&p, out)) return false;
    return p.at == p.text.len || fail(&p, "expected ',' or the end");
}

static void
print_settings(const mc_step *step, mc_buf *out)
{
    for (size_t i = 0; i < step->settings.n; i++) {
        const mc_pass_setting *s = &step->settings.items[i];
        mc_buf_printf(out, "%s%.*s=%lld", i ? " " : "{", MC_FMT(s->key), (long long)s->value);
    }
    if (step->settings.n) mc_buf_putc(out, '}');
}

void
mc_pipeline_print(const mc_pipeline *pipeline, mc_buf *out)
{
    for (size_t i = 0; i < pipeline->n; i++) {
        const mc_step *step = &pipeline->items[i];
        if (i) mc_buf_putc(out, ',');
        switch (step->kind) {
        case MC_STEP_PASS:
            mc_buf_puts(out, step->pass->name);
            print_settings(step, out);
            break;
        case MC_STEP_REPEAT:
            mc_buf_puts(out, "repeat(");
            mc_pipeline_print(&step->body, out);
            mc_buf_putc(out, ')');
            break;
        case MC_STEP_NAMED: mc_buf_printf(out, "@%s", step->named->name); break;
        }
    }
}

typedef MC_VEC(const mc_pass_info *) pass_list;

static void
flatten(const mc_pipeline *pipeline, mc_arena *arena, pass_list *out)
{
    for (size_t i = 0; i < pipeline->n; i++) {
        const mc_step *step = &pipeline->items[i];
        if (step->kind == MC_STEP_PASS)
            mc_vec_push(arena, out, step->pass);
        else
            flatten(&step->body, arena, out);
    }
}

static size_t
first_of(const pass_list *list, const char *name)
{
    size_t i = 0;
    while (i < list->n && strcmp(list->items[i]->name, name) != 0) i++;
    return i;
}

bool
mc_pipeline_check_order(const mc_pipeline *pipeline, mc_arena *arena, mc_diags *diags)
{
    pass_list list = {0};
    flatten(pipeline, arena, &list);
    bool ok = true;
    for (int i = 0; i < mc_n_pass_orders; i++) {
        const mc_pass_order *o = &mc_pass_orders[i];
        size_t first = first_of(&list, o->first), then = first_of(&list, o->then);
        if (first == list.n || then == list.n || first < then) continue;
        ok = mc_error(diags, (mc_span){0}, MC_E0502, "'%s' must come before '%s': %s", o->first, o->then, o->why);
    }
    return ok;
}
