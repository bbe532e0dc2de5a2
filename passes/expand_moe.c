/* expand-moe: moe, expert_map and expert_sum become routing, dispatch, permute, grouped matmuls and unpermute.
 *
 *   needs     stage tensor
 *   keeps     stage tensor; every bit (each output element is the same chain, combined in ascending expert order);
 *             an id that names no expert, an error to the op, gets no row
 *   refuses   experts whose ops mix rows, hold state or read a weight per expert other than through linear (E0505)
 *
 * before:  %y = moe %x {route = @r, body = @e, experts = 8}
 *
 * after:   … ops of @r …                                     : %weights, %ids
 *          %offsets, %tokens, %slots, %gates = moe.dispatch %weights, %ids {experts = 8}
 *          %rows = moe.permute %x, %tokens, %offsets
 *          … ops of @e, linear on a per-expert weight now grouped_matmul on the stacked one … : %out
 *          %y = moe.unpermute %out, %offsets, %tokens, %gates
 */
#include "passes/expert_body.h"
#include "passes/match.h"
#include "passes/pass.h"

#include <assert.h>

typedef struct expander {
    mc_pass *pass;
    mc_module *module;
    mc_clone clone;
    mc_map inlined; /* name -> function whose ops were copied: removed when nothing else refers to it */
} expander;

typedef struct rows {
    mc_value *offsets, *tokens, *slots, *gates;
} rows;

static bool
check_route(const mc_op *site, const mc_func *route, size_t n_inputs, mc_diags *d)
{
    bool ok = route->formals.n == n_inputs && route->last && route->last->opcode == MC_OP_RETURN &&
              route->last->n_operands == 2;
    if (!ok)
        return mc_error(d, site->span, MC_E0505, "route '%.*s' must map %zu tensors to weights and ids",
                        MC_FMT(route->name), n_inputs);
    MC_FOR_OPS(op, route)
    {
        if (!mc_op_has(op, MC_TRAIT_BODY)) continue;
        return mc_error(d, op->span, MC_E0505, "'%s' in a route: experts do not nest", mc_op_info_of(op)->text);
    }
    return true;
}

static bool
check(const mc_op *op, mc_diags *d)
{
    if (!mc_op_has(op, MC_TRAIT_BODY)) return true;
    bool ok = mc_expert_body_check(op, mc_attr_func(op, "body"), mc_attr_int(op, "experts"), d);
    if (op->opcode != MC_OP_MOE) return ok;
    size_t n_inputs = op->n_operands > 1 ? (size_t)op->n_operands - 1 : 1;
    return check_route(op, mc_attr_func(op, "route"), n_inputs, d) && ok;
}

/* The route's ops before the moe op; its two results. */
static bool
inline_route(expander *e, mc_builder *b, const mc_op *moe, mc_value **out_weights, mc_value **out_ids)
{
    mc_func *route = mc_attr_func(moe, "route");
    int first = moe->n_operands > 1 ? 1 : 0;
    mc_clone_unbind(&e->clone);
    for (size_t i = 0; i < route->formals.n; i++)
        if (!mc_clone_formal(&e->clone, route->formals.items[i], mc_operand(moe, first + (int)i)))
            return mc_error(b->diags, moe->span, MC_E0505, "an input of route '%.*s' does not have its type",
                            MC_FMT(route->name));
    for (mc_op *op = route->first; op != route->last; op = op->next)
        if (!mc_clone_op(&e->clone, b, op))
            return mc_error(b->diags, op->span, MC_E0505, "'%s' in a route: its shape here has too many symbols",
                            mc_op_info_of(op)->text);
    *out_weights = e->clone.values[mc_operand(route->last, 0)->id];
    *out_ids = e->clone.values[mc_operand(route->last, 1)->id];
    mc_map_set(&e->inlined, route->name, route);
    return true;
}

static bool
dispatch(mc_builder *b, mc_value *weights, mc_value *ids, int64_t experts, rows *out)
{
    mc_named_attr attr = MC_A_INT("experts", experts);
    mc_op *op = mc_build(b, MC_OP_MOE_DISPATCH, (mc_value *[]){weights, ids}, 2, &attr, 1);
    if (!op) return false;
    static const char *const names[] = {"offsets", "tokens", "slots", "gates"};
    for (int i = 0; i < op->n_results; i++) op->results[i].name = mc_str_of(names[i]);
    *out = (rows){mc_result(op, 0), mc_result(op, 1), mc_result(op, 2), mc_result(op, 3)};
    return true;
}

/* permute -> body -> unpermute; `from` and `to`: tokens or slots. */
static mc_value *
through_experts(expander *e, mc_builder *b, const mc_op *op, const rows *r, mc_value *from, mc_value *to,
                mc_value *gates_in, mc_value *gates_out)
{
    mc_func *body = mc_attr_func(op, "body");
    mc_value *in =
        mc_build1(b, MC_OP_MOE_PERMUTE, (mc_value *[]){mc_operand(op, 0), from, r->offsets, gates_in}, 4, NULL, 0);
    if (in) in->name = MC_STR("rows");
    mc_value *out = in ? mc_expert_body_inline(&e->clone, b, body, mc_attr_int(op, "experts"), in, r->offsets) : NULL;
    mc_map_set(&e->inlined, body->name, body);
    if (!out) return NULL;
    mc_op *back = mc_build_typed(b, MC_OP_MOE_UNPERMUTE, (mc_value *[]){out, r->offsets, to, gates_out}, 4, NULL, 0,
                                 (const mc_type *[]){op->results[0].type}, 1);
    return mc_result(back, 0);
}

