/* eplb_adapt: a placement for loads that have drifted, near the one of before. Copies keep their slots; the slots of
 * copies that are no longer wanted take the new ones; then the busiest rank exchanges experts with others, the best
 * exchange first, until it is nearly as good as a placement made anew. Two slots change at a time, and few are needed:
 * a placement made anew differs nearly everywhere, since every step of it depends on all those before. */
#include "passes/ep/eplb_work.h"

#include <math.h>
#include <string.h>

typedef struct adapt {
    mc_eplb_work *w;
    const float *loads;
    int32_t *slots;
    int32_t *spare;  /* [n_experts] copies of each expert that still want a slot; less than 0: too many have one */
    int32_t *domain; /* [n_experts] the node of each expert; 0 without groups */
} adapt;

static float
copy_load(const adapt *a, int32_t expert)
{
    return a->loads[expert] / (float)a->w->counts[expert];
}

static int32_t
node_of(const mc_eplb_work *w, int32_t slot)
{
    return slot / (w->shape.n_slots / w->n_nodes);
}

static bool
rank_has(const adapt *a, int32_t rank, int32_t expert)
{
    for (int32_t i = 0; i < a->w->per_rank; i++)
        if (a->slots[rank * a->w->per_rank + i] == expert) return true;
    return false;
}

/* Whether every expert has a slot, and experts of a group are on one node, as many of them on each. */
static bool
find_domains(adapt *a)
{
    const mc_eplb_work *w = a->w;
    int32_t group = w->shape.n_experts / w->n_groups, *n = w->count;
    memset(a->domain, 0xFF, sizeof *a->domain * (size_t)w->shape.n_experts);
    memset(n, 0, sizeof *n * (size_t)w->n_nodes);
    for (int32_t s = 0; s < w->shape.n_slots; s++) {
        int32_t e = a->slots[s], first = w->n_groups == 1 ? e : e / group * group;
        int32_t node = node_of(w, s);
        if (a->domain[first] >= 0 && a->domain[first] != node) return false;
        a->domain[first] = node; /* of the group, until below */
        a->spare[e]++;
    }
    for (int32_t e = 0; e < w->shape.n_experts; e++) {
        if (!a->spare[e]) return false;
        a->domain[e] = w->n_groups == 1 ? 0 : a->domain[e / group * group];
        n[a->domain[e]]++;
    }
    for (int32_t i = 0; i < w->n_nodes; i++)
        if (n[i] != w->shape.n_experts / w->n_nodes) return false;
    return true;
}

/* How many copies each expert is to have, by the loads of now: w->counts, and a->spare from what it has. */
static void
count_copies(adapt *a)
{
    mc_eplb_work *w = a->w;
    int32_t n_slots = w->shape.n_slots / w->n_nodes;
    for (int32_t node = 0; node < w->n_nodes; node++) {
        int32_t n = 0;
        for (int32_t e = 0; e < w->shape.n_experts; e++) {
            if (a->domain[e] != node) continue;
            w->order[n] = e;
            w->weights[n++] = a->loads[e];
        }
        mc_eplb_replicate(w, w->weights, n, n_slots, w->shape.n_ranks / w->n_nodes);
        for (int32_t i = 0; i < n; i++) w->counts[w->order[i]] = w->count[i];
    }
    for (int32_t e = 0; e < w->shape.n_experts; e++) a->spare[e] = w->counts[e] - a->spare[e];
}

/* Empties slots (-1) of experts with too many copies: those on the busiest ranks. */
static void
remove_copies(adapt *a)
{
    mc_eplb_work *w = a->w;
    for (int32_t e = 0; e < w->shape.n_experts; e++) {
        for (; a->spare[e] < 0; a->spare[e]++) {
            int32_t worst = -1;
            for (int32_t s = 0; s < w->shape.n_slots; s++)
                if (a->slots[s] == e &&
                    (worst < 0 || w->rank_load[s / w->per_rank] > w->rank_load[worst / w->per_rank]))
                    worst = s;
            a->slots[worst] = -1;
            w->rank_load[worst / w->per_rank] -= copy_load(a, e);
        }
    }
}

/* The lightest rank of the node with an empty slot, if possible without the expert. */
static int32_t
free_slot(const adapt *a, int32_t expert)
{
    const mc_eplb_work *w = a->w;
    int32_t best = -1;
    bool best_has = true;
    for (int32_t s = 0; s < w->shape.n_slots; s++) {
        if (a->slots[s] >= 0 || (w->n_nodes > 1 && node_of(w, s) != a->domain[expert])) continue;
        bool has = rank_has(a, s / w->per_rank, expert);
        bool lighter = best < 0 || w->rank_load[s / w->per_rank] < w->rank_load[best / w->per_rank];
        if (has > best_has || (has == best_has && !lighter)) continue;
        best = s;
        best_has = has;
    }
    return best;
}

