/* The verifier. Broken links would make every later check meaningless (or endless), so a function whose lists are
 * broken is reported and left alone; everything else is checked op by op, and each fault shows the op's text. */
#include "ir/verify.h"

#include <string.h>

#include "ir/infer.h"
#include "ir/moir.h"
#include "ir/print.h"

typedef struct verifier {
    const mc_module *module;
    mc_diags *diags;
    mc_arena *arena;
    mc_map funcs;      /* names of the functions before the present one */
    uint32_t *defined; /* by id: number of the function in which a value or op with it was seen; 0 = none yet */
    uint32_t func_number;
    const mc_func *func;
    bool good;
} verifier;

/* The op that the newest diagnostic is about. */
static void
show(verifier *v, const mc_op *op)
{
    v->good = false;
    if (v->diags->dropped) return;
    mc_buf text = {0};
    mc_op_print(op, &text);
    mc_note(v->diags, op->span, "in @%.*s: %.*s", MC_FMT(v->func->name), MC_FMT(mc_buf_view(&text)));
    mc_buf_fini(&text);
}

static bool
fault_in_func(verifier *v, const char *text)
{
    v->good = false;
    return mc_error(v->diags, v->func->span, MC_E0407, "@%.*s: %s", MC_FMT(v->func->name), text);
}

static void
fault(verifier *v, const mc_op *op, mc_code code, const char *text)
{
    mc_error(v->diags, op->span, code, "%s: %s", mc_op_info_of(op)->text, text);
    show(v, op);
}

static bool
claim_id(verifier *v, uint32_t id)
{
    if (id >= v->module->next_id || v->defined[id]) return false;
    v->defined[id] = v->func_number;
    return true;
}

static bool
is_defined(const verifier *v, const mc_value *value)
{
    return value->id < v->module->next_id && v->defined[value->id] == v->func_number && value->func == v->func;
}

static bool
check_links(verifier *v)
{
    const mc_op *before = NULL;
    for (const mc_op *op = v->func->first; op; before = op, op = op->next) {
        /* A list that runs into itself meets an op whose prev is another. */
        if (op->prev != before || op->func != v->func) return fault_in_func(v, "the list of ops is broken");
        if (op->opcode < 0 || op->opcode >= MC_N_OPCODES) return fault_in_func(v, "an op of no known kind");
    }
    if (v->func->last != before) return fault_in_func(v, "the end of the list of ops is wrong");
    if (!before || before->opcode != MC_OP_RETURN) return fault_in_func(v, "the last op is not return");
    return true;
}

/* Every member of the list is an operand of an inserted op of this function that holds the value, and is linked from
 * its neighbour; with a link back to each place, a list cannot run into itself. */
static bool
good_uses(const verifier *v, const mc_value *value)
{
    mc_use *const *link = (mc_use *const *)&value->uses;
    for (const mc_use *use = value->uses; use; link = &use->next, use = use->next) {
        if (use->link != link || use->value != value) return false;
        const mc_op *user = use->user;
        if (!user || user->func != v->func || use < user->operands) return false;
        if (use >= user->operands + user->n_operands) return false;
    }
    return true;
}

static void
check_operands(verifier *v, const mc_op *op)
{
    for (int i = 0; i < op->n_operands; i++) {
        const mc_use *use = &op->operands[i];
        if (use->user != op) fault(v, op, MC_E0407, "an operand does not know its op");
        if (!use->value) continue;
        if (!is_defined(v, use->value)) {
            fault(v, op, MC_E0407, "an operand is not defined before its use in this function");
        } else if (!use->link || *use->link != use) {
            fault(v, op, MC_E0407, "an operand is missing from the list of its value's uses");
        }
    }
}

