/* The text form: the golden files of tests/golden/ir, refusals of malformed text, and texts with random damage.
 * Runs from the root of the source tree. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "ir/edit.h"
#include "ir/op.h"
#include "ir/print.h"
#include "ir/verify.h"
#include "tests/support/golden.h"
#include "tests/support/ir_fixture.h"

static const char ops_folder[] = "tests/golden/ir/ops", errors_folder[] = "tests/golden/ir/errors";

static mc_paths
files_in(mc_ir_fixture *x, const char *folder)
{
    mc_paths paths = mc_golden_find(x->arena, folder, ".moir");
    ck_assert_msg(paths.n > 0, "no files in %s", folder);
    return paths;
}

static void
load(mc_golden *g, const char *path)
{
    mc_fault fault;
    ck_assert_msg(mc_golden_load(g, path, &fault), "%s", fault.text);
}

/* The file without its comment lines: what the printer must give for it. */
static mc_str
without_comments(mc_ir_fixture *x, mc_str text)
{
    mc_buf out = {0};
    for (size_t at = 0; at < text.len;) {
        const char *newline = memchr(text.data + at, '\n', text.len - at);
        size_t end = newline ? (size_t)(newline - text.data) + 1 : text.len;
        if (text.data[at] != '#') mc_buf_write(&out, text.data + at, end - at);
        at = end;
    }
    mc_str copy = mc_str_dup(x->arena, mc_buf_view(&out));
    mc_buf_fini(&out);
    return copy;
}

/* print(read(file)) is the file, verified; and again from what was printed. */
START_TEST(golden_ops_round_trip)
{
    mc_ir_fixture x;
    mc_ir_setup(&x);
    mc_paths paths = files_in(&x, ops_folder);
    for (size_t i = 0; i < paths.n; i++) {
        mc_golden g;
        load(&g, paths.items[i]);
        mc_module *m = mc_ir_read_named(&x, g.path, g.text);
        ck_assert_msg(m && mc_module_verify(m, &x.diags), "%s", mc_ir_messages(&x).data);
        mc_str printed = mc_ir_print(&x, m);
        ck_assert_str_eq(printed.data, without_comments(&x, g.text).data);
        mc_module *again = mc_ir_read_named(&x, "printed", printed);
        ck_assert_ptr_nonnull(again);
        ck_assert_str_eq(mc_ir_print(&x, again).data, printed.data);
        mc_golden_free(&g);
    }
    ck_assert_int_eq(x.diags.n_errors, 0);
    mc_ir_teardown(&x);
}
END_TEST

START_TEST(every_op_is_in_a_golden_file)
{
    mc_ir_fixture x;
    mc_ir_setup(&x);
    bool seen[MC_N_OPCODES] = {false};
    mc_paths paths = files_in(&x, ops_folder);
    for (size_t i = 0; i < paths.n; i++) {
        mc_golden g;
        load(&g, paths.items[i]);
        mc_module *m = mc_ir_read_named(&x, g.path, g.text);
        ck_assert_ptr_nonnull(m);
        MC_FOR_FUNCS(f, m)
        {
            MC_FOR_OPS(op, f) seen[op->opcode] = true;
        }
        mc_golden_free(&g);
    }
    for (int i = 0; i < MC_N_OPCODES; i++)
        ck_assert_msg(seen[i], "%s is in no file of %s", mc_op_infos[i].text, ops_folder);
    mc_ir_teardown(&x);
}
END_TEST

/* Reads (and verifies) one file of refusals into a fixture of its own. */
static uint32_t
refuse(mc_ir_fixture *x, const mc_golden *g)
{
    mc_ir_setup(x);
    mc_module *m = mc_ir_read_named(x, strrchr(g->path, '/') + 1, g->text);
    bool verified = m && mc_module_verify(m, &x->diags);
    ck_assert_msg(!verified, "%s is accepted", g->path);
    return (uint32_t)x->sources.files.n;
}

