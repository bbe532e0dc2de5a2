/* autodiff: a model that can be trained: every function gains a backward function (docs/decisions/0006-training.md).
 *
 *   needs     stage tensor, experts expanded, weights in f32
 *   keeps     stage tensor; every bit of what forward computes. `cache` is its operand (nothing is past), `output` is
 *             a result
 *   refuses   ops without a row in passes/derivatives.def that a derivative would have to cross, and ops with state:
 *             E0508
 *
 * before:  model @m(%x: f32[T, 4]) -> (f32[T, 8]) {
 *            %w = weight {path = "w"} : f32[8, 4]
 *            %y = linear %x, %w
 *            return %y }
 *
 * after:   model @m as it was, and
 *          func @m.backward(%x: f32[T, 4], %d_y: f32[T, 8]) -> (f32[T, 4]) {
 *            %w = weight {path = "w"} : f32[8, 4]
 *            %dx = linear_dx %d_y, %w
 *            %dw = linear_dw %d_y, %x
 *            accumulate %dw {path = "w"}
 *            return %dx }
 *
 * Metas: train.backward, train.outputs, train.cotangents, train.input_grads; reads train.frozen (globs, by commas; one
 * that matches nothing is E0509).
 * Option recompute: save inputs and routing only. */
#include "passes/autodiff.h"

#include "passes/match.h"
#include "runtime/base/path.h"

const mc_derivative mc_derivatives[MC_N_OPCODES] = {
#define MC_DERIVATIVE(ID, rule, how) [MC_OP_##ID] = {mc_derive_##rule, false, MC_KEEP_##how},
#define MC_NO_DERIVATIVE(ID, how) [MC_OP_##ID] = {NULL, true, MC_KEEP_##how},
#include "passes/derivatives.def"
#undef MC_DERIVATIVE
#undef MC_NO_DERIVATIVE
};

mc_pair *
mc_autodiff_pair(const mc_autodiff *a, const mc_func *f)
{
    return mc_map_get(&a->pairs, f->name);
}

/* ---- what is trained ------------------------------------------------------------------------------------------- */

/* Instances share their function, so a parameter is left out only when it is frozen in all of them; where it is frozen
 * in some, those have no gradient at run time (their entries of the weight table, codegen/cpu/layout.c). */
bool
mc_autodiff_trains(const mc_autodiff *a, const mc_pair *p, const mc_op *weight)
{
    mc_str path = mc_attr_str(weight, "path");
    if (!mc_type_is_float(weight->results[0].type)) return false;
    if (mc_attr_bool(weight, "root")) return !mc_path_matches_any(a->frozen, path);
    for (size_t i = 0; i < p->scopes.n; i++)
        if (!mc_path_matches_any(a->frozen, mc_path_join(a->pass->scratch, p->scopes.items[i], path))) return true;
    return false;
}

static bool
matches_some(const mc_autodiff *a, mc_str glob)
{
    MC_FOR_FUNCS(f, a->module)
    {
        const mc_pair *p = mc_autodiff_pair(a, f);
        MC_FOR_OPS(op, f)
        {
            if (!p || op->opcode != MC_OP_WEIGHT) continue;
            mc_str path = mc_attr_str(op, "path");
            if (mc_attr_bool(op, "root") && mc_path_matches(glob, path)) return true;
            for (size_t i = 0; i < p->scopes.n && !mc_attr_bool(op, "root"); i++)
                if (mc_path_matches(glob, mc_path_join(a->pass->scratch, p->scopes.items[i], path))) return true;
        }
    }
    return false;
}

/* A glob that matches nothing is a mistake of spelling, and would train what should stay. */
static bool
check_frozen(mc_autodiff *a)
{
    mc_str glob;
    for (size_t at = 0; mc_path_next_glob(a->frozen, &at, &glob);)
        if (!matches_some(a, glob))
            return mc_error(a->pass->diags, (mc_span){0}, MC_E0509, "frozen: no parameter is named '%.*s'",
                            MC_FMT(glob));
    return true;
}

/* Every instance of f in the call tree; callees are found before their callers are finished. */
static void
add_instance(mc_autodiff *a, mc_func *f, mc_str scope)
{
    mc_arena *scratch = a->pass->scratch;
    mc_pair *p = mc_autodiff_pair(a, f);
    if (!p) {
        p = MC_NEW(scratch, mc_pair);
        p->forward = f;
        p->active = MC_NEW_N(scratch, bool, f->formals.n + 1);
        p->taps.n_results = f->last->n_operands;
        mc_map_set(&a->pairs, f->name, p);
        mc_map_set(&a->taps, f->name, &p->taps);
    }
    mc_vec_push(scratch, &p->scopes, scope);
    MC_FOR_OPS(op, f)
    {
        if (op->opcode == MC_OP_CALL)
            add_instance(a, mc_attr_func(op, "callee"), mc_path_join(scratch, scope, mc_attr_str(op, "scope")));
    }
}

