/* Inference: structure, linear algebra, norms, elementwise. */
#include "ir/infer_impl.h"

#include <math.h>

/* Sizes are multiplied into byte counts and offsets everywhere; 2^48 elements leaves room for that in 64 bits. */
static const int64_t max_elements = (int64_t)1 << 48;

/* A declared type: constant axes of at least 1 and not absurdly large. */
static bool
declared(mc_infer *in, const mc_type *t, bool constant)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) {
        mc_dim d = t->dims[i];
        if (d.mul < 1) return mc_in_refuse(in, MC_E0310, "an axis of size %s", mc_in_dim_text(in, d));
        if (constant && !mc_dim_is_const(d)) {
            return mc_in_refuse(in, MC_E0314, "a weight has constant axes, not %s", mc_in_dim_text(in, d));
        }
        if (__builtin_mul_overflow(n, d.mul, &n) || n > max_elements) {
            return mc_in_refuse(in, MC_E0319, "a tensor of more than 2^48 elements: %s",
                                mc_in_shape_text(in, t->dims, t->rank));
        }
    }
    return true;
}

static bool
check_role(mc_infer *in)
{
    static const char *const roles[] = {"embed", "head", "router", "experts", "shared", "attention", "dense", "norm"};
    mc_str role = mc_in_str(in, "role");
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
        if (mc_str_is(role, roles[i])) return true;
    }
    return mc_in_refuse(in, MC_E0340,
                        "role \"%.*s\" is none of: embed, head, router, experts, shared, attention, dense, norm",
                        MC_FMT(role));
}

bool
mc_infer_weight(mc_infer *in)
{
    if (mc_in_str(in, "path").len == 0) return mc_in_refuse(in, MC_E0404, "path is empty");
    return check_role(in) && mc_in_want_int(in, "experts", 0, 1 << 20) && declared(in, in->results[0], true);
}

bool
mc_infer_packed(mc_infer *in)
{
    static const char *const layouts[] = {"rows", "grad", "panels", "pair_panels", NULL};
    const mc_type *t = in->results[0];
    if (mc_in_str(in, "path").len == 0) return mc_in_refuse(in, MC_E0404, "path is empty");
    if (!check_role(in) || !mc_in_want_choice(in, "layout", layouts) || !declared(in, t, true)) return false;
    mc_str layout = mc_in_str(in, "layout");
    bool pair = mc_str_is(layout, "pair_panels"), rows = mc_str_is(layout, "rows") || mc_str_is(layout, "grad");
    if (pair != (mc_in_str(in, "path2").len > 0)) {
        return mc_in_refuse(in, MC_E0404, "path2 goes with the layout pair_panels, and with no other");
    }
    if (rows) return true;
    if (!mc_in_want_int(in, "nr", 1, 1024)) return false;
    if (t->rank < 2)
        return mc_in_refuse(in, MC_E0310, "panels are made of a matrix, not of %s",
                            mc_in_shape_text(in, t->dims, t->rank));
    if (pair && (mc_in_int(in, "nr") % 2 || t->dims[t->rank - 2].mul % 2)) {
        return mc_in_refuse(in, MC_E0310, "a pair has an even nr and an even number of rows");
    }
    return true;
}

bool
mc_infer_const(mc_infer *in)
{
    if (in->results[0]->rank) return mc_in_refuse(in, MC_E0310, "a constant is a scalar");
    return true;
}

bool
mc_infer_call(mc_infer *in)
{
    const mc_func *f = mc_in_func(in, "callee");
    const mc_op *end;
    if (!mc_in_func_results(in, f, &end)) return false;
    if ((size_t)in->n_operands != f->formals.n) {
        return mc_in_refuse(in, MC_E0403, "@%.*s takes %zu arguments, but is given %d", MC_FMT(f->name), f->formals.n,
                            in->n_operands);
    }
    mc_arena *arena = in->diags->arena;
    for (int i = 0; i < in->n_operands; i++) {
        const mc_type *formal = f->formals.items[i]->type;
        if (in->operands[i]->type == formal) continue;
        return mc_in_refuse(in, MC_E0310, "argument %d of @%.*s must be %s", i + 1, MC_FMT(f->name),
                            mc_type_text(in->module, formal, arena).data);
    }
    if (in->n_results != end->n_operands) {
        return mc_in_refuse(in, MC_E0403, "@%.*s has %d results, but %d are declared", MC_FMT(f->name), end->n_operands,
                            in->n_results);
    }
    for (int i = 0; i < in->n_results; i++) {
        const mc_type *result = end->operands[i].value->type;
        if (in->results[i] == result) continue;
        return mc_in_refuse(in, MC_E0406, "result %d of @%.*s is %s, not %s", i + 1, MC_FMT(f->name),
                            mc_type_text(in->module, result, arena).data,
                            mc_type_text(in->module, in->results[i], arena).data);
    }
    return true;
}

