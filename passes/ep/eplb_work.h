/* eplb_work: what eplb.c and eplb_adapt.c share: the arrays of one layer's placement, and its steps. */
#ifndef MC_PASSES_EP_EPLB_WORK_H
#define MC_PASSES_EP_EPLB_WORK_H

#include "passes/ep/eplb.h"

enum { MC_EPLB_MOST = 1 << 22 };

typedef struct mc_eplb_work {
    mc_eplb_shape shape;
    int32_t n_groups, n_nodes; /* 1 and 1: global */
    int32_t per_rank;
    /* of pack and replicate */
    uint64_t *keys, *other, *bin_keys;
    float *bin_load, *weights, *copy_weights, *score, *block_score;
    int32_t *bin_n, *bin, *position, *item, *rank, *count, *block_best;
    int32_t *order; /* [n_experts] experts by node */
    /* of the layer */
    int32_t *replica; /* [n_slots] */
    int32_t *counts;  /* [n_experts] */
    float *rank_load; /* [n_ranks] */
} mc_eplb_work;

void mc_eplb_begin(mc_eplb_work *w, mc_arena *arena, const mc_eplb_shape *shape);
moec_status mc_eplb_check_loads(const float *loads, size_t n, mc_fault *error) MOEC_MUST_USE;
/* w->item and w->rank of each slot, w->count of each expert. */
void mc_eplb_replicate(mc_eplb_work *w, const float *weights, int32_t n, int32_t n_slots, int32_t n_ranks);
void mc_eplb_place_layer(mc_eplb_work *w, const float *loads, int32_t *slots);
void mc_eplb_rank_loads(mc_eplb_work *w, const float *loads, const int32_t *slots);
void mc_eplb_emit(const mc_eplb_work *w, int32_t layer, const int32_t *slots, const mc_eplb_placement *out);

#endif
