/* Golden tests of passes: every tests/golden/passes/<name>/<case>.moir says what to run and what must come out, remarks
 * included. BLESS=1 rewrites the expectations. Run from the root of the source tree. */
#include "ir/print.h"
#include "passes/pass.h"
#include "tests/support/golden.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SKIP = 8 };

static mc_arena *files_arena;
static mc_paths files;

typedef struct command {
    mc_str passes;
    mc_str skip[MAX_SKIP];
    mc_pass_setting nr;
    mc_pass_options options;
} command;

static mc_str
value_of(mc_str word, const char *flag)
{
    return mc_str_starts(word, flag) ? mc_str_slice(word, strlen(flag), word.len) : (mc_str){0};
}

/* "moec opt --passes=... [--nr=N] [--fuel=N] [--skip=NAME] %s" */
static void
parse_command(mc_str run, command *out)
{
    memset(out, 0, sizeof *out);
    out->options.verify_each = out->options.roundtrip_each = out->options.check_unchanged = true;
    out->options.skip = out->skip;
    for (size_t at = 0; at < run.len;) {
        size_t end = at;
        while (end < run.len && run.data[end] != ' ') end++;
        mc_str word = mc_str_slice(run, at, end), v;
        at = end + 1;
        if ((v = value_of(word, "--passes=")).len) {
            out->passes = v;
        } else if ((v = value_of(word, "--nr=")).len) {
            out->nr = (mc_pass_setting){MC_STR("nr"), strtoll(v.data, NULL, 10)};
            out->options.settings = &out->nr;
            out->options.n_settings = 1;
        } else if ((v = value_of(word, "--fuel=")).len) {
            out->options.limit_fuel = true;
            out->options.fuel = strtoll(v.data, NULL, 10);
        } else if ((v = value_of(word, "--skip=")).len) {
            ck_assert_uint_lt(out->options.n_skip, MAX_SKIP);
            out->skip[out->options.n_skip++] = v;
        } else {
            ck_assert_msg(mc_str_is(word, "moec") || mc_str_is(word, "opt") || mc_str_is(word, "%s"),
                          "unknown word in RUN: %.*s", MC_FMT(word));
        }
    }
    ck_assert_msg(out->passes.len > 0, "RUN has no --passes");
}

static void
write_diags(const mc_diags *diags, mc_buf *out)
{
    static const char *const kinds[] = {"error", "warning", "remark"};
    for (size_t i = 0; i < diags->list.n; i++) {
        const mc_diagnostic *d = &diags->list.items[i];
        mc_buf_printf(out, "line %d: %s %s: %.*s\n",
                      mc_source_of(diags->sources, d->span) ? mc_locate(diags->sources, d->span).line : 0,
                      kinds[mc_code_severity(d->code)], mc_code_name(d->code), MC_FMT(d->text));
        for (size_t k = 0; k < d->notes.n; k++) mc_buf_printf(out, "  note: %.*s\n", MC_FMT(d->notes.items[k].text));
    }
}

static void
produce(const mc_golden *g, mc_buf *out)
{
    command c;
    parse_command(g->run, &c);
    mc_arena *arena = mc_arena_create();
    mc_sources sources = {.arena = arena};
    mc_diags diags;
    mc_diags_init(&diags, arena, &sources);
    mc_module *m = mc_module_read(&sources, mc_sources_add(&sources, mc_str_of(g->path), g->text), &diags);
    bool ok = m && mc_run_pipeline(m, c.passes, &c.options, &diags);
    write_diags(&diags, out);
    if (ok) mc_module_print(m, out);
    mc_module_destroy(m);
    mc_arena_destroy(arena);
}

START_TEST(test_golden)
{
    mc_golden g;
    mc_fault fault = {{0}};
    ck_assert_msg(mc_golden_load(&g, files.items[_i], &fault), "%s", fault.text);
    mc_buf out = {0}, report = {0};
    produce(&g, &out);
    ck_assert_msg(mc_golden_check(&g, mc_buf_view(&out), &report), "%s", report.data);
    mc_buf_fini(&out);
    mc_buf_fini(&report);
    mc_golden_free(&g);
}
END_TEST

int
main(void)
{
    files_arena = mc_arena_create();
    files = mc_golden_find(files_arena, "tests/golden/passes", ".moir");
    Suite *suite = suite_create("passes_golden");
    TCase *tc = tcase_create("golden");
    tcase_set_timeout(tc, 30);
    tcase_add_loop_test(tc, test_golden, 0, (int)files.n);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner), run = srunner_ntests_run(runner);
    srunner_free(runner);
    mc_arena_destroy(files_arena);
    return failed != 0 || run == 0;
}
