/* train_init: what parameters hold before the first step. */
#ifndef MC_DRIVER_TRAIN_INIT_H
#define MC_DRIVER_TRAIN_INIT_H

#include "moec/train.h"
#include "runtime/base/file.h"

/* Fills elements first .. first + n_elements - 1 of a parameter, at out, as the text says (zeros, ones, normal(s),
 * uniform(a, b)), or else by role and name: weights of norms are 1, vectors (biases) 0, everything else normal(0.02).
 * Element i of a parameter is draw i of the stream of its path (train_random.h), rounded to f32. Errors: UNSUPPORTED
 * (an integer table: no numbers can be made up for it), INTERNAL (an init that means nothing). */
moec_status mc_train_init(const moec_param_info *info, uint64_t seed, uint64_t first, void *out, size_t n_elements,
                          mc_fault *fault) MOEC_MUST_USE;

#endif
