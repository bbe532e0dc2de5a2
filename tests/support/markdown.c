/* Lines are the unit: a fence is a line that begins with three backticks. */
#include "tests/support/markdown.h"

#include <string.h>

static bool
next_line(mc_str text, size_t *at, mc_str *out)
{
    if (*at >= text.len) return false;
    const char *end = memchr(text.data + *at, '\n', text.len - *at);
    size_t stop = end ? (size_t)(end - text.data) : text.len;
    *out = mc_str_slice(text, *at, stop);
    *at = stop + 1;
    return true;
}

static void
take_links(mc_str line, mc_page *page, mc_arena *arena)
{
    for (size_t i = 0; i + 1 < line.len; i++) {
        if (line.data[i] != ']' || line.data[i + 1] != '(') continue;
        const char *end = memchr(line.data + i + 2, ')', line.len - i - 2);
        if (end) mc_vec_push(arena, &page->links, mc_str_slice(line, i + 2, (size_t)(end - line.data)));
    }
}

mc_page
mc_page_parse(mc_str text, mc_arena *arena)
{
    mc_page page = {0};
    mc_block_of_page block = {0};
    size_t at = 0, begin = 0;
    mc_str line;
    for (int number = 1; begin = at, next_line(text, &at, &line); number++) {
        bool fence = mc_str_starts(line, "```");
        if (!fence && !page.open) take_links(line, &page, arena);
        if (!fence) continue;
        if (page.open) {
            size_t from = (size_t)(block.text.data - text.data);
            block.text = mc_str_slice(text, from < begin ? from : begin, begin);
            mc_vec_push(arena, &page.blocks, block);
        } else {
            block = (mc_block_of_page){.info = mc_str_slice(line, 3, line.len), .line = number};
            block.text.data = text.data + (at < text.len ? at : text.len);
        }
        page.open = !page.open;
    }
    return page;
}

/* The word at *at, and *at behind it; empty at the end. */
static mc_str
next_word(mc_str info, size_t *at)
{
    while (*at < info.len && info.data[*at] == ' ') ++*at;
    size_t begin = *at;
    while (*at < info.len && info.data[*at] != ' ') ++*at;
    return mc_str_slice(info, begin, *at);
}

bool
mc_info_has(mc_str info, const char *word)
{
    size_t at = 0;
    for (mc_str w = next_word(info, &at); w.len; w = next_word(info, &at))
        if (mc_str_is(w, word)) return true;
    return false;
}

mc_str
mc_info_value(mc_str info, const char *key)
{
    size_t at = 0, n = strlen(key);
    for (mc_str w = next_word(info, &at); w.len; w = next_word(info, &at))
        if (mc_str_starts(w, key) && w.len > n && w.data[n] == '=') return mc_str_slice(w, n + 1, w.len);
    return (mc_str){0};
}

/* Without blanks before newlines, and without newlines at the end. */
static void
tidy(mc_str text, mc_buf *out)
{
    size_t at = 0;
    for (mc_str line; next_line(text, &at, &line);) {
        while (line.len && (line.data[line.len - 1] == ' ' || line.data[line.len - 1] == '\r')) line.len--;
        mc_buf_str(out, line);
        mc_buf_putc(out, '\n');
    }
    while (out->len && out->data[out->len - 1] == '\n') out->len--;
}

static bool
fits(const char *p, size_t n, const char *t, size_t m)
{
    size_t star = SIZE_MAX, resume = 0, i = 0, k = 0;
    while (k < m) {
        bool any = i + 3 <= n && memcmp(p + i, "...", 3) == 0;
        if (any) {
            i = star = i + 3;
            resume = k;
        } else if (i < n && p[i] == t[k]) {
            i++;
            k++;
        } else if (star != SIZE_MAX) {
            i = star;
            k = ++resume;
        } else {
            return false;
        }
    }
    while (i + 3 <= n && memcmp(p + i, "...", 3) == 0) i += 3;
    return i == n;
}

bool
mc_text_fits(mc_str pattern, mc_str text)
{
    mc_buf p = {0}, t = {0};
    tidy(pattern, &p);
    tidy(text, &t);
    bool good = fits(p.data, p.len, t.data, t.len);
    mc_buf_fini(&p);
    mc_buf_fini(&t);
    return good;
}
