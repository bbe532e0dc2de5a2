/* Finding MoE layers: the model's calls are walked as it runs them, so that a layer's name is the path of its weights,
 * and layers of one function are one kind. */
#include "passes/ep/plan.h"
#include "passes/match.h"

enum { MAX_DEPTH = 64, MAX_CALLS = 1 << 18, MAX_CHAIN = 16 };

typedef struct finder {
    mc_arena *arena;
    mc_diags *diags;
    mc_ep_plan *plan;
    int depth, n_calls;
} finder;

static bool
refuse(finder *f, const mc_op *op, const char *what)
{
    return mc_error(f->diags, op->span, MC_E0803, "no plan for the experts of '%.*s': %s", MC_FMT(op->func->name),
                    what);
}

/* ---- what a layer is ---- */

static int64_t
last_dim(const mc_value *v)
{
    mc_dim d = mc_type_last(v->type);
    return v->type->rank && mc_dim_is_const(d) ? d.mul : 0;
}

/* route.groups above the choice of ids: through what keeps the experts' axis. */
static const mc_op *
find_groups(const mc_op *dispatch)
{
    int64_t experts = mc_attr_int(dispatch, "experts");
    const mc_value *v = mc_operand_named(dispatch, "ids");
    for (int i = 0; v && v->def && i < MAX_CHAIN; i++) {
        const mc_op *op = v->def;
        if (op->opcode == MC_OP_ROUTE_GROUPS) return op;
        if (op->opcode == MC_OP_ROUTE_TOP)
            v = mc_operand_named(op, "key");
        else if (op->opcode == MC_OP_MOE_CAPACITY)
            v = mc_operand_named(op, "ids");
        else
            v = last_dim(v) == experts ? mc_operand(op, 0) : NULL;
    }
    return NULL;
}

/* The weight op under a matrix, or NULL. */
static const mc_op *
weight_of(const mc_value *w)
{
    for (int i = 0; w && w->def && i < MAX_CHAIN; i++) {
        if (w->def->opcode == MC_OP_WEIGHT) return w->def;
        w = mc_operand(w->def, 0);
    }
    return NULL;
}

/* "mlp" of "mlp.experts.gate_proj.weight". */
static mc_str
path_of(const mc_value *w)
{
    const mc_op *weight = weight_of(w);
    if (!weight) return (mc_str){0};
    mc_str path = mc_attr_str(weight, "path");
    for (size_t i = 0; i + 8 <= path.len; i++)
        if (mc_str_starts(mc_str_slice(path, i, path.len), ".experts")) return mc_str_slice(path, 0, i);
    return mc_str_starts(path, "experts") ? (mc_str){0} : path;
}

static void
add_matrix(mc_ep_layer *l, const mc_value *w, bool reads_tokens)
{
    if (!w || w->type->rank != 3) return;
    double rows = (double)w->type->dims[1].mul, columns = (double)w->type->dims[2].mul;
    bool fp8 = w->type->dtype == MOEC_F8E4M3;
    if (reads_tokens) {
        l->reads_fp8 = fp8 && (!l->width || l->reads_fp8);
        l->width = w->type->dims[2].mul;
        l->inner = w->type->dims[1].mul;
        l->dtype = w->type->dtype;
    }
    l->products += rows * columns;
    l->expert_bytes += rows * columns * (double)moec_dtype_bytes(w->type->dtype);
}

static void
add_reader(mc_ep_layer *l, const mc_op *op, mc_str *path)
{
    switch (op->opcode) {
    case MC_OP_MOE_FFN_UP:
        add_matrix(l, mc_operand_named(op, "w_gate"), true);
        add_matrix(l, mc_operand_named(op, "w_up"), true);
        if (!path->len) *path = path_of(mc_operand_named(op, "w_gate"));
        break;
    case MC_OP_MOE_FFN_DOWN: /* experts of a single product have no other */
        add_matrix(l, mc_operand_named(op, "w"), mc_def_is(mc_operand_named(op, "h"), MC_OP_MOE_PERMUTE));
        if (!path->len) *path = path_of(mc_operand_named(op, "w"));
        break;
    case MC_OP_GROUPED_MATMUL:
        add_matrix(l, mc_operand_named(op, "w"),
                   mc_operand_named(op, "rows") || mc_def_is(mc_operand_named(op, "x"), MC_OP_MOE_PERMUTE));
        if (!path->len) *path = path_of(mc_operand_named(op, "w"));
        break;
    default: break;
    }
}

