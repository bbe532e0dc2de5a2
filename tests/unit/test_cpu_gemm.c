/* The matrix kernels against a plain loop of fmaf, bit for bit: every kind, weight dtype and activation, sizes that do
 * not fit the tiles, any number of threads. Then what cannot be executed here: no spilled register in the loops. */
#define _POSIX_C_SOURCE 200809L
#include "codegen/cpu/gemm.h"
#include "codegen/cpu/llvm_emit.h"
#include "codegen/cpu/llvm_jit.h"
#include "runtime/base/dtype.h"
#include "tests/support/assembly.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- the module under test ------------------------------------------------------------------------------------ */

enum { N_KINDS = 5, N_WEIGHTS = 4 };
static const moec_dtype WEIGHTS[N_WEIGHTS] = {MOEC_F32, MOEC_BF16, MOEC_F16, MOEC_F8E4M3};

static mc_arena *arena, *problem_arena; /* the latter is emptied after each problem */
static mc_diags diags;
static mc_cpu_target target;
static mc_jit *jit;
static moec_kernel_fn *kernels[N_KINDS][N_WEIGHTS][MC_N_ACTS], *scalar_act[MC_N_ACTS];

/* y[0] = act(x[0]), in scalar form: the reference for the activations inside the kernels. */
static const char *
make_scalar_act(mc_kb *kb, mc_act act)
{
    const char *name = kb_kernel_begin(kb, mc_strf(arena, "act_%s", mc_act_name(act)).data);
    LLVMValueRef x = kb_load(kb, kb->f32, kb_arg_ptr(kb, 0), 4);
    kb_store(kb, kb_act(kb, act, x), kb_arg_ptr(kb, 1), 4);
    kb_kernel_end(kb);
    return name;
}

static void
fail_with_diagnostics(void)
{
    for (size_t i = 0; i < diags.list.n; i++) fprintf(stderr, "%.*s\n", MC_FMT(diags.list.items[i].text));
    ck_abort_msg("code generation failed");
}

static bool
spec_exists(mc_gemm_kind kind, mc_act act)
{
    return kind == MC_GEMM_GATED || kind == MC_GEMM_MOE_UP || act == MC_ACT_SILU;
}

static void
make_kernels(mc_kb *kb)
{
    for (int a = 0; a < MC_N_ACTS; a++) make_scalar_act(kb, (mc_act)a);
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int w = 0; w < N_WEIGHTS; w++)
            for (int a = 0; a < MC_N_ACTS; a++)
                if (spec_exists((mc_gemm_kind)kind, (mc_act)a))
                    mc_gemm_kernel(kb, &(mc_gemm_spec){(mc_gemm_kind)kind, WEIGHTS[w], (mc_act)a});
}

static moec_kernel_fn *
look_up(const char *name)
{
    uintptr_t address = mc_jit_symbol(jit, name, &diags);
    if (!address) fail_with_diagnostics();
    return (moec_kernel_fn *)address;
}

static uint32_t random_state;

static float
random_float(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return (float)((int32_t)(random_state >> 8) - (1 << 23)) / (float)(1 << 23);
}

/* Weights are drawn from a few hundred values that their dtype holds exactly: converting each would take longer than
 * the tests. */
enum { POOL = 512 };
static float pool_value[N_WEIGHTS][POOL];
static unsigned char pool_bits[N_WEIGHTS][POOL][4];

static void
make_pools(void)
{
    for (int w = 0; w < N_WEIGHTS; w++)
        for (int i = 0; i < POOL; i++) {
            mc_store_elem(WEIGHTS[w], pool_bits[w][i], 0, i ? random_float() : 0);
            pool_value[w][i] = (float)mc_load_elem(WEIGHTS[w], pool_bits[w][i], 0);
        }
}

