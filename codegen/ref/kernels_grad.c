/* Derivatives of elementwise ops and of ops along rows. slope() is the derivative of each elementwise op; at a corner
 * it is the one on the flat side, and where x is NaN it is NaN. */
#include "codegen/ref/num.h"

static double
sigmoid(const mc_ref_op *k, double x)
{
    return num_div(k, 1, num_add(k, 1, num_exp(k, -x)));
}

/* s (1 + x (1 - s)) */
static double
silu_slope(const mc_ref_op *k, double x)
{
    double s = sigmoid(k, x);
    return num_mul(k, s, num_add(k, 1, num_mul(k, x, num_sub(k, 1, s))));
}

/* (1 + erf(x / sqrt 2)) / 2 + x exp(-x^2 / 2) / sqrt(2 pi) */
static double
gelu_slope(const mc_ref_op *k, double x)
{
    double e = num_erf(k, num_mul(k, x, num_round(k, 0.70710678118654752440)));
    double density = num_mul(k, num_exp(k, num_mul(k, -0.5, num_mul(k, x, x))), num_round(k, 0.39894228040143267794));
    return num_add(k, num_mul(k, 0.5, num_add(k, 1, e)), num_mul(k, x, density));
}

/* (1 + t) / 2 + x (1 - t^2) / 2 * sqrt(2 / pi) (1 + 3 * 0.044715 x^2) for t = tanh(...) */
static double
gelu_tanh_slope(const mc_ref_op *k, double x)
{
    double root = num_round(k, 0.79788456080286535588), square = num_mul(k, x, x);
    double cubic = num_mul(k, num_round(k, 0.044715), num_mul(k, square, x));
    double t = num_tanh(k, num_mul(k, root, num_add(k, x, cubic)));
    double inner = num_mul(k, root, num_add(k, 1, num_mul(k, num_round(k, 3 * 0.044715), square)));
    double bend = num_mul(k, num_mul(k, num_mul(k, 0.5, x), num_sub(k, 1, num_mul(k, t, t))), inner);
    return num_add(k, num_mul(k, 0.5, num_add(k, 1, t)), bend);
}

static double
step(double x, double lo, double hi)
{
    return isnan(x) ? x : x >= lo && x <= hi;
}

/* 1 - tanh(x)^2 */
static double
tanh_slope(const mc_ref_op *k, double x)
{
    double t = num_tanh(k, x);
    return num_sub(k, 1, num_mul(k, t, t));
}

/* lo, hi, cap: attributes of clamp and softcap, of no meaning to others. */
static double
slope(const mc_ref_op *k, mc_opcode of, double x, double lo, double hi, double cap)
{
    double s;
    switch (of) {
    case MC_OP_NEG: return -1;
    case MC_OP_SILU: return silu_slope(k, x);
    case MC_OP_GELU: return gelu_slope(k, x);
    case MC_OP_GELU_TANH: return gelu_tanh_slope(k, x);
    case MC_OP_RELU: return isnan(x) ? x : x > 0;
    case MC_OP_RELU2: return num_mul(k, 2, num_max(x, 0));
    case MC_OP_SIGMOID: s = sigmoid(k, x); return num_mul(k, s, num_sub(k, 1, s));
    case MC_OP_TANH: return tanh_slope(k, x);
    case MC_OP_EXP: return num_exp(k, x);
    case MC_OP_LOG: return num_div(k, 1, x);
    case MC_OP_LOG1P: return num_div(k, 1, num_add(k, 1, x));
    case MC_OP_SQRT: return num_div(k, 0.5, num_sqrt(k, x));
    case MC_OP_SOFTPLUS: return x > 20 ? 1 : sigmoid(k, x);
    case MC_OP_FLOOR: return 0;
    case MC_OP_CLAMP: return step(x, lo, hi);
    case MC_OP_SOFTCAP: return tanh_slope(k, num_div(k, x, cap));
    default: return NAN;
    }
}

bool
mc_ref_UNARY_GRAD(mc_ref_op *k)
{
    mc_opcode of = mc_opcode_find(mc_attr_str(k->op, "of"));
    double lo = num_round(k, mc_attr_float(k->op, "lo")), hi = num_round(k, mc_attr_float(k->op, "hi"));
    double cap = num_round(k, mc_attr_float(k->op, "cap"));
    for (int64_t i = 0; i < k->out[0].n; i++)
        put(&k->out[0], i, num_mul(k, get(k->in[1], i), slope(k, of, get(k->in[0], i), lo, hi, cap)));
    return true;
}

