/* Reads and rewrites the comments that carry a test's expectation. Lines are the unit of everything. */
#include "tests/support/golden.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE_BYTES = 16 << 20 };

/* The line at *at without its newline; *at moves behind it. False at the end. */
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

static mc_str
trim(mc_str s)
{
    while (s.len && (s.data[0] == ' ' || s.data[0] == '\t')) s = mc_str_slice(s, 1, s.len);
    while (s.len && (s.data[s.len - 1] == ' ' || s.data[s.len - 1] == '\r')) s.len--;
    return s;
}

/* The EXPECT block: from its "# EXPECT" line, through the "#|" lines after it. */
static bool
find_block(mc_str text, size_t *out_begin, size_t *out_end, mc_buf *expect)
{
    mc_str line;
    size_t at = 0, begin = 0;
    bool inside = false;
    while (begin = at, next_line(text, &at, &line)) {
        if (!inside && mc_str_is(trim(line), "# EXPECT")) {
            inside = true;
            *out_begin = begin;
            *out_end = at < text.len ? at : text.len;
        } else if (inside && mc_str_starts(line, "#|")) {
            size_t skip = mc_str_starts(line, "#| ") ? 3 : 2;
            mc_buf_str(expect, mc_str_slice(line, skip, line.len));
            mc_buf_putc(expect, '\n');
            *out_end = at < text.len ? at : text.len;
        } else if (inside) {
            break;
        }
    }
    return inside;
}

bool
mc_golden_load(mc_golden *out, const char *path, mc_fault *fault)
{
    mc_buf text = {0}, expect = {0};
    if (mc_file_read(path, MAX_FILE_BYTES, &text, fault) != MOEC_OK) return false;
    *out = (mc_golden){.arena = mc_arena_create()};
    out->path = mc_str_dup(out->arena, mc_str_of(path)).data;
    out->text = mc_str_dup(out->arena, mc_buf_view(&text));
    mc_str line;
    for (size_t at = 0; next_line(out->text, &at, &line);) {
        if (!mc_str_starts(line, "# RUN:")) continue;
        out->run = trim(mc_str_slice(line, strlen("# RUN:"), line.len));
        break;
    }
    size_t begin, end;
    out->has_expect = find_block(out->text, &begin, &end, &expect);
    out->expect = mc_str_dup(out->arena, mc_buf_view(&expect));
    mc_buf_fini(&text);
    mc_buf_fini(&expect);
    return true;
}

void
mc_golden_free(mc_golden *g)
{
    mc_arena_destroy(g->arena);
    *g = (mc_golden){0};
}

static bool
bless(const mc_golden *g, mc_str produced, mc_buf *report)
{
    size_t begin = g->text.len, end = g->text.len, at = 0;
    mc_buf out = {0}, old = {0};
    find_block(g->text, &begin, &end, &old);
    mc_buf_str(&out, mc_str_slice(g->text, 0, begin));
    if (!g->has_expect) {
        if (out.len && out.data[out.len - 1] != '\n') mc_buf_putc(&out, '\n');
        mc_buf_putc(&out, '\n');
    }
    mc_buf_puts(&out, "# EXPECT\n");
    for (mc_str line; next_line(produced, &at, &line);) {
        mc_buf_puts(&out, line.len ? "#| " : "#|");
        mc_buf_str(&out, line);
        mc_buf_putc(&out, '\n');
    }
    mc_buf_str(&out, mc_str_slice(g->text, end, g->text.len));
    mc_fault fault = {{0}};
    bool good = mc_file_write(g->path, out.data, out.len, 0644, &fault) == MOEC_OK;
    if (!good) mc_buf_printf(report, "%s: %s\n", g->path, fault.text);
    mc_buf_fini(&out);
    mc_buf_fini(&old);
    return good;
}

static bool
wants_bless(void)
{
    const char *value = getenv("BLESS");
    return value && value[0] && strcmp(value, "0") != 0;
}

