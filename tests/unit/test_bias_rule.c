/* moec_bias_update: both rules on numbers worked out by hand, and bad input. */
#include "moec/train.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { E = 4 };

/* One training forward of KempnerForge's router: counts [2,2,1,1], rate 1e-3, decay 0.99, ema from 1/E. */
START_TEST(test_ema)
{
    static const double want_ema[E] = {0.25083333, 0.25083333, 0.24916667, 0.24916667};
    static const double want_bias[E] = {-8.333e-7, -8.333e-7, 8.333e-7, 0.5000008333};
    float counts[E] = {2, 2, 1, 1}, ema[E] = {0.25F, 0.25F, 0.25F, 0.25F}, bias[E] = {0, 0, 0, 0.5F};
    moec_error error;
    ck_assert_int_eq(moec_bias_update(MOEC_BIAS_EMA, 1e-3, 0.99, E, counts, ema, bias, &error), MOEC_OK);
    for (int e = 0; e < E; e++) {
        ck_assert_double_eq_tol((double)ema[e], want_ema[e], 2e-8);
        ck_assert_double_eq_tol((double)bias[e], want_bias[e], e == 3 ? 6e-8 : 2e-10); /* 0.5 has steps of 6e-8 */
    }
}
END_TEST

START_TEST(test_sign)
{
    float counts[E] = {3, 2, 1, 2}, bias[E] = {0, 0.25F, 0, -0.25F}, ema[1] = {7};
    moec_error error;
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(moec_bias_update(MOEC_BIAS_SIGN, 0.125, 0, E, counts, i ? ema : NULL, bias, &error), MOEC_OK);
        const float d = 0.125F * (float)(i + 1), want[E] = {-d, 0.25F, d, -0.25F};
        ck_assert_mem_eq(bias, want, sizeof want);
    }
    ck_assert_float_eq(ema[0], 7);
}
END_TEST

/* Nothing was routed: nothing moves. */
START_TEST(test_nothing)
{
    float counts[E] = {0}, ema[E] = {1, 2, 3, 4}, bias[E] = {5, 6, 7, 8};
    const float ema_was[E] = {1, 2, 3, 4}, bias_was[E] = {5, 6, 7, 8};
    moec_error error;
    for (int rule = MOEC_BIAS_SIGN; rule <= MOEC_BIAS_EMA; rule++)
        ck_assert_int_eq(moec_bias_update((moec_bias_rule)rule, 0.1, 0.9, E, counts, ema, bias, &error), MOEC_OK);
    ck_assert_mem_eq(ema, ema_was, sizeof ema);
    ck_assert_mem_eq(bias, bias_was, sizeof bias);
}
END_TEST

START_TEST(test_refused)
{
    static const struct {
        int rule;
        double rate, decay, count;
        size_t n;
        bool no_counts, no_ema, no_bias;
        moec_status want;
    } cases[] = {
        {MOEC_BIAS_SIGN, 0.1, 0, -1, E, 0, 0, 0, MOEC_ERR_RANGE},
        {MOEC_BIAS_EMA, 0.1, 0.9, NAN, E, 0, 0, 0, MOEC_ERR_RANGE},
        {MOEC_BIAS_EMA, 0.1, 0.9, INFINITY, E, 0, 0, 0, MOEC_ERR_RANGE},
        {MOEC_BIAS_EMA, 0.1, 1.5, 1, E, 0, 0, 0, MOEC_ERR_ARGUMENT},
        {MOEC_BIAS_EMA, 0.1, NAN, 1, E, 0, 0, 0, MOEC_ERR_ARGUMENT},
        {MOEC_BIAS_SIGN, NAN, 0, 1, E, 0, 0, 0, MOEC_ERR_ARGUMENT},
        {MOEC_BIAS_SIGN, -1, 0, 1, E, 0, 0, 0, MOEC_ERR_ARGUMENT},
        {MOEC_BIAS_SIGN, 0.1, 0, 1, 0, 0, 0, 0, MOEC_ERR_ARGUMENT},
        {MOEC_BIAS_SIGN, 0.1, 0, 1, E, 1, 0, 0, MOEC_ERR_ARGUMENT},
        {MOEC_BIAS_EMA, 0.1, 0.9, 1, E, 0, 1, 0, MOEC_ERR_ARGUMENT},
        {MOEC_BIAS_EMA, 0.1, 0.9, 1, E, 0, 0, 1, MOEC_ERR_ARGUMENT},
        {7, 0.1, 0.9, 1, E, 0, 0, 0, MOEC_ERR_ARGUMENT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float counts[E] = {2, 1, 1, (float)cases[i].count}, ema[E] = {1, 2, 3, 4}, bias[E] = {5, 6, 7, 8};
        const float ema_was[E] = {1, 2, 3, 4}, bias_was[E] = {5, 6, 7, 8};
        moec_error error = {{0}};
        moec_status got = moec_bias_update((moec_bias_rule)cases[i].rule, cases[i].rate, cases[i].decay, cases[i].n,
                                           cases[i].no_counts ? NULL : counts, cases[i].no_ema ? NULL : ema,
                                           cases[i].no_bias ? NULL : bias, &error);
        ck_assert_msg(got == cases[i].want, "case %zu: %s", i, moec_status_name(got));
        ck_assert_uint_gt(strlen(error.text), 0);
        ck_assert_mem_eq(ema, ema_was, sizeof ema);
        ck_assert_mem_eq(bias, bias_was, sizeof bias);
    }
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("bias rule");
    TCase *t = tcase_create("bias rule");
    tcase_add_test(t, test_ema);
    tcase_add_test(t, test_sign);
    tcase_add_test(t, test_nothing);
    tcase_add_test(t, test_refused);
    suite_add_tcase(suite, t);
    SRunner *r = srunner_create(suite);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
