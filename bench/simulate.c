/* How long simulations of exchanges take, on one core, and what they find: V3's shape (7168 wide, top 8) with 4096
 * tokens a rank, on 64 to 1024 ranks of 8 a node, with and without a limit of groups, from even to skewed traffic.
 *
 *     simulate [ranks [tokens [experts [top [groups keep]]]] law [layout [redundant]]]
 *
 * Without a law: a list of cases. */
#include "passes/ep/simulate.h"
#include "runtime/base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct study {
    int64_t ranks, tokens;
    mc_ep_choice choice;
    const char *law;
    mc_sim_layout layout;
    int64_t redundant;
} study;

static const study studies[] = {
    {64, 4096, {256, 8, 0, 0}, "uniform", MC_SIM_CONTIGUOUS, 0},
    {64, 4096, {256, 8, 8, 4}, "uniform", MC_SIM_CONTIGUOUS, 0},
    {64, 4096, {256, 8, 8, 4}, "zipf:0.3", MC_SIM_CONTIGUOUS, 0},
    {64, 4096, {256, 8, 8, 4}, "zipf:0.6", MC_SIM_CONTIGUOUS, 0},
    {64, 4096, {256, 8, 8, 4}, "zipf:0.6", MC_SIM_EPLB, 64},
    {64, 4096, {256, 8, 0, 0}, "zipf:0.6", MC_SIM_EPLB, 64},
    {64, 4096, {256, 8, 0, 0}, "drift:0.6:0.2", MC_SIM_EPLB, 64},
    {1024, 4096, {256, 8, 0, 0}, "uniform", MC_SIM_CONTIGUOUS, 0},
    {1024, 4096, {1024, 8, 0, 0}, "uniform", MC_SIM_CONTIGUOUS, 0},
    {1024, 4096, {1024, 8, 0, 0}, "zipf:0.6", MC_SIM_CONTIGUOUS, 0},
    {1024, 4096, {1024, 8, 0, 0}, "khot:16:0.9", MC_SIM_CONTIGUOUS, 0},
    {1024, 4096, {1024, 8, 0, 0}, "rank:0.6", MC_SIM_CONTIGUOUS, 0},
    {1024, 4096, {1024, 8, 128, 4}, "uniform", MC_SIM_CONTIGUOUS, 0},
    {1024, 4096, {1024, 8, 128, 4}, "zipf:0.3", MC_SIM_CONTIGUOUS, 0},
    {1024, 4096, {256, 8, 0, 0}, "zipf:0.6", MC_SIM_EPLB, 768},
};

static void
fail(const mc_fault *fault)
{
    fprintf(stderr, "%s\n", fault->text);
    exit(1);
}

static void
run(const study *s)
{
    mc_arena *arena = mc_arena_create();
    mc_fault fault;
    double start = mc_thread_seconds();
    mc_sim_setup setup = {.load = {s->choice, s->ranks, s->ranks < 8 ? 1 : s->ranks / 8, 8, s->tokens, false},
                          .there_bytes = mc_ep_row_bytes(7168, MOEC_F8E4M3) + 128,
                          .back_bytes = mc_ep_row_bytes(7168, MOEC_BF16),
                          .products = 3.0 * 7168 * 2048,
                          .expert_bytes = 3.0 * 7168 * 2048};
    mc_sim_skew source = {.seed = 1, .choice = s->choice, .arena = arena};
    float *loads = MC_NEW_N(arena, float, s->choice.experts);
    mc_sim_result r;
    if (!mc_ep_links_named(MC_STR("cx7-400,h800"), &setup.links)) abort();
    if (mc_skew_parse(mc_str_of(s->law), &source.law, &fault) != MOEC_OK) fail(&fault);
    mc_skew_loads(arena, &source.law, source.seed, s->choice.experts, s->ranks, loads);
    if (mc_sim_slots(arena, s->layout, &setup.load, s->redundant, loads, &setup.slots, &setup.slots_per_rank, &fault) !=
            MOEC_OK ||
        mc_simulate(arena, &setup, mc_sim_skew_fill, &source, &r, &fault) != MOEC_OK)
        fail(&fault);
    double seconds = mc_thread_seconds() - start;
    const mc_sim_way *w = &r.ways[MC_EP_BY_NODE];
    char limit[32] = "-";
    if (s->choice.groups) snprintf(limit, sizeof limit, "%d/%d", (int)s->choice.keep, (int)s->choice.groups);
    printf("| %lld | %lld | %s | %s | %s +%lld | %.2f | %.2f | %.2f | %.2f | %.0f | %.0f | %.2f |\n",
           (long long)s->ranks, (long long)s->choice.experts, limit, s->law, mc_sim_layout_name(s->layout),
           (long long)s->redundant, r.rows.most / r.rows.mean, r.experts.most / r.experts.mean,
           w->nodes_in.most / w->nodes_in.mean, r.nodes_hit, w->there * 1e6, w->step * 1e6, seconds);
    fflush(stdout);
    mc_arena_destroy(arena);
}

int
main(int argc, char **argv)
{
    int64_t n[6] = {64, 4096, 256, 8, 0, 0};
    int at = 1;
    for (; at < argc && at <= 6 && argv[at][0] >= '0' && argv[at][0] <= '9'; at++)
        n[at - 1] = strtoll(argv[at], NULL, 10);
    study s = {n[0], n[1], {n[2], n[3], n[4], n[5]}, at < argc ? argv[at] : NULL, MC_SIM_CONTIGUOUS, 0};
    if (at + 1 < argc && !mc_sim_layout_parse(mc_str_of(argv[at + 1]), &s.layout)) return 2;
    if (at + 2 < argc) s.redundant = strtoll(argv[at + 2], NULL, 10);
    puts("| ranks | experts | groups | law | placement | rows, most/mean | expert | port in | nodes hit | there us | "
         "step us | s |\n|---|---|---|---|---|---|---|---|---|---|---|---|");
    if (s.law) {
        run(&s);
        return 0;
    }
    for (size_t i = 0; i < sizeof studies / sizeof *studies; i++) run(&studies[i]);
    return 0;
}
