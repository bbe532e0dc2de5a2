/* train_memory: what a step of training takes, before anything runs. */
#ifndef MC_DRIVER_TRAIN_MEMORY_H
#define MC_DRIVER_TRAIN_MEMORY_H

#include "driver/train/parameters.h"

typedef struct mc_train_memory {
    uint64_t saved, workspace; /* moec_train_query */
    uint64_t batch;            /* of moec train: ids, targets, logits (which their derivative replaces), losses */
    uint64_t parameters, gradients, moments; /* AdamW's m and v */
} mc_train_memory;

/* The name of the run-time dimension at an axis of input 0 ("B"); empty: it is a number. */
void mc_train_dim_name(const moec_model *model, int axis, char name[32]);
/* `batch` is 0 unless the model is a language model, whose dims are [batch, length]. params need not be reserved.
 * Errors: as moec_train_query. */
moec_status mc_train_memory_of(const moec_model *model, const mc_train_params *params, const moec_limit *dims,
                               size_t n_dims, uint32_t n_threads, mc_train_memory *out, mc_fault *fault) MOEC_MUST_USE;
uint64_t mc_train_memory_total(const mc_train_memory *m);
/* Bytes of one array of a batch, as they are reserved: a multiple of 64. */
size_t mc_train_rounded(size_t n_bytes);

#endif
