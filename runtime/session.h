/* session: what session.c, feed.c and sample.c share. */
#ifndef MC_RUNTIME_SESSION_H
#define MC_RUNTIME_SESSION_H

#include "runtime/exec.h"
#include "runtime/pages.h"

struct moec_session {
    const moec_model *model;
    mc_pool *pool;
    struct mc_gpu_session *gpu; /* runtime/gpu/gpu_session.h; NULL: on the processor, with the pool */
    mc_exec exec;
    int64_t max_batch, max_positions, max_new;
    int64_t *sym_max; /* n_syms */
    mc_pages slab, states, outputs, scratch;
    size_t *output_offsets; /* n_outputs: where in `outputs` a result lies that the caller does not want */
    void **args;            /* n_inputs + n_outputs */
    int64_t past, batch;    /* batch: sequences of the history; 0 when there is none */
    const float *logits;    /* of the last step that feed made: [logits_batch][logits_rows][vocab] */
    size_t logits_batch, logits_rows;
    double *sample_scratch; /* 2 * vocab; made by the first draw */
};

/* The weights' addresses, one for each entry of the model's table (weights.c). */
void *const *mc_weights_addresses(const moec_weights *weights);
const moec_model *mc_weights_model(const moec_weights *weights);

/* A step on checked, complete argument addresses; s->exec.syms hold the sizes. */
moec_status mc_session_step(moec_session *s, mc_fault *error) MOEC_MUST_USE;
/* Checks and sets one symbol. */
moec_status mc_session_set_sym(moec_session *s, uint32_t sym, int64_t value, mc_fault *error) MOEC_MUST_USE;
/* Forgets the values of the last step. */
void mc_session_begin(moec_session *s);

#endif
