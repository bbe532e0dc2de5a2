/* The product for sm_90a (codegen/gpu/kernels/hopper.cuh), of which no GPU is needed to check what is not speed: which
 * block makes which tile, where every byte lies in shared memory, who waits for whom, and the results. The kernel's own
 * text runs on tests/gpu/hopper_machine.c. */
#define _GNU_SOURCE /* memmem */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/gpu/select.h"
#include "passes/pass.h"
#include "runtime/base/dtype.h"
#include "tests/gpu/hopper_forms.h"
#include "tests/support/exec_case.h"

enum { MAX_GROUPS = 512, GUARD = 7 };

static uint64_t seed;

static int
below(int n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int)((seed >> 33) % (uint64_t)n);
}

/* ---- tiles ---------------------------------------------------------------------------------------------------------
 */

enum { RANDOM, EMPTY, GIANT, SPARSE, N_KINDS };

static void
fill_offsets(int *offsets, int groups, int kind)
{
    int giant = below(groups);
    offsets[0] = 0;
    for (int g = 0; g < groups; g++) {
        int rows = below(300);
        if (kind == EMPTY) rows = 0;
        if (kind == GIANT) rows = g == giant ? 70000 : 0;
        if (kind == SPARSE) rows = below(5) ? 0 : 1 + below(3);
        offsets[g + 1] = offsets[g] + rows;
    }
}

static void
check_tiles(const int *offsets, int groups, int height, int columns)
{
    int expected = 0;
    for (int g = 0; g < groups; g++) expected += (offsets[g + 1] - offsets[g] + height - 1) / height * columns;
    int(*tiles)[3] = calloc((size_t)expected + 1, sizeof *tiles);
    ck_assert_int_eq(hopper_forms_tiles(offsets, groups, height, columns, tiles, expected), expected);
    /* A tile's place in the order of (group, row, column): each once. */
    int *first = calloc((size_t)groups + 1, sizeof *first);
    for (int g = 0; g < groups; g++)
        first[g + 1] = first[g] + (offsets[g + 1] - offsets[g] + height - 1) / height * columns;
    unsigned char *seen = calloc((size_t)expected + 1, 1);
    for (int i = 0; i < expected; i++) {
        int g = tiles[i][0];
        ck_assert_int_ge(g, 0);
        ck_assert_int_lt(g, groups);
        ck_assert_int_ge(tiles[i][1], 0);
        ck_assert_int_lt(tiles[i][1] * height, offsets[g + 1] - offsets[g]);
        ck_assert_int_ge(tiles[i][2], 0);
        ck_assert_int_lt(tiles[i][2], columns);
        int place = first[g] + tiles[i][1] * columns + tiles[i][2];
        ck_assert_int_eq(seen[place]++, 0);
    }
    free(seen);
    free(first);
    free(tiles);
}

START_TEST(test_every_tile_once)
{
    static const int groups[] = {1, 2, 31, 32, 33, 128, 512};
    static int offsets[MAX_GROUPS + 1];
    seed = 1;
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++)
        for (int kind = 0; kind < N_KINDS; kind++) {
            fill_offsets(offsets, groups[i], kind);
            check_tiles(offsets, groups[i], 128, 1 + below(20));
            check_tiles(offsets, groups[i], 64, 1 + below(3));
        }
}
END_TEST

/* ---- layouts -------------------------------------------------------------------------------------------------------
 */

/* The definition: the 16-byte chunk number of an address, within 128 bytes, is xored with the number of its 128 bytes,
 * modulo 8. */
START_TEST(test_swizzle)
{
    static unsigned char seen[128 * 128];
    for (unsigned row = 0; row < 128; row++)
        for (unsigned chunk = 0; chunk < 8; chunk++) {
            unsigned plain = row * 128 + chunk * 16, at = hopper_forms_brick_offset(row, chunk);
            ck_assert_uint_eq(at, (plain & ~0x70u) | (((plain >> 4 & 7) ^ (plain >> 7 & 7)) << 4));
            ck_assert_int_eq(seen[at]++, 0);
        }
}
END_TEST

/* 128 threads copy 8 chunks each: all of 128 rows x 8 chunks, each to its place. */
START_TEST(test_copies)
{
    static unsigned char seen[128][8];
    for (unsigned thread = 0; thread < 128; thread++)
        for (unsigned i = 0; i < 8; i++) {
            unsigned row = hopper_forms_copy_row(thread, i), chunk = hopper_forms_copy_chunk(thread);
            ck_assert_uint_lt(row, 128);
            ck_assert_uint_lt(chunk, 8);
            ck_assert_int_eq(seen[row][chunk]++, 0);
            ck_assert_uint_eq(hopper_forms_copy_offset(thread, i), hopper_forms_brick_offset(row, chunk));
        }
    /* Eight neighbours read 128 bytes of one row. */
    for (unsigned thread = 0; thread < 128; thread++)
        ck_assert_uint_eq(hopper_forms_copy_row(thread, 0), hopper_forms_copy_row(thread & ~7u, 0));
}
END_TEST

