/* gen_module: random valid modules of stage tensor, from a seed. For fuzz and differential tests: what the interpreter
 * computes must survive printing, reading, every pass and every backend.
 *
 * A module is a small language model: tokens and a stream x [B, S, n] go through blocks drawn at random (attention,
 * scans, norms, elementwise, shapes, experts with random routes, calls of random functions), so that every op of the
 * table occurs once enough seeds are tried. Weights are for mc_ref_synthetic_weight with int_limit 2.
 *
 *     mc_module *m = mc_gen_module(&(mc_gen_options){.seed = 7, .n_blocks = 8}, diags);
 *     mc_gen_inputs(m, 7, 2, 5, arena, inputs);
 */
#ifndef MC_SUPPORT_GEN_MODULE_H
#define MC_SUPPORT_GEN_MODULE_H

#include "tests/support/synthetic.h"

typedef struct mc_gen_options {
    uint64_t seed;
    int n_blocks;
    bool by_token;   /* leave out what makes a token depend on others: capacity and expert choice */
    bool f32;        /* no parameters in narrow types */
    bool trainable;  /* leave out what autodiff cannot go back through: parameters in f32, no state, no fused forms */
    bool continuous; /* leave out what turns a last-bit difference into a large one: floor, casts to narrow types */
} mc_gen_options;

enum { MC_GEN_INPUTS = 2 }; /* tokens i32[B, S], x f32[B, S, n] */

/* NULL when an op was refused: a fault of the generator or of inference; diags says which. */
mc_module *mc_gen_module(const mc_gen_options *options, mc_diags *diags);
/* Inputs for one run of a generated module with these sizes. */
void mc_gen_inputs(const mc_module *m, uint64_t seed, int64_t B, int64_t S, mc_arena *arena,
                   mc_ref_tensor inputs[MC_GEN_INPUTS]);

#endif
