/* One backward function: the ops of forward are visited from last to first; each whose results have a derivative runs
 * its rule, which adds to the derivatives of its operands. What a rule needs of forward becomes a formal (saved), or is
 * computed again here. */
#include "passes/autodiff.h"
#include "passes/match.h"

typedef struct mc_backward {
    mc_autodiff *autodiff;
    mc_pair *pair;
    bool *active;
    mc_value **here;        /* by id of forward's value: the same value in backward, or NULL so far */
    mc_value **grads;       /* by id of forward's value: the derivative so far, or NULL */
    const mc_op **dispatch; /* by id of forward's value: the moe.dispatch that its rows [A, ...] belong to, or NULL */
    mc_values x, saved, dy, dsums; /* formals */
} mc_backward;

/* ---- what rules call ------------------------------------------------------------------------------------------- */

bool
mc_d_refuse(mc_derive *d, const char *why)
{
    return mc_error(d->b.diags, d->op->span, MC_E0508, "there is no derivative of '%s' %s", mc_op_info_of(d->op)->text,
                    why);
}

static bool
computed_again(const mc_backward *w, const mc_op *op)
{
    if (op->opcode == MC_OP_WEIGHT || op->opcode == MC_OP_CONST) return true;
    const mc_derivative *row = &mc_derivatives[op->opcode];
    if (op->opcode == MC_OP_CALL || (!row->rule && !row->stops) || row->keep == MC_KEEP_ROUTE) return false;
    return row->keep == MC_KEEP_CHEAP || w->autodiff->recompute;
}

/* "linear.self_attn.q_proj.weight", "route.top.1": what a saved value is. */
static mc_str
saved_name(mc_backward *w, const mc_value *v)
{
    mc_arena *arena = w->autodiff->module->arena;
    if (v->def->opcode == MC_OP_CALL) return v->name;
    mc_str path = {0};
    for (int i = 0; i < v->def->n_operands && !path.len; i++) {
        const mc_op *weight = mc_def_is(mc_operand(v->def, i), MC_OP_WEIGHT);
        if (weight) path = mc_attr_str(weight, "path");
    }
    const mc_op_info *info = mc_op_info_of(v->def);
    const char *part = v->def->n_results > 1 && v->index < info->n_results ? info->results[v->index].name : "";
    return mc_strf(arena, "%.*s%s%s%s%s", MC_FMT(path), path.len ? "." : "", info->text, part[0] ? "." : "", part);
}

static mc_value *
save(mc_backward *w, mc_value *v)
{
    if (!v->name.len || v->def->opcode != MC_OP_CALL) v->name = saved_name(w, v);
    mc_value *formal = mc_func_add_formal(w->pair->backward, v->type, v->name);
    mc_vec_push(w->autodiff->pass->scratch, &w->pair->saved, v);
    mc_vec_push(w->autodiff->pass->scratch, &w->saved, formal);
    w->here[v->id] = formal;
    return formal;
}

mc_value *
mc_d_need(mc_derive *d, mc_value *v)
{
    mc_backward *w = d->backward;
    if (w->here[v->id]) return w->here[v->id];
    const mc_op *op = v->def;
    if (!computed_again(w, op)) return save(w, v);
    mc_value **operands = MC_NEW_N(w->autodiff->pass->scratch, mc_value *, op->n_operands + 1);
    const mc_type **types = MC_NEW_N(w->autodiff->pass->scratch, const mc_type *, op->n_results);
    for (int i = 0; i < op->n_operands; i++) operands[i] = mc_operand(op, i) ? mc_d_need(d, mc_operand(op, i)) : NULL;
    for (int i = 0; i < op->n_results; i++) types[i] = op->results[i].type;
    mc_op *copy = mc_op_create(w->autodiff->module, op->opcode, operands, op->n_operands, types, op->n_results,
                               op->attrs, op->span);
    mc_op_insert_before(d->b.func, d->b.before, copy);
    for (int i = 0; i < op->n_results; i++) {
        copy->results[i].name = op->results[i].name;
        w->here[op->results[i].id] = &copy->results[i];
    }
    return w->here[v->id];
}

mc_value *
mc_d_operand(mc_derive *d, int i)
{
    return mc_d_need(d, mc_operand(d->op, i));
}

mc_value *
mc_d_result(mc_derive *d, int i)
{
    return mc_d_need(d, mc_result(d->op, i));
}

mc_value *
mc_d_of(mc_derive *d, int result)
{
    return d->backward->grads[mc_result(d->op, result)->id];
}

