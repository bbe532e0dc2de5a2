/* Mixture of experts. The node says it in one sentence: for every token, for every expert it chose, in ascending order
 * of experts, run the body on the token's row and add. The primitives are what expand-moe makes of it; both give the
 * same bits, because a row's result never depends on the other rows. */
#include "codegen/ref/num.h"

/* ---- capacity ---- */

static int64_t
capacity_of(const mc_ref_capacity *rule, int64_t tokens, int64_t choices)
{
    double c = ceil((double)tokens * (double)choices / (double)rule->experts * rule->factor);
    return c < 1 ? 1 : c > 0x1p62 ? INT64_MAX : (int64_t)c;
}

/* How many assignments compete with a for its expert and stand before it. */
static int64_t
rank_of(const mc_ref_capacity *rule, const mc_ref_tensor *weights, const int64_t *ids, int64_t n, int64_t slots,
        int64_t a)
{
    int64_t rank = 0;
    for (int64_t b = 0; b < n; b++) {
        if (b == a || ids[b] != ids[a] || (rule->per_slot && b % slots != a % slots)) continue;
        rank += rule->by_score ? mc_ref_before(get(weights, b), b, get(weights, a), a) : b < a;
    }
    return rank;
}

void
mc_ref_drop(const mc_ref_capacity *rule, mc_ref_tensor *weights, mc_ref_tensor *ids, mc_arena *arena)
{
    int64_t slots = mc_ref_last(ids), n = ids->n, cap = capacity_of(rule, mc_ref_rows(ids), slots);
    int64_t *before = MC_NEW_N(arena, int64_t, n);
    bool *dropped = MC_NEW_N(arena, bool, n);
    for (int64_t a = 0; a < n; a++) before[a] = get_id(ids, a);
    for (int64_t a = 0; a < n; a++)
        if (before[a] >= 0 && before[a] < rule->experts)
            dropped[a] = rank_of(rule, weights, before, n, slots, a) >= cap;
    for (int64_t a = 0; a < n; a++) {
        if (!dropped[a]) continue;
        put(weights, a, 0);
        put(ids, a, -1);
    }
}

static mc_ref_capacity
capacity_rule(const mc_op *op, double factor)
{
    return (mc_ref_capacity){mc_attr_int(op, "experts"), factor, mc_str_is(mc_attr_str(op, "per"), "slot"),
                             mc_str_is(mc_attr_str(op, "drop"), "score")};
}

bool
mc_ref_MOE_CAPACITY(mc_ref_op *k)
{
    for (int64_t i = 0; i < k->out[0].n; i++) {
        put(&k->out[0], i, get(k->in[0], i));
        put(&k->out[1], i, get(k->in[1], i));
    }
    mc_ref_capacity rule = capacity_rule(k->op, mc_attr_float(k->op, "factor"));
    mc_ref_drop(&rule, &k->out[0], &k->out[1], k->arena);
    return true;
}

/* ---- running a body ---- */

/* The copy of `body` that belongs to expert e, on one row; the result is one row in the frame's arena. */
static bool
run_body(mc_ref_op *k, int64_t e, const mc_ref_tensor *row, mc_ref_tensor *result)
{
    return mc_ref_invoke(k, mc_attr_func(k->op, "body"), k->frame->scope, e, row, 1, result, 1);
}

/* Row `at` of x as [1, d], times `gate`. */
static bool
take_row(mc_ref_op *k, const mc_ref_tensor *x, int64_t at, double gate, mc_ref_tensor *row)
{
    int64_t d = mc_ref_last(x);
    if (!mc_ref_tensor_init(row, x->dtype, (int64_t[]){1, d}, 2, k->arena)) return false;
    for (int64_t i = 0; i < d; i++) put(row, i, num_mul(k, get(x, at * d + i), gate));
    return true;
}

/* The slots of token t that chose a real expert, ordered by expert, equal experts by slot; returns how many. */
static int64_t
slots_by_expert(const mc_ref_tensor *ids, int64_t t, int64_t experts, int64_t *slots)
{
    int64_t n = 0, choices = mc_ref_last(ids);
    for (int64_t e = 0; e < experts; e++)
        for (int64_t j = 0; j < choices; j++)
            if (get_id(ids, t * choices + j) == e) slots[n++] = j;
    return n;
}

static bool
check_ids(mc_ref_op *k, const mc_ref_tensor *ids, int64_t end)
{
    for (int64_t a = 0; a < ids->n; a++) {
        int64_t id = get_id(ids, a);
        if (id < -1 || id >= end)
            return mc_ref_fail(k, MC_E0306, "expert %lld is outside 0..%lld", (long long)id, (long long)end - 1);
    }
    return true;
}