static void
setup(void)
{
    arena = mc_arena_create();
    problem_arena = mc_arena_create();
    make_pools();
    mc_diags_init(&diags, arena, NULL);
    if (!mc_cpu_target_find("native", &diags, &target)) fail_with_diagnostics();
    mc_kb *kb = mc_kb_create(&target, "test", arena);
    make_kernels(kb);
    mc_buf object = {0};
    if (!mc_kb_emit(kb, MC_EMIT_OBJECT, &diags, &object)) fail_with_diagnostics();
    jit = mc_jit_load(object.data, object.len, &diags);
    if (!jit) fail_with_diagnostics();
    for (int a = 0; a < MC_N_ACTS; a++) scalar_act[a] = look_up(mc_strf(arena, "act_%s", mc_act_name((mc_act)a)).data);
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int w = 0; w < N_WEIGHTS; w++)
            for (int a = 0; a < MC_N_ACTS; a++)
                if (spec_exists((mc_gemm_kind)kind, (mc_act)a))
                    kernels[kind][w][a] =
                        look_up(mc_gemm_kernel(kb, &(mc_gemm_spec){(mc_gemm_kind)kind, WEIGHTS[w], (mc_act)a}));
    mc_buf_fini(&object);
    mc_kb_destroy(kb);
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
    mc_gemm_kind kind;
    int weight; /* index into WEIGHTS */
    mc_act act;
    int groups, rows, k, n, y_rows; /* rows: of x for dense kinds, of all groups else */
    bool bias, residual, gates, scale;
    int x_stride, y_stride;
    float *x, *bias1, *bias2, *scale1, *scale2, *gate, *old, *want, *y;
    float *w[2]; /* values as the dtype holds them, [groups][n][k] */
    unsigned char *packed, *scratch;
    int32_t *offsets, *tokens;
} problem;

static float *
random_array(size_t n)
{
    float *a = MC_NEW_N(problem_arena, float, n);
    for (size_t i = 0; i < n; i++) a[i] = random_float();
    return a;
}

static bool
is_pair(const problem *p)
{
    return p->kind == MC_GEMM_GATED || p->kind == MC_GEMM_MOE_UP;
}

static bool
is_dense(const problem *p)
{
    return p->kind == MC_GEMM_LINEAR || p->kind == MC_GEMM_GATED;
}

static int
blocks(int n)
{
    return (n + 127) / 128;
}

/* 64-byte aligned */
static void *
allocate(size_t n_bytes)
{
    return (void *)(((uintptr_t)mc_arena_alloc(problem_arena, n_bytes + 64) + 63) & ~(uintptr_t)63);
}

/* Draws the weights and lays them out as runtime/abi.h says. */
static void
pack(problem *p)
{
    size_t size = moec_dtype_bytes(WEIGHTS[p->weight]), k_size = (size_t)p->k, n_size = (size_t)p->n;
    size_t n_weights = (size_t)p->groups * n_size * k_size;
    int nr = target.nr, columns = is_pair(p) ? nr / 2 : nr, n_panels = (p->n + columns - 1) / columns;
    uint16_t *drawn[2];
    for (int m = 0; m < (is_pair(p) ? 2 : 1); m++) {
        p->w[m] = MC_NEW_N(problem_arena, float, n_weights);
        drawn[m] = MC_NEW_N(problem_arena, uint16_t, n_weights);
        for (size_t i = 0; i < n_weights; i++) {
            drawn[m][i] = (uint16_t)((random_float() + 1) * (POOL / 2 - 1));
            p->w[m][i] = pool_value[p->weight][drawn[m][i]];
        }
    }
    unsigned char *at = p->packed = allocate((size_t)p->groups * (size_t)n_panels * k_size * (size_t)nr * size);
    for (int g = 0; g < p->groups; g++)
        for (int panel = 0; panel < n_panels; panel++)
            for (size_t k = 0; k < k_size; k++)
                for (int c = 0; c < nr; c++, at += size) {
                    int column = panel * columns + c % columns;
                    if (column >= p->n) continue; /* stays zero */
                    size_t i = ((size_t)g * n_size + (size_t)column) * k_size + k;
                    memcpy(at, pool_bits[p->weight][drawn[c / columns][i]], size);
                }
}

static float
chain(const problem *p, const float *x, int m, int group, int column)
{
    const float *w = p->w[m] + ((size_t)group * (size_t)p->n + (size_t)column) * (size_t)p->k;
    float total = 0;
    if (!p->scale) {
        for (int k = 0; k < p->k; k++) total = fmaf(x[k], w[k], total);
        return total;
    }
    const float *scale = (m ? p->scale2 : p->scale1) +
                         ((size_t)group * (size_t)blocks(p->n) + (size_t)(column / 128)) * (size_t)blocks(p->k);
    for (int k0 = 0; k0 < p->k; k0 += 128) {
        float run = 0;
        for (int k = k0; k < p->k && k < k0 + 128; k++) run = fmaf(x[k], w[k], run);
        total = fmaf(run, scale[k0 / 128], total);
    }
    return total;
}

