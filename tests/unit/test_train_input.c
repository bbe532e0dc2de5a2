/* More bad input to moec/train.h, on buffers that end where the library says they must: derivatives that are not
 * finite, ids outside a table, a workspace that lacks one byte. */
#include "moec/moec.h"
#include "tests/support/train_rig.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char text[] = "moe 1\n"
                           "dim T in 1..64\n"
                           "model layer(x: f32[T, 24]) -> f32[T, 24] {\n"
                           "  return x + moe@mlp(x) {\n"
                           "    route linear@gate | softmax | top 2 | renorm\n"
                           "    experts 6 of swiglu(20)\n"
                           "  }\n"
                           "}\n"
                           "train { aux switch; z 1 }\n";
static const char language_text[] = "moe 1\n"
                                    "dim B, S in 1..16\n"
                                    "model lm(ids: i32[B, S]) -> f32[B, S, 10] {\n"
                                    "  return linear@head(embed@table(ids, 10, 8), 10)\n"
                                    "}\n";
static const moec_limit seven[] = {{"T", 7}};
enum { T = 7, D = 24 };

static mc_rig rig;
static mc_rig_step step;
static mc_buf before;

static void
setup(void)
{
    mc_rig_open(&rig, "layer.moe", text, NULL, NULL, NULL);
    mc_rig_step_open(&step, &rig, seven, 1, 2, 1);
    mc_rig_forward(&step);
    mc_rig_backward(&step);
    mc_rig_collect(&step, &before);
}

static void
teardown(void)
{
    mc_buf_fini(&before);
    mc_rig_step_close(&step);
    mc_rig_close(&rig);
}

/* The call fails so, says so, and leaves outputs, gradients and what was saved as they were. */
static void
refused(bool backward, const moec_train_call *call, moec_status want, const char *said)
{
    moec_error error = {{0}};
    mc_buf now = {0};
    unsigned char *saved = malloc(step.sizes.saved_bytes);
    memcpy(saved, step.call.saved, step.sizes.saved_bytes);
    moec_status got =
        backward ? moec_train_backward(rig.model, call, &error) : moec_train_forward(rig.model, call, &error);
    ck_assert_msg(got == want, "%s, not %s: %s", moec_status_name(got), moec_status_name(want), error.text);
    ck_assert_msg(strstr(error.text, said) != NULL, "'%s' does not say '%s'", error.text, said);
    mc_rig_collect(&step, &now);
    ck_assert_uint_eq(now.len, before.len);
    ck_assert_msg(memcmp(now.data, before.data, now.len) == 0, "%s: something was written", error.text);
    ck_assert_msg(memcmp(saved, step.call.saved, step.sizes.saved_bytes) == 0, "%s: saved was written", error.text);
    free(saved);
    mc_buf_fini(&now);
}

START_TEST(test_not_finite)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    moec_train_call c = step.call;
    moec_error error;
    c.check_finite = true;
    float *first = step.cotangents[0].data, *aux = step.cotangents[mc_rig_output(&rig, "aux")].data;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        float was = first[T * D - 1];
        first[T * D - 1] = bad[i];
        refused(true, &c, MOEC_ERR_RANGE, "element 167");
        first[T * D - 1] = was;
        was = *aux;
        *aux = bad[i];
        refused(true, &c, MOEC_ERR_RANGE, "cotangent of aux");
        *aux = was;
    }
    ck_assert_int_eq(moec_train_backward(rig.model, &c, &error), MOEC_OK);
}
END_TEST

/* The greater of both directions is what a query says, so one byte less must fail in one of them, and it must say the
 * same number. */
START_TEST(test_one_byte_less)
{
    moec_error error = {{0}};
    moec_train_call c = step.call;
    c.workspace_bytes--;
    moec_status forward = moec_train_forward(rig.model, &c, &error);
    moec_status backward = forward == MOEC_OK ? moec_train_backward(rig.model, &c, &error) : forward;
    ck_assert_int_eq(backward, MOEC_ERR_ARGUMENT);
    char number[32];
    snprintf(number, sizeof number, "need %zu", step.sizes.workspace_bytes);
    ck_assert_msg(strstr(error.text, number) != NULL, "%s", error.text);
}
END_TEST

/* An id outside the table is refused before anything is read. */
START_TEST(test_ids)
{
    mc_rig lm;
    mc_rig_step s;
    moec_error error = {{0}};
    mc_rig_open(&lm, "lm.moe", language_text, NULL, NULL, NULL);
    mc_rig_step_open(&s, &lm, (moec_limit[]){{"B", 2}, {"S", 3}}, 2, 1, 1);
    int32_t *ids = s.inputs[0].data;
    ids[4] = 10;
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(moec_train_forward(lm.model, &s.call, &error), MOEC_ERR_RANGE);
        ck_assert_msg(strstr(error.text, "position 1 of row 1") != NULL, "%s", error.text);
        ids[4] = -1;
    }
    moec_tensor grad = s.inputs[0];
    ids[4] = 1;
    mc_rig_forward(&s);
    s.call.input_grads = &grad;
    s.call.n_input_grads = 1;
    ck_assert_int_eq(moec_train_backward(lm.model, &s.call, &error), MOEC_ERR_ARGUMENT);
    ck_assert_msg(strstr(error.text, "ids has no gradient") != NULL, "%s", error.text);
    mc_rig_step_close(&s);
    mc_rig_close(&lm);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("train input");
    TCase *t = tcase_create("train input");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, test_not_finite);
    tcase_add_test(t, test_one_byte_less);
    tcase_add_test(t, test_ids);
    suite_add_tcase(suite, t);
    SRunner *r = srunner_create(suite);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
