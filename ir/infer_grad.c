/* Inference: what training adds: routing losses, and the derivatives that autodiff makes. */
#include "ir/infer_impl.h"

#include <string.h>

enum { MAX_EXPERTS = 1 << 20 };

static bool
give_scalar(mc_infer *in)
{
    return mc_in_give_dims(in, MOEC_F32, NULL, 0);
}

/* Operands i and j have one type. */
static bool
want_same(mc_infer *in, int i, int j)
{
    const mc_type *t = mc_in_type(in, j);
    if (!t || !mc_in_want_shape(in, i, t->dims, t->rank)) return !t;
    const mc_type *other = mc_in_type(in, i);
    return !other || other->dtype == t->dtype ||
           mc_in_refuse(in, MC_E0318, "operands of %s and %s", moec_dtype_name(other->dtype),
                        moec_dtype_name(t->dtype));
}

static bool
want_scalar(mc_infer *in, int i)
{
    return mc_in_want_rank(in, i, 0, 0);
}

/* ---- what a step gives ---------------------------------------------------------------------------------------- */

bool
mc_infer_output(mc_infer *in)
{
    if (mc_in_str(in, "name").len == 0) return mc_in_refuse(in, MC_E0404, "name is empty");
    mc_attr sum = mc_attr_at(in->opcode, in->attrs, "sum", MC_ATTR_BOOL);
    if (!sum.as.b || !want_scalar(in, 0)) return !sum.as.b;
    return mc_in_type(in, 0)->dtype == MOEC_F32 || mc_in_refuse(in, MC_E0318, "what is added up must be f32");
}

bool
mc_infer_moe_load(mc_infer *in)
{
    if (!mc_in_want_int(in, "experts", 1, MAX_EXPERTS) || !mc_in_want_choices_of(in, 0, 1, NULL)) return false;
    const mc_dim dims[] = {mc_dim_const(2), mc_dim_const(mc_in_int(in, "experts"))};
    return mc_in_give_dims(in, MOEC_F32, dims, 2);
}

static bool
want_per(mc_infer *in)
{
    static const char *const per_names[] = {"batch", "sequence", NULL};
    return mc_in_want_choice(in, "per", per_names);
}

static bool
check_scores(mc_infer *in, const mc_type *scores, const mc_type *ids)
{
    bool sequence = mc_str_is(mc_in_str(in, "per"), "sequence");
    bool good = scores->rank == ids->rank && scores->rank >= (sequence ? 3 : 1);
    for (int i = 0; good && i < ids->rank - 1; i++) good = mc_dim_eq(scores->dims[i], ids->dims[i]);
    if (good && mc_dim_is_const(mc_type_last(scores)) && mc_dim_is_const(mc_type_last(ids))) return true;
    return mc_in_refuse(in, MC_E0310, "scores %s and ids %s must be %s",
                        mc_in_shape_text(in, scores->dims, scores->rank), mc_in_shape_text(in, ids->dims, ids->rank),
                        sequence ? "[B, S, E] and [B, S, k]" : "[..., E] and [..., k]");
}

bool
mc_infer_moe_balance(mc_infer *in)
{
    return want_per(in) && check_scores(in, mc_in_type(in, 0), mc_in_type(in, 1)) && give_scalar(in);
}

bool
mc_infer_moe_balance_grad(mc_infer *in)
{
    return want_per(in) && want_scalar(in, 1) && check_scores(in, in->results[0], mc_in_type(in, 0));
}

bool
mc_infer_moe_z_loss(mc_infer *in)
{
    return mc_in_want_rank(in, 0, 1, MC_MAX_RANK) && give_scalar(in);
}

bool
mc_infer_moe_z_loss_grad(mc_infer *in)
{
    return mc_in_want_rank(in, 0, 1, MC_MAX_RANK) && want_scalar(in, 1) && mc_in_give(in, mc_in_type(in, 0));
}

