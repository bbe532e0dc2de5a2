/* From a module in stage plan to tables: functions with their launches, then the weights and states of every call
 * instance. The one idea: an instance's weights are its function's own, then those of its calls in order; so the index
 * of a weight inside a call is a constant of the caller (weight_base), and only the tables grow with the depth. */
#include "codegen/plan/comm.h"
#include "runtime/base/path.h"

#include <string.h>

enum { MAX_CALL_ARGS = 4096 }; /* what the runtime passes on */

/* What one instance of a function needs. */
typedef struct func_info {
    const mc_func *func;
    uint32_t index; /* into plan->funcs */
    uint32_t n_weights, n_states;
} func_info;

typedef struct layout {
    mc_plan *p;
    MC_VEC(func_info) infos; /* callees before callers, as in plan->funcs */
} layout;

static const func_info *
info_of(const layout *l, const mc_func *f)
{
    for (size_t i = 0; i < l->infos.n; i++) {
        if (l->infos.items[i].func == f) return &l->infos.items[i];
    }
    return NULL;
}

static const char *
c_string(mc_plan *p, mc_str s)
{
    return mc_str_dup(p->arena, s).data;
}

/* ---- symbols -------------------------------------------------------------------------------------------------- */

static void
mark_symbol(mc_plan *p, mc_dim d, uint32_t kind)
{
    if (d.n_syms == 1 && d.mul == 1 && d.add == 0) p->syms.items[d.syms[0]].kind = kind;
}

/* New positions are axis 1 of whatever depends on positions; the history's length is axis 1 of a cache's result. */
static void
mark_symbols(mc_plan *p, const mc_op *op)
{
    bool positional = mc_plan_owns_state(op) || op->opcode == MC_OP_ROPE || op->opcode == MC_OP_POSITION;
    if (!positional) return;
    const mc_type *x = mc_operand(op, 0)->type;
    mark_symbol(p, x->dims[1], 1);
    if (mc_plan_owns_state(op) && x->dims[0].n_syms == 1) p->batch_sym = x->dims[0].syms[0];
    if (op->opcode == MC_OP_CACHE) mark_symbol(p, mc_result(op, 0)->type->dims[1], 2);
}

static void
use_symbols(mc_plan *p, const mc_type *t)
{
    for (int d = 0; d < t->rank; d++)
        for (int i = 0; i < t->dims[d].n_syms; i++) p->syms.items[t->dims[d].syms[i]].kind = 0;
}

/* A symbol of an expert body's rows stands in no type once the body is inlined: kind 3. */
static void
lay_symbols(mc_plan *p)
{
    p->batch_sym = UINT32_MAX;
    for (int i = 0; i < p->module->n_syms; i++) {
        const mc_symbol *s = &p->module->syms[i];
        moec_abi_sym sym = {.name = c_string(p, s->name), .lo = s->lo, .hi = s->hi, .kind = 3};
        mc_vec_push(p->arena, &p->syms, sym);
    }
    MC_FOR_FUNCS(f, p->module)
    {
        for (size_t i = 0; i < f->formals.n; i++) use_symbols(p, f->formals.items[i]->type);
        MC_FOR_OPS(op, f)
        {
            for (int i = 0; i < op->n_results; i++) use_symbols(p, mc_result(op, i)->type);
        }
    }
    MC_FOR_FUNCS(f, p->module)
    {
        MC_FOR_OPS(op, f) mark_symbols(p, op);
    }
}

/* ---- inputs and outputs ----------------------------------------------------------------------------------------- */

/* The size of the smallest table that these ids index, through views and calls; 0 when none does. */
static int64_t
ids_limit(const mc_value *v, int depth)
{
    int64_t limit = 0;
    for (const mc_use *use = v->uses; use && depth < 64; use = use->next) {
        int64_t n = 0;
        int operand = (int)(use - use->user->operands);
        if (use->user->opcode == MC_OP_EMBED && operand == 0) {
            mc_dim rows = mc_operand(use->user, 1)->type->dims[0];
            n = rows.n_syms ? 0 : rows.mul + rows.add;
        } else if (use->user->opcode == MC_OP_ROUTE_TAKE && operand == 1) {
            n = mc_type_last(mc_operand(use->user, 0)->type).mul;
        } else if (use->user->opcode == MC_OP_CALL) {
            n = ids_limit(mc_attr_func(use->user, "callee")->formals.items[operand], depth + 1);
        } else if (use->user->opcode == MC_OP_RESHAPE || use->user->opcode == MC_OP_COPY) {
            n = ids_limit(mc_result(use->user, 0), depth + 1);
        }
        if (n && (!limit || n < limit)) limit = n;
    }
    return limit;
}

