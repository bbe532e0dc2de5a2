/* simulate: see simulate.h. Tokens of one source rank at a time only count up two numbers for each destination rank and
 * one for each node; what stands on which link follows from those sums, for all ways at once, when the source is done.
 * So the inner loop is a look-up and three additions for an assignment, and its tables stay in the first cache. */
#include "passes/ep/simulate.h"

#include <string.h>

enum { BATCH = 256 };

#define MOST_ROWS (INT64_C(1) << 40) /* of all ranks together: sums stay exact in doubles */

typedef struct sim {
    const mc_sim_setup *setup;
    int64_t ranks, nodes, per_node, k, experts;
    int32_t *begin, *copies;               /* ranks that hold each expert, ascending */
    int32_t *near, *n_near;                /* [experts] of those, what a token of the source chooses among */
    int32_t *node_of;                      /* [ranks] */
    uint32_t *assigned, *rows, *node_rows; /* of the source: to each rank, each node */
    uint32_t *rank_seen, *node_seen, serial;
    int64_t *per_expert;
    mc_sim_rank *per_rank;
    int64_t n_tokens, hits, node_hits;
} sim;

/* ---- routing ---------------------------------------------------------------------------------------------------- */

static moec_status
list_copies(mc_arena *arena, sim *s, mc_fault *error)
{
    const int32_t *slots = s->setup->slots;
    int64_t n_slots = s->ranks * s->setup->slots_per_rank;
    s->begin = MC_NEW_N(arena, int32_t, s->experts + 2);
    s->copies = MC_NEW_N(arena, int32_t, n_slots);
    for (int64_t i = 0; i < n_slots; i++) {
        if (slots[i] < -1 || slots[i] >= s->experts)
            return mc_fail(error, MOEC_ERR_ARGUMENT, "slot %lld holds expert %d of %lld", (long long)i, slots[i],
                           (long long)s->experts);
        if (slots[i] >= 0) s->begin[slots[i] + 2]++;
    }
    for (int64_t e = 0; e < s->experts; e++) {
        if (!s->begin[e + 2]) return mc_fail(error, MOEC_ERR_ARGUMENT, "no rank holds expert %lld", (long long)e);
        s->begin[e + 2] += s->begin[e + 1];
    }
    for (int64_t i = 0; i < n_slots; i++)
        if (slots[i] >= 0) s->copies[s->begin[slots[i] + 1]++] = (int32_t)(i / s->setup->slots_per_rank);
    return MOEC_OK;
}

/* The copies that tokens of a rank choose among: on their own rank, else in their node, else all. */
static void
find_nearest(sim *s, int64_t rank)
{
    for (int64_t e = 0; e < s->experts; e++) {
        int32_t begin = s->begin[e], end = s->begin[e + 1];
        s->near[e] = begin;
        s->n_near[e] = end - begin;
        if (end - begin == 1) continue;
        for (int64_t width = 1; width <= s->per_node; width += s->per_node - 1) {
            int64_t first = rank / width * width, last = first + width;
            int32_t b = begin, n = 0;
            while (b < end && s->copies[b] < first) b++;
            while (b + n < end && s->copies[b + n] < last) n++;
            if (n) {
                s->near[e] = b;
                s->n_near[e] = n;
                break;
            }
            if (s->per_node == 1) break;
        }
    }
}

static void
count_token(sim *s, int64_t token, const int32_t *ids)
{
    uint32_t serial = ++s->serial;
    for (int64_t j = 0; j < s->k; j++) {
        int32_t e = ids[j];
        if (e < 0) continue;
        int32_t n = s->n_near[e], rank = s->copies[s->near[e] + (n == 1 ? 0 : (int32_t)(token % n))];
        s->per_expert[e]++;
        s->assigned[rank]++;
        if (s->rank_seen[rank] == serial) continue;
        s->rank_seen[rank] = serial;
        s->rows[rank]++;
        int32_t node = s->node_of[rank];
        s->node_rows[node] += s->node_seen[node] != serial;
        s->node_seen[node] = serial;
    }
}

