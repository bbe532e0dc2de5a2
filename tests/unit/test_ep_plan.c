/* The cost model of expert parallelism against what others measured and published: bytes, times, and which way wins.
 * Set MOEC_TEST_SHOW to see every row with its error. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "passes/ep/cost.h"

/* DeepSeek-V3: rows of 7168, in FP8 with scales there, in bf16 back. The published benchmarks limit tokens to 4 nodes.
 */
enum { WIDTH = 7168, EXPERTS = 256, TOP = 8 };

static mc_ep_load
v3(int64_t tokens, int64_t ranks, int64_t nodes, bool limited)
{
    return (mc_ep_load){.choice = {EXPERTS, TOP, limited ? nodes : 0, nodes < 4 ? nodes : 4},
                        .ranks = ranks,
                        .nodes = nodes,
                        .on_node = ranks / nodes,
                        .tokens = tokens};
}

static mc_ep_links
links_of(const char *names)
{
    mc_ep_links links;
    ck_assert_msg(mc_ep_links_named(mc_str_of(names), &links), "%s", names);
    return links;
}

/* |model / measured - 1|, shown. */
static double
error_of(const char *what, int64_t ranks, double measured, double model)
{
    double error = model / measured - 1;
    if (getenv("MOEC_TEST_SHOW"))
        printf("%-28s EP%-4lld measured %9.1f  model %9.1f  %+6.2f %%\n", what, (long long)ranks, measured, model,
               100 * error);
    return fabs(error);
}

/* ---- F ---- */

static const struct {
    int64_t units;
    double hits;
} even[] = {{2, 1.99}, {4, 3.61}, {8, 5.29}, {16, 6.52}, {32, 7.27}, {64, 7.68}, {128, 7.89}};

START_TEST(hits_without_limit)
{
    mc_ep_choice choice = {EXPERTS, TOP, 0, 0};
    for (size_t i = 0; i < sizeof even / sizeof *even; i++)
        ck_assert_double_le(fabs(mc_ep_hits(&choice, even[i].units, false) - even[i].hits), 0.01);
    ck_assert_double_eq(mc_ep_hits(&choice, 1, false), 1);
}
END_TEST

/* Every choice of a small router, counted: keep of the groups, then k of their experts. */
typedef struct counted {
    double tokens, hits[2];
} counted;

static void
count_choices(const mc_ep_choice *c, int64_t units, counted *out)
{
    int64_t of_group = c->experts / c->groups;
    for (unsigned kept = 0; kept < 1U << c->groups; kept++) {
        if (__builtin_popcount(kept) != c->keep) continue;
        for (unsigned chosen = 0; chosen < 1U << c->experts; chosen++) {
            if (__builtin_popcount(chosen) != c->k) continue;
            bool good = true;
            unsigned reached[2] = {0};
            for (int64_t e = 0; e < c->experts; e++) {
                if (!(chosen >> e & 1)) continue;
                good = good && (kept >> (e / of_group) & 1);
                reached[0] |= 1U << (e * units / c->experts);
                reached[1] |= 1U << (e % units);
            }
            if (!good) continue;
            out->tokens++;
            for (int i = 0; i < 2; i++) out->hits[i] += __builtin_popcount(reached[i]);
        }
    }
}

