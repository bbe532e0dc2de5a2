/* sample: the kernels that choose an id from a language model's logits. They stand in its table of kernels without a
 * launch: the runtime starts them by their names (runtime/gpu/gpu_sample.c). */
#ifndef MC_CODEGEN_GPU_SAMPLE_H
#define MC_CODEGEN_GPU_SAMPLE_H

#include "codegen/gpu/kernel.h"

/* Nothing for a model that is no language model for inference. */
void mc_gpu_add_sampling(mc_plan *p);

#endif
