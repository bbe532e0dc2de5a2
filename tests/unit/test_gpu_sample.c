/* Ids chosen by the kernels of kernels/sample.cuh, run without a GPU, are those of runtime/sample.c: for the same
 * logits and the same point of the distribution, at every temperature, ties and far outliers included. */
#define _DEFAULT_SOURCE /* setenv */
#include "codegen/gpu/sample.h"
#include "codegen/gpu/toolchain.h"
#include "runtime/base/cache_dir.h"
#include "runtime/sample.h"
#include "tests/gpu/emulate.h"
#include "tests/support/messages.h"
#include "tests/support/poisoned.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

enum { MOST = 5000, KERNELS = 3 };

typedef struct result { /* sample_result of sample.cuh */
    int32_t greatest;
    float logit;
    int32_t drawn;
} result;

static mc_arena *arena;
static mc_plan plan;
static emulate_kernel *kernels[KERNELS];

static void
setup(void)
{
    mc_diags diags;
    mc_fault fault;
    mc_buf cache = {0};
    arena = mc_arena_create();
    plan = (mc_plan){.arena = arena, .backward = UINT32_MAX};
    mc_map_init(&plan.kernel_names, arena);
    mc_diags_init(&diags, arena, NULL);
    mc_vec_push(arena, &plan.inputs, ((moec_abi_tensor){.dtype = MOEC_I32, .rank = 2}));
    moec_abi_tensor logits = {.dtype = MOEC_F32, .rank = 3};
    logits.dims[2] = (moec_abi_expr){.mul = MOST, .syms = {UINT8_MAX}};
    mc_vec_push(arena, &plan.outputs, logits);
    mc_gpu_add_sampling(&plan);
    ck_assert_uint_eq(plan.kernels.n, KERNELS);
    mc_gpu_source sources[KERNELS];
    mc_str cubins[KERNELS];
    for (int i = 0; i < KERNELS; i++) {
        const mc_plan_kernel *k = plan.kernels.items[i];
        sources[i] = (mc_gpu_source){.name = k->name.data, .text = mc_gpu_kernel_text(arena, k, 80), .arch = 80};
    }
    ck_assert_int_eq(mc_cache_directory(NULL, "fake-gpu", &cache, &fault), MOEC_OK);
    mc_gpu_toolchain t = {.cache = cache.data};
    ck_assert_msg(mc_gpu_toolchain_compile(&t, sources, KERNELS, arena, &diags, cubins), "%s",
                  mc_messages(&diags).data);
    mc_buf_fini(&cache);
    for (int i = 0; i < KERNELS; i++) {
        kernels[i] = emulate_load(cubins[i].data, sources[i].name);
        ck_assert_msg(kernels[i] != NULL, "%s", emulate_error());
    }
}

static void
teardown(void)
{
    for (int i = 0; i < KERNELS; i++) emulate_unload(kernels[i]);
    mc_arena_destroy(arena);
}

static result
run_kernels(const float *logits, int64_t n, const moec_sampling *sampling, double uniform)
{
    moec_gpu_args a = {.ptr = {(void *)(uintptr_t)logits},
                       .i = {n},
                       .f = {sampling->temperature, sampling->top_p, uniform},
                       .scratch = mc_poisoned(plan.scratches.items[0].mul + plan.scratches.items[0].add)};
    for (int i = 0; i < (sampling->temperature > 0 ? KERNELS : 1); i++) {
        const mc_gpu_code *code = mc_gpu_kernel_code(plan.kernels.items[i], 80);
        uint32_t blocks = code->grid[0].div ? (uint32_t)((n + code->grid[0].div - 1) / code->grid[0].div) : 1;
        emulate_launch launch = {.grid = {blocks, 1, 1}, .block = {code->threads, 1, 1}};
        void *params[] = {&a};
        ck_assert_msg(emulate_run(kernels[i], &launch, params), "%s", emulate_error());
    }
    result r = *(const result *)a.scratch;
    mc_poisoned_free(a.scratch);
    return r;
}

/* ---- logits ------------------------------------------------------------------------------------------------------ */

static uint64_t state = 1;

static double
next_uniform(void)
{
    return mc_sample_uniform(7, state++, 0);
}

enum { BELLS, TIES, ONE_OUTLIER, FLAT, N_KINDS };

static void
make_logits(float *x, int64_t n, int kind)
{
    for (int64_t i = 0; i < n; i++) {
        double bell = next_uniform() + next_uniform() + next_uniform() + next_uniform() - 2;
        x[i] = (float)(kind == TIES ? floor(bell * 3) : kind == FLAT ? 0.25 : bell * 5);
        if (kind == BELLS && i % 17 == 3) x[i] = -INFINITY;
    }
    if (kind == ONE_OUTLIER) x[n / 3] = 90;
}

/* Where a sum of two ids lies exactly at the point, and points that nothing precedes or that all precede. */
static double
pick_uniform(int draw)
{
    return draw == 0 ? 0 : draw == 1 ? 0x1.fffffffffffffp-1 : draw == 2 ? 0.5 : draw == 3 ? 0.25 : next_uniform();
}

START_TEST(same_ids)
{
    static const int64_t sizes[] = {1, 2, 31, 512, 513, 1024, MOST};
    static const double temperatures[] = {0, 0.05, 1, 30}, tops[] = {0, 0.3, 0.5, 0.9, 0.999999, 1};
    static float logits[MOST];
    static double scratch[2 * MOST];
    int64_t n = sizes[_i / N_KINDS];
    make_logits(logits, n, _i % N_KINDS);
    for (size_t t = 0; t < sizeof temperatures / sizeof *temperatures; t++) {
        for (size_t p = 0; p < sizeof tops / sizeof *tops; p++) {
            moec_sampling s = {.temperature = temperatures[t], .top_p = tops[p]};
            for (int draw = 0; draw < 6; draw++) {
                double uniform = pick_uniform(draw);
                int32_t want = -1;
                mc_fault fault;
                ck_assert_int_eq(mc_sample(logits, (size_t)n, &s, uniform, scratch, &want, &fault), MOEC_OK);
                result got = run_kernels(logits, n, &s, uniform);
                ck_assert(got.logit == logits[got.greatest]);
                ck_assert_msg(got.drawn == want,
                              "%lld logits of kind %d, temperature %g, top_p %g, point %a: %d, not %d", (long long)n,
                              _i % N_KINDS, s.temperature, s.top_p, uniform, got.drawn, want);
            }
        }
    }
}
END_TEST

START_TEST(troubles)
{
    float logits[1000];
    moec_sampling greedy = {0};
    make_logits(logits, 1000, BELLS);
    logits[700] = NAN;
    logits[800] = INFINITY;
    result r = run_kernels(logits, 1000, &greedy, 0);
    ck_assert(r.greatest == 700 && isnan(r.logit));
    logits[600] = INFINITY;
    r = run_kernels(logits, 1000, &greedy, 0);
    ck_assert(r.greatest == 600 && r.logit == INFINITY);
    for (int i = 0; i < 1000; i++) logits[i] = -INFINITY;
    ck_assert(run_kernels(logits, 1000, &greedy, 0).logit == -INFINITY);
}
END_TEST

int
main(void)
{
    setenv("MOEC_NVRTC", FAKE_NVRTC, 1);
    Suite *s = suite_create("gpu_sample");
    TCase *t = tcase_create("gpu_sample");
    tcase_set_timeout(t, 120);
    tcase_add_unchecked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, same_ids, 0, 7 * N_KINDS);
    tcase_add_test(t, troubles);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
