/* attention: what selection of sdpa, its derivative and top_keys share. */
#ifndef MC_CODEGEN_GPU_ATTENTION_H
#define MC_CODEGEN_GPU_ATTENTION_H

#include "codegen/gpu/kernel.h"

enum { /* ATTEND_CAUSAL .. of kernels/attention.cuh */
       MC_GPU_ATTEND_CAUSAL = 1,
       MC_GPU_ATTEND_WINDOW = 2,
       MC_GPU_ATTEND_CHUNKED = 4,
       MC_GPU_ATTEND_SOFTCAP = 8,
       MC_GPU_ATTEND_SINKS = 16,
       MC_GPU_ATTEND_SELECT = 32
};

/* From the attributes; sinks and select are operands. */
int mc_gpu_attention_flags(const mc_op *op);
/* Two integers: window and chunk. */
void mc_gpu_attention_reach(mc_plan *p, const mc_op *op);
/* How many keys there are without those of earlier steps. */
mc_dim mc_gpu_fresh(mc_plan *p, mc_dim keys);
/* Two integers: that, and whether earlier steps have left any. */
void mc_gpu_history(mc_plan *p, mc_dim keys);

#endif
