/* train_params: the parameters of a model for training: the distinct paths of its weight table, in order of appearance.
 */
#ifndef MC_RUNTIME_TRAIN_PARAMS_H
#define MC_RUNTIME_TRAIN_PARAMS_H

#include "runtime/abi_model.h"

typedef struct mc_param {
    const moec_abi_weight *weight; /* the first entry that reads it */
    bool has_gradient;
} mc_param;

/* Fills model->params and model->param_of. Errors: MEMORY, INTERNAL (a gradient of another shape, or of nothing). */
moec_status mc_params_find(moec_model *model, mc_fault *error) MOEC_MUST_USE;
void mc_params_free(moec_model *model);

#endif
