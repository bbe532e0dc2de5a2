/* Real input: the shipped model must predict held-out text as well as PyTorch says it does (bits per byte to 1e-3,
 * computed by the executable), and continue the prompt with the very same bytes. The figures are printed. */
#define _GNU_SOURCE
#include "moec/moec.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define MODEL "examples/kjv"

static json_t *expected;

/* What a command prints on standard output; caller frees. */
static char *
output_of(const char *format, ...)
{
    char command[2048], *text = NULL;
    size_t n_bytes;
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    FILE *memory = open_memstream(&text, &n_bytes), *pipe = popen(command, "r");
    ck_assert_msg(memory && pipe, "cannot run %s", command);
    for (int c; (c = getc(pipe)) != EOF;) putc(c, memory);
    int status = pclose(pipe);
    fclose(memory);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "failed: %s", command);
    return text;
}

static const char *
moec_binary(void)
{
    const char *path = getenv("MOEC_TEST_BINARY");
    return path ? path : "build/moec";
}

START_TEST(test_bits_per_byte)
{
    char directory[] = "/tmp/moec-kjv-XXXXXX";
    ck_assert_ptr_nonnull(mkdtemp(directory));
    free(output_of("%s compile %s/kjv.moe --cache '' -o %s/kjv", moec_binary(), MODEL, directory));
    char *text = output_of("%s/kjv --weights %s --in-memory --score %s/heldout.bin", directory, MODEL, MODEL);
    free(output_of("rm -r %s", directory));
    double want = json_real_value(json_object_get(expected, "bits_per_byte"));
    const char *number = text;
    while (*number && (*number < '0' || *number > '9')) number++;
    double got = strtod(number, NULL);
    printf("bits per byte: %.6f (PyTorch %.6f)\n", got, want);
    ck_assert_msg(fabs(got - want) <= 1e-3, "bits per byte %.6f, PyTorch says %.6f; the program printed: %s", got, want,
                  text);
    free(text);
}
END_TEST

START_TEST(test_continuation)
{
    const json_t *greedy = json_object_get(expected, "greedy");
    const json_t *prompt = json_object_get(greedy, "prompt_ids"), *ids = json_object_get(greedy, "continuation_ids");
    moec_compiled *compiled;
    moec_model *model;
    moec_weights *weights;
    moec_session *session;
    moec_error error = {0};
    moec_compile_options options = {.cache = ""};
    moec_weights_options in_memory = {.in_memory = true};
    ck_assert_int_eq(moec_compile_file(MODEL "/kjv.moe", &options, &compiled), MOEC_OK);
    ck_assert_msg(moec_compiled_load(compiled, &model, &error) == MOEC_OK, "%s", error.text);
    ck_assert_msg(moec_weights_open(model, MODEL, &in_memory, &weights, &error) == MOEC_OK, "%s", error.text);
    ck_assert_msg(moec_session_create(model, weights, NULL, &session, &error) == MOEC_OK, "%s", error.text);
    for (size_t i = 0; i < json_array_size(prompt); i++) {
        int32_t id = (int32_t)json_integer_value(json_array_get(prompt, i));
        ck_assert_int_eq(moec_session_feed(session, &id, 1, 1, NULL, &error), MOEC_OK);
    }
    ck_assert_uint_gt(json_array_size(ids), 30);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int32_t id;
        ck_assert_int_eq(moec_sample(session, 0, NULL, i, &id, &error), MOEC_OK);
        ck_assert_int_eq(id, json_integer_value(json_array_get(ids, i)));
        putchar(id);
        ck_assert_int_eq(moec_session_feed(session, &id, 1, 1, NULL, &error), MOEC_OK);
    }
    putchar('\n');
    moec_session_destroy(session);
    moec_weights_close(weights);
    moec_compiled_destroy(compiled);
}
END_TEST

int
main(void)
{
    expected = json_load_file(MODEL "/expected.json", 0, NULL);
    if (!expected) {
        fprintf(stderr, "cannot read %s/expected.json\n", MODEL);
        return 1;
    }
    Suite *suite = suite_create("kjv");
    TCase *tests = tcase_create("real input");
    tcase_set_timeout(tests, 30);
    tcase_add_test(tests, test_bits_per_byte);
    tcase_add_test(tests, test_continuation);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    json_decref(expected);
    return failed != 0;
}
