/* Routing losses and loads, and their derivatives. T tokens in n sequences (n = 1 unless per = sequence); the share of
 * an expert is a constant to derivatives. */
#include "codegen/ref/num.h"

bool
mc_ref_MOE_LOAD(mc_ref_op *k)
{
    const mc_ref_tensor *weights = k->in[0], *ids = k->in[1];
    mc_ref_tensor *load = &k->out[0];
    int64_t experts = mc_attr_int(k->op, "experts");
    for (int64_t a = 0; a < ids->n; a++) {
        int64_t e = get_id(ids, a);
        if (e < 0 || e >= experts) continue;
        put(load, e, num_add(k, get(load, e), 1));
        put(load, experts + e, num_add(k, get(load, experts + e), get(weights, a)));
    }
    return true;
}

/* How tokens are taken together: `n` sequences of `tokens` each. */
typedef struct batches {
    int64_t n, tokens;
} batches;

static batches
batches_of(const mc_ref_op *k, const mc_ref_tensor *ids)
{
    bool sequence = mc_str_is(mc_attr_str(k->op, "per"), "sequence");
    int64_t n = sequence ? ids->dims[0] : 1, rows = mc_ref_rows(ids);
    return (batches){n, n ? rows / n : 0};
}

/* E * (choices of e) / (k * tokens) in sequence b: what the mean score of e is multiplied by. */
static double
share(const mc_ref_op *k, const mc_ref_tensor *ids, batches s, int64_t b, int64_t e, int64_t experts)
{
    int64_t per = s.tokens * mc_ref_last(ids), chosen = 0;
    for (int64_t a = b * per; a < (b + 1) * per; a++) chosen += get_id(ids, a) == e;
    return num_mul(k, (double)experts, num_div(k, (double)chosen, (double)per));
}

bool
mc_ref_MOE_BALANCE(mc_ref_op *k)
{
    const mc_ref_tensor *scores = k->in[0], *ids = k->in[1];
    int64_t experts = mc_ref_last(scores);
    batches s = batches_of(k, ids);
    double loss = 0;
    if (s.n * s.tokens == 0) return true;
    for (int64_t b = 0; b < s.n; b++)
        for (int64_t e = 0; e < experts; e++) {
            double sum = 0;
            for (int64_t t = b * s.tokens; t < (b + 1) * s.tokens; t++)
                sum = num_add(k, sum, get(scores, t * experts + e));
            loss = num_fma(k, share(k, ids, s, b, e, experts), num_div(k, sum, (double)s.tokens), loss);
        }
    put(&k->out[0], 0, num_div(k, loss, (double)s.n));
    return true;
}

bool
mc_ref_MOE_BALANCE_GRAD(mc_ref_op *k)
{
    const mc_ref_tensor *ids = k->in[0];
    mc_ref_tensor *y = &k->out[0];
    int64_t experts = mc_ref_last(y);
    batches s = batches_of(k, ids);
    double d = num_div(k, get(k->in[1], 0), (double)(s.n * s.tokens));
    for (int64_t b = 0; b < s.n; b++)
        for (int64_t e = 0; e < experts; e++) {
            double each = num_mul(k, d, share(k, ids, s, b, e, experts));
            for (int64_t t = b * s.tokens; t < (b + 1) * s.tokens; t++) put(y, t * experts + e, each);
        }
    return true;
}

/* log sum exp of row t. */
static double
log_sum_exp(const mc_ref_op *k, const mc_ref_tensor *x, int64_t t)
{
    int64_t n = mc_ref_last(x);
    double max = -INFINITY, sum = 0;
    for (int64_t i = t * n; i < (t + 1) * n; i++) max = num_max(get(x, i), max);
    for (int64_t i = t * n; i < (t + 1) * n; i++) sum = num_add(k, sum, num_exp(k, num_sub(k, get(x, i), max)));
    return num_add(k, num_log(k, sum), max);
}

bool
mc_ref_MOE_Z_LOSS(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0];
    int64_t tokens = mc_ref_rows(x);
    double sum = 0;
    for (int64_t t = 0; t < tokens; t++) {
        double z = log_sum_exp(k, x, t);
        sum = num_fma(k, z, z, sum);
    }
    put(&k->out[0], 0, tokens ? num_div(k, sum, (double)tokens) : 0);
    return true;
}

bool
mc_ref_MOE_Z_LOSS_GRAD(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0];
    int64_t tokens = mc_ref_rows(x), n = mc_ref_last(x);
    for (int64_t t = 0; t < tokens; t++) {
        double z = log_sum_exp(k, x, t);
        double scale = num_mul(k, num_mul(k, get(k->in[1], 0), num_div(k, 2, (double)tokens)), z);
        for (int64_t i = t * n; i < (t + 1) * n; i++)
            put(&k->out[0], i, num_mul(k, scale, num_exp(k, num_sub(k, get(x, i), z))));
    }
    return true;
}
