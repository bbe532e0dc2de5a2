/* The documentation does what it says. Fenced blocks of every page are tried, in order, in a fresh directory:
 *
 *     ```moe                  a whole model ("moe 1" first): passes `moec check` without errors and warnings
 *     ```moir                 a whole module ("moir" first): reads and verifies
 *     ```LANG file=NAME       is also written there, for the commands further down
 *     ```console              "$ command" lines are run by the shell; what they print must be what follows, "..."
 * standing for any text. A command that fails must say what it prints.
 *
 * On the page of a diagnostic code, moe and moir blocks say what they are for:
 *
 *     ```moe wrong            reports this code and no other error or warning
 *     ```moe right            reports no error and no warning
 *     ```moe shows            reports this code (of remarks: with others)
 *
 * with passes=LIST or the word `compile` (passes and code) where the code comes from there. Pages made by `moec docs`
 * must be what it prints. BLESS=1 rewrites those pages and the output of commands; the review is the diff. */
#define _GNU_SOURCE
#include "driver/backend.h"
#include "ir/verify.h"
#include "tests/support/golden.h"
#include "tests/support/markdown.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef MOEC_HAVE_LLVM
enum { HAVE_LLVM = 1 };
#else
enum { HAVE_LLVM = 0 }; /* then commands and code are not tried */
#endif
enum { MAX_PAGE_BYTES = 4 << 20, PATH_BYTES = 4096 };

/* Codes that no input can provoke, or only on another build. */
static const char *const untried[] = {"E0504", "E0603", "E0605", "E0701", "E0703", "R0701"};

static const struct made {
    const char *name, *path;
} made[] = {{"ops", "docs/OPS.md"},         {"passes", "docs/PASSES.md"}, {"errors", "docs/ERRORS.md"},
            {"options", "docs/OPTIONS.md"}, {"man", "docs/moec.1"},       {"completion", "docs/moec.bash"}};
enum { N_MADE = sizeof made / sizeof made[0] };

static mc_arena *pages_arena;
static MC_VEC(const char *) pages;

typedef struct trial {
    mc_arena *arena;
    const char *path; /* of the page */
    mc_str text;
    char directory[64];
    mc_code code; /* whose page it is, or MC_N_CODES */
    int n_tried;  /* blocks that said something about the code */
    mc_buf blessed;
    size_t n_copied; /* bytes of text already in `blessed` */
} trial;

static bool
wants_bless(void)
{
    const char *value = getenv("BLESS");
    return value && value[0] && strcmp(value, "0") != 0;
}

static mc_str
read_file(const char *path, mc_arena *arena)
{
    mc_buf buf = {0};
    mc_fault fault = {{0}};
    ck_assert_msg(mc_file_read(path, MAX_PAGE_BYTES, &buf, &fault) == MOEC_OK, "%s", fault.text);
    mc_str text = mc_str_dup(arena, mc_buf_view(&buf));
    mc_buf_fini(&buf);
    return text;
}

static void
write_file(const char *path, mc_str text)
{
    mc_fault fault = {{0}};
    ck_assert_msg(mc_file_write(path, text.data ? text.data : "", text.len, 0644, &fault) == MOEC_OK, "%s", fault.text);
}

/* ---- the shell ---- */

static const char *
moec_binary(void)
{
    const char *path = getenv("MOEC_TEST_BINARY");
    ck_assert_msg(path && path[0] == '/', "MOEC_TEST_BINARY names no program");
    return path;
}

/* What the command prints, errors included; false when it fails. */
static bool
shell(const char *directory, mc_str command, mc_buf *out)
{
    const char *binary = moec_binary();
    char script[PATH_BYTES], line[3 * PATH_BYTES], chunk[4096];
    snprintf(script, sizeof script, "%s/.command", directory);
    write_file(script, command);
    snprintf(line, sizeof line, "cd '%s' && PATH='%.*s':\"$PATH\" sh .command 2>&1", directory,
             (int)(strrchr(binary, '/') - binary), binary);
    FILE *pipe = popen(line, "r");
    ck_assert_ptr_nonnull(pipe);
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, pipe)) > 0;) mc_buf_write(out, chunk, n);
    int status = pclose(pipe);
    unlink(script);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* ---- blocks of commands ---- */