START_TEST(hits_with_limit)
{
    static const int64_t cases[][5] = {/* experts, k, groups, keep, units */
                                       {8, 2, 4, 2, 4},  {8, 2, 4, 2, 2},  {8, 2, 4, 2, 8},  {12, 3, 4, 2, 4},
                                       {12, 3, 4, 3, 2}, {12, 4, 2, 1, 4}, {12, 3, 6, 3, 3}, {12, 4, 6, 2, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mc_ep_choice c = {cases[i][0], cases[i][1], cases[i][2], cases[i][3]};
        int64_t units = cases[i][4];
        counted n = {0};
        count_choices(&c, units, &n);
        ck_assert_double_le(fabs(mc_ep_hits(&c, units, false) - n.hits[0] / n.tokens), 1e-9);
        ck_assert(mc_ep_reach(&c, units, false) <= (c.k < units ? c.k : units));
        ck_assert_double_le(n.hits[0] / n.tokens, (double)mc_ep_reach(&c, units, false) + 1e-9);
        ck_assert_double_le(n.hits[1] / n.tokens, (double)mc_ep_reach(&c, units, true) + 1e-9);
    }
    mc_ep_choice v3_limited = {EXPERTS, TOP, 8, 4};
    ck_assert_double_le(fabs(mc_ep_hits(&v3_limited, 8, false) - 3.63), 0.005);
    ck_assert_int_eq(mc_ep_reach(&v3_limited, 8, false), 4);
    ck_assert_int_eq(mc_ep_reach(&v3_limited, 64, false), 8);
    ck_assert_int_eq(mc_ep_reach(&v3_limited, 8, true), 8);
}
END_TEST

/* ---- DeepEP V1, normal kernels: 4096 tokens, H800 and ConnectX-7 ---- */

static const struct {
    int64_t ranks;
    double dispatch, combine; /* us, from the published GB/s */
    double tolerance;
} normal[] = {{8, 1048, 1968, 0.10}, {16, 1403, 2722, 0.03}, {32, 1887, 3723, 0.03}, {64, 2154, 4262, 0.03}};

START_TEST(deepep_normal)
{
    mc_ep_links links = links_of("cx7-400,h800");
    for (size_t i = 0; i < sizeof normal / sizeof *normal; i++) {
        int64_t nodes = normal[i].ranks / 8;
        mc_ep_load l = v3(4096, normal[i].ranks, nodes, true);
        int way = nodes > 1 ? MC_EP_BY_NODE : MC_EP_BY_RANK;
        mc_ep_flow there = mc_ep_flow_of(&l, way, mc_ep_row_bytes(WIDTH, MOEC_F8E4M3));
        mc_ep_flow back = mc_ep_flow_of(&l, way, mc_ep_row_bytes(WIDTH, MOEC_BF16));
        double t = 1e6 * mc_ep_flow_time(&there, &l, &links), u = 1e6 * mc_ep_flow_time(&back, &l, &links);
        ck_assert_double_le(error_of("DeepEP V1 normal dispatch", normal[i].ranks, normal[i].dispatch, t),
                            normal[i].tolerance);
        ck_assert_double_le(error_of("DeepEP V1 normal combine", normal[i].ranks, normal[i].combine, u),
                            normal[i].tolerance);
    }
}
END_TEST

/* ---- DeepEP V1 and NCCL EP, low latency: 128 tokens ---- */

static const struct {
    const char *what;
    int64_t ranks;
    double measured; /* us */
    bool back;
    int row_bytes;
    double tolerance;
} low_latency[] = {
    {"DeepEP V1 LL dispatch", 16, 118, false, 7408, 0.031},  {"DeepEP V1 LL dispatch", 32, 155, false, 7408, 0.031},
    {"DeepEP V1 LL dispatch", 64, 173, false, 7408, 0.031},  {"DeepEP V1 LL dispatch", 128, 192, false, 7408, 0.031},
    {"DeepEP V1 LL dispatch", 256, 194, false, 7408, 0.031}, {"DeepEP V1 LL combine", 16, 195, true, 14336, 0.09},
    {"DeepEP V1 LL combine", 32, 273, true, 14336, 0.09},    {"DeepEP V1 LL combine", 64, 314, true, 14336, 0.09},
    {"DeepEP V1 LL combine", 128, 369, true, 14336, 0.09},   {"DeepEP V1 LL combine", 256, 360, true, 14336, 0.09},
    {"NCCL EP LL dispatch", 16, 191.4, false, 14336, 0.09},  {"NCCL EP LL dispatch", 32, 273.9, false, 14336, 0.09},
    {"NCCL EP LL dispatch", 64, 300.8, false, 14336, 0.09},  {"NCCL EP LL combine", 16, 201.1, true, 14336, 0.09},
    {"NCCL EP LL combine", 32, 293.6, true, 14336, 0.09},    {"NCCL EP LL combine", 64, 335.2, true, 14336, 0.09},
};

START_TEST(one_sided)
{
    mc_ep_links links = links_of("cx7-400,h800");
    for (size_t i = 0; i < sizeof low_latency / sizeof *low_latency; i++) {
        mc_ep_load l = v3(128, low_latency[i].ranks, low_latency[i].ranks / 8, false);
        double work = low_latency[i].back ? MC_EP_ONE_SIDED_BACK : MC_EP_ONE_SIDED_THERE;
        double t = 1e6 * mc_ep_one_sided_time(&l, low_latency[i].row_bytes, work, &links.nodes);
        ck_assert_double_le(error_of(low_latency[i].what, low_latency[i].ranks, low_latency[i].measured, t),
                            low_latency[i].tolerance);
    }
}
END_TEST

/* ---- UCCL-EP on p5en: published GB/s x us are bytes that count rows which stay on their node ---- */

START_TEST(uccl_bytes)
{
    static const struct {
        int64_t ranks, nodes;
        bool back;
        double megabytes;
    } rows[] = {{16, 2, false, 59.8}, {24, 3, false, 86.5},  {32, 4, false, 109.2}, {16, 2, false, 60.5},
                {24, 3, false, 86.8}, {32, 4, false, 109.8}, {8, 1, false, 160},    {8, 1, true, 310}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mc_ep_load l = v3(4096, rows[i].ranks, rows[i].nodes, false);
        double row = mc_ep_row_bytes(WIDTH, rows[i].back ? MOEC_BF16 : MOEC_F8E4M3), n = (double)rows[i].nodes;
        mc_ep_flow f = mc_ep_flow_of(&l, rows[i].nodes > 1 ? MC_EP_BY_NODE : MC_EP_BY_RANK, row);
        double model = (rows[i].nodes > 1 ? f.nodes * n / (n - 1) : f.fabric) / 1e6;
        ck_assert_double_le(error_of("UCCL-EP megabytes", rows[i].ranks, rows[i].megabytes, model), 0.012);
    }
}
END_TEST

/* ---- DeepEP V2, SM90, 8192 tokens: the rate of the network cards is that of V1 ---- */

START_TEST(deepep_v2)
{
    static const struct {
        int64_t ranks, nodes;
        bool back;
        double rate; /* published GB/s, local rows counted */
    } rows[] = {{16, 2, false, 90}, {16, 2, true, 81}, {32, 4, false, 61}, {32, 4, true, 61}};
    mc_ep_links links = links_of("cx7-400,h100");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mc_ep_load l = v3(8192, rows[i].ranks, rows[i].nodes, true);
        double n = (double)rows[i].nodes;
        mc_ep_flow f = mc_ep_flow_of(&l, MC_EP_BY_NODE, mc_ep_row_bytes(WIDTH, rows[i].back ? MOEC_BF16 : MOEC_F8E4M3));
        double measured = 1e6 * f.nodes * n / (n - 1) / (rows[i].rate * 1e9);
        double t = 1e6 * mc_ep_flow_time(&f, &l, &links);
        ck_assert_double_le(error_of("DeepEP V2 SM90", rows[i].ranks, measured, t), 0.09);
    }
}
END_TEST

