/* Ops that only move or convert elements, and the small ones with a number or two. */
#include "frontend/builtins.h"

#include <math.h>

static const mc_call_param *
list_param(mc_elab *e, mc_call *c, const char *name)
{
    if (!mc_param_needed(e, c, name)) return NULL;
    const mc_call_param *p = mc_param(c, name);
    if (p->value.kind == MC_VAL_LIST && p->value.as.list.n > 0) return p;
    mc_elab_error(e, p->span, MC_E0306, "%.*s: '%s' is a list, as in [1, 2], this is %s", MC_FMT(c->name), name,
                  mc_val_kind_text(p->value));
    return NULL;
}

static mc_str
dims_text(mc_elab *e, const mc_dim *dims, int n)
{
    return mc_shape_text(e, mc_type_get(e->module, MOEC_F32, dims, n));
}

/* The first axis where the shapes part company, for the message: "4096 is not 32 * 100". */
static mc_val
wrong_size(mc_elab *e, mc_call *c, mc_value *x, const mc_dim *dims, int rank)
{
    int same = 0, left = x->type->rank;
    while (same < rank && same < left && mc_dim_eq(dims[same], x->type->dims[same])) same++;
    mc_buf why = {0};
    for (int i = same; i < left; i++) {
        if (i > same) mc_buf_puts(&why, " * ");
        mc_dim_print(e->module, x->type->dims[i], &why);
    }
    if (same == left) mc_buf_puts(&why, "1");
    mc_buf_puts(&why, " is not ");
    for (int i = same; i < rank; i++) {
        if (i > same) mc_buf_puts(&why, " * ");
        mc_dim_print(e->module, dims[i], &why);
    }
    if (same == rank) mc_buf_puts(&why, "1");
    mc_elab_error(e, c->span, MC_E0313, "reshape %.*s to %.*s: %.*s", MC_FMT(mc_shape_text(e, x->type)),
                  MC_FMT(dims_text(e, dims, rank)), MC_FMT(mc_buf_view(&why)));
    mc_buf_fini(&why);
    return mc_val_poison();
}

/* Axes that occur on both sides are left out, so that products stay within what a dim can say. */
static bool
same_size(const mc_type *t, const mc_dim *dims, int rank)
{
    bool taken[MC_MAX_RANK] = {false};
    mc_dim left = mc_dim_const(1), right = mc_dim_const(1);
    for (int i = 0; i < t->rank; i++) {
        int j = 0;
        while (j < rank && (taken[j] || !mc_dim_eq(dims[j], t->dims[i]))) j++;
        if (j < rank) {
            taken[j] = true;
        } else if (!mc_dim_mul(left, t->dims[i], &left)) {
            return false;
        }
    }
    for (int j = 0; j < rank; j++) {
        if (!taken[j] && !mc_dim_mul(right, dims[j], &right)) return false;
    }
    return mc_dim_eq(left, right);
}

mc_val
mc_op_reshape(mc_elab *e, mc_call *c)
{
    mc_dim dims[MC_MAX_RANK];
    mc_value *x = mc_call_tensor(e, c, 0);
    const mc_call_param *shape = x ? list_param(e, c, "shape") : NULL;
    if (!shape) return mc_val_poison();
    size_t n = shape->value.as.list.n;
    if (n > MC_MAX_RANK) return mc_elab_error(e, shape->span, MC_E0319, "more than %d axes", MC_MAX_RANK);
    for (size_t i = 0; i < n; i++) {
        mc_val v = shape->value.as.list.items[i];
        if (!mc_shape_dim(e, v, v.span.file ? v.span : shape->span, &dims[i])) return mc_val_poison();
    }
    if (!same_size(x->type, dims, (int)n)) return wrong_size(e, c, x, dims, (int)n);
    e->frame->builder.span = mc_elab_user_span(e, c->span);
    return mc_val_tensor(mc_build_reshape(&e->frame->builder, x, dims, (int)n), c->span);
}

static bool
read_sizes(mc_elab *e, const mc_call_param *p, int64_t *sizes, int64_t *sum)
{
    *sum = 0;
    for (size_t i = 0; i < p->value.as.list.n; i++) {
        mc_val v = p->value.as.list.items[i];
        if (v.kind != MC_VAL_INT || v.as.i < 1 || v.as.i > MC_MAX_DIM) {
            mc_elab_error(e, p->span, v.kind == MC_VAL_DIM ? MC_E0309 : MC_E0306,
                          "split sizes are whole numbers of at least 1, '%.*s' is not",
                          MC_FMT(mc_val_str(e->module, v, e->arena)));
            return false;
        }
        sizes[i] = v.as.i;
        *sum += v.as.i;
    }
    return true;
}

