/* One moe.dispatch on several ranks: its ep.route, and the rows that go to the experts and come back. */
#include "passes/ep/dist.h"
#include "passes/ep/plan.h"

#include "passes/match.h"

#include <string.h>

static bool
make_route(mc_site *s, int received, int rows)
{
    mc_dist *d = s->dist;
    mc_op *dispatch = s->dispatch;
    mc_module *m = d->module;
    mc_builder b = mc_builder_before(dispatch->next, d->pass->diags);
    b.span = dispatch->span;
    mc_value *operands[] = {mc_result(dispatch, 0), mc_result(dispatch, 1), mc_operand(dispatch, 1)};
    mc_named_attr attrs[] = {MC_A_INT("experts", s->experts), MC_A_INT("share", s->share),
                             MC_A_INT("ranks", d->mesh.ep), MC_A_STR("way", mc_str_of(s->way)),
                             MC_A_STR("received", m->syms[rows].name)};
    s->received = mc_dim_sym(received);
    s->rows = mc_dim_sym(rows);
    const mc_dim own = mc_dim_const(s->share + 1), counts[] = {mc_dim_const(6), mc_dim_const(d->mesh.ep)};
    const mc_type *y = mc_type_get(m, MOEC_I32, &s->received, 1), *a = operands[1]->type;
    const mc_type *types[] = {mc_type_get(m, MOEC_I32, &own, 1), y, y, a, a, mc_type_get(m, MOEC_I32, counts, 2)};
    s->route = mc_build_typed(&b, MC_OP_EP_ROUTE, operands, 3, attrs, 5, types, 6);
    static const char *const names[] = {"own_offsets", "rows", "order", "sent", "sent_tokens", "counts"};
    for (int i = 0; s->route && i < 6; i++) s->route->results[i].name = mc_str_of(names[i]);
    return s->route != NULL;
}

/* How the plan lets its rows travel. A backward function's dispatch is that of a layer which the plan knows by its
 * forward. NULL: as they are. */
static const mc_ep_layer *
planned(const mc_dist *d, const mc_op *dispatch)
{
    if (!d->plan || !d->plan->layers.n) return NULL;
    const mc_ep_layer *layer = mc_ep_plan_layer(d->plan, dispatch);
    return layer ? layer : &d->plan->layers.items[0];
}

bool
mc_site_open(mc_dist *d, mc_op *dispatch, int number, mc_site *out)
{
    *out = (mc_site){.dist = d,
                     .dispatch = dispatch,
                     .number = number,
                     .assignments = mc_result(dispatch, 1)->type->dims[0],
                     .experts = mc_attr_int(dispatch, "experts")};
    mc_map_init(&out->sent, d->pass->scratch);
    if (out->experts % d->mesh.ep)
        return mc_dist_refuse(d, dispatch, "%lld experts do not divide over %lld ranks", (long long)out->experts,
                              (long long)d->mesh.ep);
    out->share = out->experts / d->mesh.ep;
    const mc_ep_layer *layer = planned(d, dispatch);
    out->way = layer ? mc_ep_way_name((int)layer->way) : "rank";
    out->wire_there = layer ? layer->there.dtype : MOEC_F32;
    out->wire_back = layer ? layer->back.dtype : MOEC_F32;
    int received = mc_dist_symbol(d, dispatch, "epY%d", number), rows = mc_dist_symbol(d, dispatch, "epX%d", number);
    return received >= 0 && rows >= 0 && make_route(out, received, rows);
}

const mc_type *
mc_site_type(const mc_site *s, const mc_type *t)
{
    mc_dim dims[MC_MAX_RANK], times;
    if (t->rank == 0) return t;
    memcpy(dims, t->dims, sizeof dims);
    if (mc_dim_is_const(dims[0]) && dims[0].mul == s->experts)
        dims[0] = mc_dim_const(s->share);
    else if (!mc_dim_is_const(dims[0]) && mc_dim_div(dims[0], s->assignments, &times))
        mc_dim_mul(times, s->received, &dims[0]);
    return mc_type_get(s->dist->module, t->dtype, dims, t->rank);
}

