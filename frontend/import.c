/* The family file is elaborated with the configuration while noting what every condition came to and what every
 * config(...) gave; then the text is copied with those places replaced. Working on the text keeps the author's names,
 * order and comments. */
#include "frontend/import.h"

#include "frontend/elab.h"
#include "runtime/base/embedded.h"
#include "frontend/format.h"
#include "frontend/lex.h"
#include "frontend/walk.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

typedef struct edit {
    uint32_t begin, end;
    mc_str text;
} edit;

typedef struct importing {
    mc_elab *e;
    uint32_t file;
    mc_str text; /* of the family file */
    MC_VEC(edit) edits;
    const mc_item *first_param;
} importing;

static void
replace(importing *im, uint32_t begin, uint32_t end, mc_str text)
{
    edit ed = {begin, end, text};
    mc_vec_push(im->e->arena, &im->edits, ed);
}

static int
seen(importing *im, const void *node)
{
    return (int)(uintptr_t)mc_map_get(im->e->seen, mc_elab_node_key(im->e, node));
}

/* Leaves of a span only the part inside it: two cuts. */
static void
keep_only(importing *im, mc_span whole, mc_span part)
{
    replace(im, whole.begin, part.begin, MC_STR(""));
    replace(im, part.end, whole.end, MC_STR(""));
}

/* ---- expressions ---- */

static void
edit_expr(void *context, const mc_expr *x)
{
    importing *im = context;
    if (x->span.file != im->file) return;
    if (x->kind == MC_EXPR_CALL) {
        const mc_val *v = mc_map_get(im->e->config_values, mc_elab_node_key(im->e, x));
        if (v) replace(im, x->span.begin, x->span.end, mc_val_str(im->e->module, *v, im->e->arena));
    }
    if (x->kind != MC_EXPR_COND) return;
    int bits = seen(im, x);
    if (bits == MC_SEEN_TRUE) keep_only(im, x->span, x->b->span);
    if (bits == MC_SEEN_FALSE) keep_only(im, x->span, x->c->span);
}

/* ---- stages ---- */

static void
drop_when(importing *im, const mc_route_stage *s)
{
    const mc_arg *before = NULL;
    for (const mc_arg *a = s->args; a; before = a, a = a->next) {
        if (!mc_str_is(a->name.text, "when")) continue;
        if (before)
            replace(im, before->value->span.end, a->value->span.end, MC_STR(""));
        else if (a->next)
            replace(im, a->name.span.begin,
                    a->next->name.text.len ? a->next->name.span.begin : a->next->value->span.begin, MC_STR(""));
        else
            replace(im, s->label.text.len ? s->label.span.end : s->name.span.end, s->span.end, MC_STR(""));
    }
}

static void
edit_stages(importing *im, const mc_route_stage *s)
{
    const mc_route_stage *before = NULL;
    for (; s; before = s, s = s->next) {
        int bits = seen(im, s);
        if (bits == MC_SEEN_TRUE) drop_when(im, s);
        if (bits != MC_SEEN_FALSE) continue;
        if (before)
            replace(im, before->span.end, s->span.end, MC_STR(""));
        else if (s->next)
            replace(im, s->span.begin, s->next->span.begin, MC_STR(""));
    }
}

static void
edit_routes(void *context, const mc_expr *x)
{
    importing *im = context;
    if (x->span.file != im->file) return;
    edit_stages(im, x->stages);
    for (const mc_clause *c = x->clauses; c; c = c->next) edit_stages(im, c->stages);
}

/* ---- statements ---- */

static mc_span
body_span(const mc_stmt *body)
{
    mc_span span = body->span;
    while (body->next) body = body->next;
    span.end = body->span.end;
    return span;
}

/* The span, and the rest of its lines when nothing else stands there. */
static void
drop_lines(importing *im, mc_span span)
{
    uint32_t begin = span.begin, end = span.end;
    while (begin > 0 && im->text.data[begin - 1] == ' ') begin--;
    while (end < im->text.len && im->text.data[end] == ' ') end++;
    bool alone = begin > 0 && im->text.data[begin - 1] == '\n' && end < im->text.len && im->text.data[end] == '\n';
    if (alone)
        replace(im, begin, end + 1, MC_STR(""));
    else
        replace(im, span.begin, span.end, MC_STR(""));
}

static void
edit_body(importing *im, const mc_stmt *s)
{
    for (; s; s = s->next) {
        if (s->kind == MC_STMT_IF) {
            int bits = seen(im, s);
            const mc_stmt *kept = bits == MC_SEEN_TRUE ? s->body : bits == MC_SEEN_FALSE ? s->otherwise : NULL;
            if (kept)
                keep_only(im, s->span, body_span(kept));
            else if (bits == MC_SEEN_TRUE || bits == MC_SEEN_FALSE)
                drop_lines(im, s->span);
        }
        if (s->body) edit_body(im, s->body);
        if (s->otherwise) edit_body(im, s->otherwise);
    }
}

/* ---- items ---- */

