/* What reads the tokens of all ranks: rules that decide over a batch, losses, and in strict order the sums of weight
 * gradients. Operands are gathered, the op runs on all tokens on every rank, and what belongs to tokens is cut back to
 * the own ones. The table says which operands have tokens. */
#include "passes/ep/dist.h"

#include "passes/match.h"

#include <string.h>

enum { ALWAYS, SUMS }; /* SUMS: in strict order only; otherwise each rank has its part of the sum */

static const struct rule {
    mc_opcode opcode;
    int when;
    uint32_t gathered; /* bits of operands */
    bool own;          /* results are the tokens' */
} rules[] = {
    {MC_OP_MOE_CAPACITY, ALWAYS, 3, true},     {MC_OP_ROUTE_CHOOSE, ALWAYS, 1, true},
    {MC_OP_MOE_LOAD, ALWAYS, 3, false},        {MC_OP_MOE_BALANCE, ALWAYS, 3, false},
    {MC_OP_MOE_BALANCE_GRAD, ALWAYS, 1, true}, {MC_OP_MOE_Z_LOSS, ALWAYS, 1, false},
    {MC_OP_MOE_Z_LOSS_GRAD, ALWAYS, 1, true},  {MC_OP_LINEAR_DW, SUMS, 3, false},
    {MC_OP_EMBED_DW, SUMS, 3, false},          {MC_OP_SUM_TO, SUMS, 1, false},
};

static bool
has_symbol(mc_dim dim, int sym)
{
    for (int i = 0; i < dim.n_syms; i++)
        if (dim.syms[i] == sym) return true;
    return false;
}

static bool
is_shared_out(const mc_dist *d, const mc_type *t)
{
    return t->rank > 0 && has_symbol(t->dims[0], d->rank_sym);
}

/* t of all ranks' tokens. */
static const mc_type *
type_of_all(const mc_dist *d, const mc_type *t)
{
    mc_dim dims[MC_MAX_RANK], times;
    memcpy(dims, t->dims, sizeof dims);
    if (mc_dim_div(dims[0], mc_dim_sym(d->rank_sym), &times)) mc_dim_mul(times, mc_dim_sym(d->all_sym), &dims[0]);
    return mc_type_get(d->module, t->dtype, dims, t->rank);
}

static mc_op *
gather(mc_dist *d, mc_op *before, mc_value *x)
{
    mc_str key = mc_strf(d->pass->scratch, "%u", x->id);
    mc_op *known = mc_map_get(&d->gathered, key);
    if (known) return known;
    const mc_dim one = mc_dim_const(1);
    const mc_type *types[] = {type_of_all(d, x->type), mc_type_get(d->module, MOEC_I32, &one, 1)};
    mc_named_attr attrs[] = {MC_A_INT("ranks", d->mesh.ep * d->mesh.dp),
                             MC_A_STR("all", d->module->syms[d->all_sym].name)};
    mc_builder b = mc_builder_before(before, d->pass->diags);
    mc_op *op = mc_build_typed(&b, MC_OP_EP_GATHER, &x, 1, attrs, 2, types, 2);
    if (op) mc_map_set(&d->gathered, key, op);
    return op;
}

static const struct rule *
rule_of(const mc_dist *d, const mc_op *op)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        if (rules[i].opcode != op->opcode) continue;
        if (rules[i].when == SUMS && d->mesh.order != MC_EP_STRICT) return NULL;
        bool keeps_tokens = op->opcode == MC_OP_SUM_TO && is_shared_out(d, op->results[0].type);
        return keeps_tokens || !is_shared_out(d, mc_operand(op, 0)->type) ? NULL : &rules[i];
    }
    return NULL;
}

bool
mc_dist_gather_op(mc_dist *d, mc_op *op, bool *out_done)
{
    const struct rule *rule = rule_of(d, op);
    *out_done = rule != NULL;
    if (!rule) return true;
    mc_value *operands[8];
    const mc_type *types[4];
    mc_op *first = NULL;
    for (int i = 0; i < op->n_operands; i++) {
        operands[i] = mc_operand(op, i);
        if (!(rule->gathered & 1u << i) || !operands[i]) continue;
        if (!is_shared_out(d, operands[i]->type))
            return mc_dist_refuse(d, op, "operand %d does not have the tokens along axis 0", i);
        mc_op *all = gather(d, op, operands[i]);
        if (!all) return false;
        operands[i] = mc_result(all, 0);
        if (!first) first = all;
    }
    for (int i = 0; i < op->n_results; i++)
        types[i] = rule->own ? type_of_all(d, op->results[i].type) : op->results[i].type;
    mc_op *made = mc_dist_remake(d, op, operands, types);
    if (!made) return false;
    mc_builder b = mc_builder_before(op, d->pass->diags);
    for (int i = 0; i < op->n_results; i++) {
        mc_value *y = mc_result(made, i), *was = mc_result(op, i);
        y->name = was->name;
        if (rule->own) {
            mc_op *own =
                mc_build_typed(&b, MC_OP_EP_OWN, (mc_value *[]){y, mc_result(first, 1)}, 2, NULL, 0, &was->type, 1);
            if (!own) return false;
            y = mc_result(own, 0);
            y->name = was->name;
        }
        mc_value_replace_uses(was, y);
    }
    mc_op_remove(op);
    return true;
}