static void
find_trained(mc_autodiff *a)
{
    MC_FOR_FUNCS(f, a->module)
    {
        mc_pair *p = mc_autodiff_pair(a, f);
        if (!p) continue;
        MC_FOR_OPS(op, f)
        {
            if (op->opcode == MC_OP_WEIGHT) p->trains |= mc_autodiff_trains(a, p, op);
            if (op->opcode == MC_OP_CALL) p->trains |= mc_autodiff_pair(a, mc_attr_func(op, "callee"))->trains;
        }
    }
}

/* ---- activity -------------------------------------------------------------------------------------------------- */

static bool
any_active(const mc_op *op, const bool *active)
{
    for (int i = 0; i < op->n_operands; i++)
        if (mc_operand(op, i) && active[mc_operand(op, i)->id]) return true;
    return false;
}

/* Whether result i of a call is: for a callee that is finished, when its backward takes a derivative of it. */
static bool
call_result_active(const mc_autodiff *a, const mc_op *call, int i, const bool *active)
{
    const mc_pair *callee = mc_autodiff_pair(a, mc_attr_func(call, "callee"));
    if (!callee->backward) return i < callee->taps.n_results && (callee->trains || any_active(call, active));
    for (size_t k = 0; k < callee->dy.n; k++)
        if (callee->dy.items[k] == i) return true;
    return false;
}

void
mc_autodiff_activity(const mc_autodiff *a, const mc_pair *p, bool *active)
{
    const mc_func *f = p->forward;
    for (size_t i = 0; i < f->formals.n; i++) active[f->formals.items[i]->id] = p->active[i];
    MC_FOR_OPS(op, f)
    {
        bool any = op->opcode == MC_OP_WEIGHT ? mc_autodiff_trains(a, p, op)
                                              : !mc_derivatives[op->opcode].stops && any_active(op, active);
        for (int i = 0; i < op->n_results; i++) {
            const mc_value *v = &op->results[i];
            bool here = op->opcode == MC_OP_CALL ? call_result_active(a, op, i, active) : any;
            active[v->id] = here && mc_type_is_float(v->type);
        }
    }
}

/* From the model down: callers stand behind their callees in the module, so they are visited from last to first. */
static void
find_active_formals(mc_autodiff *a)
{
    MC_VEC(mc_func *) order = {0};
    bool *active = MC_NEW_N(a->pass->scratch, bool, a->module->next_id);
    MC_FOR_FUNCS(f, a->module) mc_vec_push(a->pass->scratch, &order, f);
    mc_func *model = mc_module_model(a->module);
    mc_pair *top = mc_autodiff_pair(a, model);
    for (size_t i = 0; i < model->formals.n; i++) top->active[i] = mc_type_is_float(model->formals.items[i]->type);
    for (size_t k = order.n; k-- > 0;) {
        mc_pair *p = mc_autodiff_pair(a, order.items[k]);
        if (!p) continue;
        mc_autodiff_activity(a, p, active);
        MC_FOR_OPS(op, p->forward)
        {
            if (op->opcode != MC_OP_CALL) continue;
            mc_pair *callee = mc_autodiff_pair(a, mc_attr_func(op, "callee"));
            for (int i = 0; i < op->n_operands; i++) callee->active[i] |= active[mc_operand(op, i)->id];
        }
    }
}

/* ---- nothing is past ------------------------------------------------------------------------------------------- */

static void
forget_history(mc_module *m, mc_value *v, int past_and_new, int only_new)
{
    mc_dim dims[MC_MAX_RANK];
    for (int i = 0; i < v->type->rank; i++) {
        mc_dim from = v->type->dims[i], to = mc_dim_const(from.mul);
        for (int k = 0; k < from.n_syms; k++)
            if (!mc_dim_mul(to, mc_dim_sym(from.syms[k] == past_and_new ? only_new : from.syms[k]), &to)) return;
        if (from.n_syms) to.add = from.add;
        dims[i] = from.n_syms ? to : from;
    }
    v->type = mc_type_get(m, v->type->dtype, dims, v->type->rank);
}

