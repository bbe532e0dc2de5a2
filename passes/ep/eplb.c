/* eplb: see eplb.h. Two greedy steps do everything: `pack` deals items to bins, heaviest first and always to the
 * lightest bin with room; `replicate` gives the next free slot to the expert with the most work for each copy. Keys of
 * items and bins are the bits of their loads, which order as the loads do, above the index: sorting and ties are one
 * comparison. */
#include "passes/ep/eplb_work.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { BLOCK = 16 };

static uint64_t
bits_of(float x)
{
    uint32_t bits;
    x += 0.0f; /* -0 has the bits of a large number */
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Ascending, by the upper 32 bits; equal ones stay in order. */
static void
sort_keys(uint64_t *keys, uint64_t *other, int32_t n)
{
    for (int shift = 32; shift < 64; shift += 8) {
        int32_t count[257] = {0};
        for (int32_t i = 0; i < n; i++) count[(keys[i] >> shift & 255) + 1]++;
        if (count[(keys[0] >> shift & 255) + 1] == n) continue; /* all the same */
        for (int b = 0; b < 256; b++) count[b + 1] += count[b];
        for (int32_t i = 0; i < n; i++) other[count[keys[i] >> shift & 255]++] = keys[i];
        memcpy(keys, other, (size_t)n * sizeof *keys);
    }
}

/* n items into m bins of n / m each: bin and position in it. */
static void
pack(mc_eplb_work *w, const float *weights, int32_t n, int32_t m, int32_t *bin, int32_t *position)
{
    int32_t room = n / m;
    if (room == 1) {
        for (int32_t i = 0; i < n; i++) {
            bin[i] = i;
            position[i] = 0;
        }
        return;
    }
    for (int32_t i = 0; i < n; i++) w->keys[i] = (uint64_t)(uint32_t)~bits_of(weights[i]) << 32 | (uint32_t)i;
    sort_keys(w->keys, w->other, n);
    for (int32_t b = 0; b < m; b++) {
        w->bin_keys[b] = (uint64_t)b;
        w->bin_load[b] = 0;
        w->bin_n[b] = 0;
    }
    for (int32_t i = 0; i < n; i++) {
        uint64_t least = w->bin_keys[0], least_odd = w->bin_keys[m - 1]; /* two chains take half the time of one */
        for (int32_t b = 0; b + 1 < m; b += 2) {
            least = w->bin_keys[b] < least ? w->bin_keys[b] : least;
            least_odd = w->bin_keys[b + 1] < least_odd ? w->bin_keys[b + 1] : least_odd;
        }
        if (least_odd < least) least = least_odd;
        int32_t item = (int32_t)(uint32_t)w->keys[i], b = (int32_t)(uint32_t)least;
        bin[item] = b;
        position[item] = w->bin_n[b]++;
        w->bin_load[b] += weights[item];
        w->bin_keys[b] = w->bin_n[b] == room ? UINT64_MAX : bits_of(w->bin_load[b]) << 32 | (uint32_t)b;
    }
}

/* The first of the block's experts with the most work for each copy. */
static void
find_best(mc_eplb_work *w, int32_t block, int32_t n)
{
    int32_t begin = block * BLOCK, end = n - begin < BLOCK ? n : begin + BLOCK, best = begin;
    for (int32_t i = begin + 1; i < end; i++)
        if (w->score[i] > w->score[best]) best = i;
    w->block_best[block] = best;
    w->block_score[block] = w->score[best];
}

/* n experts in n_slots slots of n_ranks ranks: the expert (an index into weights) and the number of the copy in each,
 * copies of each: not more than ranks, where that can be, since a second one on a rank does nothing. Blocks of experts
 * remember their best: another copy changes one of them. */
void
mc_eplb_replicate(mc_eplb_work *w, const float *weights, int32_t n, int32_t n_slots, int32_t n_ranks)
{
    int32_t *item = w->item, *rank = w->rank, *count = w->count;
    int32_t n_blocks = (n + BLOCK - 1) / BLOCK, most = n_slots / n_ranks <= n ? n_ranks : n_slots;
    for (int32_t i = 0; i < n; i++) {
        item[i] = i;
        rank[i] = 0;
        count[i] = 1;
        w->score[i] = most > 1 ? weights[i] : -1;
    }
    for (int32_t b = 0; b < n_blocks; b++) find_best(w, b, n);
    for (int32_t s = n; s < n_slots; s++) {
        int32_t block = 0;
        for (int32_t b = 1; b < n_blocks; b++)
            if (w->block_score[b] > w->block_score[block]) block = b;
        int32_t best = w->block_best[block];
        item[s] = best;
        rank[s] = count[best]++;
        w->score[best] = count[best] < most ? weights[best] / (float)count[best] : -1;
        find_best(w, block, n);
    }
}

/* Experts in the order of the nodes they are dealt to. */
static void
deal_groups(mc_eplb_work *w, const float *loads)
{
    int32_t size = w->shape.n_experts / w->n_groups, per_node = w->n_groups / w->n_nodes;
    for (int32_t g = 0; g < w->n_groups; g++) {
        float sum = 0;
        for (int32_t i = 0; i < size; i++) sum += loads[g * size + i];
        w->weights[g] = sum;
    }
    pack(w, w->weights, w->n_groups, w->n_nodes, w->bin, w->position);
    for (int32_t g = 0; g < w->n_groups; g++)
        for (int32_t i = 0; i < size; i++) w->order[(w->bin[g] * per_node + w->position[g]) * size + i] = g * size + i;
}

/* Copies of the node's experts (w->order from node * experts of a node), dealt to its ranks. */
static void
place_node(mc_eplb_work *w, const float *loads, int32_t node, int32_t *slots)
{
    int32_t n = w->shape.n_experts / w->n_nodes, n_slots = w->shape.n_slots / w->n_nodes;
    int32_t n_ranks = w->shape.n_ranks / w->n_nodes, per_rank = n_slots / n_ranks;
    const int32_t *experts = w->order + node * n;
    for (int32_t i = 0; i < n; i++) w->weights[i] = loads[experts[i]];
    mc_eplb_replicate(w, w->weights, n, n_slots, n_ranks);
    for (int32_t s = 0; s < n_slots; s++) w->copy_weights[s] = w->weights[w->item[s]] / (float)w->count[w->item[s]];
    pack(w, w->copy_weights, n_slots, n_ranks, w->bin, w->position);
    for (int32_t s = 0; s < n_slots; s++) {
        int32_t to = node * n_slots + w->bin[s] * per_rank + w->position[s];
        slots[to] = experts[w->item[s]];
        w->replica[to] = w->rank[s];
    }
    for (int32_t i = 0; i < n; i++) w->counts[experts[i]] = w->count[i];
}

/* ---- a rank's second copies ------------------------------------------------------------------------------------- */

static float
copy_load(const mc_eplb_work *w, const float *loads, int32_t expert)
{
    return loads[expert] / (float)w->counts[expert];
}

static bool
rank_has(const mc_eplb_work *w, const int32_t *slots, int32_t rank, int32_t expert)
{
    for (int32_t s = 0; s < w->per_rank; s++)
        if (slots[rank * w->per_rank + s] == expert) return true;
    return false;
}

/* Exchanges slot `s` with the one of another rank of its node that leaves the least load on the busier of the two. */
static bool
move_away(mc_eplb_work *w, const float *loads, int32_t *slots, int32_t s)
{
    int32_t node_slots = w->shape.n_slots / w->n_nodes, from = s / node_slots * node_slots, me = s / w->per_rank;
    float mine = copy_load(w, loads, slots[s]), best_load = INFINITY;
    int32_t best = -1;
    for (int32_t o = from; o < from + node_slots; o++) {
        int32_t rank = o / w->per_rank;
        if (rank == me || rank_has(w, slots, rank, slots[s]) || rank_has(w, slots, me, slots[o])) continue;
        float theirs = copy_load(w, loads, slots[o]);
        float load = fmaxf(w->rank_load[me] - mine + theirs, w->rank_load[rank] - theirs + mine);
        if (load >= best_load) continue;
        best_load = load;
        best = o;
    }
    if (best < 0) return false;
    float theirs = copy_load(w, loads, slots[best]);
    w->rank_load[me] += theirs - mine;
    w->rank_load[best / w->per_rank] += mine - theirs;
    int32_t expert = slots[s], replica = w->replica[s];
    slots[s] = slots[best];
    w->replica[s] = w->replica[best];
    slots[best] = expert;
    w->replica[best] = replica;
    return true;
}

void
mc_eplb_rank_loads(mc_eplb_work *w, const float *loads, const int32_t *slots)
{
    for (int32_t r = 0; r < w->shape.n_ranks; r++) {
        w->rank_load[r] = 0;
        for (int32_t i = 0; i < w->per_rank; i++) w->rank_load[r] += copy_load(w, loads, slots[r * w->per_rank + i]);
    }
}

/* Again as long as it helps: a rank whose own second copies are gone may take another's. */
static void
spread(mc_eplb_work *w, const float *loads, int32_t *slots)
{
    bool loaded = false, moved = true, left = true;
    while (moved && left) {
        moved = left = false;
        for (int32_t s = 0; s < w->shape.n_slots; s++) {
            if (w->counts[slots[s]] == 1) continue;
            bool twice = false;
            for (int32_t o = s / w->per_rank * w->per_rank; o < s; o++) twice |= slots[o] == slots[s];
            if (!twice) continue;
            if (!loaded) mc_eplb_rank_loads(w, loads, slots);
            loaded = true;
            if (move_away(w, loads, slots, s))
                moved = true;
            else
                left = true;
        }
    }
}

/* ---- interface -------------------------------------------------------------------------------------------------- */

bool
mc_eplb_is_hierarchical(const mc_eplb_shape *shape)
{
    return shape->n_groups % shape->n_nodes == 0;
}

moec_status
mc_eplb_check(const mc_eplb_shape *s, mc_fault *error)
{
    if (s->n_experts < 1 || s->n_groups < 1 || s->n_nodes < 1 || s->n_ranks < 1 || s->n_experts > MC_EPLB_MOST ||
        s->n_slots > MC_EPLB_MOST)
        return mc_fail(error, MOEC_ERR_ARGUMENT,
                       "%d experts in %d slots, %d groups, %d nodes, %d ranks: each must be from 1 to %d", s->n_experts,
                       s->n_slots, s->n_groups, s->n_nodes, s->n_ranks, MC_EPLB_MOST);
    if (s->n_slots < s->n_experts)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "%d slots cannot hold %d experts", s->n_slots, s->n_experts);
    if (s->n_slots % s->n_ranks) {
        int32_t more = s->n_ranks - s->n_slots % s->n_ranks;
        return mc_fail(error, MOEC_ERR_ARGUMENT,
                       "%d experts with %d redundant ones cannot be shared out equally to %d ranks: try %d redundant",
                       s->n_experts, s->n_slots - s->n_experts, s->n_ranks, s->n_slots - s->n_experts + more);
    }
    if (s->n_ranks % s->n_nodes)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "%d ranks are not a multiple of %d nodes", s->n_ranks, s->n_nodes);
    if (s->n_experts % s->n_groups)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "%d experts are not a multiple of %d groups", s->n_experts,
                       s->n_groups);
    return MOEC_OK;
}

