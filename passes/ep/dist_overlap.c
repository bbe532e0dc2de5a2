/* While rows travel: what does not need them is computed meanwhile. An ep.wait stands right after its send; products
 * further down that depend on nothing that is still to come (shared experts) are moved in between, with what they need.
 */
#include "passes/ep/dist.h"

static bool
is_begin(const mc_op *op)
{
    return op->opcode == MC_OP_EP_SEND || op->opcode == MC_OP_EP_SEND_ROWS || op->opcode == MC_OP_EP_RETURN ||
           op->opcode == MC_OP_EP_REDUCE;
}

static bool
stands_before(const mc_op *a, const mc_op *b)
{
    while (b && b != a) b = b->prev;
    return b != NULL;
}

/* Whether op could stand before `site`: it is pure, and so is everything after `site` that it needs. */
static bool
can_move(const mc_op *op, const mc_op *site)
{
    if (stands_before(op, site)) return op != site;
    if (!mc_op_has(op, MC_TRAIT_PURE)) return false;
    for (int i = 0; i < op->n_operands; i++) {
        const mc_value *v = mc_operand(op, i);
        if (v && v->def && !can_move(v->def, site)) return false;
    }
    return true;
}

static void
move(mc_op *op, mc_op *site)
{
    if (stands_before(op, site)) return;
    for (int i = 0; i < op->n_operands; i++) {
        mc_value *v = mc_operand(op, i);
        if (v && v->def) move(v->def, site);
    }
    mc_op_move_before(site, op);
}

static bool
is_product(const mc_op *op)
{
    return op->opcode == MC_OP_LINEAR || op->opcode == MC_OP_GATED_LINEAR || op->opcode == MC_OP_LINEAR_DX ||
           op->opcode == MC_OP_LINEAR_DW;
}

void
mc_dist_overlap(mc_dist *d, mc_func *f)
{
    (void)d;
    MC_FOR_OPS(wait, f)
    {
        if (wait->opcode != MC_OP_EP_WAIT || !wait->prev || !is_begin(wait->prev)) continue;
        mc_op *next;
        for (mc_op *op = wait->next; op; op = next) {
            next = op->next;
            if (is_product(op) && can_move(op, wait)) move(op, wait);
        }
    }
}
