/* fake_gpu: models for GPUs written by hand, their kernels compiled by the NVRTC that $MOEC_NVRTC names. */
#ifndef MC_TESTS_FAKE_GPU_H
#define MC_TESTS_FAKE_GPU_H

#include "runtime/abi.h"
#include "runtime/base/arena.h"

/* fake_counter (fake_model.h) for sm_80; NULL: the kernels do not compile, and why is printed. */
const moec_abi_model *fake_gpu_counter(mc_arena *arena);
/* y = 2 x + 1; x and y f32[T, 4], T in 1..100000; a launch has T blocks along y, so that few T are too many. */
const moec_abi_model *fake_gpu_scale(mc_arena *arena);

#endif