bool
mc_infer_return(mc_infer *in)
{
    if (in->n_operands <= MC_MAX_RESULTS) return true;
    return mc_in_refuse(in, MC_E0403, "%d values, but a function returns at most %d", in->n_operands, MC_MAX_RESULTS);
}

bool
mc_infer_cast(mc_infer *in)
{
    moec_dtype to = mc_attr_at(in->opcode, in->attrs, "to", MC_ATTR_DTYPE).as.dtype;
    if (moec_dtype_bytes(to) == 0) return mc_in_refuse(in, MC_E0404, "to is not an element type");
    return mc_in_give(in, mc_type_with_dtype(in->module, mc_in_type(in, 0), to));
}

bool
mc_infer_embed(mc_infer *in)
{
    const mc_type *ids = mc_in_type(in, 0), *table = mc_in_type(in, 1);
    if (!mc_in_want_rank(in, 0, 0, MC_MAX_RANK - 1) || !mc_in_want_rank(in, 1, 2, 2)) return false;
    mc_dim dims[MC_MAX_RANK];
    for (int i = 0; i < ids->rank; i++) dims[i] = ids->dims[i];
    dims[ids->rank] = table->dims[1];
    return mc_in_give_dims(in, MOEC_F32, dims, ids->rank + 1);
}

static bool
check_matrix(mc_infer *in, int w)
{
    const mc_type *x = mc_in_type(in, 0), *t = mc_in_type(in, w);
    if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK) || !mc_in_want_rank(in, w, 2, 2)) return false;
    if (mc_dim_eq(mc_type_last(x), t->dims[1])) return true;
    return mc_in_refuse(in, MC_E0310, "x has %s channels, but the weight takes %s", mc_in_dim_text(in, mc_type_last(x)),
                        mc_in_dim_text(in, t->dims[1]));
}

bool
mc_infer_linear(mc_infer *in)
{
    if (!check_matrix(in, 1)) return false;
    const mc_type *x = mc_in_type(in, 0), *w = mc_in_type(in, 1), *residual = mc_in_type(in, 4);
    const mc_type *y = mc_type_with_last(in->module, x, w->dims[0]);
    if (!mc_in_want_vector(in, 2, w->dims[0]) || !mc_in_want_scale(in, 3, w)) return false;
    if (!mc_in_want_shape(in, 4, y->dims, y->rank)) return false;
    if (residual && residual->dtype != mc_in_to(in, y->dtype)) {
        return mc_in_refuse(in, MC_E0318, "the residual is %s, but the result is %s", moec_dtype_name(residual->dtype),
                            moec_dtype_name(mc_in_to(in, y->dtype)));
    }
    return mc_in_give_to(in, y);
}

bool
mc_infer_head_linear(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0), *w = mc_in_type(in, 1);
    if (!mc_in_want_rank(in, 0, 2, MC_MAX_RANK) || !mc_in_want_rank(in, 1, 2, 2)) return false;
    mc_dim heads = x->dims[x->rank - 2], rows = w->dims[0];
    if (!mc_dim_is_const(heads) || !mc_dim_is_const(rows) || heads.mul < 1 || rows.mul % heads.mul) {
        return mc_in_refuse(in, MC_E0310, "%s rows of the weight do not divide over %s heads", mc_in_dim_text(in, rows),
                            mc_in_dim_text(in, heads));
    }
    if (!mc_in_want_int(in, "begin", 0, rows.mul / heads.mul - 1)) return false;
    if (!mc_in_want_int(in, "end", mc_in_int(in, "begin") + 1, rows.mul / heads.mul)) return false;
    mc_dim width = mc_dim_const(mc_in_int(in, "end") - mc_in_int(in, "begin"));
    bool transposed = mc_attr_at(in->opcode, in->attrs, "transposed", MC_ATTR_BOOL).as.b;
    mc_dim takes = transposed ? width : w->dims[1];
    if (!mc_dim_eq(mc_type_last(x), takes)) {
        return mc_in_refuse(in, MC_E0310, "a head of x has %s channels, but the weight takes %s",
                            mc_in_dim_text(in, mc_type_last(x)), mc_in_dim_text(in, takes));
    }
    if (!mc_in_want_scale(in, 2, w)) return false;
    return mc_in_give_to(in, mc_type_with_last(in->module, x, transposed ? w->dims[1] : width));
}

