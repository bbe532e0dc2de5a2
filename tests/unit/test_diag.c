/* Diagnostics: spans in sources, rendering for people and for tools, the cap, the table of codes. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/ir_fixture.h"

static mc_ir_fixture x;

static void
setup(void)
{
    mc_ir_setup(&x);
}

static void
teardown(void)
{
    mc_ir_teardown(&x);
}

/* ---- diagnostics ---- */

static mc_span
span_of(uint32_t file, const char *text, const char *part)
{
    const char *at = strstr(text, part);
    ck_assert_ptr_nonnull(at);
    uint32_t begin = (uint32_t)(at - text);
    return (mc_span){file, begin, begin + (uint32_t)strlen(part)};
}

START_TEST(diagnostics_render_with_caret)
{
    const char text[] = "model m\n  hidden = 4096\n\tw_up: bf16[E, 7168, F]\nlast";
    uint32_t file = mc_sources_add(&x.sources, MC_STR("layer.moe"), mc_str_of(text));
    mc_error(&x.diags, span_of(file, text, "bf16[E"), MC_E0310, "expert weight '%s' is wrong", "w_up");
    mc_note(&x.diags, span_of(file, text, "hidden"), "'hidden' is set here");
    mc_warning(&x.diags, span_of(file, text, "last"), MC_W0303, "unused");
    mc_remark(&x.diags, (mc_span){0}, MC_R0501, "fused");
    ck_assert_str_eq(mc_ir_messages(&x).data, "layer.moe:3:8: error[E0310]: expert weight 'w_up' is wrong\n"
                                              "    3 | \tw_up: bf16[E, 7168, F]\n"
                                              "      | \t      ^~~~~~\n"
                                              "layer.moe:2:3: note: 'hidden' is set here\n"
                                              "    2 |   hidden = 4096\n"
                                              "      |   ^~~~~~\n"
                                              "help: run 'moec explain E0310'\n"
                                              "layer.moe:4:1: warning[W0303]: unused\n"
                                              "    4 | last\n"
                                              "      | ^~~~\n"
                                              "help: run 'moec explain W0303'\n"
                                              "remark[R0501]: fused\n");
    mc_buf json = {0};
    mc_diag_render_json(&x.diags, &x.diags.list.items[0], &json);
    ck_assert_str_eq(json.data, "{\"code\":\"E0310\",\"slug\":\"shape-mismatch\",\"severity\":\"error\","
                                "\"file\":\"layer.moe\",\"line\":3,\"column\":8,\"begin\":31,\"end\":37,"
                                "\"message\":\"expert weight 'w_up' is wrong\",\"notes\":[{\"file\":\"layer.moe\","
                                "\"line\":2,\"column\":3,\"begin\":10,\"end\":16,"
                                "\"message\":\"'hidden' is set here\"}]}\n");
    mc_buf_fini(&json);
}
END_TEST

START_TEST(diagnostics_tame_hostile_lines)
{
    /* A long line with an escape sequence, two-byte letters and a stray byte before the place. */
    mc_buf line = {0};
    for (int i = 0; i < 5000; i++) mc_buf_puts(&line, "\xC3\xA9");
    mc_buf_puts(&line, "\033[31m\xFFhere");
    for (int i = 0; i < 5000; i++) mc_buf_putc(&line, 'z');
    uint32_t file = mc_sources_add(&x.sources, MC_STR("long"), mc_buf_view(&line));
    mc_error(&x.diags, span_of(file, line.data, "here"), MC_E0401, "say \"%s\"", "\001\xFF\xC3\xA9");
    mc_str shown = mc_ir_messages(&x);
    ck_assert_uint_lt(shown.len, 800);
    ck_assert_ptr_null(memchr(shown.data, '\033', shown.len));
    ck_assert_ptr_nonnull(strstr(shown.data, "?[31m"));
    ck_assert_ptr_nonnull(strstr(shown.data, "^~~~\n"));
    mc_buf json = {0};
    mc_diag_render_json(&x.diags, &x.diags.list.items[0], &json);
    ck_assert_ptr_nonnull(strstr(json.data, "\"message\":\"say \\\"\\u0001\\ufffd\xC3\xA9\\\"\""));
    mc_buf_fini(&json);
    mc_buf_fini(&line);
}
END_TEST

START_TEST(errors_are_capped)
{
    for (int i = 0; i < 30; i++) {
        ck_assert(!mc_error(&x.diags, (mc_span){0}, MC_E0310, "error %d", i));
        mc_note(&x.diags, (mc_span){0}, "note %d", i);
    }
    mc_warning(&x.diags, (mc_span){0}, MC_W0303, "kept");
    ck_assert_uint_eq(x.diags.list.n, 21);
    ck_assert_int_eq(x.diags.n_errors, 30);
    ck_assert(x.diags.too_many);
    ck_assert_uint_eq(x.diags.list.items[19].notes.n, 1);
    ck_assert(mc_str_is(x.diags.list.items[19].notes.items[0].text, "note 19"));
    ck_assert_uint_eq(x.diags.list.items[20].notes.n, 0);
}
END_TEST

START_TEST(codes_are_found)
{
    for (int i = 0; i < MC_N_CODES; i++) {
        mc_code code = (mc_code)i;
        ck_assert_int_eq(mc_code_find(mc_str_of(mc_code_name(code))), code);
        static const char letters[] = "EWR";
        ck_assert_int_eq(mc_code_name(code)[0], letters[mc_code_severity(code)]);
        ck_assert(mc_code_slug(code)[0] && mc_code_text(code)[0]);
        for (int k = 0; k < i; k++) ck_assert_str_ne(mc_code_name((mc_code)k), mc_code_name(code));
    }
    ck_assert_int_eq(mc_code_find(MC_STR("E9999")), MC_N_CODES);
}
END_TEST

START_TEST(spans_are_located)
{
    const char text[] = "ab\r\n\ncd";
    uint32_t file = mc_sources_add(&x.sources, MC_STR("f"), mc_str_of(text));
    mc_location at = mc_locate(&x.sources, (mc_span){file, 1, 2});
    ck_assert(at.line == 1 && at.column == 2 && mc_str_is(at.text, "ab"));
    at = mc_locate(&x.sources, (mc_span){file, 4, 4});
    ck_assert(at.line == 2 && at.column == 1 && at.text.len == 0);
    at = mc_locate(&x.sources, (mc_span){file, 900, 901}); /* past the end */
    ck_assert(at.line == 3 && at.column == 3 && mc_str_is(at.text, "cd"));
    ck_assert_ptr_null(mc_source_of(&x.sources, (mc_span){0}));
    ck_assert_ptr_null(mc_source_of(&x.sources, (mc_span){file + 1, 0, 0}));
    mc_span joined = mc_span_join((mc_span){file, 1, 2}, (mc_span){file, 4, 6});
    ck_assert(joined.begin == 1 && joined.end == 6);
    ck_assert_uint_eq(mc_span_join((mc_span){0}, (mc_span){file, 4, 6}).begin, 4);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("diagnostics");
    TCase *all = tcase_create("diagnostics");
    tcase_add_checked_fixture(all, setup, teardown);
    tcase_add_test(all, diagnostics_render_with_caret);
    tcase_add_test(all, diagnostics_tame_hostile_lines);
    tcase_add_test(all, errors_are_capped);
    tcase_add_test(all, codes_are_found);
    tcase_add_test(all, spans_are_located);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
