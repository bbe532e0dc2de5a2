/* What tests rely on: weights made from a path, and the comparison of arrays. */
#include "tests/support/close.h"
#include "tests/support/synthetic.h"

#include <check.h>
#include <math.h>

START_TEST(synthetic_depends_on_path_only)
{
    mc_arena *arena = mc_arena_create();
    mc_synthetic s, grid;
    mc_synthetic_init(&s, arena, 1);
    mc_synthetic_init(&grid, arena, 1);
    grid.bf16_grid = true;
    mc_ref_weight_request r = {MC_STR("a.weight"), MC_STR("dense"), MOEC_F32, 2, {100, 400}}, other = r;
    mc_ref_tensor f32, bf16, on_grid, b;
    ck_assert(mc_ref_synthetic_weight(&s, &r, &f32));
    ck_assert(mc_ref_synthetic_weight(&grid, &r, &on_grid));
    r.dtype = MOEC_BF16;
    ck_assert(mc_ref_synthetic_weight(&s, &r, &bf16));
    ck_assert_msg(mc_close_within(MC_ARRAY(bf16), MC_ARRAY(on_grid), (mc_tolerance){0, 0, 0}).ok, "bf16 differs");
    other.path = MC_STR("b.weight");
    ck_assert(mc_ref_synthetic_weight(&s, &other, &b));
    double squares = 0, product = 0;
    for (int64_t i = 0; i < f32.n; i++) {
        squares += mc_ref_tensor_get(&f32, i) * mc_ref_tensor_get(&f32, i);
        product += mc_ref_tensor_get(&f32, i) * mc_ref_tensor_get(&b, i);
    }
    ck_assert_double_eq_tol(squares / (double)f32.n, 1.0 / 400, 0.1 / 400);
    ck_assert_double_eq_tol(product / squares, 0, 0.05);
    r = (mc_ref_weight_request){MC_STR("norm.weight"), MC_STR("norm"), MOEC_F32, 1, {64}};
    ck_assert(mc_ref_synthetic_weight(&s, &r, &b));
    for (int64_t i = 0; i < b.n; i++) ck_assert_double_eq_tol(mc_ref_tensor_get(&b, i), 1, 0.5);
    mc_arena_destroy(arena);
}
END_TEST

START_TEST(close_finds_differences)
{
    float a[3] = {1, 2, NAN}, b[3] = {1, 2.00001f, NAN}, c[3] = {1, 3, NAN}, d[3] = {1, 2, INFINITY};
    mc_array A = {MOEC_F32, a, 3}, B = {MOEC_F32, b, 3}, C = {MOEC_F32, c, 3}, D = {MOEC_F32, d, 3},
             E = {MOEC_F32, a, 2};
    ck_assert(mc_close_exact(A, A).ok && !mc_close_exact(A, B).ok);
    ck_assert(mc_close(A, B, MC_TOL_MODEL).ok && !mc_close(A, C, MC_TOL_MODEL).ok);
    ck_assert(!mc_close(A, D, MC_TOL_MODEL).ok && !mc_close(D, A, MC_TOL_MODEL).ok && !mc_close(A, E, MC_TOL_MODEL).ok);
    ck_assert_int_eq(mc_close(A, C, MC_TOL_MODEL).worst, 1);
    int32_t i[2] = {1, 2}, j[2] = {1, 3};
    ck_assert(!mc_close((mc_array){MOEC_I32, i, 2}, (mc_array){MOEC_I32, j, 2}, MC_TOL_MODEL).ok);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("support");
    TCase *c = tcase_create("support");
    tcase_add_test(c, synthetic_depends_on_path_only);
    tcase_add_test(c, close_finds_differences);
    suite_add_tcase(suite, c);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
