/* route_chain: runs of row-wise routing ops (softmax, bias, groups, top, renorm ...) as one kernel. */
#ifndef MC_CODEGEN_GPU_ROUTE_CHAIN_H
#define MC_CODEGEN_GPU_ROUTE_CHAIN_H

#include "codegen/gpu/kernel.h"

typedef struct mc_route_load { /* a row in registers that was read from memory */
    const mc_value *value;
    int64_t width;
} mc_route_load;

typedef struct mc_route_chain {
    mc_plan *p;
    mc_dim rows;
    int64_t max_width;
    MC_VEC(const mc_op *) ops;     /* in order */
    MC_VEC(const mc_value *) ptrs; /* what the kernel reads and writes */
    MC_VEC(mc_route_load) loads;
    mc_buf head, body; /* statements: loads, then what is done with them */
} mc_route_chain;

/* route_text.c: whether the op can stand in the chain, after those that do, and its statement. */
bool mc_route_joins(const mc_route_chain *c, const mc_op *op);
void mc_route_say(mc_route_chain *c, const mc_op *op);
/* The member that makes v, looking through reshapes that leave rows as they are; NULL: none. */
const mc_value *mc_route_made(const mc_route_chain *c, const mc_value *v);
/* Statements that write a result of a member to memory. */
void mc_route_store(mc_route_chain *c, const mc_value *v);

/* The backend's fuse function: makes the launch of a chain that begins with p->op. */
bool mc_gpu_fuse_routes(mc_plan *p, const mc_op *op);
/* The launch of one op by itself. */
void mc_gpu_route_alone(mc_plan *p, const mc_op *op);

#endif