static bool
limit(mc_builder *b, const mc_op *moe, mc_value **weights, mc_value **ids)
{
    double factor = mc_attr_float(moe, "capacity");
    if (factor <= 0) return true;
    mc_named_attr attrs[] = {MC_A_INT("experts", mc_attr_int(moe, "experts")), MC_A_FLOAT("factor", factor),
                             MC_A_STR("per", mc_attr_str(moe, "per")), MC_A_STR("drop", mc_attr_str(moe, "drop"))};
    mc_op *op = mc_build(b, MC_OP_MOE_CAPACITY, (mc_value *[]){*weights, *ids}, 2, attrs, 4);
    *weights = op ? mc_result(op, 0) : NULL;
    *ids = op ? mc_result(op, 1) : NULL;
    return op != NULL;
}

static mc_value *
expand_moe(expander *e, mc_builder *b, const mc_op *moe)
{
    int64_t experts = mc_attr_int(moe, "experts");
    mc_value *weights = NULL, *ids = NULL;
    rows r;
    if (!inline_route(e, b, moe, &weights, &ids) || !limit(b, moe, &weights, &ids) ||
        !dispatch(b, weights, ids, experts, &r))
        return NULL;
    bool on_input = mc_attr_bool(moe, "on_input");
    mc_value *y =
        through_experts(e, b, moe, &r, r.tokens, r.tokens, on_input ? r.gates : NULL, on_input ? NULL : r.gates);
    if (!y || !mc_attr_int(moe, "identity")) return y;
    mc_named_attr first = MC_A_INT("first", experts);
    mc_value *same = mc_build1(b, MC_OP_MOE_IDENTITY, (mc_value *[]){mc_operand(moe, 0), weights, ids}, 3, &first, 1);
    return same ? mc_build_binary(b, MC_OP_ADD, y, same) : NULL;
}

/* Whether x has a row of its own for each chosen expert: [..., k, d] where ids is [..., k]. */
static bool
has_slot_axis(const mc_value *x, const mc_value *ids)
{
    return x->type->rank == ids->type->rank + 1;
}

static mc_value *
expand_map(expander *e, mc_builder *b, const mc_op *op)
{
    mc_value *ids = mc_operand_named(op, "ids");
    rows r;
    /* dispatch sorts weights along; expert_map has none, so the ids as numbers stand in and their copy is not read */
    mc_named_attr to = MC_A_DTYPE("to", MOEC_F32);
    mc_value *numbers = mc_build1(b, MC_OP_CAST, &ids, 1, &to, 1);
    if (!numbers || !dispatch(b, numbers, ids, mc_attr_int(op, "experts"), &r)) return NULL;
    mc_value *from = has_slot_axis(mc_operand(op, 0), ids) ? r.slots : r.tokens;
    return through_experts(e, b, op, &r, from, r.slots, NULL, NULL);
}

static mc_value *
expand_sum(expander *e, mc_builder *b, const mc_op *op)
{
    mc_value *ids = mc_operand_named(op, "ids");
    rows r;
    if (!dispatch(b, mc_operand_named(op, "weights"), ids, mc_attr_int(op, "experts"), &r)) return NULL;
    mc_value *from = has_slot_axis(mc_operand(op, 0), ids) ? r.slots : r.tokens;
    return through_experts(e, b, op, &r, from, r.tokens, NULL, r.gates);
}

static bool
expand(expander *e, mc_op *op)
{
    mc_builder b = mc_builder_before(op, e->pass->diags);
    mc_value *y = op->opcode == MC_OP_MOE          ? expand_moe(e, &b, op)
                  : op->opcode == MC_OP_EXPERT_MAP ? expand_map(e, &b, op)
                                                   : expand_sum(e, &b, op);
    if (!y) return false;
    if (y->name.len == 0) y->name = op->results[0].name;
    mc_value_replace_uses(&op->results[0], y);
    mc_op_remove(op);
    e->pass->n_rewrites++;
    return true;
}

static void
forget_referenced(expander *e, const mc_op *op)
{
    for (int i = 0; i < mc_op_info_of(op)->n_attrs; i++) {
        const mc_attr *a = &op->attrs[i];
        if (a->kind == MC_ATTR_FUNC && mc_map_has(&e->inlined, a->as.func->name))
            mc_map_set(&e->inlined, a->as.func->name, NULL);
    }
}

static void
remove_inlined(expander *e)
{
    MC_FOR_FUNCS(f, e->module)
    {
        MC_FOR_OPS(op, f)
        {
            forget_referenced(e, op);
        }
    }
    for (size_t i = 0; i < e->inlined.n; i++)
        if (e->inlined.entries[i].value) mc_func_remove(e->inlined.entries[i].value);
}

mc_pass_result
mc_pass_expand_moe(mc_pass *p, mc_module *m)
{
    MC_VEC(mc_op *) sites = {0};
    bool ok = true;
    MC_FOR_FUNCS(f, m)
    {
        MC_FOR_OPS(op, f)
        {
            if (mc_op_has(op, MC_TRAIT_BODY)) mc_vec_push(p->scratch, &sites, op);
            ok = check(op, p->diags) && ok;
        }
    }
    if (!ok) return MC_FAILED;
    if (sites.n == 0) return MC_UNCHANGED;
    expander e = {.pass = p, .module = m, .clone = mc_clone_begin(m, p->scratch)};
    mc_map_init(&e.inlined, p->scratch);
    for (size_t i = 0; i < sites.n; i++)
        if (!expand(&e, sites.items[i])) return MC_FAILED;
    remove_inlined(&e);
    return MC_CHANGED;
}
