/* Stages that limit and choose experts. */
#include "frontend/route_stages.h"

static bool
choose(mc_elab *e, mc_route_state *r, mc_call *c, const char *name)
{
    if (r->chosen) {
        mc_elab_error(e, c->span, MC_E0330, "%s cannot be combined with %s: both choose the experts", name,
                      r->chosen_by);
        mc_elab_note(e, r->chosen_span, "the first choice");
        return false;
    }
    r->chosen = true;
    r->chosen_by = name;
    r->chosen_span = c->span;
    return true;
}

bool
mc_stage_groups(mc_elab *e, mc_route_state *r, mc_call *c)
{
    static const char *const rules[] = {"top2", "max", "sum"};
    int64_t n = 0, keep = 0;
    int by = 0;
    if (!mc_stage_needs_scores(e, r, c) || !mc_stage_before_choice(e, r, c, "put it before top") ||
        !mc_param_needed(e, c, "n") || !mc_param_needed(e, c, "keep") || !mc_param_int(e, c, "n", 1, INT32_MAX, &n) ||
        !mc_param_word(e, c, "by", "top2 max sum", &by))
        return false;
    if (r->candidates) {
        mc_elab_error(e, c->span, MC_E0330, "groups cannot be combined with hash");
        return false;
    }
    if (r->n_experts % n) {
        mc_elab_error(e, c->span, MC_E0302, "%lld experts do not divide into %lld groups", (long long)r->n_experts,
                      (long long)n);
        return false;
    }
    if (!mc_param_int(e, c, "keep", 1, n, &keep)) return false;
    if (by == 0 && r->n_experts / n < 2) {
        mc_elab_error(e, c->span, MC_E0306, "groups of one expert have no two greatest keys; use by = max");
        return false;
    }
    r->n_candidates = r->n_experts / n * keep;
    const mc_named_attr attrs[] = {MC_A_INT("n", n), MC_A_INT("keep", keep), MC_A_STR("by", mc_str_of(rules[by]))};
    return mc_stage_emit(e, c->span, MC_OP_ROUTE_GROUPS, &r->key, 1, attrs, 3, &r->key);
}

/* After hash the choice is among positions in the list of candidates: back to experts. */
static bool
positions_to_experts(mc_elab *e, mc_route_state *r, mc_span span)
{
    mc_value *names = mc_tensor_cast(e, r->candidates, MOEC_F32), *ids;
    if (!names || !mc_stage_emit(e, span, MC_OP_ROUTE_TAKE, (mc_value *[]){names, r->ids}, 2, NULL, 0, &ids))
        return false;
    r->ids = mc_tensor_cast(e, ids, MOEC_I32);
    return r->ids != NULL;
}

static bool
take_results(mc_elab *e, mc_route_state *r, mc_span span, mc_opcode opcode, mc_value *const *operands, int n,
             const mc_named_attr *attrs)
{
    mc_value *weights;
    if (!mc_stage_emit(e, span, opcode, operands, n, attrs, 1, &weights)) return false;
    r->value = r->key = weights;
    r->ids = mc_result(weights->def, 1);
    return true;
}

static bool
top(mc_elab *e, mc_route_state *r, mc_call *c, int64_t k, mc_span at)
{
    if (k > r->n_candidates) {
        bool limited = r->n_candidates < r->n_experts;
        mc_elab_error(e, at, MC_E0301, "top %lld of only %lld %s", (long long)k, (long long)r->n_candidates,
                      limited ? "candidates" : "experts");
        return false;
    }
    r->k = r->active = k;
    const mc_named_attr attrs[] = {MC_A_INT("k", k)};
    if (!take_results(e, r, c->span, MC_OP_ROUTE_TOP, (mc_value *[]){r->value, r->key}, 2, attrs)) return false;
    return !r->candidates || positions_to_experts(e, r, c->span);
}

bool
mc_stage_top(mc_elab *e, mc_route_state *r, mc_call *c)
{
    int64_t k = 0;
    return mc_stage_needs_scores(e, r, c) && choose(e, r, c, "top") && mc_param_needed(e, c, "k") &&
           mc_param_int(e, c, "k", 1, INT32_MAX, &k) && top(e, r, c, k, mc_param(c, "k")->span);
}