/* How many experts choices are among; 0: these are no choices of a route. */
static int64_t
choices_limit(const mc_value *v, int depth)
{
    const mc_op *def = v->def;
    if (!def || v->type->dtype != MOEC_I32 || depth >= 64) return 0;
    switch ((int)def->opcode) {
    case MC_OP_ROUTE_TOP:
    case MC_OP_ROUTE_CHOOSE:
    case MC_OP_ROUTE_SPARSEMIXER: return mc_type_last(mc_operand(def, 0)->type).mul;
    case MC_OP_CALL: return choices_limit(mc_operand(mc_attr_func(def, "callee")->last, (int)v->index), depth + 1);
    case MC_OP_RESHAPE:
    case MC_OP_COPY: return choices_limit(mc_operand(def, 0), depth + 1);
    }
    for (const mc_use *use = v->uses; use; use = use->next)
        if (use->user->opcode == MC_OP_MOE_DISPATCH || use->user->opcode == MC_OP_MOE_CAPACITY)
            return mc_attr_int(use->user, "experts");
    return 0;
}

static moec_abi_tensor
tensor_of(mc_plan *p, const mc_value *v, const char *fallback, size_t i)
{
    mc_str name = v->name.len ? mc_str_dup(p->arena, v->name) : mc_strf(p->arena, "%s%zu", fallback, i);
    moec_abi_tensor t = {.name = name.data, .dtype = v->type->dtype, .rank = v->type->rank};
    for (int d = 0; d < MOEC_ABI_MAX_RANK; d++) {
        t.dims[d] = mc_plan_expr(d < v->type->rank ? v->type->dims[d] : mc_dim_const(0));
    }
    return t;
}

/* n_outputs: of the results; those after them are what training saves. */
static void
lay_signature(mc_plan *p, const mc_func *model, int n_outputs)
{
    for (size_t i = 0; i < model->formals.n; i++) {
        moec_abi_tensor t = tensor_of(p, model->formals.items[i], "input", i);
        t.limit = ids_limit(model->formals.items[i], 0);
        mc_vec_push(p->arena, &p->inputs, t);
    }
    for (int i = n_outputs; i < model->last->n_operands; i++) {
        moec_abi_tensor t = tensor_of(p, mc_operand(model->last, i), "saved", (size_t)(i - n_outputs));
        mc_vec_push(p->arena, &p->saved, t);
    }
    for (int i = 0; i < n_outputs; i++) {
        moec_abi_tensor t = tensor_of(p, mc_operand(model->last, i), "output", (size_t)i);
        t.limit = choices_limit(mc_operand(model->last, i), 0);
        for (size_t j = 0; j < p->outputs.n; j++) { /* names are how a caller asks for them */
            if (strcmp(p->outputs.items[j].name, t.name) == 0) t.name = mc_strf(p->arena, "output%d", i).data;
        }
        mc_vec_push(p->arena, &p->outputs, t);
    }
}

/* ---- weights and states of instances ---------------------------------------------------------------------------- */

/* The operand named `port` of `op` when it is a packed weight. */
static const mc_op *
packed_operand(const mc_op *op, const char *port)
{
    for (int i = 0; i < mc_op_info_of(op)->n_operands; i++) {
        if (strcmp(mc_op_info_of(op)->operands[i].name, port)) continue;
        const mc_value *v = mc_operand(op, i);
        return v && v->def && v->def->opcode == MC_OP_PACKED ? v->def : NULL;
    }
    return NULL;
}

/* The path of the FP8 weight whose scales `op` holds, or empty. */
static mc_str
scaled_weight(const mc_op *op)
{
    static const char *const pairs[][3] = {
        {"scale", "w", "path"}, {"scale_gate", "w_gate", "path"}, {"scale_up", "w_up", "path"}};
    for (const mc_use *use = mc_result(op, 0)->uses; use; use = use->next) {
        for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
            if (packed_operand(use->user, pairs[i][0]) != op) continue;
            const mc_op *w = packed_operand(use->user, pairs[i][1]);
            if (!w) continue;
            bool second = i == 2 && mc_attr_str(w, "path2").len;
            return mc_attr_str(w, second ? "path2" : "path");
        }
    }
    return (mc_str){0};
}

