/* train_start: the first values of parameters, made up or taken from a checkpoint. */
#ifndef MC_DRIVER_TRAIN_START_H
#define MC_DRIVER_TRAIN_START_H

#include "driver/train/parameters.h"
#include "runtime/abi.h"

/* Made up from the seed (train_init.h). Errors: UNSUPPORTED. */
moec_status mc_train_start_fresh(mc_train_params *p, uint64_t seed, mc_fault *fault) MOEC_MUST_USE;
/* From a checkpoint of moec train, or from one that the model's `weights` rules bind; wider types are rounded to f32.
 * `map` as in moec_weights_options; number: of the rank (runtime/ranks.h). Errors: as moec_weights_open. */
moec_status mc_train_start_from(mc_train_params *p, const moec_abi_model *abi, const char *path, const char *map,
                                uint32_t number, mc_fault *fault) MOEC_MUST_USE;

#endif
