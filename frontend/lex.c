/* The lexer keeps a stack of open brackets, because only the innermost one decides whether a newline counts. */
#include "frontend/lex.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BRACKETS = 256 };

typedef struct punct {
    const char *text, *quoted;
    bool continues;
} punct;

static const punct puncts[MC_N_TOKEN_KINDS] = {
#define MC_PUNCT(name, text, continues) [MC_TOKEN_##name] = {text, "'" text "'", continues},
#include "frontend/tokens.def"
#undef MC_PUNCT
};

typedef struct lexer {
    mc_arena *arena;
    mc_diags *diags;
    uint32_t file;
    mc_str text;
    size_t at;
    char brackets[MAX_BRACKETS];
    size_t bracket_at[MAX_BRACKETS];
    int depth;
    MC_VEC(mc_token) out;
} lexer;

const char *
mc_token_kind_text(mc_token_kind kind)
{
    switch (kind) {
    case MC_TOKEN_END: return "the end of the file";
    case MC_TOKEN_NEWLINE: return "the end of the line";
    case MC_TOKEN_NAME: return "a name";
    case MC_TOKEN_INT: return "an integer";
    case MC_TOKEN_REAL: return "a number";
    case MC_TOKEN_STRING: return "a string";
    default: return puncts[kind].quoted;
    }
}

static mc_span
span_of(const lexer *l, size_t begin, size_t end)
{
    return (mc_span){l->file, (uint32_t)begin, (uint32_t)end};
}

static char
peek(const lexer *l, size_t ahead)
{
    return l->at + ahead < l->text.len ? l->text.data[l->at + ahead] : 0;
}

static mc_token *
push(lexer *l, mc_token_kind kind, size_t begin)
{
    mc_token token = {.kind = kind, .span = span_of(l, begin, l->at), .text = mc_str_slice(l->text, begin, l->at)};
    mc_vec_push(l->arena, &l->out, token);
    return &l->out.items[l->out.n - 1];
}

static bool
is_name_start(char c)
{
    return isalpha((unsigned char)c) || c == '_';
}