static void
add_weight(mc_plan *p, const mc_op *op, mc_str scope)
{
    const mc_type *t = mc_result(op, 0)->type;
    mc_str prefix = mc_attr_bool(op, "root") ? (mc_str){0} : scope;
    mc_str path2 = mc_attr_str(op, "path2"), scale_of = scaled_weight(op), layout_name = mc_attr_str(op, "layout");
    bool pair = mc_str_is(layout_name, "pair_panels");
    moec_abi_weight w = {.path = c_string(p, mc_path_join(p->arena, prefix, mc_attr_str(op, "path"))),
                         .path2 = path2.len ? c_string(p, mc_path_join(p->arena, prefix, path2)) : NULL,
                         .role = c_string(p, mc_attr_str(op, "role")),
                         .dtype = t->dtype,
                         .layout = pair                               ? MOEC_ABI_PAIR_PANELS
                                   : mc_str_is(layout_name, "panels") ? MOEC_ABI_PANELS
                                   : mc_str_is(layout_name, "grad")   ? MOEC_ABI_GRAD
                                                                      : MOEC_ABI_ROWS,
                         .nr = (uint32_t)mc_attr_int(op, "nr"),
                         .rank = t->rank,
                         .init = c_string(p, mc_attr_str(op, "init")),
                         .experts = mc_attr_int(op, "of")};
    if (w.layout == MOEC_ABI_GRAD) /* frozen here, but not everywhere its function is called (passes/autodiff.c) */
        w.nr = mc_path_matches_any(mc_module_meta(p->module, "train.frozen"), mc_str_of(w.path));
    if (t->rank > 4) {
        mc_plan_refuse(p, "a weight has more than 4 axes");
        return;
    }
    for (int i = 0; i < t->rank; i++) w.dims[i] = mc_plan_need_const(p, t->dims[i], "an axis of a weight");
    if (pair) w.dims[t->rank - 2] /= 2;
    if (scale_of.len) {
        w.scale_of = c_string(p, mc_path_join(p->arena, prefix, scale_of));
        w.block[0] = w.block[1] = 128;
    }
    mc_vec_push(p->arena, &p->weights, w);
}

/* Bytes of one position (caches) or of one sequence (everything else). */
static int64_t
state_bytes(mc_plan *p, const mc_op *op)
{
    const mc_type *x = mc_operand(op, 0)->type;
    mc_dim n = mc_dim_const((int64_t)moec_dtype_bytes(x->dtype));
    switch (op->opcode) {
    case MC_OP_CACHE: n = mc_plan_times(p, n, mc_plan_product(p, x, 2, x->rank)); break;
    case MC_OP_CONV1D: {
        const mc_type *w = mc_operand(op, 1)->type;
        int64_t size = mc_plan_need_const(p, w->dims[2], "the width of a convolution");
        n = mc_plan_times(p, mc_plan_times(p, n, mc_dim_const(size - 1)), x->dims[2]);
        break;
    }
    case MC_OP_SELECTIVE_SCAN: n = mc_plan_times(p, n, mc_plan_count(p, mc_operand(op, 2)->type)); break;
    default: { /* delta_scan: H x dk x dv */
        const mc_type *v = mc_operand(op, 2)->type;
        n = mc_plan_times(p, n, mc_plan_times(p, mc_plan_product(p, v, 2, 4), x->dims[3]));
        break;
    }
    }
    return mc_plan_need_const(p, n, "the state of one sequence");
}

static void
add_state(mc_plan *p, const mc_op *op, mc_str scope, int number)
{
    mc_str name = mc_strf(p->arena, "%s%d", mc_op_info_of(op)->text, number);
    moec_abi_state s = {.name = c_string(p, mc_path_join(p->arena, scope, name)),
                        .kind = op->opcode == MC_OP_CACHE ? 0 : 1,
                        .bytes = state_bytes(p, op)};
    mc_vec_push(p->arena, &p->states, s);
}

static void
add_instance(mc_plan *p, const mc_func *f, mc_str scope)
{
    int n_states = 0;
    MC_FOR_OPS(op, f)
    {
        p->op = op;
        if (op->opcode == MC_OP_PACKED) add_weight(p, op, scope);
        if (mc_plan_owns_state(op)) add_state(p, op, scope, n_states++);
    }
    MC_FOR_OPS(op, f)
    {
        if (op->opcode == MC_OP_CALL)
            add_instance(p, mc_attr_func(op, "callee"), mc_path_join(p->arena, scope, mc_attr_str(op, "scope")));
    }
}

/* ---- functions -------------------------------------------------------------------------------------------------- */

