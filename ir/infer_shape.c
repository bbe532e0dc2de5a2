/* Inference: ops that only move elements. */
#include "ir/infer_impl.h"

#include <string.h>

/* The axes of `from` without those that `other` has too: what is left must have equal products. Cancelling first
 * keeps products within the normal form of a dim. */
static int
without_common(const mc_type *from, const mc_type *other, mc_dim *out)
{
    bool taken[MC_MAX_RANK] = {false};
    int n = 0;
    for (int i = 0; i < from->rank; i++) {
        int j = 0;
        while (j < other->rank && (taken[j] || !mc_dim_eq(from->dims[i], other->dims[j]))) j++;
        if (j < other->rank) {
            taken[j] = true;
        } else {
            out[n++] = from->dims[i];
        }
    }
    return n;
}

bool
mc_infer_reshape(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0), *y = in->results[0];
    if (x->dtype != y->dtype) {
        return mc_in_refuse(in, MC_E0318, "a reshape keeps the element type: %s to %s", moec_dtype_name(x->dtype),
                            moec_dtype_name(y->dtype));
    }
    mc_dim from[MC_MAX_RANK], to[MC_MAX_RANK], n_from, n_to;
    int rank_from = without_common(x, y, from), rank_to = without_common(y, x, to);
    const char *shape_x = mc_in_shape_text(in, x->dims, x->rank), *shape_y = mc_in_shape_text(in, y->dims, y->rank);
    if (!mc_dims_product(from, rank_from, &n_from) || !mc_dims_product(to, rank_to, &n_to)) {
        return mc_in_refuse(in, MC_E0314, "the sizes of %s and %s cannot be compared", shape_x, shape_y);
    }
    if (!mc_dim_eq(n_from, n_to)) {
        return mc_in_refuse(in, MC_E0313, "%s has not as many elements as %s", shape_x, shape_y);
    }
    return true;
}

bool
mc_infer_split(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0);
    const mc_attr sizes = mc_attr_at(in->opcode, in->attrs, "sizes", MC_ATTR_INTS);
    if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK)) return false;
    mc_dim last = mc_type_last(x);
    if (!mc_dim_is_const(last))
        return mc_in_refuse(in, MC_E0312, "the last axis, %s, is not constant", mc_in_dim_text(in, last));
    size_t n = sizes.as.ints.n;
    if (n < 1 || n > MC_MAX_RESULTS) {
        return mc_in_refuse(in, MC_E0312, "%zu parts; there must be 1 to %d", n, MC_MAX_RESULTS);
    }
    int64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        int64_t size = sizes.as.ints.items[i];
        if (size < 1) return mc_in_refuse(in, MC_E0312, "a part of size %lld", (long long)size);
        if (__builtin_add_overflow(sum, size, &sum)) return mc_in_refuse(in, MC_E0312, "the sizes are too large");
    }
    if (sum != last.mul) {
        return mc_in_refuse(in, MC_E0312, "the sizes add up to %lld, but the last axis has %lld", (long long)sum,
                            (long long)last.mul);
    }
    for (size_t i = 0; i < n; i++) {
        mc_in_give(in, mc_type_with_last(in->module, x, mc_dim_const(sizes.as.ints.items[i])));
    }
    return true;
}

static bool
dim_add(mc_dim a, mc_dim b, mc_dim *out)
{
    if (a.n_syms == 0 && b.n_syms > 0) {
        mc_dim swap = a;
        a = b;
        b = swap;
    }
    *out = a;
    if (b.n_syms == 0) {
        int64_t *sum = a.n_syms ? &out->add : &out->mul;
        return !__builtin_add_overflow(*sum, b.mul, sum);
    }
    bool same = a.n_syms == b.n_syms && memcmp(a.syms, b.syms, sizeof a.syms) == 0;
    return same && !__builtin_add_overflow(a.mul, b.mul, &out->mul) && !__builtin_add_overflow(a.add, b.add, &out->add);
}

