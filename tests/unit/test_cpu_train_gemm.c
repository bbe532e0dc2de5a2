/* The matrix kernels of training against plain loops of fmaf, bit for bit: sizes that do not fit tiles and blocks,
 * gathered rows, empty and uneven groups, any number of threads. What no result may depend on is NaN: rows that no
 * group owns, results before they are written. */
#define _POSIX_C_SOURCE 200809L
#include "codegen/cpu/gemm.h"
#include "codegen/cpu/llvm_emit.h"
#include "codegen/cpu/llvm_jit.h"
#include "codegen/cpu/train_gemm.h"
#include "tests/support/assembly.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { N_KINDS = 3, SPARE_ROWS = 4 };

static mc_arena *arena, *problem_arena; /* the latter is emptied after each problem */
static mc_diags diags;
static mc_cpu_target target;
static mc_jit *jit;
static moec_kernel_fn *kernels[N_KINDS], *panels_linear;

static void
fail_with_diagnostics(void)
{
    for (size_t i = 0; i < diags.list.n; i++) fprintf(stderr, "%.*s\n", MC_FMT(diags.list.items[i].text));
    ck_abort_msg("code generation failed");
}

static moec_kernel_fn *
look_up(const char *name)
{
    uintptr_t address = mc_jit_symbol(jit, name, &diags);
    if (!address) fail_with_diagnostics();
    return (moec_kernel_fn *)address;
}

static void
setup(void)
{
    static const mc_gemm_spec PANELS = {MC_GEMM_LINEAR, MOEC_F32, MC_ACT_SILU};
    arena = mc_arena_create();
    problem_arena = mc_arena_create();
    mc_diags_init(&diags, arena, NULL);
    if (!mc_cpu_target_find("native", &diags, &target)) fail_with_diagnostics();
    mc_kb *kb = mc_kb_create(&target, "test", arena);
    for (int kind = 0; kind < N_KINDS; kind++) mc_train_kernel(kb, (mc_train_kind)kind);
    const char *panels = mc_gemm_kernel(kb, &PANELS);
    mc_buf object = {0};
    if (!mc_kb_emit(kb, MC_EMIT_OBJECT, &diags, &object)) fail_with_diagnostics();
    mc_kb_destroy(kb);
    jit = mc_jit_load(object.data, object.len, &diags);
    if (!jit) fail_with_diagnostics();
    for (int kind = 0; kind < N_KINDS; kind++) kernels[kind] = look_up(mc_train_kernel_name((mc_train_kind)kind));
    panels_linear = look_up(panels);
    mc_buf_fini(&object);
}

static void
teardown(void)
{
    mc_jit_destroy(jit);
    mc_arena_destroy(arena);
    mc_arena_destroy(problem_arena);
}

/* ---- problems and their plain solution -------------------------------------------------------------------------- */

typedef struct problem {
    mc_train_kind kind;
    bool grouped, as_it_lies, accumulate, bias, residual, gates, a_listed, b_listed, skewed;
    int groups, rows, width, n, tokens; /* rows: of all groups; tokens: rows of what lists name; 0: none listed */
    float *a, *b, *biases, *old, *gate, *want, *y;
    int32_t *offsets, *a_rows, *b_rows;
    size_t n_y;
    char *scratch;
} problem;

static uint32_t random_state;

static float
random_float(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return (float)((int32_t)(random_state >> 8) - (1 << 23)) / (float)(1 << 23);
}

static float *
random_array(size_t n)
{
    float *a = MC_NEW_N(problem_arena, float, n + 1);
    for (size_t i = 0; i < n; i++) a[i] = random_float();
    a[n] = NAN;
    return a;
}

static float *
nan_array(size_t n)
{
    float *a = MC_NEW_N(problem_arena, float, n + 1);
    for (size_t i = 0; i <= n; i++) a[i] = NAN;
    return a;
}

/* [rows][columns], and NaN in the rows past them. */
static float *
random_rows(int rows, int columns)
{
    size_t n = (size_t)rows * (size_t)columns;
    float *a = random_array(n + (size_t)(SPARE_ROWS * columns));
    for (size_t i = n; i < n + (size_t)(SPARE_ROWS * columns); i++) a[i] = NAN;
    return a;
}

/* Which row of `tokens` each row reads, without pattern; past the last row: far out. */
static int32_t *
make_list(const problem *p, int factor)
{
    int32_t *list = MC_NEW_N(problem_arena, int32_t, p->rows + SPARE_ROWS);
    for (int r = 0; r < p->rows; r++) list[r] = (r * factor + r / 3) % p->tokens;
    for (int r = p->rows; r < p->rows + SPARE_ROWS; r++) list[r] = 1 << 30;
    return list;
}