/* A call passes what the callee's ARG places mean: formals, then results. */
static void
add_call(layout *l, const mc_op *op, uint32_t weight_base, uint32_t state_base)
{
    mc_plan *p = l->p;
    const func_info *callee = info_of(l, mc_attr_func(op, "callee"));
    if (op->n_operands + op->n_results > MAX_CALL_ARGS) {
        mc_plan_refuse(p, "it has more than %d arguments and results", (int)MAX_CALL_ARGS);
        return;
    }
    mc_plan_kernel target = {.index = callee->index};
    mc_plan_launch(p, &target);
    moec_abi_launch *launch = &p->launches.items[p->launches.n - 1];
    launch->kind = MOEC_LAUNCH_CALL;
    launch->flags = MOEC_LAUNCH_NO_BARRIER;
    launch->weight_base = weight_base;
    launch->state_base = state_base;
    for (int i = 0; i < op->n_operands; i++) mc_plan_ptr(p, mc_operand(op, i));
    for (int i = 0; i < op->n_results; i++) mc_plan_ptr(p, mc_result(op, i));
}

static void
lay_slots(mc_plan *p, const mc_func *f)
{
    for (size_t i = 0; i < f->n_slots; i++) {
        moec_abi_slot slot = {.first_expr = (uint32_t)p->exprs.n, .n_exprs = (uint32_t)f->slots[i].n_bytes};
        for (size_t j = 0; j < f->slots[i].n_bytes; j++) {
            mc_vec_push(p->arena, &p->exprs, mc_plan_expr(f->slots[i].bytes[j]));
        }
        mc_vec_push(p->arena, &p->slots, slot);
    }
}

static void
select_op(mc_plan *p, const mc_op *op)
{
    mc_plan_select_fn *select = p->backend->select[op->opcode];
    if (mc_plan_is_comm(op)) {
        mc_plan_select_comm(p, op);
        return;
    }
    if (p->backend->fuse && p->backend->fuse(p, op)) return;
    if (select)
        select(p, op);
    else
        mc_plan_refuse(p, "there is no kernel for it");
}

static bool
lay_ops(layout *l, const mc_func *f, func_info *info)
{
    mc_plan *p = l->p;
    MC_FOR_OPS(op, f)
    {
        info->n_weights += op->opcode == MC_OP_PACKED;
        info->n_states += mc_plan_owns_state(op);
    }
    bool ok = true;
    MC_FOR_OPS(op, f)
    {
        p->op = op;
        p->failed = false;
        if (op->opcode == MC_OP_CALL) {
            const func_info *callee = info_of(l, mc_attr_func(op, "callee"));
            add_call(l, op, info->n_weights, info->n_states);
            info->n_weights += callee->n_weights;
            info->n_states += callee->n_states;
        } else {
            select_op(p, op);
        }
        ok = ok && !p->failed;
    }
    return ok;
}

/* Callees first, so that a call finds its callee's info. */
static bool
lay_func(layout *l, const mc_func *f)
{
    mc_plan *p = l->p;
    if (info_of(l, f)) return true;
    bool ok = true;
    MC_FOR_OPS(op, f)
    {
        if (op->opcode == MC_OP_CALL) ok = lay_func(l, mc_attr_func(op, "callee")) && ok;
    }
    func_info info = {.func = f, .index = (uint32_t)p->funcs.n};
    moec_abi_func func = {.name = c_string(p, f->name),
                          .n_formals = (uint32_t)f->formals.n,
                          .n_results = f->last->n_operands,
                          .first_launch = (uint32_t)p->launches.n,
                          .first_slot = (uint32_t)p->slots.n};
    p->first_slot = func.first_slot;
    lay_slots(p, f);
    ok = lay_ops(l, f, &info) && ok;
    func.n_slots = (uint32_t)p->slots.n - func.first_slot;
    func.n_launches = (uint32_t)p->launches.n - func.first_launch;
    mc_vec_push(p->arena, &p->funcs, func);
    mc_vec_push(p->arena, &l->infos, info);
    return ok;
}

/* ---- training --------------------------------------------------------------------------------------------------- */

static bool
malformed(mc_plan *p, const char *what)
{
    p->op = NULL;
    p->failed = false;
    return mc_plan_refuse(p, "its training metas and functions disagree: %s", what);
}

/* At most `max` numbers separated by spaces, each below `limit`. */
static bool
read_indices(mc_plan *p, mc_str text, size_t limit, size_t max, uint32_t *out, size_t *n_out)
{
    *n_out = 0;
    for (size_t at = 0; at < text.len;) {
        size_t value = 0, begin = at;
        for (; at < text.len && text.data[at] >= '0' && text.data[at] <= '9' && value < limit; at++)
            value = value * 10 + (size_t)(text.data[at] - '0');
        if (at == begin || value >= limit || *n_out == max) return malformed(p, "an index");
        out[(*n_out)++] = (uint32_t)value;
        if (at < text.len && text.data[at++] != ' ') return malformed(p, "a list of indices");
    }
    return true;
}

