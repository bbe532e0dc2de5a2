/* The simulator of exchanges: draws against chances worked out by hand and against brute force, counts against a plain
 * recount, and the formulas of the cost model where they are exact. */
#include "passes/ep/eplb.h"
#include "passes/ep/simulate.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static mc_arena *arena;
static mc_fault error;

#define OK(expression) ck_assert_msg((expression) == MOEC_OK, "%s", error.text)
#define SAYS(part) ck_assert_msg(strstr(error.text, (part)) != NULL, "\"%s\" does not say \"%s\"", error.text, (part))

static void
setup(void)
{
    arena = mc_arena_create();
}

static void
teardown(void)
{
    mc_arena_destroy(arena);
}

/* ---- laws ------------------------------------------------------------------------------------------------------- */

START_TEST(laws_as_text)
{
    static const char *const texts[][2] = {{"uniform", "uniform"},        {"zipf:0.6", "zipf:0.6"},
                                           {"khot:8", "khot:8:0.5"},      {"khot:8:0.9", "khot:8:0.9"},
                                           {"rank:1", "rank:1:0.5"},      {"drift:0.5:0.25", "drift:0.5:0.25"},
                                           {"drift:0.5", "drift:0.5:0.2"}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        mc_skew law;
        mc_buf text = {0};
        OK(mc_skew_parse(mc_str_of(texts[i][0]), &law, &error));
        mc_skew_print(&law, &text);
        ck_assert_str_eq(text.data, texts[i][1]);
        mc_buf_fini(&text);
    }
    static const char *const bad[] = {"",          "zipf",         "zipf:",    "zipf:x",   "zipf:-1",
                                      "zipf:9",    "khot:0.5",     "khot:0",   "khot:8:2", "zipf:0.5:0.5",
                                      "uniform:1", "rank:1:0.5:1", "pareto:1", "zipf:nan"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mc_skew law;
        ck_assert_msg(mc_skew_parse(mc_str_of(bad[i]), &law, &error) == MOEC_ERR_ARGUMENT, "%s", bad[i]);
        SAYS("as in zipf:0.6");
    }
}
END_TEST

static mc_skew
law_of(const char *text)
{
    mc_skew law;
    OK(mc_skew_parse(mc_str_of(text), &law, &error));
    return law;
}

START_TEST(weights_of_laws)
{
    enum { N = 64 };
    double w[N], other[N];
    static const char *const laws[] = {"uniform", "zipf:0.7", "khot:4:0.6", "rank:0.9", "drift:0.9:0.5", "khot:200"};
    for (size_t i = 0; i < sizeof laws / sizeof *laws; i++) {
        mc_skew law = law_of(laws[i]);
        double sum = 0;
        mc_skew_weights(arena, &law, 3, N, 0, true, w);
        for (int e = 0; e < N; e++) sum += w[e];
        ck_assert_double_eq_tol(sum, 1, 1e-9);
    }
    mc_skew hot = law_of("khot:4:0.6"), by_rank = law_of("rank:0.9"), drift = law_of("drift:0.9:0.5");
    int n_hot = 0;
    mc_skew_weights(arena, &hot, 3, N, 0, true, w);
    for (int e = 0; e < N; e++) n_hot += fabs(w[e] - 0.15) < 1e-12;
    ck_assert_int_eq(n_hot, 4);
    mc_skew_weights(arena, &by_rank, 3, N, 0, true, w);
    mc_skew_weights(arena, &by_rank, 3, N, 1, true, other);
    ck_assert_mem_ne(w, other, sizeof w);
    mc_skew_weights(arena, &drift, 3, N, 0, false, w);
    mc_skew_weights(arena, &drift, 3, N, 1, true, other);
    int moved = 0;
    for (int e = 0; e < N; e++) moved += fabs(w[e] - other[e]) > 1e-12;
    ck_assert_int_ge(moved, 16);
    ck_assert_int_le(moved, 40);
}
END_TEST