/* Group sizes: 0, 1, 2, ... rows without pattern; or almost all rows in the one before the last. */
static void
route(problem *p)
{
    p->offsets = MC_NEW_N(problem_arena, int32_t, p->groups + 1);
    for (int g = 0, left = p->rows; g < p->groups; g++) {
        int take = g == p->groups - 1 ? left : p->skewed ? (g == p->groups - 2 ? left - left / 8 : 0) : (g * 5 + 3) % 9;
        if (take > left) take = left;
        p->offsets[g + 1] = p->offsets[g] + take;
        left -= take;
    }
}

static float
chain(const problem *p, int g, int r, int c)
{
    const float *a = p->a + (size_t)(p->a_listed ? p->a_rows[r] : r) * (size_t)p->width;
    const float *w = p->b + (size_t)g * (size_t)p->n * (size_t)p->width;
    float sum = 0;
    for (int k = 0; k < p->width; k++) sum = fmaf(a[k], p->as_it_lies ? w[k * p->n + c] : w[c * p->width + k], sum);
    return p->bias ? sum + p->biases[g * p->n + c] : sum;
}

static void
solve_rows(problem *p, int g)
{
    for (int r = p->offsets[g]; r < p->offsets[g + 1]; r++)
        for (int c = 0; c < p->n; c++) {
            float v = chain(p, g, r, c);
            if (p->kind == MC_TRAIN_KIND_DOWN) {
                float *y = p->want + (size_t)p->a_rows[r] * (size_t)p->n + c;
                *y = fmaf(p->gates ? p->gate[r] : 1.0f, v, *y);
            } else {
                size_t at = (size_t)r * (size_t)p->n + (size_t)c;
                p->want[at] = p->residual ? p->old[at] + v : v;
            }
        }
}

static void
solve_dw(problem *p, int g)
{
    float *y = p->want + (size_t)g * (size_t)p->width * (size_t)p->n;
    for (int o = 0; o < p->width; o++)
        for (int i = 0; i < p->n; i++) {
            float sum = p->accumulate ? p->old[(size_t)(y - p->want) + (size_t)o * (size_t)p->n + (size_t)i] : 0;
            for (int r = p->offsets[g]; r < p->offsets[g + 1]; r++) {
                float x = p->b[(size_t)(p->b_listed ? p->b_rows[r] : r) * (size_t)p->n + (size_t)i];
                if (p->gates) x *= p->gate[r];
                sum = fmaf(p->a[(size_t)(p->a_listed ? p->a_rows[r] : r) * (size_t)p->width + (size_t)o], x, sum);
            }
            y[o * p->n + i] = sum;
        }
}

static void
make_problem(problem *p)
{
    random_state = 1;
    bool dw = p->kind == MC_TRAIN_KIND_DW, down = p->kind == MC_TRAIN_KIND_DOWN;
    size_t matrix = (size_t)p->groups * (size_t)p->width * (size_t)p->n;
    p->tokens = p->rows / 2 + 1;
    route(p);
    p->a_rows = make_list(p, 7);
    p->b_rows = make_list(p, 5);
    p->a = random_rows(p->a_listed && !down ? p->tokens : p->rows, p->width);
    p->b = dw ? random_rows(p->b_listed ? p->tokens : p->rows, p->n) : random_array(matrix);
    p->biases = random_array((size_t)p->groups * (size_t)p->n);
    p->gate = random_rows(p->rows, 1);
    p->n_y = dw ? matrix : (size_t)(down ? p->tokens : p->rows) * (size_t)p->n;
    p->old = random_array(p->n_y);
    p->want = nan_array(p->n_y);
    p->y = nan_array(p->n_y);
    p->scratch = mc_arena_alloc(problem_arena, mc_train_scratch_bytes(&target, p->kind) + 64);
    p->scratch = (char *)(((uintptr_t)p->scratch + 63) & ~(uintptr_t)63);
    if (down) memset(p->want, 0, p->n_y * sizeof(float));
    for (int g = 0; g < p->groups; g++) {
        if (dw)
            solve_dw(p, g);
        else
            solve_rows(p, g);
    }
}