static bool
reads(const mc_op *op, const mc_value *v)
{
    for (int i = 0; i < op->n_operands; i++)
        if (mc_operand(op, i) == v) return true;
    return false;
}

static bool
describe(finder *f, const mc_op *dispatch, mc_ep_layer *l, mc_str *path)
{
    const mc_value *ids = mc_operand_named(dispatch, "ids"), *offsets = mc_result(dispatch, 0);
    const mc_op *groups = find_groups(dispatch), *choice = mc_def_is(ids, MC_OP_ROUTE_CHOOSE);
    *l = (mc_ep_layer){.dispatch = dispatch};
    *path = (mc_str){0};
    l->load.choice.experts = mc_attr_int(dispatch, "experts");
    l->load.choice.k = last_dim(ids);
    if (groups) {
        l->load.choice.groups = mc_attr_int(groups, "n");
        l->load.choice.keep = mc_attr_int(groups, "keep");
    }
    if (choice) {
        double each = mc_attr_float(choice, "factor");
        l->experts_choose = true;
        l->load.choice.k = each < 1                                ? 1
                           : each < (double)l->load.choice.experts ? (int64_t)(each + 0.5)
                                                                   : l->load.choice.experts;
    }
    if (l->load.choice.k < 1 || l->load.choice.k > l->load.choice.experts)
        return refuse(f, dispatch, "how many of them a token goes to is not known");
    MC_FOR_OPS(op, dispatch->func)
    if (reads(op, offsets)) add_reader(l, op, path);
    return l->width > 0 || refuse(f, dispatch, "no product reads the rows of its tokens");
}

/* ---- calls ---- */

static mc_str
join(finder *f, mc_str scope, mc_str path)
{
    if (!scope.len || !path.len) return scope.len ? scope : path;
    return mc_strf(f->arena, "%.*s.%.*s", MC_FMT(scope), MC_FMT(path));
}

static bool
visit_dispatch(finder *f, const mc_op *op, mc_str scope)
{
    mc_ep_layer fresh;
    mc_str path;
    size_t kind = 0;
    if (!describe(f, op, &fresh, &path)) return false;
    path = join(f, scope, path);
    while (kind < f->plan->layers.n && f->plan->layers.items[kind].dispatch != op) kind++;
    if (kind == f->plan->layers.n) {
        fresh.first = path;
        mc_vec_push(f->arena, &f->plan->layers, fresh);
    }
    f->plan->layers.items[kind].last = path;
    f->plan->layers.items[kind].times++;
    mc_vec_push(f->arena, &f->plan->instances, (mc_ep_instance){path, kind});
    return true;
}

static bool
visit(finder *f, const mc_func *func, mc_str scope)
{
    if (f->depth == MAX_DEPTH || f->n_calls++ == MAX_CALLS)
        return mc_error(f->diags, func->span, MC_E0803, "'%.*s' is called too deep or too often", MC_FMT(func->name));
    f->depth++;
    bool good = true;
    MC_FOR_OPS(op, func)
    {
        if (op->opcode == MC_OP_MOE_DISPATCH) good = visit_dispatch(f, op, scope);
        if (op->opcode == MC_OP_CALL)
            good = visit(f, mc_attr_func(op, "callee"), join(f, scope, mc_attr_str(op, "scope")));
        if (!good) return false;
    }
    f->depth--;
    return true;
}

bool
mc_ep_plan_find(const mc_module *m, mc_arena *arena, mc_diags *diags, mc_ep_plan *plan)
{
    finder f = {.arena = arena, .diags = diags, .plan = plan};
    const mc_func *model = mc_module_model(m);
    return !model || visit(&f, model, (mc_str){0});
}