START_TEST(test_descriptor)
{
    for (unsigned address = 0; address < 227 << 10; address += 1024)
        for (unsigned part = 0; part < 4; part++) {
            unsigned long long d = hopper_forms_descriptor(address, part);
            ck_assert_uint_eq(d & 0x3FFF, (address + part * 32) >> 4);
            ck_assert_uint_eq(d >> 14 & 3, 0);
            ck_assert_uint_eq(d >> 16 & 0x3FFF, 1);
            ck_assert_uint_eq((d >> 32 & 0x3FFF) << 4, 1024);
            ck_assert_uint_eq(d >> 46, 1 << 16); /* bit 62: the 128-byte swizzle; no base offset */
        }
}
END_TEST

START_TEST(test_fragment)
{
    static unsigned char seen[64][256];
    for (unsigned thread = 0; thread < 128; thread++)
        for (unsigned i = 0; i < 128; i++) {
            unsigned row = hopper_forms_fragment_row(thread, i), column = hopper_forms_fragment_column(thread, i);
            ck_assert_uint_eq(row, thread / 32 * 16 + thread % 32 / 4 + (i % 4 >= 2 ? 8 : 0));
            ck_assert_uint_eq(column, i / 4 * 8 + thread % 4 * 2 + i % 2);
            ck_assert_int_eq(seen[row][column]++, 0);
        }
}
END_TEST

START_TEST(test_ring)
{
    for (unsigned n = 0; n < 40; n++) {
        unsigned stage, parity;
        hopper_forms_ring(n, &stage, &parity);
        ck_assert_uint_eq(stage, n % 4);
        ck_assert_uint_eq(parity, n / 4 % 2);
    }
}
END_TEST

/* ---- the whole kernel ----------------------------------------------------------------------------------------------
 */

typedef struct traits {
    moec_dtype x, y;
    bool experts, pair, gather, residual;
    int act; /* 0 silu, 1 relu2, 2 gelu_tanh */
} traits;

static const traits traits_of[N_FORMS] = {
    [FORM_UP] = {MOEC_BF16, MOEC_BF16, true, true, true, false, 0},
    [FORM_UP_F16] = {MOEC_F16, MOEC_F16, true, true, true, false, 1},
    [FORM_DOWN] = {MOEC_BF16, MOEC_F32, true, false, false, false, 0},
    [FORM_GATHER] = {MOEC_BF16, MOEC_BF16, true, false, true, false, 0},
    [FORM_LINEAR] = {MOEC_BF16, MOEC_F32, false, false, false, true, 0},
    [FORM_LINEAR_F16] = {MOEC_F16, MOEC_F16, false, false, false, false, 0},
    [FORM_GATED] = {MOEC_BF16, MOEC_BF16, false, true, false, false, 2},
};

typedef struct problem {
    enum hopper_form form;
    int groups, k, n, tokens;
    int offsets[MAX_GROUPS + 1];
    bool bias;
    /* made by problem_make */
    const traits *t;
    int rows; /* of y, with those after the last group */
    int *list;
    void *x, *w[2], *y;
    float *bias_of[2], *residual;
} problem;

static size_t
element(moec_dtype d)
{
    return d == MOEC_F32 ? 4 : 2;
}

static void *
random_array(moec_dtype d, size_t n)
{
    void *p = aligned_alloc(64, (n * element(d) + 64) / 64 * 64);
    for (size_t i = 0; i < n; i++) mc_store_elem(d, p, i, (below(2001) - 1000) / 1000.0);
    return p;
}

