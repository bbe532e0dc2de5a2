/* train_routes: what a model tells about its routes, and the biases that balance them. */
#ifndef MC_DRIVER_TRAIN_ROUTES_H
#define MC_DRIVER_TRAIN_ROUTES_H

#include "driver/train/parameters.h"

/* What a route chose in the last step: an output "layers.3.mlp.load" [2, n_experts], counts and sums of weights. */
typedef struct mc_train_load {
    char *scope; /* "layers.3.mlp" */
    size_t output, n_experts;
    float *now, *sum; /* of one micro-batch, and of all of a step */
} mc_train_load;

/* A bias that moec_bias_update moves. */
typedef struct mc_train_bias {
    mc_train_param *param;
    size_t load, n_experts; /* the load that drives it */
    float *ema;             /* [n_experts] */
} mc_train_bias;

typedef struct mc_train_routes {
    mc_train_load *loads;
    size_t n_loads;
    mc_train_bias *biases;
    size_t n_biases;
} mc_train_routes;

/* Finds the loads and, with_biases, for each the bias of its route, which is taken from what the optimizer trains.
 * Errors: UNSUPPORTED (no route has a bias), MEMORY. */
moec_status mc_train_routes_find(const moec_model *model, mc_train_params *params, bool with_biases,
                                 mc_train_routes *out, mc_fault *fault) MOEC_MUST_USE;
void mc_train_routes_destroy(mc_train_routes *r);

#endif