static size_t
line_end(mc_str text, size_t at)
{
    const char *end = at < text.len ? memchr(text.data + at, '\n', text.len - at) : NULL;
    return end ? (size_t)(end - text.data) + 1 : text.len;
}

static bool
is_command(mc_str text, size_t at)
{
    return at + 2 <= text.len && text.data[at] == '$' && text.data[at + 1] == ' ';
}

/* Lines that end in a backslash go on in the next one. */
static size_t
command_end(mc_str text, size_t at)
{
    size_t end = line_end(text, at);
    while (end >= at + 2 && end < text.len && text.data[end - 2] == '\\') end = line_end(text, end);
    return end;
}

static void
copy_until(trial *t, size_t end)
{
    mc_buf_str(&t->blessed, mc_str_slice(t->text, t->n_copied, end));
    t->n_copied = end;
}

static void
run_commands(trial *t, const mc_block_of_page *b)
{
    size_t base = (size_t)(b->text.data - t->text.data);
    for (size_t at = 0; at < b->text.len;) {
        ck_assert_msg(is_command(b->text, at), "%s:%d: a console block begins with '$ '", t->path, b->line);
        size_t end = command_end(b->text, at), next = end;
        while (next < b->text.len && !is_command(b->text, next)) next = line_end(b->text, next);
        mc_str command = mc_str_slice(b->text, at + 2, end), want = mc_str_slice(b->text, end, next);
        mc_buf out = {0};
        bool good = shell(t->directory, command, &out);
        bool same = mc_text_fits(want, mc_buf_view(&out));
        if (!same && wants_bless()) {
            copy_until(t, base + end);
            mc_buf_str(&t->blessed, mc_buf_view(&out));
            t->n_copied = base + next;
        } else {
            ck_assert_msg(same, "%s:%d: '%.*s' prints\n%.*s", t->path, b->line, MC_FMT(command),
                          MC_FMT(mc_buf_view(&out)));
            ck_assert_msg(good || want.len, "%s:%d: '%.*s' fails", t->path, b->line, MC_FMT(command));
        }
        if (t->code < MC_N_CODES && strstr(out.data ? out.data : "", mc_code_name(t->code))) t->n_tried++;
        mc_buf_fini(&out);
        at = next;
    }
}

/* ---- blocks of models ---- */

static bool
run_unit(mc_unit *u, const mc_block_of_page *b, mc_str pipeline)
{
    bool moir = mc_info_has(b->info, "moir");
    if (!mc_unit_text(u, moir ? "page.moir" : "page.moe", b->text.data, b->text.len)) return false;
    if (!mc_unit_elaborate(u) || !mc_module_verify(u->module, &u->diags)) return false;
    bool compile = mc_info_has(b->info, "compile");
    if (!pipeline.len && !compile) return true;
    mc_pass_options options = mc_pass_options_default();
    if (!mc_unit_passes(u, &options)) return false;
    if (!compile) return true;
    mc_backend_target target;
    mc_buf object = {0};
    bool good = mc_backend_find(u, &target) && mc_backend_emit(u, &target, MC_CODE_OBJECT, &object);
    mc_buf_fini(&object);
    return good;
}

static void
render(const mc_unit *u, mc_buf *out)
{
    for (size_t i = 0; i < u->diags.list.n; i++) mc_diag_render(&u->diags, &u->diags.list.items[i], false, out);
}

