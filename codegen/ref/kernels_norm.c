/* Norms and softmax: everything over the last axis, sums in ascending order. */
#include "codegen/ref/num.h"

/* The weight of flat element i: the last axes of x, repeated. */
static double
weight_at(const mc_ref_tensor *w, int64_t i)
{
    return get(w, i % w->n);
}

static double
sum_of_squares(const mc_ref_op *k, const mc_ref_tensor *x, int64_t begin, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum = num_add(k, sum, num_mul(k, get(x, begin + i), get(x, begin + i)));
    return sum;
}

/* Rounds x to the dtype of t, as storing it there would. */
static double
as_stored(const mc_ref_tensor *t, double x)
{
    double storage; /* big enough for one element of any dtype */
    mc_ref_tensor one = {.dtype = t->dtype, .n = 1, .data = &storage};
    put(&one, 0, x);
    return get(&one, 0);
}

bool
mc_ref_RMSNORM(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *w = operand(k, 1);
    double eps = num_round(k, mc_attr_float(k->op, "eps"));
    bool plus_one = mc_attr_bool(k->op, "plus_one"), before = mc_str_is(mc_attr_str(k->op, "round"), "before");
    int64_t n = mc_ref_last(x);
    for (int64_t row = 0; row < mc_ref_rows(x); row++) {
        double mean = num_div(k, sum_of_squares(k, x, row * n, n), (double)n);
        double root = num_sqrt(k, num_add(k, mean, eps));
        for (int64_t i = row * n; i < (row + 1) * n; i++) {
            double y = num_div(k, get(x, i), root);
            if (before) y = as_stored(&k->out[0], y);
            if (w) y = num_mul(k, y, plus_one ? num_add(k, 1, weight_at(w, i)) : weight_at(w, i));
            put(&k->out[0], i, y);
        }
    }
    return true;
}

bool
mc_ref_LAYERNORM(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *w = operand(k, 1), *bias = operand(k, 2);
    double eps = num_round(k, mc_attr_float(k->op, "eps"));
    int64_t n = mc_ref_last(x);
    for (int64_t row = 0; row < mc_ref_rows(x); row++) {
        double sum = 0, squares = 0;
        for (int64_t i = row * n; i < (row + 1) * n; i++) sum = num_add(k, sum, get(x, i));
        double mean = num_div(k, sum, (double)n);
        for (int64_t i = row * n; i < (row + 1) * n; i++) {
            double d = num_sub(k, get(x, i), mean);
            squares = num_add(k, squares, num_mul(k, d, d));
        }
        double root = num_sqrt(k, num_add(k, num_div(k, squares, (double)n), eps));
        for (int64_t i = row * n; i < (row + 1) * n; i++) {
            double y = num_div(k, num_sub(k, get(x, i), mean), root);
            if (w) y = num_mul(k, y, weight_at(w, i));
            if (bias) y = num_add(k, y, weight_at(bias, i));
            put(&k->out[0], i, y);
        }
    }
    return true;
}

bool
mc_ref_L2NORM(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0];
    double eps = num_round(k, mc_attr_float(k->op, "eps"));
    int64_t n = mc_ref_last(x);
    for (int64_t row = 0; row < mc_ref_rows(x); row++) {
        double root = num_sqrt(k, num_add(k, sum_of_squares(k, x, row * n, n), eps));
        for (int64_t i = row * n; i < (row + 1) * n; i++) put(&k->out[0], i, num_div(k, get(x, i), root));
    }
    return true;
}

bool
mc_ref_SOFTMAX(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0];
    mc_ref_tensor *y = &k->out[0];
    int64_t n = mc_ref_last(x);
    for (int64_t row = 0; row < mc_ref_rows(x); row++) {
        double max = -INFINITY, sum = 0;
        double *e = MC_NEW_N(k->arena, double, n);
        for (int64_t i = 0; i < n; i++) max = num_max(get(x, row * n + i), max);
        for (int64_t i = 0; i < n; i++) {
            e[i] = num_exp(k, num_sub(k, get(x, row * n + i), max));
            sum = num_add(k, sum, e[i]);
        }
        for (int64_t i = 0; i < n; i++) put(y, row * n + i, num_div(k, e[i], sum));
    }
    return true;
}