bool
mc_infer_gated_linear(mc_infer *in)
{
    if (!check_matrix(in, 1) || !mc_in_want_choice(in, "act", mc_in_act_names)) return false;
    const mc_type *x = mc_in_type(in, 0), *gate = mc_in_type(in, 1);
    mc_dim width = gate->dims[0];
    bool pair = mc_in_packed_pair(in, 1, 2);
    if (pair) width = mc_dim_const(width.mul / 2);
    const mc_dim one[] = {width, gate->dims[1]};
    const mc_type *single = mc_type_get(in->module, gate->dtype, one, 2);
    if (!pair && !mc_in_want_shape(in, 2, one, 2)) return false;
    if (!mc_in_want_vector(in, 3, width) || !mc_in_want_vector(in, 4, width)) return false;
    if (!mc_in_want_scale(in, 5, single) || !mc_in_want_scale(in, 6, pair ? single : mc_in_type(in, 2))) return false;
    return mc_in_give_to(in, mc_type_with_last(in->module, x, width));
}

bool
mc_infer_norm(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0);
    if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK) || !mc_in_want_float(in, "eps", 0, true)) return false;
    for (int i = 1; i < in->n_operands; i++) {
        if (!mc_in_want_vector(in, i, mc_type_last(x))) return false;
    }
    if (in->opcode == MC_OP_RMSNORM) {
        static const char *const rounds[] = {"after", "before", NULL};
        if (!mc_in_want_choice(in, "round", rounds)) return false;
    }
    return mc_in_give_to(in, x);
}

/* Elementwise in shape and dtype; the few attributes of such ops are checked here too. */
bool
mc_infer_same(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0);
    switch ((int)in->opcode) {
    case MC_OP_L2NORM:
        if (!mc_in_want_float(in, "eps", 0, true)) return false;
        /* fallthrough */
    case MC_OP_SOFTMAX:
        if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK)) return false;
        break;
    case MC_OP_ROUTE_RENORM:
        if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK) || !mc_in_want_float(in, "eps", 0, true)) return false;
        if (!mc_in_want_float(in, "p", 0, false) || !mc_in_want_float(in, "floor", 0, true)) return false;
        break;
    case MC_OP_SOFTCAP:
        if (!mc_in_want_float(in, "cap", 0, false)) return false;
        break;
    case MC_OP_CLAMP:
        if (!(mc_in_float(in, "lo") <= mc_in_float(in, "hi")))
            return mc_in_refuse(in, MC_E0404, "lo must be at most hi");
        break;
    }
    return mc_in_give(in, x);
}

/* The dtype that holds both exactly: equal ones, or the wider. False for bf16 with f16, where neither does. */
static bool
wider(moec_dtype a, moec_dtype b, moec_dtype *out)
{
    size_t bytes_a = moec_dtype_bytes(a), bytes_b = moec_dtype_bytes(b);
    *out = bytes_a >= bytes_b ? a : b;
    return a == b || bytes_a != bytes_b;
}

bool
mc_infer_broadcast(mc_infer *in)
{
    const mc_type *a = mc_in_type(in, 0), *b = mc_in_type(in, 1);
    moec_dtype dtype;
    if (!wider(a->dtype, b->dtype, &dtype)) {
        return mc_in_refuse(in, MC_E0318, "%s and %s have no common element type; cast one of them",
                            moec_dtype_name(a->dtype), moec_dtype_name(b->dtype));
    }
    int rank = a->rank > b->rank ? a->rank : b->rank;
    mc_dim dims[MC_MAX_RANK];
    const mc_dim one = mc_dim_const(1);
    for (int i = 0; i < rank; i++) {
        int at_a = i - (rank - a->rank), at_b = i - (rank - b->rank);
        mc_dim da = at_a < 0 ? one : a->dims[at_a], db = at_b < 0 ? one : b->dims[at_b];
        if (!mc_dim_eq(da, db) && !mc_dim_eq(da, one) && !mc_dim_eq(db, one)) {
            return mc_in_refuse(in, MC_E0310,
                                "%s and %s do not fit together: axes are aligned at the right, and only 1 stretches",
                                mc_in_shape_text(in, a->dims, a->rank), mc_in_shape_text(in, b->dims, b->rank));
        }
        dims[i] = mc_dim_eq(da, one) ? db : da;
    }
    return mc_in_give_dims(in, dtype, dims, rank);
}