/* ---- gated units ---- */

bool
mc_ref_GLU(mc_ref_op *k)
{
    mc_opcode act = mc_opcode_find(mc_attr_str(k->op, "act"));
    for (int64_t i = 0; i < k->out[0].n; i++)
        put(&k->out[0], i, num_mul(k, mc_ref_activate(k, act, get(k->in[0], i)), get(k->in[1], i)));
    return true;
}

/* Element i of results 0 (dg) and 1 (du). */
static void
glu_grad(mc_ref_op *k, mc_opcode act, int64_t i, double dh)
{
    double g = get(k->in[0], i), u = get(k->in[1], i);
    put(&k->out[0], i, num_mul(k, num_mul(k, dh, u), slope(k, act, g, 0, 0, 0)));
    put(&k->out[1], i, num_mul(k, dh, mc_ref_activate(k, act, g)));
}

bool
mc_ref_GLU_GRAD(mc_ref_op *k)
{
    mc_opcode act = mc_opcode_find(mc_attr_str(k->op, "act"));
    for (int64_t i = 0; i < k->in[2]->n; i++) glu_grad(k, act, i, get(k->in[2], i));
    return true;
}

bool
mc_ref_MOE_GLU_GRAD(mc_ref_op *k)
{
    mc_opcode act = mc_opcode_find(mc_attr_str(k->op, "act"));
    const mc_ref_tensor *g = k->in[0], *u = k->in[1], *da = k->in[2], *gates = k->in[3];
    int64_t width = mc_ref_last(g);
    for (int64_t r = 0; r < mc_ref_rows(g); r++) {
        double sum = 0;
        for (int64_t i = r * width; i < (r + 1) * width; i++) {
            double h = num_mul(k, mc_ref_activate(k, act, get(g, i)), get(u, i));
            put(&k->out[2], i, h);
            sum = num_fma(k, get(da, i), h, sum);
            glu_grad(k, act, i, num_mul(k, get(gates, r), get(da, i)));
        }
        put(&k->out[3], r, sum);
    }
    return true;
}

/* ---- along rows ---- */

static double
row_sum(const mc_ref_op *k, const double *a, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum = num_add(k, sum, a[i]);
    return sum;
}

static double
row_product(const mc_ref_op *k, const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum = num_fma(k, a[i], b[i], sum);
    return sum;
}

static void
read_row(const mc_ref_tensor *t, int64_t row, double *out)
{
    int64_t n = mc_ref_last(t);
    for (int64_t i = 0; i < n; i++) out[i] = get(t, row * n + i);
}

/* y = (x - m) / r, with m the mean for layernorm and else 0, and r^2 = sum (x - m)^2 / count + eps; then
 * dx = (dy - mean(dy) - y * sum(dy * y) / count) / r, mean(dy) for layernorm only. x and dy are overwritten. */
static void
norm_row(mc_ref_op *k, int64_t row, double *x, double *dy, int64_t n)
{
    mc_str of = mc_attr_str(k->op, "of");
    bool centred = mc_str_is(of, "layernorm");
    double count = mc_str_is(of, "l2norm") ? 1 : (double)n, eps = num_round(k, mc_attr_float(k->op, "eps"));
    double mean = centred ? num_div(k, row_sum(k, x, n), (double)n) : 0;
    for (int64_t i = 0; i < n; i++) x[i] = num_sub(k, x[i], mean);
    double root = num_sqrt(k, num_add(k, num_div(k, row_product(k, x, x, n), count), eps));
    for (int64_t i = 0; i < n; i++) x[i] = num_div(k, x[i], root); /* now y */
    double dy_mean = centred ? num_div(k, row_sum(k, dy, n), (double)n) : 0;
    double along = num_div(k, row_product(k, dy, x, n), count);
    for (int64_t i = 0; i < n; i++) {
        double d = num_sub(k, num_sub(k, dy[i], dy_mean), num_mul(k, x[i], along));
        put(&k->out[0], row * n + i, num_div(k, d, root));
    }
}

