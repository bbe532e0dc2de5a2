/* Making a plan. For each kind of layer every way is weighed by the cost model, and the cheapest that the mesh allows
 * is taken, unless the place block asks for one. In strict order every assignment's row goes back by itself, whatever
 * the way there is, and nothing is rounded on the wire: that is what equal bits cost. */
#include "passes/ep/plan.h"

#include "ir/print.h"
#include "passes/ep/eplb.h"
#include "passes/match.h"
#include "runtime/base/hash.h"

#include <string.h>

static const double LEAST_DEADLINE = 30, DEADLINE_FACTOR = 20; /* s; times the longest exchange predicted */

const char *
mc_ep_way_name(int way)
{
    static const char *const names[MC_EP_N_WAYS] = {"expert", "rank", "node", "all"};
    return names[way];
}

/* ---- what travels ---- */

/* Whether an fp8 line for the experts scales activations in the runs that travel. */
static bool
scales_runs(const mc_module *m)
{
    mc_str text = mc_module_meta(m, "precision.fp8");
    for (size_t begin = 0, end; begin < text.len; begin = end + 1) {
        bool runs = false, experts = false, excepted = false;
        for (end = begin; end < text.len && text.data[end] != '\n'; end++) {
            mc_str rest = mc_str_slice(text, end, text.len);
            runs = runs || mc_str_starts(rest, "act = [1, 128]");
            excepted = excepted || mc_str_starts(rest, "except =");
            experts = experts || (!excepted && mc_str_starts(rest, "experts"));
        }
        if (runs && experts) return true;
    }
    return false;
}

static void
choose_wires(const mc_module *m, const mc_ep_plan *plan, mc_ep_layer *l)
{
    bool half = mc_str_is(mc_module_meta(m, "precision.compute"), "bf16");
    l->there = (mc_ep_wire){.dtype = MOEC_F32, .why = "strict order: rows arrive as they are"};
    l->back = (mc_ep_wire){.dtype = MOEC_F32, .why = "strict order: every assignment's row returns as it is"};
    if (plan->mesh.order == MC_EP_TREE && !half) {
        l->there.why = "precision does not say 'compute bf16'";
        l->back.why = l->there.why;
    } else if (plan->mesh.order == MC_EP_TREE) {
        l->there = (mc_ep_wire){.dtype = MOEC_BF16, .why = "compute is bf16; the experts are not in FP8"};
        l->back = (mc_ep_wire){.dtype = MOEC_BF16, .why = "compute is bf16; sums are not sent in FP8"};
        if (l->reads_fp8) l->there.why = "compute is bf16; the experts are in FP8, but not 'act = [1, 128]'";
        if (l->reads_fp8 && plan->settings.trains) l->there.why = "training sends no FP8";
        if (l->reads_fp8 && !plan->settings.trains && scales_runs(m))
            l->there =
                (mc_ep_wire){.dtype = MOEC_F8E4M3, .why = "the experts are in FP8, scaled in the same runs of 128"};
    }
    l->there.row_bytes = mc_ep_row_bytes(l->width, l->there.dtype);
    l->back.row_bytes = mc_ep_row_bytes(l->width, l->back.dtype);
}

/* ---- who holds what ---- */

static bool
place_copies(const mc_ep_plan *plan, mc_ep_layer *l, int32_t *placed, mc_diags *diags)
{
    mc_arena *scratch = mc_arena_create();
    int64_t experts = l->load.choice.experts;
    mc_eplb_shape shape = {.n_experts = (int32_t)experts,
                           .n_slots = (int32_t)(l->slots * l->load.ranks),
                           .n_groups = l->load.choice.groups > 1 ? (int32_t)l->load.choice.groups : 1,
                           .n_nodes = (int32_t)l->load.nodes,
                           .n_ranks = (int32_t)plan->mesh.ep};
    float *loads = MC_NEW_N(scratch, float, experts);
    for (int64_t e = 0; e < experts; e++) loads[e] = 1;
    mc_eplb_placement out = {.slots = placed};
    mc_fault fault = {0};
    moec_status s = mc_eplb_place(scratch, &shape, loads, 1, &out, &fault);
    mc_arena_destroy(scratch);
    return s == MOEC_OK || mc_error(diags, l->dispatch->span, MC_E0801, "%s", fault.text);
}

