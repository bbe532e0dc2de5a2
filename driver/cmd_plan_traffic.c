/* A trace's layers are the plan's, in order; made-up traffic stands for all of them. Who holds what is decided layer by
 * layer; of each kind of layers, the one that is loaded least evenly is simulated. */
#include "driver/plan_traffic.h"

#include "driver/command.h"
#include "passes/ep/eplb.h"
#include "runtime/placement.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS = 1 << 16 };

typedef struct simulation {
    mc_plan_traffic *t;
    const mc_ep_plan *plan;
    mc_arena *arena;
    bool json;
    mc_buf *out;
    mc_fault fault;
} simulation;

static const mc_ep_layer *
layer_of(const simulation *s, size_t instance)
{
    return &s->plan->layers.items[s->plan->instances.items[instance].kind];
}

/* ---- options ---- */

static bool
read_number(const mc_cli *cli, mc_option option, uint64_t least, uint64_t most, uint64_t *out)
{
    const char *text = mc_cli_value(cli, option);
    char *end = NULL;
    if (!text) return true;
    unsigned long long value = *text >= '0' && *text <= '9' && strlen(text) < 20 ? strtoull(text, &end, 10) : 0;
    if (end && !*end && value >= least && value <= most) {
        *out = value;
        return true;
    }
    mc_cli_usage("--%s takes a whole number from %llu to %llu, not '%s'", mc_option_infos[option].name,
                 (unsigned long long)least, (unsigned long long)most, text);
    return false;
}

static int
check_together(const mc_cli *cli, const mc_plan_traffic *t)
{
    static const mc_option simulating[] = {MC_OPTION_SKEW, MC_OPTION_PLACEMENT, MC_OPTION_SEED};
    for (size_t i = 0; i < sizeof simulating / sizeof *simulating; i++)
        if (mc_cli_has(cli, simulating[i]) && !t->ranks)
            return mc_cli_usage("--%s is of a simulation: give --simulate RANKS, too",
                                mc_option_infos[simulating[i]].name);
    if (t->trace_path && mc_cli_has(cli, MC_OPTION_SKEW))
        return mc_cli_usage("traffic is either recorded (--trace) or made up (--skew), not both");
    if (t->trace_path && !t->ranks && !t->place)
        return mc_cli_usage("--trace is for --simulate RANKS, or --place FILE: give one of them, too");
    if (t->place && !t->trace_path)
        return mc_cli_usage("--place needs what tokens chose: --trace FILE, which moec route -o FILE records");
    return MC_EXIT_OK;
}

int
mc_plan_traffic_begin(const mc_cli *cli, mc_plan_traffic *t)
{
    const char *skew = mc_cli_value(cli, MC_OPTION_SKEW), *layout = mc_cli_value(cli, MC_OPTION_PLACEMENT);
    mc_fault fault = {0};
    uint64_t ranks = 0;
    *t = (mc_plan_traffic){.place = mc_cli_value(cli, MC_OPTION_PLACE),
                           .trace_path = mc_cli_value(cli, MC_OPTION_TRACE),
                           .has_layout = layout != NULL};
    if (!read_number(cli, MC_OPTION_SIMULATE, 1, MOST_RANKS, &ranks) ||
        !read_number(cli, MC_OPTION_SEED, 0, INT64_MAX, &t->seed))
        return MC_EXIT_USAGE;
    t->ranks = (int64_t)ranks;
    if (skew && mc_skew_parse(mc_str_of(skew), &t->law, &fault) != MOEC_OK)
        return mc_cli_usage("--skew: %s", fault.text);
    if (layout && !mc_sim_layout_parse(mc_str_of(layout), &t->layout))
        return mc_cli_usage("--placement takes eplb, contiguous or round_robin, not '%s'", layout);
    int code = check_together(cli, t);
    if (code != MC_EXIT_OK || !t->trace_path) return code;
    moec_status s = mc_trace_open(t->trace_path, &t->trace, &fault);
    return s == MOEC_OK ? MC_EXIT_OK : mc_command_failed(s, fault.text);
}

void
mc_plan_traffic_end(mc_plan_traffic *t)
{
    mc_trace_close(t->trace);
    *t = (mc_plan_traffic){0};
}

/* ---- traces ---- */

static moec_status
check_trace(simulation *s)
{
    size_t n = s->plan->instances.n;
    mc_trace_layer *layers = MC_NEW_N(s->arena, mc_trace_layer, n);
    for (size_t i = 0; i < n; i++) {
        const mc_ep_choice *c = &layer_of(s, i)->load.choice;
        layers[i] = (mc_trace_layer){.name = mc_str_dup(s->arena, s->plan->instances.items[i].path).data,
                                     .n_experts = (uint32_t)c->experts,
                                     .top_k = (uint32_t)c->k};
    }
    mc_trace_info info = {
        .model = mc_str_dup(s->arena, s->plan->model).data, .layers = layers, .n_layers = (uint32_t)n};
    return mc_trace_check(s->t->trace, &info, &s->fault);
}