static float
apply_act(mc_act act, float x)
{
    float y;
    moec_kernel_args a = {.ptr = {&x, &y}};
    scalar_act[act](&a);
    return y;
}

static void
solve_row(const problem *p, int group, int row)
{
    int from = p->kind == MC_GEMM_MOE_UP ? p->tokens[row] : row;
    int to = p->kind == MC_GEMM_MOE_DOWN ? p->tokens[row] : row;
    const float *x = p->x + (size_t)from * (size_t)p->x_stride;
    for (int c = 0; c < p->n; c++) {
        float v = chain(p, x, 0, group, c), *y = p->want + (size_t)to * (size_t)p->y_stride + c;
        if (p->bias) v += p->bias1[group * p->n + c];
        if (is_pair(p)) {
            float up = chain(p, x, 1, group, c);
            if (p->bias) up += p->bias2[group * p->n + c];
            v = apply_act(p->act, v) * up;
        }
        if (p->kind == MC_GEMM_MOE_DOWN)
            *y = fmaf(p->gates ? p->gate[row] : 1.0f, v, *y);
        else
            *y = p->residual ? p->old[(size_t)row * (size_t)p->y_stride + (size_t)c] + v : v;
    }
}

static void
solve(problem *p)
{
    size_t n_y = (size_t)p->y_rows * (size_t)p->y_stride;
    p->want = MC_NEW_N(problem_arena, float, n_y);
    for (size_t i = 0; i < n_y; i++) p->want[i] = -777;
    if (p->kind == MC_GEMM_MOE_DOWN)
        for (int r = 0; r < p->y_rows; r++) memset(p->want + (size_t)r * (size_t)p->y_stride, 0, (size_t)p->n * 4);
    for (int g = 0; g < p->groups; g++) {
        int begin = is_dense(p) ? 0 : p->offsets[g], end = is_dense(p) ? p->rows : p->offsets[g + 1];
        for (int r = begin; r < end; r++) solve_row(p, g, r);
    }
}

/* Group sizes: 0, 1, 2, ... rows in an order without pattern, until `rows` are given out. */
static void
route(problem *p)
{
    p->offsets = MC_NEW_N(problem_arena, int32_t, p->groups + 1);
    p->tokens = MC_NEW_N(problem_arena, int32_t, p->rows);
    for (int g = 0, left = p->rows; g < p->groups; g++) {
        int take = g == p->groups - 1 ? left : (g * 5 + 3) % 9;
        if (take > left) take = left;
        p->offsets[g + 1] = p->offsets[g] + take;
        left -= take;
    }
    for (int r = 0; r < p->rows; r++) p->tokens[r] = (r * 7 + r / 3) % p->y_rows;
}

static void
make_problem(problem *p)
{
    random_state = 1;
    int x_rows = p->kind == MC_GEMM_MOE_UP ? p->y_rows : p->rows;
    p->x_stride = p->k + 3;
    p->y_stride = p->n + 2;
    p->x = random_array((size_t)x_rows * (size_t)p->x_stride);
    pack(p);
    p->bias1 = random_array((size_t)p->groups * (size_t)p->n);
    p->bias2 = random_array((size_t)p->groups * (size_t)p->n);
    size_t n_scales = (size_t)p->groups * (size_t)blocks(p->n) * (size_t)blocks(p->k);
    p->scale1 = random_array(n_scales);
    p->scale2 = random_array(n_scales);
    p->gate = random_array((size_t)p->rows);
    route(p);
    if (p->kind == MC_GEMM_MOE_UP) p->y_rows = p->rows;
    p->old = random_array((size_t)p->y_rows * (size_t)p->y_stride);
    p->y = MC_NEW_N(problem_arena, float, p->y_rows * p->y_stride);
    p->scratch = allocate(mc_gemm_scratch_bytes(&target, &(mc_gemm_spec){.weight = WEIGHTS[p->weight]}, p->k));
    solve(p);
}

