/* Items and statements. Every list of lines recovers line by line, so that one run reports several mistakes. */
#include "frontend/parse.h"

#include "frontend/parser.h"

static mc_stmt *parse_body(mc_parser *p);

static mc_type_expr
parse_type(mc_parser *p)
{
    mc_type_expr type = {.span = mc_parser_peek(p, 0)->span};
    mc_span begin = type.span;
    if (mc_parser_is(p, MC_TOKEN_NAME)) type.dtype = mc_parser_name(p, "an element type");
    if (!mc_parser_expect(p, MC_TOKEN_LBRACKET)) return type;
    mc_arg **link = &type.dims;
    while (!p->panic && !mc_parser_is(p, MC_TOKEN_RBRACKET)) {
        mc_arg *dim = MC_NEW(p->arena, mc_arg);
        if (mc_parser_is(p, MC_TOKEN_ELLIPSIS)) {
            dim->value = MC_NEW(p->arena, mc_expr);
            dim->value->kind = MC_EXPR_ELLIPSIS;
            dim->value->span = mc_parser_next(p)->span;
        } else {
            dim->value = mc_parse_expr(p);
        }
        *link = dim;
        link = &dim->next;
        if (!mc_parser_accept(p, MC_TOKEN_COMMA)) break;
    }
    if (!p->panic) mc_parser_expect(p, MC_TOKEN_RBRACKET);
    type.span = mc_parser_span_from(p, begin);
    return type;
}

static mc_formal *
parse_formal(mc_parser *p)
{
    mc_formal *f = MC_NEW(p->arena, mc_formal);
    f->name = mc_parser_name(p, "a parameter");
    if (p->panic) return f;
    if (mc_parser_accept(p, MC_TOKEN_COLON)) {
        f->is_tensor = true;
        f->type = parse_type(p);
    } else if (mc_parser_accept(p, MC_TOKEN_ASSIGN)) {
        f->initial = mc_parse_expr(p);
    }
    return f;
}

static mc_formal *
parse_results(mc_parser *p)
{
    mc_formal *first = NULL, **link = &first;
    if (!mc_parser_accept(p, MC_TOKEN_LPAREN)) {
        first = MC_NEW(p->arena, mc_formal);
        first->is_tensor = true;
        first->type = parse_type(p);
        return first;
    }
    do {
        mc_formal *f = MC_NEW(p->arena, mc_formal);
        f->is_tensor = true;
        f->name = mc_parser_name(p, "a result");
        if (p->panic || !mc_parser_expect(p, MC_TOKEN_COLON)) break;
        f->type = parse_type(p);
        *link = f;
        link = &f->next;
    } while (!p->panic && mc_parser_accept(p, MC_TOKEN_COMMA));
    if (!p->panic) mc_parser_expect(p, MC_TOKEN_RPAREN);
    return first;
}

static void
parse_signature(mc_parser *p, mc_item *item)
{
    mc_formal **link = &item->formals;
    if (!mc_parser_expect(p, MC_TOKEN_LPAREN)) return;
    while (!p->panic && !mc_parser_is(p, MC_TOKEN_RPAREN)) {
        *link = parse_formal(p);
        link = &(*link)->next;
        if (!mc_parser_accept(p, MC_TOKEN_COMMA)) break;
    }
    if (p->panic || !mc_parser_expect(p, MC_TOKEN_RPAREN) || !mc_parser_expect(p, MC_TOKEN_RARROW)) return;
    item->results = parse_results(p);
}

/* ---- statements ---- */

static void
parse_if(mc_parser *p, mc_stmt *s)
{
    s->value = mc_parse_expr(p);
    if (p->panic) return;
    s->body = parse_body(p);
    size_t before_newlines = p->at;
    mc_parser_newlines(p);
    if (!mc_parser_accept_word(p, "else")) {
        p->at = before_newlines;
        return;
    }
    if (!mc_parser_is_word(p, "if")) {
        s->otherwise = parse_body(p);
        return;
    }
    if (!mc_parser_enter(p)) return;
    s->otherwise = MC_NEW(p->arena, mc_stmt);
    s->otherwise->kind = MC_STMT_IF;
    mc_span begin = mc_parser_next(p)->span;
    parse_if(p, s->otherwise);
    s->otherwise->span = mc_parser_span_from(p, begin);
    mc_parser_leave(p);
}

