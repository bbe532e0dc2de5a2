/* Shape ops move elements; they never compute. Each says where an element of the result comes from. */
#include "codegen/ref/num.h"

#include <string.h>

static void
move(mc_ref_tensor *y, int64_t to, const mc_ref_tensor *x, int64_t from)
{
    size_t item = moec_dtype_bytes(y->dtype);
    memcpy((char *)y->data + (size_t)to * item, (const char *)x->data + (size_t)from * item, item);
}

static int64_t
inner_size(const mc_ref_tensor *t, int axis)
{
    int64_t n = 1;
    for (int d = axis + 1; d < t->rank; d++) n *= t->dims[d];
    return n;
}

/* Attribute `axis`, which may count from the end, as an axis of t. */
static int
axis_of(const mc_ref_op *k, const mc_ref_tensor *t)
{
    int64_t axis = mc_attr_int(k->op, "axis");
    return (int)(axis < 0 ? axis + t->rank : axis);
}

bool
mc_ref_RESHAPE(mc_ref_op *k)
{
    if (k->out[0].n != k->in[0]->n)
        return mc_ref_fail(k, MC_E0313, "%lld elements cannot become %lld", (long long)k->in[0]->n,
                           (long long)k->out[0].n);
    for (int64_t i = 0; i < k->out[0].n; i++) move(&k->out[0], i, k->in[0], i);
    return true;
}

bool
mc_ref_SPLIT(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0];
    int64_t width = mc_ref_last(x), begin = 0;
    for (int p = 0; p < k->op->n_results; p++) {
        mc_ref_tensor *y = &k->out[p];
        int64_t n = mc_ref_last(y);
        for (int64_t i = 0; i < y->n; i++) move(y, i, x, i / n * width + begin + i % n);
        begin += n;
    }
    return true;
}

bool
mc_ref_CONCAT(mc_ref_op *k)
{
    mc_ref_tensor *y = &k->out[0];
    int axis = axis_of(k, y);
    int64_t inner = inner_size(y, axis), begin = 0;
    for (int p = 0; p < k->n_in; p++) {
        const mc_ref_tensor *x = k->in[p];
        int64_t block = x->dims[axis] * inner, all = y->dims[axis] * inner;
        for (int64_t i = 0; i < x->n; i++) move(y, i / block * all + begin + i % block, x, i);
        begin += block;
    }
    return true;
}

bool
mc_ref_SLICE(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0];
    int axis = axis_of(k, x);
    int64_t inner = inner_size(x, axis), block = k->out[0].dims[axis] * inner, all = x->dims[axis] * inner;
    int64_t begin = mc_attr_int(k->op, "begin");
    if (begin < 0) begin += x->dims[axis];
    for (int64_t i = 0; i < k->out[0].n; i++) move(&k->out[0], i, x, i / block * all + begin * inner + i % block);
    return true;
}

bool
mc_ref_UNSLICE(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0];
    int axis = axis_of(k, x);
    int64_t inner = inner_size(x, axis), block = x->dims[axis] * inner, all = k->out[0].dims[axis] * inner;
    int64_t begin = mc_attr_int(k->op, "begin");
    for (int64_t i = 0; i < x->n; i++) move(&k->out[0], i / block * all + begin * inner + i % block, x, i);
    return true;
}

/* y's position j on the axis is x's j mod size: both ops are this, expand with a size of 1. */
static bool
repeat_axis(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0];
    mc_ref_tensor *y = &k->out[0];
    int axis = axis_of(k, x);
    int64_t inner = inner_size(x, axis), size = x->dims[axis], n = y->dims[axis];
    for (int64_t i = 0; i < y->n; i++) {
        int64_t outer = i / inner / n, j = i / inner % n;
        move(y, i, x, (outer * size + j % size) * inner + i % inner);
    }
    return true;
}

bool
mc_ref_EXPAND(mc_ref_op *k)
{
    return repeat_axis(k);
}

bool
mc_ref_TILE(mc_ref_op *k)
{
    return repeat_axis(k);
}

bool
mc_ref_TRANSPOSE(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0];
    mc_ref_tensor *y = &k->out[0];
    const int64_t *perm = mc_attr_get(k->op, "perm")->as.ints.items;
    int64_t stride[MC_MAX_RANK];
    for (int d = 0; d < x->rank; d++) stride[d] = inner_size(x, d);
    for (int64_t i = 0; i < y->n; i++) {
        int64_t rest = i, from = 0;
        for (int d = y->rank - 1; d >= 0; d--) {
            from += rest % y->dims[d] * stride[perm[d]];
            rest /= y->dims[d];
        }
        move(y, i, x, from);
    }
    return true;
}
