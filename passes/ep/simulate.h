/* simulate: what one exchange of a layer would do on up to thousands of ranks: every token is routed as `ep.route`
 * would (runtime/ep/ep_place.c), rows are counted where they arrive and on every link, for each way of exchanging them,
 * and the busiest rank's share is put into the formulas of cost.h. Where a plan says what to expect, this says what
 * happens. */
#ifndef MC_PASSES_EP_SIMULATE_H
#define MC_PASSES_EP_SIMULATE_H

#include "passes/ep/cost.h"
#include "passes/ep/skew.h"

/* The layer and its ranks. */
typedef struct mc_sim_setup {
    mc_ep_load load;      /* `spread` is not read: slots say who holds what */
    const int32_t *slots; /* [ranks, slots_per_rank] the expert in each slot; -1: none */
    int64_t slots_per_rank;
    mc_ep_links links;
    double there_bytes, back_bytes; /* of a row on the wire */
    double products;                /* multiplications of a row with one expert */
    double expert_bytes;            /* weights of one expert */
    bool strict;                    /* every assignment's row goes back by itself */
} mc_sim_setup;

/* ids [n, k] of tokens first .. first + n - 1 of a rank; -1: no expert. */
typedef void mc_sim_fill(void *state, int64_t rank, int64_t first, int64_t n, int32_t *ids);

/* Of all ranks (or experts). */
typedef struct mc_sim_stat {
    double mean, most;
    int64_t who; /* has the most; the first of them */
} mc_sim_stat;

typedef struct mc_sim_way {
    mc_sim_stat nodes_out, nodes_in; /* rows to and from other machines */
    mc_sim_stat fabric_in;           /* rows from ranks of the same machine, itself included */
    double there, back;              /* seconds until the last rank has its rows */
    double step;                     /* there, experts, back */
} mc_sim_way;

/* Rows of one rank; on links by way. */
typedef struct mc_sim_rank {
    int64_t assignments, rows;
    int64_t nodes_out[MC_EP_N_EXCHANGES], nodes_in[MC_EP_N_EXCHANGES], fabric_in[MC_EP_N_EXCHANGES];
    int64_t fabric_out[MC_EP_N_EXCHANGES];
} mc_sim_rank;

typedef struct mc_sim_result {
    mc_sim_stat assignments, rows, experts; /* experts: assignments of each */
    double ranks_hit, nodes_hit;            /* of a token, in the mean */
    double experts_time;                    /* of the busiest rank */
    mc_sim_way ways[MC_EP_N_EXCHANGES];
    int best;                    /* of the ways, the shortest step */
    const mc_sim_rank *per_rank; /* [ranks] */
    const int64_t *per_expert;   /* [experts] */
} mc_sim_result;

/* Everything lives in the arena. Errors: ARGUMENT (sizes that do not divide, experts that no slot holds, more experts
 * for a token than there are), RANGE (more than fits). */
moec_status mc_simulate(mc_arena *arena, const mc_sim_setup *setup, mc_sim_fill *fill, void *state, mc_sim_result *out,
                        mc_fault *error) MOEC_MUST_USE;

/* ---- where tokens come from ------------------------------------------------------------------------------------- */

typedef struct mc_sim_skew { /* a law: mc_sim_skew_fill */
    mc_skew law;
    uint64_t seed;
    mc_ep_choice choice;
    mc_arena *arena; /* of the tables; the rest begins as zeros */
    mc_draw *draw;
    int64_t rank; /* whose weights are in the tables, + 1 */
} mc_sim_skew;
void mc_sim_skew_fill(void *skew, int64_t rank, int64_t first, int64_t n, int32_t *ids);

typedef struct mc_sim_recorded { /* ids of a trace, dealt out to ranks in runs, from the beginning again when they end
                                  */
    const int32_t *ids;          /* [n_tokens, k] */
    int64_t n_tokens, k, tokens; /* tokens: of a rank */
} mc_sim_recorded;
void mc_sim_recorded_fill(void *recorded, int64_t rank, int64_t first, int64_t n, int32_t *ids);

/* ---- who holds what --------------------------------------------------------------------------------------------- */

typedef enum mc_sim_layout { MC_SIM_CONTIGUOUS, MC_SIM_ROUND_ROBIN, MC_SIM_EPLB } mc_sim_layout;

/* "contiguous", "round_robin", "eplb". */
bool mc_sim_layout_parse(mc_str text, mc_sim_layout *out);
const char *mc_sim_layout_name(mc_sim_layout layout);
/* A slot for every expert and `redundant` more, rounded up so that every rank has as many; where ranks are more than
 * experts, experts have several. loads [experts]: for EPLB. Errors: ARGUMENT: what would fit. */
moec_status mc_sim_slots(mc_arena *arena, mc_sim_layout layout, const mc_ep_load *load, int64_t redundant,
                         const float *loads, const int32_t **out_slots, int64_t *out_per_rank,
                         mc_fault *error) MOEC_MUST_USE;

/* ---- printing --------------------------------------------------------------------------------------------------- */

/* A table for people. `traffic`: where tokens came from, in words. */
void mc_sim_print(const mc_sim_setup *setup, const mc_sim_result *result, const char *traffic, mc_sim_layout layout,
                  mc_buf *out);
/* One JSON object. */
void mc_sim_json(const mc_sim_setup *setup, const mc_sim_result *result, const char *traffic, mc_sim_layout layout,
                 mc_buf *out);

#endif
