/* Routing: from a row of values per token to chosen experts and their weights. The order everywhere is mc_ref_before:
 * greater first, NaN before all, ties by the lower index. */
#include "codegen/ref/num.h"

static double *
read_row(const mc_ref_op *k, const mc_ref_tensor *t, int64_t row)
{
    int64_t n = mc_ref_last(t);
    double *keys = MC_NEW_N(k->arena, double, n);
    for (int64_t i = 0; i < n; i++) keys[i] = get(t, row * n + i);
    return keys;
}

/* A group's score: the sum of its `count` greatest keys. */
static double
group_score(const mc_ref_op *k, const double *keys, int64_t size, int64_t count)
{
    double sum = 0;
    int64_t *best = MC_NEW_N(k->arena, int64_t, count);
    mc_ref_best(keys, size, count, best, k->arena);
    for (int64_t i = 0; i < count; i++) sum = i ? num_add(k, sum, keys[best[i]]) : keys[best[i]];
    return sum;
}

bool
mc_ref_ROUTE_GROUPS(mc_ref_op *k)
{
    const mc_ref_tensor *key = k->in[0];
    mc_str by = mc_attr_str(k->op, "by");
    int64_t n = mc_attr_int(k->op, "n"), keep = mc_attr_int(k->op, "keep"), E = mc_ref_last(key), size = E / n;
    int64_t count = mc_str_is(by, "max") ? 1 : mc_str_is(by, "top2") ? 2 : size;
    double *scores = MC_NEW_N(k->arena, double, n);
    int64_t *best = MC_NEW_N(k->arena, int64_t, keep);
    for (int64_t row = 0; row < mc_ref_rows(key); row++) {
        double *keys = read_row(k, key, row);
        for (int64_t g = 0; g < n; g++) scores[g] = group_score(k, keys + g * size, size, count);
        mc_ref_best(scores, n, keep, best, k->arena);
        for (int64_t e = 0; e < E; e++) put(&k->out[0], row * E + e, -INFINITY);
        for (int64_t j = 0; j < keep; j++)
            for (int64_t e = best[j] * size; e < (best[j] + 1) * size; e++) put(&k->out[0], row * E + e, keys[e]);
    }
    return true;
}

bool
mc_ref_ROUTE_TOP(mc_ref_op *k)
{
    const mc_ref_tensor *value = k->in[0], *key = k->in[1];
    int64_t E = mc_ref_last(value), n = mc_attr_int(k->op, "k");
    int64_t *best = MC_NEW_N(k->arena, int64_t, n);
    for (int64_t row = 0; row < mc_ref_rows(value); row++) {
        mc_ref_best(read_row(k, key, row), E, n, best, k->arena);
        for (int64_t j = 0; j < n; j++) {
            put(&k->out[0], row * n + j, get(value, row * E + best[j]));
            put(&k->out[1], row * n + j, (double)best[j]);
        }
    }
    return true;
}

/* What renorm divides a row by. */
static double
divisor(const mc_ref_op *k, const double *w, int64_t n)
{
    double eps = num_round(k, mc_attr_float(k->op, "eps")), p = mc_attr_float(k->op, "p");
    double floor = num_round(k, mc_attr_float(k->op, "floor")), sum = 0;
    if (floor > 0) {
        for (int64_t i = 0; i < n; i++) sum = num_add(k, sum, w[i]);
        return num_max(sum, floor);
    }
    for (int64_t i = 0; i < n; i++) sum = num_add(k, sum, p == 1 ? fabs(w[i]) : num_pow(k, fabs(w[i]), p));
    return num_add(k, p == 1 ? sum : num_pow(k, sum, 1 / p), eps);
}

bool
mc_ref_ROUTE_RENORM(mc_ref_op *k)
{
    const mc_ref_tensor *w = k->in[0];
    int64_t n = mc_ref_last(w);
    for (int64_t row = 0; row < mc_ref_rows(w); row++) {
        double *values = read_row(k, w, row), d = divisor(k, values, n);
        for (int64_t i = 0; i < n; i++) put(&k->out[0], row * n + i, num_div(k, values[i], d));
    }
    return true;
}

bool
mc_ref_ROUTE_TAKE(mc_ref_op *k)
{
    const mc_ref_tensor *table = k->in[0], *ids = k->in[1];
    int64_t E = mc_ref_last(table), n = mc_ref_last(ids);
    for (int64_t i = 0; i < ids->n; i++) {
        int64_t id = get_id(ids, i);
        if (id < -1 || id >= E)
            return mc_ref_fail(k, MC_E0306, "id %lld is outside 0..%lld", (long long)id, (long long)E - 1);
        int64_t row = table->rank > 1 ? i / n : 0;
        put(&k->out[0], i, id < 0 ? 0 : get(table, row * E + id)); /* -1 is a dropped choice: nothing */
    }
    return true;
}

