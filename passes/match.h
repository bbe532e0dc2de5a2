/* match: what passes ask about values. Nothing here changes anything. */
#ifndef MC_PASSES_MATCH_H
#define MC_PASSES_MATCH_H

#include "ir/op.h"

/* The op that makes v, if it has this opcode; else NULL. v may be NULL. */
static inline mc_op *
mc_def_is(const mc_value *v, mc_opcode opcode)
{
    return v && v->def && v->def->opcode == opcode ? v->def : NULL;
}

/* Whether v is an f32 scalar known now. */
static inline bool
mc_is_const(const mc_value *v, double *out)
{
    mc_op *def = mc_def_is(v, MC_OP_CONST);
    if (!def || v->type->dtype != MOEC_F32) return false;
    *out = mc_attr_float(def, "value");
    return true;
}

/* Activations that gated_linear and moe.ffn_up compute themselves; their `act` is the op's name. */
static inline bool
mc_is_fused_act(mc_opcode opcode)
{
    return opcode == MC_OP_SILU || opcode == MC_OP_GELU || opcode == MC_OP_GELU_TANH || opcode == MC_OP_RELU ||
           opcode == MC_OP_RELU2 || opcode == MC_OP_SIGMOID;
}

/* One f32 in, the same shape out, element by element. */
static inline bool
mc_is_unary_elementwise(mc_opcode opcode)
{
    return opcode >= MC_OP_NEG && opcode <= MC_OP_SOFTCAP;
}

/* Operand `name` of an op that has it, by its index in the table; -1 when the op has none of this name. */
static inline int
mc_operand_index(mc_opcode opcode, const char *name)
{
    const mc_op_info *info = &mc_op_infos[opcode];
    for (int i = 0; i < info->n_operands; i++)
        if (mc_str_is(mc_str_of(name), info->operands[i].name)) return i;
    return -1;
}

#endif
