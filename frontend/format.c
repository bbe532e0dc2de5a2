/* The formatter works on tokens line by line, not on the tree, so that comments and the author's line breaks survive.
 * Three steps: cut the text into lines of pieces; write each line with its indentation and spacing; pad the columns of
 * neighbouring lines that belong together. */
#include "frontend/format.h"

#include "frontend/lex.h"
#include "frontend/parse.h"

#include <string.h>

enum { MAX_OPEN = 256, WIDEST_TARGET = 48 };

typedef struct line {
    mc_token *tokens; /* of this line, without newlines */
    size_t n;
    mc_str comment; /* with its #, or empty */
    int level;      /* open braces where the line starts */
    int group;      /* number of the brace the line is directly inside; lines of one group may share columns */
    bool continued; /* the line before it goes on here */
    mc_buf code;
    size_t key_end; /* column after the first word, if that word is a clause, setting, dim or param; else 0 */
    size_t arrow;   /* column of `<-`, or 0 */
} line;

typedef struct open_bracket {
    mc_token_kind kind;
    size_t column; /* after the bracket, in the formatted line */
    bool keyed;    /* a brace whose lines start with keywords: moe, precision, place, train */
} open_bracket;

typedef struct formatter {
    mc_arena *arena;
    mc_str text;
    MC_VEC(line) lines;
    open_bracket open[MAX_OPEN];
    int n_open;
    int n_groups, group[MAX_OPEN];
    bool keyed_next; /* the next `{` opens clauses or settings */
} formatter;

static bool
is_word(const mc_token *t, const char *word)
{
    return t->kind == MC_TOKEN_NAME && mc_str_is(t->text, word);
}

/* ---- 1. lines ---- */

static void
add_lines(formatter *f, const mc_tokens *tokens)
{
    size_t t = 0;
    for (size_t at = 0; at < f->text.len;) {
        size_t end = at;
        while (end < f->text.len && f->text.data[end] != '\n') end++;
        line l = {0};
        while (t < tokens->n && tokens->items[t].kind == MC_TOKEN_NEWLINE) t++;
        size_t first = t, code_end = at;
        while (t < tokens->n && tokens->items[t].kind != MC_TOKEN_END && tokens->items[t].span.begin < end) {
            if (tokens->items[t].kind == MC_TOKEN_NEWLINE) break;
            code_end = tokens->items[t++].span.end;
        }
        l.tokens = tokens->items + first;
        l.n = t - first;
        const char *hash = memchr(f->text.data + code_end, '#', end - code_end);
        if (hash) l.comment = mc_str_slice(f->text, (size_t)(hash - f->text.data), end);
        while (l.comment.len && strchr(" \t\r", l.comment.data[l.comment.len - 1])) l.comment.len--;
        mc_vec_push(f->arena, &f->lines, l);
        at = end + 1;
    }
}

/* ---- 2. one line ---- */

static bool
is_operand(const mc_token *t)
{
    return t->kind == MC_TOKEN_NAME || t->kind == MC_TOKEN_INT || t->kind == MC_TOKEN_REAL ||
           t->kind == MC_TOKEN_STRING || t->kind == MC_TOKEN_RPAREN || t->kind == MC_TOKEN_RBRACKET ||
           t->kind == MC_TOKEN_RBRACE;
}

