/* simulate_traffic: tokens of a law or of a trace for the simulator, and the slots that ranks hold. */
#include "passes/ep/eplb.h"
#include "passes/ep/simulate.h"

#include <string.h>

void
mc_sim_skew_fill(void *skew, int64_t rank, int64_t first, int64_t n, int32_t *ids)
{
    mc_sim_skew *s = skew;
    (void)first; /* a rank's tokens are drawn one after another */
    if (!s->draw) s->draw = mc_draw_create(s->arena, &s->choice);
    if (s->rank != rank + 1) {
        if (!s->rank || s->law.kind == MC_SKEW_RANK) {
            mc_arena *scratch = mc_arena_create();
            double *weights = MC_NEW_N(scratch, double, s->choice.experts);
            mc_skew_weights(scratch, &s->law, s->seed, s->choice.experts, rank, true, weights);
            mc_draw_weights(s->draw, weights);
            mc_arena_destroy(scratch);
        }
        mc_draw_seed(s->draw, s->seed, (uint64_t)rank);
        s->rank = rank + 1;
    }
    mc_draw_tokens(s->draw, n, ids);
}

void
mc_sim_recorded_fill(void *recorded, int64_t rank, int64_t first, int64_t n, int32_t *ids)
{
    const mc_sim_recorded *r = recorded;
    int64_t at = (int64_t)((uint64_t)(rank * r->tokens + first) % (uint64_t)r->n_tokens);
    for (int64_t i = 0; i < n; i++, ids += r->k) {
        memcpy(ids, r->ids + at * r->k, sizeof *ids * (size_t)r->k);
        if (++at == r->n_tokens) at = 0;
    }
}

static const char *const layouts[] = {"contiguous", "round_robin", "eplb"};

bool
mc_sim_layout_parse(mc_str text, mc_sim_layout *out)
{
    for (int i = 0; i < 3; i++) {
        if (!mc_str_is(text, layouts[i])) continue;
        *out = (mc_sim_layout)i;
        return true;
    }
    return false;
}

const char *
mc_sim_layout_name(mc_sim_layout layout)
{
    return layouts[layout];
}

moec_status
mc_sim_slots(mc_arena *arena, mc_sim_layout layout, const mc_ep_load *load, int64_t redundant, const float *loads,
             const int32_t **out_slots, int64_t *out_per_rank, mc_fault *error)
{
    int64_t ranks = load->ranks, experts = load->choice.experts, groups = load->choice.groups;
    if (ranks < 1 || experts < 1 || redundant < 0 || ranks > 1 << 20 || experts > 1 << 20 || redundant > 1 << 20)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "%lld experts and %lld redundant ones on %lld ranks: 1 to 1048576",
                       (long long)experts, (long long)redundant, (long long)ranks);
    int64_t per_rank = (experts + redundant + ranks - 1) / ranks, n = per_rank * ranks;
    if (experts % ranks && experts > ranks && redundant == 0)
        return mc_fail(error, MOEC_ERR_ARGUMENT,
                       "%lld experts cannot be shared out equally to %lld ranks: choose ranks that divide them, or "
                       "%lld redundant ones with the placement eplb",
                       (long long)experts, (long long)ranks, (long long)(n - experts));
    int32_t *slots = MC_NEW_N(arena, int32_t, n);
    *out_slots = slots;
    *out_per_rank = per_rank;
    if (layout == MC_SIM_EPLB) {
        bool nests = groups > 1 && experts % groups == 0;
        mc_eplb_shape shape = {(int32_t)experts, (int32_t)n, nests ? (int32_t)groups : 1, (int32_t)load->nodes,
                               (int32_t)ranks};
        return mc_eplb_place(arena, &shape, loads, 1, &(mc_eplb_placement){.slots = slots}, error);
    }
    if (redundant)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "redundant experts need the placement eplb: it says which to copy");
    for (int64_t i = 0; i < n; i++) {
        int64_t dealt = i % per_rank * ranks + i / per_rank; /* the i-th slot, in turn */
        int64_t at = layout == MC_SIM_ROUND_ROBIN ? dealt % experts : i * experts / n;
        slots[i] = (int32_t)at;
    }
    return MOEC_OK;
}