bool
mc_ref_NORM_GRAD(mc_ref_op *k)
{
    int64_t n = mc_ref_last(k->in[0]);
    double *x = MC_NEW_N(k->arena, double, n), *dy = MC_NEW_N(k->arena, double, n);
    for (int64_t row = 0; row < mc_ref_rows(k->in[0]); row++) {
        read_row(k->in[0], row, x);
        read_row(k->in[1], row, dy);
        norm_row(k, row, x, dy, n);
    }
    return true;
}

bool
mc_ref_SOFTMAX_GRAD(mc_ref_op *k)
{
    int64_t n = mc_ref_last(k->in[0]);
    double *y = MC_NEW_N(k->arena, double, n), *dy = MC_NEW_N(k->arena, double, n);
    for (int64_t row = 0; row < mc_ref_rows(k->in[0]); row++) {
        read_row(k->in[0], row, y);
        read_row(k->in[1], row, dy);
        double sum = row_product(k, dy, y, n);
        for (int64_t i = 0; i < n; i++) put(&k->out[0], row * n + i, num_mul(k, y[i], num_sub(k, dy[i], sum)));
    }
    return true;
}

/* The derivative of N = (sum |w|^p)^(1/p): sign(w) (|w| / N)^(p - 1); 0 at w = 0. */
static double
length_slope(const mc_ref_op *k, double w, double length, double p)
{
    if (w == 0) return 0;
    double size = p == 1 ? 1 : num_pow(k, num_div(k, fabs(w), length), p - 1);
    return w < 0 ? -size : size;
}

/* y = w / D(w): dw = (dy - dD * sum(dy * y)) / D. */
static void
renorm_row(mc_ref_op *k, int64_t row, const double *w, const double *dy, int64_t n)
{
    double eps = num_round(k, mc_attr_float(k->op, "eps")), p = mc_attr_float(k->op, "p"), length = 0;
    double floor = num_round(k, mc_attr_float(k->op, "floor")), total = row_sum(k, w, n), along = 0;
    for (int64_t i = 0; i < n; i++) length = num_add(k, length, p == 1 ? fabs(w[i]) : num_pow(k, fabs(w[i]), p));
    if (p != 1) length = num_pow(k, length, 1 / p);
    double d = floor > 0 ? num_max(total, floor) : num_add(k, length, eps);
    for (int64_t i = 0; i < n; i++) along = num_fma(k, dy[i], num_div(k, w[i], d), along);
    for (int64_t i = 0; i < n; i++) {
        double dd = floor > 0 ? !(total < floor) : length_slope(k, w[i], length, p);
        put(&k->out[0], row * n + i, num_div(k, num_sub(k, dy[i], num_mul(k, dd, along)), d));
    }
}

bool
mc_ref_ROUTE_RENORM_GRAD(mc_ref_op *k)
{
    int64_t n = mc_ref_last(k->in[0]);
    double *w = MC_NEW_N(k->arena, double, n), *dy = MC_NEW_N(k->arena, double, n);
    for (int64_t row = 0; row < mc_ref_rows(k->in[0]); row++) {
        read_row(k->in[0], row, w);
        read_row(k->in[1], row, dy);
        renorm_row(k, row, w, dy, n);
    }
    return true;
}

bool
mc_ref_ROW_DOT(mc_ref_op *k)
{
    int64_t n = mc_ref_last(k->in[0]);
    for (int64_t row = 0; row < k->out[0].n; row++) {
        double sum = 0;
        for (int64_t i = row * n; i < (row + 1) * n; i++) sum = num_fma(k, get(k->in[0], i), get(k->in[1], i), sum);
        put(&k->out[0], row, sum);
    }
    return true;
}

/* ---- broadcasting ---- */

bool
mc_ref_SUM_TO(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0];
    mc_ref_tensor *y = &k->out[0];
    for (int64_t i = 0; i < x->n; i++) {
        int64_t rest = i, at = 0, stride = 1;
        for (int d = 1; d <= y->rank; d++) {
            int64_t n = x->dims[x->rank - d], to = y->dims[y->rank - d];
            at += to == 1 ? 0 : rest % n * stride;
            rest /= n;
            stride *= to;
        }
        put(y, at, num_add(k, get(y, at), get(x, i)));
    }
    return true;
}

bool
mc_ref_FILL(mc_ref_op *k)
{
    for (int64_t i = 0; i < k->out[0].n; i++) put(&k->out[0], i, mc_attr_float(k->op, "value"));
    return true;
}