static void
try_model(trial *t, const mc_block_of_page *b)
{
    mc_str pipeline = mc_str_dup(t->arena, mc_info_value(b->info, "passes"));
    bool wrong = mc_info_has(b->info, "wrong"), shows = mc_info_has(b->info, "shows");
    moec_compile_options options = {.pipeline = pipeline.len ? pipeline.data : NULL};
    mc_unit u;
    mc_unit_init(&u, &options);
    bool good = run_unit(&u, b, pipeline);
    int n_own = 0, n_other = 0;
    for (size_t i = 0; i < u.diags.list.n; i++) {
        mc_code code = u.diags.list.items[i].code;
        n_own += code == t->code;
        n_other += code != t->code && mc_code_severity(code) != MC_SEVERITY_REMARK;
    }
    mc_buf said = {0};
    render(&u, &said);
    const char *text = said.data ? said.data : "nothing";
    if (wrong || shows) {
        ck_assert_msg(t->code < MC_N_CODES, "%s:%d: only pages of codes have wrong examples", t->path, b->line);
        ck_assert_msg(n_own > 0 && n_other == 0, "%s:%d: should report %s alone, but says\n%s", t->path, b->line,
                      mc_code_name(t->code), text);
        t->n_tried++;
    } else {
        ck_assert_msg(good && n_own + n_other == 0, "%s:%d: should be fine, but says\n%s", t->path, b->line, text);
    }
    ck_assert_msg(good || wrong, "%s:%d: fails:\n%s", t->path, b->line, text);
    mc_buf_fini(&said);
    mc_unit_fini(&u);
}

/* ---- pages ---- */

static void
try_block(trial *t, const mc_block_of_page *b)
{
    mc_str file = mc_info_value(b->info, "file");
    if (file.len) {
        char path[PATH_BYTES];
        snprintf(path, sizeof path, "%s/%.*s", t->directory, MC_FMT(file));
        write_file(path, b->text);
    }
    bool compiles = mc_info_has(b->info, "compile") || mc_info_has(b->info, "console");
    if (compiles && !HAVE_LLVM) return;
    bool whole = mc_str_starts(b->text, "moe 1\n") || mc_str_starts(b->text, "moir 1 ");
    bool marked = compiles || mc_info_has(b->info, "wrong");
    if (mc_info_has(b->info, "console"))
        run_commands(t, b);
    else if ((mc_info_has(b->info, "moe") || mc_info_has(b->info, "moir")) && (whole || marked))
        try_model(t, b);
}

static void
check_links(const trial *t, const mc_page *page)
{
    const char *slash = strrchr(t->path, '/');
    for (size_t i = 0; i < page->links.n; i++) {
        mc_str link = page->links.items[i];
        if (mc_str_starts(link, "http") || mc_str_starts(link, "#")) continue;
        const char *anchor = memchr(link.data, '#', link.len);
        size_t n = anchor ? (size_t)(anchor - link.data) : link.len;
        mc_str file = mc_strf(t->arena, "%.*s%.*s", slash ? (int)(slash + 1 - t->path) : 0, t->path, (int)n, link.data);
        ck_assert_msg(mc_file_exists(file.data), "%s: a link to %.*s, which is not there", t->path, MC_FMT(link));
    }
}

/* "docs/errors/E0101.md" begins with "# E0101: expected-token". */
static void
check_error_page(trial *t)
{
    const char *name = t->path + strlen("docs/errors/");
    t->code = mc_code_find((mc_str){name, strcspn(name, ".")});
    ck_assert_msg(t->code < MC_N_CODES, "%s: no diagnostic has this code", t->path);
    mc_str title = mc_strf(t->arena, "# %s: %s\n", mc_code_name(t->code), mc_code_slug(t->code));
    ck_assert_msg(mc_str_starts(t->text, title.data), "%s: must begin with %s", t->path, title.data);
}

