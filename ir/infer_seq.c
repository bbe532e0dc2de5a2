/* Inference: attention, positions, and the mixers that carry state. */
#include "ir/infer_impl.h"

#include <math.h>
#include <string.h>

#include "ir/rope.h"

static bool
check_rope_args(mc_infer *in)
{
    static const char *const scalings[] = {"none", "linear", "llama3", "yarn", NULL};
    static const size_t counts[] = {0, 1, 4, 8};
    if (!mc_in_want_choice(in, "scaling", scalings)) return false;
    const mc_attr args = mc_attr_at(in->opcode, in->attrs, "args", MC_ATTR_FLOATS);
    int kind = 0;
    while (!mc_str_is(mc_in_str(in, "scaling"), scalings[kind])) kind++;
    if (args.as.floats.n != counts[kind]) {
        return mc_in_refuse(in, MC_E0404, "scaling \"%s\" has %zu args, but %zu are given", scalings[kind],
                            counts[kind], args.as.floats.n);
    }
    for (size_t i = 0; i < args.as.floats.n; i++) {
        double value = args.as.floats.items[i];
        bool may_be_zero = kind == 3 && i >= 4;
        if (!isfinite(value) || value < 0 || (value == 0 && !may_be_zero)) {
            return mc_in_refuse(in, MC_E0404, "argument %zu of scaling \"%s\" is %g", i + 1, scalings[kind], value);
        }
    }
    return true;
}

bool
mc_infer_rope(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0);
    if (!mc_in_want_rank(in, 0, 4, 4) || !mc_in_want_float(in, "theta", 0, false) || !check_rope_args(in)) return false;
    mc_dim last = mc_type_last(x);
    if (!mc_dim_is_const(last))
        return mc_in_refuse(in, MC_E0310, "the last axis, %s, is not constant", mc_in_dim_text(in, last));
    if (!mc_in_want_int(in, "dims", 0, last.mul)) return false;
    int64_t dims = mc_in_int(in, "dims") ? mc_in_int(in, "dims") : last.mul;
    if (dims % 2)
        return mc_in_refuse(in, MC_E0310, "channels are rotated in pairs, but there are %lld", (long long)dims);
    return mc_in_give_to(in, x);
}

bool
mc_infer_cache(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0);
    if (!mc_in_want_rank(in, 0, 2, MC_MAX_RANK) || !mc_in_want_int(in, "window", 0, INT32_MAX)) return false;
    int new_positions = mc_symbol_get(in->module, MC_STR("S")), history = mc_symbol_get(in->module, MC_STR("C"));
    if (new_positions < 0 || history < 0) return mc_in_refuse(in, MC_E0319, "more than %d symbols", MC_MAX_SYMS);
    if (!mc_dim_eq(x->dims[1], mc_dim_sym(new_positions))) {
        return mc_in_refuse(in, MC_E0310, "the second axis of x must be S, the new positions, but is %s",
                            mc_in_dim_text(in, x->dims[1]));
    }
    mc_dim dims[MC_MAX_RANK];
    memcpy(dims, x->dims, sizeof dims);
    dims[1] = mc_dim_sym(history);
    return mc_in_give_dims(in, x->dtype, dims, x->rank);
}

/* What sdpa and latent_sdpa have in common: the keys to look at, and attributes. */
static bool
check_attention(mc_infer *in)
{
    const mc_type *q = mc_in_type(in, 0), *select = mc_in_type(in, 4);
    if (select) {
        if (!mc_in_want_rank(in, 4, 3, 3)) return false;
        const mc_dim want[] = {q->dims[0], q->dims[1], select->dims[2]};
        if (!mc_in_want_shape(in, 4, want, 3)) return false;
    }
    if (!isfinite(mc_in_float(in, "scale"))) return mc_in_refuse(in, MC_E0404, "scale is not finite");
    if (!mc_in_want_int(in, "window", 0, INT32_MAX) || !mc_in_want_int(in, "chunk", 0, INT32_MAX)) return false;
    return mc_in_want_float(in, "softcap", 0, true);
}

bool
mc_infer_sdpa(mc_infer *in)
{
    for (int i = 0; i < 3; i++) {
        if (!mc_in_want_rank(in, i, 4, 4)) return false;
    }
    const mc_type *q = mc_in_type(in, 0), *k = mc_in_type(in, 1), *v = mc_in_type(in, 2);
    const mc_dim want_k[] = {q->dims[0], k->dims[1], k->dims[2], q->dims[3]};
    const mc_dim want_v[] = {q->dims[0], k->dims[1], k->dims[2], v->dims[3]};
    if (!mc_in_want_shape(in, 1, want_k, 4) || !mc_in_want_shape(in, 2, want_v, 4)) return false;
    mc_dim heads = q->dims[2], key_heads = k->dims[2], group;
    if (!mc_dim_div(heads, key_heads, &group) || !mc_dim_is_const(group)) {
        return mc_in_refuse(in, MC_E0311, "%s query heads do not divide over %s key heads", mc_in_dim_text(in, heads),
                            mc_in_dim_text(in, key_heads));
    }
    if (!mc_in_want_vector(in, 3, heads) || !check_attention(in)) return false;
    return mc_in_give_to(in, mc_type_with_last(in->module, q, v->dims[3]));
}

