/* The lexer of .moir. After the first error it only says END, so that the reader stops with one clear message. */
#include "ir/moir.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const char *const mc_moir_stages[] = {"tensor", "dist", "plan", NULL};

static bool
is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool
is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

bool
mc_moir_is_ident(mc_str text)
{
    if (text.len == 0 || !is_letter(text.data[0])) return false;
    for (size_t i = 1; i < text.len; i++) {
        char c = text.data[i];
        bool dot = c == '.' && text.data[i - 1] != '.'; /* two are the range token */
        if (!is_letter(c) && !is_digit(c) && !dot) return false;
    }
    return true;
}

static char
peek(const mc_moir_lexer *l, size_t ahead)
{
    return ahead < l->text.len - l->at ? l->text.data[l->at + ahead] : 0;
}

static void
skip_blanks(mc_moir_lexer *l)
{
    while (l->at < l->text.len) {
        char c = l->text.data[l->at];
        if (c == '#') {
            const char *end = memchr(l->text.data + l->at, '\n', l->text.len - l->at);
            l->at = end ? (size_t)(end - l->text.data) : l->text.len;
        } else if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
            l->at++;
        } else {
            return;
        }
    }
}

static mc_moir_token
finish(const mc_moir_lexer *l, mc_moir_kind kind, size_t begin)
{
    mc_moir_token token = {.kind = kind, .span = {l->file, (uint32_t)begin, (uint32_t)l->at}};
    token.text = mc_str_slice(l->text, begin, l->at);
    return token;
}

static mc_moir_token
fail(mc_moir_lexer *l, size_t begin, mc_code code, const char *text)
{
    mc_span span = {l->file, (uint32_t)begin, (uint32_t)(l->at > begin ? l->at : begin + 1)};
    mc_error(l->diags, span, code, "%s", text);
    l->failed = true;
    return (mc_moir_token){.kind = MC_MOIR_END, .span = span};
}

/* A '.' belongs to a name, but the '..' of a range does not. */
static void
skip_name(mc_moir_lexer *l)
{
    for (char c = peek(l, 0); is_letter(c) || is_digit(c) || (c == '.' && peek(l, 1) != '.'); c = peek(l, 0)) l->at++;
}

static mc_moir_token
string(mc_moir_lexer *l)
{
    size_t begin = l->at++;
    char *text = mc_arena_alloc(l->arena, 1);
    size_t n = 0, cap = 1;
    for (;; l->at++) {
        if (l->at == l->text.len || peek(l, 0) == '\n') return fail(l, begin, MC_E0401, "this string is not closed");
        char c = peek(l, 0);
        if (c == '"') break;
        if (c == '\\') {
            l->at++;
            c = peek(l, 0);
            if (c != 'n' && c != '"' && c != '\\')
                return fail(l, l->at - 1, MC_E0401, "only \\\", \\\\ and \\n are escapes");
            if (c == 'n') c = '\n';
        }
        if (n + 1 == cap) {
            char *grown = mc_arena_alloc(l->arena, cap * 2);
            memcpy(grown, text, n);
            text = grown;
            cap *= 2;
        }
        text[n++] = c;
    }
    l->at++;
    mc_moir_token token = finish(l, MC_MOIR_STRING, begin);
    token.text = (mc_str){text, n};
    return token;
}

static mc_moir_token
number(mc_moir_lexer *l, size_t begin)
{
    enum { LONGEST = 64 };
    bool is_float = false;
    for (;; l->at++) {
        char c = peek(l, 0);
        bool sign = (c == '-' || c == '+') && l->text.data[l->at - 1] == 'e';
        if (c == '.' && peek(l, 1) == '.') break;
        if (c == '.' || c == 'e') is_float = true;
        if (!is_digit(c) && c != '.' && c != 'e' && !sign) break;
    }
    mc_moir_token token = finish(l, is_float ? MC_MOIR_FLOAT : MC_MOIR_INT, begin);
    char text[LONGEST];
    if (token.text.len >= LONGEST) return fail(l, begin, MC_E0401, "this number is too long");
    memcpy(text, token.text.data, token.text.len);
    text[token.text.len] = 0;
    char *end;
    errno = 0;
    if (is_float) {
        token.number = strtod(text, &end);
    } else {
        token.integer = strtoll(text, &end, 10);
        if (errno == ERANGE) return fail(l, begin, MC_E0401, "this number does not fit in 64 bits");
    }
    if (*end) return fail(l, begin, MC_E0401, "this is not a number");
    return token;
}

mc_moir_token
mc_moir_next(mc_moir_lexer *l)
{
    skip_blanks(l);
    size_t begin = l->at;
    if (l->failed || begin == l->text.len) return finish(l, MC_MOIR_END, begin);
    char c = peek(l, 0);
    if (is_digit(c) || (c == '-' && is_digit(peek(l, 1)))) {
        l->at++;
        return number(l, begin);
    }
    if (c == '"') return string(l);
    if (c == '%' || c == '@') {
        l->at++;
        skip_name(l);
        if (l->at == begin + 1)
            return fail(l, begin, MC_E0401, c == '%' ? "a value has a name" : "a function has a name");
        mc_moir_token token = finish(l, c == '%' ? MC_MOIR_VALUE : MC_MOIR_FUNC, begin);
        token.text = mc_str_slice(token.text, 1, token.text.len);
        return token;
    }
    if (is_letter(c)) {
        skip_name(l);
        mc_moir_token token = finish(l, MC_MOIR_IDENT, begin);
        if (mc_str_is(token.text, "_")) token.kind = MC_MOIR_PUNCT;
        return token;
    }
    bool two = (c == '-' && peek(l, 1) == '>') || (c == '.' && peek(l, 1) == '.');
    if (!two && (c == 0 || !strchr("()[]{},:=*+-", c)))
        return fail(l, begin, MC_E0401, "no token begins with this character");
    l->at += two ? 2 : 1;
    return finish(l, MC_MOIR_PUNCT, begin);
}