/* A second head says how many of the chosen to keep. Its weights are declared, so that the model can be counted. */
bool
mc_stage_adaptive_top(mc_elab *e, mc_route_state *r, mc_call *c)
{
    enum { HIDDEN = 32 };
    int64_t max = 0;
    if (!mc_stage_needs_scores(e, r, c) || !choose(e, r, c, "adaptive_top") || !mc_param_needed(e, c, "max") ||
        !mc_param_int(e, c, "max", 1, INT32_MAX, &max))
        return false;
    const mc_dim d = mc_type_last(r->input->type), hidden = mc_dim_const(HIDDEN), out = mc_dim_const(max);
    const mc_dim first[] = {hidden, d}, second[] = {out, hidden};
    bool ok = mc_stage_weight(e, c, "hidden.weight", first, 2, MOEC_DTYPE_NONE) &&
              mc_stage_weight(e, c, "hidden.bias", &hidden, 1, MOEC_DTYPE_NONE) &&
              mc_stage_weight(e, c, "out.weight", second, 2, MOEC_DTYPE_NONE) &&
              mc_stage_weight(e, c, "out.bias", &out, 1, MOEC_DTYPE_NONE);
    if (!ok || !top(e, r, c, max, mc_param(c, "max")->span)) return false;
    r->active = 1;
    mc_elab_error(e, c->span, MC_E0331, "adaptive_top is not executed in this version; use top k");
    return true;
}

bool
mc_stage_relaxed_sort(mc_elab *e, mc_route_state *r, mc_call *c)
{
    (void)r;
    mc_elab_error(e, c->span, MC_E0331,
                  "relaxed_sort is not in this version; 'temperature t | softmax | top k | renorm' gives the same "
                  "weights at inference");
    return false;
}

bool
mc_stage_choose_tokens(mc_elab *e, mc_route_state *r, mc_call *c)
{
    double factor = 0;
    if (!mc_stage_needs_scores(e, r, c) || !choose(e, r, c, "choose_tokens") || !mc_param_needed(e, c, "factor") ||
        !mc_param_real(e, c, "factor", &factor))
        return false;
    if (!(factor > 0) || r->candidates) {
        mc_elab_error(e, c->span, r->candidates ? MC_E0330 : MC_E0306,
                      r->candidates ? "choose_tokens cannot be combined with hash"
                                    : "choose_tokens: the factor must be above 0");
        return false;
    }
    r->chosen_tokens = true;
    r->k = r->n_experts;
    r->active = 1;
    const mc_named_attr attrs[] = {MC_A_FLOAT("factor", factor)};
    return take_results(e, r, c->span, MC_OP_ROUTE_CHOOSE, &r->value, 1, attrs);
}

bool
mc_stage_sparsemixer(mc_elab *e, mc_route_state *r, mc_call *c)
{
    double eps = 0.01;
    if (!mc_stage_needs_scores(e, r, c) || !choose(e, r, c, "sparsemixer") || !mc_param_real(e, c, "eps", &eps))
        return false;
    if (eps < 0 || r->candidates || r->n_experts < 2) {
        mc_elab_error(e, c->span,
                      eps < 0         ? MC_E0306
                      : r->candidates ? MC_E0330
                                      : MC_E0301,
                      eps < 0         ? "sparsemixer: 'eps' cannot be negative"
                      : r->candidates ? "sparsemixer cannot be combined with hash"
                                      : "sparsemixer chooses 2 experts, and there is only 1");
        return false;
    }
    r->k = r->active = 2;
    const mc_named_attr attrs[] = {MC_A_FLOAT("eps", eps)};
    return take_results(e, r, c->span, MC_OP_ROUTE_SPARSEMIXER, &r->value, 1, attrs);
}

/* ---- tables ---- */

static mc_value *
table_param(mc_elab *e, mc_call *c, const char *name, int rank, const char *hint)
{
    if (!mc_param_needed(e, c, name)) return NULL;
    const mc_call_param *p = mc_param(c, name);
    mc_value *t = mc_tensor_of(e, p->value, p->span, name);
    if (!t) return NULL;
    if (mc_type_is_float(t->type)) {
        mc_elab_error(e, p->span, MC_E0318, "lookup: '%s' holds whole numbers: %s", name, hint);
        return NULL;
    }
    if (rank == 0 || t->type->rank == rank) return t;
    mc_elab_error(e, p->span, MC_E0310, "lookup: '%s' has %d axes, this is %.*s", name, rank,
                  MC_FMT(mc_shape_text(e, t->type)));
    return NULL;
}

