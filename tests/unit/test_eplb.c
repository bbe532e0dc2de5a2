/* Placement of experts: the published example of DeepSeek's balancer, what must hold for any loads, and moving little
 * when loads drift. */
#include "passes/ep/eplb.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_EXPERTS = 256, MOST_SLOTS = 512 };

static mc_arena *arena;
static mc_fault error;
static uint64_t random_state;

static int32_t slots[2 * MOST_SLOTS], replica[2 * MOST_SLOTS], counts[2 * MOST_EXPERTS], first[2 * (MOST_EXPERTS + 1)],
    copies[2 * MOST_SLOTS];
static const mc_eplb_placement all = {slots, replica, counts, first, copies};

#define OK(expression) ck_assert_msg((expression) == MOEC_OK, "%s", error.text)

static void
setup(void)
{
    arena = mc_arena_create();
    random_state = 1;
}

static void
teardown(void)
{
    mc_arena_destroy(arena);
}

static uint32_t
next_random(uint32_t n)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(random_state >> 33) % n;
}

START_TEST(published_example)
{
    static const float loads[2][12] = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
                                       {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};
    static const int32_t expected[2][16] = {{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
                                            {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}};
    mc_eplb_shape shape = {12, 16, 4, 2, 8};
    OK(mc_eplb_place(arena, &shape, loads[0], 2, &all, &error));
    for (int i = 0; i < 32; i++) ck_assert_int_eq(slots[i], expected[i / 16][i % 16]);
    ck_assert_int_eq(counts[5], 2);
    ck_assert_int_eq(counts[2], 1);
    ck_assert_int_eq(first[6] - first[5], 2);
    ck_assert_int_eq(copies[first[5]], 0);
    ck_assert_int_eq(copies[first[5] + 1], 2);
}
END_TEST

/* ---- what holds always ------------------------------------------------------------------------------------------ */

typedef enum law { UNIFORM, ZIPF, FEW, EQUAL, NONE, N_LAWS } law;

static void
draw_loads(float *loads, int32_t n, law kind, double exponent)
{
    for (int32_t e = 0; e < n; e++) {
        loads[e] = (float)next_random(1000);
        if (kind == FEW) loads[e] = next_random(8) ? 0 : 1000;
        if (kind == EQUAL) loads[e] = 7;
        if (kind == NONE) loads[e] = 0;
        if (kind == ZIPF) loads[e] = (float)(1e6 / pow(e + 1, exponent));
    }
    for (int32_t e = n - 1; e > 0 && kind == ZIPF; e--) {
        int32_t o = (int32_t)next_random((uint32_t)e + 1);
        float x = loads[e];
        loads[e] = loads[o];
        loads[o] = x;
    }
}

static bool
draw_shape(mc_eplb_shape *shape)
{
    int32_t nodes = 1 << next_random(3), ranks = nodes * (1 + (int32_t)next_random(8));
    int32_t groups = 1 << next_random(4), experts = groups * (1 + (int32_t)next_random(24));
    int32_t per_rank = (experts + ranks - 1) / ranks + (int32_t)next_random(4);
    *shape = (mc_eplb_shape){experts, per_rank * ranks, groups, nodes, ranks};
    return experts <= MOST_EXPERTS && shape->n_slots <= MOST_SLOTS;
}

static void
check_tables(const mc_eplb_shape *shape)
{
    int32_t seen[MOST_EXPERTS] = {0};
    for (int32_t s = 0; s < shape->n_slots; s++) {
        ck_assert_int_ge(slots[s], 0);
        ck_assert_int_lt(slots[s], shape->n_experts);
        seen[slots[s]]++;
        ck_assert_int_eq(copies[first[slots[s]] + replica[s]], s);
    }
    for (int32_t e = 0; e < shape->n_experts; e++) {
        ck_assert_int_ge(seen[e], 1);
        ck_assert_int_eq(seen[e], counts[e]);
        ck_assert_int_eq(first[e + 1] - first[e], counts[e]);
    }
}

static void
check_groups(const mc_eplb_shape *shape)
{
    int32_t node_slots = shape->n_slots / shape->n_nodes, group = shape->n_experts / shape->n_groups;
    int32_t node_of[MOST_EXPERTS];
    memset(node_of, 0xFF, sizeof node_of);
    for (int32_t s = 0; s < shape->n_slots; s++) {
        int32_t *node = &node_of[slots[s] / group];
        if (*node < 0) *node = s / node_slots;
        ck_assert_int_eq(*node, s / node_slots);
    }
}

/* Copies on ranks that hold the expert already; none where ranks have more slots than there are experts. */
static int32_t
useless_copies(const mc_eplb_shape *shape)
{
    int32_t per_rank = shape->n_slots / shape->n_ranks, n = 0;
    if (per_rank > shape->n_experts / (mc_eplb_is_hierarchical(shape) ? shape->n_nodes : 1)) return 0;
    for (int32_t s = 0; s < shape->n_slots; s++)
        for (int32_t o = s / per_rank * per_rank; o < s; o++) n += slots[o] == slots[s];
    return n;
}

START_TEST(any_loads)
{
    int32_t checked = 0, useless = 0;
    for (int round = 0; round < 1000; round++) {
        mc_eplb_shape shape;
        if (!draw_shape(&shape)) continue;
        float loads[MOST_EXPERTS];
        draw_loads(loads, shape.n_experts, (law)next_random(N_LAWS), 0.5 + next_random(10) / 10.0);
        OK(mc_eplb_place(arena, &shape, loads, 1, &all, &error));
        check_tables(&shape);
        if (mc_eplb_is_hierarchical(&shape)) check_groups(&shape);
        useless += useless_copies(&shape);
        int32_t again[MOST_SLOTS];
        OK(mc_eplb_place(arena, &shape, loads, 1, &(mc_eplb_placement){.slots = again}, &error));
        ck_assert_mem_eq(again, slots, sizeof *slots * (size_t)shape.n_slots);
        checked++;
        mc_arena_reset(arena);
    }
    ck_assert_int_ge(checked, 500);
    ck_assert_msg(useless <= checked / 100, "%d copies on a rank that has the expert, in %d placements", useless,
                  checked);
}
END_TEST

/* Which copies there are, and greedy packing, said once more in the slowest way. */
static void
place_slowly(const mc_eplb_shape *shape, const float *loads, int32_t *out)
{
    int32_t count[MOST_EXPERTS], item[MOST_SLOTS], room = shape->n_slots / shape->n_ranks;
    bool done[MOST_SLOTS] = {false};
    float bin[MOST_SLOTS] = {0};
    int32_t in_bin[MOST_SLOTS] = {0};
    for (int32_t e = 0; e < shape->n_experts; e++) {
        count[e] = 1;
        item[e] = e;
    }
    for (int32_t s = shape->n_experts; s < shape->n_slots; s++) {
        int32_t best = 0;
        for (int32_t e = 1; e < shape->n_experts; e++)
            if (loads[e] / (float)count[e] > loads[best] / (float)count[best]) best = e;
        item[s] = best;
        count[best]++;
    }
    for (int32_t n = 0; n < shape->n_slots; n++) {
        int32_t heaviest = -1, lightest = -1;
        for (int32_t s = 0; s < shape->n_slots; s++)
            if (!done[s] && (heaviest < 0 || loads[item[s]] / (float)count[item[s]] >
                                                 loads[item[heaviest]] / (float)count[item[heaviest]]))
                heaviest = s;
        for (int32_t b = 0; b < shape->n_ranks; b++)
            if (in_bin[b] < room && (lightest < 0 || bin[b] < bin[lightest])) lightest = b;
        if (room == 1) lightest = heaviest;
        done[heaviest] = true;
        out[lightest * room + in_bin[lightest]++] = item[heaviest];
        bin[lightest] += loads[item[heaviest]] / (float)count[item[heaviest]];
    }
}

START_TEST(as_said_slowly)
{
    int32_t same = 0, checked = 0;
    for (int round = 0; round < 100; round++) {
        mc_eplb_shape shape;
        if (!draw_shape(&shape)) continue;
        shape.n_groups = shape.n_nodes = 1;
        float loads[MOST_EXPERTS];
        draw_loads(loads, shape.n_experts, (law)next_random(N_LAWS), 0.6);
        int32_t slow[MOST_SLOTS];
        place_slowly(&shape, loads, slow);
        OK(mc_eplb_place(arena, &shape, loads, 1, &all, &error));
        bool twice = false; /* only then slots are exchanged afterwards */
        int32_t room = shape.n_slots / shape.n_ranks;
        for (int32_t s = 0; s < shape.n_slots; s++)
            for (int32_t o = s / room * room; o < s; o++) twice |= slow[o] == slow[s];
        checked++;
        if (twice) continue;
        same++;
        ck_assert_mem_eq(slow, slots, sizeof *slots * (size_t)shape.n_slots);
        mc_arena_reset(arena);
    }
    ck_assert_int_ge(same, checked / 5);
}
END_TEST

/* What the design measured with its own rebuilding, 256 experts on 4 nodes of 8, 8 groups. */
START_TEST(balance_of_skewed_loads)
{
    static const struct {
        double exponent;
        int32_t redundant, groups;
        double at_least;
    } rows[] = {{0.5, 32, 8, 0.93}, {0.5, 32, 1, 0.99}, {1.0, 32, 8, 0.60}, {1.0, 32, 1, 0.98}, {1.0, 128, 1, 0.99}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mc_eplb_shape shape = {256, 256 + rows[i].redundant, rows[i].groups, 4, 32};
        double sum = 0;
        for (int round = 0; round < 10; round++) {
            float loads[MOST_EXPERTS];
            draw_loads(loads, 256, ZIPF, rows[i].exponent);
            OK(mc_eplb_place(arena, &shape, loads, 1, &all, &error));
            sum += mc_eplb_balance(&shape, loads, slots, counts);
        }
        ck_assert_msg(sum / 10 >= rows[i].at_least, "row %zu: %.3f", i, sum / 10);
    }
}
END_TEST

/* ---- drifting loads --------------------------------------------------------------------------------------------- */

static int64_t
moves_between(const int32_t *a, const int32_t *b, int32_t n)
{
    int64_t moves = 0;
    for (int32_t i = 0; i < n; i++) moves += a[i] != b[i];
    return moves;
}

static void
drift(int32_t groups, double redundant)
{
    mc_eplb_shape shape = {256, 256 + (int32_t)redundant, groups, 4, 32};
    int64_t anew = 0, adapted = 0;
    for (int round = 0; round < 20; round++) {
        float loads[MOST_EXPERTS];
        int32_t before[MOST_SLOTS], fresh[MOST_SLOTS];
        int64_t moves;
        draw_loads(loads, 256, round % 2 ? ZIPF : UNIFORM, 0.5);
        OK(mc_eplb_place(arena, &shape, loads, 1, &(mc_eplb_placement){.slots = before}, &error));
        for (int32_t e = 0; e < 256; e++) loads[e] *= 0.8f + 0.4f * (float)next_random(1000) / 1000;
        int32_t fresh_counts[MOST_EXPERTS];
        OK(mc_eplb_place(arena, &shape, loads, 1, &(mc_eplb_placement){.slots = fresh, .counts = fresh_counts},
                         &error));
        OK(mc_eplb_adapt(arena, &shape, loads, before, 0.01, 1, &all, &moves, &error));
        check_tables(&shape);
        if (groups > 1) check_groups(&shape);
        ck_assert_int_eq(moves, moves_between(before, slots, shape.n_slots));
        ck_assert_double_ge(mc_eplb_balance(&shape, loads, slots, counts),
                            0.99 * mc_eplb_balance(&shape, loads, fresh, fresh_counts));
        anew += moves_between(before, fresh, shape.n_slots);
        adapted += moves;
        mc_arena_reset(arena);
    }
    ck_assert_msg(adapted * 2 <= anew, "%lld moves instead of %lld", (long long)adapted, (long long)anew);
}

START_TEST(moves_little_globally)
{
    drift(1, 32);
}
END_TEST

START_TEST(moves_little_in_nodes)
{
    drift(8, 32);
}
END_TEST

START_TEST(equal_loads_move_nothing)
{
    mc_eplb_shape shape = {64, 72, 8, 2, 8};
    float loads[MOST_EXPERTS];
    int32_t before[MOST_SLOTS];
    int64_t moves;
    draw_loads(loads, 64, ZIPF, 0.7);
    OK(mc_eplb_place(arena, &shape, loads, 1, &(mc_eplb_placement){.slots = before}, &error));
    OK(mc_eplb_adapt(arena, &shape, loads, before, 0.01, 1, &all, &moves, &error));
    ck_assert_int_eq(moves, 0);
    ck_assert_mem_eq(before, slots, sizeof *slots * 72);
}
END_TEST

START_TEST(bad_previous)
{
    mc_eplb_shape shape = {4, 4, 1, 1, 2};
    int64_t moves;
    float loads[4] = {1, 2, 3, 4};
    ck_assert_int_eq(mc_eplb_adapt(arena, &shape, loads, (int32_t[]){0, 1, 2, 4}, 0.01, 1, &all, &moves, &error),
                     MOEC_ERR_ARGUMENT);
    OK(mc_eplb_adapt(arena, &shape, loads, (int32_t[]){0, 0, 0, 0}, 0.01, 1, &all, &moves, &error)); /* placed anew */
    check_tables(&shape);
}
END_TEST

/* ---- refusals --------------------------------------------------------------------------------------------------- */

static const struct {
    mc_eplb_shape shape;
    const char *says;
} bad_shapes[] = {
    {{0, 0, 1, 1, 1}, "each must be"},
    {{8, 4, 1, 1, 2}, "4 slots cannot hold 8 experts"},
    {{256, 260, 1, 1, 32}, "try 32 redundant"},
    {{8, 12, 1, 2, 3}, "3 ranks are not a multiple of 2 nodes"},
    {{9, 12, 4, 1, 3}, "9 experts are not a multiple of 4 groups"},
    {{8, 8, 0, 1, 1}, "each must be"},
};

START_TEST(refuses_shapes)
{
    float loads[MOST_EXPERTS] = {0};
    ck_assert_int_eq(mc_eplb_place(arena, &bad_shapes[_i].shape, loads, 1, &all, &error), MOEC_ERR_ARGUMENT);
    ck_assert_msg(strstr(error.text, bad_shapes[_i].says) != NULL, "%s", error.text);
}
END_TEST

START_TEST(refuses_loads)
{
    mc_eplb_shape shape = {2, 2, 1, 1, 2};
    float bad[] = {-1, NAN, INFINITY};
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(mc_eplb_place(arena, &shape, (float[]){1, bad[i]}, 1, &all, &error), MOEC_ERR_ARGUMENT);
    OK(mc_eplb_place(arena, &shape, (float[]){-0.0f, 1}, 1, &all, &error));
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("eplb");
    TCase *tc = tcase_create("eplb");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, published_example);
    tcase_add_test(tc, any_loads);
    tcase_add_test(tc, as_said_slowly);
    tcase_add_test(tc, balance_of_skewed_loads);
    tcase_add_test(tc, moves_little_globally);
    tcase_add_test(tc, moves_little_in_nodes);
    tcase_add_test(tc, equal_loads_move_nothing);
    tcase_add_test(tc, bad_previous);
    tcase_add_loop_test(tc, refuses_shapes, 0, sizeof bad_shapes / sizeof *bad_shapes);
    tcase_add_test(tc, refuses_loads);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