/* ---- a mesh of 4 network namespaces with 2 ranks each and links of 400 and 200 Mbit/s: E 64, k 8, 256 tokens of 4 KB.
 *      Medians of 7, Open MPI; TCP under a token bucket is bursty: ranking exact, time within 35 %. ---- */

static const struct {
    double mbit, effective; /* GB/s */
    int64_t keep;           /* nodes of 4 */
    double there[3], back[3];
} emulated[] = {
    {400, 0.038, 4, {399, 250, 168}, {418, 276, 157}},
    {400, 0.038, 2, {385, 153, 67}, {432, 205, 78}},
    {200, 0.019, 4, {754, 532, 337}, {763, 532, 332}},
    {200, 0.019, 2, {705, 301, 146}, {882, 330, 141}},
};

START_TEST(emulated_mesh)
{
    static const char *const names[] = {"mesh by expert", "mesh by rank", "mesh by node"};
    for (size_t i = 0; i < sizeof emulated / sizeof *emulated; i++) {
        mc_ep_links links = links_of("1gbe,cpu");
        links.nodes.rate = emulated[i].effective;
        mc_ep_load l = {{64, 8, 4, emulated[i].keep}, 8, 4, 2, 256, false};
        double t[3];
        for (int way = 0; way < 3; way++) {
            mc_ep_flow f = mc_ep_flow_of(&l, way, 4096);
            t[way] = 1e3 * mc_ep_flow_time(&f, &l, &links);
            ck_assert_double_le(error_of(names[way], (int64_t)emulated[i].mbit, emulated[i].there[way], t[way]), 0.35);
            ck_assert_double_le(error_of(names[way], (int64_t)emulated[i].mbit, emulated[i].back[way], t[way]), 0.35);
        }
        ck_assert(emulated[i].there[0] > emulated[i].there[1] && emulated[i].there[1] > emulated[i].there[2]);
        ck_assert(t[0] > t[1] && t[1] > t[2]);
    }
}
END_TEST

