/* Inference: the moe node and the primitives it becomes. A = T * k assignments is the product of all axes of ids. */
#include "ir/infer_impl.h"

#include <string.h>

enum { MAX_EXPERTS = 1 << 20 };

static const char *const per_names[] = {"expert", "slot", NULL};
static const char *const drop_names[] = {"tail", "score", NULL};

/* The body maps rows [R, d] to rows [R, width], for a symbol R. */
static bool
check_body(mc_infer *in, const mc_type *x, mc_dim *out_width)
{
    const mc_func *body = mc_in_func(in, "body");
    const mc_op *end;
    if (!mc_in_func_results(in, body, &end)) return false;
    if (body->formals.n != 1 || end->n_operands != 1) {
        return mc_in_refuse(in, MC_E0403, "the body @%.*s must have one argument and one result", MC_FMT(body->name));
    }
    const mc_type *from = body->formals.items[0]->type, *to = end->operands[0].value->type;
    bool rows = from->rank == 2 && from->dtype == x->dtype && from->dims[0].n_syms > 0;
    if (!rows || !mc_dim_eq(from->dims[1], mc_type_last(x))) {
        return mc_in_refuse(in, MC_E0310, "the body @%.*s must take rows %s[R, %s] for a symbol R, but takes %s",
                            MC_FMT(body->name), moec_dtype_name(x->dtype), mc_in_dim_text(in, mc_type_last(x)),
                            mc_type_text(in->module, from, in->diags->arena).data);
    }
    if (to->rank != 2 || to->dtype != x->dtype || !mc_dim_eq(to->dims[0], from->dims[0])) {
        return mc_in_refuse(in, MC_E0310, "the body @%.*s must return as many rows as it takes, but returns %s",
                            MC_FMT(body->name), mc_type_text(in->module, to, in->diags->arena).data);
    }
    *out_width = to->dims[1];
    return true;
}

static bool
check_route(mc_infer *in, const mc_type *x)
{
    const mc_func *route = mc_in_func(in, "route");
    const mc_op *end;
    if (!mc_in_func_results(in, route, &end)) return false;
    /* Without route inputs the router reads x itself, operand 0. */
    int first = in->n_operands > 1 ? 1 : 0, n = in->n_operands - first;
    if (route->formals.n != (size_t)n || end->n_operands != 2) {
        return mc_in_refuse(in, MC_E0403, "the route @%.*s must have %d arguments and two results", MC_FMT(route->name),
                            n);
    }
    for (int i = 0; i < n; i++) {
        const mc_type *formal = route->formals.items[i]->type;
        if (formal == in->operands[first + i]->type) continue;
        return mc_in_refuse(in, MC_E0310, "argument %d of the route @%.*s must be %s", i + 1, MC_FMT(route->name),
                            mc_type_text(in->module, formal, in->diags->arena).data);
    }
    const mc_type *weights = end->operands[0].value->type, *ids = end->operands[1].value->type;
    bool good = mc_type_is_float(weights) && ids->dtype == MOEC_I32 && weights->rank == x->rank && ids->rank == x->rank;
    for (int i = 0; good && i < x->rank; i++) {
        good = mc_dim_eq(weights->dims[i], ids->dims[i]);
        if (i < x->rank - 1) good = good && mc_dim_eq(ids->dims[i], x->dims[i]);
    }
    if (good && mc_dim_is_const(mc_type_last(ids))) return true;
    return mc_in_refuse(in, MC_E0310,
                        "the route @%.*s must return weights and i32 ids [..., k] beside x, but returns %s and %s",
                        MC_FMT(route->name), mc_type_text(in->module, weights, in->diags->arena).data,
                        mc_type_text(in->module, ids, in->diags->arena).data);
}

bool
mc_infer_moe(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0);
    mc_dim width;
    if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK) || !mc_in_want_int(in, "experts", 1, MAX_EXPERTS)) return false;
    if (!mc_in_want_int(in, "identity", 0, MAX_EXPERTS) || !mc_in_want_float(in, "capacity", 0, true)) return false;
    if (!mc_in_want_choice(in, "per", per_names) || !mc_in_want_choice(in, "drop", drop_names)) return false;
    if (!check_body(in, x, &width) || !check_route(in, x)) return false;
    if (!mc_dim_eq(width, mc_type_last(x))) {
        return mc_in_refuse(in, MC_E0315, "an expert takes %s channels, but returns %s",
                            mc_in_dim_text(in, mc_type_last(x)), mc_in_dim_text(in, width));
    }
    return mc_in_give(in, x);
}