mc_value *
mc_d_of_or_zero(mc_derive *d, int result)
{
    mc_value *dy = mc_d_of(d, result);
    return dy ? dy : mc_d_fill(d, mc_result(d->op, result)->type, 0);
}

bool
mc_d_wants(const mc_derive *d, int operand)
{
    const mc_value *v = mc_operand(d->op, operand);
    return v && d->backward->active[v->id];
}

/* Sorted back by slot: slots without a row are 0. */
mc_value *
mc_d_defined_rows(mc_derive *d, mc_value *x)
{
    const mc_op *dispatch = d->backward->dispatch[mc_result(d->op, 0)->id];
    if (!x || !dispatch) return x;
    if (dispatch->opcode != MC_OP_MOE_DISPATCH)
        return mc_d_refuse(d, "for a parameter that experts share, when their rows are not of a moe.dispatch"), NULL;
    mc_dim flat[2] = {x->type->dims[0], mc_dim_const(1)};
    mc_value *offsets = mc_d_need(d, mc_result(dispatch, 0)), *slots = mc_d_need(d, mc_result(dispatch, 2));
    if (!offsets || !slots || !mc_dims_product(x->type->dims + 1, x->type->rank - 1, &flat[1])) return NULL;
    const mc_type *type = x->type, *rows = mc_type_get(d->b.func->module, type->dtype, flat, 2);
    mc_value *operands[] = {mc_d_reshape(d, x, rows), offsets, slots};
    mc_op *op = mc_build_typed(&d->b, MC_OP_MOE_UNPERMUTE, operands, 3, NULL, 0, &rows, 1);
    return op ? mc_d_reshape(d, mc_result(op, 0), type) : NULL;
}

/* A parameter, or a constant array, that all rows of the experts read. */
static bool
sums_rows(const mc_derive *d, const mc_value *v, const mc_value *gradient)
{
    const mc_op *op = d->op;
    return op->n_results && d->backward->dispatch[mc_result(op, 0)->id] && !d->backward->dispatch[v->id] &&
           gradient->type != v->type;
}

static bool
add(mc_derive *d, const mc_value *v, mc_value *gradient)
{
    if (gradient && sums_rows(d, v, gradient)) gradient = mc_d_defined_rows(d, gradient);
    mc_value **sum = &d->backward->grads[v->id];
    gradient = gradient ? mc_d_sum_to(d, gradient, v->type) : NULL;
    if (gradient && *sum) gradient = mc_build_binary(&d->b, MC_OP_ADD, *sum, gradient);
    if (gradient) *sum = gradient;
    return gradient != NULL;
}

bool
mc_d_give(mc_derive *d, int operand, mc_value *gradient)
{
    return !mc_d_wants(d, operand) ? true : add(d, mc_operand(d->op, operand), gradient);
}

mc_value *
mc_d_op2(mc_derive *d, mc_opcode opcode, mc_value *a, mc_value *b)
{
    return a && b ? mc_build_binary(&d->b, opcode, a, b) : NULL;
}

mc_value *
mc_d_fill(mc_derive *d, const mc_type *type, double value)
{
    mc_named_attr attr = MC_A_FLOAT("value", value);
    mc_op *op = mc_build_typed(&d->b, MC_OP_FILL, NULL, 0, &attr, 1, &type, 1);
    return op ? mc_result(op, 0) : NULL;
}

mc_value *
mc_d_sum_to(mc_derive *d, mc_value *x, const mc_type *type)
{
    if (!x || x->type == type) return x;
    const mc_type *sum = mc_type_with_dtype(d->b.func->module, type, x->type->dtype);
    if (x->type != sum) {
        mc_op *op = mc_build_typed(&d->b, MC_OP_SUM_TO, &x, 1, NULL, 0, &sum, 1);
        x = op ? mc_result(op, 0) : NULL;
    }
    const mc_named_attr to = MC_A_DTYPE("to", type->dtype); /* the narrower operand of an op of two dtypes */
    return x && sum != type ? mc_build1(&d->b, MC_OP_CAST, &x, 1, &to, 1) : x;
}

mc_value *
mc_d_reshape(mc_derive *d, mc_value *x, const mc_type *type)
{
    return !x || x->type == type ? x : mc_build_reshape(&d->b, x, type->dims, type->rank);
}

/* ---- the ops that are autodiff's own --------------------------------------------------------------------------- */

static bool
derive_weight(mc_derive *d)
{
    mc_value *dw = mc_d_of(d, 0);
    const mc_named_attr attrs[] = {MC_A_STR("path", mc_attr_str(d->op, "path")),
                                   MC_A_BOOL("root", mc_attr_bool(d->op, "root"))};
    return mc_build(&d->b, MC_OP_ACCUMULATE, &dw, 1, attrs, 2) != NULL;
}

