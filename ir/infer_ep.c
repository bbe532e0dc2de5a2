/* Inference: operations between ranks. Their results are declared, since how much arrives is known at run time only. */
#include "ir/infer_impl.h"

#include <string.h>

enum { MAX_RANKS = 1 << 16, MAX_EXPERTS = 1 << 20 };

static const char *const way_names[] = {"expert", "rank", "node", NULL};

static bool
want_symbol(mc_infer *in, const char *attr)
{
    mc_str name = mc_in_str(in, attr);
    for (int i = 0; i < in->module->n_syms; i++)
        if (mc_str_eq(in->module->syms[i].name, name)) return true;
    return mc_in_refuse(in, MC_E0314, "%s = \"%.*s\" is no dimension of this module", attr, MC_FMT(name));
}

static bool
want_result(mc_infer *in, int i, moec_dtype dtype, const mc_dim *dims, int rank)
{
    const mc_type *want = mc_type_get(in->module, dtype, dims, rank);
    if (in->results[i] == want) return true;
    return mc_in_refuse(in, MC_E0310, "result %d must be %s", i, mc_type_text(in->module, want, in->diags->arena).data);
}

bool
mc_infer_ep_route(mc_infer *in)
{
    if (!mc_in_want_int(in, "experts", 1, MAX_EXPERTS) || !mc_in_want_int(in, "share", 1, MAX_EXPERTS) ||
        !mc_in_want_int(in, "ranks", 1, MAX_RANKS) || !mc_in_want_choice(in, "way", way_names) ||
        !want_symbol(in, "received"))
        return false;
    int64_t ranks = mc_in_int(in, "ranks"), share = mc_in_int(in, "share");
    if (!mc_in_want_vector(in, 0, mc_dim_const(mc_in_int(in, "experts") + 1)) || !mc_in_want_rank(in, 1, 1, 1) ||
        !mc_in_want_vector(in, 3, mc_dim_const(ranks * share)))
        return false;
    if (in->n_results != 6) return mc_in_refuse(in, MC_E0317, "it has 6 results");
    const mc_dim own = mc_dim_const(share + 1), counts[] = {mc_dim_const(6), mc_dim_const(ranks)};
    const mc_dim *sent = mc_in_type(in, 1)->dims, *received = in->results[1]->dims;
    if (in->results[1]->rank != 1) return mc_in_refuse(in, MC_E0310, "the rows must be a list");
    return want_result(in, 0, MOEC_I32, &own, 1) && want_result(in, 1, MOEC_I32, received, 1) &&
           want_result(in, 2, MOEC_I32, received, 1) && want_result(in, 3, MOEC_I32, sent, 1) &&
           want_result(in, 4, MOEC_I32, sent, 1) && want_result(in, 5, MOEC_I32, counts, 2);
}

/* Rows stay as wide as they are. */
bool
mc_infer_ep_rows(mc_infer *in)
{
    const mc_type *x = mc_in_type(in, 0), *y = in->results[0];
    bool by_way = in->opcode == MC_OP_EP_SEND || in->opcode == MC_OP_EP_REDUCE;
    if (by_way && !mc_in_want_choice(in, "way", way_names)) return false;
    if (!mc_in_want_rank(in, 0, 1, MC_MAX_RANK)) return false;
    bool flat = x->rank == 1 && y->rank == 1 && !by_way;
    if (x->dtype == y->dtype && (flat || (x->rank > 1 && y->rank > 1 && mc_dim_eq(mc_type_last(x), mc_type_last(y)))))
        return true;
    return mc_in_refuse(in, MC_E0310, "the result must have rows like the operand's, but is declared as %s",
                        mc_in_shape_text(in, y->dims, y->rank));
}

static bool
same_but_first(const mc_type *a, const mc_type *b)
{
    bool same = a->dtype == b->dtype && a->rank == b->rank && a->rank > 0;
    for (int i = 1; same && i < a->rank; i++) same = mc_dim_eq(a->dims[i], b->dims[i]);
    return same;
}

bool
mc_infer_ep_gather(mc_infer *in)
{
    const mc_dim one = mc_dim_const(1);
    if (!mc_in_want_int(in, "ranks", 1, MAX_RANKS) || !want_symbol(in, "all") || !want_result(in, 1, MOEC_I32, &one, 1))
        return false;
    if (same_but_first(in->results[0], mc_in_type(in, 0))) return true;
    return mc_in_refuse(in, MC_E0310, "the result must be like the operand, but for axis 0");
}

bool
mc_infer_ep_own(mc_infer *in)
{
    if (!mc_in_want_vector(in, 1, mc_dim_const(1))) return false;
    if (same_but_first(in->results[0], mc_in_type(in, 0))) return true;
    return mc_in_refuse(in, MC_E0310, "the result must be like the operand, but for axis 0");
}

bool
mc_infer_ep_merge(mc_infer *in)
{
    if (!mc_in_want_int(in, "replicas", 1, MAX_RANKS) || !want_symbol(in, "merged") || !mc_in_want_rank(in, 0, 2, 2) ||
        !mc_in_want_rank(in, 1, 1, 1))
        return false;
    if (!want_result(in, 1, MOEC_I32, mc_in_type(in, 1)->dims, 1)) return false;
    if (same_but_first(in->results[0], mc_in_type(in, 0))) return true;
    return mc_in_refuse(in, MC_E0310, "the result must be like the operand, but for axis 0");
}