/* From the keyword that begins the statement, wherever on its line, to the end of the line. */
static void
drop_statement(importing *im, mc_span first, uint32_t end, const char *keyword)
{
    uint32_t begin = first.begin;
    size_t n = strlen(keyword);
    while (begin > 0 && im->text.data[begin - 1] != '\n') {
        if (begin >= n && memcmp(im->text.data + begin - n, keyword, n) == 0) break;
        begin--;
    }
    begin -= begin >= n && memcmp(im->text.data + begin - n, keyword, n) == 0 ? (uint32_t)n : 0;
    while (end < im->text.len && im->text.data[end] != '\n') end++;
    replace(im, begin, end < im->text.len ? end + 1 : end, MC_STR(""));
}

static bool
same_line(importing *im, uint32_t from, uint32_t to)
{
    return memchr(im->text.data + from, '\n', to - from) == NULL;
}

/* All params leave the text; those still needed come back as one group where the first one stood. */
static const mc_item *
drop_params(importing *im, const mc_item *item)
{
    const mc_item *last = item;
    while (last->next && last->next->kind == MC_ITEM_PARAM &&
           same_line(im, last->value->span.end, last->next->name.span.begin))
        last = last->next;
    drop_statement(im, item->name.span, last->value->span.end, "param");
    return last;
}

static void
edit_item(importing *im, const mc_item *item)
{
    mc_elab *e = im->e;
    mc_walk_item(item, edit_expr, im);
    mc_walk_item(item, edit_routes, im);
    edit_body(im, item->body);
    if (item->kind == MC_ITEM_ASSERT)
        drop_statement(im, item->span, item->text.text.len ? item->text.span.end : item->value->span.end, "assert");
    if (item->kind == MC_ITEM_BLOCK && !mc_map_has(&e->inlined, item->name.text) && item->body) {
        uint32_t end = body_span(item->body).end;
        while (end < im->text.len && im->text.data[end] != '}') end++;
        replace(im, item->span.begin, end + 1, MC_STR(""));
    }
}

/* ---- putting the text together ---- */

/* Outer edits before inner ones, so that what lies inside a cut is skipped with it. */
static int
by_place(const void *a, const void *b)
{
    const edit *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end == y->end ? 0 : x->end > y->end ? -1 : 1;
}

static void
write_text(importing *im, uint32_t from, mc_str params, mc_buf *out)
{
    qsort(im->edits.items, im->edits.n, sizeof *im->edits.items, by_place);
    uint32_t at = from, insert = im->first_param ? im->first_param->name.span.begin : 0;
    for (size_t i = 0; i <= im->edits.n; i++) {
        bool last = i == im->edits.n;
        uint32_t begin = last ? (uint32_t)im->text.len : im->edits.items[i].begin;
        if (begin > at) mc_buf_str(out, mc_str_slice(im->text, at, begin));
        if (last) break;
        const edit *ed = &im->edits.items[i];
        if (ed->end <= at) continue;
        if (im->first_param && ed->begin <= insert && ed->end > insert) mc_buf_str(out, params);
        if (ed->begin >= at) mc_buf_str(out, ed->text);
        at = ed->end;
    }
}

/* Names that the text mentions, {=NAME} in strings included. */
static void
mentioned(importing *im, mc_str text, mc_map *names)
{
    mc_diags scratch;
    mc_diags_init(&scratch, im->e->arena, im->e->sources);
    mc_tokens tokens =
        mc_lex(im->e->arena, im->e->sources, mc_sources_add(im->e->sources, MC_STR("import"), text), &scratch);
    for (size_t i = 0; i < tokens.n; i++) {
        mc_str t = tokens.items[i].text;
        if (tokens.items[i].kind == MC_TOKEN_NAME) mc_map_set(names, t, im);
        for (size_t k = 0; tokens.items[i].kind == MC_TOKEN_STRING && k + 2 < t.len; k++) {
            if (t.data[k] != '{' || t.data[k + 1] != '=') continue;
            const char *close = memchr(t.data + k, '}', t.len - k);
            if (close) mc_map_set(names, mc_str_slice(t, k + 2, (size_t)(close - t.data)), im);
        }
    }
}

static mc_str
param_lines(importing *im, const mc_map *names)
{
    enum { WIDTH = 100 };
    mc_buf text = {0};
    size_t line = 0;
    for (size_t i = 0; i < im->e->out->params.n; i++) {
        const mc_param_info *p = &im->e->out->params.items[i];
        if (!mc_map_has(names, p->name)) continue;
        size_t width = p->name.len + p->value.len + 5;
        bool starts = text.len == 0 || line + width > WIDTH;
        if (starts && text.len) mc_buf_putc(&text, '\n');
        mc_buf_printf(&text, "%s%.*s = %.*s", starts ? "param " : ", ", MC_FMT(p->name), MC_FMT(p->value));
        line = (starts ? 6 : line) + width;
    }
    if (text.len) mc_buf_putc(&text, '\n');
    mc_str copy = mc_str_dup(im->e->arena, mc_buf_view(&text));
    mc_buf_fini(&text);
    return copy;
}

