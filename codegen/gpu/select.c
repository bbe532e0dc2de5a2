/* The table of select functions as an array. An op without a row is one that the GPU backend does not have. */
#include "codegen/gpu/select.h"

#include "codegen/gpu/route_chain.h"

void
mc_gpu_select_nothing(mc_plan *p, const mc_op *op)
{
    (void)p;
    (void)op;
}

static mc_plan_select_fn *const table[MC_N_OPCODES] = {
#define OP(opcode, function) [MC_OP_##opcode] = mc_gpu_select_##function,
#include "codegen/gpu/select.def"
#undef OP
};

const mc_plan_backend mc_gpu_backend = {
    .name = "GPU", .refusal = MC_E0701, .select = table, .fuse = mc_gpu_fuse_routes};
