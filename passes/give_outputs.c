/* give-outputs: what functions put out with `output` becomes results of theirs, up to the model's. autodiff does the
 * same for training.
 *
 *   needs     stage tensor
 *   keeps     the stage; every bit of the model's results, which stay first
 *
 * before:  func @block(%x: f32[T, 64]) -> (f32[T, 64]) { … output %ids {name = "mlp.experts"} … return %y }
 *          %y = call %x {callee = @block, scope = "layers.3"}
 *
 * after:   func @block(%x: f32[T, 64]) -> (f32[T, 64], i32[T, 2]) { … return %y, %mlp.experts }
 *          %y, %layers.3.mlp.experts = call %x {callee = @block, scope = "layers.3"}
 */
#include "passes/pass.h"
#include "passes/taps.h"

static bool
puts_out(const mc_module *m)
{
    MC_FOR_FUNCS(f, m)
    {
        MC_FOR_OPS(op, f)
        {
            if (op->opcode == MC_OP_OUTPUT) return true;
        }
    }
    return false;
}

mc_pass_result
mc_pass_give_outputs(mc_pass *p, mc_module *m)
{
    if (!puts_out(m)) return MC_UNCHANGED;
    mc_map all;
    mc_map_init(&all, p->scratch);
    mc_module_sort_funcs(m);
    MC_FOR_FUNCS(f, m)
    {
        mc_taps *taps = MC_NEW(p->scratch, mc_taps);
        taps->n_results = f->last->n_operands;
        mc_map_set(&all, f->name, taps);
        if (!mc_taps_collect(f, &all, taps, p->scratch, p->diags)) return MC_FAILED;
        if (taps->list.n && !mc_taps_return(f, taps, NULL, p->scratch, p->diags)) return MC_FAILED;
        p->n_rewrites += (int64_t)taps->list.n;
    }
    return MC_CHANGED;
}
