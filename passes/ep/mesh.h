/* mesh: what a model's place block says, read from the module's meta "place": settings, of which the later one wins:
 *
 *     mesh dp = 4, ep = 64, tp = 1; experts over = ep; tokens over = [dp, ep]; redundant 32; layout round_robin;
 *     nodes 8; order tree; exchange node
 *
 * The axis that experts are over (when not said, the one called ep) is `ep`, whatever its name; the other axes that
 * tokens are over are `dp`; what is left is `tp`, and must be 1. Rank r is number r % ep of replica r / ep; node n has
 * the ranks n * world / nodes onwards. */
#ifndef MC_PASSES_EP_MESH_H
#define MC_PASSES_EP_MESH_H

#include "ir/diag.h"
#include "ir/ir.h"

typedef enum mc_ep_mesh_state {
    MC_EP_MESH_NONE,  /* the model says nothing about experts over an axis: one rank */
    MC_EP_MESH_WRONG, /* E0801 was reported */
    MC_EP_MESH_READ
} mc_ep_mesh_state;

typedef enum mc_ep_order { MC_EP_STRICT, MC_EP_TREE } mc_ep_order;

/* In the order of mc_ep_way in runtime/ep/ep.h, which passes may not include; AUTO: the cost model chooses. */
typedef enum mc_ep_exchange {
    MC_EP_BY_EXPERT,
    MC_EP_BY_RANK,
    MC_EP_BY_NODE,
    MC_EP_N_EXCHANGES,
    MC_EP_AUTO = MC_EP_N_EXCHANGES
} mc_ep_exchange;

typedef struct mc_ep_mesh {
    mc_ep_mesh_state state;
    int64_t ep, dp, tp;               /* sizes; the world has ep * dp ranks */
    int64_t nodes;                    /* machines that the world is on; 1 when not said */
    int64_t per_node;                 /* neighbours among the ep ranks of a replica that are on one node; divides ep */
    mc_str experts_over, tokens_over; /* as written; borrowed from the meta */
    int64_t redundant;                /* copies beyond one of each expert: E + redundant slots in all */
    bool round_robin;                 /* expert e on rank e % ep; else on rank e / (E / ep) */
    mc_ep_order order;
    mc_ep_exchange exchange;
} mc_ep_mesh;

/* True exactly when out->state is MC_EP_MESH_READ. */
bool mc_ep_mesh_read(const mc_module *m, mc_ep_mesh *out, mc_diags *diags);
/* Whether a text is axes with sizes: "dp = 4, ep = 64". */
bool mc_ep_mesh_is_axes(mc_str text);
/* The same as mc_ep_mesh_read, of a text. */
bool mc_ep_mesh_parse(mc_str text, mc_ep_mesh *out, mc_diags *diags);

#endif