START_TEST(golden_refusals)
{
    mc_ir_fixture list, x;
    mc_ir_setup(&list);
    mc_paths paths = files_in(&list, errors_folder);
    for (size_t i = 0; i < paths.n; i++) {
        mc_golden g;
        mc_buf report = {0};
        load(&g, paths.items[i]);
        uint32_t file = refuse(&x, &g);
        ck_assert_msg(mc_golden_check_diags(&g, &x.diags, file, &report), "%s", report.data);
        ck_assert_msg(mc_str_is(g.run, "diagnostics"), "%s has no '# RUN: diagnostics'", g.path);
        ck_assert_msg(mc_golden_check(&g, mc_ir_messages(&x), &report), "%s", report.data);
        mc_buf_fini(&report);
        mc_ir_teardown(&x);
        mc_golden_free(&g);
    }
    mc_ir_teardown(&list);
}
END_TEST

/* Some message of the refusals begins with the name of each op. */
START_TEST(every_op_is_refused_somewhere)
{
    mc_ir_fixture list, x;
    mc_ir_setup(&list);
    bool seen[MC_N_OPCODES] = {false};
    mc_paths paths = files_in(&list, errors_folder);
    for (size_t i = 0; i < paths.n; i++) {
        mc_golden g;
        load(&g, paths.items[i]);
        refuse(&x, &g);
        for (size_t k = 0; k < x.diags.list.n; k++) {
            mc_str text = x.diags.list.items[k].text;
            const char *colon = strchr(text.data, ':');
            mc_opcode opcode =
                colon ? mc_opcode_find(mc_str_slice(text, 0, (size_t)(colon - text.data))) : MC_N_OPCODES;
            if (opcode < MC_N_OPCODES) seen[opcode] = true;
        }
        mc_ir_teardown(&x);
        mc_golden_free(&g);
    }
    for (int i = 0; i < MC_N_OPCODES; i++) ck_assert_msg(seen[i], "nothing refuses %s", mc_op_infos[i].text);
    mc_ir_teardown(&list);
}
END_TEST

/* ---- malformed text ---- */

#define HEAD "moir 1 stage=tensor\ndim T\n"
#define F HEAD "func @f(%x: f32[T, 8]) -> (f32[T, 8]) {\n"

static const struct {
    const char *text, *message;
    mc_code code;
} malformed[] = {
    {"", "expected 'moir', but the text ends", MC_E0401},
    {"moir 2 stage=tensor", "version 2 of .moir", MC_E0401},
    {"moir 1 stage=bytes", "not a stage", MC_E0401},
    {"moir 1", "expected 'stage'", MC_E0401},
    {HEAD "block", "expected dim, meta, func or model", MC_E0401},
    {HEAD "dim T", "declared twice", MC_E0205},
    {HEAD "dim U in 5..2", "not a range", MC_E0401},
    {HEAD "dim U in 1..99999999999999999999", "does not fit", MC_E0401},
    {HEAD "meta \"a\" = 1", "expected a string", MC_E0401},
    {HEAD "meta \"a", "not closed", MC_E0401},
    {HEAD "meta \"a\\t\" = \"\"", "escapes", MC_E0401},
    {HEAD "func f", "expected the name of a function", MC_E0401},
    {HEAD "func @f(%x: f32[T", "expected ','", MC_E0401},
    {HEAD "func @f(%x: f33)", "not an element type", MC_E0401},
    {HEAD "func @f(%x: f32[U])", "not declared with dim", MC_E0201},
    {HEAD "func @f(%x: f32[0])", "at least 1", MC_E0319},
    {HEAD "func @f(%x: f32[-4])", "at least 1", MC_E0319},
    {HEAD "func @f(%x: f32[T*T*T*T])", "more than 3 symbols", MC_E0314},
    {HEAD "func @f(%x: f32[T + 0])", "positive number", MC_E0314},
    {HEAD "func @f(%x: f32[3 + 1])", "positive number", MC_E0314},
    {HEAD "func @f(%x: f32[281474976710656, 2])", "2^48", MC_E0319},
    {HEAD "func @f(%x: f32[9223372036854775807, 9223372036854775807])", "2^48", MC_E0319},
    {HEAD "func @f(%x: f32[1, 1, 1, 1, 1, 1, 1])", "at most 6", MC_E0401},
    {HEAD "func @f(%x: f32, %x: f32)", "defined twice", MC_E0205},
    {F "}", "expected return", MC_E0401},
    {F "  return %x\n  return %x\n}", "expected '}'", MC_E0401},
    {F "  %y = siluu %x : f32[T, 8]", "did you mean 'silu'?", MC_E0402},
    {F "  %y = ?", "no token", MC_E0401},
    {F "  %y = silu %x {a = 1} : f32[T, 8]", "silu has no attribute a", MC_E0404},
    {F "  %y = l2norm %x {eps = 1.0, eps = 1.0} : f32[T, 8]", "twice", MC_E0404},
    {F "  %y = l2norm %x {eps = true} : f32[T, 8]", "expected a number", MC_E0401},
    {F "  %y = l2norm %x {eps = 1.0.0} : f32[T, 8]", "not a number", MC_E0401},
    {F "  %y, %z = silu %x : f32[T, 8]", "2 names for 1 results", MC_E0403},
    {F "  %y = silu %x : f32[T, 8] at home", "expected a place", MC_E0401},
    {F "  %y = silu %x : f32[T, 8] at slot -1", "out of range", MC_E0401},
    {F "  %y = silu %x : f32[T, 8] at slot 99999999999", "out of range", MC_E0401},
    {F "  %y = silu %x : f32[T, 8] at view %x + -1", "backwards", MC_E0401},
    {F "  slot 1: bytes [4]", "numbered in order", MC_E0401},
    {F "  %y = call %x {callee = @f} : f32[T, 8]\n  return %y\n}", "@f is not defined above", MC_E0201},
    {F "  return %x\n}\nfunc @f() -> () {\n  return\n}", "@f is defined twice", MC_E0205},
};

