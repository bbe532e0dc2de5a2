/* The parser's grip on the token list: looking, taking, complaining once, and finding firm ground again. */
#include "frontend/parser.h"

const mc_token *
mc_parser_peek(const mc_parser *p, size_t ahead)
{
    size_t i = p->at + ahead;
    return &p->tokens.items[i < p->tokens.n ? i : p->tokens.n - 1];
}

bool
mc_parser_is(const mc_parser *p, mc_token_kind kind)
{
    return mc_parser_peek(p, 0)->kind == kind;
}

bool
mc_parser_is_word(const mc_parser *p, const char *word)
{
    return mc_parser_is(p, MC_TOKEN_NAME) && mc_str_is(mc_parser_peek(p, 0)->text, word);
}

const mc_token *
mc_parser_next(mc_parser *p)
{
    const mc_token *t = mc_parser_peek(p, 0);
    if (p->at + 1 < p->tokens.n) p->at++;
    return t;
}

bool
mc_parser_accept(mc_parser *p, mc_token_kind kind)
{
    if (!mc_parser_is(p, kind)) return false;
    mc_parser_next(p);
    return true;
}

bool
mc_parser_accept_word(mc_parser *p, const char *word)
{
    if (!mc_parser_is_word(p, word)) return false;
    mc_parser_next(p);
    return true;
}

void
mc_parser_error(mc_parser *p, mc_code code, const char *format, ...)
{
    if (p->panic) return;
    p->panic = true;
    va_list args;
    va_start(args, format);
    mc_str text = mc_strfv(p->arena, format, args);
    va_end(args);
    mc_error(p->diags, mc_parser_peek(p, 0)->span, code, "%.*s", MC_FMT(text));
}

/* What stands there, in the words of the text where it has any. */
static void
unexpected(mc_parser *p, const char *wanted)
{
    const mc_token *t = mc_parser_peek(p, 0);
    if (t->kind == MC_TOKEN_NAME || t->kind == MC_TOKEN_INT || t->kind == MC_TOKEN_REAL)
        mc_parser_error(p, MC_E0101, "expected %s before '%.*s'", wanted, MC_FMT(t->text));
    else
        mc_parser_error(p, MC_E0101, "expected %s before %s", wanted, mc_token_kind_text(t->kind));
}

bool
mc_parser_expect(mc_parser *p, mc_token_kind kind)
{
    if (mc_parser_accept(p, kind)) return true;
    unexpected(p, mc_token_kind_text(kind));
    return false;
}

mc_word
mc_parser_name(mc_parser *p, const char *what)
{
    const mc_token *t = mc_parser_peek(p, 0);
    if (t->kind != MC_TOKEN_NAME) {
        mc_buf wanted = {0};
        mc_buf_printf(&wanted, "the name of %s", what);
        unexpected(p, wanted.data);
        mc_buf_fini(&wanted);
        return (mc_word){.span = t->span};
    }
    mc_parser_next(p);
    return (mc_word){t->text, t->span};
}

mc_word
mc_parser_string(mc_parser *p, const char *what)
{
    const mc_token *t = mc_parser_peek(p, 0);
    if (t->kind != MC_TOKEN_STRING) {
        unexpected(p, what);
        return (mc_word){.span = t->span};
    }
    mc_parser_next(p);
    return (mc_word){t->text, t->span};
}

mc_word
mc_parser_label(mc_parser *p)
{
    if (!mc_parser_accept(p, MC_TOKEN_AT)) return (mc_word){0};
    return mc_parser_name(p, "a label");
}

void
mc_parser_newlines(mc_parser *p)
{
    while (mc_parser_is(p, MC_TOKEN_NEWLINE) || mc_parser_is(p, MC_TOKEN_SEMICOLON)) mc_parser_next(p);
}

void
mc_parser_end_statement(mc_parser *p)
{
    if (mc_parser_is(p, MC_TOKEN_RBRACE) || mc_parser_is(p, MC_TOKEN_END)) return;
    if (mc_parser_accept(p, MC_TOKEN_NEWLINE) || mc_parser_accept(p, MC_TOKEN_SEMICOLON)) return;
    unexpected(p, "the end of the line");
}

void
mc_parser_recover(mc_parser *p)
{
    int depth = 0;
    p->panic = false;
    for (;; mc_parser_next(p)) {
        mc_token_kind kind = mc_parser_peek(p, 0)->kind;
        if (kind == MC_TOKEN_END) return;
        if (kind == MC_TOKEN_LBRACE) depth++;
        if (kind == MC_TOKEN_RBRACE && depth-- == 0) return;
        if (depth == 0 && (kind == MC_TOKEN_NEWLINE || kind == MC_TOKEN_SEMICOLON)) {
            mc_parser_next(p);
            return;
        }
    }
}

mc_span
mc_parser_span_from(const mc_parser *p, mc_span begin)
{
    size_t last = p->at ? p->at - 1 : 0;
    mc_span end = p->tokens.items[last].span;
    return end.end > begin.begin ? mc_span_join(begin, end) : begin;
}

bool
mc_parser_enter(mc_parser *p)
{
    if (p->nesting < MC_MAX_NESTING) {
        p->nesting++;
        return true;
    }
    mc_parser_error(p, MC_E0108, "nested more than %d levels deep", MC_MAX_NESTING);
    return false;
}

void
mc_parser_leave(mc_parser *p)
{
    p->nesting--;
}