/* ---- elementwise and along rows ------------------------------------------------------------------------------- */

bool
mc_infer_same2(mc_infer *in)
{
    return mc_in_want_rank(in, 0, 1, MC_MAX_RANK) && want_same(in, 1, 0) && mc_in_give(in, mc_in_type(in, 0));
}

bool
mc_infer_glu(mc_infer *in)
{
    return mc_in_want_choice(in, "act", mc_in_act_names) && want_same(in, 1, 0) && mc_in_give_to(in, mc_in_type(in, 0));
}

bool
mc_infer_glu_grad(mc_infer *in)
{
    const mc_type *g = mc_in_type(in, 0);
    return mc_in_want_choice(in, "act", mc_in_act_names) && want_same(in, 1, 0) && want_same(in, 2, 0) &&
           mc_in_give_to(in, g) && mc_in_give_to(in, g);
}

bool
mc_infer_moe_glu_grad(mc_infer *in)
{
    const mc_type *g = mc_in_type(in, 0);
    if (!mc_in_want_choice(in, "act", mc_in_act_names) || !mc_in_want_rank(in, 0, 2, 2)) return false;
    if (!want_same(in, 1, 0) || !want_same(in, 2, 0) || !mc_in_want_vector(in, 3, g->dims[0])) return false;
    for (int i = 0; i < 3; i++)
        if (!mc_in_give_to(in, g)) return false;
    return mc_in_give_dims(in, g->dtype, g->dims, 1);
}

bool
mc_infer_unary_grad(mc_infer *in)
{
    mc_opcode of = mc_opcode_find(mc_in_str(in, "of"));
    if (of < MC_OP_NEG || of > MC_OP_SOFTCAP)
        return mc_in_refuse(in, MC_E0404, "'%.*s' is no elementwise op of one operand", MC_FMT(mc_in_str(in, "of")));
    if (of == MC_OP_SOFTCAP && !mc_in_want_float(in, "cap", 0, false)) return false;
    return want_same(in, 1, 0) && mc_in_give(in, mc_in_type(in, 0));
}

bool
mc_infer_norm_grad(mc_infer *in)
{
    static const char *const norms[] = {"rmsnorm", "layernorm", "l2norm", NULL};
    return mc_in_want_choice(in, "of", norms) && mc_in_want_float(in, "eps", 0, true) && mc_infer_same2(in);
}

bool
mc_infer_row_dot(mc_infer *in)
{
    const mc_type *a = mc_in_type(in, 0);
    if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK) || !want_same(in, 1, 0)) return false;
    return mc_in_give_dims(in, a->dtype, a->dims, a->rank - 1);
}

/* ---- shapes --------------------------------------------------------------------------------------------------- */

bool
mc_infer_sum_to(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0), *y = in->results[0];
    bool good = y->rank <= x->rank && y->dtype == x->dtype;
    for (int i = 0; good && i < y->rank; i++) {
        mc_dim to = y->dims[i], from = x->dims[x->rank - y->rank + i];
        good = mc_dim_eq(to, from) || mc_dim_eq(to, mc_dim_const(1));
    }
    return good || mc_in_refuse(in, MC_E0310, "%s does not stretch to %s", mc_in_shape_text(in, y->dims, y->rank),
                                mc_in_shape_text(in, x->dims, x->rank));
}

bool
mc_infer_unslice(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0);
    mc_dim dims[MC_MAX_RANK];
    int axis = mc_in_want_axis(in, mc_in_int(in, "axis"), x->rank);
    if (axis < 0 || !mc_in_want_int(in, "begin", 0, INT32_MAX) || !mc_in_want_int(in, "size", 1, INT32_MAX))
        return false;
    mc_dim n = x->dims[axis];
    int64_t begin = mc_in_int(in, "begin"), size = mc_in_int(in, "size");
    if (!mc_dim_is_const(n) || begin + mc_dim_eval(n, NULL) > size)
        return mc_in_refuse(in, MC_E0312, "%s elements at %lld of %lld", mc_in_dim_text(in, n), (long long)begin,
                            (long long)size);
    memcpy(dims, x->dims, sizeof dims);
    dims[axis] = mc_dim_const(size);
    return mc_in_give_dims(in, x->dtype, dims, x->rank);
}