static void
problem_make(problem *p)
{
    const traits *t = p->t = &traits_of[p->form];
    p->rows = t->experts ? p->offsets[p->groups] + GUARD : p->tokens;
    int x_rows = t->gather ? p->tokens : p->rows;
    p->x = random_array(t->x, (size_t)x_rows * (size_t)p->k);
    if (t->experts && !t->gather) /* rows after the last group hold anything */
        memset((char *)p->x + (size_t)p->offsets[p->groups] * (size_t)p->k * 2, 0xFF, (size_t)(GUARD * p->k) * 2);
    for (int r = 1; t->gather && r < x_rows; r += 2) /* rows that nobody asks for are NaN */
        memset((char *)p->x + (size_t)r * (size_t)p->k * 2, 0xFF, (size_t)p->k * 2);
    for (int i = 0; i < 1 + t->pair; i++) {
        p->w[i] = random_array(t->x, (size_t)p->groups * (size_t)p->n * (size_t)p->k);
        p->bias_of[i] = p->bias ? random_array(MOEC_F32, (size_t)(p->groups * p->n)) : NULL;
    }
    p->residual = t->residual ? random_array(MOEC_F32, (size_t)p->rows * (size_t)p->n) : NULL;
    p->list = t->gather ? malloc((size_t)p->rows * sizeof *p->list) : NULL;
    for (int r = 0; t->gather && r < p->rows; r++) p->list[r] = r < p->rows - GUARD ? 2 * below(p->tokens / 2) : -12345;
    p->y = malloc((size_t)p->rows * (size_t)p->n * element(t->y));
}

static void
problem_free(problem *p)
{
    for (int i = 0; i < 1 + p->t->pair; i++) {
        free(p->w[i]);
        free(p->bias_of[i]);
    }
    free(p->x);
    free(p->y);
    free(p->list);
    free(p->residual);
}

static double
dot(const problem *p, int which, int g, int row, int column)
{
    double sum = 0;
    size_t x = (size_t)row * (size_t)p->k, w = ((size_t)g * (size_t)p->n + (size_t)column) * (size_t)p->k;
    for (int k = 0; k < p->k; k++)
        sum += mc_load_elem(p->t->x, p->x, x + (size_t)k) * mc_load_elem(p->t->x, p->w[which], w + (size_t)k);
    return sum + (p->bias ? (double)p->bias_of[which][g * p->n + column] : 0);
}

static double
act_of(int act, double x)
{
    if (act == 1) return x > 0 ? x * x : 0;
    if (act == 2) return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    return x / (1 + exp(-x));
}

static void
check_row(const problem *p, int g, int r)
{
    double tolerance = p->t->y == MOEC_F32 ? 1e-5 : p->t->y == MOEC_BF16 ? 1.0 / 240 : 1.0 / 1900;
    int from = p->list ? p->list[r] : r;
    for (int c = 0; c < p->n; c++) {
        double x = dot(p, 0, g, from, c);
        if (p->t->pair) x = act_of(p->t->act, x) * dot(p, 1, g, from, c);
        if (p->residual) x += (double)p->residual[r * p->n + c];
        double y = mc_load_elem(p->t->y, p->y, (size_t)r * (size_t)p->n + (size_t)c);
        ck_assert_msg(fabs(y - x) <= tolerance * (fabs(x) + 0.02 * sqrt(p->k)),
                      "form %d, row %d, column %d: %g, not %g", (int)p->form, r, c, y, x);
    }
}

static void
tensor(struct hopper_tensor *t, const void *base, int rank, int k, int rows, int groups)
{
    *t = (struct hopper_tensor){base, rank, {k, rows, groups}, {64, 64, 1}};
}

static void
launch(problem *p, int grid, unsigned number, int late)
{
    const traits *t = p->t;
    moec_gpu_args a = {.ptr = {p->y, p->x, p->w[0], p->w[1], p->bias_of[0], p->bias_of[1], NULL, NULL,
                               t->experts ? p->offsets : NULL, p->list, p->residual},
                       .i = {t->experts ? p->rows - GUARD : p->rows, p->k, p->n, p->groups, 1000, p->k, 0, p->n, 0,
                             p->k, (int64_t)p->n * p->k, 0, 0}};
    _Alignas(64) unsigned char maps[4][128] = {{0}};
    int n = 0;
    for (int i = 0; i < 1 + t->pair; i++) tensor((void *)maps[n++], p->w[i], 3, p->k, p->n, p->groups);
    if (!t->gather) tensor((void *)maps[n], p->x, 2, p->k, p->rows, 1);
    struct hopper_launch how = {grid, 384, number, late};
    memset(p->y, 0xEE, (size_t)p->rows * (size_t)p->n * element(t->y));
    ck_assert_msg(hopper_forms_run(p->form, &how, &a, maps), "form %d, grid %d, seed %u, late %d: %s", (int)p->form,
                  grid, number, late, hopper_machine_error());
}