void
mc_eplb_begin(mc_eplb_work *w, mc_arena *arena, const mc_eplb_shape *shape)
{
    bool hierarchical = mc_eplb_is_hierarchical(shape);
    size_t n = (size_t)shape->n_slots, e = (size_t)shape->n_experts, r = (size_t)shape->n_ranks;
    *w = (mc_eplb_work){.shape = *shape,
                        .n_groups = hierarchical ? shape->n_groups : 1,
                        .n_nodes = hierarchical ? shape->n_nodes : 1,
                        .per_rank = shape->n_slots / shape->n_ranks};
    size_t bins = r > (size_t)shape->n_nodes ? r : (size_t)shape->n_nodes;
    w->keys = MC_NEW_N(arena, uint64_t, n);
    w->other = MC_NEW_N(arena, uint64_t, n);
    w->bin_keys = MC_NEW_N(arena, uint64_t, bins);
    w->bin_load = MC_NEW_N(arena, float, bins);
    w->bin_n = MC_NEW_N(arena, int32_t, bins);
    w->bin = MC_NEW_N(arena, int32_t, n);
    w->position = MC_NEW_N(arena, int32_t, n);
    w->weights = MC_NEW_N(arena, float, n);
    w->copy_weights = MC_NEW_N(arena, float, n);
    w->score = MC_NEW_N(arena, float, e);
    w->block_score = MC_NEW_N(arena, float, e / BLOCK + 1);
    w->block_best = MC_NEW_N(arena, int32_t, e / BLOCK + 1);
    w->order = MC_NEW_N(arena, int32_t, e);
    w->item = MC_NEW_N(arena, int32_t, n);
    w->rank = MC_NEW_N(arena, int32_t, n);
    w->count = MC_NEW_N(arena, int32_t, e);
    w->replica = MC_NEW_N(arena, int32_t, n);
    w->counts = MC_NEW_N(arena, int32_t, e);
    w->rank_load = MC_NEW_N(arena, float, r);
}