static void
check_results(verifier *v, const mc_op *op)
{
    for (int i = 0; i < op->n_results; i++) {
        const mc_value *value = &op->results[i];
        if (value->def != op || value->index != (uint32_t)i || value->func != v->func || !value->type) {
            fault(v, op, MC_E0407, "a result does not know its op");
        } else if (!claim_id(v, value->id)) {
            fault(v, op, MC_E0407, "a result has an id that is taken");
        } else if (!good_uses(v, value)) {
            fault(v, op, MC_E0407, "the list of a result's uses is broken");
        }
    }
}

static bool
check_funcs_of(verifier *v, const mc_op *op)
{
    const mc_op_info *info = mc_op_info_of(op);
    for (int i = 0; i < info->n_attrs; i++) {
        const mc_attr *attr = &op->attrs[i];
        if (attr->kind != MC_ATTR_FUNC || !attr->as.func) continue;
        if (mc_map_get(&v->funcs, attr->as.func->name) == attr->as.func) continue;
        fault(v, op, MC_E0407, "the function it refers to does not stand before this one in the module");
        return false;
    }
    return true;
}

static void
check_body_weights(verifier *v, const mc_op *op)
{
    int at = mc_attr_index(op->opcode, MC_STR("experts"));
    if (!mc_op_has(op, MC_TRAIT_BODY) || at < 0) return;
    MC_FOR_OPS(weight, mc_attr_func(op, "body"))
    {
        if (weight->opcode != MC_OP_WEIGHT ||
            weight->attrs[mc_attr_index(MC_OP_WEIGHT, MC_STR("experts"))].kind == MC_ATTR_NONE) {
            continue;
        }
        int64_t experts = mc_attr_int(weight, "experts");
        if (experts && experts != mc_attr_int(op, "experts")) {
            fault(v, op, MC_E0404, "a weight of the body has another number of experts");
        }
    }
}

static bool
check_inference(verifier *v, const mc_op *op)
{
    mc_arena *arena = v->arena;
    mc_value **operands = MC_NEW_N(arena, mc_value *, op->n_operands);
    for (int i = 0; i < op->n_operands; i++) operands[i] = op->operands[i].value;
    if (op->n_results > MC_MAX_RESULTS) {
        fault(v, op, MC_E0403, "too many results");
        return false;
    }
    /* Inference interns types and names symbols, which changes nothing that a reader of the module can see. */
    mc_infer in = {.module = (mc_module *)(uintptr_t)v->module, .opcode = op->opcode, .operands = operands};
    in.n_operands = op->n_operands;
    in.attrs = op->attrs;
    in.span = op->span;
    in.diags = v->diags;
    in.n_results = op->n_results;
    for (int i = 0; i < op->n_results; i++) in.results[i] = op->results[i].type;
    if (!mc_infer_run(&in)) {
        show(v, op);
        return false;
    }
    if (in.n_results != op->n_results) {
        fault(v, op, MC_E0403, "it has a wrong number of results");
        return false;
    }
    for (int i = 0; i < op->n_results; i++) {
        const mc_type *stored = op->results[i].type;
        if (in.results[i] == stored) continue;
        mc_error(v->diags, op->span, MC_E0406, "%s: result %d is stored as %s, but is %s", mc_op_info_of(op)->text,
                 i + 1, mc_type_text(v->module, stored, arena).data,
                 mc_type_text(v->module, in.results[i], arena).data);
        show(v, op);
    }
    return true;
}

/* What the index of a place counts; -1 when the kind has none. */
static int64_t
place_limit(const verifier *v, const mc_place *place)
{
    int64_t n_packed = 0;
    switch (place->kind) {
    case MC_PLACE_SLOT: return (int64_t)v->func->n_slots;
    case MC_PLACE_ARG: return (int64_t)v->func->formals.n;
    case MC_PLACE_RESULT: return v->func->last->n_operands;
    case MC_PLACE_WEIGHT: MC_FOR_OPS(op, v->func) n_packed += op->opcode == MC_OP_PACKED; return n_packed;
    case MC_PLACE_STATE: return INT32_MAX;
    case MC_PLACE_NONE:
    case MC_PLACE_VIEW:
    case MC_PLACE_CONST: break;
    }
    return -1;
}

