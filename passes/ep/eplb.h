/* eplb: which experts every rank holds, and how often, so that ranks have equal work: the balancer that DeepSeek
 * published, in float32 and with every tie to the lower index, so that the same loads give the same placement
 * everywhere.
 *
 *   hierarchical  groups of experts are dealt to nodes, experts of a node are copied until its slots are full, copies
 *                 are dealt to the node's ranks: a token that is limited to few groups stays on few nodes
 *   global        the same with one group and one node: better balance, more traffic; when the groups cannot be dealt
 *
 * Two things are added, since a second copy on a rank does nothing: no expert gets more copies than there are ranks for
 * them, and where a rank got two all the same, one is exchanged with another rank's. */
#ifndef MC_PASSES_EP_EPLB_H
#define MC_PASSES_EP_EPLB_H

#include "runtime/base/file.h"

typedef struct mc_eplb_shape {
    int32_t n_experts, n_slots; /* of all ranks; slot s is of rank s / (n_slots / n_ranks) */
    int32_t n_groups;           /* runs of experts that stay on one node; 1: no groups */
    int32_t n_nodes, n_ranks;
} mc_eplb_shape;

/* The caller's arrays, one row a layer; all but slots may be NULL. */
typedef struct mc_eplb_placement {
    int32_t *slots;   /* [n_slots] the expert in each slot */
    int32_t *replica; /* [n_slots] which copy of it that is, from 0 */
    int32_t *counts;  /* [n_experts] copies of each expert, 1 or more */
    int32_t *first;   /* [n_experts + 1] where each expert's copies begin in: */
    int32_t *copies;  /* [n_slots] slots by expert, then replica */
} mc_eplb_placement;

/* Errors: ARGUMENT: which numbers do not divide, and what would. */
moec_status mc_eplb_check(const mc_eplb_shape *shape, mc_fault *error) MOEC_MUST_USE;
bool mc_eplb_is_hierarchical(const mc_eplb_shape *shape);

/* loads: [n_layers, n_experts], how much work each expert has; not negative. Errors: as mc_eplb_check, and ARGUMENT for
 * loads that are negative, infinite or NaN. */
moec_status mc_eplb_place(mc_arena *scratch, const mc_eplb_shape *shape, const float *loads, int32_t n_layers,
                          const mc_eplb_placement *out, mc_fault *error) MOEC_MUST_USE;

/* The same for loads that have drifted: begins with the slots of before ([n_layers, n_slots]) and moves only what it
 * must to be at most `slack` (0.01) worse balanced than a placement made anew; *out_moves: slots whose expert is
 * another one. Where that cannot be reached it places anew. */
moec_status mc_eplb_adapt(mc_arena *scratch, const mc_eplb_shape *shape, const float *loads, const int32_t *previous,
                          double slack, int32_t n_layers, const mc_eplb_placement *out, int64_t *out_moves,
                          mc_fault *error) MOEC_MUST_USE;

/* Load of the mean rank / load of the busiest one, of one layer; 1: perfect, or no load at all. counts: of copies. */
double mc_eplb_balance(const mc_eplb_shape *shape, const float *loads, const int32_t *slots, const int32_t *counts);

#endif
