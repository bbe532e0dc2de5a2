/* dce: removes pure ops whose results nobody uses.
 *
 *   needs     nothing
 *   keeps     the stage; every result
 *   refuses   never
 *
 * before:  %w = weight {path = "unused"} …  with no use of %w          after:  nothing
 *
 * One sweep from the end suffices: removing an op can only free ops before it.
 */
#include "ir/edit.h"
#include "passes/match.h"
#include "passes/pass.h"

static bool
is_dead(const mc_op *op)
{
    if (!mc_op_has(op, MC_TRAIT_PURE)) return false;
    for (int i = 0; i < op->n_results; i++)
        if (mc_value_has_uses(&op->results[i])) return false;
    return true;
}

static mc_pass_result
run(mc_pass *p, mc_func *f)
{
    mc_pass_result result = MC_UNCHANGED;
    mc_op *prev;
    for (mc_op *op = f->last; op; op = prev) {
        prev = op->prev;
        if (!is_dead(op) || !mc_fuel(p, op)) continue;
        mc_op_remove(op);
        result = MC_CHANGED;
    }
    return result;
}

mc_pass_result
mc_pass_dce(mc_pass *p, mc_module *m)
{
    return mc_pass_over_funcs(p, m, run);
}
