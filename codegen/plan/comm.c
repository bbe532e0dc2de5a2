/* Launches between ranks, the same for every backend that has them: the runtime does them, no kernel. And the symbols
 * that they set, with what bounds them. */
#include "codegen/plan/comm.h"

#include <stdio.h>
#include <string.h>

static const char *const way_names[] = {"expert", "rank", "node"}; /* in the order of mc_ep_way in runtime/ep/ep.h */

static int
symbol_named(const mc_module *m, mc_str name)
{
    for (int i = 0; i < m->n_syms; i++)
        if (mc_str_eq(m->syms[i].name, name)) return i;
    return -1;
}

static int
way_of(const mc_op *op)
{
    int way = 0;
    while (way < 2 && !mc_str_is(mc_attr_str(op, "way"), way_names[way])) way++;
    return way;
}

/* ---- what the artefact says about its ranks ---------------------------------------------------------------------- */

bool
mc_plan_ep(mc_plan *p)
{
    mc_str text = mc_module_meta(p->module, "ep");
    if (text.len && !p->backend->ranks)
        return mc_plan_refuse(
            p, "models for several ranks run on processors only: compile this one with --mesh ep=1,dp=1");
    long long ranks, replicas, per_node;
    int round_robin, reduced, end = 0;
    if (!text.len) return true;
    const char *line = mc_str_dup(p->arena, text).data;
    if (sscanf(line, "%lld %lld %lld %d %d %n", &ranks, &replicas, &per_node, &round_robin, &reduced, &end) != 5 ||
        ranks < 1 || replicas < 1 || per_node < 1 || ranks > 1 << 16 || replicas > 1 << 16)
        return mc_plan_refuse(p, "the module's meta 'ep' is malformed");
    int sym = symbol_named(p->module, mc_str_of(line + end));
    if (sym < 0) return mc_plan_refuse(p, "the module's meta 'ep' names no dimension");
    moec_abi_ep *ep = MC_NEW(p->arena, moec_abi_ep);
    *ep = (moec_abi_ep){.n_ranks = (uint32_t)ranks,
                        .n_replicas = (uint32_t)replicas,
                        .per_node = (uint32_t)per_node,
                        .round_robin = (uint32_t)round_robin,
                        .rank_sym = (uint32_t)sym,
                        .reduced = (uint32_t)reduced,
                        .plan = mc_str_dup(p->arena, mc_module_meta(p->module, "ep.plan")).data};
    p->ep = ep;
    return true;
}

/* ---- symbols ----------------------------------------------------------------------------------------------------- */

/* The symbol is set by a launch, and is at most `bound`: of several bounds the greatest counts. */
static void
set_bound(mc_plan *p, int sym, mc_dim bound)
{
    moec_abi_sym *s = &p->syms.items[sym];
    moec_abi_expr e = mc_plan_expr(bound);
    if (s->kind != 4) {
        s->kind = 4;
        s->bound = (uint32_t)p->exprs.n;
        mc_vec_push(p->arena, &p->exprs, e);
        return;
    }
    moec_abi_expr *known = &p->exprs.items[s->bound];
    if (memcmp(known->syms, e.syms, sizeof e.syms))
        mc_plan_refuse(p, "dimension %s counts rows of different batches", s->name);
    else if (e.mul > known->mul)
        known->mul = e.mul;
}

static void
set_symbols(mc_plan *p, const mc_op *op)
{
    if (op->opcode == MC_OP_EP_ROUTE) {
        const mc_type *ids = mc_operand_named(op, "ids")->type;
        mc_dim tokens = mc_plan_rows(p, ids), ranks = mc_dim_const(mc_attr_int(op, "ranks"));
        set_bound(p, symbol_named(p->module, mc_attr_str(op, "received")),
                  way_of(op) ? mc_plan_times(p, ranks, tokens) : mc_plan_times(p, ranks, mc_plan_count(p, ids)));
        set_bound(p, mc_result(op, 1)->type->dims[0].syms[0], mc_plan_times(p, ranks, mc_plan_count(p, ids)));
    } else if (op->opcode == MC_OP_EP_GATHER && p->ep) {
        set_bound(p, symbol_named(p->module, mc_attr_str(op, "all")),
                  mc_plan_times(p, mc_dim_sym((int)p->ep->rank_sym), mc_dim_const(mc_attr_int(op, "ranks"))));
    }
}

/* After the bounds of what is merged. */
static void
set_merged(mc_plan *p, const mc_op *op)
{
    const moec_abi_sym *rows = &p->syms.items[mc_operand(op, 0)->type->dims[0].syms[0]];
    if (rows->kind != 4) return;
    moec_abi_expr e = p->exprs.items[rows->bound];
    mc_dim bound = {.mul = e.mul * mc_attr_int(op, "replicas"), .add = e.add};
    while (bound.n_syms < MC_DIM_SYMS && e.syms[bound.n_syms] != 0xFF) {
        bound.syms[bound.n_syms] = e.syms[bound.n_syms];
        bound.n_syms++;
    }
    set_bound(p, symbol_named(p->module, mc_attr_str(op, "merged")), bound);
}

