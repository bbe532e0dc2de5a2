/* A call's result types are those of its callee, so a call whose callee gives more is made again; old results stay
 * first and keep their numbers. */
#include "passes/taps.h"

#include "runtime/base/path.h"

static void
add_tap(mc_taps *taps, mc_str name, bool sum, mc_value *v, mc_builder *b, mc_arena *scratch)
{
    for (size_t i = 0; sum && i < taps->list.n; i++) {
        mc_tap *t = &taps->list.items[i];
        if (!t->sum || !mc_str_eq(t->name, name)) continue;
        t->value = mc_build_binary(b, MC_OP_ADD, t->value, v);
        return;
    }
    mc_vec_push(scratch, &taps->list, (mc_tap){mc_str_dup(b->func->module->arena, name), sum, v});
    taps->n_sums += sum;
}

static bool
rebuild_call(mc_op *call, mc_arena *scratch, mc_diags *diags)
{
    mc_func *callee = mc_attr_func(call, "callee");
    mc_str scope = mc_attr_str(call, "scope");
    mc_values args = {0};
    for (int i = 0; i < call->n_operands; i++) mc_vec_push(scratch, &args, mc_operand(call, i));
    mc_builder b = mc_builder_before(call, diags);
    mc_op *made = mc_build_call(&b, callee, scope, args.items, (int)args.n);
    if (!made) return false;
    for (int i = 0; i < made->n_results; i++) {
        mc_value *v = mc_result(made, i);
        if (i < call->n_results) {
            v->name = call->results[i].name;
            mc_value_replace_uses(&call->results[i], v);
        } else {
            v->name = mc_path_join(callee->module->arena, scope, mc_operand(callee->last, i)->name);
        }
    }
    mc_op_remove(call);
    return true;
}

static void
collect(mc_func *f, const mc_map *all, bool sums, mc_taps *out, mc_builder *b, mc_arena *scratch)
{
    MC_FOR_OPS(op, f)
    {
        if (op->opcode == MC_OP_OUTPUT && mc_attr_bool(op, "sum") == sums)
            add_tap(out, mc_attr_str(op, "name"), sums, mc_operand(op, 0), b, scratch);
        if (op->opcode != MC_OP_CALL) continue;
        const mc_taps *callee = mc_map_get(all, mc_attr_func(op, "callee")->name);
        for (size_t i = 0; i < callee->list.n; i++) {
            const mc_tap *t = &callee->list.items[i];
            mc_str name = t->sum ? t->name : mc_path_join(scratch, mc_attr_str(op, "scope"), t->name);
            if (t->sum == sums) add_tap(out, name, sums, mc_result(op, callee->n_results + (int)i), b, scratch);
        }
    }
}

bool
mc_taps_collect(mc_func *f, const mc_map *all, mc_taps *out, mc_arena *scratch, mc_diags *diags)
{
    mc_op *next;
    for (mc_op *op = f->first; op; op = next) {
        next = op->next;
        bool more = op->opcode == MC_OP_CALL && mc_attr_func(op, "callee")->last->n_operands != op->n_results;
        if (more && !rebuild_call(op, scratch, diags)) return false;
    }
    mc_builder b = mc_builder_before(f->last, diags);
    collect(f, all, true, out, &b, scratch); /* sums first, so that they stand first */
    collect(f, all, false, out, &b, scratch);
    for (size_t i = 0; i < out->list.n; i++)
        if (!out->list.items[i].value) return false;
    return true;
}

/* A value has one name, so a tap that has another use for it is given as a copy later. */
bool
mc_taps_return(mc_func *f, const mc_taps *taps, const mc_values *more, mc_arena *scratch, mc_diags *diags)
{
    mc_values all = {0};
    mc_op *next;
    for (mc_op *op = f->first; op; op = next) {
        next = op->next;
        if (op->opcode == MC_OP_OUTPUT) mc_op_remove(op);
    }
    for (int i = 0; i < taps->n_results; i++) mc_vec_push(scratch, &all, mc_operand(f->last, i));
    for (size_t i = 0; i < taps->list.n; i++) {
        taps->list.items[i].value->name = taps->list.items[i].name;
        mc_vec_push(scratch, &all, taps->list.items[i].value);
    }
    for (size_t i = 0; more && i < more->n; i++) mc_vec_push(scratch, &all, more->items[i]);
    mc_builder b = mc_builder_at_end(f, diags);
    b.span = f->last->span;
    mc_op_remove(f->last);
    return mc_build_return(&b, all.items, (int)all.n) != NULL;
}
