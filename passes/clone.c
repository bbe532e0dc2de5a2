/* Copies ops, mapping values by id and substituting symbols: a body written for [R, d] becomes ops on [8*B*S, d]. */
#include "passes/clone.h"

#include <assert.h>

mc_clone
mc_clone_begin(mc_module *m, mc_arena *scratch)
{
    return (mc_clone){
        .module = m, .scratch = scratch, .values = MC_NEW_N(scratch, mc_value *, m->next_id), .n_values = m->next_id};
}

void
mc_clone_unbind(mc_clone *c)
{
    for (int i = 0; i < MC_MAX_SYMS; i++) c->bound[i] = false;
}

static bool
substitute(const mc_clone *c, mc_dim d, mc_dim *out)
{
    if (mc_dim_is_const(d)) {
        *out = d;
        return true;
    }
    mc_dim product = mc_dim_const(d.mul);
    for (int i = 0; i < d.n_syms; i++) {
        mc_dim factor = c->bound[d.syms[i]] ? c->dims[d.syms[i]] : mc_dim_sym(d.syms[i]);
        if (!mc_dim_mul(product, factor, &product)) return false;
    }
    if (d.add && mc_dim_is_const(product)) product = mc_dim_const(mc_dim_eval(product, NULL) + d.add);
    if (d.add && !mc_dim_is_const(product) && __builtin_add_overflow(product.add, d.add, &product.add)) return false;
    *out = product;
    return true;
}

const mc_type *
mc_clone_type(mc_clone *c, const mc_type *t)
{
    mc_dim dims[MC_MAX_RANK];
    for (int i = 0; i < t->rank; i++)
        if (!substitute(c, t->dims[i], &dims[i])) return NULL;
    return mc_type_get(c->module, t->dtype, dims, t->rank);
}

bool
mc_clone_formal(mc_clone *c, const mc_value *from, mc_value *to)
{
    const mc_type *f = from->type, *t = to->type;
    assert(from->id < c->n_values);
    if (f->rank != t->rank || f->dtype != t->dtype) return false;
    for (int i = 0; i < f->rank; i++) {
        mc_dim d = f->dims[i];
        bool symbol = d.n_syms == 1 && d.mul == 1 && d.add == 0;
        if (!symbol || c->bound[d.syms[0]]) continue;
        c->bound[d.syms[0]] = true;
        c->dims[d.syms[0]] = t->dims[i];
    }
    c->values[from->id] = to;
    return mc_clone_type(c, f) == t;
}

mc_op *
mc_clone_op(mc_clone *c, mc_builder *b, const mc_op *op)
{
    MC_VEC(mc_value *) operands = {0};
    MC_VEC(const mc_type *) types = {0};
    for (int i = 0; i < op->n_operands; i++) {
        const mc_value *v = mc_operand(op, i);
        mc_vec_push(c->scratch, &operands, v ? c->values[v->id] : NULL);
    }
    for (int i = 0; i < op->n_results; i++) {
        const mc_type *t = mc_clone_type(c, op->results[i].type);
        if (!t) return NULL;
        mc_vec_push(c->scratch, &types, t);
    }
    mc_op *copy = mc_op_create(c->module, op->opcode, operands.items, op->n_operands, types.items, op->n_results,
                               op->attrs, op->span);
    mc_op_insert_before(b->func, b->before, copy);
    for (int i = 0; i < op->n_results; i++) {
        assert(op->results[i].id < c->n_values);
        copy->results[i].name = op->results[i].name;
        c->values[op->results[i].id] = &copy->results[i];
    }
    return copy;
}

mc_func *
mc_clone_func(mc_func *f, mc_str name, mc_arena *scratch)
{
    mc_clone c = mc_clone_begin(f->module, scratch);
    mc_func *copy = mc_func_create(f->module, name, f->span);
    for (size_t i = 0; i < f->formals.n; i++) {
        const mc_value *v = f->formals.items[i];
        c.values[v->id] = mc_func_add_formal(copy, v->type, v->name);
    }
    mc_builder b = {.func = copy};
    MC_FOR_OPS(op, f)
    {
        mc_clone_op(&c, &b, op);
    }
    return copy;
}