static void
parse_weight(mc_parser *p, mc_stmt *s)
{
    s->name = mc_parser_name(p, "a weight");
    if (p->panic || !mc_parser_expect(p, MC_TOKEN_COLON)) return;
    s->type = parse_type(p);
    if (!p->panic && mc_parser_accept(p, MC_TOKEN_ASSIGN)) s->value = mc_parse_expr(p);
}

static void
parse_repeat(mc_parser *p, mc_stmt *s)
{
    s->label = mc_parser_label(p);
    if (p->panic) return;
    s->value = mc_parse_expr(p);
    if (!p->panic && mc_parser_accept_word(p, "as")) s->name = mc_parser_name(p, "the repeat's index");
    if (!p->panic) s->body = parse_body(p);
}

static mc_arg *
parse_values(mc_parser *p)
{
    mc_arg *first = NULL, **link = &first;
    do {
        *link = MC_NEW(p->arena, mc_arg);
        (*link)->value = mc_parse_expr(p);
        link = &(*link)->next;
    } while (!p->panic && mc_parser_accept(p, MC_TOKEN_COMMA));
    return first;
}

static void
parse_set(mc_parser *p, mc_stmt *s)
{
    mc_name_list **link = &s->names;
    do {
        *link = MC_NEW(p->arena, mc_name_list);
        (*link)->word = mc_parser_name(p, "a variable");
        link = &(*link)->next;
    } while (!p->panic && mc_parser_accept(p, MC_TOKEN_COMMA));
    if (!p->panic && mc_parser_expect(p, MC_TOKEN_ASSIGN)) s->values = parse_values(p);
}

static void
parse_assert(mc_parser *p, mc_expr **condition, mc_word *text)
{
    *condition = mc_parse_expr(p);
    if (!p->panic && mc_parser_accept(p, MC_TOKEN_COMMA))
        *text = mc_parser_string(p, "a string that says what is wrong");
}

/* A statement's keyword is only one where an assignment cannot start: `weight = 3` sets a variable. */
static bool
keyword(mc_parser *p, const char *word)
{
    mc_token_kind after = mc_parser_peek(p, 1)->kind;
    if (after == MC_TOKEN_ASSIGN || after == MC_TOKEN_COMMA) return false;
    return mc_parser_accept_word(p, word);
}

static mc_stmt *
parse_statement(mc_parser *p)
{
    mc_stmt *s = MC_NEW(p->arena, mc_stmt);
    mc_span begin = mc_parser_peek(p, 0)->span;
    if (keyword(p, "weight")) {
        s->kind = MC_STMT_WEIGHT;
        parse_weight(p, s);
    } else if (keyword(p, "if")) {
        s->kind = MC_STMT_IF;
        parse_if(p, s);
    } else if (keyword(p, "repeat")) {
        s->kind = MC_STMT_REPEAT;
        parse_repeat(p, s);
    } else if (keyword(p, "return")) {
        s->kind = MC_STMT_RETURN;
        s->values = parse_values(p);
    } else if (keyword(p, "assert")) {
        s->kind = MC_STMT_ASSERT;
        parse_assert(p, &s->value, &s->text);
    } else {
        s->kind = MC_STMT_SET;
        parse_set(p, s);
    }
    s->span = mc_parser_span_from(p, begin);
    if (!p->panic && s->kind != MC_STMT_IF && s->kind != MC_STMT_REPEAT) mc_parser_end_statement(p);
    return s;
}

static mc_stmt *
parse_body(mc_parser *p)
{
    mc_stmt *first = NULL, **link = &first;
    if (!mc_parser_expect(p, MC_TOKEN_LBRACE) || !mc_parser_enter(p)) return NULL;
    for (mc_parser_newlines(p); !mc_parser_is(p, MC_TOKEN_RBRACE) && !mc_parser_is(p, MC_TOKEN_END);
         mc_parser_newlines(p)) {
        mc_stmt *s = parse_statement(p);
        if (p->panic) {
            mc_parser_recover(p);
            continue;
        }
        *link = s;
        link = &s->next;
    }
    mc_parser_leave(p);
    mc_parser_expect(p, MC_TOKEN_RBRACE);
    return first;
}

