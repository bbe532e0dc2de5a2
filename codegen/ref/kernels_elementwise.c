/* Elementwise ops: two operands that broadcast, or one. */
#include "codegen/ref/num.h"

typedef double binary_fn(const mc_ref_op *k, double a, double b);

/* The flat index in `t` of element i of a result of shape `out`, right aligned; an axis of 1 stretches. */
static int64_t
broadcast_index(const mc_ref_tensor *t, const mc_ref_tensor *out, int64_t i)
{
    int64_t index = 0, stride = 1;
    for (int d = 0; d < out->rank; d++) {
        int64_t at = i % out->dims[out->rank - 1 - d];
        i /= out->dims[out->rank - 1 - d];
        if (d >= t->rank) break;
        int64_t n = t->dims[t->rank - 1 - d];
        index += n == 1 ? 0 : at * stride;
        stride *= n;
    }
    return index;
}

static bool
binary(mc_ref_op *k, binary_fn *f)
{
    mc_ref_tensor *y = &k->out[0];
    for (int64_t i = 0; i < y->n; i++)
        put(y, i, f(k, get(k->in[0], broadcast_index(k->in[0], y, i)), get(k->in[1], broadcast_index(k->in[1], y, i))));
    return true;
}

bool
mc_ref_ADD(mc_ref_op *k)
{
    return binary(k, num_add);
}

bool
mc_ref_SUB(mc_ref_op *k)
{
    return binary(k, num_sub);
}

bool
mc_ref_MUL(mc_ref_op *k)
{
    return binary(k, num_mul);
}

bool
mc_ref_DIV(mc_ref_op *k)
{
    return binary(k, num_div);
}

typedef double unary_fn(const mc_ref_op *k, double x);

static bool
unary(mc_ref_op *k, unary_fn *f)
{
    for (int64_t i = 0; i < k->out[0].n; i++) put(&k->out[0], i, f(k, get(k->in[0], i)));
    return true;
}

static double
neg(const mc_ref_op *k, double x)
{
    (void)k;
    return -x;
}

static double
sigmoid(const mc_ref_op *k, double x)
{
    return num_div(k, 1, num_add(k, 1, num_exp(k, -x)));
}

static double
silu(const mc_ref_op *k, double x)
{
    return num_div(k, x, num_add(k, 1, num_exp(k, -x)));
}

static double
gelu(const mc_ref_op *k, double x)
{
    double e = num_erf(k, num_mul(k, x, num_round(k, 0.70710678118654752440)));
    return num_mul(k, num_mul(k, x, num_add(k, 1, e)), 0.5);
}

static double
gelu_tanh(const mc_ref_op *k, double x)
{
    double cube = num_mul(k, num_mul(k, x, x), x);
    double inner = num_add(k, x, num_mul(k, num_round(k, 0.044715), cube));
    double t = num_tanh(k, num_mul(k, num_round(k, 0.79788456080286535588), inner));
    return num_mul(k, num_mul(k, x, num_add(k, 1, t)), 0.5);
}

static double
relu(const mc_ref_op *k, double x)
{
    (void)k;
    return num_max(x, 0);
}

static double
relu2(const mc_ref_op *k, double x)
{
    return num_mul(k, num_max(x, 0), num_max(x, 0));
}

static double
softplus(const mc_ref_op *k, double x)
{
    return x > 20 ? x : num_log1p(k, num_exp(k, x));
}

double
mc_ref_activate(const mc_ref_op *k, mc_opcode activation, double x)
{
    switch (activation) {
    case MC_OP_SILU: return silu(k, x);
    case MC_OP_GELU: return gelu(k, x);
    case MC_OP_GELU_TANH: return gelu_tanh(k, x);
    case MC_OP_RELU: return relu(k, x);
    case MC_OP_RELU2: return relu2(k, x);
    case MC_OP_SIGMOID: return sigmoid(k, x);
    default: return NAN;
    }
}

/* clang-format off */
bool mc_ref_NEG(mc_ref_op *k)       { return unary(k, neg); }
bool mc_ref_SILU(mc_ref_op *k)      { return unary(k, silu); }
bool mc_ref_GELU(mc_ref_op *k)      { return unary(k, gelu); }
bool mc_ref_GELU_TANH(mc_ref_op *k) { return unary(k, gelu_tanh); }
bool mc_ref_RELU(mc_ref_op *k)      { return unary(k, relu); }
bool mc_ref_RELU2(mc_ref_op *k)     { return unary(k, relu2); }
bool mc_ref_SIGMOID(mc_ref_op *k)   { return unary(k, sigmoid); }
bool mc_ref_TANH(mc_ref_op *k)      { return unary(k, num_tanh); }
bool mc_ref_EXP(mc_ref_op *k)       { return unary(k, num_exp); }
bool mc_ref_LOG(mc_ref_op *k)       { return unary(k, num_log); }
bool mc_ref_LOG1P(mc_ref_op *k)     { return unary(k, num_log1p); }
bool mc_ref_SQRT(mc_ref_op *k)      { return unary(k, num_sqrt); }
bool mc_ref_SOFTPLUS(mc_ref_op *k)  { return unary(k, softplus); }
bool mc_ref_FLOOR(mc_ref_op *k)     { return unary(k, num_floor); }
/* clang-format on */

bool
mc_ref_CLAMP(mc_ref_op *k)
{
    double lo = num_round(k, mc_attr_float(k->op, "lo")), hi = num_round(k, mc_attr_float(k->op, "hi"));
    for (int64_t i = 0; i < k->out[0].n; i++) {
        double x = get(k->in[0], i);
        if (x < lo) x = lo;
        if (x > hi) x = hi;
        put(&k->out[0], i, x);
    }
    return true;
}

bool
mc_ref_SOFTCAP(mc_ref_op *k)
{
    double cap = num_round(k, mc_attr_float(k->op, "cap"));
    for (int64_t i = 0; i < k->out[0].n; i++)
        put(&k->out[0], i, num_mul(k, cap, num_tanh(k, num_div(k, get(k->in[0], i), cap))));
    return true;
}
