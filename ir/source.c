/* Loaded texts. Spans are byte ranges, so that tokens and ops stay small; a line and a column are found by counting
 * newlines, and only for what is printed. */
#include "ir/source.h"

#include <assert.h>
#include <string.h>

uint32_t
mc_sources_add(mc_sources *sources, mc_str name, mc_str text)
{
    assert(text.len <= UINT32_MAX);
    mc_source source = {mc_str_dup(sources->arena, name), mc_str_dup(sources->arena, text)};
    mc_vec_push(sources->arena, &sources->files, source);
    return (uint32_t)sources->files.n;
}

const mc_source *
mc_source_of(const mc_sources *sources, mc_span span)
{
    if (!sources || span.file == 0 || span.file > sources->files.n) return NULL;
    return &sources->files.items[span.file - 1];
}

mc_location
mc_locate(const mc_sources *sources, mc_span span)
{
    const mc_source *source = mc_source_of(sources, span);
    if (!source) return (mc_location){0};
    mc_str text = source->text;
    size_t begin = span.begin < text.len ? span.begin : text.len;
    int line = 1;
    size_t line_begin = 0;
    for (size_t i = 0; i < begin; i++) {
        if (text.data[i] != '\n') continue;
        line++;
        line_begin = i + 1;
    }
    const char *end = memchr(text.data + begin, '\n', text.len - begin);
    size_t line_end = end ? (size_t)(end - text.data) : text.len;
    if (line_end > line_begin && text.data[line_end - 1] == '\r' && line_end - 1 >= begin) line_end--;
    return (mc_location){source->name, line, (int)(begin - line_begin) + 1, mc_str_slice(text, line_begin, line_end)};
}

mc_span
mc_span_join(mc_span a, mc_span b)
{
    if (a.file == 0) return b;
    if (b.file != a.file || b.end < a.begin) return a;
    return (mc_span){a.file, a.begin, b.end};
}