/* What the source's tokens were, on every link. By node, the rank of the source's number passes rows on. */
static void
add_source(sim *s, int64_t source)
{
    int64_t home = s->node_of[source], number = source % s->per_node;
    mc_sim_rank *me = &s->per_rank[source];
    for (int64_t r = 0; r < s->ranks; r++) {
        mc_sim_rank *to = &s->per_rank[r];
        int64_t sent[] = {s->assigned[r], s->rows[r]}, node = s->node_of[r];
        to->assignments += sent[0];
        to->rows += sent[1];
        s->hits += sent[1];
        for (int way = MC_EP_BY_EXPERT; way <= MC_EP_BY_RANK; way++) {
            *(node == home ? &me->fabric_out[way] : &me->nodes_out[way]) += sent[way];
            *(node == home ? &to->fabric_in[way] : &to->nodes_in[way]) += sent[way];
        }
        to->fabric_in[MC_EP_BY_NODE] += sent[1];
        s->per_rank[node * s->per_node + number].fabric_out[MC_EP_BY_NODE] += sent[1];
    }
    for (int64_t n = 0; n < s->nodes; n++) {
        s->node_hits += s->node_rows[n];
        if (n == home) continue;
        me->nodes_out[MC_EP_BY_NODE] += s->node_rows[n];
        s->per_rank[n * s->per_node + number].nodes_in[MC_EP_BY_NODE] += s->node_rows[n];
    }
}

static void
route_all(mc_arena *arena, sim *s, mc_sim_fill *fill, void *state)
{
    int32_t *ids = MC_NEW_N(arena, int32_t, BATCH * s->k);
    for (int64_t source = 0; source < s->ranks; source++) {
        find_nearest(s, source);
        memset(s->assigned, 0, sizeof *s->assigned * (size_t)s->ranks);
        memset(s->rows, 0, sizeof *s->rows * (size_t)s->ranks);
        memset(s->node_rows, 0, sizeof *s->node_rows * (size_t)s->nodes);
        for (int64_t t = 0; t < s->setup->load.tokens; t += BATCH) {
            int64_t n = s->setup->load.tokens - t < BATCH ? s->setup->load.tokens - t : BATCH;
            fill(state, source, t, n, ids);
            for (int64_t i = 0; i < n; i++) {
                if (s->serial == UINT32_MAX) { /* serials begin again */
                    memset(s->rank_seen, 0, sizeof *s->rank_seen * (size_t)s->ranks);
                    memset(s->node_seen, 0, sizeof *s->node_seen * (size_t)s->nodes);
                    s->serial = 0;
                }
                count_token(s, t + i, ids + i * s->k);
            }
        }
        add_source(s, source);
    }
}

/* ---- what it comes to ------------------------------------------------------------------------------------------- */

/* Of numbers that lie `stride` bytes apart. */
static mc_sim_stat
stat_of(const int64_t *first, size_t stride, int64_t n)
{
    mc_sim_stat stat = {0};
    for (int64_t i = 0; i < n; i++) {
        double x = (double)*(const int64_t *)(const void *)((const char *)first + (size_t)i * stride);
        stat.mean += x / (double)n;
        if (x <= stat.most) continue;
        stat.most = x;
        stat.who = i;
    }
    return stat;
}

/* Rows out and in of a rank's port, or of its share of the machine's. */
static void
node_rows(const sim *s, int64_t rank, int way, int64_t *out, int64_t *in)
{
    int64_t first = rank, n = 1;
    if (s->setup->links.nodes.per_node) {
        first = rank / s->per_node * s->per_node;
        n = s->per_node;
    }
    *out = *in = 0;
    for (int64_t r = first; r < first + n; r++) {
        *out += s->per_rank[r].nodes_out[way];
        *in += s->per_rank[r].nodes_in[way];
    }
    *out /= n;
    *in /= n;
}

static double
most(int64_t a, int64_t b)
{
    return (double)(a > b ? a : b);
}

/* Seconds until the slowest rank has sent and received; messages are those of the plan. */
static double
time_of(const sim *s, int way, double row_bytes)
{
    double longest = 0;
    mc_ep_flow flow = mc_ep_flow_of(&s->setup->load, way, row_bytes);
    for (int64_t r = 0; r < s->ranks; r++) {
        int64_t out, in;
        node_rows(s, r, way, &out, &in);
        flow.nodes = most(out, in) * row_bytes;
        flow.fabric = most(s->per_rank[r].fabric_out[way], s->per_rank[r].fabric_in[way]) * row_bytes;
        double seconds = mc_ep_flow_time(&flow, &s->setup->load, &s->setup->links);
        if (seconds > longest) longest = seconds;
    }
    return longest;
}