/* Whether `v` can stand for `formal`: the runtime passes the address of the one as the other. */
static bool
same_type(const mc_value *v, const mc_value *formal)
{
    return v->type == formal->type;
}

/* formals of backward: inputs, saved, cotangents; results: input gradients. */
static bool
check_pair(mc_plan *p, const mc_func *model, const mc_func *back, size_t n_outputs)
{
    const mc_values *formals = &back->formals;
    const mc_op *results = model->last;
    size_t n_inputs = model->formals.n, n_saved = results->n_operands - n_outputs, n = n_inputs + n_saved;
    if (formals->n != n + p->cotangents.n) return malformed(p, "the number of formals of the backward function");
    if (back->last->n_operands != p->input_grads.n)
        return malformed(p, "the number of results of the backward function");
    for (size_t i = 0; i < n; i++) {
        const mc_value *v =
            i < n_inputs ? model->formals.items[i] : mc_operand(results, (int)(n_outputs + i - n_inputs));
        if (!same_type(v, formals->items[i])) return malformed(p, "the type of an input or saved value");
    }
    for (size_t i = 0; i < p->cotangents.n; i++)
        if (!same_type(mc_operand(results, (int)p->cotangents.items[i]), formals->items[n + i]))
            return malformed(p, "the type of a cotangent");
    for (size_t i = 0; i < p->input_grads.n; i++)
        if (!same_type(mc_operand(back->last, (int)i), model->formals.items[p->input_grads.items[i]]))
            return malformed(p, "the type of an input's gradient");
    return true;
}

/* *back: NULL for inference. */
static bool
find_backward(mc_plan *p, const mc_func *model, const mc_func **back, size_t *n_outputs)
{
    mc_str name = mc_module_meta(p->module, "train.backward");
    size_t n_results = model->last->n_operands, n = 0;
    uint32_t count = 0;
    *back = NULL;
    *n_outputs = n_results;
    if (!name.len) return true;
    *back = mc_module_find(p->module, name);
    if (!*back) return malformed(p, "there is no backward function");
    if (!read_indices(p, mc_module_meta(p->module, "train.outputs"), n_results + 1, 1, &count, &n)) return false;
    if (n != 1) return malformed(p, "train.outputs is one number");
    *n_outputs = count;
    uint32_t *cotangents = MC_NEW_N(p->arena, uint32_t, n_results + 1);
    uint32_t *grads = MC_NEW_N(p->arena, uint32_t, model->formals.n + 1);
    if (!read_indices(p, mc_module_meta(p->module, "train.cotangents"), count, count, cotangents, &n)) return false;
    for (size_t i = 0; i < n; i++) mc_vec_push(p->arena, &p->cotangents, cotangents[i]);
    if (!read_indices(p, mc_module_meta(p->module, "train.input_grads"), model->formals.n, model->formals.n, grads, &n))
        return false;
    for (size_t i = 0; i < n; i++) mc_vec_push(p->arena, &p->input_grads, grads[i]);
    return check_pair(p, model, *back, count);
}

bool
mc_plan_build(mc_plan *p, mc_arena *arena, const mc_module *module, const mc_plan_backend *backend, mc_diags *diags)
{
    p->arena = arena;
    p->module = module;
    p->backend = backend;
    p->diags = diags;
    mc_map_init(&p->kernel_names, arena);
    const mc_func *model = mc_module_model(module);
    if (module->stage != MC_STAGE_PLAN || !model) {
        return mc_plan_refuse(p, module->stage == MC_STAGE_PLAN ? "it has no model" : "it is not in stage plan");
    }
    layout l = {.p = p};
    const mc_func *back;
    size_t n_outputs;
    if (!find_backward(p, model, &back, &n_outputs)) return false;
    if (!mc_plan_ep(p)) return false;
    lay_symbols(p);
    bool ok = mc_plan_comm_symbols(p);
    ok = lay_func(&l, model) && ok;
    if (back) ok = lay_func(&l, back) && ok;
    p->entry = info_of(&l, model)->index;
    p->backward = back ? info_of(&l, back)->index : UINT32_MAX;
    lay_signature(p, model, (int)n_outputs);
    p->failed = false;
    add_instance(p, model, (mc_str){0});
    p->backward_weight_base = back ? (uint32_t)p->weights.n : 0;
    if (back) add_instance(p, back, (mc_str){0});
    return ok && !p->failed;
}