bool
mc_infer_latent_sdpa(mc_infer *in)
{
    static const int ranks[] = {4, 3, 4, 4};
    for (int i = 0; i < 4; i++) {
        if (!mc_in_want_rank(in, i, ranks[i], ranks[i])) return false;
    }
    const mc_type *q = mc_in_type(in, 0), *c = mc_in_type(in, 1), *q_rot = mc_in_type(in, 2);
    const mc_dim want_c[] = {q->dims[0], c->dims[1], q->dims[3]};
    const mc_dim want_q[] = {q->dims[0], q->dims[1], q->dims[2], q_rot->dims[3]};
    const mc_dim want_k[] = {q->dims[0], c->dims[1], mc_dim_const(1), q_rot->dims[3]};
    if (!mc_in_want_shape(in, 1, want_c, 3) || !mc_in_want_shape(in, 2, want_q, 4)) return false;
    if (!mc_in_want_shape(in, 3, want_k, 4) || !check_attention(in)) return false;
    return mc_in_give_to(in, q);
}

bool
mc_infer_position(mc_infer *in)
{
    if (!mc_in_want_rank(in, 0, 2, MC_MAX_RANK)) return false;
    return mc_in_give_dims(in, MOEC_F32, mc_in_type(in, 0)->dims, 2);
}

bool
mc_infer_top_keys(mc_infer *in)
{
    const mc_type *q = mc_in_type(in, 0), *k = mc_in_type(in, 1);
    if (!mc_in_want_rank(in, 0, 4, 4) || !mc_in_want_rank(in, 1, 4, 4) || !mc_in_want_int(in, "n", 1, INT32_MAX))
        return false;
    const mc_dim want_k[] = {q->dims[0], k->dims[1], mc_dim_const(1), q->dims[3]};
    if (!mc_in_want_shape(in, 1, want_k, 4) || !mc_in_want_shape(in, 2, q->dims, 3)) return false;
    const mc_dim dims[] = {q->dims[0], q->dims[1], mc_dim_const(mc_in_int(in, "n"))};
    return mc_in_give_dims(in, MOEC_I32, dims, 3);
}

bool
mc_infer_conv1d(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0), *w = mc_in_type(in, 1);
    if (!mc_in_want_rank(in, 0, 3, 3) || !mc_in_want_rank(in, 1, 3, 3)) return false;
    const mc_dim want[] = {x->dims[2], mc_dim_const(1), w->dims[2]};
    if (!mc_in_want_shape(in, 1, want, 3) || !mc_in_want_vector(in, 2, x->dims[2])) return false;
    return mc_in_give(in, x);
}

bool
mc_infer_selective_scan(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0), *a = mc_in_type(in, 2);
    if (!mc_in_want_rank(in, 0, 3, 3) || !mc_in_want_shape(in, 1, x->dims, 3) || !mc_in_want_rank(in, 2, 2, 2))
        return false;
    const mc_dim want_a[] = {x->dims[2], a->dims[1]};
    const mc_dim want_bc[] = {x->dims[0], x->dims[1], a->dims[1]};
    if (!mc_in_want_shape(in, 2, want_a, 2)) return false;
    if (!mc_in_want_shape(in, 3, want_bc, 3) || !mc_in_want_shape(in, 4, want_bc, 3)) return false;
    return mc_in_give(in, x);
}

bool
mc_infer_delta_scan(mc_infer *in)
{
    const mc_type *q = mc_in_type(in, 0), *v = mc_in_type(in, 2);
    if (!mc_in_want_rank(in, 0, 4, 4) || !mc_in_want_shape(in, 1, q->dims, 4) || !mc_in_want_rank(in, 2, 4, 4))
        return false;
    const mc_dim want_v[] = {q->dims[0], q->dims[1], v->dims[2], v->dims[3]};
    if (!mc_in_want_shape(in, 2, want_v, 4)) return false;
    mc_dim group;
    if (!mc_dim_div(v->dims[2], q->dims[2], &group) || !mc_dim_is_const(group)) {
        return mc_in_refuse(in, MC_E0311, "%s value heads do not divide over %s key heads",
                            mc_in_dim_text(in, v->dims[2]), mc_in_dim_text(in, q->dims[2]));
    }
    if (!mc_in_want_shape(in, 3, v->dims, 3) || !mc_in_want_shape(in, 4, v->dims, 3)) return false;
    if (!isfinite(mc_in_float(in, "scale"))) return mc_in_refuse(in, MC_E0404, "scale is not finite");
    return mc_in_give(in, v);
}