/* Experts whose every copy is on one rank, for the rank with most of them. */
static int64_t
lost_with_one(const mc_ep_layer *l, mc_arena *arena)
{
    int64_t experts = l->load.choice.experts, worst = 0;
    int32_t *holder = MC_NEW_N(arena, int32_t, experts); /* rank + 1; -1: several */
    int64_t *lost = MC_NEW_N(arena, int64_t, l->load.ranks);
    for (int64_t s = 0; s < l->slots * l->load.ranks; s++) {
        int32_t *h = &holder[l->placed[s]], rank = (int32_t)(s / l->slots) + 1;
        *h = *h == 0 || *h == rank ? rank : -1;
    }
    for (int64_t e = 0; e < experts; e++)
        if (holder[e] > 0 && ++lost[holder[e] - 1] > worst) worst = lost[holder[e] - 1];
    return worst;
}

static bool
place(const mc_ep_plan *plan, mc_ep_layer *l, mc_arena *arena, mc_diags *diags)
{
    const mc_ep_mesh *mesh = &plan->mesh;
    int64_t experts = l->load.choice.experts, all = experts + mesh->redundant;
    if (all % mesh->ep != 0 || all > INT32_MAX / 2)
        return mc_error(diags, l->dispatch->span, MC_E0801, "%lld experts%s do not divide over %lld ranks",
                        (long long)all, mesh->redundant ? ", redundant ones included," : "", (long long)mesh->ep);
    l->slots = all / mesh->ep;
    int32_t *placed = MC_NEW_N(arena, int32_t, all);
    l->placed = placed;
    for (int64_t s = 0; s < all; s++)
        placed[s] = (int32_t)(mesh->round_robin ? s % l->slots * mesh->ep + s / l->slots : s);
    if (mesh->redundant && !place_copies(plan, l, placed, diags)) return false;
    l->covered = (double)(experts - lost_with_one(l, arena));
    return true;
}

/* ---- weighing ---- */

/* The gate of each assignment travels too when the experts' side adds up. */
static double
gates_bytes(const mc_ep_plan *plan)
{
    return plan->mesh.order == MC_EP_TREE ? 4 : 0;
}

static const char *
refusal(const mc_ep_layer *l, int way)
{
    if (way == MC_EP_BY_ALL) return "no backend does it";
    if (way != MC_EP_BY_NODE) return NULL;
    if (l->load.nodes == 1) return "there is one node: rows would be copied twice";
    return l->load.ranks == l->load.nodes ? "a node has one rank: it is the way by rank" : NULL;
}

static void
weigh(const mc_ep_plan *plan, mc_ep_layer *l)
{
    bool strict = plan->mesh.order == MC_EP_STRICT;
    mc_ep_flow gates = mc_ep_flow_of(&l->load, MC_EP_BY_EXPERT, gates_bytes(plan));
    gates.node_messages = gates.fabric_messages = 0;
    for (int way = 0; way < MC_EP_N_WAYS; way++) {
        mc_ep_weighed *w = &l->ways[way];
        int way_back = strict && way != MC_EP_BY_ALL ? MC_EP_BY_EXPERT : way;
        w->there = mc_ep_flow_of(&l->load, way, l->there.row_bytes);
        if (way != MC_EP_BY_ALL) {
            w->there.nodes += gates.nodes;
            w->there.fabric += gates.fabric;
        }
        w->back = mc_ep_flow_of(&l->load, way_back, l->back.row_bytes);
        w->there_time = mc_ep_flow_time(&w->there, &l->load, &plan->settings.links);
        w->back_time = mc_ep_flow_time(&w->back, &l->load, &plan->settings.links);
        w->refused = refusal(l, way);
    }
}

static bool
choose_way(const mc_ep_plan *plan, mc_ep_layer *l, mc_diags *diags)
{
    if (plan->mesh.exchange != MC_EP_AUTO) {
        l->way = plan->mesh.exchange;
        const char *why = l->ways[l->way].refused;
        if (!why) return true;
        return mc_error(diags, l->dispatch->span, MC_E0801, "'exchange %s' cannot be: %s", mc_ep_way_name(l->way), why);
    }
    l->way = MC_EP_BY_RANK;
    for (int way = 0; way < MC_EP_N_EXCHANGES; way++) {
        const mc_ep_weighed *w = &l->ways[way], *best = &l->ways[l->way];
        if (!w->refused && w->there_time + w->back_time < best->there_time + best->back_time)
            l->way = (mc_ep_exchange)way;
    }
    return true;
}

/* ---- bounds ---- */