START_TEST(malformed_text_is_refused)
{
    mc_ir_fixture x;
    mc_ir_setup(&x);
    ck_assert_ptr_null(mc_ir_read(&x, malformed[_i].text));
    ck_assert_msg(mc_ir_said(&x, malformed[_i].code, malformed[_i].message), "said instead:\n%s",
                  mc_ir_messages(&x).data);
    mc_ir_teardown(&x);
}
END_TEST

START_TEST(reading_stops_after_twenty_errors)
{
    mc_ir_fixture x;
    mc_ir_setup(&x);
    mc_buf text = {0};
    mc_buf_puts(&text, F);
    for (int i = 0; i < 1000; i++) mc_buf_puts(&text, "  %y = silu %nobody : f32[T, 8]\n");
    mc_buf_puts(&text, "  return %x\n}\n");
    ck_assert_ptr_null(mc_ir_read(&x, text.data));
    ck_assert_uint_eq(x.diags.list.n, 20);
    ck_assert(x.diags.too_many);
    ck_assert_int_le(x.diags.n_errors, 22);
    mc_buf_fini(&text);
    mc_ir_teardown(&x);
}
END_TEST

/* Long input of every repeatable kind: a chain of calls, a long function, equal hints. */
START_TEST(long_texts_are_read)
{
    enum { N = 20000 };
    mc_ir_fixture x;
    mc_ir_setup(&x);
    mc_buf text = {0};
    mc_buf_puts(&text, HEAD "func @f0(%x: f32[T]) -> (f32[T]) {\n  return %x\n}\n");
    for (int i = 1; i < N; i++) {
        mc_buf_printf(&text, "func @f%d(%%x: f32[T]) -> (f32[T]) {\n", i);
        mc_buf_printf(&text, "  %%y = call %%x {callee = @f%d} : f32[T]\n  return %%y\n}\n", i - 1);
    }
    mc_buf_puts(&text, "model @m(%x: f32[T]) -> (f32[T]) {\n");
    for (int i = 0; i < N; i++) mc_buf_printf(&text, "  %%y%d = silu %%x : f32[T]\n", i);
    mc_buf_puts(&text, "  return %x\n}\n");
    mc_module *m = mc_ir_read(&x, text.data);
    ck_assert_msg(m && mc_module_verify(m, &x.diags), "%s", mc_ir_messages(&x).data);
    MC_FOR_OPS(op, mc_module_model(m))
    {
        if (op->n_results) op->results[0].name = MC_STR("same");
    }
    mc_module_sort_funcs(m);
    mc_str printed = mc_ir_print(&x, m);
    ck_assert_ptr_nonnull(strstr(printed.data, "  %same.20000 = silu %x"));
    mc_module *again = mc_ir_read_named(&x, "printed", printed);
    ck_assert_ptr_nonnull(again);
    ck_assert_str_eq(mc_ir_print(&x, again).data, printed.data);
    mc_buf_fini(&text);
    mc_ir_teardown(&x);
}
END_TEST

