/* gpu_train: forward and backward of a call of moec/train.h on a GPU. */
#ifndef MC_RUNTIME_GPU_TRAIN_H
#define MC_RUNTIME_GPU_TRAIN_H

#include "moec/train.h"
#include "runtime/gpu/gpu_walk.h"

/* Checks and queues the call, which has a gpu and is for a model for GPUs. Errors: as moec_train_forward; DEVICE. */
moec_status mc_gpu_train(const moec_model *model, moec_train_call *call, bool backward, mc_fault *error) MOEC_MUST_USE;

#endif