bool
mc_plan_comm_symbols(mc_plan *p)
{
    p->failed = false;
    for (int merged = 0; merged < 2; merged++) {
        MC_FOR_FUNCS(f, p->module)
        {
            MC_FOR_OPS(op, f)
            {
                p->op = op;
                if (merged && op->opcode == MC_OP_EP_MERGE) set_merged(p, op);
                if (!merged) set_symbols(p, op);
            }
        }
    }
    return !p->failed;
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

static void
launch(mc_plan *p, moec_comm_op what)
{
    mc_plan_kernel target = {.index = what};
    mc_plan_launch(p, &target);
    p->launches.items[p->launches.n - 1].kind = MOEC_LAUNCH_COMM;
}

static void
symbol_arg(mc_plan *p, mc_str name)
{
    mc_plan_const(p, symbol_named(p->module, name));
}

static void
route(mc_plan *p, const mc_op *op)
{
    launch(p, MOEC_COMM_ROUTE);
    mc_plan_ptr(p, mc_operand(op, 0));
    mc_plan_ptr(p, mc_operand(op, 1));
    mc_plan_ptr(p, mc_operand(op, 3));
    for (int i = 0; i < op->n_results; i++) mc_plan_ptr(p, mc_result(op, i));
    mc_plan_const(p, way_of(op));
    mc_plan_const(p, mc_attr_int(op, "experts"));
    mc_plan_const(p, mc_attr_int(op, "share"));
    mc_plan_int(p, mc_plan_rows(p, mc_operand(op, 2)->type));
    mc_plan_int(p, mc_operand(op, 1)->type->dims[0]);
    symbol_arg(p, mc_attr_str(op, "received"));
    mc_plan_const(p, mc_result(op, 1)->type->dims[0].syms[0]);
}

static void
rows(mc_plan *p, const mc_op *op, moec_comm_op what)
{
    const mc_type *x = mc_operand(op, 0)->type;
    moec_dtype wire = mc_attr_dtype(op, "wire");
    bool by_way = what == MOEC_COMM_SEND || what == MOEC_COMM_REDUCE;
    launch(p, what);
    for (int i = 0; i < op->n_operands; i++) mc_plan_ptr(p, mc_operand(op, i));
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_const(p, by_way ? way_of(op) : 0);
    mc_plan_int(p, x->rank > 1 ? mc_type_last(x) : mc_dim_const(1));
    mc_plan_const(p, x->dtype);
    mc_plan_const(p, wire ? wire : x->dtype);
    mc_plan_int(p, what == MOEC_COMM_REDUCE ? mc_plan_rows(p, mc_result(op, 0)->type) : mc_dim_const(0));
}

/* Elements of the symbol that is shared out, and the bytes of each. */
static void
shared_out(mc_plan *p, const mc_type *t, mc_dim symbol)
{
    mc_dim bytes = mc_plan_times(p, mc_plan_count(p, t), mc_dim_const((int64_t)moec_dtype_bytes(t->dtype))), each;
    if (!mc_dim_div(bytes, symbol, &each)) mc_plan_refuse(p, "axis 0 is not shared out");
    mc_plan_int(p, symbol);
    mc_plan_int(p, each);
}

void
mc_plan_select_comm(mc_plan *p, const mc_op *op)
{
    mc_dim own = p->ep ? mc_dim_sym((int)p->ep->rank_sym) : mc_dim_const(1);
    if (!p->ep) {
        mc_plan_refuse(p, "the module does not say what its ranks are (meta 'ep')");
        return;
    }
    switch ((int)op->opcode) {
    case MC_OP_EP_ROUTE: route(p, op); return;
    case MC_OP_EP_SEND: rows(p, op, MOEC_COMM_SEND); return;
    case MC_OP_EP_SEND_ROWS: rows(p, op, MOEC_COMM_SEND_ROWS); return;
    case MC_OP_EP_RETURN: rows(p, op, MOEC_COMM_RETURN_ROWS); return;
    case MC_OP_EP_REDUCE: rows(p, op, MOEC_COMM_REDUCE); return;
    case MC_OP_EP_WAIT: launch(p, MOEC_COMM_WAIT); return;
    case MC_OP_EP_GATHER:
        launch(p, MOEC_COMM_GATHER);
        mc_plan_ptr(p, mc_operand(op, 0));
        mc_plan_ptr(p, mc_result(op, 0));
        mc_plan_ptr(p, mc_result(op, 1));
        shared_out(p, mc_operand(op, 0)->type, own);
        symbol_arg(p, mc_attr_str(op, "all"));
        return;
    case MC_OP_EP_OWN:
        launch(p, MOEC_COMM_OWN);
        mc_plan_ptr(p, mc_operand(op, 0));
        mc_plan_ptr(p, mc_operand(op, 1));
        mc_plan_ptr(p, mc_result(op, 0));
        shared_out(p, mc_result(op, 0)->type, own);
        return;
    default:
        launch(p, MOEC_COMM_MERGE);
        mc_plan_ptr(p, mc_operand(op, 0));
        mc_plan_ptr(p, mc_operand(op, 1));
        mc_plan_ptr(p, mc_result(op, 0));
        mc_plan_ptr(p, mc_result(op, 1));
        mc_plan_int(p, mc_dim_const(mc_operand(op, 1)->type->dims[0].mul - 1));
        mc_plan_int(p, mc_plan_times(p, mc_type_last(mc_operand(op, 0)->type),
                                     mc_dim_const((int64_t)moec_dtype_bytes(mc_operand(op, 0)->type->dtype))));
        symbol_arg(p, mc_attr_str(op, "merged"));
        return;
    }
}
