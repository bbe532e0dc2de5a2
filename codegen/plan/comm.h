/* comm: what codegen/plan makes of operations between ranks. */
#ifndef MC_CODEGEN_PLAN_COMM_H
#define MC_CODEGEN_PLAN_COMM_H

#include "codegen/plan/plan.h"

static inline bool
mc_plan_is_comm(const mc_op *op)
{
    return op->opcode >= MC_OP_EP_ROUTE && op->opcode <= MC_OP_EP_MERGE;
}

/* p->ep from the module's metas; it stays NULL for one rank. False: they are malformed. */
bool mc_plan_ep(mc_plan *p);
/* Marks the symbols that comm launches set, with their bounds. After all symbols are laid. False: refused. */
bool mc_plan_comm_symbols(mc_plan *p);
void mc_plan_select_comm(mc_plan *p, const mc_op *op);

#endif