static void
run_kernel(problem *p, int n_threads)
{
    moec_kernel_args a = {0};
    a.ptr[MC_GEMM_Y] = p->y;
    a.ptr[MC_GEMM_X] = p->x;
    a.ptr[MC_GEMM_W] = p->packed;
    a.ptr[MC_GEMM_BIAS] = p->bias ? p->bias1 : NULL;
    a.ptr[MC_GEMM_BIAS2] = p->bias ? p->bias2 : NULL;
    a.ptr[MC_GEMM_SCALE] = p->scale ? p->scale1 : NULL;
    a.ptr[MC_GEMM_SCALE2] = p->scale ? p->scale2 : NULL;
    a.ptr[MC_GEMM_OFFSETS] = p->offsets;
    a.ptr[MC_GEMM_TOKENS] = p->tokens;
    a.ptr[MC_GEMM_GATES] = p->gates ? p->gate : NULL;
    a.ptr[MC_GEMM_RESIDUAL] = p->residual ? p->old : NULL;
    a.i[MC_GEMM_ROWS] = is_dense(p) ? p->rows : p->groups;
    a.i[MC_GEMM_K] = p->k;
    a.i[MC_GEMM_N] = p->n;
    a.i[MC_GEMM_X_STRIDE] = p->x_stride;
    a.i[MC_GEMM_Y_STRIDE] = p->y_stride;
    a.i[MC_GEMM_RESIDUAL_STRIDE] = p->y_stride;
    a.i[MC_GEMM_Y_ROWS] = p->y_rows;
    a.scratch = p->scratch;
    a.n_threads = n_threads;
    for (size_t i = 0; i < (size_t)p->y_rows * (size_t)p->y_stride; i++) p->y[i] = -777;
    for (a.thread = n_threads - 1; a.thread >= 0; a.thread--) kernels[p->kind][p->weight][p->act](&a);
}

static void
check_problem(problem p)
{
    make_problem(&p);
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        run_kernel(&p, n_threads);
        for (size_t i = 0; i < (size_t)p.y_rows * (size_t)p.y_stride; i++) {
            uint32_t got, want;
            memcpy(&got, &p.y[i], 4);
            memcpy(&want, &p.want[i], 4);
            if (got == want) continue; /* an assertion for each element would take longer than the kernels */
            ck_abort_msg("kind %d weight %s act %s rows %d k %d n %d threads %d bias %d residual %d scale %d: row %zu "
                         "column %zu is %.9g, not %.9g",
                         p.kind, moec_dtype_name(WEIGHTS[p.weight]), mc_act_name(p.act), p.rows, p.k, p.n, n_threads,
                         p.bias, p.residual, p.scale, i / (size_t)p.y_stride, i % (size_t)p.y_stride, (double)p.y[i],
                         (double)p.want[i]);
        }
    }
    mc_arena_reset(problem_arena);
}

/* ---- tests ---------------------------------------------------------------------------------------------------- */

static const int KS[] = {1, 5, 20, 40, 129, 300}, NS[] = {1, 5, 16, 17, 28, 97, 260},
                 MS[] = {0, 1, 2, 3, 5, 6, 7, 13, 64};
#define LENGTH(a) (int)(sizeof(a) / sizeof(a)[0])

/* _i: kind * N_WEIGHTS + weight */
START_TEST(test_sizes)
{
    mc_gemm_kind kind = (mc_gemm_kind)(_i / N_WEIGHTS);
    int weight = _i % N_WEIGHTS, count = 0;
    bool dense = kind == MC_GEMM_LINEAR || kind == MC_GEMM_GATED;
    for (int k = 0; k < LENGTH(KS); k++)
        for (int n = 0; n < LENGTH(NS); n++)
            for (int m = 0; m < LENGTH(MS); m++, count++)
                check_problem((problem){.kind = kind,
                                        .weight = weight,
                                        .groups = dense ? 1 : 5,
                                        .rows = MS[m],
                                        .k = KS[k],
                                        .n = NS[n],
                                        .y_rows = dense || kind == MC_GEMM_GROUPED ? MS[m] : 11,
                                        .bias = count % 2,
                                        .gates = count % 3,
                                        .residual = kind == MC_GEMM_LINEAR && count / 2 % 2,
                                        .scale = WEIGHTS[weight] == MOEC_F8E4M3 && count % 5});
}
END_TEST

