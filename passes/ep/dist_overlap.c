/* While rows travel: what does not need them is computed meanwhile. An ep.wait stands right after its send; products
 * further down that depend on nothing that is still to come (shared experts) are moved in between, with what they need.
 */
#include "passes/ep/dist.h"

#include <string.h>

static bool
is_begin(const mc_op *op)
{
    return op->opcode == MC_OP_EP_SEND || op->opcode == MC_OP_EP_SEND_ROWS || op->opcode == MC_OP_EP_RETURN ||
           op->opcode == MC_OP_EP_REDUCE;
}

static bool
is_product(const mc_op *op)
{
    return op->opcode == MC_OP_LINEAR || op->opcode == MC_OP_GATED_LINEAR || op->opcode == MC_OP_LINEAR_DX ||
           op->opcode == MC_OP_LINEAR_DW;
}

/* By id of the op, for one wait. */
typedef struct marks {
    bool *after;  /* it is the wait, or stands behind it */
    bool *free;   /* it is pure, and depends on nothing behind the wait that is not */
    bool *wanted; /* a free product, or what one needs */
} marks;

static void
find_free(const marks *m, mc_op *wait)
{
    m->after[wait->id] = true;
    m->free[wait->id] = false;
    for (const mc_op *op = wait->next; op; op = op->next) {
        bool free = mc_op_has(op, MC_TRAIT_PURE);
        for (int i = 0; i < op->n_operands && free; i++) {
            const mc_value *v = mc_operand(op, i);
            free = !v || !v->def || !m->after[v->def->id] || m->free[v->def->id];
        }
        m->after[op->id] = true;
        m->free[op->id] = free;
        m->wanted[op->id] = free && is_product(op);
    }
}

static void
move_wanted(const marks *m, mc_op *wait)
{
    for (const mc_op *op = wait->func->last; op != wait; op = op->prev) {
        for (int i = 0; i < op->n_operands && m->wanted[op->id]; i++)
            if (mc_operand(op, i) && mc_operand(op, i)->def) m->wanted[mc_operand(op, i)->def->id] = true;
    }
    mc_op *next;
    for (mc_op *op = wait->next; op; op = next) {
        next = op->next;
        if (m->wanted[op->id]) mc_op_move_before(wait, op);
    }
}

void
mc_dist_overlap(mc_dist *d, mc_func *f)
{
    size_t n = d->module->next_id;
    marks m = {MC_NEW_N(d->pass->scratch, bool, n), MC_NEW_N(d->pass->scratch, bool, n),
               MC_NEW_N(d->pass->scratch, bool, n)};
    MC_FOR_OPS(wait, f)
    {
        if (wait->opcode != MC_OP_EP_WAIT || !wait->prev || !is_begin(wait->prev)) continue;
        memset(m.after, 0, n * sizeof *m.after);
        find_free(&m, wait);
        move_wanted(&m, wait);
    }
}
