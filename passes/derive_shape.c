/* Derivatives: ops that move elements, each the reverse move. */
#include "passes/derive.h"

#include <string.h>

bool
mc_derive_reshape(mc_derive *d)
{
    return mc_d_give(d, 0, mc_d_reshape(d, mc_d_of(d, 0), mc_operand(d->op, 0)->type));
}

bool
mc_derive_split(mc_derive *d)
{
    mc_value **parts = MC_NEW_N(d->b.func->module->arena, mc_value *, d->op->n_results);
    for (int i = 0; i < d->op->n_results; i++) {
        parts[i] = mc_d_of_or_zero(d, i);
        if (!parts[i]) return false;
    }
    return mc_d_give(d, 0, mc_build1(&d->b, MC_OP_CONCAT, parts, d->op->n_results, NULL, 0));
}

bool
mc_derive_concat(mc_derive *d)
{
    int64_t axis = mc_attr_int(d->op, "axis"), begin = 0;
    int rank = mc_result(d->op, 0)->type->rank;
    for (int i = 0; i < d->op->n_operands; i++) {
        mc_dim n = mc_operand(d->op, i)->type->dims[axis < 0 ? axis + rank : axis];
        if (!mc_dim_is_const(n)) return mc_d_refuse(d, "along a run-time dimension");
        int64_t end = begin + mc_dim_eval(n, NULL);
        const mc_named_attr attrs[] = {MC_A_INT("axis", axis), MC_A_INT("begin", begin), MC_A_INT("end", end)};
        mc_value *dy = mc_d_of(d, 0);
        if (mc_d_wants(d, i) && !mc_d_give(d, i, mc_build1(&d->b, MC_OP_SLICE, &dy, 1, attrs, 3))) return false;
        begin = end;
    }
    return true;
}

bool
mc_derive_slice(mc_derive *d)
{
    const mc_type *x = mc_operand(d->op, 0)->type;
    int64_t axis = mc_attr_int(d->op, "axis");
    mc_dim size = x->dims[axis < 0 ? axis + x->rank : axis];
    const mc_named_attr attrs[] = {MC_A_INT("axis", axis), MC_A_INT("begin", mc_attr_int(d->op, "begin")),
                                   MC_A_INT("size", mc_dim_eval(size, NULL))};
    mc_value *dy = mc_d_of(d, 0);
    return mc_d_give(d, 0, mc_build1(&d->b, MC_OP_UNSLICE, &dy, 1, attrs, 3));
}

bool
mc_derive_expand(mc_derive *d)
{
    return mc_d_give(d, 0, mc_d_of(d, 0));
}

/* y [.., n * size, ..] is read as [.., n, size, ..] and summed over n. */
bool
mc_derive_tile(mc_derive *d)
{
    const mc_type *x = mc_operand(d->op, 0)->type;
    int axis = (int)mc_attr_int(d->op, "axis");
    if (axis < 0) axis += x->rank;
    if (x->rank == MC_MAX_RANK) return mc_d_refuse(d, "of a tensor with so many axes");
    mc_dim dims[MC_MAX_RANK];
    for (int i = 0; i < axis; i++) dims[i] = x->dims[i];
    for (int i = axis; i < x->rank; i++) dims[i + 1] = x->dims[i];
    dims[axis] = mc_dim_const(mc_attr_int(d->op, "n"));
    mc_module *m = d->b.func->module;
    mc_value *copies = mc_d_reshape(d, mc_d_of(d, 0), mc_type_get(m, x->dtype, dims, x->rank + 1));
    dims[axis] = mc_dim_const(1);
    mc_value *sum = copies ? mc_d_sum_to(d, copies, mc_type_get(m, x->dtype, dims, x->rank + 1)) : NULL;
    return sum && mc_d_give(d, 0, mc_d_reshape(d, sum, x));
}

bool
mc_derive_transpose(mc_derive *d)
{
    const mc_attr *perm = mc_attr_get(d->op, "perm");
    int64_t back[MC_MAX_RANK];
    for (size_t i = 0; i < perm->as.ints.n; i++) back[perm->as.ints.items[i]] = (int64_t)i;
    mc_named_attr attr = {"perm", {.kind = MC_ATTR_INTS, .as.ints = {back, perm->as.ints.n}}};
    mc_value *dy = mc_d_of(d, 0);
    return mc_d_give(d, 0, mc_build1(&d->b, MC_OP_TRANSPOSE, &dy, 1, &attr, 1));
}