/* The results of two orders of everything, which are the same bits. */
static void
run_problem(problem *p, int grid)
{
    long long before[3], after[3];
    problem_make(p);
    hopper_machine_counts(before);
    launch(p, grid, (unsigned)below(1 << 20), 0);
    for (int g = 0; g < p->groups; g++) {
        int from = p->t->experts ? p->offsets[g] : 0, end = p->t->experts ? p->offsets[g + 1] : p->rows;
        for (int r = from; r < end; r++) check_row(p, g, r);
    }
    size_t row = (size_t)p->n * element(p->t->y), n_bytes = (size_t)p->rows * row;
    for (size_t i = p->t->experts ? n_bytes - GUARD * row : n_bytes; i < n_bytes; i++)
        ck_assert_int_eq(((unsigned char *)p->y)[i], 0xEE);
    unsigned char *kept = malloc(n_bytes);
    memcpy(kept, p->y, n_bytes);
    launch(p, grid + 1, (unsigned)below(1 << 20), 1);
    ck_assert_mem_eq(kept, p->y, n_bytes);
    hopper_machine_counts(after);
    ck_assert_int_gt(after[0], before[0]); /* wgmma made it, not the portable kernel */
    free(kept);
    problem_free(p);
}

static problem
experts(enum hopper_form form, int k, int n, int groups, const int *rows)
{
    problem p = {.form = form, .groups = groups, .k = k, .n = n, .tokens = 37, .bias = below(2)};
    for (int g = 0; g < groups; g++) p.offsets[g + 1] = p.offsets[g] + rows[g];
    return p;
}

/* Empty experts, one row, just more and just less than one and two warpgroups' rows; k of one step, of less than a
 * step, of more than the ring; n that ends within a tile, within a brick. */
START_TEST(test_experts)
{
    static const int rows[][6] = {
        {0, 1, 63, 0, 64, 65}, {128, 0, 129, 0, 0, 1}, {0, 0, 0, 200, 0, 0}, {5, 5, 5, 5, 5, 5}};
    static const int sizes[][2] = {{64, 128}, {40, 72}, {200, 136}, {448, 8}, {72, 264}};
    seed = (uint64_t)_i + 5;
    enum hopper_form form = (enum hopper_form)(_i / 4);
    for (int s = _i % 4; s < 5; s += 4) {
        problem p = experts(form, sizes[s][0], sizes[s][1], 6, rows[(s + _i) % 4]);
        run_problem(&p, 1 + below(4));
    }
}
END_TEST

START_TEST(test_one_group)
{
    static const int sizes[][3] = {{130, 64, 128}, {9, 392, 264}, {257, 24, 72}, {64, 128, 512}};
    seed = (uint64_t)_i + 50;
    enum hopper_form form = (enum hopper_form)(FORM_LINEAR + _i / 4);
    problem p = {.form = form, .groups = 1, .k = sizes[_i % 4][1], .n = sizes[_i % 4][2], .bias = below(2)};
    p.tokens = sizes[_i % 4][0];
    run_problem(&p, 1 + below(2));
}
END_TEST

/* Many tiles of few steps: the ring goes round many times, and its phase falls on every stage. */
START_TEST(test_many_turns)
{
    int rows[40];
    seed = (uint64_t)_i + 90;
    for (int g = 0; g < 40; g++) rows[g] = below(3) ? below(9) : 0;
    rows[0] = 66;
    problem p = experts(_i % 2 ? FORM_DOWN : FORM_UP, 64 * (1 + _i % 3), 8 + 8 * below(3), 40, rows);
    run_problem(&p, 1 + _i % 3);
}
END_TEST

/* Less tiles than half of the grid: the portable kernel, by 256 of the 384 threads. */
START_TEST(test_portable)
{
    static const int rows[] = {3, 0, 2};
    seed = 7;
    long long before[3], after[3];
    problem p = experts(FORM_UP, 64, 72, 3, rows);
    problem_make(&p);
    hopper_machine_counts(before);
    launch(&p, 5, 3, 0);
    hopper_machine_counts(after);
    ck_assert_int_eq(after[0], before[0]);
    for (int g = 0; g < 3; g++)
        for (int r = p.offsets[g]; r < p.offsets[g + 1]; r++) check_row(&p, g, r);
    problem_free(&p);
}
END_TEST

/* The machine finds what it is for: 100 rows that are never asked for are waited for. */
START_TEST(test_machine_finds_waiting)
{
    static const int rows[] = {100};
    seed = 8;
    problem p = experts(FORM_DOWN, 64, 256, 1, rows);
    problem_make(&p);
    moec_gpu_args a = {.ptr = {p.y, p.x, p.w[0], NULL, NULL, NULL, NULL, NULL, p.offsets},
                       .i = {100, 64, 256, 1, 1000, 64, 0, 256, 0, 64, 256 * 64, 0, 0}};
    _Alignas(64) unsigned char maps[4][128] = {{0}};
    tensor((void *)maps[0], p.w[0], 3, 64, 256, 1);
    tensor((void *)maps[1], p.x, 2, 64, 100, 1);
    ((struct hopper_tensor *)(void *)maps[1])->box[1] = 32; /* half of the bytes that the barrier is told of */
    struct hopper_launch how = {1, 384, 1, 0};
    ck_assert(!hopper_forms_run(p.form, &how, &a, maps));
    ck_assert_str_eq(hopper_machine_error(), "block 0: the threads wait for each other");
    problem_free(&p);
}
END_TEST

