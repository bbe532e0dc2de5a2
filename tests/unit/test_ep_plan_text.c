/* Plans of expert parallelism: what is read (place blocks, files of links, with bad and random text), what is decided
 * from a model, and that text and JSON say the same every time. */
#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver/unit.h"
#include "passes/ep/plan.h"

static mc_unit u;
static moec_compile_options options;

static void
setup(void)
{
    options = (moec_compile_options){.pipeline = "expand-moe,canonicalize,cse,dce,fuse-moe,carve-fp8,dce"};
    mc_unit_init(&u, &options);
}

static void
teardown(void)
{
    mc_unit_fini(&u);
}

/* ---- place blocks ---- */

static const struct {
    const char *text;
    mc_ep_mesh_state state;
    int64_t ep, dp, nodes, per_node;
} meshes[] = {
    {"", MC_EP_MESH_NONE, 1, 1, 0, 0},
    {"mesh x = 4", MC_EP_MESH_NONE, 1, 1, 0, 0},
    {"mesh ep = 4", MC_EP_MESH_READ, 4, 1, 1, 4},
    {"mesh dp = 4, ep = 64, tp = 1; experts over = ep; tokens over = [dp, ep]", MC_EP_MESH_READ, 64, 4, 1, 64},
    {"mesh x = 6; experts over = x; nodes 3", MC_EP_MESH_READ, 6, 1, 3, 2},
    {"mesh a = 2, b = 3, c = 4; experts over = b; tokens over = [a, b, c]; nodes 8", MC_EP_MESH_READ, 3, 8, 8, 3},
    {"experts over = ep; mesh ep = 4; mesh ep = 8; nodes 2; nodes 4", MC_EP_MESH_READ, 8, 1, 4, 2},
    {"mesh ep = 1, tp = 1; experts over = ep; tokens over = ep", MC_EP_MESH_READ, 1, 1, 1, 1},
    {"mesh dp = 2, ep = 1; experts over = ep; tokens over = [dp]", MC_EP_MESH_READ, 1, 2, 1, 1},
    {"mesh ep = 0; experts over = ep", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 1048577; experts over = ep", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 99999999999999999999999; experts over = ep", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 1048576, dp = 1048576; experts over = ep", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 4; experts over = dp", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 4, dp = 2; experts over = ep; tokens over = [dp]", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 4, tp = 2; experts over = ep", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 4, dp = 2; experts over = ep; tokens over = ep", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 4; experts over = ep; tokens over = [ep, zz]", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 4; experts over = ep; nodes 3", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 4, dp = 3; experts over = ep; nodes 2", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 4; experts over = ep; nodes 0", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 4; experts over = ep; order loose", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 4; experts over = ep; exchange", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 4; experts over = ep; layout heap", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh ep = 4 experts over = ep", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh a=1,b=1,c=1,d=1,e=1,f=1,g=1,h=1,i=1; experts over = a", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"mesh", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {"tokens over = [", MC_EP_MESH_WRONG, 0, 0, 0, 0},
    {";", MC_EP_MESH_WRONG, 0, 0, 0, 0},
};

START_TEST(reads_meshes)
{
    mc_ep_mesh mesh;
    int before = u.diags.n_errors;
    bool good = mc_ep_mesh_parse(mc_str_of(meshes[_i].text), &mesh, &u.diags);
    ck_assert_msg(mesh.state == meshes[_i].state, "'%s': %d", meshes[_i].text, (int)mesh.state);
    ck_assert(good == (mesh.state == MC_EP_MESH_READ));
    ck_assert((u.diags.n_errors > before) == (mesh.state == MC_EP_MESH_WRONG));
    if (!good) return;
    ck_assert_int_eq(mesh.ep, meshes[_i].ep);
    ck_assert_int_eq(mesh.dp, meshes[_i].dp);
    ck_assert_int_eq(mesh.nodes, meshes[_i].nodes);
    ck_assert_int_eq(mesh.per_node, meshes[_i].per_node);
}
END_TEST

START_TEST(reads_settings)
{
    ck_assert(mc_ep_mesh_is_axes(MC_STR("ep=4")) && mc_ep_mesh_is_axes(MC_STR(" dp = 2 , ep = 3, tp = 2 ")));
    ck_assert(!mc_ep_mesh_is_axes(MC_STR("")) && !mc_ep_mesh_is_axes(MC_STR("ep")));
    ck_assert(!mc_ep_mesh_is_axes(MC_STR("ep=0")) && !mc_ep_mesh_is_axes(MC_STR("ep=4; nodes 2")));
    mc_ep_mesh mesh;
    ck_assert(mc_ep_mesh_parse(MC_STR("mesh ep = 2; experts over = ep; redundant 32; layout round_robin; order tree; "
                                      "exchange rank"),
                               &mesh, &u.diags));
    ck_assert(mesh.redundant == 32 && mesh.round_robin && mesh.order == MC_EP_TREE && mesh.exchange == MC_EP_BY_RANK);
    ck_assert(mc_ep_mesh_parse(MC_STR("mesh ep = 2; experts over = ep"), &mesh, &u.diags));
    ck_assert(!mesh.redundant && !mesh.round_robin && mesh.order == MC_EP_STRICT && mesh.exchange == MC_EP_AUTO);
}
END_TEST

/* ---- files of links ---- */

static bool
read_links(const char *text, size_t n, mc_ep_links *out)
{
    uint32_t file = mc_sources_add(&u.sources, MC_STR("links"), (mc_str){text, n});
    return mc_ep_links_parse(&u.sources, file, out, &u.diags);
}

START_TEST(reads_links)
{
    static const char text[] = "nodes.rate = 3.5\n# all of them\n\n nodes =  25gbe # wins nothing\nfabric = h800\n"
                               "fabric.latency=2\nranks = h200\nranks.memory = 1e3\r\nnodes.per = rank";
    mc_ep_links links;
    ck_assert(read_links(text, sizeof text - 1, &links));
    ck_assert_double_eq(links.nodes.rate, 3.5);
    ck_assert(links.nodes.measured && !links.fabric.measured && links.ranks.measured);
    ck_assert(!links.nodes.per_node);
    ck_assert_double_eq(links.fabric.rate, 145);
    ck_assert_double_eq(links.fabric.latency, 2);
    ck_assert_double_eq(links.ranks.memory, 1000);
    ck_assert_double_eq(links.ranks.compute, 600);
    ck_assert(read_links("", 0, &links));
    ck_assert(mc_ep_links_named(MC_STR("cx7-400,h800"), &links));
    ck_assert_str_eq(links.ranks.name, "h800");
    ck_assert(!mc_ep_links_named(MC_STR("cx7-400,"), &links));
    ck_assert(!mc_ep_links_named(MC_STR(""), &links));
}
END_TEST

static const char *const bad_links[] = {"nodes.rate = 0",
                                        "nodes.rate = -1",
                                        "nodes.rate = nan",
                                        "nodes.rate = inf",
                                        "nodes.rate = 1e400",
                                        "nodes.rate =",
                                        "nodes.rate",
                                        "nodes.rate = 1e-300",
                                        "fabric.rate = 0x10",
                                        "rate = 3",
                                        "nodes = cx8",
                                        "fabric = cx7-400",
                                        "ranks = 3",
                                        "= 3",
                                        "nodes.per = card",
                                        "nodes.rate = 1\nnodes.rate = 2",
                                        "nodes.latency = -0.5",
                                        "ranks.compute = 0",
                                        "ranks.memory = 1 2",
                                        "fabric.rate = 1111111111111111111111111111111111111111111111111111111111111"};

START_TEST(refuses_links)
{
    mc_ep_links links;
    const char *text = bad_links[_i];
    ck_assert_msg(!read_links(text, strlen(text), &links), "%s", text);
    ck_assert_int_eq(u.diags.n_errors, 1);
    ck_assert(u.diags.list.items[0].code == MC_E0802 && u.diags.list.items[0].span.file != 0);
}
END_TEST

/* Text with bytes changed, removed and doubled: either read or refused, never neither. */
START_TEST(survives_random_text)
{
    static const char links[] =
        "nodes = cx7-400\nfabric = h800 # x\nnodes.rate = 43.5\nranks.memory=3350\nnodes.per = rank\n";
    static const char place[] =
        "mesh dp = 4, ep = 64, tp = 1; experts over = ep; tokens over = [dp, ep]; nodes 8; order tree";
    const char *rounds = getenv("MOEC_TEST_ROUNDS");
    uint64_t seed = 1;
    for (int round = rounds ? atoi(rounds) : 4000; round > 0; round--) {
        bool is_place = round % 2;
        char text[256];
        size_t n = is_place ? sizeof place - 1 : sizeof links - 1;
        memcpy(text, is_place ? place : links, n);
        for (int change = 0; change < 1 + round % 4; change++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            size_t at = (size_t)(seed >> 40) % n;
            int what = (int)(seed >> 33) % 4;
            if (what == 0) text[at] = (char)(seed >> 25);
            if (what == 1) text[at] = "=,;[]#\n 0-9."[(seed >> 20) % 12];
            if (what == 2 && n > 1) memmove(text + at, text + at + 1, --n - at);
            if (what == 3 && n < sizeof text - 1) memmove(text + at + 1, text + at, n++ - at);
        }
        mc_arena *arena = mc_arena_create();
        mc_sources sources = {.arena = arena};
        mc_diags diags;
        mc_diags_init(&diags, arena, &sources);
        bool good = false, none = false;
        if (is_place) {
            mc_ep_mesh mesh;
            good = mc_ep_mesh_parse((mc_str){text, n}, &mesh, &diags);
            none = mesh.state == MC_EP_MESH_NONE;
            ck_assert(!good || (mesh.ep >= 1 && mesh.dp >= 1 && mesh.ep % mesh.per_node == 0));
        } else {
            mc_ep_links out;
            uint32_t file = mc_sources_add(&sources, MC_STR("l"), (mc_str){text, n});
            good = mc_ep_links_parse(&sources, file, &out, &diags);
            ck_assert(!good || (out.nodes.rate > 0 && out.fabric.rate > 0 && isfinite(out.nodes.rate)));
        }
        ck_assert_int_eq(diags.n_errors, good || none ? 0 : 1);
        mc_arena_destroy(arena);
    }
}
END_TEST

/* ---- decisions ---- */

/* Two kinds of layers; the second's route knows no groups. */
static const char model[] = "moe 1\ndim T\nparam E = 16, layers = 3\n"
                            "model m(x: f32[T, 256]) -> f32[T, 256] {\n"
                            "  repeat@layers layers as i {\n"
                            "    x = x + moe@mlp(x) {\n"
                            "      route   linear@gate | sigmoid | groups(4, keep = 2) | top 4 | renorm\n"
                            "      experts E of swiglu(128)\n"
                            "    }\n"
                            "  }\n"
                            "  return x + moe@last(x) {\n"
                            "    route   linear@gate | softmax | top 2\n"
                            "    experts 8 of swiglu(128)\n"
                            "  }\n"
                            "}\n";

static bool
plan_of(const char *text, const char *place, const char *precision, mc_ep_plan *plan)
{
    mc_ep_mesh mesh;
    mc_ep_settings settings = {.tokens = 512};
    mc_buf all = {0};
    mc_buf_printf(&all, "%sprecision { %s }\nplace { mesh ep = 4; experts over = ep; %s }\n", text, precision, place);
    mc_ep_links_named(MC_STR("cx7-400,h800"), &settings.links);
    mc_unit_text(&u, "m.moe", all.data, all.len);
    mc_buf_fini(&all);
    bool good = mc_unit_elaborate(&u) && mc_unit_passes(&u, NULL) && mc_ep_mesh_read(u.module, &mesh, &u.diags) &&
                mc_ep_plan_make(u.module, &mesh, &settings, u.arena, &u.diags, plan);
    return good;
}

START_TEST(finds_layers)
{
    mc_ep_plan plan;
    ck_assert(plan_of(model, "nodes 2", "storage f32", &plan));
    ck_assert_uint_eq(plan.layers.n, 2);
    const mc_ep_layer *a = &plan.layers.items[0], *b = &plan.layers.items[1];
    ck_assert(mc_str_is(a->first, "layers.0.mlp") && mc_str_is(a->last, "layers.2.mlp") && a->times == 3);
    ck_assert(mc_str_is(b->first, "last") && b->times == 1);
    ck_assert(a->width == 256 && a->inner == 128 && a->products == 3 * 256 * 128 && a->dtype == MOEC_F32);
    ck_assert(a->load.choice.experts == 16 && a->load.choice.k == 4);
    ck_assert(a->load.choice.groups == 4 && a->load.choice.keep == 2 && b->load.choice.groups == 0);
    ck_assert(a->slots == 4 && b->slots == 2 && a->load.ranks == 4 && a->load.nodes == 2);
    for (int i = 0; i < 16; i++) ck_assert_int_eq(a->placed[i], i);
    ck_assert_uint_eq(plan.instances.n, 4);
    ck_assert(mc_str_is(plan.instances.items[1].path, "layers.1.mlp") && plan.instances.items[3].kind == 1);
    ck_assert(mc_ep_plan_layer(&plan, a->dispatch) == a && mc_ep_plan_layer(&plan, b->dispatch) == b);
}
END_TEST

/* Experts of one product, whose rows go on as slots: a mixture of attention heads. */
START_TEST(finds_single_products)
{
    static const char text[] = "moe 1\ndim T\nmodel m(x: f32[T, 64]) -> f32[T, 64] {\n"
                               "  r = route@router(x, 8) { linear@gate | softmax | top 2 }\n"
                               "  q = expert_map(x, r, linear@heads(48))\n"
                               "  return expert_sum(q, r, linear@out(64))\n}\n";
    mc_ep_plan plan;
    ck_assert(plan_of(text, "nodes 2", "storage f32", &plan));
    ck_assert_uint_eq(plan.layers.n, 2);
    ck_assert(plan.layers.items[0].width == 64 && plan.layers.items[0].inner == 48);
    ck_assert(plan.layers.items[1].width == 48 && plan.layers.items[1].inner == 64);
}
END_TEST

START_TEST(bounds_hold)
{
    mc_ep_plan plan;
    ck_assert(plan_of(model, "nodes 2", "storage f32", &plan));
    const mc_ep_layer *a = &plan.layers.items[0], *b = &plan.layers.items[1];
    ck_assert_double_eq(a->assignments, 512 * 4);
    ck_assert_double_eq(a->most_assignments, 512 * 4 * 4);
    ck_assert_double_eq(b->most_assignments, 512 * 4 * 2); /* a rank has 2 of them */
    ck_assert_double_eq(a->most_rows, 512 * 4);
    ck_assert(a->rows <= a->most_rows && a->rows >= 512);
    for (int way = 0; way < MC_EP_N_EXCHANGES; way++) {
        const mc_ep_weighed *w = &a->ways[way];
        ck_assert(w->there.nodes <= mc_ep_most_sent(&a->load, way) * a->there.row_bytes);
        ck_assert(w->back.nodes <= a->most_back);
    }
    ck_assert_double_eq(plan.deadline, 30);
    const char *const places[] = {"nodes 2; order tree; exchange expert", "nodes 2; order tree; exchange rank",
                                  "nodes 2; order tree; exchange node"};
    for (int i = 0; i < 3; i++) { /* gates travel too */
        teardown();
        setup();
        ck_assert(plan_of(model, places[i], "compute bf16", &plan));
        for (size_t k = 0; k < plan.layers.n; k++) {
            const mc_ep_layer *l = &plan.layers.items[k];
            const mc_ep_weighed *w = &l->ways[l->way];
            ck_assert_msg(w->there.nodes <= l->most_sent && w->back.nodes <= l->most_back, "%s", places[i]);
            ck_assert(l->rows <= l->most_rows && l->assignments <= l->most_assignments);
        }
    }
}
END_TEST

/* What travels in which precision. */
static const struct {
    const char *place, *precision;
    moec_dtype there, back;
} wires[] = {
    {"order strict", "storage bf16; compute bf16", MOEC_F32, MOEC_F32},
    {"order tree", "storage bf16", MOEC_F32, MOEC_F32},
    {"order tree", "storage bf16; compute bf16", MOEC_BF16, MOEC_BF16},
    {"order tree", "compute bf16; fp8 e4m3, act = [1, 128], on = [experts]", MOEC_F8E4M3, MOEC_BF16},
    {"order strict", "compute bf16; fp8 e4m3, act = [1, 128], on = [experts]", MOEC_F32, MOEC_F32},
    {"order tree", "compute bf16; fp8 e4m3, act = [1, 128], on = [attention, experts], except = [experts]", MOEC_BF16,
     MOEC_BF16},
    {"order tree", "compute bf16; fp8 e4m3, act = token, on = [experts]", MOEC_BF16, MOEC_BF16},
    {"order tree", "compute bf16; fp8 e4m3, act = [1, 128], on = [experts], except = [\"**.gate_proj.*\"]", MOEC_BF16,
     MOEC_BF16},
    {"order tree", "fp8 e4m3, act = [1, 128], on = [experts]", MOEC_F32, MOEC_F32},
};

START_TEST(chooses_wires)
{
    mc_ep_plan plan;
    ck_assert(plan_of(model, wires[_i].place, wires[_i].precision, &plan));
    const mc_ep_layer *l = &plan.layers.items[0];
    ck_assert_msg(l->there.dtype == wires[_i].there && l->back.dtype == wires[_i].back, "%s; %s: %s, %s: %s",
                  wires[_i].place, wires[_i].precision, moec_dtype_name(l->there.dtype), moec_dtype_name(l->back.dtype),
                  l->there.why);
    double bytes = wires[_i].there == MOEC_F32 ? 1024 : wires[_i].there == MOEC_BF16 ? 512 : 256 + 8;
    ck_assert_double_eq(l->there.row_bytes, bytes);
}
END_TEST

static const struct {
    const char *place;
    mc_ep_exchange way; /* MC_EP_AUTO: an error */
} ways[] = {
    {"nodes 1", MC_EP_BY_RANK},
    {"nodes 2; order tree", MC_EP_BY_NODE},
    {"nodes 4; order tree", MC_EP_BY_RANK}, /* a rank is a node */
    {"nodes 2; exchange expert", MC_EP_BY_EXPERT},
    {"nodes 2; exchange node", MC_EP_BY_NODE},
    {"nodes 1; exchange node", MC_EP_AUTO},
    {"nodes 4; exchange node", MC_EP_AUTO},
    {"redundant 4; exchange rank", MC_EP_BY_RANK},
    {"nodes 3", MC_EP_AUTO},
};

START_TEST(chooses_ways)
{
    mc_ep_plan plan;
    bool good = plan_of(model, ways[_i].place, "storage f32", &plan);
    ck_assert_msg(good == (ways[_i].way != MC_EP_AUTO), "%s", ways[_i].place);
    for (size_t i = 0; i < u.diags.list.n; i++)
        if (mc_code_severity(u.diags.list.items[i].code) == MC_SEVERITY_ERROR)
            ck_assert_int_eq(u.diags.list.items[i].code, MC_E0801);
    if (good) ck_assert_msg(plan.layers.items[0].way == ways[_i].way, "%s", ways[_i].place);
}
END_TEST

START_TEST(places_copies)
{
    mc_ep_plan plan;
    ck_assert(plan_of(model, "redundant 16", "storage f32", &plan));
    const mc_ep_layer *l = &plan.layers.items[0];
    int held[16] = {0};
    ck_assert_int_eq(l->slots, 8);
    for (int64_t s = 0; s < 32; s++) held[l->placed[s]]++;
    for (int e = 0; e < 16; e++) ck_assert_int_eq(held[e], 2);
    ck_assert_double_eq(l->covered, 16); /* both copies of none are on one rank */
}
END_TEST

/* ---- texts ---- */

START_TEST(says_the_same)
{
    mc_buf text[2] = {{0}}, json[2] = {{0}};
    uint64_t hash[3];
    for (int i = 0; i < 3; i++) {
        mc_ep_plan plan;
        if (i) {
            teardown();
            setup();
        }
        ck_assert(plan_of(model, i < 2 ? "nodes 2" : "nodes 2; order tree", "storage f32", &plan));
        hash[i] = plan.hash;
        if (i == 2) break;
        mc_ep_plan_text(&plan, true, &text[i]);
        mc_ep_plan_json(&plan, &json[i]);
        mc_buf_putc(&json[i], '}');
        json_error_t error;
        json_t *parsed = json_loadb(json[i].data, json[i].len, 0, &error);
        ck_assert_msg(parsed != NULL, "%s", error.text);
        json_t *layers = json_object_get(parsed, "layers");
        ck_assert_uint_eq(json_array_size(layers), plan.layers.n);
        json_t *first = json_array_get(layers, 0);
        ck_assert(json_number_value(json_object_get(first, "rows_bound")) == plan.layers.items[0].most_rows);
        ck_assert_str_eq(json_string_value(json_object_get(first, "way")), mc_ep_way_name(plan.layers.items[0].way));
        json_decref(parsed);
    }
    ck_assert_str_eq(text[0].data, text[1].data);
    ck_assert_str_eq(json[0].data, json[1].data);
    ck_assert(hash[0] == hash[1] && hash[0] != hash[2]);
    for (int i = 0; i < 2; i++) mc_buf_fini(&text[i]), mc_buf_fini(&json[i]);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("ep_plan_text");
    TCase *all = tcase_create("plan");
    tcase_add_checked_fixture(all, setup, teardown);
    tcase_add_loop_test(all, reads_meshes, 0, (int)(sizeof meshes / sizeof *meshes));
    tcase_add_test(all, reads_settings);
    tcase_add_test(all, reads_links);
    tcase_add_loop_test(all, refuses_links, 0, (int)(sizeof bad_links / sizeof *bad_links));
    tcase_add_test(all, survives_random_text);
    tcase_add_test(all, finds_layers);
    tcase_add_test(all, finds_single_products);
    tcase_add_test(all, bounds_hold);
    tcase_add_loop_test(all, chooses_wires, 0, (int)(sizeof wires / sizeof *wires));
    tcase_add_loop_test(all, chooses_ways, 0, (int)(sizeof ways / sizeof *ways));
    tcase_add_test(all, places_copies);
    tcase_add_test(all, says_the_same);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
