/* parameters: the parameters of a model in memory, with gradients and the optimizer's moments, and what every step
 * does to all of them. Work is cut into chunks of fixed size, which begin anew with every expert, so its results do not
 * depend on the threads, nor on who holds which experts. */
#ifndef MC_DRIVER_TRAIN_PARAMETERS_H
#define MC_DRIVER_TRAIN_PARAMETERS_H

#include "driver/train/adamw.h"
#include "moec/train.h"
#include "runtime/pages.h"
#include "runtime/pool.h"

typedef struct mc_train_param {
    moec_param_info info;
    size_t n; /* elements */
    bool trained, decays;
    void *value;
    float *grad, *m, *v; /* NULL unless trained */
    int64_t *experts;    /* of several ranks: the expert in each slot of axis 0; NULL: all of the parameter is here */
    int64_t n_experts;   /* with experts: how many there are, wherever they are */
} mc_train_param;

typedef struct mc_train_chunk {
    uint32_t param;
    size_t begin, end;
} mc_train_chunk;

typedef struct mc_train_params {
    mc_train_param *items;
    size_t n;
    uint64_t n_values, n_trained; /* elements in all, and of those trained */
    mc_pages values, grads, moments;
    void **value_table; /* for moec_train_call */
    float **grad_table;
    mc_train_chunk *chunks; /* of what is trained */
    size_t n_chunks;
    double *partial; /* one for each chunk */
} mc_train_params;

/* Asks the model for its parameters. All f32 parameters with a gradient are to be trained; decay is for matrices: not
 * for norms, vectors, biases and embeddings. Then `trained` may still be taken off. Errors: MEMORY, UNSUPPORTED. */
moec_status mc_train_params_create(const moec_model *model, mc_train_params *out, mc_fault *fault) MOEC_MUST_USE;
/* Reserves values, gradients and moments, all 0. Errors: MEMORY. */
moec_status mc_train_params_reserve(mc_train_params *p, mc_fault *fault) MOEC_MUST_USE;
void mc_train_params_destroy(mc_train_params *p);
/* NULL when there is none of this path. */
mc_train_param *mc_train_params_find(const mc_train_params *p, const char *path);

/* Bytes of one array as it is reserved: gradients and each of the moments are multiples of 64. */
size_t mc_train_param_bytes(const mc_train_param *p);

void mc_train_params_zero_grads(mc_train_params *p, mc_pool *pool);
/* Fills `partial`, of which the norm of all gradients is made (train_ranks.h); not finite when one of them is not. */
void mc_train_params_square_grads(mc_train_params *p, mc_pool *pool);
/* Update number t (from 1) of everything trained. */
void mc_train_params_update(mc_train_params *p, mc_pool *pool, const mc_adamw *a, double lr, uint64_t t,
                            double grad_scale);
/* The first parameter with a value, or (grads) a gradient, that is not finite; NULL: there is none. */
const mc_train_param *mc_train_params_not_finite(const mc_train_params *p, bool grads);

#endif