static void
check_places(verifier *v, const mc_op *op)
{
    for (int i = 0; i < op->n_results; i++) {
        const mc_place *place = &op->results[i].place;
        int64_t limit = place_limit(v, place);
        if (place->kind != MC_PLACE_NONE && v->module->stage != MC_STAGE_PLAN) {
            fault(v, op, MC_E0407, "a result has a place before the stage plan");
        } else if (limit >= 0 && (place->index < 0 || place->index >= limit)) {
            fault(v, op, MC_E0407, "the index of a result's place is out of range");
        } else if (place->kind == MC_PLACE_VIEW &&
                   (!place->base || place->base == &op->results[i] || !is_defined(v, place->base))) {
            fault(v, op, MC_E0407, "a view of a value that is not defined before it");
        }
    }
}

static void
check_op(verifier *v, const mc_op *op)
{
    const mc_op_info *info = mc_op_info_of(op);
    if (!claim_id(v, op->id)) fault(v, op, MC_E0407, "its id is taken");
    if (!(info->stages & (1u << v->module->stage))) {
        mc_error(v->diags, op->span, MC_E0405, "%s may not stand in stage %s", info->text,
                 mc_moir_stages[v->module->stage]);
        show(v, op);
    }
    if ((info->traits & MC_TRAIT_END) && op->next) fault(v, op, MC_E0407, "ops follow the end of the function");
    check_operands(v, op);
    check_results(v, op);
    if (!check_funcs_of(v, op)) return;
    if (check_inference(v, op)) check_body_weights(v, op);
    check_places(v, op);
}

static void
check_func(verifier *v)
{
    const mc_func *f = v->func;
    if (!mc_moir_is_ident(f->name)) fault_in_func(v, "its name is not a name");
    if (mc_map_has(&v->funcs, f->name)) fault_in_func(v, "two functions have this name");
    if (f->module != v->module) fault_in_func(v, "it belongs to another module");
    if (!check_links(v)) return;
    for (size_t i = 0; i < f->formals.n; i++) {
        const mc_value *formal = f->formals.items[i];
        bool good = !formal->def && formal->func == f && formal->index == i && claim_id(v, formal->id);
        if (!good || !good_uses(v, formal)) fault_in_func(v, "an argument is broken: its owner, index, id or uses");
    }
    MC_FOR_OPS(op, f)
    {
        if (v->diags->too_many) return;
        check_op(v, op);
    }
}

static void
check_symbols(verifier *v)
{
    for (int i = 0; i < v->module->n_syms; i++) {
        const mc_symbol *sym = &v->module->syms[i];
        bool good = mc_moir_is_ident(sym->name) && sym->lo >= 0 && (sym->hi == 0 || sym->hi >= sym->lo);
        for (int j = 0; j < i; j++) good = good && !mc_str_eq(v->module->syms[j].name, sym->name);
        if (good) continue;
        v->good = mc_error(v->diags, (mc_span){0}, MC_E0407, "dim %.*s: a bad name, a bad range, or declared twice",
                           MC_FMT(sym->name));
    }
}

bool
mc_module_verify(const mc_module *m, mc_diags *diags)
{
    verifier v = {.module = m, .diags = diags, .arena = mc_arena_create(), .good = true};
    mc_map_init(&v.funcs, v.arena);
    v.defined = MC_NEW_N(v.arena, uint32_t, m->next_id);
    check_symbols(&v);
    int n_models = 0;
    MC_FOR_FUNCS(f, m)
    {
        v.func = f;
        v.func_number++;
        check_func(&v);
        mc_map_set(&v.funcs, f->name, f);
        n_models += f->is_model;
        if (n_models == 2 && f->is_model) fault_in_func(&v, "a second model; a module has one");
        if (!f->next && m->last_func != f) fault_in_func(&v, "the end of the list of functions is wrong");
    }
    mc_arena_destroy(v.arena);
    return v.good;
}