/* The text after the version line and the comment that only a family file needs. */
static uint32_t
body_begin(const mc_str text)
{
    uint32_t at = 0;
    for (int line = 0; at < text.len; line++) {
        bool comment = text.data[at] == '#';
        if (line > 0 && !comment) break;
        while (at < text.len && text.data[at] != '\n') at++;
        if (at < text.len) at++;
    }
    return at;
}

static bool
write_plain(importing *im, mc_str model_type, mc_str config, mc_buf *out)
{
    mc_elab *e = im->e;
    mc_map names;
    bool has_precision = false;
    mc_map_init(&names, e->arena);
    for (size_t i = 0; i < e->items.n; i++) {
        const mc_item *item = e->items.items[i];
        has_precision |= item->kind == MC_ITEM_PRECISION;
        if (item->kind != MC_ITEM_PARAM) {
            edit_item(im, item);
            continue;
        }
        if (!im->first_param) im->first_param = item;
        const mc_item *last = drop_params(im, item);
        while (e->items.items[i] != last) i++;
    }
    mc_buf body = {0}, whole = {0};
    uint32_t from = body_begin(im->text);
    write_text(im, from, MC_STR(""), &body);
    mentioned(im, mc_buf_view(&body), &names);
    mc_buf_printf(&whole, "moe 1\n# written by moec import from a config.json of model_type %.*s\n",
                  MC_FMT(model_type));
    write_text(im, from, param_lines(im, &names), &whole);
    bool ok = has_precision || mc_import_precision(config, &whole, e->diags);
    uint32_t file = mc_sources_add(e->sources, MC_STR("imported.moe"), mc_buf_view(&whole));
    ok = ok && mc_format(e->arena, e->sources, file, e->diags, out);
    mc_buf_fini(&body);
    mc_buf_fini(&whole);
    return ok;
}

/* ---- which family ---- */

static mc_str
read_model_type(mc_arena *arena, mc_str config, mc_diags *diags)
{
    json_error_t error;
    json_t *root = json_loadb(config.data, config.len, JSON_REJECT_DUPLICATES, &error);
    const json_t *type = json_object_get(root, "model_type");
    mc_str name = type && json_is_string(type) ? mc_str_dup(arena, mc_str_of(json_string_value(type))) : MC_STR("");
    if (!root)
        mc_error(diags, (mc_span){0}, MC_E0908, "config.json: %s (line %d)", error.text, error.line);
    else if (name.len == 0)
        mc_error(diags, (mc_span){0}, MC_E0911, "config.json does not say its model_type");
    json_decref(root);
    return name;
}

static mc_str
find_family(mc_arena *arena, mc_str model_type, mc_diags *diags)
{
    mc_str text = mc_str_is(model_type, "prelude") ? MC_STR("") : mc_embedded_find(mc_embedded_texts, model_type);
    if (text.len) return text;
    mc_buf known = {0};
    MC_VEC(mc_str) names = {0};
    for (const mc_embedded *t = mc_embedded_texts; t->name; t++) {
        if (mc_str_is(mc_str_of(t->name), "prelude")) continue;
        mc_buf_printf(&known, "%s%s", known.len ? ", " : "", t->name);
        mc_vec_push(arena, &names, mc_str_of(t->name));
    }
    mc_str near = mc_str_nearest(model_type, names.items, names.n);
    mc_error(diags, (mc_span){0}, MC_E0911, "no family file for model_type '%.*s'; there is %.*s%s%.*s%s",
             MC_FMT(model_type), MC_FMT(mc_buf_view(&known)), near.len ? " (did you mean '" : "", MC_FMT(near),
             near.len ? "'?)" : "");
    mc_buf_fini(&known);
    return text;
}

bool
mc_import(mc_arena *arena, mc_sources *sources, const mc_import_options *options, mc_diags *diags, mc_buf *out)
{
    mc_str type = read_model_type(arena, options->config, diags);
    mc_str text = options->family.len ? options->family : type.len ? find_family(arena, type, diags) : MC_STR("");
    if (!text.len) return false;
    mc_str name = options->family.len ? options->family_name : mc_strf(arena, "families/%.*s.moe", MC_FMT(type));
    uint32_t file = mc_sources_add(sources, name, text);
    mc_elab_options elab_options = {
        .config = options->config, .defines = options->defines, .n_defines = options->n_defines};
    mc_elab_result result;
    mc_elab e;
    mc_map seen_map, values;
    mc_elab_init(&e, arena, sources, &elab_options, diags, &result);
    mc_map_init(&seen_map, arena);
    mc_map_init(&values, arena);
    e.seen = &seen_map;
    e.config_values = &values;
    bool ok = mc_elab_run(&e, file);
    if (ok) {
        importing im = {.e = &e, .file = file, .text = text};
        ok = write_plain(&im, type, options->config, out);
    }
    mc_module_destroy(e.module);
    return ok;
}
