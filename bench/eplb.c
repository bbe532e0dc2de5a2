/* How long the placement of experts takes, on one core: 58 layers of 256 experts and 32 redundant ones on 4 nodes of 8.
 *
 *     eplb [layers [experts redundant groups nodes ranks]]
 *
 * Best and median of many repetitions, of placing anew and of adapting to loads that drifted by up to 20 %. */
#include "passes/ep/eplb.h"
#include "runtime/base/clock.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPETITIONS = 51 };

static uint64_t random_state = 7;

static double
next_random(void)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(random_state >> 40) / (1 << 24);
}

static int
by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void
report(const char *what, double *seconds)
{
    qsort(seconds, REPETITIONS, sizeof *seconds, by_value);
    printf("%-28s %.3f ms (median %.3f)\n", what, seconds[0] * 1e3, seconds[REPETITIONS / 2] * 1e3);
}

static void
measure(const mc_eplb_shape *shape, int32_t n_layers, const char *law, double exponent)
{
    size_t n_loads = (size_t)n_layers * (size_t)shape->n_experts, n_slots = (size_t)n_layers * (size_t)shape->n_slots;
    float *loads = malloc(n_loads * sizeof *loads);
    int32_t *slots = malloc(n_slots * sizeof *slots), *counts = malloc(n_loads * sizeof *counts);
    int32_t *before = malloc(n_slots * sizeof *before);
    if (!loads || !slots || !counts || !before) abort();
    for (size_t i = 0; i < n_loads; i++) /* Zipf: a random rank among the experts */
        loads[i] =
            (float)(1000 * (exponent > 0 ? pow(next_random() * shape->n_experts + 1, -exponent) : next_random()));
    double seconds[REPETITIONS], balance = 0;
    mc_arena *arena = mc_arena_create();
    mc_fault fault;
    mc_eplb_placement out = {.slots = slots, .counts = counts};
    for (int i = 0; i < REPETITIONS; i++) {
        mc_arena_reset(arena);
        double start = mc_thread_seconds();
        if (mc_eplb_place(arena, shape, loads, n_layers, &out, &fault) != MOEC_OK) {
            fprintf(stderr, "%s\n", fault.text);
            exit(1);
        }
        seconds[i] = mc_thread_seconds() - start;
    }
    for (int32_t l = 0; l < n_layers; l++)
        balance +=
            mc_eplb_balance(shape, loads + (size_t)l * (size_t)shape->n_experts,
                            slots + (size_t)l * (size_t)shape->n_slots, counts + (size_t)l * (size_t)shape->n_experts);
    char what[64];
    snprintf(what, sizeof what, "%s, balance %.3f", law, balance / n_layers);
    report(what, seconds);
    memcpy(before, slots, n_slots * sizeof *before);
    for (size_t i = 0; i < n_loads; i++) loads[i] *= (float)(0.8 + 0.4 * next_random());
    int64_t moves = 0, anew = 0;
    if (mc_eplb_place(arena, shape, loads, n_layers, &out, &fault) != MOEC_OK) exit(1);
    for (size_t i = 0; i < n_slots; i++) anew += slots[i] != before[i];
    for (int i = 0; i < REPETITIONS; i++) {
        mc_arena_reset(arena);
        double start = mc_thread_seconds();
        if (mc_eplb_adapt(arena, shape, loads, before, 0.01, n_layers, &out, &moves, &fault) != MOEC_OK) exit(1);
        seconds[i] = mc_thread_seconds() - start;
    }
    snprintf(what, sizeof what, "  adapted, %.0f %% of moves", 100.0 * (double)moves / (double)(anew ? anew : 1));
    report(what, seconds);
    mc_arena_destroy(arena);
    free(loads);
    free(slots);
    free(counts);
    free(before);
}

int
main(int argc, char **argv)
{
    int32_t n[6] = {58, 256, 32, 8, 4, 32};
    for (int i = 1; i < argc && i <= 6; i++) n[i - 1] = (int32_t)strtol(argv[i], NULL, 10);
    mc_eplb_shape shape = {n[1], n[1] + n[2], n[3], n[4], n[5]}, global = shape;
    global.n_groups = global.n_nodes = 1;
    measure(&shape, n[0], "hierarchical, uniform", 0);
    measure(&shape, n[0], "hierarchical, zipf 0.5", 0.5);
    measure(&global, n[0], "global, uniform", 0);
    measure(&global, n[0], "global, zipf 0.5", 0.5);
    return 0;
}