/* ---- damage ---- */

static uint32_t
next_random(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* A few bytes changed, removed, repeated or replaced by a piece of the same text. */
static mc_str
damage(mc_ir_fixture *x, mc_str text, uint32_t *random)
{
    static const char bytes[] = "%@,:[]{}()=*+-_\"\\ 0129.#aTS\n";
    char *copy = mc_arena_alloc(x->arena, text.len * 2 + 64);
    size_t n = text.len;
    memcpy(copy, text.data, n);
    int rounds = 1 + (int)(next_random(random) % 4);
    for (int i = 0; i < rounds && n > 16; i++) {
        size_t at = next_random(random) % (n - 8), length = 1 + next_random(random) % 7;
        size_t from = next_random(random) % (n - 8);
        switch (next_random(random) % 4) {
        case 0: copy[at] = bytes[next_random(random) % (sizeof bytes - 1)]; break;
        case 1:
            memmove(copy + at, copy + at + length, n - at - length);
            n -= length;
            break;
        case 2: memmove(copy + at, copy + from, length); break;
        case 3: copy[at] = (char)next_random(random); break;
        }
    }
    return (mc_str){copy, n};
}

START_TEST(damaged_texts_never_break_the_law)
{
    mc_ir_fixture list;
    mc_ir_setup(&list);
    mc_paths paths = files_in(&list, ops_folder);
    uint32_t random = 12345;
    int n_read = 0;
    for (size_t i = 0; i < paths.n; i++) {
        mc_golden g;
        load(&g, paths.items[i]);
        for (int k = 0; k < 300; k++) {
            mc_ir_fixture x;
            mc_ir_setup(&x);
            mc_module *m = mc_ir_read_named(&x, "damaged", damage(&x, g.text, &random));
            ck_assert(m ? x.diags.n_errors == 0 : x.diags.n_errors > 0);
            if (m) {
                n_read++;
                mc_str printed = mc_ir_print(&x, m);
                mc_module *again = mc_ir_read_named(&x, "printed", printed);
                ck_assert_msg(again, "%s\n%s", printed.data, mc_ir_messages(&x).data);
                ck_assert_str_eq(mc_ir_print(&x, again).data, printed.data);
                mc_module_verify(m, &x.diags);
            }
            mc_ir_messages(&x);
            mc_ir_teardown(&x);
        }
        mc_golden_free(&g);
    }
    ck_assert_int_gt(n_read, 50); /* the damage is small enough that much of it can be read */
    mc_ir_teardown(&list);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("ir text");
    TCase *golden = tcase_create("golden");
    tcase_set_timeout(golden, 60);
    tcase_add_test(golden, golden_ops_round_trip);
    tcase_add_test(golden, every_op_is_in_a_golden_file);
    tcase_add_test(golden, golden_refusals);
    tcase_add_test(golden, every_op_is_refused_somewhere);
    suite_add_tcase(suite, golden);
    TCase *text = tcase_create("text");
    tcase_set_timeout(text, 60);
    tcase_add_loop_test(text, malformed_text_is_refused, 0, (int)(sizeof malformed / sizeof malformed[0]));
    tcase_add_test(text, reading_stops_after_twenty_errors);
    tcase_add_test(text, long_texts_are_read);
    tcase_add_test(text, damaged_texts_never_break_the_law);
    suite_add_tcase(suite, text);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