moec_status
mc_eplb_check_loads(const float *loads, size_t n, mc_fault *error)
{
    for (size_t i = 0; i < n; i++)
        if (!(loads[i] >= 0 && loads[i] <= 1e30f)) /* sums of them stay finite */
            return mc_fail(error, MOEC_ERR_ARGUMENT, "load %zu is %g: loads are numbers from 0 to 1e30", i,
                           (double)loads[i]);
    return MOEC_OK;
}

void
mc_eplb_place_layer(mc_eplb_work *w, const float *loads, int32_t *slots)
{
    if (w->n_groups == 1) {
        for (int32_t e = 0; e < w->shape.n_experts; e++) w->order[e] = e;
    } else {
        deal_groups(w, loads);
    }
    for (int32_t node = 0; node < w->n_nodes; node++) place_node(w, loads, node, slots);
    spread(w, loads, slots);
}

/* w->replica and w->counts belong to the layer whose slots are given. */
void
mc_eplb_emit(const mc_eplb_work *w, int32_t layer, const int32_t *slots, const mc_eplb_placement *out)
{
    size_t n = (size_t)w->shape.n_slots, e = (size_t)w->shape.n_experts, at = (size_t)layer;
    if (out->replica) memcpy(out->replica + at * n, w->replica, n * sizeof *w->replica);
    if (out->counts) memcpy(out->counts + at * e, w->counts, e * sizeof *w->counts);
    int32_t first = 0;
    if (out->first) {
        for (size_t i = 0; i < e; first += w->counts[i++]) out->first[at * (e + 1) + i] = first;
        out->first[at * (e + 1) + e] = first;
    }
    if (!out->copies) return;
    int32_t *begin = w->bin; /* free again; at least as long as experts are many */
    first = 0;
    for (size_t i = 0; i < e; first += w->counts[i++]) begin[i] = first;
    for (size_t s = 0; s < n; s++) out->copies[at * n + (size_t)(begin[slots[s]] + w->replica[s])] = (int32_t)s;
}

