/* Collects diagnostics and renders them. Rendering copies the source line as it stands, except that control bytes
 * become '?' and a very long line is shown as a window around the caret, so that a hostile file cannot write to the
 * terminal or flood it. */
#include "ir/diag.h"

#include <stdio.h>
#include <string.h>

enum { MAX_ERRORS = 20, WINDOW_BEFORE = 100, WINDOW_BYTES = 200 };

typedef struct code_info {
    const char *name, *slug, *text;
    mc_severity severity;
} code_info;

static const code_info code_infos[MC_N_CODES] = {
#define MC_DIAG(code, level, short_name, meaning) {#code, short_name, meaning, MC_SEVERITY_##level},
#include "ir/diag.def"
#undef MC_DIAG
};

static const char *const severity_names[] = {"error", "warning", "remark"};

void
mc_diags_init(mc_diags *d, mc_arena *arena, const mc_sources *sources)
{
    *d = (mc_diags){.arena = arena, .sources = sources};
}

static void
add(mc_diags *d, mc_severity severity, mc_span span, mc_code code, const char *format, va_list args)
{
    int *counts[] = {&d->n_errors, &d->n_warnings, &d->n_remarks};
    int n = ++*counts[severity];
    d->dropped = severity == MC_SEVERITY_ERROR && n > MAX_ERRORS;
    if (d->dropped) {
        d->too_many = true;
        return;
    }
    mc_diagnostic diagnostic = {.code = code, .span = span, .text = mc_strfv(d->arena, format, args)};
    mc_vec_push(d->arena, &d->list, diagnostic);
}

bool
mc_error(mc_diags *d, mc_span span, mc_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    add(d, MC_SEVERITY_ERROR, span, code, format, args);
    va_end(args);
    return false;
}

bool
mc_warning(mc_diags *d, mc_span span, mc_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    add(d, MC_SEVERITY_WARNING, span, code, format, args);
    va_end(args);
    return false;
}

bool
mc_remark(mc_diags *d, mc_span span, mc_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    add(d, MC_SEVERITY_REMARK, span, code, format, args);
    va_end(args);
    return false;
}

bool
mc_note(mc_diags *d, mc_span span, const char *format, ...)
{
    if (d->dropped || d->list.n == 0) return false;
    va_list args;
    va_start(args, format);
    mc_diag_note note = {span, mc_strfv(d->arena, format, args)};
    va_end(args);
    mc_vec_push(d->arena, &d->list.items[d->list.n - 1].notes, note);
    return false;
}

const char *
mc_code_name(mc_code code)
{
    return code_infos[code].name;
}

const char *
mc_code_slug(mc_code code)
{
    return code_infos[code].slug;
}

const char *
mc_code_text(mc_code code)
{
    return code_infos[code].text;
}

mc_severity
mc_code_severity(mc_code code)
{
    return code_infos[code].severity;
}

mc_code
mc_code_find(mc_str name)
{
    int code = 0;
    while (code < MC_N_CODES && !mc_str_is(name, code_infos[code].name)) code++;
    return (mc_code)code;
}

static bool
is_continuation(char c)
{
    return ((unsigned char)c & 0xC0) == 0x80;
}

static void
put_visible(mc_buf *out, mc_str text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.data[i];
        mc_buf_putc(out, (c < 0x20 && c != '\t') || c == 0x7F ? '?' : (char)c);
    }
}

/* Spaces (or the text's own tabs) as wide as the text. */
static void
put_blank(mc_buf *out, mc_str text)
{
    for (size_t i = 0; i < text.len; i++) {
        char c = text.data[i];
        if (!is_continuation(c)) mc_buf_putc(out, c == '\t' ? '\t' : ' ');
    }
}

static void
render_source(const mc_sources *sources, mc_span span, const char *on, const char *off, mc_buf *out)
{
    mc_location at = mc_locate(sources, span);
    size_t caret = (size_t)at.column - 1;
    size_t end = caret + (span.end > span.begin ? span.end - span.begin : 1);
    size_t first = at.text.len > WINDOW_BYTES && caret > WINDOW_BEFORE ? caret - WINDOW_BEFORE : 0;
    while (first < caret && is_continuation(at.text.data[first])) first++;
    mc_str shown = mc_str_slice(at.text, first, first + WINDOW_BYTES);
    caret -= first;
    end = end - first < shown.len ? end - first : shown.len;
    mc_buf_printf(out, "%5d | ", at.line);
    put_visible(out, shown);
    mc_buf_puts(out, "\n      | ");
    put_blank(out, mc_str_slice(shown, 0, caret));
    mc_buf_puts(out, on);
    mc_buf_putc(out, '^');
    for (size_t i = caret + 1; i < end; i++) {
        if (!is_continuation(shown.data[i])) mc_buf_putc(out, '~');
    }
    mc_buf_puts(out, off);
    mc_buf_putc(out, '\n');
}

