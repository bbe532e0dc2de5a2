/* trainer: a run of training on a language model, step by step, over include/moec/train.h.
 *
 *     open    memory, threads, data, first values or those of a checkpoint
 *     step    batches -> forward -> loss -> backward (accumulated) -> clip -> AdamW -> balancing bias
 *
 * The bits of a run depend on the model, the data, the options and the seed; not on threads, nor on where it was cut.
 */
#ifndef MC_DRIVER_TRAINER_H
#define MC_DRIVER_TRAINER_H

#include "driver/train/train_checkpoint.h"
#include "driver/train/train_data.h"
#include "driver/train/train_ranks.h"
#include "driver/train/train_settings.h"
#include "runtime/abi.h"

/* Zero means: choose. */
typedef struct mc_train_options {
    const char *data, *out, *weights, *map;
    uint64_t n_steps, batch, length, accumulate, seed;
    bool has_seed, resume;
    uint32_t n_threads;
    uint64_t model_hash; /* of whatever decides the model */
    moec_comm *comm;     /* of a model for several ranks: every rank opens a trainer and takes every step */
} mc_train_options;

/* What the train block of a compiled model says. Errors: as mc_train_settings_parse. */
moec_status mc_train_settings_of(const moec_model *model, mc_train_settings *out, mc_fault *fault) MOEC_MUST_USE;

typedef struct mc_train_report {
    uint64_t step;
    double loss, cross_entropy, aux, z; /* loss = cross_entropy + weights * (aux, z) */
    double grad_norm, lr, seconds;
} mc_train_report;

typedef struct mc_trainer {
    const moec_model *model;
    mc_train_options options; /* completed */
    mc_train_settings settings;
    mc_train_state state;
    mc_train_data data;
    mc_train_ranks ranks;
    uint64_t share, first; /* of the sequences of a batch those of this rank */
    mc_pool *pool;
    moec_threads *threads;
    int64_t vocab;
    /* one micro-batch */
    mc_pages buffers, saved, workspace;
    int32_t *ids, *targets;
    float *logits;
    double *row_losses;
    float aux, z, aux_factor, z_factor;
    moec_tensor *outputs, *cotangents; /* n_outputs, n_cotangents */
    size_t n_outputs, n_cotangents;
} mc_trainer;

/* Everything that can be refused is refused here. The model and abi are borrowed. Errors: any. */
moec_status mc_trainer_open(const moec_model *model, const moec_abi_model *abi, const mc_train_options *options,
                            mc_trainer *out, mc_fault *fault) MOEC_MUST_USE;
void mc_trainer_close(mc_trainer *t);
/* One update. Errors: RANGE (a value that is not finite: names the step and the parameter), MEMORY; then the parameters
 * are as before. */
moec_status mc_trainer_step(mc_trainer *t, mc_train_report *out, mc_fault *fault) MOEC_MUST_USE;
/* Writes a checkpoint in options.out; on every rank. Errors: RANGE (a value is not finite), IO, MEMORY, COMM. */
moec_status mc_trainer_save(mc_trainer *t, mc_fault *fault) MOEC_MUST_USE;
/* Bytes of everything that a run keeps in memory. */
uint64_t mc_trainer_bytes(const mc_trainer *t);

#endif