/* On one machine, by node is by rank with another copy on top where processors copy. */
START_TEST(one_node)
{
    mc_ep_links links = links_of("cpu");
    mc_ep_load l = {{64, 8, 0, 0}, 8, 1, 8, 256, false};
    mc_ep_flow expert = mc_ep_flow_of(&l, MC_EP_BY_EXPERT, 4096), rank = mc_ep_flow_of(&l, MC_EP_BY_RANK, 4096);
    ck_assert(expert.nodes == 0 && rank.nodes == 0 && expert.node_messages == 0);
    ck_assert(mc_ep_flow_time(&rank, &l, &links) < mc_ep_flow_time(&expert, &l, &links));
    ck_assert(mc_ep_most_sent(&l, MC_EP_BY_RANK) == 0);
}
END_TEST

/* ---- DeepSeek-V3 on 4 nodes of 8, 4096 tokens a rank, no limit: the design's example ---- */

START_TEST(worked_example)
{
    mc_ep_links links = links_of("cx7-400,h800");
    mc_ep_load l = v3(4096, 32, 4, false);
    double fp8 = mc_ep_row_bytes(WIDTH, MOEC_F8E4M3), bf16 = mc_ep_row_bytes(WIDTH, MOEC_BF16);
    mc_ep_flow there = mc_ep_flow_of(&l, MC_EP_BY_NODE, fp8), back = mc_ep_flow_of(&l, MC_EP_BY_NODE, bf16);
    double dispatch = mc_ep_flow_time(&there, &l, &links), combine = mc_ep_flow_time(&back, &l, &links);
    ck_assert_double_le(error_of("remote MB there", 32, 82.1, there.nodes / 1e6), 0.005);
    ck_assert_double_le(error_of("remote MB back", 32, 159, back.nodes / 1e6), 0.005);
    ck_assert_double_le(error_of("dispatch us", 32, 1870, dispatch * 1e6), 0.005);
    ck_assert_double_le(error_of("combine us", 32, 3620, combine * 1e6), 0.005);
    double experts = mc_ep_experts_time(4096 * 8, 3.0 * WIDTH * 2048, 8.0 * 3 * WIDTH * 2048, &links.ranks);
    ck_assert_double_le(error_of("experts us", 32, 4800, experts * 1e6), 0.01);
    ck_assert_double_le(error_of("serial us", 32, 10300, (dispatch + experts + combine) * 1e6), 0.01);
    double stages[] = {dispatch + combine, experts};
    ck_assert_double_le(error_of("4 chunks us", 32, 6900, mc_ep_pipelined(stages, 2, 4, 50e-6) * 1e6), 0.01);
    mc_ep_flow wide = mc_ep_flow_of(&l, MC_EP_BY_NODE, bf16);
    ck_assert_double_le(error_of("bf16 there adds us", 32, 1750, (mc_ep_flow_time(&wide, &l, &links) - dispatch) * 1e6),
                        0.01);
    static const double both[] = {12.2, 11.1, 5.5, 19.1}; /* ms: by expert, rank, node, all */
    for (int way = 0; way < MC_EP_N_WAYS; way++) {
        mc_ep_flow a = mc_ep_flow_of(&l, way, fp8), b = mc_ep_flow_of(&l, way, bf16);
        double t = mc_ep_flow_time(&a, &l, &links) + mc_ep_flow_time(&b, &l, &links);
        ck_assert_double_le(error_of("both ways us", way, both[way] * 1e3, t * 1e6), 0.01);
    }
    mc_ep_load limited = l;
    limited.choice = (mc_ep_choice){EXPERTS, TOP, 4, 2};
    mc_ep_flow a = mc_ep_flow_of(&limited, MC_EP_BY_NODE, fp8), b = mc_ep_flow_of(&limited, MC_EP_BY_NODE, bf16);
    double cards = (a.nodes + b.nodes) / (links.nodes.rate * 1e9);
    ck_assert_double_le(error_of("limit of 2 nodes us", 32, 3030, cards * 1e6), 0.01);
    ck_assert(mc_ep_flow_time(&a, &limited, &links) + mc_ep_flow_time(&b, &limited, &links) > cards); /* the fabric */
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("ep_plan");
    TCase *all = tcase_create("cost");
    tcase_add_test(all, hits_without_limit);
    tcase_add_test(all, hits_with_limit);
    tcase_add_test(all, deepep_normal);
    tcase_add_test(all, one_sided);
    tcase_add_test(all, uccl_bytes);
    tcase_add_test(all, deepep_v2);
    tcase_add_test(all, emulated_mesh);
    tcase_add_test(all, one_node);
    tcase_add_test(all, worked_example);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
