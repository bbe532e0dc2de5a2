/* trace-routes: which experts each token chose becomes an output, for every layer of experts.
 *
 *   needs     stage tensor, experts expanded
 *   keeps     the stage; every bit of the model's results
 *
 * before:  %w, %ids = route.top %s, %s {k = 2}
 *          … = moe.dispatch %w, %ids {experts = 8}
 *
 * after:   … and before moe.dispatch, of the choices before any was dropped:
 *          output %ids {name = "mlp.experts"}
 *
 * Shared experts, which a route with constant scores always chooses, are left out. Ids that the function is given, or
 * that it also returns, are put out under a name of their own.
 */
#include "ir/build.h"
#include "passes/match.h"
#include "passes/pass.h"
#include "passes/route.h"

typedef struct tracer {
    mc_pass *pass;
    mc_map names;   /* of one function */
    mc_values seen; /* ids of one function */
} tracer;

static bool
is_seen(const tracer *t, const mc_value *ids)
{
    for (size_t i = 0; i < t->seen.n; i++)
        if (t->seen.items[i] == ids) return true;
    return false;
}

/* An output's name becomes the value's, so it cannot be one that bears another. */
static bool
has_own_name(const mc_value *ids)
{
    for (const mc_use *u = ids->uses; u; u = u->next)
        if (u->user->opcode == MC_OP_RETURN || u->user->opcode == MC_OP_OUTPUT) return true;
    return !ids->def || ids->def->opcode == MC_OP_CALL;
}

static bool
trace(tracer *t, const mc_route *r)
{
    mc_route_scores scores = mc_route_scores_of(r->choice);
    mc_builder b = mc_builder_before(r->dispatch, t->pass->diags);
    mc_value *ids = r->ids;
    mc_vec_push(t->pass->scratch, &t->seen, ids);
    if (has_own_name(ids)) ids = mc_build_reshape(&b, ids, ids->type->dims, ids->type->rank);
    const mc_named_attr name = MC_A_STR("name", mc_route_name(t->pass->scratch, &scores, MC_ROUTE_OUTPUT, &t->names));
    t->pass->n_rewrites++;
    return ids && mc_build(&b, MC_OP_OUTPUT, &ids, 1, &name, 1);
}

mc_pass_result
mc_pass_trace_routes(mc_pass *p, mc_module *m)
{
    tracer t = {.pass = p};
    MC_FOR_FUNCS(f, m)
    {
        mc_map_init(&t.names, p->scratch);
        t.seen.n = 0;
        MC_FOR_OPS(op, f)
        {
            if (op->opcode != MC_OP_MOE_DISPATCH) continue;
            mc_route r = mc_route_of(op);
            if (mc_route_is_constant(r.choice) || is_seen(&t, r.ids)) continue;
            if (!trace(&t, &r)) return MC_FAILED;
        }
    }
    return p->n_rewrites ? MC_CHANGED : MC_UNCHANGED;
}