static mc_value *
sum_formal(const mc_backward *w, mc_str name)
{
    for (int i = 0; i < w->pair->taps.n_sums; i++)
        if (mc_str_eq(w->pair->taps.list.items[i].name, name)) return w->dsums.items[i];
    return NULL;
}

static bool
derive_output(mc_derive *d)
{
    return mc_d_give(d, 0, sum_formal(d->backward, mc_attr_str(d->op, "name")));
}

/* The callee's backward: what it reads of the arguments, what it saved, the derivatives of its results and sums. */
static bool
derive_call(mc_derive *d)
{
    mc_backward *w = d->backward;
    const mc_pair *callee = mc_autodiff_pair(w->autodiff, mc_attr_func(d->op, "callee"));
    mc_arena *scratch = w->autodiff->pass->scratch;
    mc_values args = {0};
    if (!callee->backward) return true;
    for (size_t i = 0; i < callee->reads.n; i++) mc_vec_push(scratch, &args, mc_d_operand(d, callee->reads.items[i]));
    int first = callee->taps.n_results + (int)callee->taps.list.n;
    for (size_t i = 0; i < callee->saved.n; i++) mc_vec_push(scratch, &args, mc_d_result(d, first + (int)i));
    for (size_t i = 0; i < callee->dy.n; i++) {
        mc_value *dy = mc_d_of_or_zero(d, callee->dy.items[i]);
        if (!dy) return false;
        mc_vec_push(scratch, &args, dy);
    }
    for (int i = 0; i < callee->taps.n_sums; i++)
        mc_vec_push(scratch, &args, sum_formal(w, callee->taps.list.items[i].name));
    mc_op *call = mc_build_call(&d->b, callee->backward, mc_attr_str(d->op, "scope"), args.items, (int)args.n);
    for (size_t i = 0; call && i < callee->dx.n; i++)
        if (!mc_d_give(d, callee->dx.items[i], mc_result(call, (int)i))) return false;
    return call != NULL;
}

static bool
flows(const mc_backward *w, const mc_op *op)
{
    bool from = op->opcode == MC_OP_CALL && mc_autodiff_pair(w->autodiff, mc_attr_func(op, "callee"))->taps.n_sums > 0;
    bool to = op->opcode == MC_OP_CALL || op->opcode == MC_OP_WEIGHT;
    for (int i = 0; i < op->n_results && !from; i++) from = w->grads[op->results[i].id] != NULL;
    for (int i = 0; i < op->n_operands && !to; i++) to = mc_operand(op, i) && w->active[mc_operand(op, i)->id];
    return from && to;
}

static bool
derive(mc_backward *w, mc_builder *b, const mc_op *op)
{
    mc_derive d = {.b = *b, .op = op, .backward = w};
    const mc_derivative *row = &mc_derivatives[op->opcode];
    d.b.span = op->span;
    if (op->opcode == MC_OP_OUTPUT) return !mc_attr_bool(op, "sum") || derive_output(&d);
    if (row->stops || !flows(w, op)) return true;
    if (op->opcode == MC_OP_WEIGHT) return derive_weight(&d);
    if (op->opcode == MC_OP_CALL) return derive_call(&d);
    return row->rule ? row->rule(&d) : mc_d_refuse(&d, "yet: the model cannot be trained through it");
}

/* ---- the function ---------------------------------------------------------------------------------------------- */

static mc_str
derivative_name(mc_backward *w, const mc_value *v, const char *fallback, int i)
{
    mc_arena *arena = w->autodiff->module->arena;
    return v->name.len ? mc_strf(arena, "d_%.*s", MC_FMT(v->name)) : mc_strf(arena, "d_%s%d", fallback, i);
}

static bool
add_formals(mc_backward *w, mc_derive *d)
{
    mc_pair *p = w->pair;
    mc_arena *scratch = w->autodiff->pass->scratch;
    for (size_t i = 0; i < p->forward->formals.n; i++) {
        mc_value *x = p->forward->formals.items[i];
        w->here[x->id] = mc_func_add_formal(p->backward, x->type, x->name);
        mc_vec_push(scratch, &w->x, w->here[x->id]);
    }
    for (int i = 0; i < p->taps.n_results; i++) {
        mc_value *y = mc_operand(p->forward->last, i);
        if (!w->active[y->id]) continue;
        mc_value *dy = mc_func_add_formal(p->backward, y->type, derivative_name(w, y, "output", i));
        mc_vec_push(scratch, &w->dy, dy);
        mc_vec_push(scratch, &p->dy, i);
        if (!add(d, y, dy)) return false;
    }
    const mc_type *scalar = mc_type_scalar(w->autodiff->module, MOEC_F32);
    for (int i = 0; i < p->taps.n_sums; i++) {
        mc_str name = mc_strf(w->autodiff->module->arena, "d_%.*s", MC_FMT(p->taps.list.items[i].name));
        mc_vec_push(scratch, &w->dsums, mc_func_add_formal(p->backward, scalar, name));
    }
    return true;
}

