/* Comparisons of arrays, in double, with a message that says where and by how much. */
#include "tests/support/close.h"

#include "runtime/base/dtype.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    mc_tolerance f32, f64;
} classes[] = {
#define MC_TOLERANCE(class, n32, r32, a32, n64, r64, a64, why) {#class, {n32, r32, a32}, {n64, r64, a64}},
#include "tests/support/tolerances.def"
#undef MC_TOLERANCE
};

/* How far a value is from what is stored of it, relatively. */
static double
storage(moec_dtype dtype)
{
    return dtype == MOEC_BF16 ? 0x1p-8 : dtype == MOEC_F16 ? 0x1p-11 : 0;
}

mc_tolerance
mc_tolerance_of(mc_tol_class class, moec_dtype dtype)
{
    mc_tolerance t = dtype == MOEC_F64 ? classes[class].f64 : classes[class].f32;
    t.norm += storage(dtype);
    t.rel += storage(dtype);
    return t;
}

mc_tol_class
mc_tol_class_find(const char *name)
{
    int i = 0;
    while (i < MC_N_TOL_CLASSES && strcmp(classes[i].name, name) != 0) i++;
    return (mc_tol_class)i;
}

/* 0 when equal (NaN equals NaN), infinity when only one is finite. */
static double
difference(double a, double b)
{
    if (isnan(a) || isnan(b)) return isnan(a) == isnan(b) ? 0 : INFINITY;
    if (a == b) return 0;
    return isinf(a) || isinf(b) ? INFINITY : fabs(a - b);
}

mc_close_report
mc_close_within(mc_array got, mc_array want, mc_tolerance tolerance)
{
    mc_close_report r = {.worst = -1};
    if (got.n != want.n) {
        snprintf(r.text, sizeof r.text, "%lld elements instead of %lld", (long long)got.n, (long long)want.n);
        return r;
    }
    double greatest = 0, scale = 0, excess = -INFINITY, a = 0, b = 0;
    for (int64_t i = 0; i < got.n; i++) {
        double x = mc_load_elem(got.dtype, got.data, (size_t)i), y = mc_load_elem(want.dtype, want.data, (size_t)i);
        double d = difference(x, y), bound = isfinite(y) ? tolerance.abs + tolerance.rel * fabs(y) : 0;
        if (d > greatest) greatest = d;
        if (isfinite(y) && fabs(y) > scale) scale = fabs(y);
        r.n_outside += d > bound;
        if (d - bound <= excess) continue;
        excess = d - bound;
        r.worst = i;
        a = x;
        b = y;
    }
    r.norm_error = greatest == 0 ? 0 : scale > 0 ? greatest / scale : greatest;
    r.ok = r.n_outside == 0 && r.norm_error <= tolerance.norm + (scale > 0 ? tolerance.abs / scale : tolerance.abs);
    snprintf(r.text, sizeof r.text, "%lld of %lld outside, error %.3g of the greatest; at %lld got %.9g, want %.9g",
             (long long)r.n_outside, (long long)got.n, r.norm_error, (long long)r.worst, a, b);
    return r;
}

static bool
is_exact_kind(moec_dtype t)
{
    return !mc_dtype_is_float(t);
}

mc_close_report
mc_close(mc_array got, mc_array want, mc_tol_class class)
{
    if (is_exact_kind(got.dtype) || is_exact_kind(want.dtype)) return mc_close_within(got, want, (mc_tolerance){0});
    moec_dtype less = got.dtype == MOEC_F64 ? want.dtype : got.dtype;
    mc_tolerance t = mc_tolerance_of(class, less);
    if (got.dtype == want.dtype) { /* both were rounded, perhaps away from each other */
        t.norm += storage(less);
        t.rel += storage(less);
    }
    return mc_close_within(got, want, t);
}

mc_close_report
mc_close_exact(mc_array got, mc_array want)
{
    mc_close_report r = mc_close_within(got, want, (mc_tolerance){0});
    bool same = got.dtype == want.dtype && got.n == want.n;
    r.ok = same && (got.n == 0 || memcmp(got.data, want.data, (size_t)got.n * moec_dtype_bytes(got.dtype)) == 0);
    return r;
}