static bool
tokens_fit(mc_elab *e, mc_route_state *r, mc_call *c, mc_value *tokens)
{
    const mc_type *x = r->input->type, *t = tokens->type;
    bool fits = t->rank + 1 == x->rank;
    for (int i = 0; fits && i < t->rank; i++) fits = mc_dim_eq(t->dims[i], x->dims[i]);
    if (!fits)
        mc_elab_error(e, mc_param(c, "tokens")->span, MC_E0310,
                      "lookup: tokens %.*s do not fit the router's input %.*s", MC_FMT(mc_shape_text(e, t)),
                      MC_FMT(mc_shape_text(e, x)));
    return fits;
}

/* Without scores every chosen expert has weight 1. */
bool
mc_stage_lookup(mc_elab *e, mc_route_state *r, mc_call *c)
{
    if (!choose(e, r, c, "lookup")) return false;
    mc_value *table = table_param(e, c, "table", 2, "declare it as i32[rows, k]");
    mc_value *tokens = table ? table_param(e, c, "tokens", 0, "it takes the ids of the tokens") : NULL;
    if (!tokens || !tokens_fit(e, r, c, tokens)) return false;
    if (r->candidates) {
        mc_elab_error(e, c->span, MC_E0330, "lookup cannot be combined with hash");
        return false;
    }
    mc_value *ids;
    if (!mc_stage_emit(e, c->span, MC_OP_ROUTE_LOOKUP, (mc_value *[]){table, tokens}, 2, NULL, 0, &ids)) return false;
    r->ids = ids;
    r->k = r->active = mc_type_last(ids->type).mul;
    mc_value *weights;
    if (r->value) {
        if (!mc_stage_emit(e, c->span, MC_OP_ROUTE_TAKE, (mc_value *[]){r->value, ids}, 2, NULL, 0, &weights))
            return false;
    } else {
        const mc_named_attr one[] = {MC_A_FLOAT("lo", 1), MC_A_FLOAT("hi", 1)};
        weights = mc_tensor_cast(e, ids, MOEC_F32);
        if (!weights || !mc_stage_emit(e, c->span, MC_OP_CLAMP, &weights, 1, one, 2, &weights)) return false;
    }
    r->value = r->key = weights;
    return true;
}

bool
mc_stage_hash(mc_elab *e, mc_route_state *r, mc_call *c)
{
    int64_t tables = 0, buckets = 0, size = 0;
    if (!mc_stage_needs_scores(e, r, c) || !mc_stage_before_choice(e, r, c, "put it before top") ||
        !mc_param_needed(e, c, "tables") || !mc_param_needed(e, c, "buckets") ||
        !mc_param_needed(e, c, "bucket_size") || !mc_param_int(e, c, "tables", 1, 64, &tables) ||
        !mc_param_int(e, c, "buckets", 1, 1 << 20, &buckets) || !mc_param_int(e, c, "bucket_size", 1, 1 << 16, &size))
        return false;
    if (r->candidates || r->key != r->value) {
        mc_elab_error(e, c->span, MC_E0330,
                      r->candidates ? "a route takes one hash" : "hash cannot follow select_bias or groups");
        return false;
    }
    const mc_dim planes[] = {mc_dim_const(tables), mc_type_last(r->input->type)};
    const mc_dim table[] = {mc_dim_const(tables), mc_dim_const(buckets), mc_dim_const(size)};
    mc_value *p = mc_stage_weight(e, c, "planes", planes, 2, MOEC_DTYPE_NONE);
    mc_value *t = p ? mc_stage_weight(e, c, "table", table, 3, MOEC_I32) : NULL;
    if (!t || !mc_stage_emit(e, c->span, MC_OP_ROUTE_HASH, (mc_value *[]){r->input, p, t}, 3, NULL, 0, &r->candidates))
        return false;
    r->n_candidates = tables * size;
    mc_value *v;
    if (!mc_stage_emit(e, c->span, MC_OP_ROUTE_TAKE, (mc_value *[]){r->value, r->candidates}, 2, NULL, 0, &v))
        return false;
    r->value = r->key = v;
    return true;
}

bool
mc_stage_on_input(mc_elab *e, mc_route_state *r, mc_call *c)
{
    if (r->chosen) {
        r->on_input = true;
        return true;
    }
    mc_elab_error(e, c->span, MC_E0304, "on_input has no weights yet: put it after top");
    return false;
}