/* The derivatives of the formals, and the formals that backward turned out to read, in their order. */
static bool
finish(mc_backward *w, mc_derive *d)
{
    mc_pair *p = w->pair;
    mc_arena *scratch = w->autodiff->pass->scratch;
    mc_values results = {0}, formals = {0};
    for (size_t i = 0; i < p->forward->formals.n; i++) {
        const mc_value *x = p->forward->formals.items[i];
        mc_value *dx = w->grads[x->id];
        if (!p->active[i]) continue;
        if (!dx && p->forward->is_model) dx = mc_d_fill(d, x->type, 0);
        if (!dx) continue;
        if (!dx->name.len && dx->def) dx->name = derivative_name(w, x, "input", (int)i);
        mc_vec_push(scratch, &results, dx);
        mc_vec_push(scratch, &p->dx, (int)i);
    }
    if (!mc_build_return(&d->b, results.items, (int)results.n)) return false;
    for (size_t i = 0; i < w->x.n; i++) {
        if (!p->forward->is_model && !mc_value_has_uses(w->x.items[i])) continue;
        mc_vec_push(scratch, &formals, w->x.items[i]);
        mc_vec_push(scratch, &p->reads, (int)i);
    }
    for (size_t i = 0; i < w->saved.n; i++) mc_vec_push(scratch, &formals, w->saved.items[i]);
    for (size_t i = 0; i < w->dy.n; i++) mc_vec_push(scratch, &formals, w->dy.items[i]);
    for (size_t i = 0; i < w->dsums.n; i++) mc_vec_push(scratch, &formals, w->dsums.items[i]);
    mc_func_set_formals(p->backward, formals.items, formals.n);
    return true;
}

/* Which values are rows of experts. */
static void
find_rows(mc_backward *w, const mc_func *f)
{
    MC_FOR_OPS(op, f)
    {
        const mc_op *from = op->opcode == MC_OP_MOE_DISPATCH ? op : NULL;
        bool makes = op->opcode == MC_OP_MOE_PERMUTE || op->opcode == MC_OP_GROUPED_MATMUL;
        bool ends = op->opcode == MC_OP_MOE_UNPERMUTE || op->opcode == MC_OP_MOE_FFN_DOWN;
        if (makes) from = mc_operand_named(op, "offsets")->def ? mc_operand_named(op, "offsets")->def : op;
        for (int i = 0; i < op->n_operands && !from && !ends; i++)
            if (mc_operand(op, i)) from = w->dispatch[mc_operand(op, i)->id];
        for (int i = 0; i < op->n_results; i++) w->dispatch[op->results[i].id] = from;
    }
}

/* "f.backward", or a longer name where somebody else has that one. */
static mc_str
backward_name(mc_autodiff *a, const mc_func *f)
{
    mc_str name = mc_strf(a->pass->scratch, "%.*s.backward", MC_FMT(f->name));
    while (mc_module_find(a->module, name)) name = mc_strf(a->pass->scratch, "%.*s.backward", MC_FMT(name));
    return name;
}

bool
mc_autodiff_backward(mc_autodiff *a, mc_pair *p)
{
    mc_arena *scratch = a->pass->scratch;
    uint32_t n = a->module->next_id;
    mc_backward w = {.autodiff = a,
                     .pair = p,
                     .active = MC_NEW_N(scratch, bool, n),
                     .here = MC_NEW_N(scratch, mc_value *, n),
                     .grads = MC_NEW_N(scratch, mc_value *, n),
                     .dispatch = MC_NEW_N(scratch, const mc_op *, n)};
    p->backward = mc_func_create(a->module, backward_name(a, p->forward), p->forward->span);
    find_rows(&w, p->forward);
    mc_derive d = {.b = mc_builder_at_end(p->backward, a->pass->diags), .op = p->forward->last, .backward = &w};
    mc_autodiff_activity(a, p, w.active);
    if (!add_formals(&w, &d)) return false;
    for (const mc_op *op = p->forward->last->prev; op; op = op->prev)
        if (!derive(&w, &d.b, op)) return false;
    return finish(&w, &d);
}