static void
render_place(const mc_sources *sources, mc_span span, mc_buf *out)
{
    if (!mc_source_of(sources, span)) return;
    mc_location at = mc_locate(sources, span);
    mc_buf_printf(out, "%.*s:%d:%d: ", MC_FMT(at.file), at.line, at.column);
}

void
mc_diag_render(const mc_diags *d, const mc_diagnostic *diagnostic, bool color, mc_buf *out)
{
    static const char *const colors[] = {"\033[1;31m", "\033[1;35m", "\033[1;36m"};
    mc_severity severity = mc_code_severity(diagnostic->code);
    const char *on = color ? colors[severity] : "", *off = color ? "\033[0m" : "";
    const char *bold = color ? "\033[1m" : "";
    mc_buf_puts(out, bold);
    render_place(d->sources, diagnostic->span, out);
    mc_buf_printf(out, "%s%s%s[%s]:%s ", off, on, severity_names[severity], mc_code_name(diagnostic->code), off);
    mc_buf_printf(out, "%s%.*s%s\n", bold, MC_FMT(diagnostic->text), off);
    if (mc_source_of(d->sources, diagnostic->span)) render_source(d->sources, diagnostic->span, on, off, out);
    for (size_t i = 0; i < diagnostic->notes.n; i++) {
        const mc_diag_note *note = &diagnostic->notes.items[i];
        mc_span at = note->span;
        /* A note on the same place adds words, not another copy of the line. */
        if (memcmp(&at, &diagnostic->span, sizeof at) == 0) at = (mc_span){0};
        render_place(d->sources, at, out);
        mc_buf_printf(out, "%snote:%s %.*s\n", bold, off, MC_FMT(note->text));
        if (mc_source_of(d->sources, at)) render_source(d->sources, at, on, off, out);
    }
    if (severity != MC_SEVERITY_REMARK) {
        mc_buf_printf(out, "help: run 'moec explain %s'\n", mc_code_name(diagnostic->code));
    }
}

/* Bytes of the UTF-8 sequence that begins at text[i]; 0 when it is not one. */
static size_t
utf8_length(mc_str text, size_t i)
{
    const unsigned char *s = (const unsigned char *)text.data + i;
    size_t n = s[0] < 0x80 ? 1 : s[0] >= 0xC2 && s[0] <= 0xDF ? 2 : s[0] >= 0xE0 && s[0] <= 0xEF ? 3 : 0;
    if (s[0] >= 0xF0 && s[0] <= 0xF4) n = 4;
    if (n == 0 || n > text.len - i) return 0;
    for (size_t k = 1; k < n; k++) {
        if (!is_continuation((char)s[k])) return 0;
    }
    bool overlong = (s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xF0 && s[1] < 0x90);
    bool outside = (s[0] == 0xED && s[1] > 0x9F) || (s[0] == 0xF4 && s[1] > 0x8F);
    return overlong || outside ? 0 : n;
}

static void
put_json(mc_buf *out, mc_str text)
{
    mc_buf_putc(out, '"');
    for (size_t i = 0; i < text.len;) {
        char c = text.data[i];
        size_t n = utf8_length(text, i);
        if (n == 0) {
            mc_buf_puts(out, "\\ufffd");
            n = 1;
        } else if (c == '"' || c == '\\') {
            mc_buf_putc(out, '\\');
            mc_buf_putc(out, c);
        } else if ((unsigned char)c < 0x20) {
            mc_buf_printf(out, "\\u%04x", (unsigned)c);
        } else {
            mc_buf_write(out, text.data + i, n);
        }
        i += n;
    }
    mc_buf_putc(out, '"');
}

static void
json_place(const mc_sources *sources, mc_span span, mc_buf *out)
{
    if (!mc_source_of(sources, span)) return;
    mc_location at = mc_locate(sources, span);
    mc_buf_puts(out, "\"file\":");
    put_json(out, at.file);
    mc_buf_printf(out, ",\"line\":%d,\"column\":%d,\"begin\":%u,\"end\":%u,", at.line, at.column, span.begin, span.end);
}

void
mc_diag_render_json(const mc_diags *d, const mc_diagnostic *diagnostic, mc_buf *out)
{
    mc_code code = diagnostic->code;
    mc_buf_printf(out, "{\"code\":\"%s\",\"slug\":\"%s\",", mc_code_name(code), mc_code_slug(code));
    mc_buf_printf(out, "\"severity\":\"%s\",", severity_names[mc_code_severity(code)]);
    json_place(d->sources, diagnostic->span, out);
    mc_buf_puts(out, "\"message\":");
    put_json(out, diagnostic->text);
    mc_buf_puts(out, ",\"notes\":[");
    for (size_t i = 0; i < diagnostic->notes.n; i++) {
        mc_buf_puts(out, i ? ",{" : "{");
        json_place(d->sources, diagnostic->notes.items[i].span, out);
        mc_buf_puts(out, "\"message\":");
        put_json(out, diagnostic->notes.items[i].text);
        mc_buf_putc(out, '}');
    }
    mc_buf_puts(out, "]}\n");
}