static mc_val
tuple_of(mc_elab *e, mc_op *op, mc_span span)
{
    mc_val *items = MC_NEW_N(e->arena, mc_val, op->n_results);
    for (int i = 0; i < op->n_results; i++) items[i] = mc_val_tensor(mc_result(op, i), span);
    if (op->n_results == 1) return items[0];
    mc_val v = {.kind = MC_VAL_TUPLE, .span = span};
    v.as.list = (mc_val_list){items, op->n_results, op->n_results};
    return v;
}

mc_val
mc_op_split(mc_elab *e, mc_call *c)
{
    int64_t width, sum, sizes[MC_MAX_PARTS];
    mc_value *x = mc_call_rows(e, c, &width);
    const mc_call_param *p = x ? list_param(e, c, "sizes") : NULL;
    if (!p) return mc_val_poison();
    size_t n = p->value.as.list.n;
    if (n > MC_MAX_PARTS) return mc_elab_error(e, p->span, MC_E0319, "more than %d parts", MC_MAX_PARTS);
    if (!read_sizes(e, p, sizes, &sum)) return mc_val_poison();
    if (sum != width) {
        mc_elab_error(e, p->span, MC_E0312, "split sizes %.*s add up to %lld, the last axis is %lld",
                      MC_FMT(mc_val_str(e->module, p->value, e->arena)), (long long)sum, (long long)width);
        if (c->tensors[0].span.file && c->tensors[0].span.begin != c->tensor_spans[0].begin)
            mc_elab_note(e, c->tensors[0].span, "its shape %.*s comes from here", MC_FMT(mc_shape_text(e, x->type)));
        return mc_val_poison();
    }
    mc_named_attr attr = {"sizes", {.kind = MC_ATTR_INTS}};
    attr.attr.as.ints.items = sizes;
    attr.attr.as.ints.n = n;
    e->frame->builder.span = mc_elab_user_span(e, c->span);
    mc_op *op = mc_build(&e->frame->builder, MC_OP_SPLIT, &x, 1, &attr, 1);
    return op ? tuple_of(e, op, c->span) : mc_val_poison();
}

mc_val
mc_op_concat(mc_elab *e, mc_call *c)
{
    mc_value **parts = MC_NEW_N(e->arena, mc_value *, c->n_tensors);
    int64_t axis = -1;
    for (size_t i = 0; i < c->n_tensors; i++) {
        parts[i] = mc_call_tensor(e, c, i);
        if (!parts[i]) return mc_val_poison();
    }
    int rank = parts[0]->type->rank;
    if (!mc_param_int(e, c, "axis", -rank, rank - 1, &axis)) return mc_val_poison();
    if (rank == 0) return mc_elab_error(e, c->span, MC_E0310, "numbers cannot be joined");
    int at = (int)(axis < 0 ? axis + rank : axis);
    for (size_t i = 1; i < c->n_tensors; i++) {
        const mc_type *t = parts[i]->type;
        bool fits = t->rank == rank;
        for (int a = 0; fits && a < rank; a++) fits = a == at || mc_dim_eq(t->dims[a], parts[0]->type->dims[a]);
        if (fits) continue;
        return mc_elab_error(e, c->tensor_spans[i], MC_E0310, "cannot join %.*s to %.*s along axis %d",
                             MC_FMT(mc_shape_text(e, t)), MC_FMT(mc_shape_text(e, parts[0]->type)), at);
    }
    const mc_named_attr attrs[] = {MC_A_INT("axis", axis)};
    return mc_emit(e, c->span, MC_OP_CONCAT, parts, (int)c->n_tensors, attrs, 1);
}

static mc_val
copies(mc_elab *e, mc_call *c, mc_opcode opcode, int64_t axis)
{
    int64_t n = 0;
    mc_value *x = mc_call_tensor(e, c, 0);
    if (!x || !mc_param_needed(e, c, "n") || !mc_param_int(e, c, "n", 1, 1 << 24, &n)) return mc_val_poison();
    int rank = x->type->rank;
    if (!mc_param_int(e, c, "axis", -rank, rank - 1, &axis)) return mc_val_poison();
    if (axis < -rank || axis >= rank)
        return mc_elab_error(e, c->tensor_spans[0], MC_E0310, "%.*s works on axis %lld, %.*s has none", MC_FMT(c->name),
                             (long long)axis, MC_FMT(mc_shape_text(e, x->type)));
    mc_dim d = x->type->dims[axis < 0 ? axis + rank : axis];
    if (opcode == MC_OP_EXPAND && !mc_dim_eq(d, mc_dim_const(1)))
        return mc_elab_error(e, c->tensor_spans[0], MC_E0310,
                             "expand repeats an axis of size 1, axis %lld of %.*s is not", (long long)axis,
                             MC_FMT(mc_shape_text(e, x->type)));
    const mc_named_attr attrs[] = {MC_A_INT("n", n), MC_A_INT("axis", axis)};
    return mc_emit(e, c->span, opcode, &x, 1, attrs, 2);
}

