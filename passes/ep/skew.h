/* skew: made-up routers. A law says how popular experts are; tokens draw k different ones of them, with every chance
 * exactly as if the router took the k greatest of its scores (popularity times noise), group limit included.
 *
 *     uniform              all experts alike
 *     zipf:S               the n-th expert of a random order has weight n^-S
 *     khot:N[:SHARE]       N random experts share SHARE (0.5) of the weight, the others the rest
 *     rank:S[:OWN]         zipf:S, OWN (0.5) of it in an order of each rank's own
 *     drift:S[:PART]       zipf:S; PART (0.2) of the experts have changed places since the placement was made */
#ifndef MC_PASSES_EP_SKEW_H
#define MC_PASSES_EP_SKEW_H

#include "passes/ep/traffic.h"
#include "runtime/base/file.h"

typedef enum mc_skew_kind { MC_SKEW_UNIFORM, MC_SKEW_ZIPF, MC_SKEW_HOT, MC_SKEW_RANK, MC_SKEW_DRIFT } mc_skew_kind;

typedef struct mc_skew {
    mc_skew_kind kind;
    double exponent;
    double share; /* SHARE, OWN, PART */
    int64_t hot;
} mc_skew;

/* Errors: ARGUMENT: what the text should look like. */
moec_status mc_skew_parse(mc_str text, mc_skew *out, mc_fault *error) MOEC_MUST_USE;
/* As it was written, with what was left out. */
void mc_skew_print(const mc_skew *law, mc_buf *out);

/* Weight of each expert on a rank; their sum is 1. drifted: as traffic is; else as it was when experts were placed. */
void mc_skew_weights(mc_arena *scratch, const mc_skew *law, uint64_t seed, int64_t n_experts, int64_t rank,
                     bool drifted, double *out);
/* What a placement can know: the mean weights of all ranks before they drifted, for mc_eplb_place. */
void mc_skew_loads(mc_arena *scratch, const mc_skew *law, uint64_t seed, int64_t n_experts, int64_t n_ranks,
                   float *out);

/* ---- drawing ---------------------------------------------------------------------------------------------------- */

typedef struct mc_draw mc_draw;

/* choice: k different of the experts, at most of the `keep` groups whose best expert scores highest. */
mc_draw *mc_draw_create(mc_arena *arena, const mc_ep_choice *choice);
void mc_draw_weights(mc_draw *draw, const double *weights); /* [experts], copied */
void mc_draw_seed(mc_draw *draw, uint64_t seed, uint64_t stream);
void mc_draw_tokens(mc_draw *draw, int64_t n, int32_t *ids); /* [n, k] */

#endif