bool
mc_golden_check(const mc_golden *g, mc_str produced, mc_buf *report)
{
    if (wants_bless()) return bless(g, produced, report);
    if (!g->has_expect) {
        mc_buf_printf(report, "%s: no '# EXPECT' block; run with BLESS=1 and review it\n", g->path);
        return false;
    }
    size_t at_want = 0, at_got = 0;
    for (int number = 1;; number++) {
        mc_str want = MC_STR("<end>"), got = MC_STR("<end>");
        bool more_want = next_line(g->expect, &at_want, &want), more_got = next_line(produced, &at_got, &got);
        if (!more_want && !more_got) return true;
        if (more_want == more_got && mc_str_eq(want, got)) continue;
        mc_buf_printf(report,
                      "%s: line %d of the output differs (BLESS=1 rewrites)\n  expected: %.*s\n  produced: %.*s\n",
                      g->path, number, MC_FMT(want), MC_FMT(got));
        return false;
    }
}

typedef struct expectation {
    int line;
    mc_str code;
} expectation;

typedef MC_VEC(expectation) expectations;

/* Codes after every "# error " or "# warning " of a line. */
static void
expectations_of(mc_arena *arena, mc_str line, int number, expectations *out)
{
    if (mc_str_starts(line, "#|")) return; /* output, not expectation */
    for (size_t i = 0; i < line.len; i++) {
        mc_str rest = mc_str_slice(line, i, line.len);
        size_t skip = mc_str_starts(rest, "# error ") ? 8 : mc_str_starts(rest, "# warning ") ? 10 : 0;
        if (!skip) continue;
        size_t end = skip;
        while (end < rest.len && rest.data[end] != ' ' && rest.data[end] != '#') end++;
        expectation e = {number, trim(mc_str_slice(rest, skip, end))};
        mc_vec_push(arena, out, e);
    }
}

bool
mc_golden_check_diags(const mc_golden *g, const mc_diags *diags, uint32_t file, mc_buf *report)
{
    mc_arena *arena = mc_arena_create();
    expectations wanted = {0};
    mc_str line;
    int number = 1;
    for (size_t at = 0; next_line(g->text, &at, &line); number++) expectations_of(arena, line, number, &wanted);
    bool good = true;
    for (size_t i = 0; i < diags->list.n; i++) {
        const mc_diagnostic *d = &diags->list.items[i];
        if (mc_code_severity(d->code) == MC_SEVERITY_REMARK) continue;
        int at = d->span.file == file ? mc_locate(diags->sources, d->span).line : 0;
        size_t k = 0;
        while (k < wanted.n &&
               (wanted.items[k].line != at || !mc_str_is(wanted.items[k].code, mc_code_name(d->code)))) {
            k++;
        }
        if (k < wanted.n) {
            wanted.items[k].line = -1;
            continue;
        }
        good = false;
        mc_buf_printf(report, "%s:%d: unexpected %s: %.*s\n", g->path, at, mc_code_name(d->code), MC_FMT(d->text));
    }
    for (size_t k = 0; k < wanted.n; k++) {
        if (wanted.items[k].line < 0) continue;
        good = false;
        mc_buf_printf(report, "%s:%d: expected %.*s, but it was not reported\n", g->path, wanted.items[k].line,
                      MC_FMT(wanted.items[k].code));
    }
    mc_arena_destroy(arena);
    return good;
}

static int
compare_paths(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void
find_in(mc_arena *arena, const char *folder, const char *suffix, mc_paths *out)
{
    DIR *dir = opendir(folder);
    if (!dir) {
        fprintf(stderr, "cannot read the folder %s\n", folder);
        abort();
    }
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        mc_str path = mc_strf(arena, "%s/%s", folder, entry->d_name);
        if (mc_file_is_directory(path.data)) {
            find_in(arena, path.data, suffix, out);
        } else if (mc_str_ends(path, suffix)) {
            mc_vec_push(arena, out, path.data);
        }
    }
    closedir(dir);
}

mc_paths
mc_golden_find(mc_arena *arena, const char *folder, const char *suffix)
{
    mc_paths paths = {0};
    find_in(arena, folder, suffix, &paths);
    if (paths.n) qsort(paths.items, paths.n, sizeof paths.items[0], compare_paths);
    return paths;
}