/* ---- items ---- */

static mc_rule *
parse_rule(mc_parser *p)
{
    mc_rule *rule = MC_NEW(p->arena, mc_rule);
    mc_span begin = mc_parser_peek(p, 0)->span;
    rule->is_ignore = mc_parser_accept_word(p, "ignore");
    mc_name_list **link = &rule->targets;
    do {
        *link = MC_NEW(p->arena, mc_name_list);
        (*link)->word = mc_parser_string(p, "a name pattern in quotes");
        link = &(*link)->next;
    } while (!p->panic && mc_parser_accept(p, MC_TOKEN_COMMA));
    if (!p->panic && !rule->is_ignore && mc_parser_expect(p, MC_TOKEN_LARROW)) {
        mc_route_stage **stage = &rule->stages;
        rule->source = mc_parser_string(p, "the checkpoint's name in quotes");
        while (!p->panic && mc_parser_accept(p, MC_TOKEN_BAR)) {
            *stage = mc_parse_stage(p);
            stage = &(*stage)->next;
        }
    }
    rule->span = mc_parser_span_from(p, begin);
    return rule;
}

static mc_setting *
parse_setting_line(mc_parser *p)
{
    mc_setting *s = MC_NEW(p->arena, mc_setting);
    s->name = mc_parser_name(p, "a setting");
    if (!p->panic) s->args = mc_parse_setting(p);
    return s;
}

static void
parse_lines(mc_parser *p, mc_item *item) /* { rule or setting ... } */
{
    mc_rule **rule = &item->rules;
    mc_setting **setting = &item->settings;
    if (!mc_parser_expect(p, MC_TOKEN_LBRACE)) return;
    for (mc_parser_newlines(p); !mc_parser_is(p, MC_TOKEN_RBRACE) && !mc_parser_is(p, MC_TOKEN_END);
         mc_parser_newlines(p)) {
        if (item->kind == MC_ITEM_WEIGHTS) {
            *rule = parse_rule(p);
            rule = &(*rule)->next;
        } else {
            *setting = parse_setting_line(p);
            setting = &(*setting)->next;
        }
        if (!p->panic) mc_parser_end_statement(p);
        if (p->panic) mc_parser_recover(p);
    }
    mc_parser_expect(p, MC_TOKEN_RBRACE);
}

static const struct item_word {
    const char *word;
    mc_item_kind kind;
} item_words[] = {{"use", MC_ITEM_USE},         {"dim", MC_ITEM_DIM},         {"param", MC_ITEM_PARAM},
                  {"default", MC_ITEM_DEFAULT}, {"assert", MC_ITEM_ASSERT},   {"block", MC_ITEM_BLOCK},
                  {"model", MC_ITEM_MODEL},     {"weights", MC_ITEM_WEIGHTS}, {"precision", MC_ITEM_PRECISION},
                  {"place", MC_ITEM_PLACE},     {"train", MC_ITEM_TRAIN}};
enum { N_ITEM_WORDS = sizeof item_words / sizeof item_words[0] };

static bool
item_kind(mc_parser *p, mc_item_kind *kind)
{
    const mc_token *t = mc_parser_peek(p, 0);
    mc_str names[N_ITEM_WORDS];
    for (int i = 0; i < N_ITEM_WORDS; i++) {
        names[i] = mc_str_of(item_words[i].word);
        if (t->kind != MC_TOKEN_NAME || !mc_str_eq(t->text, names[i])) continue;
        *kind = item_words[i].kind;
        return true;
    }
    const char *list = "use, dim, param, default, assert, block, model, weights, precision, place, train";
    mc_str near = t->kind == MC_TOKEN_NAME ? mc_str_nearest(t->text, names, N_ITEM_WORDS) : MC_STR("");
    if (near.len)
        mc_parser_error(p, MC_E0106, "'%.*s' is not a declaration: %s (did you mean '%.*s'?)", MC_FMT(t->text), list,
                        MC_FMT(near));
    else if (t->kind == MC_TOKEN_NAME)
        mc_parser_error(p, MC_E0106, "'%.*s' is not a declaration: %s", MC_FMT(t->text), list);
    else
        mc_parser_error(p, MC_E0106, "expected a declaration before %s: %s", mc_token_kind_text(t->kind), list);
    return false;
}