static void
bound(const mc_ep_plan *plan, mc_ep_layer *l)
{
    double tokens = (double)l->load.tokens, all = tokens * (double)l->load.ranks;
    const mc_ep_choice *c = &l->load.choice;
    double each = (double)(c->k < l->slots ? c->k : l->slots); /* assignments of one token on one rank */
    if (l->experts_choose) each = (double)l->slots;
    bool rows_of_experts = l->way == MC_EP_BY_EXPERT;
    l->rows = l->ways[l->way].there.rows;
    l->assignments = tokens * (double)c->k;
    l->most_assignments = all * each;
    l->most_rows = rows_of_experts ? l->most_assignments : all;
    l->most_sent = mc_ep_most_sent(&l->load, l->way) * l->there.row_bytes;
    l->most_sent += mc_ep_most_sent(&l->load, MC_EP_BY_EXPERT) * gates_bytes(plan);
    bool strict = plan->mesh.order == MC_EP_STRICT;
    /* back goes what all others may have sent here */
    l->most_back = (strict ? l->most_assignments : l->most_rows) * (1 - 1 / (double)l->load.nodes) * l->back.row_bytes;
    /* in f32: received rows, hidden rows, results; and both sides of the wire */
    l->buffer_bytes = 4 * (l->most_rows * (double)l->width + l->most_assignments * (double)(l->inner + l->width));
    l->buffer_bytes += 2 * (l->most_rows * l->there.row_bytes + l->most_assignments * l->back.row_bytes);
    l->experts_time = mc_ep_experts_time(l->assignments, l->products, l->expert_bytes * (double)l->slots,
                                         &plan->settings.links.ranks);
}

/* ---- the plan ---- */

static bool
decide(const mc_module *m, mc_ep_plan *plan, mc_ep_layer *l, mc_arena *arena, mc_diags *diags)
{
    const mc_ep_mesh *mesh = &plan->mesh;
    l->load.ranks = mesh->ep;
    l->load.nodes = mesh->ep / mesh->per_node;
    l->load.on_node = mesh->ep * mesh->dp / mesh->nodes;
    l->load.tokens = plan->settings.tokens;
    l->load.spread = mesh->round_robin && !mesh->redundant;
    choose_wires(m, plan, l);
    if (!place(plan, l, arena, diags)) return false;
    weigh(plan, l);
    if (!choose_way(plan, l, diags)) return false;
    bound(plan, l);
    const mc_ep_weighed *w = &l->ways[l->way];
    double longest = DEADLINE_FACTOR * (w->there_time > w->back_time ? w->there_time : w->back_time);
    if (longest > plan->deadline) plan->deadline = longest;
    plan->exchange_time += (double)l->times * (w->there_time + w->back_time);
    plan->experts_time += (double)l->times * l->experts_time;
    return true;
}

/* Of the program and everything decided about it: ranks that disagree must not exchange rows. */
static uint64_t
hash_of(const mc_module *m, const mc_ep_plan *plan)
{
    mc_buf text = {0};
    mc_module_print(m, &text);
    uint64_t hash = mc_hash64(text.data, text.len, 0);
    mc_buf_clear(&text);
    mc_ep_plan_text(plan, true, &text);
    hash = mc_hash64(text.data, text.len, hash);
    mc_buf_fini(&text);
    return hash;
}

bool
mc_ep_plan_make(const mc_module *m, const mc_ep_mesh *mesh, const mc_ep_settings *settings, mc_arena *arena,
                mc_diags *diags, mc_ep_plan *out)
{
    const mc_func *model = mc_module_model(m);
    *out = (mc_ep_plan){
        .model = model ? model->name : (mc_str){0}, .mesh = *mesh, .settings = *settings, .deadline = LEAST_DEADLINE};
    if (!mc_ep_plan_find(m, arena, diags, out)) return false;
    for (size_t i = 0; i < out->layers.n; i++)
        if (!decide(m, out, &out->layers.items[i], arena, diags)) return false;
    out->hash = hash_of(m, out);
    return true;
}

const mc_ep_layer *
mc_ep_plan_layer(const mc_ep_plan *plan, const mc_op *dispatch)
{
    const mc_ep_layer *equal = NULL;
    mc_dim k = mc_type_last(mc_operand_named(dispatch, "ids")->type);
    for (size_t i = plan->layers.n; i-- > 0;) {
        const mc_ep_layer *l = &plan->layers.items[i];
        if (l->dispatch == dispatch) return l;
        if (l->load.choice.experts == mc_attr_int(dispatch, "experts") &&
            mc_dim_eq(mc_type_last(mc_operand_named(l->dispatch, "ids")->type), k))
            equal = l;
    }
    return equal;
}
