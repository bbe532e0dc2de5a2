/* replay-routes: tokens go to the experts that the caller says, not to those that the routes choose.
 *
 *   needs     stage tensor, outputs of trace-routes
 *   keeps     the stage; every bit of the model's results when the caller says what the routes choose. Weights are made
 * of the same scores as before; what a route chooses itself still is an output refuses   (E0510) routes whose weights
 * are known only for what they choose themselves
 *
 * before:  %w, %ids = route.top %s, %key {k = 2} : f32[T, 2], i32[T, 2]
 *          output %ids {name = "mlp.experts"}
 *          … = moe.dispatch %w, %ids {experts = 8}
 *
 * after:   a further formal %mlp.experts.replay: i32[T, 2], given by every call, up to the model's inputs, and
 *          %w, %ids = route.top %s, %key {k = 2}
 *          %w1 = route.take %s, %mlp.experts.replay
 *          output %ids {name = "mlp.experts"}
 *          … = moe.dispatch %w1, %mlp.experts.replay {experts = 8}
 */
#include "ir/build.h"
#include "passes/match.h"
#include "passes/pass.h"
#include "passes/route.h"
#include "runtime/base/path.h"

typedef struct replayer {
    mc_pass *pass;
    mc_map formals; /* name of a function -> mc_values, those that it gained */
} replayer;

/* Why the choices of def cannot be replaced, or NULL. */
static const char *
objection(const mc_op *def)
{
    switch (def ? (int)def->opcode : MC_OP_CALL) {
    case MC_OP_ROUTE_TOP:
    case MC_OP_ROUTE_CHOOSE: return NULL;
    case MC_OP_ROUTE_SPARSEMIXER: return "sparsemixer has weights for its own two choices only";
    case MC_OP_CAST: return "hash has weights for its own candidates only";
    }
    return "they are made in another block";
}

/* Weights again, of the given ids, as the choice computes them. */
static bool
replace_weights(mc_builder *b, mc_op *choice, mc_value *ids)
{
    mc_value *pair[2] = {mc_operand(choice, 0), ids}, *old = mc_result(choice, 0);
    mc_opcode opcode = choice->opcode == MC_OP_ROUTE_TOP ? MC_OP_ROUTE_TAKE : MC_OP_ROUTE_MASK;
    mc_value *weights = mc_build1(b, opcode, pair, 2, NULL, 0);
    if (!weights) return false;
    weights->name = old->name;
    mc_value_replace_uses(old, weights);
    return true;
}

static bool
replay(replayer *r, mc_func *f, mc_op *output, mc_values *gained)
{
    mc_value *ids = mc_operand(output, 0);
    mc_op *reader = output;
    if (mc_def_is(ids, MC_OP_RESHAPE)) { /* another name for the ids */
        reader = ids->def;
        ids = mc_operand(reader, 0);
    }
    if (mc_def_is(ids, MC_OP_ROUTE_LOOKUP)) return true;
    mc_str name = mc_attr_str(output, "name");
    const char *why = objection(ids->def);
    if (why)
        return mc_error(r->pass->diags, output->span, MC_E0510, "the choices of '%.*s' cannot be replayed: %s",
                        MC_FMT(name), why);
    mc_value *given = mc_func_add_formal(f, ids->type, mc_strf(f->module->arena, "%.*s." MC_ROUTE_INPUT, MC_FMT(name)));
    mc_vec_push(r->pass->scratch, gained, given);
    mc_builder b = mc_builder_before(ids->def->next, r->pass->diags);
    r->pass->n_rewrites++;
    if (!replace_weights(&b, ids->def, given)) return false;
    mc_value_replace_uses(ids, given);
    mc_op_set_operand(reader, 0, ids);
    return true;
}

/* The call again, with what its callee gained. */
static bool
call_again(replayer *r, mc_func *f, mc_op *call, mc_values *gained)
{
    mc_arena *scratch = r->pass->scratch;
    mc_func *callee = mc_attr_func(call, "callee");
    const mc_values *more = mc_map_get(&r->formals, callee->name);
    mc_str scope = mc_attr_str(call, "scope");
    mc_values args = {0};
    if (!more || !more->n) return true;
    for (int i = 0; i < call->n_operands; i++) mc_vec_push(scratch, &args, mc_operand(call, i));
    for (size_t i = 0; i < more->n; i++) {
        const mc_value *v = more->items[i];
        mc_value *given = mc_func_add_formal(f, v->type, mc_path_join(f->module->arena, scope, v->name));
        mc_vec_push(scratch, &args, given);
        mc_vec_push(scratch, gained, given);
    }
    mc_builder b = mc_builder_before(call, r->pass->diags);
    mc_op *made = mc_build_call(&b, callee, scope, args.items, (int)args.n);
    if (!made) return false;
    for (int i = 0; i < made->n_results; i++) {
        mc_result(made, i)->name = call->results[i].name;
        mc_value_replace_uses(&call->results[i], mc_result(made, i));
    }
    mc_op_remove(call);
    return true;
}

static bool
replay_func(replayer *r, mc_func *f)
{
    mc_values *gained = MC_NEW(r->pass->scratch, mc_values);
    mc_op *next;
    for (mc_op *op = f->first; op; op = next) {
        next = op->next;
        bool choice = op->opcode == MC_OP_OUTPUT && !mc_type_is_float(mc_operand(op, 0)->type);
        if (choice && !replay(r, f, op, gained)) return false;
        if (op->opcode == MC_OP_CALL && !call_again(r, f, op, gained)) return false;
    }
    mc_map_set(&r->formals, f->name, gained);
    return true;
}

mc_pass_result
mc_pass_replay_routes(mc_pass *p, mc_module *m)
{
    replayer r = {.pass = p};
    mc_map_init(&r.formals, p->scratch);
    mc_module_sort_funcs(m);
    MC_FOR_FUNCS(f, m)
    {
        if (!replay_func(&r, f)) return MC_FAILED;
    }
    return p->n_rewrites ? MC_CHANGED : MC_UNCHANGED;
}