/* dim and param declare several names in one line: one item each. Returns where the next item links in. */
static mc_item **
parse_names(mc_parser *p, mc_item_kind kind, mc_item **link)
{
    do {
        mc_item *item = MC_NEW(p->arena, mc_item);
        item->kind = kind;
        item->name = mc_parser_name(p, kind == MC_ITEM_DIM ? "a dimension" : "a parameter");
        item->span = item->name.span;
        if (p->panic) break;
        if (kind == MC_ITEM_PARAM) {
            if (!mc_parser_expect(p, MC_TOKEN_ASSIGN)) break;
            item->value = mc_parse_expr(p);
        } else if (mc_parser_accept_word(p, "in")) {
            item->value = mc_parse_expr(p);
        }
        *link = item;
        link = &item->next;
    } while (!p->panic && mc_parser_accept(p, MC_TOKEN_COMMA));
    if (!p->panic) mc_parser_end_statement(p);
    return link;
}

static mc_item **
parse_item(mc_parser *p, mc_item **link)
{
    mc_item_kind kind;
    if (!item_kind(p, &kind)) return link;
    mc_span begin = mc_parser_next(p)->span;
    if (kind == MC_ITEM_DIM || kind == MC_ITEM_PARAM) return parse_names(p, kind, link);
    mc_item *item = MC_NEW(p->arena, mc_item);
    item->kind = kind;
    item->span = begin;
    switch (kind) {
    case MC_ITEM_USE: item->text = mc_parser_string(p, "a file name in quotes"); break;
    case MC_ITEM_DEFAULT:
        item->name = mc_parser_name(p, "a block or operation");
        if (!p->panic) item->args = mc_parse_args(p);
        break;
    case MC_ITEM_ASSERT: parse_assert(p, &item->value, &item->text); break;
    case MC_ITEM_BLOCK:
    case MC_ITEM_MODEL:
        item->name = mc_parser_name(p, kind == MC_ITEM_BLOCK ? "a block" : "a model");
        item->span = mc_parser_span_from(p, begin);
        if (!p->panic) parse_signature(p, item);
        if (!p->panic) item->body = parse_body(p);
        break;
    case MC_ITEM_WEIGHTS:
        if (mc_parser_is(p, MC_TOKEN_NAME)) item->name = mc_parser_name(p, "a weight map");
        parse_lines(p, item);
        break;
    case MC_ITEM_PRECISION:
    case MC_ITEM_PLACE:
    case MC_ITEM_TRAIN: parse_lines(p, item); break;
    case MC_ITEM_DIM:
    case MC_ITEM_PARAM: break; /* above */
    }
    if (!p->panic) mc_parser_end_statement(p);
    if (p->panic) return link;
    *link = item;
    return &item->next;
}

static void
parse_version(mc_parser *p, mc_file *file)
{
    if (!mc_parser_accept_word(p, "moe")) {
        mc_parser_error(p, MC_E0101, "the first line must say the version of the language: moe 1");
        return;
    }
    const mc_token *t = mc_parser_peek(p, 0);
    if (!mc_parser_expect(p, MC_TOKEN_INT)) return;
    file->version = t->as.integer;
    if (file->version != 1)
        mc_error(p->diags, t->span, MC_E0104, "this file is version %lld; this moec reads version 1",
                 (long long)file->version);
    mc_parser_end_statement(p);
}

mc_file *
mc_parse(mc_arena *arena, const mc_sources *sources, uint32_t file_number, mc_diags *diags)
{
    mc_parser parser = {.arena = arena, .diags = diags}, *p = &parser;
    p->tokens = mc_lex(arena, sources, file_number, diags);
    mc_file *file = MC_NEW(arena, mc_file);
    file->span = (mc_span){file_number, 0, 0};
    mc_parser_newlines(p);
    parse_version(p, file);
    if (p->panic) mc_parser_recover(p);
    mc_item **link = &file->items;
    for (;;) {
        mc_parser_newlines(p);
        if (mc_parser_is(p, MC_TOKEN_END)) break;
        size_t before = p->at;
        link = parse_item(p, link);
        if (p->panic) mc_parser_recover(p);
        if (p->at == before) mc_parser_next(p); /* a stray `}` */
    }
    return file;
}
