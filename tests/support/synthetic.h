/* synthetic: weights that depend on nothing but their path, shape and a seed, so that two programs (before and after a
 * pass, interpreter and backend) get the same model without a file. Values: about N(0, 1/fan_in) for matrices, 1 +- 0.1
 * for norm weights, positive for scales, N(0, 0.01) for other vectors. The same for every dtype up to rounding; with
 * `bf16_grid` every value is one that bf16 holds exactly, so that f32 and bf16 weights are equal.
 *
 *     mc_synthetic s;
 *     mc_synthetic_init(&s, arena, 7);
 *     mc_ref_options options = {.weight = mc_ref_synthetic_weight, .weight_user = &s};
 */
#ifndef MC_SUPPORT_SYNTHETIC_H
#define MC_SUPPORT_SYNTHETIC_H

#include "codegen/ref/interp.h"

typedef struct mc_synthetic {
    mc_arena *arena;
    uint64_t seed;
    bool bf16_grid;
    int64_t int_limit; /* integer tables hold 0..int_limit-1; set by init to 2 */
    mc_map made;       /* path and dtype -> mc_ref_tensor */
} mc_synthetic;

void mc_synthetic_init(mc_synthetic *s, mc_arena *arena, uint64_t seed);
/* A mc_ref_weight_fn; user is a mc_synthetic. */
bool mc_ref_synthetic_weight(void *user, const mc_ref_weight_request *request, mc_ref_tensor *out);

/* Element i of the stream named `hash`: uniform in [0, 1), and about N(0, 1) (within +-3.5). Exact arithmetic, so the
 * same on every machine. */
double mc_noise_uniform(uint64_t hash, int64_t i);
double mc_noise_normal(uint64_t hash, int64_t i);

#endif
