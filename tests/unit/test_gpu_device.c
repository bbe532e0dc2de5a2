/* Every file of tests/exec on the GPU that is there, through the runtime's own launcher, against the interpreter. In
 * the test suite the driver and NVRTC are the fake ones (tests/gpu/README.md) and a few files show that the program
 * itself works; tools/gpu_check.sh runs it on a device: all files, and 20 times over with equal bits.
 *
 *     MOEC_EXEC=moe_softmax,odd_      only files whose names begin so
 *     MOEC_REPEATS=20                 how often each runs */
#include "tests/support/golden.h"
#include "tests/unit/device_walk.h"
#include "tests/unit/exec_walk.h"

#include <stdio.h>

static mc_arena *files_arena;
static mc_paths files;

static void
again(walk *w, int variant)
{
    (void)w, (void)variant;
}

static exec_backend device = {.pipelines = {"@gpu", "@gpu-unfused"},
                              .open = walk_open_device,
                              .n_variants = 2,
                              .vary = again,
                              .varied = "repetition",
                              .narrows = true};

START_TEST(exec_file)
{
    exec_run_file(&device, files.items[_i / 2], device.pipelines[_i % 2]);
}
END_TEST

START_TEST(pieces)
{
    exec_check_pieces(&device, files.items[_i / 2], device.pipelines[_i % 2]);
}
END_TEST

static void
find_files(void)
{
    const char *wanted = getenv("MOEC_EXEC");
    files_arena = mc_arena_create();
    files = mc_golden_find(files_arena, "tests/exec", ".moir");
    size_t n = 0;
    for (size_t i = 0; i < files.n; i++)
        if (!wanted || exec_is_wanted(files.items[i], wanted)) files.items[n++] = files.items[i];
    files.n = n;
}

int
main(void)
{
    const char *repeats = getenv("MOEC_REPEATS");
    if (repeats && atoi(repeats) > 0) device.n_variants = atoi(repeats);
    find_files();
    Suite *s = suite_create("gpu_device");
    TCase *t = tcase_create("gpu_device");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, exec_file, 0, 2 * (int)files.n);
    tcase_add_loop_test(t, pieces, 0, 2 * (int)files.n);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    mc_arena_destroy(files_arena);
    return failed || !files.n ? EXIT_FAILURE : EXIT_SUCCESS;
}