static void
add_copies(adapt *a)
{
    mc_eplb_work *w = a->w;
    for (;;) {
        int32_t heaviest = -1;
        for (int32_t e = 0; e < w->shape.n_experts; e++)
            if (a->spare[e] > 0 && (heaviest < 0 || copy_load(a, e) > copy_load(a, heaviest))) heaviest = e;
        if (heaviest < 0) return;
        int32_t s = free_slot(a, heaviest);
        a->slots[s] = heaviest;
        a->spare[heaviest]--;
        w->rank_load[s / w->per_rank] += copy_load(a, heaviest);
    }
}

/* The exchange of a slot of `busy` that leaves the least load on the busier of both ranks, if that is less than now. */
static bool
exchange(adapt *a, int32_t busy)
{
    mc_eplb_work *w = a->w;
    float best_load = w->rank_load[busy];
    int32_t from = -1, to = -1, begin = busy * w->per_rank;
    for (int32_t s = begin; s < begin + w->per_rank; s++) {
        float mine = copy_load(a, a->slots[s]);
        for (int32_t o = 0; o < w->shape.n_slots; o++) {
            int32_t rank = o / w->per_rank;
            float theirs = copy_load(a, a->slots[o]);
            if (theirs >= mine || rank == busy || (w->n_nodes > 1 && node_of(w, o) != node_of(w, s))) continue;
            float load = fmaxf(w->rank_load[busy] - mine + theirs, w->rank_load[rank] - theirs + mine);
            if (load >= best_load || rank_has(a, rank, a->slots[s]) || rank_has(a, busy, a->slots[o])) continue;
            best_load = load;
            from = s;
            to = o;
        }
    }
    if (from < 0) return false;
    int32_t expert = a->slots[from];
    a->slots[from] = a->slots[to];
    a->slots[to] = expert;
    return true;
}

/* Until no rank has more than `limit`; false: that cannot be reached in this way. */
static bool
exchange_until(adapt *a, float limit)
{
    mc_eplb_work *w = a->w;
    for (int32_t tries = 0; tries < w->shape.n_slots; tries++) {
        mc_eplb_rank_loads(w, a->loads, a->slots); /* anew, so that no rounding adds up */
        int32_t busy = 0;
        for (int32_t r = 1; r < w->shape.n_ranks; r++)
            if (w->rank_load[r] > w->rank_load[busy]) busy = r;
        if (w->rank_load[busy] <= limit) return true;
        if (!exchange(a, busy)) return false;
    }
    return false;
}

static bool
adapt_layer(adapt *a, float limit)
{
    mc_eplb_work *w = a->w;
    memset(a->spare, 0, sizeof *a->spare * (size_t)w->shape.n_experts);
    if (!find_domains(a)) return false;
    count_copies(a);
    mc_eplb_rank_loads(w, a->loads, a->slots);
    remove_copies(a);
    add_copies(a);
    if (!exchange_until(a, limit)) return false;
    memset(w->count, 0, sizeof *w->count * (size_t)w->shape.n_experts);
    for (int32_t s = 0; s < w->shape.n_slots; s++) w->replica[s] = w->count[a->slots[s]]++;
    return true;
}

static float
busiest(mc_eplb_work *w, const float *loads, const int32_t *slots)
{
    mc_eplb_rank_loads(w, loads, slots);
    float most = 0;
    for (int32_t r = 0; r < w->shape.n_ranks; r++) most = fmaxf(most, w->rank_load[r]);
    return most;
}

moec_status
mc_eplb_adapt(mc_arena *scratch, const mc_eplb_shape *shape, const float *loads, const int32_t *previous, double slack,
              int32_t n_layers, const mc_eplb_placement *out, int64_t *out_moves, mc_fault *error)
{
    size_t n = (size_t)shape->n_slots, e = (size_t)shape->n_experts;
    moec_status s = mc_eplb_check(shape, error);
    if (s == MOEC_OK) s = mc_eplb_check_loads(loads, (size_t)n_layers * e, error);
    if (s != MOEC_OK) return s;
    for (size_t i = 0; i < (size_t)n_layers * n; i++)
        if (previous[i] < 0 || previous[i] >= shape->n_experts)
            return mc_fail(error, MOEC_ERR_ARGUMENT, "the placement of before has expert %d of %d", previous[i],
                           shape->n_experts);
    mc_eplb_work w;
    mc_eplb_begin(&w, scratch, shape);
    adapt a = {&w, NULL, NULL, MC_NEW_N(scratch, int32_t, e), MC_NEW_N(scratch, int32_t, e)};
    int32_t *before = MC_NEW_N(scratch, int32_t, n);
    *out_moves = 0;
    for (int32_t l = 0; l < n_layers; l++) {
        a.loads = loads + (size_t)l * e;
        a.slots = out->slots + (size_t)l * n;
        memcpy(before, previous + (size_t)l * n, n * sizeof *before); /* the caller may give the same array twice */
        mc_eplb_place_layer(&w, a.loads, a.slots);
        float limit = busiest(&w, a.loads, a.slots) * (1 + (float)slack);
        memcpy(a.slots, before, n * sizeof *before);
        if (!adapt_layer(&a, limit)) mc_eplb_place_layer(&w, a.loads, a.slots);
        for (size_t i = 0; i < n; i++) *out_moves += a.slots[i] != before[i];
        mc_eplb_emit(&w, l, a.slots, out);
    }
    return MOEC_OK;
}