/* ---- what the runtime is told ------------------------------------------------------------------------------------ */

static void
check_code(const mc_gpu_code *c)
{
    bool pair = memmem(c->call.data, c->call.len, "PAIR", 4) != NULL;
    ck_assert_uint_eq(c->threads, hopper_forms_threads());
    ck_assert_uint_eq(c->shared, hopper_forms_shared_bytes());
    ck_assert_uint_eq(c->per_sm, 1);
    ck_assert_uint_eq(c->blocks, 1); /* setmaxnreg needs the bound */
    ck_assert_uint_eq(c->n_maps, pair ? 3 : 2);
    for (uint32_t i = 0; i < c->n_maps; i++) {
        const moec_abi_tensor_map *m = &c->maps[i];
        bool is_x = i + 1 == c->n_maps;
        ck_assert_uint_eq(m->ptr, is_x ? 1 : 2 + i);
        ck_assert_uint_eq(m->rank, is_x ? 2 : 3);
        ck_assert_uint_eq(m->dtype, MOEC_BF16);
        ck_assert_uint_eq(m->swizzle, 128);
        ck_assert_uint_eq(m->dims[0], 1);            /* k */
        ck_assert_uint_eq(m->dims[1], is_x ? 0 : 2); /* rows; n */
        ck_assert_uint_eq(m->box[0], 64);
        ck_assert_uint_eq(m->box[1], 64);
        if (!is_x) ck_assert_uint_eq(m->dims[2], 3); /* groups */
        if (!is_x) ck_assert_uint_eq(m->box[2], 1);
    }
}

/* Which products of a text have this form, and what is said of it. */
START_TEST(test_description)
{
    mc_arena *arena = mc_arena_create();
    mc_diags diags;
    mc_diags_init(&diags, arena, NULL);
    mc_exec_case *c = mc_exec_load("tests/exec/odd_products.moir", arena, &diags);
    ck_assert_ptr_nonnull(c);
    mc_module_set_meta(c->module, MC_STR("precision.compute"), MC_STR("bf16"));
    mc_pass_options options = mc_pass_options_default();
    ck_assert(mc_run_pipeline(c->module, MC_STR("@gpu"), &options, &diags));
    mc_plan *p = MC_NEW(arena, mc_plan);
    ck_assert(mc_plan_build(p, arena, c->module, &mc_gpu_backend, &diags));
    int n = 0;
    for (size_t i = 0; i < p->kernels.n; i++) {
        const mc_gpu_kernel *k = p->kernels.items[i]->data;
        if (!k->special) continue;
        ck_assert_uint_eq(k->special_arch, 90);
        ck_assert_ptr_null(memmem(k->special->call.data, k->special->call.len, "f8", 2));
        check_code(k->special);
        n++;
    }
    ck_assert_int_gt(n, 0);
    mc_exec_close(c);
    mc_arena_destroy(arena);
}
END_TEST

static Suite *
schedule_suite(void)
{
    Suite *s = suite_create("gpu schedule");
    TCase *layout = tcase_create("layout");
    tcase_add_test(layout, test_every_tile_once);
    tcase_add_test(layout, test_swizzle);
    tcase_add_test(layout, test_copies);
    tcase_add_test(layout, test_descriptor);
    tcase_add_test(layout, test_fragment);
    tcase_add_test(layout, test_ring);
    tcase_add_test(layout, test_description);
    tcase_set_timeout(layout, 60);
    suite_add_tcase(s, layout);
    TCase *kernel = tcase_create("kernel");
    tcase_set_timeout(kernel, 60);
    tcase_add_loop_test(kernel, test_experts, 0, 16);
    tcase_add_loop_test(kernel, test_one_group, 0, 12);
    tcase_add_loop_test(kernel, test_many_turns, 0, 6);
    tcase_add_test(kernel, test_portable);
    tcase_add_test(kernel, test_machine_finds_waiting);
    suite_add_tcase(s, kernel);
    return s;
}

int
main(void)
{
    SRunner *r = srunner_create(schedule_suite());
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
