/* Rotary frequencies and their scaling rules. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ir/build.h"
#include "ir/rope.h"
#include "tests/support/ir_fixture.h"

static mc_ir_fixture x;
static mc_module *m;

static void
setup(void)
{
    mc_ir_setup(&x);
    m = mc_ir_module(&x);
}

static void
teardown(void)
{
    mc_ir_teardown(&x);
}

/* ---- rotary frequencies: numbers of ROPE_INIT_FUNCTIONS of transformers 5.23.0, which computes in f32 ---- */

static const struct {
    const char *scaling;
    double theta, args[8], factor;
    int dims, n_args;
    double inv[16];
} ropes[] = {
    {"none", 10000, {0}, 1, 8, 0, {1, 0.1, 0.01, 0.001}},
    {"linear",
     10000,
     {4},
     1,
     16,
     1,
     {0.25, 0.07905694097280502, 0.02500000037252903, 0.007905694656074047, 0.0024999999441206455,
      0.0007905694656074047, 0.0002500000118743628, 7.905694656074047e-05}},
    {"llama3",
     500000,
     {8, 1, 4, 8192},
     1,
     32,
     4,
     {1.0, 0.44036662578582764, 0.193922758102417, 0.08539710193872452, 0.03760603070259094, 0.016560440883040428,
      0.00729266507551074, 0.0032114461064338684, 0.0005248460220173001, 7.784655463183299e-05, 3.428102354519069e-05,
      1.5096217794052791e-05, 6.647869668086059e-06, 2.927499735960737e-06, 1.289173155782919e-06,
      5.677088097399974e-07}},
    {"yarn",
     10000,
     {40, 4096, 32, 1, 0.707, 1, 1, 0},
     0.9210423553163399,
     32,
     8,
     {1.0, 0.5623413324356079, 0.3162277638912201, 0.17782793939113617, 0.10000000149011612, 0.05623412877321243,
      0.027218176051974297, 0.012829016894102097, 0.005821428261697292, 0.0024903686717152596, 0.0009599771583452821,
      0.00029214590904302895, 2.499999936844688e-05, 1.4058532542549074e-05, 7.905694474175107e-06,
      4.445698323252145e-06}},
    {"yarn",
     150000,
     {32, 4096, 32, 1, 0, 0, 0, 0},
     1.3465735902799727,
     32,
     8,
     {1.0, 0.4747820496559143, 0.22541800141334534, 0.1070244237780571, 0.05081327259540558, 0.019334999844431877,
      0.006794959306716919, 0.002093792660161853, 0.0004564839182421565, 3.830881178146228e-05, 1.818833698052913e-05,
      8.635495760245249e-06, 4.099978468730114e-06, 1.9465962850517826e-06, 9.242089618055616e-07,
      4.38797854940276e-07}},
    {"yarn", 10000, {1, 4096, 32, 1, 0, 0, 1, 1.5}, 1.5, 8, 8, {1, 0.1, 0.01, 0.001}},
};

START_TEST(rope_frequencies)
{
    double args[8], inv[16], factor;
    memcpy(args, ropes[_i].args, sizeof args);
    mc_attr floats = {.kind = MC_ATTR_FLOATS};
    floats.as.floats.items = args;
    floats.as.floats.n = (size_t)ropes[_i].n_args;
    mc_func *f = mc_func_create(m, MC_STR("f"), (mc_span){0});
    const mc_dim dims[] = {mc_dim_sym(0), mc_dim_sym(1), mc_dim_const(2), mc_dim_const(64)};
    mc_value *q = mc_func_add_formal(f, mc_type_get(m, MOEC_F32, dims, 4), MC_STR("q"));
    const mc_named_attr attrs[] = {MC_A_FLOAT("theta", ropes[_i].theta),
                                   MC_A_INT("dims", ropes[_i].dims),
                                   MC_A_STR("scaling", mc_str_of(ropes[_i].scaling)),
                                   {"args", floats}};
    mc_builder b = mc_builder_at_end(f, &x.diags);
    mc_value *y = mc_build1(&b, MC_OP_ROPE, &q, 1, attrs, 4);
    ck_assert_msg(y, "%s", mc_ir_messages(&x).data);
    ck_assert_int_eq(mc_rope_dims(y->def), ropes[_i].dims);
    mc_rope_frequencies(y->def, inv, &factor);
    ck_assert_msg(fabs(factor - ropes[_i].factor) <= 1e-12, "factor %.17g", factor);
    for (int i = 0; i < ropes[_i].dims / 2; i++) {
        double want = ropes[_i].inv[i];
        ck_assert_msg(fabs(inv[i] - want) <= 1e-6 * want, "%d: %.9g, not %.9g", i, inv[i], want);
    }
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("rope");
    TCase *all = tcase_create("rope");
    tcase_add_checked_fixture(all, setup, teardown);
    tcase_add_loop_test(all, rope_frequencies, 0, (int)(sizeof ropes / sizeof ropes[0]));
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
