/* close: how near two arrays are. Two measures, both from tolerances.def, never typed into a test:
 *   norm     max |got - want| / max |want|                    the usual error of a whole result
 *   mixed    |got - want| <= abs + rel * |want| for each element
 * NaN equals NaN, an infinity equals the same infinity. Integers must be equal whatever the class.
 *
 *     mc_close_report r = mc_close(MC_ARRAY(a), MC_ARRAY(b), MC_TOL_MATMUL);
 *     ck_assert_msg(r.ok, "%s", r.text);
 */
#ifndef MC_SUPPORT_CLOSE_H
#define MC_SUPPORT_CLOSE_H

#include "moec/base.h"

typedef enum mc_tol_class {
#define MC_TOLERANCE(class, f32_norm, f32_rel, f32_abs, f64_norm, f64_rel, f64_abs, why) MC_TOL_##class,
#include "tests/support/tolerances.def"
#undef MC_TOLERANCE
    MC_N_TOL_CLASSES
} mc_tol_class;

typedef struct mc_tolerance {
    double norm, rel, abs;
} mc_tolerance;

/* The tolerance of a class when the less precise side has element type dtype (f32, f64; bf16 and f16 add their
 * rounding). */
mc_tolerance mc_tolerance_of(mc_tol_class class, moec_dtype dtype);
/* By name, e.g. "MATMUL"; MC_N_TOL_CLASSES when unknown. */
mc_tol_class mc_tol_class_find(const char *name);

typedef struct mc_array {
    moec_dtype dtype;
    const void *data;
    int64_t n;
} mc_array;
/* Of anything with dtype, data and n, such as mc_ref_tensor. */
#define MC_ARRAY(t) ((mc_array){(t).dtype, (t).data, (t).n})

typedef struct mc_close_report {
    bool ok;
    double norm_error; /* max |got - want| / max |want|; the plain maximum when want is all 0 */
    int64_t n_outside; /* elements outside the mixed tolerance */
    int64_t worst;     /* the element farthest outside, or with the greatest difference */
    char text[240];    /* one line for a failed assertion */
} mc_close_report;

mc_close_report mc_close(mc_array got, mc_array want, mc_tol_class class);
/* With a tolerance of one's own, for tools that print errors. */
mc_close_report mc_close_within(mc_array got, mc_array want, mc_tolerance tolerance);
/* The same bits: same dtype, size and bytes. */
mc_close_report mc_close_exact(mc_array got, mc_array want);

#endif