bool
mc_infer_fill(mc_infer *in)
{
    const mc_type *t = in->results[0];
    return mc_type_is_float(t) || mc_in_refuse(in, MC_E0318, "a fill is of floats");
}

/* ---- routing -------------------------------------------------------------------------------------------------- */

bool
mc_infer_route_scatter(mc_infer *in)
{
    const mc_type *w = mc_in_type(in, 0);
    if (!mc_in_want_int(in, "experts", 1, MAX_EXPERTS) || !mc_in_want_choices_of(in, 0, 1, NULL)) return false;
    return mc_in_give(in, mc_type_with_last(in->module, w, mc_dim_const(mc_in_int(in, "experts"))));
}

bool
mc_infer_route_mask(mc_infer *in)
{
    return mc_in_want_int(in, "from", 0, MAX_EXPERTS) && mc_in_want_choices_of(in, 0, 1, NULL) &&
           mc_in_give(in, mc_in_type(in, 0));
}

/* ---- matmuls -------------------------------------------------------------------------------------------------- */

bool
mc_infer_linear_dx(mc_infer *in)
{
    const mc_type *dy = mc_in_type(in, 0), *w = mc_in_type(in, 1);
    if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK) || !mc_in_want_rank(in, 1, 2, 2)) return false;
    if (!mc_dim_eq(mc_type_last(dy), w->dims[0]))
        return mc_in_refuse(in, MC_E0310, "dy has %s channels, w %s rows", mc_in_dim_text(in, mc_type_last(dy)),
                            mc_in_dim_text(in, w->dims[0]));
    const mc_type *dx = mc_type_with_last(in->module, dy, w->dims[1]);
    return mc_in_want_shape(in, 2, dx->dims, dx->rank) && mc_in_give_to(in, dx);
}

bool
mc_infer_linear_dw(mc_infer *in)
{
    const mc_type *dy = mc_in_type(in, 0), *x = mc_in_type(in, 1);
    mc_dim want[MC_MAX_RANK];
    if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK) || !mc_in_want_rank(in, 1, 1, MC_MAX_RANK)) return false;
    memcpy(want, dy->dims, sizeof want);
    want[dy->rank - 1] = mc_type_last(x);
    if (!mc_in_want_shape(in, 1, want, dy->rank)) return false;
    const mc_dim dims[] = {mc_type_last(dy), mc_type_last(x)};
    return mc_in_give_dims(in, MOEC_F32, dims, 2);
}

/* The rows [A] of a grouped op: those of operand x [A, d], or of `rows` when there are some. */
static bool
row_count(mc_infer *in, int x_at, int rows_at, mc_dim *out)
{
    const mc_type *x = mc_in_type(in, x_at), *rows = mc_in_type(in, rows_at);
    if (!mc_in_want_rank(in, rows_at, 1, 1) || !mc_in_want_rank(in, x_at, rows ? 1 : 2, rows ? MC_MAX_RANK : 2))
        return false;
    *out = rows ? rows->dims[0] : x->dims[0];
    return true;
}

bool
mc_infer_grouped_dx(mc_infer *in)
{
    const mc_type *dy = mc_in_type(in, 0), *w = mc_in_type(in, 1);
    mc_dim a;
    if (!row_count(in, 0, 3, &a) || !mc_in_want_rank(in, 1, 3, 3)) return false;
    const mc_dim want[] = {w->dims[0], mc_type_last(dy), w->dims[2]};
    if (!mc_in_want_shape(in, 1, want, 3)) return false;
    if (!mc_in_want_vector(in, 2, mc_dim_const(mc_dim_eval(w->dims[0], NULL) + 1))) return false;
    const mc_dim dims[] = {a, w->dims[2]};
    return mc_in_want_shape(in, 4, dims, 2) && mc_in_give_to(in, mc_type_get(in->module, dy->dtype, dims, 2));
}

