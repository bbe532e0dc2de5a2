/* Messages of the elaborator. A body that is repeated or inlined is evaluated many times; the same complaint about the
 * same place is made once. */
#include "frontend/elab.h"

/* Without a place, the same text is what makes it the same complaint. */
static bool
said_before(const mc_diags *d, mc_span span, mc_code code, mc_str text)
{
    for (size_t i = 0; i < d->list.n; i++) {
        const mc_diagnostic *said = &d->list.items[i];
        bool here = said->span.file == span.file && said->span.begin == span.begin && said->span.end == span.end;
        if (here && said->code == code && (span.file || mc_str_eq(said->text, text))) return true;
    }
    return false;
}

mc_span
mc_elab_user_span(const mc_elab *e, mc_span span)
{
    return span.file && span.file == e->prelude_file && e->user_span.file ? e->user_span : span;
}

void
mc_elab_call_notes(mc_elab *e, mc_span span)
{
    enum { SHOWN = 4 };
    if (span.file && span.file == e->prelude_file) mc_elab_note(e, span, "inside the prelude");
    for (size_t i = e->stack.n; i > 0 && i + SHOWN > e->stack.n; i--) {
        const mc_active *a = &e->stack.items[i - 1];
        bool shown = a->call.file == span.file && a->call.begin <= span.begin && span.end <= a->call.end;
        if (shown || a->call.file == e->prelude_file || (i == e->stack.n && span.file == e->prelude_file)) continue;
        mc_elab_note(e, a->call, "in '%.*s', called here", MC_FMT(a->block->item->name.text));
    }
}

mc_val
mc_elab_error(mc_elab *e, mc_span span, mc_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    mc_str text = mc_strfv(e->arena, format, args);
    va_end(args);
    mc_span at = mc_elab_user_span(e, span);
    e->n_errors++;
    e->note_ok = !e->fatal && !said_before(e->diags, at, code, text);
    if (!e->note_ok) return mc_val_poison();
    mc_error(e->diags, at, code, "%.*s", MC_FMT(text));
    mc_elab_call_notes(e, span);
    return mc_val_poison();
}

void
mc_elab_warn(mc_elab *e, mc_span span, mc_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    mc_str text = mc_strfv(e->arena, format, args);
    va_end(args);
    e->note_ok = !e->fatal && !said_before(e->diags, span, code, text);
    if (e->note_ok) mc_warning(e->diags, span, code, "%.*s", MC_FMT(text));
}

void
mc_elab_note(mc_elab *e, mc_span span, const char *format, ...)
{
    if (!e->note_ok) return;
    va_list args;
    va_start(args, format);
    mc_str text = mc_strfv(e->arena, format, args);
    va_end(args);
    mc_note(e->diags, span, "%.*s", MC_FMT(text));
}

mc_str
mc_elab_quote(mc_elab *e, mc_span span)
{
    const mc_source *source = mc_source_of(e->sources, span);
    if (!source) return MC_STR("");
    mc_str text = mc_str_slice(source->text, span.begin, span.end);
    enum { CUT = 60 };
    for (size_t i = 0; i < text.len; i++) {
        if (text.data[i] == '\n' || i == CUT) return mc_strf(e->arena, "%.*s ...", (int)i, text.data);
    }
    return text;
}

mc_str
mc_elab_join(mc_elab *e, const mc_str *names, size_t n)
{
    mc_buf text = {0};
    for (size_t i = 0; i < n; i++) {
        if (i) mc_buf_puts(&text, ", ");
        mc_buf_str(&text, names[i]);
    }
    mc_str copy = mc_str_dup(e->arena, mc_buf_view(&text));
    mc_buf_fini(&text);
    return copy;
}

mc_str
mc_elab_hint(mc_elab *e, mc_str word, const mc_str *names, size_t n)
{
    mc_str near = mc_str_nearest(word, names, n);
    if (near.len == 0) return MC_STR("");
    return mc_strf(e->arena, " (did you mean '%.*s'?)", MC_FMT(near));
}

mc_strs
mc_elab_words(mc_elab *e, const char *list)
{
    mc_strs words = {0};
    const char *begin = list;
    for (const char *p = list;; p++) {
        if (*p && *p != ' ') continue;
        mc_str word = {begin, (size_t)(p - begin)};
        if (word.len) mc_vec_push(e->arena, &words, word);
        if (!*p) return words;
        begin = p + 1;
    }
}

bool
mc_elab_step(mc_elab *e, mc_span span)
{
    if (e->fatal) return false;
    if (++e->steps <= MC_MAX_STEPS) return true;
    mc_elab_error(e, span, MC_E0319, "this model needs more than %d steps to elaborate", MC_MAX_STEPS);
    e->fatal = true;
    return false;
}
