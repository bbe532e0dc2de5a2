/* The CPU backend against the interpreter: every file of tests/exec, through the fused and the unfused pipeline, with
 * 1, 2, 3 and 7 threads, whose results must be equal bit for bit; and in pieces, which must give the bits of the whole.
 */
#include "codegen/cpu/cpu.h"
#include "tests/support/golden.h"
#include "tests/unit/cpu_walk.h"
#include "tests/unit/exec_walk.h"

#include <stdio.h>

#define EXEC_DIR "tests/exec"

static mc_arena *files_arena;
static mc_paths files;
static exec_backend cpu;

static void
vary(walk *w, int variant)
{
    static const int threads[] = {1, 2, 3, 7};
    w->n_threads = threads[variant];
}

static void
describe_backend(void)
{
    mc_diags diags;
    mc_cpu_target target;
    mc_diags_init(&diags, files_arena, NULL);
    if (!mc_cpu_target_find("native", &diags, &target)) walk_fail(&diags);
    cpu = (exec_backend){.pipelines = {"@default", "@unfused"},
                         .setting = {MC_STR_INIT("nr"), target.nr},
                         .open = walk_open,
                         .n_variants = 4,
                         .vary = vary,
                         .varied = "number of threads",
                         .same_in_pieces = true};
}

START_TEST(exec_file)
{
    exec_run_file(&cpu, files.items[_i / 2], cpu.pipelines[_i % 2]);
}
END_TEST

START_TEST(pieces)
{
    exec_check_pieces(&cpu, files.items[_i / 2], cpu.pipelines[_i % 2]);
}
END_TEST

/* The same code again, in other portions: sanitizers have seen it by then. */
#ifdef __SANITIZE_ADDRESS__
enum { PIECES = 0 };
#else
enum { PIECES = 2 };
#endif

/* All but narrow_*: activations are f32 here. */
static void
find_files(void)
{
    size_t n = 0;
    files_arena = mc_arena_create();
    files = mc_golden_find(files_arena, EXEC_DIR, ".moir");
    for (size_t i = 0; i < files.n; i++)
        if (!mc_str_starts(mc_str_of(files.items[i]), EXEC_DIR "/narrow_")) files.items[n++] = files.items[i];
    files.n = n;
}

int
main(void)
{
    find_files();
    describe_backend();
    Suite *s = suite_create("cpu_ops");
    TCase *t = tcase_create("cpu_ops");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, exec_file, 0, 2 * (int)files.n);
    tcase_add_loop_test(t, pieces, 0, PIECES * (int)files.n);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    mc_arena_destroy(files_arena);
    return failed || !files.n ? EXIT_FAILURE : EXIT_SUCCESS;
}
