/* train_rig: a text compiled for training through moec/compiler.h, and steps of it through moec/train.h, in buffers of
 * exactly the sizes that the library asks for, poisoned before each use.
 *
 *     mc_rig rig;
 *     mc_rig_open(&rig, "layer.moe", text, &options, NULL, NULL);      values of parameters: synthetic ones
 *     mc_rig_step step;
 *     mc_rig_step_open(&step, &rig, dims, n_dims, n_threads);          inputs and cotangents: drawn at random
 *     mc_rig_forward(&step);
 *     mc_rig_backward(&step);
 *     ... step.outputs, step.input_grads, step.grads ...
 *     mc_rig_step_close(&step);
 *     mc_rig_close(&rig);
 */
#ifndef MC_SUPPORT_TRAIN_RIG_H
#define MC_SUPPORT_TRAIN_RIG_H

#include "codegen/ref/interp.h"
#include "moec/moec.h"
#include "tests/support/synthetic.h"

enum { MC_RIG_MAX = 64 }; /* inputs, outputs */

typedef struct mc_rig {
    mc_arena *arena;
    moec_compiled *compiled;
    moec_model *model;
    size_t n_params;
    moec_param_info *params;
    void **values;
    mc_synthetic synthetic;
} mc_rig;

/* Fails the test, with the diagnostics, when the text does not compile. options may be NULL; train is set. */
void mc_rig_open(mc_rig *rig, const char *name, const char *text, const moec_compile_options *options,
                 mc_ref_weight_fn *weight, void *weight_user);
void mc_rig_close(mc_rig *rig);
size_t mc_rig_param_bytes(const mc_rig *rig, size_t param);
/* Index of the parameter, of an output or an input by name; fails the test when there is none. */
size_t mc_rig_param(const mc_rig *rig, const char *path);
size_t mc_rig_output(const mc_rig *rig, const char *name);

typedef struct mc_rig_step {
    const mc_rig *rig;
    moec_train_sizes sizes;
    moec_threads *threads; /* its own; NULL with n_threads 0 */
    moec_tensor inputs[MC_RIG_MAX], outputs[MC_RIG_MAX], cotangents[MC_RIG_MAX], input_grads[MC_RIG_MAX];
    float **grads; /* zeroed when opened */
    moec_train_call call;
} mc_rig_step;

/* n_threads 0: the calling thread. `seed` draws inputs and cotangents. Outputs that take no cotangent, and inputs
 * without gradient, have no data in cotangents and input_grads. */
void mc_rig_step_open(mc_rig_step *step, const mc_rig *rig, const moec_limit *dims, size_t n_dims, uint32_t n_threads,
                      uint64_t seed);
/* All buffers must still end where they end. */
void mc_rig_step_close(mc_rig_step *step);
void mc_rig_forward(mc_rig_step *step);
void mc_rig_backward(mc_rig_step *step);
void mc_rig_zero(mc_rig_step *step); /* the gradients */
/* Outputs, gradients of inputs and of parameters, end to end. */
void mc_rig_collect(const mc_rig_step *step, mc_buf *out);

/* |got - want| / |want|, both as one long vector; the norm of got when want is zero. */
double mc_rig_error(const void *got, const mc_ref_tensor *want);

#endif