moec_status
mc_eplb_place(mc_arena *scratch, const mc_eplb_shape *shape, const float *loads, int32_t n_layers,
              const mc_eplb_placement *out, mc_fault *error)
{
    moec_status s = mc_eplb_check(shape, error);
    if (s == MOEC_OK) s = mc_eplb_check_loads(loads, (size_t)n_layers * (size_t)shape->n_experts, error);
    if (s != MOEC_OK) return s;
    mc_eplb_work w;
    mc_eplb_begin(&w, scratch, shape);
    for (int32_t l = 0; l < n_layers; l++) {
        int32_t *slots = out->slots + (size_t)l * (size_t)shape->n_slots;
        mc_eplb_place_layer(&w, loads + (size_t)l * (size_t)shape->n_experts, slots);
        mc_eplb_emit(&w, l, slots, out);
    }
    return MOEC_OK;
}

double
mc_eplb_balance(const mc_eplb_shape *shape, const float *loads, const int32_t *slots, const int32_t *counts)
{
    int32_t per_rank = shape->n_slots / shape->n_ranks;
    double sum = 0, most = 0;
    for (int32_t r = 0; r < shape->n_ranks; r++) {
        double load = 0;
        for (int32_t i = r * per_rank; i < (r + 1) * per_rank; i++) load += (double)loads[slots[i]] / counts[slots[i]];
        sum += load;
        if (load > most) most = load;
    }
    return most > 0 ? sum / shape->n_ranks / most : 1;
}