static float *
loads_of(simulation *s, size_t instance)
{
    const mc_ep_load *load = &layer_of(s, instance)->load;
    float *loads = MC_NEW_N(s->arena, float, load->choice.experts);
    if (s->t->trace)
        mc_trace_loads(s->t->trace, (uint32_t)instance, loads);
    else
        mc_skew_loads(s->arena, &s->t->law, s->t->seed, load->choice.experts, s->t->ranks, loads);
    return loads;
}

/* The most popular expert's load against the mean: 0 for a layer without tokens. */
static double
unevenness(simulation *s, size_t instance)
{
    int64_t n = layer_of(s, instance)->load.choice.experts;
    const float *loads = loads_of(s, instance);
    double sum = 0, most = 0;
    for (int64_t e = 0; e < n; e++) {
        sum += loads[e];
        if (loads[e] > most) most = loads[e];
    }
    return sum > 0 ? most * (double)n / sum : 0;
}

static size_t
instance_to_show(simulation *s, size_t kind)
{
    size_t found = 0;
    double worst = -1;
    for (size_t i = 0; i < s->plan->instances.n; i++) {
        if (s->plan->instances.items[i].kind != kind) continue;
        double uneven = s->t->trace ? unevenness(s, i) : 0;
        if (uneven > worst) worst = uneven, found = i;
    }
    return found;
}

static moec_status
recorded(simulation *s, size_t instance, mc_sim_recorded *out)
{
    const mc_ep_load *load = &layer_of(s, instance)->load;
    uint64_t n = mc_trace_n_tokens(s->t->trace, (uint32_t)instance), k = (uint64_t)load->choice.k, size, at = 0;
    if (n == 0)
        return mc_fail(&s->fault, MOEC_ERR_ARGUMENT, "%s has no tokens for %.*s", s->t->trace_path,
                       MC_FMT(s->plan->instances.items[instance].path));
    if (__builtin_mul_overflow(n, k, &size) || size > UINT32_MAX)
        return mc_fail(&s->fault, MOEC_ERR_RANGE, "%s has more tokens than can be simulated", s->t->trace_path);
    int32_t *ids = MC_NEW_N(s->arena, int32_t, size);
    mc_trace_record r;
    for (mc_trace_rewind(s->t->trace); mc_trace_next(s->t->trace, &r);) {
        if (r.layer != instance) continue;
        memcpy(ids + at, r.ids, (size_t)(r.n_tokens * k) * sizeof *ids);
        at += r.n_tokens * k;
    }
    *out = (mc_sim_recorded){ids, (int64_t)n, load->choice.k, load->tokens};
    return MOEC_OK;
}

/* ---- simulation ---- */

/* The layer on --simulate's ranks, with as many of them on a node as the plan has. */
static moec_status
set_up(simulation *s, const mc_ep_layer *l, mc_sim_setup *out)
{
    int64_t ranks = s->t->ranks, per_node = l->load.ranks / l->load.nodes;
    *out = (mc_sim_setup){.load = l->load,
                          .links = s->plan->settings.links,
                          .there_bytes = l->there.row_bytes,
                          .back_bytes = l->back.row_bytes,
                          .products = l->products,
                          .expert_bytes = l->expert_bytes,
                          .strict = s->plan->mesh.order == MC_EP_STRICT};
    if (ranks == l->load.ranks) return MOEC_OK;
    if (per_node > ranks) per_node = ranks;
    if (ranks % per_node)
        return mc_fail(
            &s->fault, MOEC_ERR_ARGUMENT,
            "--simulate %lld: the plan has %lld ranks on a node; simulate a multiple of them, or give --nodes",
            (long long)ranks, (long long)per_node);
    out->load.ranks = ranks;
    out->load.nodes = ranks / per_node;
    out->load.on_node = per_node;
    return MOEC_OK;
}

static mc_sim_layout
layout_of(const simulation *s)
{
    if (s->t->has_layout) return s->t->layout;
    if (s->plan->mesh.redundant) return MC_SIM_EPLB;
    return s->plan->mesh.round_robin ? MC_SIM_ROUND_ROBIN : MC_SIM_CONTIGUOUS;
}

static moec_status
simulate_layer(simulation *s, size_t instance)
{
    const mc_ep_layer *l = layer_of(s, instance);
    mc_sim_setup setup;
    mc_sim_recorded trace = {0};
    mc_sim_skew made = {.law = s->t->law, .seed = s->t->seed, .choice = l->load.choice, .arena = s->arena};
    mc_sim_result result;
    moec_status status = set_up(s, l, &setup);
    if (status == MOEC_OK)
        status = mc_sim_slots(s->arena, layout_of(s), &setup.load, s->plan->mesh.redundant, loads_of(s, instance),
                              &setup.slots, &setup.slots_per_rank, &s->fault);
    if (status == MOEC_OK && s->t->trace) status = recorded(s, instance, &trace);
    if (status == MOEC_OK)
        status = mc_simulate(s->arena, &setup, s->t->trace ? mc_sim_recorded_fill : mc_sim_skew_fill,
                             s->t->trace ? (void *)&trace : (void *)&made, &result, &s->fault);
    if (status != MOEC_OK) return status;
    mc_buf traffic = {0};
    if (s->t->trace) {
        mc_buf_printf(&traffic, "of %s", s->t->trace_path);
    } else {
        mc_skew_print(&s->t->law, &traffic);
        mc_buf_printf(&traffic, ", seed %llu", (unsigned long long)s->t->seed);
    }
    (s->json ? mc_sim_json : mc_sim_print)(&setup, &result, traffic.data, layout_of(s), s->out);
    mc_buf_fini(&traffic);
    return MOEC_OK;
}

