/* train_checkpoint: a run on disk. Under the run's directory each checkpoint is a directory of its own,
 *
 *     step-000200/model.safetensors       parameters, under the model's own paths, f32; {"format": "moec"}
 *     step-000200/optimizer.safetensors   m/PATH, v/PATH, ema/PATH; the position of the run as metadata
 *
 * made under a temporary name and renamed when it is complete, so one that is there is whole. */
#ifndef MC_DRIVER_TRAIN_CHECKPOINT_H
#define MC_DRIVER_TRAIN_CHECKPOINT_H

#include "driver/train/train_routes.h"

/* Where a run is, and what it must be continued with to be the same run. */
typedef struct mc_train_position {
    uint64_t step, n_steps, batch, length, accumulate, seed;
    uint64_t model, data; /* hashes */
} mc_train_position;

typedef struct mc_train_state {
    mc_train_position at;
    mc_train_params params;
    mc_train_routes routes;
} mc_train_state;

/* The number of the latest checkpoint in a directory; 0: there is none. */
uint64_t mc_train_latest(const char *directory);
/* Makes step-N in `directory`, which is made as well. `name` is the model's.
 * Errors: IO (what could not be written; nothing is left half-made), MEMORY. */
moec_status mc_train_checkpoint_write(const char *directory, const char *name, const mc_train_state *state,
                                      mc_fault *fault) MOEC_MUST_USE;
/* Reads only the position of checkpoint `step`. Errors: NOT_FOUND, SYNTAX, IO, MEMORY. */
moec_status mc_train_checkpoint_peek(const char *directory, uint64_t step, mc_train_position *out,
                                     mc_fault *fault) MOEC_MUST_USE;
/* Fills parameters, moments and biases. Errors: as peek, and MISMATCH (tensors that are not this model's). */
moec_status mc_train_checkpoint_read(const char *directory, uint64_t step, mc_train_state *state,
                                     mc_fault *fault) MOEC_MUST_USE;

#endif
