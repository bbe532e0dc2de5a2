/* The table of select functions. An op without an entry is one that the CPU backend does not have. */
#include "codegen/cpu/select.h"

/* Ops that only name memory: they make no launch. */
static void
nothing(mc_plan *p, const mc_op *op)
{
    (void)p;
    (void)op;
}

/* clang-format off */
static mc_plan_select_fn *const table[MC_N_OPCODES] = {
    [MC_OP_CONST] = nothing, [MC_OP_PACKED] = nothing, [MC_OP_RETURN] = nothing, [MC_OP_RESHAPE] = nothing,
    [MC_OP_LINEAR] = mc_cpu_select_matmul, [MC_OP_GATED_LINEAR] = mc_cpu_select_matmul,
    [MC_OP_GROUPED_MATMUL] = mc_cpu_select_matmul, [MC_OP_MOE_FFN_UP] = mc_cpu_select_matmul,
    [MC_OP_MOE_FFN_DOWN] = mc_cpu_select_matmul,
    [MC_OP_LINEAR_DX] = mc_cpu_select_matmul_train, [MC_OP_LINEAR_DW] = mc_cpu_select_matmul_train,
    [MC_OP_GROUPED_DX] = mc_cpu_select_matmul_train, [MC_OP_GROUPED_DW] = mc_cpu_select_matmul_train,
    [MC_OP_EMBED] = mc_cpu_select_embed, [MC_OP_CAST] = mc_cpu_select_cast,
    [MC_OP_RMSNORM] = mc_cpu_select_norm, [MC_OP_LAYERNORM] = mc_cpu_select_norm, [MC_OP_L2NORM] = mc_cpu_select_norm,
    [MC_OP_SOFTMAX] = mc_cpu_select_softmax, [MC_OP_ROUTE_RENORM] = mc_cpu_select_renorm,
    [MC_OP_ROPE] = mc_cpu_select_rope, [MC_OP_POSITION] = mc_cpu_select_position,
    [MC_OP_SDPA] = mc_cpu_select_attention, [MC_OP_LATENT_SDPA] = mc_cpu_select_attention,
    [MC_OP_HEAD_LINEAR] = mc_cpu_select_head_linear,
    [MC_OP_TOP_KEYS] = mc_cpu_select_top_keys, [MC_OP_CACHE] = mc_cpu_select_cache,
    [MC_OP_CONV1D] = mc_cpu_select_conv1d, [MC_OP_SELECTIVE_SCAN] = mc_cpu_select_selective_scan,
    [MC_OP_DELTA_SCAN] = mc_cpu_select_delta_scan,
    [MC_OP_ADD] = mc_cpu_select_elementwise, [MC_OP_SUB] = mc_cpu_select_elementwise,
    [MC_OP_MUL] = mc_cpu_select_elementwise, [MC_OP_DIV] = mc_cpu_select_elementwise,
    [MC_OP_NEG] = mc_cpu_select_elementwise, [MC_OP_SILU] = mc_cpu_select_elementwise,
    [MC_OP_GELU] = mc_cpu_select_elementwise, [MC_OP_GELU_TANH] = mc_cpu_select_elementwise,
    [MC_OP_RELU] = mc_cpu_select_elementwise, [MC_OP_RELU2] = mc_cpu_select_elementwise,
    [MC_OP_SIGMOID] = mc_cpu_select_elementwise, [MC_OP_TANH] = mc_cpu_select_elementwise,
    [MC_OP_EXP] = mc_cpu_select_elementwise, [MC_OP_LOG] = mc_cpu_select_elementwise,
    [MC_OP_LOG1P] = mc_cpu_select_elementwise, [MC_OP_SQRT] = mc_cpu_select_elementwise,
    [MC_OP_SOFTPLUS] = mc_cpu_select_elementwise, [MC_OP_FLOOR] = mc_cpu_select_elementwise,
    [MC_OP_CLAMP] = mc_cpu_select_elementwise, [MC_OP_SOFTCAP] = mc_cpu_select_elementwise,
    [MC_OP_COPY] = mc_cpu_select_move, [MC_OP_SPLIT] = mc_cpu_select_move, [MC_OP_CONCAT] = mc_cpu_select_move,
    [MC_OP_SLICE] = mc_cpu_select_move, [MC_OP_EXPAND] = mc_cpu_select_move, [MC_OP_TILE] = mc_cpu_select_move,
    [MC_OP_TRANSPOSE] = mc_cpu_select_move,
    [MC_OP_ROUTE_GROUPS] = mc_cpu_select_route_groups, [MC_OP_ROUTE_TOP] = mc_cpu_select_route_top,
    [MC_OP_ROUTE_TAKE] = mc_cpu_select_route_take, [MC_OP_ROUTE_LOOKUP] = mc_cpu_select_route_lookup,
    [MC_OP_ROUTE_SPARSEMIXER] = mc_cpu_select_route_sparsemixer, [MC_OP_ROUTE_CHOOSE] = mc_cpu_select_route_choose,
    [MC_OP_ROUTE_HASH] = mc_cpu_select_route_hash,
    [MC_OP_MOE_DISPATCH] = mc_cpu_select_dispatch, [MC_OP_MOE_CAPACITY] = mc_cpu_select_capacity,
    [MC_OP_MOE_PERMUTE] = mc_cpu_select_permute, [MC_OP_MOE_UNPERMUTE] = mc_cpu_select_unpermute,
    [MC_OP_MOE_IDENTITY] = mc_cpu_select_identity,
    [MC_OP_SDPA_GRAD] = mc_cpu_select_attention_grad,
    [MC_OP_EMBED_DW] = mc_cpu_select_embed_dw, [MC_OP_ROUTE_SCATTER] = mc_cpu_select_route_scatter,
    [MC_OP_ROUTE_MASK] = mc_cpu_select_route_mask, [MC_OP_MOE_LOAD] = mc_cpu_select_load,
    [MC_OP_MOE_BALANCE] = mc_cpu_select_balance, [MC_OP_MOE_BALANCE_GRAD] = mc_cpu_select_balance_grad,
    [MC_OP_MOE_Z_LOSS] = mc_cpu_select_z_loss, [MC_OP_MOE_Z_LOSS_GRAD] = mc_cpu_select_z_loss_grad,
    [MC_OP_GLU] = mc_cpu_select_flat, [MC_OP_GLU_GRAD] = mc_cpu_select_flat,
    [MC_OP_UNARY_GRAD] = mc_cpu_select_flat, [MC_OP_FILL] = mc_cpu_select_flat,
    [MC_OP_ACCUMULATE] = mc_cpu_select_accumulate, [MC_OP_MOE_GLU_GRAD] = mc_cpu_select_moe_glu_grad,
    [MC_OP_NORM_GRAD] = mc_cpu_select_norm_grad, [MC_OP_SOFTMAX_GRAD] = mc_cpu_select_softmax_grad,
    [MC_OP_ROUTE_RENORM_GRAD] = mc_cpu_select_renorm_grad, [MC_OP_ROW_DOT] = mc_cpu_select_row_dot,
    [MC_OP_SUM_TO] = mc_cpu_select_sum_to, [MC_OP_UNSLICE] = mc_cpu_select_unslice,
};
/* clang-format on */

const mc_plan_backend mc_cpu_backend = {.name = "CPU", .refusal = MC_E0601, .select = table, .ranks = true};

bool
mc_cpu_supports(mc_opcode opcode)
{
    return table[opcode] != NULL || opcode == MC_OP_CALL;
}