static bool
is_operator_word(const mc_token *t)
{
    static const char *const words[] = {"and", "or", "not", "in", "of", "as", "return", "else", "if", "gate", "route"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (is_word(t, words[i])) return true;
    return false;
}

static bool
space_between(const mc_token *before, const mc_token *a, const mc_token *b)
{
    if (a->kind == MC_TOKEN_LBRACE || b->kind == MC_TOKEN_RBRACE || b->kind == MC_TOKEN_LBRACE)
        return !(a->kind == MC_TOKEN_LBRACE && b->kind == MC_TOKEN_RBRACE);
    if (a->kind == MC_TOKEN_LPAREN || a->kind == MC_TOKEN_LBRACKET || a->kind == MC_TOKEN_AT || a->kind == MC_TOKEN_DOT)
        return false;
    switch ((int)b->kind) {
    case MC_TOKEN_RPAREN:
    case MC_TOKEN_RBRACKET:
    case MC_TOKEN_COMMA:
    case MC_TOKEN_SEMICOLON:
    case MC_TOKEN_DOT:
    case MC_TOKEN_RANGE: return false;
    case MC_TOKEN_AT: return a->kind != MC_TOKEN_NAME; /* a weight path, not a label */
    case MC_TOKEN_LPAREN:
    case MC_TOKEN_LBRACKET:
        if (before && before->kind == MC_TOKEN_AT) return false; /* a label, whatever word it is */
        return !(a->kind == MC_TOKEN_NAME && !is_operator_word(a)) && a->kind != MC_TOKEN_RPAREN &&
               a->kind != MC_TOKEN_RBRACKET;
    default: break;
    }
    if (a->kind == MC_TOKEN_RANGE) return false;
    bool unary = a->kind == MC_TOKEN_MINUS && (!before || !is_operand(before) || is_operator_word(before));
    return !unary;
}

/* `:` has a space before it only in a ? b : c; in `x: [B, S]` and slices it has none. */
static bool
is_choice_colon(const line *l, size_t i)
{
    int depth = 0;
    for (size_t k = i; k-- > 0;) {
        mc_token_kind kind = l->tokens[k].kind;
        if (kind == MC_TOKEN_RPAREN || kind == MC_TOKEN_RBRACKET) depth++;
        if (kind == MC_TOKEN_LPAREN || kind == MC_TOKEN_LBRACKET) depth--;
        if (depth < 0) return false;
        if (depth == 0 && kind == MC_TOKEN_QUESTION) return true;
    }
    return false;
}

static bool
is_slice_colon(const formatter *f)
{
    return f->n_open && f->open[f->n_open - 1].kind == MC_TOKEN_LBRACKET;
}

static void
track_brackets(formatter *f, const mc_token *t, size_t column)
{
    if (t->kind == MC_TOKEN_LPAREN || t->kind == MC_TOKEN_LBRACKET || t->kind == MC_TOKEN_LBRACE) {
        if (f->n_open == MAX_OPEN) return;
        bool keyed = t->kind == MC_TOKEN_LBRACE && f->keyed_next;
        if (t->kind == MC_TOKEN_LBRACE) f->keyed_next = false;
        f->group[f->n_open] = ++f->n_groups;
        f->open[f->n_open++] = (open_bracket){t->kind, column, keyed};
    } else if (t->kind == MC_TOKEN_RPAREN || t->kind == MC_TOKEN_RBRACKET || t->kind == MC_TOKEN_RBRACE) {
        if (f->n_open) f->n_open--;
    } else if (is_word(t, "moe")) {
        f->keyed_next = t[1].kind == MC_TOKEN_LPAREN || t[1].kind == MC_TOKEN_AT; /* not the version line */
    } else if (is_word(t, "precision") || is_word(t, "place") || is_word(t, "train")) {
        f->keyed_next = t[1].kind == MC_TOKEN_LBRACE;
    }
}

static int
brace_level(const formatter *f)
{
    int level = 0;
    for (int i = 0; i < f->n_open; i++) level += f->open[i].kind == MC_TOKEN_LBRACE;
    return level;
}

/* Where a line that continues the one before it starts: under the stage for `|`, under `?` for `:`, else two levels in.
 */
static size_t
continuation_column(const formatter *f, const line *previous, const mc_token *first, size_t indent)
{
    if (f->n_open && f->open[f->n_open - 1].kind != MC_TOKEN_LBRACE) return f->open[f->n_open - 1].column;
    if (first->kind == MC_TOKEN_BAR && previous && previous->key_end) return previous->key_end - 2;
    if (first->kind == MC_TOKEN_BAR && previous && previous->continued && previous->n) {
        size_t column = 0;
        while (column < previous->code.len && previous->code.data[column] == ' ') column++;
        return column;
    }
    if (first->kind == MC_TOKEN_COLON && previous && previous->code.data) {
        const char *q = strstr(previous->code.data, " ? ");
        if (q) return (size_t)(q - previous->code.data) + 1;
    }
    return indent + 4;
}

static bool
line_continues(const line *previous)
{
    if (!previous || !previous->n) return false;
    const mc_token *last = &previous->tokens[previous->n - 1];
    return last[1].kind != MC_TOKEN_NEWLINE && last[1].kind != MC_TOKEN_END && last->kind != MC_TOKEN_LBRACE;
}

static void
write_line(formatter *f, line *l, const line *previous)
{
    if (!l->n) {
        l->level = brace_level(f);
        l->group = f->n_open ? f->group[f->n_open - 1] : 0;
        return;
    }
    bool closes = l->tokens[0].kind == MC_TOKEN_RBRACE;
    l->level = brace_level(f) - closes;
    l->group = f->n_open ? f->group[f->n_open - 1] : 0;
    size_t indent = 2 * (size_t)(l->level > 0 ? l->level : 0);
    l->continued = line_continues(previous);
    size_t column = l->continued && !closes ? continuation_column(f, previous, &l->tokens[0], indent) : indent;
    for (size_t i = 0; i < column; i++) mc_buf_putc(&l->code, ' ');
    bool keyed = f->n_open && f->open[f->n_open - 1].keyed;
    bool declared = is_word(&l->tokens[0], "dim") || is_word(&l->tokens[0], "param");
    for (size_t i = 0; i < l->n; i++) {
        const mc_token *t = &l->tokens[i];
        bool space = i && space_between(i > 1 ? t - 2 : NULL, t - 1, t);
        if (i && t->kind == MC_TOKEN_COLON) space = is_choice_colon(l, i);
        if (i && (t - 1)->kind == MC_TOKEN_COLON && is_slice_colon(f) && !is_choice_colon(l, i - 1)) space = false;
        if (space) mc_buf_putc(&l->code, ' ');
        if (t->kind == MC_TOKEN_LARROW) l->arrow = l->code.len;
        mc_buf_str(&l->code, mc_str_slice(f->text, t->span.begin, t->span.end));
        bool alone = l->n > 1 && t[1].kind != MC_TOKEN_AT;
        if (i == 0 && alone && !l->continued && t->kind == MC_TOKEN_NAME && (keyed || (declared && !l->level)))
            l->key_end = l->code.len + 1;
        track_brackets(f, t, l->code.len);
    }
}

/* ---- 3. columns ---- */

static void
pad_at(line *l, size_t column, size_t n)
{
    if (!n) return;
    mc_buf padded = {0};
    mc_buf_write(&padded, l->code.data, column);
    for (size_t i = 0; i < n; i++) mc_buf_putc(&padded, ' ');
    mc_buf_puts(&padded, l->code.data + column);
    mc_buf_fini(&l->code);
    l->code = padded;
}

static void
align_keys(formatter *f)
{
    for (size_t i = 0; i < f->lines.n; i++) {
        line *l = &f->lines.items[i];
        if (!l->key_end) continue;
        size_t widest = l->group ? 0 : 6; /* `dim   ` and `param ` share a column everywhere */
        for (size_t k = 0; l->group && k < f->lines.n; k++)
            if (f->lines.items[k].group == l->group && f->lines.items[k].key_end > widest)
                widest = f->lines.items[k].key_end;
        size_t n = widest > l->key_end ? widest - l->key_end : 0;
        pad_at(l, l->key_end, n);
        for (size_t k = i + 1; k < f->lines.n && f->lines.items[k].continued; k++)
            if (f->lines.items[k].group == l->group) pad_at(&f->lines.items[k], 0, n);
    }
}

static void
align_arrows(formatter *f)
{
    for (size_t i = 0; i < f->lines.n;) {
        size_t end = i, widest = 0;
        for (; end < f->lines.n && f->lines.items[end].arrow; end++)
            if (f->lines.items[end].arrow <= WIDEST_TARGET && f->lines.items[end].arrow > widest)
                widest = f->lines.items[end].arrow;
        for (; i < end; i++) {
            line *l = &f->lines.items[i];
            if (l->arrow < widest) pad_at(l, l->arrow, widest - l->arrow);
        }
        i = end + 1;
    }
}

static void
write_comments(formatter *f)
{
    for (size_t i = 0; i < f->lines.n;) {
        size_t end = i, widest = 0;
        for (; end < f->lines.n && f->lines.items[end].comment.len && f->lines.items[end].n; end++)
            if (f->lines.items[end].code.len > widest) widest = f->lines.items[end].code.len;
        for (; i < end; i++) {
            line *l = &f->lines.items[i];
            while (l->code.len < widest + 2) mc_buf_putc(&l->code, ' ');
            mc_buf_str(&l->code, l->comment);
        }
        if (i >= f->lines.n) break;
        line *l = &f->lines.items[i++];
        if (l->n || !l->comment.len) continue;
        for (int k = 0; k < 2 * l->level; k++) mc_buf_putc(&l->code, ' ');
        mc_buf_str(&l->code, l->comment);
    }
}

bool
mc_format(mc_arena *arena, const mc_sources *sources, uint32_t file, mc_diags *diags, mc_buf *out)
{
    int errors = diags->n_errors;
    mc_parse(arena, sources, file, diags);
    if (diags->n_errors != errors) return false;
    formatter f = {.arena = arena, .text = mc_source_of(sources, (mc_span){file, 0, 0})->text};
    mc_tokens tokens = mc_lex(arena, sources, file, diags);
    add_lines(&f, &tokens);
    const line *previous = NULL;
    for (size_t i = 0; i < f.lines.n; i++) {
        write_line(&f, &f.lines.items[i], previous);
        if (f.lines.items[i].n) previous = &f.lines.items[i];
    }
    align_keys(&f);
    align_arrows(&f);
    write_comments(&f);
    bool blank = true; /* drops blank lines at the start, and all but one of several */
    for (size_t i = 0; i < f.lines.n; i++) {
        line *l = &f.lines.items[i];
        if (l->code.len || !blank) {
            mc_buf_str(out, mc_buf_view(&l->code));
            mc_buf_putc(out, '\n');
        }
        blank = !l->code.len;
        mc_buf_fini(&l->code);
    }
    while (out->len > 1 && out->data[out->len - 1] == '\n' && out->data[out->len - 2] == '\n')
        out->data[--out->len] = 0;
    return true;
}
