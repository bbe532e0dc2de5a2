/* Routes are read backwards: from the dispatch to what chose the ids, and from there, through ops that scale or shift
 * scores by constants or per expert, to the linear of the router. */
#include "passes/route.h"

#include "passes/match.h"

mc_route
mc_route_of(mc_op *dispatch)
{
    mc_route r = {.dispatch = dispatch, .weights = mc_operand(dispatch, 0), .ids = mc_operand(dispatch, 1)};
    const mc_op *capacity = mc_def_is(r.ids, MC_OP_MOE_CAPACITY);
    if (capacity && mc_def_is(r.weights, MC_OP_MOE_CAPACITY) == capacity) {
        r.weights = mc_operand(capacity, 0);
        r.ids = mc_operand(capacity, 1);
    }
    mc_op *def = r.ids->def;
    bool chooses = def && (def->opcode == MC_OP_ROUTE_TOP || def->opcode == MC_OP_ROUTE_CHOOSE ||
                           def->opcode == MC_OP_ROUTE_SPARSEMIXER);
    r.choice = chooses ? def : NULL;
    return r;
}

bool
mc_route_is_constant(const mc_op *choice)
{
    const mc_op *def = choice && choice->opcode == MC_OP_ROUTE_TOP ? mc_operand(choice, 0)->def : NULL;
    if (!def) return false;
    if (def->opcode == MC_OP_FILL) return true;
    return def->opcode == MC_OP_CLAMP && mc_attr_float(def, "lo") == mc_attr_float(def, "hi");
}

/* The operand that carries the scores through an op that scales or shifts them by constants or per expert. */
static mc_value *
through(const mc_op *op)
{
    mc_value *a = mc_operand(op, 0), *b = mc_operand(op, 1);
    const mc_type *t = op->results[0].type;
    switch ((int)op->opcode) {
    case MC_OP_CAST:
    case MC_OP_SOFTCAP:
    case MC_OP_ROUTE_RENORM: return a;
    case MC_OP_ADD:
    case MC_OP_MUL:
        if (b->type == t && a->type->rank <= 1 && t->rank > 1) return b;
        return a->type == t && b->type->rank <= 1 ? a : NULL;
    case MC_OP_SUB:
    case MC_OP_DIV: return a->type == t && b->type->rank <= 1 ? a : NULL;
    }
    return NULL;
}

/* What an activation that makes scores was applied to. */
static mc_value *
activation_input(const mc_op *op)
{
    if (op->opcode == MC_OP_SOFTMAX || op->opcode == MC_OP_SIGMOID) return mc_operand(op, 0);
    const mc_op *inner = op->opcode == MC_OP_SQRT ? mc_def_is(mc_operand(op, 0), MC_OP_SOFTPLUS) : NULL;
    return inner ? mc_operand(inner, 0) : NULL;
}

mc_route_scores
mc_route_scores_of(const mc_op *choice)
{
    mc_route_scores s = {0};
    mc_value *v = choice ? mc_operand(choice, 0) : NULL, *next;
    mc_value *chosen = v;
    for (; v && v->def; v = next) {
        next = activation_input(v->def);
        if (next && !s.logits) {
            s.logits = next;
            s.activated = v;
        }
        if (!next) next = through(v->def);
        if (v->def->opcode == MC_OP_LINEAR) s.projection = v->def;
    }
    if (s.projection && !s.logits) s.logits = chosen;
    return s;
}

mc_str
mc_route_name(mc_arena *arena, const mc_route_scores *scores, const char *what, mc_map *taken)
{
    const mc_op *linear = scores->projection;
    const mc_op *weight = linear ? mc_def_is(mc_operand_named(linear, "w"), MC_OP_WEIGHT) : NULL;
    mc_str path = weight && !mc_attr_bool(weight, "root") ? mc_attr_str(weight, "path") : (mc_str){0};
    size_t end = path.len;
    for (int parts = 0; parts < 2 && end > 0;) parts += path.data[--end] == '.';
    mc_str base = end ? mc_strf(arena, "%.*s.%s", MC_FMT(mc_str_slice(path, 0, end)), what) : mc_str_of(what);
    mc_str name = base;
    for (int n = 2; mc_map_has(taken, name); n++) name = mc_strf(arena, "%.*s.%d", MC_FMT(base), n);
    mc_map_set(taken, name, taken);
    return name;
}