bool
mc_infer_concat(mc_infer *in)
{
    if (in->n_operands < 1) return mc_in_refuse(in, MC_E0403, "there is nothing to join");
    const mc_type *first = mc_in_type(in, 0);
    int axis = mc_in_want_axis(in, mc_in_int(in, "axis"), first->rank);
    if (axis < 0) return false;
    mc_dim dims[MC_MAX_RANK];
    memcpy(dims, first->dims, sizeof dims);
    for (int i = 1; i < in->n_operands; i++) {
        const mc_type *t = mc_in_type(in, i);
        if (t->dtype != first->dtype) {
            return mc_in_refuse(in, MC_E0318, "part %d is %s, but the first is %s", i + 1, moec_dtype_name(t->dtype),
                                moec_dtype_name(first->dtype));
        }
        bool fits = t->rank == first->rank;
        for (int a = 0; fits && a < t->rank; a++) fits = a == axis || mc_dim_eq(t->dims[a], first->dims[a]);
        if (!fits) {
            return mc_in_refuse(in, MC_E0310, "part %d, %s, differs from the first, %s, in another axis than %d", i + 1,
                                mc_in_shape_text(in, t->dims, t->rank), mc_in_shape_text(in, first->dims, first->rank),
                                axis);
        }
        if (!dim_add(dims[axis], t->dims[axis], &dims[axis])) {
            return mc_in_refuse(in, MC_E0314, "the joined size %s plus %s is not a product of symbols plus a number",
                                mc_in_dim_text(in, dims[axis]), mc_in_dim_text(in, t->dims[axis]));
        }
    }
    return mc_in_give_dims(in, first->dtype, dims, first->rank);
}

bool
mc_infer_slice(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0);
    int axis = mc_in_want_axis(in, mc_in_int(in, "axis"), x->rank);
    if (axis < 0) return false;
    int64_t begin = mc_in_int(in, "begin"), end = mc_in_int(in, "end");
    if (!mc_dim_is_const(x->dims[axis])) {
        return mc_in_refuse(in, MC_E0310, "axis %d, %s, is not constant", axis, mc_in_dim_text(in, x->dims[axis]));
    }
    if (begin < 0 || begin >= end || end > x->dims[axis].mul) {
        return mc_in_refuse(in, MC_E0310, "%lld..%lld is not a range of 0..%lld", (long long)begin, (long long)end,
                            (long long)x->dims[axis].mul);
    }
    mc_dim dims[MC_MAX_RANK];
    memcpy(dims, x->dims, sizeof dims);
    dims[axis] = mc_dim_const(end - begin);
    return mc_in_give_dims(in, x->dtype, dims, x->rank);
}

static bool
repeat(mc_infer *in, bool only_one)
{
    const mc_type *x = mc_in_type(in, 0);
    int axis = mc_in_want_axis(in, mc_in_int(in, "axis"), x->rank);
    if (axis < 0 || !mc_in_want_int(in, "n", 1, INT32_MAX)) return false;
    mc_dim dims[MC_MAX_RANK];
    memcpy(dims, x->dims, sizeof dims);
    if (only_one && !mc_dim_eq(dims[axis], mc_dim_const(1))) {
        return mc_in_refuse(in, MC_E0310, "axis %d has %s elements; only an axis of 1 can be expanded", axis,
                            mc_in_dim_text(in, dims[axis]));
    }
    if (!mc_dim_mul(dims[axis], mc_dim_const(mc_in_int(in, "n")), &dims[axis])) {
        return mc_in_refuse(in, MC_E0319, "axis %d becomes too large", axis);
    }
    return mc_in_give_dims(in, x->dtype, dims, x->rank);
}

bool
mc_infer_expand(mc_infer *in)
{
    return repeat(in, true);
}

bool
mc_infer_tile(mc_infer *in)
{
    return repeat(in, false);
}

bool
mc_infer_transpose(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0);
    const mc_attr perm = mc_attr_at(in->opcode, in->attrs, "perm", MC_ATTR_INTS);
    bool seen[MC_MAX_RANK] = {false};
    bool good = perm.as.ints.n == x->rank;
    mc_dim dims[MC_MAX_RANK];
    for (int i = 0; good && i < x->rank; i++) {
        int64_t from = perm.as.ints.items[i];
        good = from >= 0 && from < x->rank && !seen[from];
        if (!good) break;
        seen[from] = true;
        dims[i] = x->dims[from];
    }
    if (!good) return mc_in_refuse(in, MC_E0404, "perm must name each of the %d axes once", x->rank);
    return mc_in_give_dims(in, x->dtype, dims, x->rank);
}