/* Builds opcode and its wait, once for each operand. */
static mc_value *
travel(mc_site *s, mc_op *before, mc_opcode opcode, mc_value *x, const mc_type *type)
{
    mc_dist *d = s->dist;
    mc_str key = mc_strf(d->pass->scratch, "%d %u", (int)opcode, x->id);
    mc_value *known = mc_map_get(&s->sent, key);
    if (known && known->type == type) return known;
    mc_builder b = mc_builder_before(before, d->pass->diags);
    mc_value *operands[7] = {x};
    for (int i = 0; i < 6; i++) operands[1 + i] = mc_result(s->route, i);
    bool by_way = opcode == MC_OP_EP_SEND || opcode == MC_OP_EP_REDUCE;
    moec_dtype wire = opcode == MC_OP_EP_SEND ? s->wire_there : opcode == MC_OP_EP_REDUCE ? s->wire_back : MOEC_F32;
    bool narrow = wire != MOEC_F32 && x->type->dtype == MOEC_F32;
    mc_named_attr attrs[2];
    int n_attrs = 0;
    if (by_way) attrs[n_attrs++] = (mc_named_attr)MC_A_STR("way", mc_str_of(s->way));
    if (narrow) attrs[n_attrs++] = (mc_named_attr)MC_A_DTYPE("wire", wire);
    mc_op *op = mc_build_typed(&b, opcode, operands, 7, attrs, n_attrs, &type, 1);
    mc_value *arrived = op ? mc_build_unary(&b, MC_OP_EP_WAIT, mc_result(op, 0)) : NULL;
    if (!arrived) return NULL;
    arrived->name = x->name;
    mc_map_set(&s->sent, key, arrived);
    return arrived;
}

mc_value *
mc_site_send(mc_site *s, mc_op *before, mc_value *x)
{
    const mc_dim dims[] = {s->rows, mc_type_last(x->type)};
    return travel(s, before, MC_OP_EP_SEND, x, mc_type_get(s->dist->module, x->type->dtype, dims, 2));
}

mc_value *
mc_site_send_rows(mc_site *s, mc_op *before, mc_value *v)
{
    const mc_type *type = mc_site_type(s, v->type);
    /* a column is its vector in another shape, and ones are ones: neither travels */
    mc_op *def = v->def;
    if (def && (def->opcode == MC_OP_FILL || def->opcode == MC_OP_RESHAPE)) {
        mc_value *x = NULL;
        if (def->opcode == MC_OP_RESHAPE && !(x = mc_site_send_rows(s, before, mc_operand(def, 0)))) return NULL;
        mc_op *op = mc_op_create(s->dist->module, def->opcode, &x, x ? 1 : 0, &type, 1, def->attrs, def->span);
        mc_op_insert_before(before->func, before, op);
        return mc_result(op, 0);
    }
    if (type == v->type) {
        mc_dist_refuse(s->dist, before, "it reads %s, which is neither the tokens' nor the experts'",
                       mc_type_text(s->dist->module, type, s->dist->pass->scratch).data);
        return NULL;
    }
    return travel(s, before, MC_OP_EP_SEND_ROWS, v, type);
}

mc_value *
mc_site_return(mc_site *s, mc_op *before, mc_value *y, const mc_type *type)
{
    return travel(s, before, MC_OP_EP_RETURN, y, type);
}

mc_value *
mc_site_reduce(mc_site *s, mc_op *before, mc_value *y, const mc_type *type)
{
    return travel(s, before, MC_OP_EP_REDUCE, y, type);
}

mc_value *
mc_site_merge(mc_site *s, mc_op *before, mc_value *y, mc_value **out_all_offsets)
{
    mc_dist *d = s->dist;
    int merged = mc_dist_symbol(d, before, "epM%d", s->number);
    if (merged < 0) return NULL;
    mc_builder b = mc_builder_before(before, d->pass->diags);
    mc_named_attr attrs[] = {MC_A_INT("replicas", d->mesh.dp), MC_A_STR("merged", d->module->syms[merged].name)};
    const mc_dim dims[] = {mc_dim_sym(merged), mc_type_last(y->type)};
    const mc_type *types[] = {mc_type_get(d->module, y->type->dtype, dims, 2), mc_result(s->route, 0)->type};
    mc_op *op = mc_build_typed(&b, MC_OP_EP_MERGE, (mc_value *[]){y, mc_result(s->route, 0)}, 2, attrs, 2, types, 2);
    if (!op) return NULL;
    *out_all_offsets = mc_result(op, 1);
    return mc_result(op, 0);
}
