/* Inference: routing. The expert axis is always the last one. */
#include "ir/infer_impl.h"

#include <string.h>

/* The number of experts in operand i's last axis; 0 and a refusal when it is not constant. */
static int64_t
experts_of(mc_infer *in, int i)
{
    if (!mc_in_want_rank(in, i, 1, MC_MAX_RANK)) return 0;
    mc_dim last = mc_type_last(mc_in_type(in, i));
    if (mc_dim_is_const(last) && last.mul > 0) return last.mul;
    mc_in_refuse(in, MC_E0310, "the expert axis, %s, is not constant", mc_in_dim_text(in, last));
    return 0;
}

static bool
give_choices(mc_infer *in, const mc_type *from, int64_t k)
{
    const mc_type *weights = mc_type_with_last(in->module, from, mc_dim_const(k));
    mc_in_give(in, weights);
    return mc_in_give(in, mc_type_with_dtype(in->module, weights, MOEC_I32));
}

bool
mc_infer_route_groups(mc_infer *in)
{
    static const char *const rules[] = {"top2", "max", "sum", NULL};
    int64_t experts = experts_of(in, 0);
    if (!experts || !mc_in_want_int(in, "n", 1, experts) || !mc_in_want_choice(in, "by", rules)) return false;
    int64_t n = mc_in_int(in, "n"), keep = mc_in_int(in, "keep");
    if (experts % n) {
        return mc_in_refuse(in, MC_E0302, "%lld experts do not divide into %lld groups", (long long)experts,
                            (long long)n);
    }
    if (keep < 1 || keep > n) {
        return mc_in_refuse(in, MC_E0301, "keep %lld of %lld groups", (long long)keep, (long long)n);
    }
    if (mc_str_is(mc_in_str(in, "by"), "top2") && experts / n < 2) {
        return mc_in_refuse(in, MC_E0302, "groups of one expert have no two greatest keys");
    }
    return mc_in_give(in, mc_in_type(in, 0));
}

bool
mc_infer_route_top(mc_infer *in)
{
    const mc_type *value = mc_in_type(in, 0);
    int64_t experts = experts_of(in, 0), k = mc_in_int(in, "k");
    if (!experts || !mc_in_want_shape(in, 1, value->dims, value->rank)) return false;
    if (k < 1 || k > experts) {
        return mc_in_refuse(in, MC_E0301, "top %lld of %lld experts", (long long)k, (long long)experts);
    }
    return give_choices(in, value, k);
}

bool
mc_infer_route_take(mc_infer *in)
{
    const mc_type *table = mc_in_type(in, 0), *ids = mc_in_type(in, 1);
    if (!experts_of(in, 0) || !mc_in_want_rank(in, 1, 1, MC_MAX_RANK)) return false;
    if (table->rank > 1) {
        mc_dim want[MC_MAX_RANK];
        memcpy(want, ids->dims, sizeof want);
        want[ids->rank - 1] = mc_type_last(table);
        if (!mc_in_want_shape(in, 0, want, ids->rank)) return false;
    }
    return mc_in_give(in, mc_type_with_dtype(in->module, ids, table->dtype == MOEC_F64 ? MOEC_F64 : MOEC_F32));
}

bool
mc_infer_route_lookup(mc_infer *in)
{
    const mc_type *table = mc_in_type(in, 0), *tokens = mc_in_type(in, 1);
    if (!mc_in_want_rank(in, 0, 2, 2) || !mc_in_want_rank(in, 1, 0, MC_MAX_RANK - 1)) return false;
    mc_dim dims[MC_MAX_RANK];
    memcpy(dims, tokens->dims, sizeof dims);
    dims[tokens->rank] = table->dims[1];
    return mc_in_give_dims(in, MOEC_I32, dims, tokens->rank + 1);
}

bool
mc_infer_route_hash(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0), *planes = mc_in_type(in, 1), *table = mc_in_type(in, 2);
    if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK) || !mc_in_want_rank(in, 1, 2, 2) || !mc_in_want_rank(in, 2, 3, 3))
        return false;
    const mc_dim want_planes[] = {planes->dims[0], mc_type_last(x)};
    const mc_dim want_table[] = {planes->dims[0], table->dims[1], table->dims[2]};
    if (!mc_in_want_shape(in, 1, want_planes, 2) || !mc_in_want_shape(in, 2, want_table, 3)) return false;
    mc_dim n;
    if (!mc_dim_mul(table->dims[0], table->dims[2], &n)) return mc_in_refuse(in, MC_E0319, "too many candidates");
    return mc_in_give(in, mc_type_with_dtype(in->module, mc_type_with_last(in->module, x, n), MOEC_I32));
}

bool
mc_infer_route_sparsemixer(mc_infer *in)
{
    int64_t experts = experts_of(in, 0);
    if (!experts || !mc_in_want_float(in, "eps", 0, true)) return false;
    if (experts < 2) return mc_in_refuse(in, MC_E0301, "two of %lld experts", (long long)experts);
    return give_choices(in, mc_in_type(in, 0), 2);
}

bool
mc_infer_route_choose(mc_infer *in)
{
    int64_t experts = experts_of(in, 0);
    if (!experts || !mc_in_want_float(in, "factor", 0, false)) return false;
    return give_choices(in, mc_in_type(in, 0), experts);
}