static int
find_symbol(const mc_module *m, const char *name)
{
    for (int i = 0; i < m->n_syms; i++)
        if (mc_str_is(m->syms[i].name, name)) return i;
    return -1;
}

static bool
remove_states(mc_autodiff *a)
{
    mc_module *m = a->module;
    int s = find_symbol(m, "S"), c = find_symbol(m, "C");
    MC_FOR_FUNCS(f, m)
    {
        for (size_t i = 0; i < f->formals.n; i++) forget_history(m, f->formals.items[i], c, s);
        MC_FOR_OPS(op, f)
        {
            for (int i = 0; i < op->n_results; i++) forget_history(m, &op->results[i], c, s);
            if (!mc_op_has(op, MC_TRAIT_STATE) || op->opcode == MC_OP_CALL) continue;
            if (op->opcode != MC_OP_CACHE)
                return mc_error(a->pass->diags, op->span, MC_E0508,
                                "there is no derivative of '%s' yet: it carries state from step to step",
                                mc_op_info_of(op)->text);
            mc_value_replace_uses(&op->results[0], mc_operand(op, 0));
            mc_op_remove(op);
        }
    }
    return true;
}

/* ---- one function ---------------------------------------------------------------------------------------------- */

static bool
differentiate(mc_autodiff *a, mc_pair *p)
{
    mc_arena *scratch = a->pass->scratch;
    mc_diags *diags = a->pass->diags;
    return mc_taps_collect(p->forward, &a->taps, &p->taps, scratch, diags) && mc_autodiff_backward(a, p) &&
           mc_taps_return(p->forward, &p->taps, &p->saved, scratch, diags);
}

/* ---- the pass -------------------------------------------------------------------------------------------------- */

static void
set_list(mc_autodiff *a, const char *key, const mc_ints *list, int first, int n_more)
{
    mc_buf text = {0};
    for (size_t i = 0; i < list->n; i++) mc_buf_printf(&text, "%s%d", i ? " " : "", list->items[i]);
    for (int i = 0; i < n_more; i++) mc_buf_printf(&text, "%s%d", text.len ? " " : "", first + i);
    mc_module_set_meta(a->module, mc_str_of(key), mc_buf_view(&text));
    mc_buf_fini(&text);
}

static void
set_metas(mc_autodiff *a, const mc_pair *p)
{
    const mc_ints none = {0};
    mc_module_set_meta(a->module, MC_STR("train.backward"), p->backward->name);
    set_list(a, "train.outputs", &none, p->taps.n_results + (int)p->taps.list.n, 1);
    set_list(a, "train.cotangents", &p->dy, p->taps.n_results, p->taps.n_sums);
    set_list(a, "train.input_grads", &p->dx, 0, 0);
}

static bool
check_weights(mc_autodiff *a)
{
    MC_FOR_FUNCS(f, a->module)
    {
        MC_FOR_OPS(op, f)
        {
            const mc_type *t = op->opcode == MC_OP_WEIGHT ? op->results[0].type : NULL;
            if (!t || !mc_type_is_float(t) || t->dtype == MOEC_F32) continue;
            mc_str path = mc_attr_str(op, "path");
            return mc_error(a->pass->diags, op->span, MC_E0509,
                            "parameters are trained in f32, but %.*s is %s: set precision.storage = f32", MC_FMT(path),
                            moec_dtype_name(t->dtype));
        }
    }
    return true;
}

mc_pass_result
mc_pass_autodiff(mc_pass *pass, mc_module *m)
{
    mc_autodiff a = {.pass = pass,
                     .module = m,
                     .frozen = mc_module_meta(m, "train.frozen"),
                     .recompute = mc_pass_option(pass, "recompute") != 0};
    if (mc_module_find(m, mc_module_meta(m, "train.backward"))) return MC_UNCHANGED;
    mc_map_init(&a.pairs, pass->scratch);
    mc_map_init(&a.taps, pass->scratch);
    mc_func *model = mc_module_model(m);
    if (!model || !check_weights(&a) || !remove_states(&a)) return MC_FAILED;
    mc_module_sort_funcs(m);
    const mc_func *last = m->last_func;
    add_instance(&a, model, MC_STR(""));
    if (!check_frozen(&a)) return MC_FAILED;
    find_trained(&a);
    find_active_formals(&a);
    for (mc_func *f = m->funcs; f; f = f == last ? NULL : f->next) {
        mc_pair *p = mc_autodiff_pair(&a, f);
        if (p && !differentiate(&a, p)) return MC_FAILED;
    }
    set_metas(&a, mc_autodiff_pair(&a, model));
    return MC_CHANGED;
}