bool
mc_ref_ROUTE_LOOKUP(mc_ref_op *k)
{
    const mc_ref_tensor *table = k->in[0], *tokens = k->in[1];
    int64_t V = table->dims[0], n = table->dims[1];
    if (V == 0) return mc_ref_fail(k, MC_E0306, "the table is empty");
    for (int64_t t = 0; t < tokens->n; t++) {
        int64_t row = get_id(tokens, t) % V;
        if (row < 0) row += V;
        for (int64_t j = 0; j < n; j++) put(&k->out[0], t * n + j, get(table, row * n + j));
    }
    return true;
}

bool
mc_ref_ROUTE_HASH(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *planes = k->in[1], *table = k->in[2];
    int64_t hashes = table->dims[0], buckets = table->dims[1], size = table->dims[2], d = mc_ref_last(x);
    if (buckets == 0) return mc_ref_fail(k, MC_E0306, "the table has no buckets");
    for (int64_t row = 0; row < mc_ref_rows(x); row++)
        for (int64_t h = 0; h < hashes; h++) {
            double dot = 0;
            for (int64_t i = 0; i < d; i++) dot = num_fma(k, get(x, row * d + i), get(planes, h * d + i), dot);
            double at = num_floor(k, num_mul(k, mc_ref_activate(k, MC_OP_SIGMOID, dot), (double)buckets));
            int64_t b = at >= (double)buckets ? buckets - 1 : at > 0 ? (int64_t)at : 0; /* NaN: bucket 0 */
            for (int64_t j = 0; j < size; j++)
                put(&k->out[0], (row * hashes + h) * size + j, get(table, (h * buckets + b) * size + j));
        }
    return true;
}

/* One of PhiMoE's choices: the greatest of z without `taken`, and its share in the softmax over those near it. */
static int64_t
sparse_choice(const mc_ref_op *k, const double *z, int64_t n, int64_t taken, double *weight)
{
    double twice = num_mul(k, 2, num_round(k, mc_attr_float(k->op, "eps"))), sum = 0;
    int64_t best = -1;
    for (int64_t i = 0; i < n; i++)
        if (i != taken && (best < 0 || mc_ref_before(z[i], i, z[best], best))) best = i;
    double max = z[best];
    for (int64_t i = 0; i < n; i++) {
        double gap = num_div(k, num_sub(k, max, z[i]), fmax(fabs(z[i]), max));
        if (i != taken && !(gap > twice)) sum = num_add(k, sum, num_exp(k, num_sub(k, z[i], max)));
    }
    *weight = num_div(k, 1, sum);
    return best;
}

bool
mc_ref_ROUTE_SPARSEMIXER(mc_ref_op *k)
{
    const mc_ref_tensor *z = k->in[0];
    int64_t E = mc_ref_last(z);
    for (int64_t row = 0; row < mc_ref_rows(z); row++) {
        double *keys = read_row(k, z, row), w;
        int64_t taken = -1;
        for (int64_t j = 0; j < 2; j++) {
            taken = sparse_choice(k, keys, E, taken, &w);
            put(&k->out[0], row * 2 + j, w);
            put(&k->out[1], row * 2 + j, (double)taken);
        }
    }
    return true;
}

bool
mc_ref_ROUTE_CHOOSE(mc_ref_op *k)
{
    const mc_ref_tensor *value = k->in[0];
    int64_t T = mc_ref_rows(value), E = mc_ref_last(value);
    double want = ceil((double)T * mc_attr_float(k->op, "factor") / (double)E);
    int64_t n = want >= (double)T ? T : want > 1 ? (int64_t)want : T < 1 ? T : 1;
    double *column = MC_NEW_N(k->arena, double, T);
    int64_t *best = MC_NEW_N(k->arena, int64_t, n);
    for (int64_t i = 0; i < value->n; i++) put(&k->out[1], i, -1);
    for (int64_t e = 0; e < E; e++) {
        for (int64_t t = 0; t < T; t++) column[t] = get(value, t * E + e);
        mc_ref_best(column, T, n, best, k->arena);
        for (int64_t j = 0; j < n; j++) {
            put(&k->out[0], best[j] * E + e, column[best[j]]);
            put(&k->out[1], best[j] * E + e, (double)e);
        }
    }
    return true;
}