static moec_kernel_args
arguments(const problem *p)
{
    moec_kernel_args a = {.scratch = p->scratch};
    bool down = p->kind == MC_TRAIN_KIND_DOWN;
    a.ptr[MC_TRAIN_Y] = p->y;
    a.ptr[MC_TRAIN_A] = p->a;
    a.ptr[MC_TRAIN_B] = p->b;
    a.ptr[MC_TRAIN_BIAS] = p->bias ? p->biases : NULL;
    a.ptr[MC_TRAIN_OFFSETS] = p->grouped ? p->offsets : NULL;
    a.ptr[MC_TRAIN_A_ROWS] = p->a_listed || down ? p->a_rows : NULL;
    a.ptr[MC_TRAIN_B_ROWS] = p->b_listed ? p->b_rows : NULL;
    a.ptr[MC_TRAIN_GATES] = p->gates ? p->gate : NULL;
    a.ptr[MC_TRAIN_RESIDUAL] = p->residual ? p->old : NULL;
    a.i[MC_TRAIN_GROUPS] = p->groups;
    a.i[MC_TRAIN_ROWS] = down ? p->tokens : p->rows;
    a.i[MC_TRAIN_WIDTH] = p->width;
    a.i[MC_TRAIN_N] = p->n;
    a.i[MC_TRAIN_AS_IT_LIES] = p->as_it_lies;
    a.i[MC_TRAIN_ACCUMULATE] = p->accumulate;
    return a;
}

static void
check_equal(const problem *p, int n_threads)
{
    for (size_t i = 0; i <= p->n_y; i++) {
        uint32_t got, want;
        memcpy(&got, &p->y[i], 4);
        memcpy(&want, &p->want[i], 4);
        if (got == want || (i == p->n_y && isnan(p->y[i]))) continue;
        ck_abort_msg("kind %d grouped %d lies %d acc %d bias %d residual %d gates %d lists %d %d skewed %d: rows %d "
                     "width %d n %d groups %d threads %d: element %zu is %.9g, not %.9g",
                     p->kind, p->grouped, p->as_it_lies, p->accumulate, p->bias, p->residual, p->gates, p->a_listed,
                     p->b_listed, p->skewed, p->rows, p->width, p->n, p->groups, n_threads, i, (double)p->y[i],
                     (double)p->want[i]);
    }
}

static void
check_problem(problem p)
{
    make_problem(&p);
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        moec_kernel_args a = arguments(&p);
        a.n_threads = n_threads;
        for (size_t i = 0; i < p.n_y; i++) p.y[i] = p.accumulate ? p.old[i] : NAN;
        for (a.thread = n_threads - 1; a.thread >= 0; a.thread--) {
            memset(p.scratch, 0xFF, mc_train_scratch_bytes(&target, p.kind)); /* NaN */
            kernels[p.kind](&a);
        }
        check_equal(&p, n_threads);
    }
    mc_arena_reset(problem_arena);
}

/* ---- tests ---------------------------------------------------------------------------------------------------- */

static const int WIDTHS[] = {1, 5, 8, 13, 47, 300}, NS[] = {1, 7, 16, 33, 100, 290},
                 ROWS[] = {0, 1, 2, 5, 6, 7, 19, 64, 101};
#define LENGTH(a) (int)(sizeof(a) / sizeof(a)[0])

/* Every size with ever other operands; _i: kind, and whether there are groups. */
START_TEST(test_sizes)
{
    mc_train_kind kind = (mc_train_kind)(_i / 2);
    bool grouped = _i % 2, down = kind == MC_TRAIN_KIND_DOWN, dw = kind == MC_TRAIN_KIND_DW, up = !down && !dw;
    int count = 0;
    for (int w = 0; w < LENGTH(WIDTHS); w++)
        for (int n = 0; n < LENGTH(NS); n++)
            for (int r = 0; r < LENGTH(ROWS); r++, count++)
                check_problem((problem){.kind = kind,
                                        .grouped = grouped || down,
                                        .groups = grouped ? 5 : 1,
                                        .rows = ROWS[r],
                                        .width = WIDTHS[w],
                                        .n = NS[n],
                                        .as_it_lies = up && count % 3 == 0,
                                        .accumulate = dw && count % 2,
                                        .bias = !dw && count % 4 < 2,
                                        .residual = up && count % 5 < 2,
                                        .gates = !up && grouped && count % 3,
                                        .a_listed = !down && grouped && count % 7 < 3,
                                        .b_listed = dw && grouped && count % 5 < 2,
                                        .skewed = count % 11 < 4});
}
END_TEST

/* Several blocks of k, of columns and of rows. */
START_TEST(test_blocks)
{
    bool dw = _i == MC_TRAIN_KIND_DW;
    for (int other = 0; other < 2; other++) {
        check_problem((problem){.kind = (mc_train_kind)_i,
                                .grouped = true,
                                .groups = 3,
                                .rows = dw ? 700 : 640,
                                .width = dw ? 130 : 600,
                                .n = dw ? 610 : 40,
                                .skewed = true,
                                .gates = true,
                                .bias = !dw,
                                .as_it_lies = other && _i == MC_TRAIN_KIND_ROWS,
                                .accumulate = dw && other});
        check_problem((problem){.kind = (mc_train_kind)_i,
                                .grouped = true,
                                .groups = 2,
                                .rows = 30,
                                .width = dw ? 300 : 70,
                                .n = 1000,
                                .as_it_lies = other && _i == MC_TRAIN_KIND_ROWS,
                                .accumulate = dw && other});
    }
}
END_TEST