mc_val
mc_op_expand(mc_elab *e, mc_call *c)
{
    return copies(e, c, MC_OP_EXPAND, -2);
}

mc_val
mc_op_tile(mc_elab *e, mc_call *c)
{
    return copies(e, c, MC_OP_TILE, 2);
}

mc_val
mc_op_transpose(mc_elab *e, mc_call *c)
{
    int64_t perm[MC_MAX_RANK];
    bool seen[MC_MAX_RANK] = {false};
    mc_value *x = mc_call_tensor(e, c, 0);
    const mc_call_param *p = x ? list_param(e, c, "perm") : NULL;
    if (!p) return mc_val_poison();
    size_t n = p->value.as.list.n;
    bool good = n == x->type->rank;
    for (size_t i = 0; good && i < n; i++) {
        mc_val v = p->value.as.list.items[i];
        good = v.kind == MC_VAL_INT && v.as.i >= 0 && v.as.i < (int64_t)n && !seen[v.as.i];
        if (!good) break;
        seen[v.as.i] = true;
        perm[i] = v.as.i;
    }
    if (!good)
        return mc_elab_error(e, p->span, MC_E0306, "transpose names each axis of %.*s once, as in [0, 2, 1]",
                             MC_FMT(mc_shape_text(e, x->type)));
    mc_named_attr attr = {"perm", {.kind = MC_ATTR_INTS}};
    attr.attr.as.ints.items = perm;
    attr.attr.as.ints.n = n;
    return mc_emit(e, c->span, MC_OP_TRANSPOSE, &x, 1, &attr, 1);
}

/* A cast to a narrow float rounds; activations are f32 again behind it. */
mc_val
mc_op_cast(mc_elab *e, mc_call *c)
{
    moec_dtype to = MOEC_DTYPE_NONE;
    mc_value *x = mc_call_tensor(e, c, 0);
    if (!x || !mc_param_needed(e, c, "dtype") || !mc_param_dtype(e, c, "dtype", &to)) return mc_val_poison();
    e->frame->builder.span = mc_elab_user_span(e, c->span);
    mc_value *y = mc_tensor_cast(e, x, to);
    if (y && (to == MOEC_BF16 || to == MOEC_F16)) y = mc_tensor_cast(e, y, MOEC_F32);
    return mc_val_tensor(y, c->span);
}

mc_val
mc_op_softmax(mc_elab *e, mc_call *c)
{
    int64_t width;
    mc_value *x = mc_call_rows(e, c, &width);
    return x ? mc_emit(e, c->span, MC_OP_SOFTMAX, &x, 1, NULL, 0) : mc_val_poison();
}

mc_val
mc_op_clamp(mc_elab *e, mc_call *c)
{
    double lo = -HUGE_VAL, hi = HUGE_VAL;
    mc_value *x = mc_call_tensor(e, c, 0);
    if (!x || !mc_param_real(e, c, "lo", &lo) || !mc_param_real(e, c, "hi", &hi)) return mc_val_poison();
    if (!(lo <= hi)) return mc_elab_error(e, c->span, MC_E0306, "clamp: lo = %g is above hi = %g", lo, hi);
    const mc_named_attr attrs[] = {MC_A_FLOAT("lo", lo), MC_A_FLOAT("hi", hi)};
    return mc_emit(e, c->span, MC_OP_CLAMP, &x, 1, attrs, 2);
}

mc_val
mc_op_softcap(mc_elab *e, mc_call *c)
{
    double cap = 0;
    mc_value *x = mc_call_tensor(e, c, 0);
    if (!x || !mc_param_needed(e, c, "cap") || !mc_param_real(e, c, "cap", &cap)) return mc_val_poison();
    if (!(cap > 0)) return mc_elab_error(e, mc_param(c, "cap")->span, MC_E0306, "softcap: 'cap' must be above 0");
    const mc_named_attr attrs[] = {MC_A_FLOAT("cap", cap)};
    return mc_emit(e, c->span, MC_OP_SOFTCAP, &x, 1, attrs, 1);
}
