/* train_ranks: a run of training on several ranks. Every rank takes its share of each batch, and holds all parameters
 * but the experts of others, with the same gradients as one rank would have; so most of a step needs no word between
 * ranks. What does: the loss, the norm of all gradients, checkpoints, and when to stop. */
#ifndef MC_DRIVER_TRAIN_RANKS_H
#define MC_DRIVER_TRAIN_RANKS_H

#include "driver/train/parameters.h"
#include "moec/comm.h"

typedef struct mc_train_ranks {
    moec_comm *comm; /* NULL: one rank, and everything below does nothing or the plain thing */
    const moec_model *model;
    uint32_t rank, size, number;
} mc_train_ranks;

/* Errors: MISMATCH (another number of ranks than the model is planned for). */
moec_status mc_train_ranks_open(const moec_model *model, moec_comm *comm, mc_train_ranks *out,
                                mc_fault *fault) MOEC_MUST_USE;
/* Says of each parameter which experts this rank holds. Errors: MEMORY. */
moec_status mc_train_ranks_share(const mc_train_ranks *r, mc_train_params *params, mc_fault *fault) MOEC_MUST_USE;

/* Each rank has `n` values, as many as the others: the sum of all of them in rank order, one by one. */
moec_status mc_train_ranks_sum(const mc_train_ranks *r, const double *values, size_t n, double *out,
                               mc_fault *fault) MOEC_MUST_USE;
/* After the last backward of a step: gradients that are parts of sums become sums. */
moec_status mc_train_ranks_reduce(const mc_train_ranks *r, mc_train_params *params, mc_fault *fault) MOEC_MUST_USE;
/* The norm of all gradients together, as on one rank. */
moec_status mc_train_ranks_grad_norm(const mc_train_ranks *r, mc_train_params *params, mc_pool *pool, double *out,
                                     mc_fault *fault) MOEC_MUST_USE;
/* Whether any rank says so, on all. */
moec_status mc_train_ranks_any(const mc_train_ranks *r, bool *said, mc_fault *fault) MOEC_MUST_USE;

/* On rank 0 something that takes its time, while the others wait for as long as rank 0 lives: returns when it has
 * ended. Its error is rank 0's. */
typedef moec_status mc_train_task(void *context, mc_fault *fault);
moec_status mc_train_ranks_first(const mc_train_ranks *r, mc_train_task *task, void *context,
                                 mc_fault *fault) MOEC_MUST_USE;

/* On rank 0 *out gets all parameters with all experts, values and moments, to be written; on others none (n = 0). */
typedef struct mc_train_whole {
    mc_train_params params;
    mc_pages pages;
} mc_train_whole;
moec_status mc_train_ranks_collect(const mc_train_ranks *r, const mc_train_params *params, mc_train_whole *out,
                                   mc_fault *fault) MOEC_MUST_USE;
void mc_train_whole_destroy(mc_train_whole *w);

#endif