static void
sum_up(const sim *s, mc_sim_result *out)
{
    const mc_sim_setup *setup = s->setup;
    size_t stride = sizeof *s->per_rank;
    out->assignments = stat_of(&s->per_rank->assignments, stride, s->ranks);
    out->rows = stat_of(&s->per_rank->rows, stride, s->ranks);
    out->experts = stat_of(s->per_expert, sizeof *s->per_expert, s->experts);
    double tokens = (double)s->ranks * (double)setup->load.tokens;
    out->ranks_hit = tokens > 0 ? (double)s->hits / tokens : 0;
    out->nodes_hit = tokens > 0 ? (double)s->node_hits / tokens : 0;
    out->experts_time = mc_ep_experts_time(out->assignments.most, setup->products,
                                           setup->expert_bytes * (double)setup->slots_per_rank, &setup->links.ranks);
    out->best = MC_EP_BY_EXPERT;
    for (int way = 0; way < MC_EP_N_EXCHANGES; way++) {
        mc_sim_way *w = &out->ways[way];
        w->nodes_out = stat_of(&s->per_rank->nodes_out[way], stride, s->ranks);
        w->nodes_in = stat_of(&s->per_rank->nodes_in[way], stride, s->ranks);
        w->fabric_in = stat_of(&s->per_rank->fabric_in[way], stride, s->ranks);
        w->there = time_of(s, way, setup->there_bytes);
        w->back = time_of(s, setup->strict ? MC_EP_BY_EXPERT : way, setup->back_bytes);
        w->step = w->there + out->experts_time + w->back;
        if (w->step < out->ways[out->best].step) out->best = way;
    }
    out->per_rank = s->per_rank;
    out->per_expert = s->per_expert;
}

static moec_status
check(const mc_sim_setup *setup, mc_fault *error)
{
    const mc_ep_load *l = &setup->load;
    const mc_ep_choice *c = &l->choice;
    bool limited = c->groups > 1 && c->keep > 0 && c->keep < c->groups;
    if (l->ranks < 1 || l->nodes < 1 || l->ranks % l->nodes || l->ranks > 1 << 20)
        return mc_fail(error, MOEC_ERR_ARGUMENT,
                       "%lld ranks on %lld nodes: 1 to 1048576 ranks, as many on each node; choose other numbers",
                       (long long)l->ranks, (long long)l->nodes);
    if (c->experts < 1 || c->k < 1 || c->k > c->experts || c->experts > 1 << 22 || setup->slots_per_rank < 1 ||
        setup->slots_per_rank > (1 << 30) / l->ranks)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "%lld of %lld experts for a token cannot be drawn", (long long)c->k,
                       (long long)c->experts);
    if (limited && (c->experts % c->groups || c->k > c->keep * (c->experts / c->groups)))
        return mc_fail(error, MOEC_ERR_ARGUMENT,
                       "%lld experts for a token cannot be drawn from %lld of %lld groups of %lld experts",
                       (long long)c->k, (long long)c->keep, (long long)c->groups, (long long)c->experts);
    if (l->tokens < 0 || l->tokens > MOST_ROWS / l->ranks / c->k || l->tokens > UINT32_MAX / c->k)
        return mc_fail(error, MOEC_ERR_RANGE, "%lld tokens on each of %lld ranks are too many to count",
                       (long long)l->tokens, (long long)l->ranks);
    return MOEC_OK;
}

moec_status
mc_simulate(mc_arena *arena, const mc_sim_setup *setup, mc_sim_fill *fill, void *state, mc_sim_result *out,
            mc_fault *error)
{
    *out = (mc_sim_result){0};
    moec_status status = check(setup, error);
    if (status != MOEC_OK) return status;
    const mc_ep_load *l = &setup->load;
    sim s = {.setup = setup,
             .ranks = l->ranks,
             .nodes = l->nodes,
             .per_node = l->ranks / l->nodes,
             .k = l->choice.k,
             .experts = l->choice.experts};
    status = list_copies(arena, &s, error);
    if (status != MOEC_OK) return status;
    s.near = MC_NEW_N(arena, int32_t, s.experts);
    s.n_near = MC_NEW_N(arena, int32_t, s.experts);
    s.node_of = MC_NEW_N(arena, int32_t, s.ranks);
    s.assigned = MC_NEW_N(arena, uint32_t, s.ranks);
    s.rows = MC_NEW_N(arena, uint32_t, s.ranks);
    s.node_rows = MC_NEW_N(arena, uint32_t, s.nodes);
    s.rank_seen = MC_NEW_N(arena, uint32_t, s.ranks);
    s.node_seen = MC_NEW_N(arena, uint32_t, s.nodes);
    s.per_expert = MC_NEW_N(arena, int64_t, s.experts);
    s.per_rank = MC_NEW_N(arena, mc_sim_rank, s.ranks);
    for (int64_t r = 0; r < s.ranks; r++) s.node_of[r] = (int32_t)(r / s.per_node);
    route_all(arena, &s, fill, state);
    sum_up(&s, out);
    return MOEC_OK;
}