bool
mc_infer_grouped_dw(mc_infer *in)
{
    const mc_type *dy = mc_in_type(in, 0), *x = mc_in_type(in, 1), *offsets = mc_in_type(in, 2);
    mc_dim a, b;
    if (!row_count(in, 0, 3, &a) || !row_count(in, 1, 4, &b) || !mc_in_want_rank(in, 2, 1, 1)) return false;
    if (!mc_dim_eq(a, b))
        return mc_in_refuse(in, MC_E0310, "dy has %s rows, x %s", mc_in_dim_text(in, a), mc_in_dim_text(in, b));
    if (!mc_in_want_vector(in, 5, a)) return false;
    int64_t n = mc_dim_is_const(offsets->dims[0]) ? mc_dim_eval(offsets->dims[0], NULL) : 0;
    if (n < 2) return mc_in_refuse(in, MC_E0310, "offsets are [E + 1] for a constant E of at least 1");
    const mc_dim dims[] = {mc_dim_const(n - 1), mc_type_last(dy), mc_type_last(x)};
    return mc_in_give_dims(in, MOEC_F32, dims, 3);
}

bool
mc_infer_embed_dw(mc_infer *in)
{
    const mc_type *ids = mc_in_type(in, 0), *table = in->results[0];
    mc_dim want[MC_MAX_RANK];
    if (!mc_in_want_rank(in, 0, 0, MC_MAX_RANK - 1)) return false;
    if (table->rank != 2 || !mc_type_is_float(table)) return mc_in_refuse(in, MC_E0310, "the result is a table [V, D]");
    for (int i = 0; i < ids->rank; i++) want[i] = ids->dims[i];
    want[ids->rank] = table->dims[1];
    return mc_in_want_shape(in, 1, want, ids->rank + 1);
}

bool
mc_infer_sdpa_grad(mc_infer *in)
{
    const mc_type *q = mc_in_type(in, 0), *k = mc_in_type(in, 1), *v = mc_in_type(in, 2);
    for (int i = 0; i < 4; i++)
        if (!mc_in_want_rank(in, i, 4, 4)) return false;
    const mc_dim keys[] = {q->dims[0], k->dims[1], k->dims[2], q->dims[3]};
    const mc_dim values[] = {q->dims[0], k->dims[1], k->dims[2], v->dims[3]};
    const mc_dim out[] = {q->dims[0], q->dims[1], q->dims[2], v->dims[3]};
    if (!mc_in_want_shape(in, 1, keys, 4) || !mc_in_want_shape(in, 2, values, 4) || !mc_in_want_shape(in, 3, out, 4))
        return false;
    bool grouped = mc_dim_is_const(q->dims[2]) && mc_dim_is_const(k->dims[2]) &&
                   mc_dim_eval(q->dims[2], NULL) % mc_dim_eval(k->dims[2], NULL) == 0;
    if (!grouped) return mc_in_refuse(in, MC_E0310, "the query heads do not divide over the key heads");
    if (!mc_in_want_int(in, "window", 0, INT32_MAX) || !mc_in_want_int(in, "chunk", 0, INT32_MAX)) return false;
    if (!mc_in_want_float(in, "softcap", 0, true)) return false;
    return mc_in_give(in, q) && mc_in_give(in, k) && mc_in_give(in, v);
}

bool
mc_infer_accumulate(mc_infer *in)
{
    if (mc_in_str(in, "path").len == 0) return mc_in_refuse(in, MC_E0404, "path is empty");
    return want_same(in, 1, 0);
}