/* ---- draws ------------------------------------------------------------------------------------------------------ */

/* Chance that two draws without putting back give the set {a, b}. */
START_TEST(pairs_have_their_chances)
{
    enum { N = 5, DRAWS = 400000 };
    double w[N] = {0.5, 0.25, 0.15, 0.1, 0};
    mc_ep_choice choice = {N, 2, 0, 0};
    mc_draw *draw = mc_draw_create(arena, &choice);
    mc_draw_weights(draw, w);
    mc_draw_seed(draw, 1, 2);
    int32_t *ids = MC_NEW_N(arena, int32_t, 2 * DRAWS);
    mc_draw_tokens(draw, DRAWS, ids);
    double seen[N][N] = {{0}};
    for (int i = 0; i < DRAWS; i++) seen[ids[2 * i]][ids[2 * i + 1]] += 1.0 / DRAWS;
    for (int a = 0; a < N; a++)
        for (int b = 0; b < N; b++) {
            double chance = a == b ? 0 : w[a] * w[b] / (1 - w[a]);
            ck_assert_double_eq_tol(seen[a][b], chance, 5 * sqrt(chance / DRAWS) + 1e-9);
        }
}
END_TEST

/* Scores as a router would have them: every expert's, group by group. */
static void
draw_by_scores(const mc_ep_choice *c, const double *w, uint64_t *state, int32_t *ids)
{
    double score[64], best[64];
    bool kept[64] = {false};
    int64_t size = c->experts / c->groups;
    for (int64_t e = 0; e < c->experts; e++) {
        *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        score[e] = log(w[e]) - log(-log(((double)(*state >> 11) + 0.5) / 9007199254740992.0));
        if (e % size == 0 || score[e] > best[e / size]) best[e / size] = score[e];
    }
    for (int64_t m = 0; m < c->keep; m++) {
        int64_t most = -1;
        for (int64_t g = 0; g < c->groups; g++)
            if (!kept[g] && (most < 0 || best[g] > best[most])) most = g;
        kept[most] = true;
    }
    for (int64_t j = 0; j < c->k; j++) {
        int64_t most = -1;
        for (int64_t e = 0; e < c->experts; e++)
            if (kept[e / size] && (most < 0 || score[e] > score[most])) most = e;
        ids[j] = (int32_t)most;
        score[most] = -INFINITY;
    }
}

START_TEST(draws_are_a_router_s)
{
    enum { N = 16, K = 4, DRAWS = 200000 };
    mc_ep_choice choice = {N, K, 4, 2};
    mc_skew law = law_of("zipf:0.8");
    double w[N];
    mc_skew_weights(arena, &law, 5, N, 0, true, w);
    mc_draw *draw = mc_draw_create(arena, &choice);
    mc_draw_weights(draw, w);
    mc_draw_seed(draw, 9, 0);
    int32_t *ids = MC_NEW_N(arena, int32_t, K * DRAWS), slow[K];
    mc_draw_tokens(draw, DRAWS, ids);
    uint64_t state = 11;
    double place[2][K][N] = {{{0}}}, together[2][N][N] = {{{0}}};
    for (int i = 0; i < DRAWS; i++) {
        draw_by_scores(&choice, w, &state, slow);
        for (int j = 0; j < K; j++) {
            place[0][j][ids[i * K + j]] += 1.0 / DRAWS;
            place[1][j][slow[j]] += 1.0 / DRAWS;
            for (int o = 0; o < K; o++) {
                together[0][ids[i * K + j]][ids[i * K + o]] += 1.0 / DRAWS;
                together[1][slow[j]][slow[o]] += 1.0 / DRAWS;
            }
        }
    }
    for (int e = 0; e < N; e++) {
        for (int j = 0; j < K; j++)
            ck_assert_double_eq_tol(place[0][j][e], place[1][j][e], 5 * sqrt(2 * place[1][j][e] / DRAWS) + 1e-4);
        for (int o = 0; o < N; o++)
            ck_assert_double_eq_tol(together[0][e][o], together[1][e][o],
                                    5 * sqrt(2 * together[1][e][o] / DRAWS) + 1e-4);
    }
}
END_TEST