START_TEST(test_activations)
{
    for (int kind = MC_GEMM_GATED; kind <= MC_GEMM_MOE_UP; kind++)
        for (int weight = 0; weight < N_WEIGHTS; weight++)
            check_problem((problem){.kind = (mc_gemm_kind)kind,
                                    .weight = weight,
                                    .act = (mc_act)_i,
                                    .groups = kind == MC_GEMM_GATED ? 1 : 4,
                                    .rows = 19,
                                    .k = 70,
                                    .n = 53,
                                    .y_rows = 19,
                                    .bias = true});
}
END_TEST

/* Several blocks of panels and of rows. */
START_TEST(test_blocks)
{
    check_problem(
        (problem){.kind = MC_GEMM_LINEAR, .weight = _i, .groups = 1, .rows = 131, .k = 33, .n = 1100, .y_rows = 131});
    check_problem(
        (problem){.kind = MC_GEMM_MOE_DOWN, .weight = _i, .groups = 3, .rows = 150, .k = 33, .n = 600, .y_rows = 9});
}
END_TEST

/* ---- code that cannot be run here: look at its text -------------------------------------------------------------- */

/* _i: which target. The weights that are widened in registers, at full height. */
START_TEST(test_no_spills)
{
    static const char *const NAMES[] = {"x86-64-v3", "x86-64-v4", "aarch64"};
    static const moec_dtype DTYPES[] = {MOEC_F32, MOEC_BF16, MOEC_F16};
    mc_cpu_target t;
    ck_assert(mc_cpu_target_find(NAMES[_i], &diags, &t));
    mc_kb *kb = mc_kb_create(&t, "spills", arena);
    for (int w = 0; w < LENGTH(DTYPES); w++)
        mc_gemm_kernel(kb, &(mc_gemm_spec){MC_GEMM_LINEAR, DTYPES[w], MC_ACT_SILU});
    mc_buf text = {0};
    if (!mc_kb_emit(kb, MC_EMIT_ASSEMBLY, &diags, &text)) fail_with_diagnostics();
    for (int w = 0; w < LENGTH(DTYPES); w++)
        for (int rows = 1; rows <= t.mr; rows++) {
            const char *name = mc_strf(arena, "\ntile_%s_%dx1:", moec_dtype_name(DTYPES[w]), rows).data;
            int n = mc_spills_in_loops(text.data, name);
            ck_assert_msg(n == 0, "%s, %s: %d spills in the loop", t.name, name + 1, n);
        }
    mc_buf_fini(&text);
    mc_kb_destroy(kb);
}
END_TEST

START_TEST(test_same_bytes)
{
    mc_buf objects[2] = {{0}, {0}};
    for (int i = 0; i < 2; i++) {
        mc_kb *kb = mc_kb_create(&target, "same", arena);
        mc_gemm_kernel(kb, &(mc_gemm_spec){MC_GEMM_MOE_UP, MOEC_BF16, MC_ACT_GELU});
        if (!mc_kb_emit(kb, MC_EMIT_OBJECT, &diags, &objects[i])) fail_with_diagnostics();
        mc_kb_destroy(kb);
    }
    ck_assert_uint_eq(objects[0].len, objects[1].len);
    ck_assert(memcmp(objects[0].data, objects[1].data, objects[0].len) == 0);
    for (int i = 0; i < 2; i++) mc_buf_fini(&objects[i]);
}
END_TEST

START_TEST(test_unknown_target)
{
    mc_cpu_target t;
    ck_assert(!mc_cpu_target_find("pentium", &diags, &t));
    ck_assert_int_eq(diags.list.items[diags.list.n - 1].code, MC_E0602);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("cpu_gemm");
    TCase *tc = tcase_create("gemm");
    tcase_set_timeout(tc, 120);
    tcase_add_unchecked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, test_sizes, 0, N_KINDS * N_WEIGHTS);
    tcase_add_loop_test(tc, test_activations, 0, MC_N_ACTS);
    tcase_add_loop_test(tc, test_blocks, 0, N_WEIGHTS);
    tcase_add_loop_test(tc, test_no_spills, 0, 3);
    tcase_add_test(tc, test_same_bytes);
    tcase_add_test(tc, test_unknown_target);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