static void
open_directory(trial *t)
{
    char target[PATH_BYTES], link[PATH_BYTES], here[PATH_BYTES / 2];
    static const char *const shared[] = {"examples", "tests"};
    snprintf(t->directory, sizeof t->directory, "/tmp/moec-docs-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(t->directory));
    ck_assert_ptr_nonnull(getcwd(here, sizeof here));
    for (size_t i = 0; i < sizeof shared / sizeof shared[0]; i++) {
        snprintf(target, sizeof target, "%s/%s", here, shared[i]);
        snprintf(link, sizeof link, "%s/%s", t->directory, shared[i]);
        ck_assert_int_eq(symlink(target, link), 0);
    }
}

static void
close_directory(const trial *t)
{
    char command[PATH_BYTES];
    snprintf(command, sizeof command, "rm -rf '%s'", t->directory);
    ck_assert_int_eq(system(command), 0);
}

START_TEST(test_page)
{
    trial t = {.arena = mc_arena_create(), .path = pages.items[_i], .code = MC_N_CODES};
    t.text = read_file(t.path, t.arena);
    if (mc_str_starts(mc_str_of(t.path), "docs/errors/")) check_error_page(&t);
    mc_page page = mc_page_parse(t.text, t.arena);
    ck_assert_msg(!page.open, "%s: a block is not closed", t.path);
    check_links(&t, &page);
    open_directory(&t);
    for (size_t i = 0; i < page.blocks.n; i++) try_block(&t, &page.blocks.items[i]);
    close_directory(&t);
    bool tried = t.n_tried > 0 || t.code == MC_N_CODES;
    for (size_t i = 0; i < sizeof untried / sizeof untried[0]; i++)
        tried = tried || strcmp(mc_code_name(t.code), untried[i]) == 0;
    ck_assert_msg(tried || !HAVE_LLVM, "%s: no example reports the code", t.path);
    if (t.n_copied) {
        copy_until(&t, t.text.len);
        write_file(t.path, mc_buf_view(&t.blessed));
    }
    mc_buf_fini(&t.blessed);
    mc_arena_destroy(t.arena);
}
END_TEST

START_TEST(test_every_code_has_a_page)
{
    for (int i = 0; i < MC_N_CODES; i++) {
        char path[64];
        snprintf(path, sizeof path, "docs/errors/%s.md", mc_code_name((mc_code)i));
        ck_assert_msg(mc_file_exists(path), "%s is missing", path);
    }
}
END_TEST

START_TEST(test_explain_prints_the_page)
{
    mc_arena *arena = mc_arena_create();
    mc_buf out = {0};
    ck_assert(shell("/tmp", MC_STR("moec explain e0310"), &out));
    mc_str page = read_file("docs/errors/E0310.md", arena);
    ck_assert_ptr_nonnull(strstr(out.data, page.data));
    mc_buf_fini(&out);
    mc_arena_destroy(arena);
}
END_TEST

START_TEST(test_made_page)
{
    if (!HAVE_LLVM && strcmp(made[_i].name, "ops") == 0) return; /* that page says what the CPU backend covers */
    mc_arena *arena = mc_arena_create();
    mc_buf out = {0};
    ck_assert(shell("/tmp", mc_strf(arena, "moec docs %s", made[_i].name), &out));
    if (wants_bless()) write_file(made[_i].path, mc_buf_view(&out));
    mc_str have = read_file(made[_i].path, arena);
    ck_assert_msg(mc_str_eq(have, mc_buf_view(&out)), "%s is out of date: moec docs %s > %s", made[_i].path,
                  made[_i].name, made[_i].path);
    mc_buf_fini(&out);
    mc_arena_destroy(arena);
}
END_TEST

static bool
is_made(const char *path)
{
    for (int i = 0; i < N_MADE; i++)
        if (strcmp(path, made[i].path) == 0) return true;
    return false;
}

static void
find_pages(void)
{
    static const char *const folders[] = {"docs",  "frontend", "ir",       "passes", "codegen", "runtime",
                                          "tests", "driver",   "examples", "bench",  "tools",   "include"};
    static const char *const single[] = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"};
    for (size_t i = 0; i < sizeof single / sizeof single[0]; i++) mc_vec_push(pages_arena, &pages, single[i]);
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        mc_paths found = mc_golden_find(pages_arena, folders[i], ".md");
        for (size_t k = 0; k < found.n; k++)
            if (!is_made(found.items[k])) mc_vec_push(pages_arena, &pages, found.items[k]);
    }
}

int
main(void)
{
    pages_arena = mc_arena_create();
    find_pages();
    Suite *suite = suite_create("docs");
    TCase *tc = tcase_create("docs");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, test_page, 0, (int)pages.n);
    tcase_add_loop_test(tc, test_made_page, 0, N_MADE);
    tcase_add_test(tc, test_every_code_has_a_page);
    tcase_add_test(tc, test_explain_prints_the_page);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    mc_arena_destroy(pages_arena);
    return failed != 0;
}
