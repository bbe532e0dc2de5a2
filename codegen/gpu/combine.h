/* combine: every token adds up the rows that experts made of it (kernels/combine.cuh). */
#ifndef MC_CODEGEN_GPU_COMBINE_H
#define MC_CODEGEN_GPU_COMBINE_H

#include "codegen/gpu/kernel.h"

typedef struct mc_gpu_combine {
    const mc_value *y;               /* [A, d]; NULL: at the beginning of the launch's scratch memory */
    moec_dtype y_dtype;              /* when y is NULL */
    const mc_value *rows;            /* [A]: the token of each row */
    const mc_value *offsets, *gates; /* gates may be NULL */
    const mc_value *x;               /* the result, [..., d] */
} mc_gpu_combine;

/* Appends the launches. Scratch memory is asked for here, y's too. */
void mc_gpu_combine_rows(mc_plan *p, const mc_gpu_combine *c);
/* The launch of moe.dispatch leaves the row of each choice in a slot, when somebody in its function combines: asks for
 * the slot while moe.dispatch is selected. False: nobody does. */
bool mc_gpu_combine_keep(mc_plan *p, const mc_op *dispatch, uint32_t *slot);

/* d + n, for any dim. */
mc_dim mc_gpu_plus(mc_dim d, int64_t n);

#endif
