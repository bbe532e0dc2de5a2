/* num: arithmetic in the precision of the run. Operands and results are doubles that hold an f32 (F32) or any double
 * (F64). Rounding a double sum, difference, product, quotient or root of two f32 to f32 gives what f32 arithmetic gives
 * (53 >= 2 * 24 + 2 bits); a fused multiply-add does not, so it has a case of its own. */
#ifndef MC_REF_NUM_H
#define MC_REF_NUM_H

#include "codegen/ref/ref.h"
#include "runtime/base/dtype.h"

#include <math.h>

static inline double
num_round(const mc_ref_op *k, double x)
{
    return k->f64 ? x : (double)(float)x;
}

static inline double
num_add(const mc_ref_op *k, double a, double b)
{
    return num_round(k, a + b);
}

static inline double
num_sub(const mc_ref_op *k, double a, double b)
{
    return num_round(k, a - b);
}

static inline double
num_mul(const mc_ref_op *k, double a, double b)
{
    return num_round(k, a * b);
}

static inline double
num_div(const mc_ref_op *k, double a, double b)
{
    return num_round(k, a / b);
}

static inline double
num_fma(const mc_ref_op *k, double a, double b, double c)
{
    return k->f64 ? fma(a, b, c) : (double)fmaf((float)a, (float)b, (float)c);
}

#define NUM_LIBM(name)                                                                                                 \
    static inline double num_##name(const mc_ref_op *k, double x)                                                      \
    {                                                                                                                  \
        return k->f64 ? name(x) : (double)name##f((float)x);                                                           \
    }
NUM_LIBM(exp)
NUM_LIBM(log)
NUM_LIBM(log1p)
NUM_LIBM(sqrt)
NUM_LIBM(tanh)
NUM_LIBM(erf)
NUM_LIBM(sin)
NUM_LIBM(cos)
NUM_LIBM(floor)
#undef NUM_LIBM

static inline double
num_pow(const mc_ref_op *k, double x, double y)
{
    return k->f64 ? pow(x, y) : (double)powf((float)x, (float)y);
}

/* The greater, NaN if either is. */
static inline double
num_max(double a, double b)
{
    return isnan(a) || a > b ? a : b;
}

/* Operand i, or NULL when it is absent. */
static inline const mc_ref_tensor *
operand(const mc_ref_op *k, int i)
{
    return i < k->n_in ? k->in[i] : NULL;
}

static inline double
get(const mc_ref_tensor *t, int64_t i)
{
    switch (t->dtype) {
    case MOEC_F32: return ((const float *)t->data)[i];
    case MOEC_F64: return ((const double *)t->data)[i];
    case MOEC_I32: return ((const int32_t *)t->data)[i];
    default: return mc_load_elem(t->dtype, t->data, (size_t)i);
    }
}

static inline int64_t
get_id(const mc_ref_tensor *t, int64_t i)
{
    if (t->dtype == MOEC_I32) return ((const int32_t *)t->data)[i];
    if (t->dtype == MOEC_I64) return ((const int64_t *)t->data)[i];
    double x = get(t, i);
    return x >= -1e15 && x <= 1e15 ? (int64_t)x : INT64_MIN; /* a table stored as floats; NaN is no id */
}

static inline void
put(mc_ref_tensor *t, int64_t i, double x)
{
    switch (t->dtype) {
    case MOEC_F32: ((float *)t->data)[i] = (float)x; return;
    case MOEC_F64: ((double *)t->data)[i] = x; return;
    default: mc_ref_tensor_set(t, i, x); return;
    }
}

#endif