static bool
is_name_char(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

/* The first character after blanks, comments and newlines. */
static char
next_visible(const lexer *l)
{
    size_t i = l->at;
    while (i < l->text.len) {
        char c = l->text.data[i];
        if (c == '#')
            while (i < l->text.len && l->text.data[i] != '\n') i++;
        else if (c == ' ' || c == '\t' || c == '\r' || c == '\n')
            i++;
        else
            return c;
    }
    return 0;
}

static bool
line_goes_on(const lexer *l)
{
    const mc_token *last = &l->out.items[l->out.n - 1];
    if (last->kind == MC_TOKEN_NEWLINE) return true;
    if (last->kind == MC_TOKEN_NAME) {
        static const char *const words[] = {"and", "or", "not", "in", "of", "else"};
        for (size_t i = 0; i < sizeof words / sizeof *words; i++)
            if (mc_str_is(last->text, words[i])) return true;
    } else if (puncts[last->kind].continues) {
        return true;
    }
    char c = next_visible(l);
    return c == '|' || c == '?' || c == ':';
}

static void
newline(lexer *l)
{
    size_t begin = l->at++;
    bool inside = l->depth && l->brackets[l->depth - 1] != '{';
    if (inside || !l->out.n || line_goes_on(l)) return;
    push(l, MC_TOKEN_NEWLINE, begin);
}

static void
number(lexer *l)
{
    size_t begin = l->at;
    char digits[64];
    size_t n = 0;
    bool real = false, fits = true;
    for (;; l->at++) {
        char c = peek(l, 0);
        /* `1..8` is a range, not `1.` followed by `.8` */
        bool point = c == '.' && isdigit((unsigned char)peek(l, 1)) && !real;
        size_t sign = peek(l, 1) == '+' || peek(l, 1) == '-' ? 2 : 1;
        bool exponent = (c == 'e' || c == 'E') && isdigit((unsigned char)peek(l, sign));
        if (!isdigit((unsigned char)c) && c != '_' && !point && !exponent) break;
        real |= point || exponent;
        if (c == '_') continue;
        for (size_t k = 0; k < (exponent ? sign : 1); k++) {
            if (n + 1 < sizeof digits)
                digits[n++] = peek(l, k);
            else
                fits = false;
        }
        if (exponent) l->at += sign - 1;
    }
    digits[n] = 0;
    mc_token *token = push(l, real ? MC_TOKEN_REAL : MC_TOKEN_INT, begin);
    errno = 0;
    if (real)
        token->as.real = strtod(digits, NULL);
    else
        token->as.integer = strtoll(digits, NULL, 10);
    if (!fits || errno == ERANGE)
        mc_error(l->diags, token->span, MC_E0103, "the number %.*s is too large or has too many digits",
                 MC_FMT(token->text));
    if (is_name_start(peek(l, 0)))
        mc_error(l->diags, span_of(l, begin, l->at + 1), MC_E0103,
                 "a number runs into the name that follows; put a space between");
}

static void
string(lexer *l)
{
    size_t begin = l->at++;
    mc_buf text = {0};
    while (l->at < l->text.len && peek(l, 0) != '"' && peek(l, 0) != '\n') {
        if (peek(l, 0) == '\\' && peek(l, 1) == '"') l->at++;
        mc_buf_putc(&text, peek(l, 0));
        l->at++;
    }
    if (peek(l, 0) == '"')
        l->at++;
    else
        mc_error(l->diags, span_of(l, begin, l->at), MC_E0105, "this string has no closing '\"' on its line");
    push(l, MC_TOKEN_STRING, begin)->text = mc_str_dup(l->arena, mc_buf_view(&text));
    mc_buf_fini(&text);
}

static void
open_bracket(lexer *l, char c, size_t begin)
{
    if (l->depth == MAX_BRACKETS) {
        if (l->text.len > begin + 1)
            mc_error(l->diags, span_of(l, begin, begin + 1), MC_E0108, "more than %d brackets are open", MAX_BRACKETS);
        l->text.len = l->at; /* nothing after this can be read sensibly */
        return;
    }
    l->bracket_at[l->depth] = begin;
    l->brackets[l->depth++] = c;
}

/* A closing bracket that does not match is left to the parser, which knows what it expected. */
static void
close_bracket(lexer *l, char open)
{
    for (int i = l->depth - 1; i >= 0; i--) {
        if (l->brackets[i] != open) continue;
        l->depth = i;
        return;
    }
}

static void
punctuation(lexer *l)
{
    size_t begin = l->at;
    for (int kind = MC_TOKEN_STRING + 1; kind < MC_N_TOKEN_KINDS; kind++) {
        size_t n = strlen(puncts[kind].text);
        if (l->text.len - l->at < n || memcmp(l->text.data + l->at, puncts[kind].text, n) != 0) continue;
        l->at += n;
        push(l, (mc_token_kind)kind, begin);
        if (kind == MC_TOKEN_LPAREN || kind == MC_TOKEN_LBRACKET || kind == MC_TOKEN_LBRACE)
            open_bracket(l, puncts[kind].text[0], begin);
        if (kind == MC_TOKEN_RPAREN) close_bracket(l, '(');
        if (kind == MC_TOKEN_RBRACKET) close_bracket(l, '[');
        if (kind == MC_TOKEN_RBRACE) close_bracket(l, '{');
        return;
    }
    unsigned char c = (unsigned char)peek(l, 0);
    l->at++;
    while (c >= 0x80 && ((unsigned char)peek(l, 0) & 0xC0) == 0x80) l->at++; /* the rest of a UTF-8 character */
    mc_span span = span_of(l, begin, l->at);
    if (c >= 0x20 && c != 0x7F)
        mc_error(l->diags, span, MC_E0102, "no token starts with '%.*s'", MC_FMT(mc_str_slice(l->text, begin, l->at)));
    else
        mc_error(l->diags, span, MC_E0109, "a control character (byte 0x%02x); is this a text file?", c);
}

static bool
check_encoding(lexer *l)
{
    const unsigned char *p = (const unsigned char *)l->text.data;
    for (size_t i = 0; i < l->text.len;) {
        int more = p[i] < 0x80                   ? 0
                   : p[i] >= 0xC2 && p[i] < 0xE0 ? 1
                   : (p[i] & 0xF0) == 0xE0       ? 2
                   : p[i] >= 0xF0 && p[i] < 0xF5 ? 3
                                                 : -1;
        bool good = more >= 0 && i + (size_t)more < l->text.len;
        for (int k = 1; good && k <= more; k++) good = (p[i + (size_t)k] & 0xC0) == 0x80;
        if (!good)
            return mc_error(l->diags, span_of(l, i, i + 1), MC_E0109, "byte 0x%02x is not UTF-8; is this a text file?",
                            p[i]);
        i += (size_t)more + 1;
    }
    return true;
}

mc_tokens
mc_lex(mc_arena *arena, const mc_sources *sources, uint32_t file, mc_diags *diags)
{
    lexer l = {.arena = arena, .diags = diags, .file = file};
    const mc_source *source = mc_source_of(sources, (mc_span){file, 0, 0});
    l.text = source->text;
    if (l.text.len > UINT32_MAX - 2) {
        mc_error(diags, span_of(&l, 0, 0), MC_E0108, "the file is larger than 4 GiB");
        l.text.len = 0;
    }
    if (!check_encoding(&l)) l.text.len = 0;
    while (l.at < l.text.len) {
        char c = peek(&l, 0);
        if (c == '\n')
            newline(&l);
        else if (c == ' ' || c == '\t' || c == '\r')
            l.at++;
        else if (c == '#')
            while (l.at < l.text.len && peek(&l, 0) != '\n') l.at++;
        else if (isdigit((unsigned char)c))
            number(&l);
        else if (c == '"')
            string(&l);
        else if (is_name_start(c)) {
            size_t begin = l.at;
            while (is_name_char(peek(&l, 0))) l.at++;
            push(&l, MC_TOKEN_NAME, begin);
        } else
            punctuation(&l);
    }
    if (l.depth) {
        size_t at = l.bracket_at[l.depth - 1];
        mc_error(diags, span_of(&l, at, at + 1), MC_E0105, "this '%c' is never closed", l.brackets[l.depth - 1]);
    }
    if (l.out.n && l.out.items[l.out.n - 1].kind != MC_TOKEN_NEWLINE) push(&l, MC_TOKEN_NEWLINE, l.at);
    push(&l, MC_TOKEN_END, l.at);
    return (mc_tokens){l.out.items, l.out.n};
}
