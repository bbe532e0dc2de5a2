/* The GPU backend against the interpreter, without a GPU: every file of tests/exec, through the fused (sanitized
 * builds) or the unfused pipeline (others; MOEC_PIPELINE=@gpu), its kernels as host code thread by thread
 * (tests/gpu/README.md). The threads of a block run in several orders, which must not change a bit; in pieces the
 * results stay nearly the same.
 *
 * MOEC_EXEC=moe_softmax,odd_ runs the files whose names begin with one of these. */
#define _DEFAULT_SOURCE /* setenv */
#include "tests/support/golden.h"
#include "tests/unit/exec_walk.h"
#include "tests/unit/gpu_walk.h"

#include <stdio.h>

#define EXEC_DIR "tests/exec"

static mc_arena *files_arena;
static mc_paths files;

static void
vary(walk *w, int variant)
{
    w->order = (uint32_t)variant;
}

static const exec_backend gpu = {.pipelines = {"@gpu", "@gpu-unfused"},
                                 .open = walk_open_gpu,
                                 .n_variants = 3,
                                 .vary = vary,
                                 .varied = "order of threads",
                                 .narrows = true};

/* Kernels take long to compile, sanitized ones longer: each build runs one pipeline, and together they run both. */
#ifdef __SANITIZE_ADDRESS__
#define PIPELINE "@gpu"
enum { HAS_PIECES = 0 };
#else
#define PIPELINE "@gpu-unfused"
enum { HAS_PIECES = 1 };
#endif

static const char *pipeline = PIPELINE; /* or $MOEC_PIPELINE */

START_TEST(exec_file)
{
    exec_run_file(&gpu, files.items[_i], pipeline);
}
END_TEST

START_TEST(pieces)
{
    exec_check_pieces(&gpu, files.items[_i], pipeline);
}
END_TEST

/* A plan whose weights lie as the CPU's kernels want them. */
#define PANELS "tests/exec/plan_packed.moir"

START_TEST(panels_are_refused)
{
    mc_arena *arena = mc_arena_create();
    mc_diags diags;
    mc_diags_init(&diags, arena, NULL);
    mc_exec_case *c = exec_load(&gpu, PANELS, gpu.pipelines[0], arena, &diags);
    mc_gpu_options options = {.name = MC_STR("test-model")};
    mc_gpu_result result;
    ck_assert(mc_gpu_archs_read("sm_80", &diags, &options));
    ck_assert(!mc_gpu_compile(c->module, &options, &diags, &result));
    ck_assert_msg(strstr(mc_errors(&diags).data, "E0701") != NULL, "%s", mc_errors(&diags).data);
    mc_exec_close(c);
    mc_arena_destroy(arena);
}
END_TEST

static void
find_files(void)
{
    const char *wanted = getenv("MOEC_EXEC");
    files_arena = mc_arena_create();
    files = mc_golden_find(files_arena, EXEC_DIR, ".moir");
    size_t n = 0;
    for (size_t i = 0; i < files.n; i++)
        if (strcmp(files.items[i], PANELS) != 0 && (!wanted || exec_is_wanted(files.items[i], wanted)))
            files.items[n++] = files.items[i];
    files.n = n;
}

int
main(void)
{
    setenv("MOEC_NVRTC", FAKE_NVRTC, 1);
    if (getenv("MOEC_PIPELINE")) pipeline = getenv("MOEC_PIPELINE");
    find_files();
    Suite *s = suite_create("gpu_ops");
    TCase *t = tcase_create("gpu_ops");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, panels_are_refused);
    tcase_add_loop_test(t, exec_file, 0, (int)files.n);
    tcase_add_loop_test(t, pieces, 0, HAS_PIECES * (int)files.n);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    mc_arena_destroy(files_arena);
    return failed || !files.n ? EXIT_FAILURE : EXIT_SUCCESS;
}