/* x is [..., d] beside ids [..., k], or [..., k, d]: one row for each chosen expert. */
static bool
check_rows_of_choices(mc_infer *in, int ids_at)
{
    const mc_type *x = mc_in_type(in, 0), *ids = mc_in_type(in, ids_at);
    if (!mc_in_want_rank(in, ids_at, 1, MC_MAX_RANK - 1) || !mc_in_want_rank(in, 0, 1, MC_MAX_RANK)) return false;
    bool per_choice = x->rank == ids->rank + 1;
    mc_dim want[MC_MAX_RANK];
    int rank = per_choice ? ids->rank + 1 : ids->rank;
    memcpy(want, ids->dims, sizeof want);
    want[rank - 1] = mc_type_last(x);
    return mc_in_want_shape(in, 0, want, rank);
}

bool
mc_infer_expert_map(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0), *ids = mc_in_type(in, 1);
    mc_dim width, dims[MC_MAX_RANK];
    if (!mc_in_want_int(in, "experts", 1, MAX_EXPERTS) || !check_rows_of_choices(in, 1)) return false;
    if (!check_body(in, x, &width)) return false;
    memcpy(dims, ids->dims, sizeof dims);
    dims[ids->rank] = width;
    return mc_in_give_dims(in, x->dtype, dims, ids->rank + 1);
}

bool
mc_infer_expert_sum(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0), *ids = mc_in_type(in, 2);
    mc_dim width;
    if (!mc_in_want_int(in, "experts", 1, MAX_EXPERTS) || !mc_in_want_choices_of(in, 1, 2, NULL)) return false;
    if (!check_rows_of_choices(in, 2) || !check_body(in, x, &width)) return false;
    return mc_in_give(in, mc_type_with_dtype(in->module, mc_type_with_last(in->module, ids, width), x->dtype));
}

bool
mc_infer_moe_capacity(mc_infer *in)
{
    if (!mc_in_want_int(in, "experts", 1, MAX_EXPERTS) || !mc_in_want_float(in, "factor", 0, false)) return false;
    if (!mc_in_want_choice(in, "per", per_names) || !mc_in_want_choice(in, "drop", drop_names)) return false;
    if (!mc_in_want_choices_of(in, 0, 1, NULL)) return false;
    mc_in_give(in, mc_in_type(in, 0));
    return mc_in_give(in, mc_in_type(in, 1));
}

bool
mc_infer_moe_dispatch(mc_infer *in)
{
    const mc_type *weights = mc_in_type(in, 0);
    mc_dim rows;
    if (!mc_in_want_int(in, "experts", 1, MAX_EXPERTS) || !mc_in_want_choices_of(in, 0, 1, NULL)) return false;
    if (!mc_dims_product(weights->dims, weights->rank, &rows)) {
        return mc_in_refuse(in, MC_E0314, "the number of assignments of %s is not a product of at most %d symbols",
                            mc_in_shape_text(in, weights->dims, weights->rank), MC_DIM_SYMS);
    }
    const mc_dim offsets = mc_dim_const(mc_in_int(in, "experts") + 1);
    mc_in_give_dims(in, MOEC_I32, &offsets, 1);
    mc_in_give_dims(in, MOEC_I32, &rows, 1);
    mc_in_give_dims(in, MOEC_I32, &rows, 1);
    return mc_in_give_dims(in, weights->dtype, &rows, 1);
}

bool
mc_infer_moe_permute(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0), *rows = mc_in_type(in, 1);
    if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK) || !mc_in_want_rank(in, 1, 1, 1) || !mc_in_want_rank(in, 2, 1, 1))
        return false;
    if (!mc_in_want_vector(in, 3, rows->dims[0])) return false;
    const mc_dim dims[] = {rows->dims[0], mc_type_last(x)};
    return mc_in_give_dims(in, x->dtype, dims, 2);
}

/* w [E, O, I] beside offsets [E + 1] and rows of `channels`. */
static bool
check_stack(mc_infer *in, int w_at, int offsets_at, mc_dim channels)
{
    const mc_type *w = mc_in_type(in, w_at);
    if (!mc_in_want_rank(in, w_at, 3, 3) || !mc_in_want_rank(in, offsets_at, 1, 1)) return false;
    const mc_dim want[] = {w->dims[0], w->dims[1], channels};
    if (!mc_in_want_shape(in, w_at, want, 3)) return false;
    if (!mc_dim_is_const(w->dims[0])) return mc_in_refuse(in, MC_E0310, "the number of experts is not constant");
    return mc_in_want_vector(in, offsets_at, mc_dim_const(w->dims[0].mul + 1));
}