/* y[t] = sum of gate * body(row), where `gate` multiplies the output, or the input with on_input. */
static bool
sum_experts(mc_ref_op *k, const mc_ref_tensor *x, const mc_ref_tensor *weights, const mc_ref_tensor *ids, bool on_input)
{
    mc_ref_tensor *y = &k->out[0], row, result;
    int64_t width = mc_ref_last(y), choices = mc_ref_last(ids);
    bool row_per_choice = mc_ref_rows(x) == ids->n && x->rank == ids->rank + 1;
    int64_t *slots = MC_NEW_N(k->arena, int64_t, choices);
    for (int64_t t = 0; t < mc_ref_rows(ids); t++) {
        int64_t n = slots_by_expert(ids, t, mc_attr_int(k->op, "experts"), slots);
        for (int64_t i = 0; i < n; i++) {
            int64_t a = t * choices + slots[i];
            double gate = get(weights, a);
            if (!take_row(k, x, row_per_choice ? a : t, on_input ? gate : 1, &row)) return false;
            if (!run_body(k, get_id(ids, a), &row, &result)) return false;
            for (int64_t d = 0; d < width; d++)
                put(y, t * width + d, num_fma(k, on_input ? 1 : gate, get(&result, d), get(y, t * width + d)));
        }
    }
    return true;
}

/* x[t] times the sum of the weights whose id is `first` or more. */
static double
identity_weight(const mc_ref_op *k, const mc_ref_tensor *weights, const mc_ref_tensor *ids, int64_t t, int64_t first)
{
    double sum = 0;
    int64_t choices = mc_ref_last(ids);
    for (int64_t a = t * choices; a < (t + 1) * choices; a++)
        if (get_id(ids, a) >= first) sum = num_add(k, sum, get(weights, a));
    return sum;
}

bool
mc_ref_MOE_IDENTITY(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0];
    int64_t d = mc_ref_last(x), first = mc_attr_int(k->op, "first");
    for (int64_t t = 0; t < mc_ref_rows(x); t++) {
        double w = identity_weight(k, k->in[1], k->in[2], t, first);
        for (int64_t i = t * d; i < (t + 1) * d; i++) put(&k->out[0], i, num_mul(k, get(x, i), w));
    }
    return true;
}

bool
mc_ref_MOE(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0];
    int first = k->n_in > 1 ? 1 : 0, n = k->n_in - first;
    mc_ref_tensor *args = MC_NEW_N(k->arena, mc_ref_tensor, n), choice[2]; /* weights, ids */
    for (int i = 0; i < n; i++) args[i] = *k->in[first + i];
    if (!mc_ref_invoke(k, mc_attr_func(k->op, "route"), k->frame->scope, k->frame->expert, args, n, choice, 2))
        return false;
    int64_t experts = mc_attr_int(k->op, "experts"), identity = mc_attr_int(k->op, "identity");
    if (!check_ids(k, &choice[1], experts + identity)) return false;
    double factor = mc_attr_float(k->op, "capacity");
    mc_ref_capacity rule = capacity_rule(k->op, factor);
    if (factor > 0) mc_ref_drop(&rule, &choice[0], &choice[1], k->arena);
    if (!sum_experts(k, x, &choice[0], &choice[1], mc_attr_bool(k->op, "on_input"))) return false;
    if (!identity) return true;
    int64_t d = mc_ref_last(x);
    for (int64_t t = 0; t < mc_ref_rows(x); t++) {
        double w = identity_weight(k, &choice[0], &choice[1], t, experts);
        for (int64_t i = t * d; i < (t + 1) * d; i++)
            put(&k->out[0], i, num_add(k, get(&k->out[0], i), num_mul(k, get(x, i), w)));
    }
    return true;
}

bool
mc_ref_EXPERT_SUM(mc_ref_op *k)
{
    if (!check_ids(k, k->in[2], mc_attr_int(k->op, "experts"))) return false;
    return sum_experts(k, k->in[0], k->in[1], k->in[2], false);
}

bool
mc_ref_EXPERT_MAP(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *ids = k->in[1];
    mc_ref_tensor *y = &k->out[0], row, result;
    int64_t width = mc_ref_last(y), choices = mc_ref_last(ids);
    bool row_per_choice = x->rank == ids->rank + 1;
    if (!check_ids(k, ids, mc_attr_int(k->op, "experts"))) return false;
    for (int64_t a = 0; a < ids->n; a++) {
        if (get_id(ids, a) < 0) continue; /* a dropped choice gives 0 */
        if (!take_row(k, x, row_per_choice ? a : a / choices, 1, &row)) return false;
        if (!run_body(k, get_id(ids, a), &row, &result)) return false;
        for (int64_t d = 0; d < width; d++) put(y, a * width + d, get(&result, d));
    }
    return true;
}

/* ---- dispatch ---- */

bool
mc_ref_MOE_DISPATCH(mc_ref_op *k)
{
    const mc_ref_tensor *weights = k->in[0], *ids = k->in[1];
    mc_ref_tensor *offsets = &k->out[0], *tokens = &k->out[1], *slots = &k->out[2], *gates = &k->out[3];
    int64_t experts = mc_attr_int(k->op, "experts"), choices = mc_ref_last(ids), r = 0;
    for (int64_t i = 0; i < ids->n; i++) { /* rows without an expert: no token, and NaN */
        put(tokens, i, -1);
        put(slots, i, -1);
        put(gates, i, NAN);
    }
    for (int64_t e = 0; e < experts; e++) {
        put(offsets, e, (double)r);
        for (int64_t a = 0; a < ids->n; a++) {
            if (get_id(ids, a) != e) continue;
            put(tokens, r, (double)(a / choices));
            put(slots, r, (double)a);
            put(gates, r, get(weights, a));
            r++;
        }
    }
    put(offsets, experts, (double)r);
    return true;
}