/* Twice into the same buffer is the chain over both; no buffer is no work. */
START_TEST(test_gradient)
{
    problem p = {.kind = MC_TRAIN_KIND_DW, .grouped = true, .groups = 4, .rows = 40, .width = 21, .n = 37};
    p.accumulate = true;
    make_problem(&p);
    moec_kernel_args a = arguments(&p);
    a.n_threads = 1;
    memcpy(p.y, p.old, p.n_y * sizeof(float));
    kernels[p.kind](&a);
    kernels[p.kind](&a);
    memcpy(p.old, p.want, p.n_y * sizeof(float));
    for (int g = 0; g < p.groups; g++) solve_dw(&p, g);
    check_equal(&p, 1);
    a.ptr[MC_TRAIN_Y] = NULL;
    a.ptr[MC_TRAIN_A] = a.ptr[MC_TRAIN_B] = a.scratch = NULL;
    kernels[p.kind](&a);
    mc_arena_reset(problem_arena);
}
END_TEST

/* The numbers of training are those of inference. */
START_TEST(test_as_panels)
{
    problem p = {.kind = MC_TRAIN_KIND_ROWS, .groups = 1, .rows = 50, .width = 333, .n = 90, .bias = true};
    p.residual = true;
    make_problem(&p);
    int n_panels = (p.n + target.nr - 1) / target.nr;
    float *panels = MC_NEW_N(problem_arena, float, n_panels *target.nr *p.width), *theirs = nan_array(p.n_y);
    for (int c = 0; c < p.n; c++)
        for (int k = 0; k < p.width; k++)
            panels[(c / target.nr * p.width + k) * target.nr + c % target.nr] = p.b[c * p.width + k];
    moec_kernel_args a = arguments(&p), t = {0};
    a.n_threads = t.n_threads = 1;
    kernels[p.kind](&a);
    t.ptr[MC_GEMM_Y] = theirs;
    t.ptr[MC_GEMM_X] = p.a;
    t.ptr[MC_GEMM_W] = panels;
    t.ptr[MC_GEMM_BIAS] = p.biases;
    t.ptr[MC_GEMM_RESIDUAL] = p.old;
    t.i[MC_GEMM_ROWS] = p.rows;
    t.i[MC_GEMM_K] = t.i[MC_GEMM_X_STRIDE] = p.width;
    t.i[MC_GEMM_N] = t.i[MC_GEMM_Y_STRIDE] = t.i[MC_GEMM_RESIDUAL_STRIDE] = p.n;
    panels_linear(&t);
    ck_assert(memcmp(p.y, theirs, p.n_y * sizeof(float)) == 0);
    check_equal(&p, 1);
    mc_arena_reset(problem_arena);
}
END_TEST

/* ---- code that cannot be run here: look at its text -------------------------------------------------------------- */

/* _i: which target. */
START_TEST(test_no_spills)
{
    static const char *const NAMES[] = {"x86-64-v3", "x86-64-v4", "aarch64"};
    mc_cpu_target t;
    ck_assert(mc_cpu_target_find(NAMES[_i], &diags, &t));
    mc_kb *kb = mc_kb_create(&t, "spills", arena);
    for (int kind = 0; kind < N_KINDS; kind++) mc_train_kernel(kb, (mc_train_kind)kind);
    mc_buf text = {0};
    if (!mc_kb_emit(kb, MC_EMIT_ASSEMBLY, &diags, &text)) fail_with_diagnostics();
    for (int rows = 1; rows <= t.mr + 1; rows++) {
        const char *form = rows > t.mr ? "panel" : "";
        const char *name = mc_strf(arena, "\ntrain_tile_%s%d:", form, rows > t.mr ? t.mr : rows).data;
        int n = mc_spills_in_loops(text.data, name);
        ck_assert_msg(n == 0, "%s, %s: %d spills in the loop", t.name, name + 1, n);
    }
    mc_buf_fini(&text);
    mc_kb_destroy(kb);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("cpu_train_gemm");
    TCase *tc = tcase_create("train_gemm");
    tcase_set_timeout(tc, 120);
    tcase_add_unchecked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, test_sizes, 0, N_KINDS * 2);
    tcase_add_loop_test(tc, test_blocks, 0, N_KINDS);
    tcase_add_test(tc, test_gradient);
    tcase_add_test(tc, test_as_panels);
    tcase_add_loop_test(tc, test_no_spills, 0, 3);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