bool
mc_infer_grouped_matmul(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0), *w = mc_in_type(in, 1), *rows = mc_in_type(in, 5);
    if (!mc_in_want_rank(in, 5, 1, 1) || !mc_in_want_rank(in, 0, rows ? 1 : 2, rows ? MC_MAX_RANK : 2)) return false;
    if (!check_stack(in, 1, 2, mc_type_last(x))) return false;
    if (!mc_in_want_shape(in, 3, w->dims, 2) || !mc_in_want_scale(in, 4, w)) return false;
    const mc_dim dims[] = {rows ? rows->dims[0] : x->dims[0], w->dims[1]};
    return mc_in_give_to(in, mc_type_get(in->module, x->dtype, dims, 2));
}

bool
mc_infer_moe_unpermute(mc_infer *in)
{
    const mc_type *y = mc_in_type(in, 0), *x = in->results[0];
    if (!mc_in_want_rank(in, 0, 2, 2) || !mc_in_want_rank(in, 1, 1, 1)) return false;
    if (!mc_in_want_vector(in, 2, y->dims[0]) || !mc_in_want_vector(in, 3, y->dims[0])) return false;
    moec_dtype to = mc_in_to(in, y->dtype);
    if (x->dtype != to) return mc_in_refuse(in, MC_E0318, "the result must be %s", moec_dtype_name(to));
    if (x->rank >= 1 && mc_dim_eq(mc_type_last(x), y->dims[1])) return true;
    return mc_in_refuse(in, MC_E0310, "the result must be [..., %s], but is declared as %s",
                        mc_in_dim_text(in, y->dims[1]), mc_in_shape_text(in, x->dims, x->rank));
}

bool
mc_infer_moe_identity(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0);
    if (!mc_in_want_int(in, "first", 0, MAX_EXPERTS) || !mc_in_want_choices_of(in, 1, 2, x)) return false;
    return mc_in_give(in, x);
}

bool
mc_infer_moe_ffn_up(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0), *gate = mc_in_type(in, 1), *tokens = mc_in_type(in, 4);
    if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK) || !mc_in_want_rank(in, 4, 1, 1)) return false;
    if (!mc_in_want_choice(in, "act", mc_in_act_names) || !check_stack(in, 1, 3, mc_type_last(x))) return false;
    bool pair = mc_in_packed_pair(in, 1, 2);
    mc_dim width = gate->dims[1];
    if (pair) width = mc_dim_const(width.mul / 2);
    const mc_dim one[] = {gate->dims[0], width, gate->dims[2]};
    const mc_type *single = mc_type_get(in->module, gate->dtype, one, 3);
    if (!pair && !mc_in_want_shape(in, 2, one, 3)) return false;
    if (!mc_in_want_shape(in, 5, one, 2) || !mc_in_want_shape(in, 6, one, 2)) return false;
    if (!mc_in_want_scale(in, 7, single) || !mc_in_want_scale(in, 8, pair ? single : mc_in_type(in, 2))) return false;
    const mc_dim dims[] = {tokens->dims[0], width};
    return mc_in_give_to(in, mc_type_get(in->module, x->dtype, dims, 2));
}

bool
mc_infer_moe_ffn_down(mc_infer *in)
{
    const mc_type *h = mc_in_type(in, 0), *w = mc_in_type(in, 1), *y = in->results[0];
    if (!mc_in_want_rank(in, 0, 2, 2) || !check_stack(in, 1, 2, h->dims[1])) return false;
    if (!mc_in_want_vector(in, 3, h->dims[0]) || !mc_in_want_vector(in, 4, h->dims[0])) return false;
    if (!mc_in_want_shape(in, 5, w->dims, 2) || !mc_in_want_scale(in, 6, w)) return false;
    moec_dtype to = mc_in_to(in, h->dtype);
    if (y->dtype != to) return mc_in_refuse(in, MC_E0318, "the result must be %s", moec_dtype_name(to));
    if (y->rank >= 1 && mc_dim_eq(mc_type_last(y), w->dims[1])) return true;
    return mc_in_refuse(in, MC_E0310, "the result must be [..., %s], but is declared as %s",
                        mc_in_dim_text(in, w->dims[1]), mc_in_shape_text(in, y->dims, y->rank));
}
