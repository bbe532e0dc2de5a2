/* Generated modules on the CPU backend: through the fused and the unfused pipeline, what the kernels compute is what
 * the interpreter computes; with more threads, and cut into steps, it is the same bits. */
#include "passes/pass.h"
#include "tests/support/close.h"
#include "tests/support/gen_module.h"
#include "tests/unit/cpu_walk.h"

#include "ir/print.h"

#include <stdio.h>

enum { N_SEEDS = 8, N_BLOCKS = 6, MAX_OUTPUTS = 2, N_RUNS = 3 };
static const int64_t lengths[N_RUNS] = {5, 1, 2};

typedef struct rig {
    mc_arena *arena;
    mc_diags diags;
    mc_synthetic synthetic;
    mc_module *module;
    mc_ref_tensor inputs[N_RUNS][MC_GEN_INPUTS], want[N_RUNS][MAX_OUTPUTS];
    int n_outputs;
} rig;

static void
show(const rig *r, int seed)
{
    mc_buf text = {0};
    mc_module_print(r->module, &text);
    fprintf(stderr, "# seed %d\n%s\n", seed, text.data);
    mc_buf_fini(&text);
}

static void
interpret(rig *r)
{
    mc_ref_options options = {.precision = MC_REF_F32, .weight = mc_ref_synthetic_weight, .weight_user = &r->synthetic};
    mc_ref *ref = mc_ref_create(r->module, &options, &r->diags);
    if (!ref) walk_fail(&r->diags);
    mc_ref_state *state = mc_ref_state_create();
    for (int i = 0; i < N_RUNS; i++)
        if (!mc_ref_run(ref, state, r->inputs[i], MC_GEN_INPUTS, r->arena, r->want[i], r->n_outputs))
            walk_fail(&r->diags);
    mc_ref_state_destroy(state);
    mc_ref_destroy(ref);
}

static void
rig_open(rig *r, uint64_t seed, const char *pipeline, walk *w)
{
    *r = (rig){.arena = mc_arena_create()};
    mc_diags_init(&r->diags, r->arena, NULL);
    mc_synthetic_init(&r->synthetic, r->arena, seed);
    r->synthetic.bf16_grid = true; /* vectors are widened in the plan */
    mc_gen_options drawn = {.seed = seed, .n_blocks = N_BLOCKS, .continuous = true};
    r->module = mc_gen_module(&drawn, &r->diags);
    if (!r->module) walk_fail(&r->diags);
    r->n_outputs = mc_module_model(r->module)->last->n_operands;
    for (int i = 0; i < N_RUNS; i++)
        mc_gen_inputs(r->module, seed * 10 + (uint64_t)i, 2, lengths[i], r->arena, r->inputs[i]);
    interpret(r);
    mc_cpu_target target;
    ck_assert(mc_cpu_target_find("native", &r->diags, &target));
    mc_pass_setting nr = {MC_STR_INIT("nr"), target.nr};
    mc_pass_options options = mc_pass_options_default();
    options.settings = &nr;
    options.n_settings = 1;
    if (!mc_run_pipeline(r->module, mc_str_of(pipeline), &options, &r->diags)) walk_fail(&r->diags);
    walk_open(w, r->module, (walk_source){mc_ref_synthetic_weight, &r->synthetic}, &r->diags);
    w->cache_cap = 16;
    for (int i = 0; i < MC_MAX_SYMS; i++) w->syms[i] = -1;
}

START_TEST(kernels_agree_with_the_interpreter)
{
    static const int threads[] = {1, 3};
    mc_ref_tensor first[N_RUNS][MAX_OUTPUTS], got[MAX_OUTPUTS];
    int seed = _i / 2;
    walk w;
    rig r;
    rig_open(&r, (uint64_t)seed, _i % 2 ? "@unfused" : "@default", &w);
    for (int n = 0; n < 2; n++) {
        w.n_threads = threads[n];
        walk_forget(&w);
        for (int i = 0; i < N_RUNS; i++) {
            walk_run(&w, r.inputs[i], r.arena, n ? got : first[i]);
            for (int j = 0; j < r.n_outputs; j++) {
                mc_close_report c = n ? mc_close_exact(MC_ARRAY(got[j]), MC_ARRAY(first[i][j]))
                                      : mc_close(MC_ARRAY(first[i][j]), MC_ARRAY(r.want[i][j]), MC_TOL_MODEL);
                if (!c.ok) show(&r, seed);
                ck_assert_msg(c.ok, "seed %d, run %d, %d threads: %s", seed, i, threads[n], c.text);
            }
        }
    }
    walk_close(&w);
    mc_module_destroy(r.module);
    mc_arena_destroy(r.arena);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("cpu_gen");
    TCase *t = tcase_create("cpu_gen");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, kernels_agree_with_the_interpreter, 0, 2 * N_SEEDS);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
