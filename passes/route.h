/* route: where a model chooses experts, as it shows once experts are expanded. For the passes that watch choices,
 * record them or replace them. */
#ifndef MC_PASSES_ROUTE_H
#define MC_PASSES_ROUTE_H

#include "ir/op.h"

/* One route, with a dispatch that it feeds. */
typedef struct mc_route {
    mc_op *dispatch;
    mc_value *weights, *ids; /* before capacity; no weights: only numbers that stand in for them are known */
    mc_op *choice;           /* route.top, route.choose or route.sparsemixer that made the ids; else NULL */
} mc_route;

/* The scores of all experts for each token. */
typedef struct mc_route_scores {
    mc_value *logits;        /* NULL: there are none */
    mc_value *activated;     /* softmax, sigmoid or sqrt softplus of them, when the route computes it before choosing */
    const mc_op *projection; /* the linear that made them, or NULL */
} mc_route_scores;

/* Outputs and inputs of choices end in these, with ".2" and so on behind the second of a name. */
#define MC_ROUTE_OUTPUT "experts" /* what a route chose */
#define MC_ROUTE_INPUT "replay"   /* what it is made to choose */

mc_route mc_route_of(mc_op *dispatch);
/* Shared experts: equal scores for all, made by a clamp to one number (or a fill). */
bool mc_route_is_constant(const mc_op *choice);
mc_route_scores mc_route_scores_of(const mc_op *choice);
/* "mlp.gate.weight" -> "mlp.what": beside the router, with a number when `taken` has it already; then taken has it. */
mc_str mc_route_name(mc_arena *arena, const mc_route_scores *scores, const char *what, mc_map *taken);

#endif
