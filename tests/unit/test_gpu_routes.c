/* Which launches routing becomes: chains are one kernel each, and what cannot be part of one is not. */
#include "codegen/gpu/select.h"
#include "passes/pass.h"
#include "tests/support/exec_case.h"
#include "tests/support/messages.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

typedef struct planned {
    mc_arena *arena;
    mc_exec_case *c;
    mc_plan *p;
} planned;

static planned
plan(const char *path, const char *pipeline)
{
    planned t = {.arena = mc_arena_create()};
    mc_diags diags;
    mc_diags_init(&diags, t.arena, NULL);
    t.c = mc_exec_load(path, t.arena, &diags);
    ck_assert_msg(t.c != NULL, "%s", mc_messages(&diags).data);
    mc_pass_options options = mc_pass_options_default();
    bool good = mc_run_pipeline(t.c->module, mc_str_of(pipeline), &options, &diags);
    ck_assert_msg(good, "%s", mc_messages(&diags).data);
    t.p = MC_NEW(t.arena, mc_plan);
    good = mc_plan_build(t.p, t.arena, t.c->module, &mc_gpu_backend, &diags);
    ck_assert_msg(good, "%s", mc_messages(&diags).data);
    return t;
}

static void
done(planned *t)
{
    mc_exec_close(t->c);
    mc_arena_destroy(t->arena);
}

/* Launches of kernels whose names begin so. */
static int
count(const planned *t, const char *prefix)
{
    int n = 0;
    for (size_t i = 0; i < t->p->launches.n; i++) {
        const moec_abi_launch *l = &t->p->launches.items[i];
        n += l->kind == MOEC_LAUNCH_KERNEL && mc_str_starts(t->p->kernels.items[l->target]->name, prefix);
    }
    return n;
}

START_TEST(a_chain_is_one_launch)
{
    planned t = plan("tests/exec/odd_route_chain.moir", "@gpu");
    ck_assert_int_eq(count(&t, "route_"), 1);
    ck_assert_int_eq(count(&t, "dispatch_"), 3);
    ck_assert_int_eq(count(&t, "softmax"), 1);  /* of other rows */
    ck_assert_int_eq(count(&t, "combine_"), 1); /* dispatch leaves which rows a token has */
    done(&t);
}
END_TEST

START_TEST(models_route_in_one_launch)
{
    planned t = plan("tests/exec/moe_golden_e_selection_bias.moir", "@gpu");
    ck_assert_int_eq(count(&t, "route_"), 2); /* in the model, and in the route that it calls as well */
    ck_assert_int_eq(count(&t, "sigmoid"), 0);
    done(&t);
}
END_TEST

START_TEST(wide_rows_are_apart)
{
    planned t = plan("tests/exec/odd_route_wide.moir", "@gpu");
    ck_assert_int_eq(count(&t, "route_"), 2);
    done(&t);
}
END_TEST

START_TEST(rows_from_elsewhere_are_listed)
{
    planned t = plan("tests/exec/odd_dispatch_given.moir", "@gpu");
    ck_assert_int_eq(count(&t, "combine_list"), 3);
    done(&t);
}
END_TEST

/* Whatever leaves a chain has memory of its own while the chain reads what plan-memory put into the same slot. */
START_TEST(results_keep_off_operands)
{
    planned t = plan("tests/exec/odd_route_chain.moir", "@gpu");
    for (size_t i = 0; i < t.p->launches.n; i++) {
        const moec_abi_launch *l = &t.p->launches.items[i];
        if (l->kind != MOEC_LAUNCH_KERNEL || !mc_str_starts(t.p->kernels.items[l->target]->name, "route_")) continue;
        for (uint32_t a = 0; a < l->n_refs; a++)
            for (uint32_t b = 0; b < a; b++) {
                const moec_abi_ref *x = &t.p->refs.items[l->first_ref + a], *y = &t.p->refs.items[l->first_ref + b];
                ck_assert(x->place != MOEC_ABI_SLOT || y->place != MOEC_ABI_SLOT || x->index != y->index);
            }
    }
    done(&t);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("gpu_routes");
    TCase *t = tcase_create("gpu_routes");
    tcase_add_test(t, a_chain_is_one_launch);
    tcase_add_test(t, models_route_in_one_launch);
    tcase_add_test(t, wide_rows_are_apart);
    tcase_add_test(t, rows_from_elsewhere_are_listed);
    tcase_add_test(t, results_keep_off_operands);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
