/* train_checkpoint: a run on disk. Under the run's directory each checkpoint is a directory of its own,
 *
 *     step-000200/model.safetensors       parameters, under the model's own paths, f32; {"format": "moec"}
 *     step-000200/optimizer.safetensors   m/PATH, v/PATH, ema/PATH; the position of the run as metadata
 *
 * made under a temporary name and renamed when it is complete, so one that is there is whole. */
#ifndef MC_DRIVER_TRAIN_CHECKPOINT_H
#define MC_DRIVER_TRAIN_CHECKPOINT_H

#include "driver/train/train_params.h"

/* The state of a balancing bias (moec_bias_update). */
typedef struct mc_train_bias {
    mc_train_param *param;
    size_t output, n_experts; /* the load output that drives it */
    float *ema;               /* [n_experts] */
} mc_train_bias;

/* Where a run is, and what it must be continued with to be the same run. */
typedef struct mc_train_position {
    uint64_t step, n_steps, batch, length, accumulate, seed;
    uint64_t model, data; /* hashes */
} mc_train_position;

typedef struct mc_train_state {
    mc_train_position at;
    mc_train_params params;
    mc_train_bias *biases;
    size_t n_biases;
} mc_train_state;

/* The number of the latest checkpoint in a directory; 0: there is none. */
uint64_t mc_train_latest(const char *directory);
/* Makes step-N in `directory`, which is made as well. `name` is the model's.
 * Errors: IO (what could not be written; nothing is left half-made), MEMORY. */
moec_status mc_train_save(const char *directory, const char *name, const mc_train_state *state,
                          mc_fault *fault) MOEC_MUST_USE;
/* Reads only the position of checkpoint `step`. Errors: NOT_FOUND, SYNTAX, IO, MEMORY. */
moec_status mc_train_peek(const char *directory, uint64_t step, mc_train_position *out, mc_fault *fault) MOEC_MUST_USE;
/* Fills parameters, moments and biases. Errors: as peek, and MISMATCH (tensors that are not this model's). */
moec_status mc_train_load(const char *directory, uint64_t step, mc_train_state *state, mc_fault *fault) MOEC_MUST_USE;

#endif