static moec_status
simulate_all(simulation *s)
{
    if (s->json) mc_buf_puts(s->out, ",\"simulated\":[");
    for (size_t kind = 0, n = 0; kind < s->plan->layers.n; kind++) {
        const mc_ep_layer *l = &s->plan->layers.items[kind];
        size_t instance = instance_to_show(s, kind);
        mc_str path = s->plan->instances.items[instance].path;
        if (!path.len) path = MC_STR("the experts");
        if (!s->json) mc_buf_printf(s->out, "\n%.*s ", MC_FMT(path));
        if (l->experts_choose) { /* every expert takes as many tokens: nothing to find out */
            if (!s->json) mc_buf_puts(s->out, "choose their tokens: always as many\n");
            continue;
        }
        if (s->json && n++) mc_buf_putc(s->out, ',');
        moec_status status = simulate_layer(s, instance);
        if (status != MOEC_OK) return status;
    }
    if (s->json) mc_buf_putc(s->out, ']');
    return MOEC_OK;
}

/* ---- places ---- */

/* Adds the layer's balance to *balance, and what it would be in the plan's own places to *before. */
static moec_status
place_layer(simulation *s, size_t instance, mc_placement_layer *out, double *before, double *balance)
{
    const mc_ep_layer *l = layer_of(s, instance);
    const mc_ep_choice *c = &l->load.choice;
    bool nests = c->groups > 1 && c->experts % c->groups == 0;
    int64_t n_slots = l->slots * l->load.ranks;
    mc_eplb_shape shape = {(int32_t)c->experts, (int32_t)n_slots, nests ? (int32_t)c->groups : 1,
                           (int32_t)l->load.nodes, (int32_t)l->load.ranks};
    int32_t *slots = MC_NEW_N(s->arena, int32_t, n_slots), *counts = MC_NEW_N(s->arena, int32_t, c->experts);
    const float *loads = loads_of(s, instance);
    for (int64_t i = 0; i < n_slots; i++) counts[l->placed[i]]++;
    *before += mc_eplb_balance(&shape, loads, l->placed, counts);
    moec_status status =
        mc_eplb_place(s->arena, &shape, loads, 1, &(mc_eplb_placement){.slots = slots, .counts = counts}, &s->fault);
    if (status != MOEC_OK) return status;
    *balance += mc_eplb_balance(&shape, loads, slots, counts);
    mc_str path = s->plan->instances.items[instance].path;
    *out = (mc_placement_layer){mc_str_dup(s->arena, path).data, (uint32_t)c->experts, (uint32_t)n_slots, slots};
    return MOEC_OK;
}

static moec_status
place_all(simulation *s)
{
    size_t n = s->plan->instances.n;
    mc_placement_layer *layers = MC_NEW_N(s->arena, mc_placement_layer, n);
    double before = 0, balance = 0;
    for (size_t i = 0; i < n; i++) {
        moec_status status = place_layer(s, i, &layers[i], &before, &balance);
        if (status != MOEC_OK) return status;
    }
    mc_placement placement = {.model = mc_str_dup(s->arena, s->plan->model).data,
                              .hash = mc_trace_about(s->t->trace)->hash,
                              .n_ranks = (uint32_t)s->plan->mesh.ep,
                              .n_nodes = (uint32_t)(s->plan->mesh.ep / s->plan->mesh.per_node),
                              .layers = layers,
                              .n_layers = (uint32_t)n};
    moec_status status = mc_placement_write(s->t->place, &placement, &s->fault);
    if (status != MOEC_OK) return status;
    before /= (double)n;
    balance /= (double)n;
    if (s->json)
        mc_buf_printf(s->out, ",\"placed\":{\"layers\":%zu,\"balance_before\":%.9g,\"balance\":%.9g}", n, before,
                      balance);
    else
        mc_buf_printf(s->out,
                      "\nplaced %zu layers by %s: the mean rank has %.1f %% of the busiest one's work, not %.1f %%\n",
                      n, s->t->trace_path, 100 * balance, 100 * before);
    return MOEC_OK;
}

int
mc_plan_traffic_run(mc_plan_traffic *t, const mc_ep_plan *plan, mc_arena *arena, bool json, mc_buf *out)
{
    simulation s = {.t = t, .plan = plan, .arena = arena, .json = json, .out = out};
    moec_status status = t->trace ? check_trace(&s) : MOEC_OK;
    if (status == MOEC_OK && t->ranks) status = simulate_all(&s);
    if (status == MOEC_OK && t->place) status = place_all(&s);
    return status == MOEC_OK ? MC_EXIT_OK : mc_command_failed(status, s.fault.text);
}