START_TEST(draws_are_different_experts)
{
    static const struct {
        mc_ep_choice choice;
        const char *law;
    } cases[] = {{{8, 8, 0, 0}, "zipf:3"},    {{64, 8, 8, 1}, "zipf:2"},  {{64, 22, 8, 4}, "khot:3:1"},
                 {{32, 6, 0, 0}, "khot:2:1"}, {{12, 6, 4, 2}, "uniform"}, {{64, 64, 0, 0}, "zipf:8"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mc_ep_choice c = cases[i].choice;
        mc_sim_skew source = {.law = law_of(cases[i].law), .seed = i, .choice = c, .arena = arena};
        int32_t ids[300 * 64];
        mc_sim_skew_fill(&source, 0, 0, 300, ids);
        for (int t = 0; t < 300; t++) {
            uint64_t experts = 0, groups = 0;
            for (int64_t j = 0; j < c.k; j++) {
                int32_t e = ids[t * c.k + j];
                ck_assert(e >= 0 && e < c.experts);
                ck_assert(!(experts >> e & 1));
                experts |= UINT64_C(1) << e;
                if (c.groups) groups |= UINT64_C(1) << e / (c.experts / c.groups);
            }
            if (c.groups) ck_assert_int_le(__builtin_popcountll(groups), c.keep);
        }
    }
}
END_TEST

/* ---- counts ----------------------------------------------------------------------------------------------------- */

static mc_sim_setup
setup_of(int64_t ranks, int64_t nodes, int64_t tokens, mc_ep_choice choice)
{
    mc_sim_setup s = {.load = {choice, ranks, nodes, ranks / nodes, tokens, false},
                      .there_bytes = 7520,
                      .back_bytes = 14336,
                      .products = 3.0 * 7168 * 2048,
                      .expert_bytes = 3.0 * 7168 * 2048};
    ck_assert(mc_ep_links_named(MC_STR("cx7-400,h800"), &s.links));
    return s;
}

static mc_sim_result
simulate(mc_sim_setup *s, const char *law, uint64_t seed, mc_sim_layout layout, int64_t redundant)
{
    mc_sim_skew source = {.law = law_of(law), .seed = seed, .choice = s->load.choice, .arena = arena};
    float *loads = MC_NEW_N(arena, float, s->load.choice.experts);
    mc_sim_result result;
    mc_skew_loads(arena, &source.law, seed, s->load.choice.experts, s->load.ranks, loads);
    OK(mc_sim_slots(arena, layout, &s->load, redundant, loads, &s->slots, &s->slots_per_rank, &error));
    OK(mc_simulate(arena, s, mc_sim_skew_fill, &source, &result, &error));
    return result;
}

START_TEST(uniform_hits_as_the_formula_says)
{
    static const struct {
        int64_t ranks, nodes, experts, k;
    } cases[] = {{2, 1, 256, 8}, {8, 2, 256, 8}, {64, 8, 256, 8}, {128, 16, 256, 8}, {32, 4, 64, 6}, {16, 4, 512, 22}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mc_ep_choice choice = {cases[i].experts, cases[i].k, 0, 0};
        mc_sim_setup s = setup_of(cases[i].ranks, cases[i].nodes, 64000 / cases[i].ranks, choice);
        mc_sim_result r = simulate(&s, "uniform", i, MC_SIM_CONTIGUOUS, 0);
        double ranks = mc_ep_hits(&choice, cases[i].ranks, false), nodes = mc_ep_hits(&choice, cases[i].nodes, false);
        ck_assert_double_eq_tol(r.ranks_hit, ranks, 0.01 * ranks);
        ck_assert_double_eq_tol(r.nodes_hit, nodes, 0.01 * nodes);
    }
}
END_TEST

/* Groups are kept for their best expert, so all of them are hit more often than if they were kept at random: after g
 * groups are open and j experts drawn, the next one opens another with the chance that remaining experts have. */
START_TEST(limited_hits)
{
    mc_ep_choice choice = {256, 8, 8, 4};
    mc_sim_setup s = setup_of(64, 8, 2000, choice);
    mc_sim_result r = simulate(&s, "uniform", 3, MC_SIM_CONTIGUOUS, 0);
    double open[5] = {1}, expected = 0;
    for (int j = 0; j < 8; j++) {
        double next[5] = {0};
        for (int g = 0; g <= 4; g++) {
            double another = g == 4 ? 0 : (256.0 - 32 * g) / (256.0 - j);
            if (g < 4) next[g + 1] += open[g] * another;
            next[g] += open[g] * (1 - another);
        }
        memcpy(open, next, sizeof open);
    }
    for (int g = 0; g <= 4; g++) expected += g * open[g];
    ck_assert_double_eq_tol(r.nodes_hit, expected, 0.01 * expected);
    ck_assert_double_ge(expected, mc_ep_hits(&choice, 8, false));
}
END_TEST

/* The same counts once more, a token at a time, without any table. */
typedef struct recount {
    mc_sim_rank ranks[16];
    int64_t experts[32];
} recount;

static int
choose_copy(const mc_sim_setup *s, int64_t source, int64_t token, int32_t expert)
{
    int64_t per_node = s->load.ranks / s->load.nodes, n_slots = s->load.ranks * s->slots_per_rank;
    for (int level = 0; level < 3; level++) {
        int found[64], n = 0;
        for (int64_t i = 0; i < n_slots; i++) {
            int rank = (int)(i / s->slots_per_rank);
            bool near = level == 2 || (level == 1 ? rank / per_node == source / per_node : rank == source);
            if (s->slots[i] == expert && near) found[n++] = rank;
        }
        if (n) return found[token % n];
    }
    return -1;
}

static void
count_slowly(const mc_sim_setup *s, const int32_t *ids, recount *out)
{
    int64_t per_node = s->load.ranks / s->load.nodes, k = s->load.choice.k;
    for (int64_t source = 0; source < s->load.ranks; source++)
        for (int64_t t = 0; t < s->load.tokens; t++) {
            bool rank_hit[16] = {false}, node_hit[16] = {false};
            for (int64_t j = 0; j < k; j++) {
                int32_t e = ids[(source * s->load.tokens + t) * k + j];
                if (e < 0) continue;
                int to = choose_copy(s, source, t, e);
                int64_t node = to / per_node, home = source / per_node;
                mc_sim_rank *here = &out->ranks[source], *there = &out->ranks[to];
                out->experts[e]++;
                there->assignments++;
                *(node == home ? &here->fabric_out[0] : &here->nodes_out[0]) += 1;
                *(node == home ? &there->fabric_in[0] : &there->nodes_in[0]) += 1;
                if (rank_hit[to]) continue;
                rank_hit[to] = true;
                there->rows++;
                *(node == home ? &here->fabric_out[1] : &here->nodes_out[1]) += 1;
                *(node == home ? &there->fabric_in[1] : &there->nodes_in[1]) += 1;
                mc_sim_rank *passes_on = &out->ranks[node * per_node + source % per_node];
                passes_on->fabric_out[2]++;
                there->fabric_in[2]++;
                if (!node_hit[node] && node != home) {
                    here->nodes_out[2]++;
                    passes_on->nodes_in[2]++;
                }
                node_hit[node] = true;
            }
        }
}

START_TEST(counts_as_said_slowly)
{
    uint64_t state = 5;
    for (int round = 0; round < 60; round++) {
        int64_t nodes = 1 + round % 4, ranks = nodes * (1 + round / 4 % 4), k = 1 + round % 5, tokens = 40 + round;
        int64_t per_rank = (32 + ranks - 1) / ranks + round % 3;
        mc_sim_setup s = setup_of(ranks, nodes, tokens, (mc_ep_choice){32, k, 0, 0});
        int32_t slots[512], *ids = MC_NEW_N(arena, int32_t, ranks * tokens * k);
        for (int64_t i = 0; i < ranks * per_rank; i++) {
            state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            slots[i] = i < 32 ? (int32_t)i : (int32_t)(state >> 33) % 33 - 1;
        }
        for (int64_t i = 0; i < ranks * tokens * k; i++) {
            state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            ids[i] = (int32_t)(state >> 33) % 33 - 1; /* the same expert twice, or none, too */
        }
        s.slots = slots;
        s.slots_per_rank = per_rank;
        mc_sim_recorded source = {ids, ranks * tokens, k, tokens};
        mc_sim_result r;
        recount slow = {0};
        OK(mc_simulate(arena, &s, mc_sim_recorded_fill, &source, &r, &error));
        count_slowly(&s, ids, &slow);
        ck_assert_mem_eq(r.per_expert, slow.experts, sizeof slow.experts);
        ck_assert_mem_eq(r.per_rank, slow.ranks, sizeof *slow.ranks * (size_t)ranks);
    }
}
END_TEST

START_TEST(nothing_is_lost)
{
    mc_sim_setup s = setup_of(32, 4, 500, (mc_ep_choice){128, 6, 8, 3});
    mc_sim_result r = simulate(&s, "zipf:0.8", 4, MC_SIM_EPLB, 32);
    mc_sim_rank sum = {0};
    for (int i = 0; i < 32; i++) {
        const mc_sim_rank *of = &r.per_rank[i];
        sum.assignments += of->assignments;
        for (int w = 0; w < MC_EP_N_EXCHANGES; w++) {
            sum.nodes_out[w] += of->nodes_out[w];
            sum.nodes_in[w] += of->nodes_in[w];
            sum.fabric_in[w] += of->fabric_in[w];
            sum.fabric_out[w] += of->fabric_out[w];
        }
    }
    ck_assert_int_eq(sum.assignments, 32 * 500 * 6);
    ck_assert_mem_eq(sum.nodes_out, sum.nodes_in, sizeof sum.nodes_in);
    ck_assert_mem_eq(sum.fabric_out, sum.fabric_in, sizeof sum.fabric_in);
    ck_assert_int_eq(sum.nodes_in[0] + sum.fabric_in[0], sum.assignments);
    ck_assert_int_le(sum.nodes_in[2], sum.nodes_in[1]);
    ck_assert_int_le(sum.nodes_in[1], sum.nodes_in[0]);
    ck_assert_int_le(sum.nodes_in[2], 32 * 500 * 3);
}
END_TEST

/* ---- times and placements --------------------------------------------------------------------------------------- */

START_TEST(even_traffic_takes_what_the_plan_says)
{
    mc_sim_setup s = setup_of(64, 8, 4096, (mc_ep_choice){256, 8, 0, 0});
    mc_sim_result r = simulate(&s, "uniform", 1, MC_SIM_CONTIGUOUS, 0);
    for (int way = 0; way < MC_EP_N_EXCHANGES; way++) {
        mc_ep_flow flow = mc_ep_flow_of(&s.load, way, s.there_bytes);
        double planned = mc_ep_flow_time(&flow, &s.load, &s.links);
        ck_assert_double_eq_tol(r.ways[way].there, planned, 0.03 * planned);
    }
    ck_assert_int_eq(r.best, MC_EP_BY_NODE);
    ck_assert_double_eq_tol(r.ways[2].there, 3225e-6, 0.03 * 3225e-6); /* the design's own simulator */
    ck_assert_double_eq_tol(r.ways[2].step, r.ways[2].there + r.experts_time + r.ways[2].back, 1e-12);
    s.strict = true; /* what goes back is a row for each assignment, whatever the way there */
    mc_sim_result strict = simulate(&s, "uniform", 1, MC_SIM_CONTIGUOUS, 0);
    ck_assert_double_eq_tol(strict.ways[2].there, r.ways[2].there, 1e-12);
    ck_assert_double_eq_tol(strict.ways[2].back, r.ways[0].back, 1e-12);
}
END_TEST

START_TEST(skew_moves_the_bound_and_eplb_moves_it_back)
{
    mc_sim_setup s = setup_of(64, 8, 2048, (mc_ep_choice){256, 8, 0, 0});
    mc_sim_result even = simulate(&s, "uniform", 2, MC_SIM_CONTIGUOUS, 0);
    mc_sim_result skewed = simulate(&s, "zipf:0.8", 2, MC_SIM_CONTIGUOUS, 0);
    mc_sim_result placed = simulate(&s, "zipf:0.8", 2, MC_SIM_EPLB, 64);
    mc_sim_result drifted = simulate(&s, "drift:0.8:0.4", 2, MC_SIM_EPLB, 64);
    ck_assert_double_ge(skewed.assignments.most, 4 * even.assignments.most);
    ck_assert_double_le(placed.assignments.most, 0.5 * skewed.assignments.most);
    ck_assert_double_le(placed.ways[2].step, 0.7 * skewed.ways[2].step);
    ck_assert_double_ge(drifted.assignments.most, 1.3 * placed.assignments.most);
}
END_TEST

START_TEST(the_seed_decides)
{
    mc_sim_setup s = setup_of(32, 4, 300, (mc_ep_choice){64, 4, 0, 0});
    mc_buf a = {0}, b = {0};
    mc_sim_result first = simulate(&s, "rank:0.9", 7, MC_SIM_ROUND_ROBIN, 0);
    mc_sim_json(&s, &first, "rank:0.9", MC_SIM_ROUND_ROBIN, &a);
    mc_sim_result again = simulate(&s, "rank:0.9", 7, MC_SIM_ROUND_ROBIN, 0);
    mc_sim_json(&s, &again, "rank:0.9", MC_SIM_ROUND_ROBIN, &b);
    ck_assert_str_eq(a.data, b.data);
    ck_assert_ptr_nonnull(strstr(a.data, "\"placement\":\"round_robin\",\"ranks\":32,\"nodes\":4,\"tokens\":300"));
    mc_buf_clear(&b);
    mc_sim_result other = simulate(&s, "rank:0.9", 8, MC_SIM_ROUND_ROBIN, 0);
    mc_sim_json(&s, &other, "rank:0.9", MC_SIM_ROUND_ROBIN, &b);
    ck_assert_str_ne(a.data, b.data);
    mc_buf_clear(&b);
    mc_sim_print(&s, &other, "rank:0.9:0.5, seed 8", MC_SIM_ROUND_ROBIN, &b);
    ck_assert_ptr_nonnull(strstr(b.data, "simulated: 32 ranks on 4 nodes, 300 tokens each, 4 of 64 experts\n"
                                         "  traffic rank:0.9:0.5, seed 8; placement round_robin, 2 slots a rank\n"));
    mc_buf_fini(&a);
    mc_buf_fini(&b);
}
END_TEST

START_TEST(slots_of_layouts)
{
    mc_ep_load load = {.choice = {8, 2, 0, 0}, .ranks = 4, .nodes = 2};
    const int32_t *slots;
    int64_t per_rank;
    OK(mc_sim_slots(arena, MC_SIM_CONTIGUOUS, &load, 0, NULL, &slots, &per_rank, &error));
    ck_assert_mem_eq(slots, ((int32_t[]){0, 1, 2, 3, 4, 5, 6, 7}), 32);
    OK(mc_sim_slots(arena, MC_SIM_ROUND_ROBIN, &load, 0, NULL, &slots, &per_rank, &error));
    ck_assert_mem_eq(slots, ((int32_t[]){0, 4, 1, 5, 2, 6, 3, 7}), 32);
    load.ranks = 16; /* more ranks than experts: copies */
    OK(mc_sim_slots(arena, MC_SIM_CONTIGUOUS, &load, 0, NULL, &slots, &per_rank, &error));
    ck_assert_int_eq(per_rank, 1);
    for (int i = 0; i < 16; i++) ck_assert_int_eq(slots[i], i / 2);
    load.ranks = 3;
    ck_assert_int_eq(mc_sim_slots(arena, MC_SIM_CONTIGUOUS, &load, 0, NULL, &slots, &per_rank, &error),
                     MOEC_ERR_ARGUMENT);
    SAYS("choose ranks that divide them, or 1 redundant ones with the placement eplb");
    ck_assert_int_eq(mc_sim_slots(arena, MC_SIM_ROUND_ROBIN, &load, 1, NULL, &slots, &per_rank, &error),
                     MOEC_ERR_ARGUMENT);
    mc_sim_layout layout;
    ck_assert(mc_sim_layout_parse(MC_STR("eplb"), &layout));
    ck_assert_int_eq(layout, MC_SIM_EPLB);
    ck_assert(!mc_sim_layout_parse(MC_STR("random"), &layout));
}
END_TEST

START_TEST(refuses)
{
    int32_t slots[] = {0, 1, 2, 3};
    mc_sim_recorded source = {slots, 4, 1, 1};
    mc_sim_result r;
    static const struct {
        int64_t ranks, nodes, tokens, per_rank;
        mc_ep_choice choice;
        moec_status status;
        const char *says;
    } cases[] = {{3, 2, 1, 1, {4, 1, 0, 0}, MOEC_ERR_ARGUMENT, "3 ranks on 2 nodes"},
                 {4, 2, 1, 1, {4, 5, 0, 0}, MOEC_ERR_ARGUMENT, "5 of 4 experts"},
                 {4, 2, 1, 1, {4, 3, 2, 1}, MOEC_ERR_ARGUMENT, "from 1 of 2 groups of 4 experts"},
                 {4, 2, 1, 1, {5, 1, 0, 0}, MOEC_ERR_ARGUMENT, "no rank holds expert 4"},
                 {4, 2, 1, 1, {3, 1, 0, 0}, MOEC_ERR_ARGUMENT, "slot 3 holds expert 3 of 3"},
                 {4, 2, INT64_MAX, 1, {4, 1, 0, 0}, MOEC_ERR_RANGE, "too many to count"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mc_sim_setup s = {.load = {cases[i].choice, cases[i].ranks, cases[i].nodes, 2, cases[i].tokens, false},
                          .slots = slots,
                          .slots_per_rank = cases[i].per_rank};
        ck_assert_int_eq(mc_simulate(arena, &s, mc_sim_recorded_fill, &source, &r, &error), cases[i].status);
        SAYS(cases[i].says);
    }
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("simulate");
    TCase *tc = tcase_create("simulate");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, laws_as_text);
    tcase_add_test(tc, weights_of_laws);
    tcase_add_test(tc, pairs_have_their_chances);
    tcase_add_test(tc, draws_are_a_router_s);
    tcase_add_test(tc, draws_are_different_experts);
    tcase_add_test(tc, uniform_hits_as_the_formula_says);
    tcase_add_test(tc, limited_hits);
    tcase_add_test(tc, counts_as_said_slowly);
    tcase_add_test(tc, nothing_is_lost);
    tcase_add_test(tc, even_traffic_takes_what_the_plan_says);
    tcase_add_test(tc, skew_moves_the_bound_and_eplb_moves_it_back);
    tcase_add_test(tc, the_seed_decides);
    tcase_add_test(tc, slots_of_layouts);
    tcase_add_test(tc, refuses);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
