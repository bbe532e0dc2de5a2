/* Element types: every pattern of the narrow formats, and rounding between every two neighbours. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/dtype.h"

/* A narrow format, through functions of one shape. */
typedef struct format {
    moec_dtype dtype;
    const char *name;
    uint32_t n_patterns, sign, first_nan; /* magnitudes from first_nan on are NaN */
    uint32_t greatest, infinity;          /* infinity 0: none, overflow gives the greatest */
    int mantissa_bits, bias;
} format;

static const format formats[] = {
    {MOEC_BF16, "bf16", 65536, 0x8000, 0x7F81, 0x7F7F, 0x7F80, 7, 127},
    {MOEC_F16, "f16", 65536, 0x8000, 0x7C01, 0x7BFF, 0x7C00, 10, 15},
    {MOEC_F8E4M3, "f8e4m3", 256, 0x80, 0x7F, 0x7E, 0, 3, 7},
    {MOEC_F8E5M2, "f8e5m2", 256, 0x80, 0x7D, 0x7B, 0x7C, 2, 15},
};
enum { N_FORMATS = sizeof formats / sizeof formats[0] };

static float
widen(const format *f, uint32_t bits)
{
    uint16_t wide = (uint16_t)bits;
    uint8_t narrow = (uint8_t)bits;
    return (float)mc_load_elem(f->dtype, f->n_patterns > 256 ? (const void *)&wide : (const void *)&narrow, 0);
}

static uint32_t
narrow(const format *f, float x)
{
    uint16_t wide = 0;
    uint8_t byte = 0;
    mc_store_elem(f->dtype, f->n_patterns > 256 ? (void *)&wide : (void *)&byte, 0, (double)x);
    return f->n_patterns > 256 ? wide : byte;
}

/* The value of a finite magnitude by the definition of the format. */
static double
defined_value(const format *f, uint32_t magnitude)
{
    uint32_t field = magnitude >> f->mantissa_bits;
    double fraction = (double)(magnitude & ((1u << f->mantissa_bits) - 1)) / (double)(1u << f->mantissa_bits);
    if (field == 0) return fraction * pow(2, 1 - f->bias);
    return (1 + fraction) * pow(2, (int)field - f->bias);
}

START_TEST(every_pattern_widens_and_returns)
{
    const format *f = &formats[_i];
    for (uint32_t bits = 0; bits < f->n_patterns; bits++) {
        uint32_t magnitude = bits & ~f->sign;
        float x = widen(f, bits);
        if (magnitude >= f->first_nan) {
            ck_assert_msg(isnan(x), "%s %x", f->name, bits);
            ck_assert_msg((narrow(f, x) & ~f->sign) >= f->first_nan, "%s %x", f->name, bits);
            continue;
        }
        double want = f->infinity && magnitude == f->infinity ? HUGE_VAL : defined_value(f, magnitude);
        ck_assert_msg((double)x == (bits & f->sign ? -want : want), "%s %x is %g", f->name, bits, (double)x);
        ck_assert_msg(narrow(f, x) == bits, "%s %x comes back as %x", f->name, bits, narrow(f, x));
        ck_assert_msg(!signbit(x) == !(bits & f->sign), "%s %x", f->name, bits);
    }
}
END_TEST

START_TEST(every_gap_rounds_to_nearest_even)
{
    const format *f = &formats[_i];
    for (uint32_t bits = 0; bits < f->greatest; bits++) {
        float low = widen(f, bits), high = widen(f, bits + 1);
        float middle = (float)(((double)low + (double)high) / 2); /* exact: f32 has more bits */
        uint32_t even = bits % 2 ? bits + 1 : bits;
        ck_assert_msg(narrow(f, middle) == even, "%s: between %x and %x", f->name, bits, bits + 1);
        ck_assert_msg(narrow(f, nextafterf(middle, 0)) == bits, "%s: below the middle of %x", f->name, bits);
        ck_assert_msg(narrow(f, nextafterf(middle, high)) == bits + 1, "%s: above the middle of %x", f->name, bits);
        ck_assert_msg(narrow(f, -middle) == (even | f->sign), "%s: between -%x and -%x", f->name, bits, bits + 1);
    }
}
END_TEST

START_TEST(overflow_is_as_documented)
{
    const format *f = &formats[_i];
    uint32_t overflow = f->infinity ? f->infinity : f->greatest;
    float greatest = widen(f, f->greatest), step = greatest - widen(f, f->greatest - 1);
    ck_assert_uint_eq(narrow(f, nextafterf(greatest + step / 2, 0)), f->greatest);
    ck_assert_uint_eq(narrow(f, greatest + step / 2), overflow); /* the tie goes away from an odd mantissa */
    ck_assert_uint_eq(narrow(f, INFINITY), overflow);
    ck_assert_uint_eq(narrow(f, -INFINITY), overflow | f->sign);
    if (f->dtype != MOEC_BF16) ck_assert_uint_eq(narrow(f, 3e38f), overflow);
    ck_assert_uint_eq(narrow(f, -0.0f), f->sign);
    ck_assert_uint_eq(narrow(f, 1e-45f), 0);
}
END_TEST

START_TEST(names_go_both_ways)
{
    for (int t = MOEC_F32; t <= MOEC_BOOL; t++) {
        moec_dtype dtype = (moec_dtype)t;
        ck_assert_int_eq(mc_dtype_parse(mc_str_of(moec_dtype_name(dtype))), t);
        ck_assert_int_eq(mc_dtype_from_safetensors(mc_str_of(mc_dtype_safetensors_name(dtype))), t);
        ck_assert_uint_gt(moec_dtype_bytes(dtype), 0);
        ck_assert_int_eq(mc_dtype_is_float(dtype), t <= MOEC_F64);
    }
    ck_assert_int_eq(mc_dtype_parse(MC_STR("none")), MOEC_DTYPE_NONE);
    ck_assert_int_eq(mc_dtype_parse(MC_STR("")), MOEC_DTYPE_NONE);
    ck_assert_int_eq(mc_dtype_from_safetensors(MC_STR("bf16")), MOEC_DTYPE_NONE);
    ck_assert_uint_eq(moec_dtype_bytes(MOEC_DTYPE_NONE), 0);
    ck_assert_uint_eq(moec_dtype_bytes((moec_dtype)99), 0);
    ck_assert_str_eq(moec_dtype_name((moec_dtype)99), "unknown");
}
END_TEST

START_TEST(elements_load_and_store)
{
    for (int t = MOEC_F32; t <= MOEC_BOOL; t++) {
        double array[4] = {0};
        moec_dtype dtype = (moec_dtype)t;
        for (size_t i = 0; i < 4; i++) mc_store_elem(dtype, array, i, (double)i);
        for (size_t i = 0; i < 4; i++)
            ck_assert_msg(mc_load_elem(dtype, array, i) == (double)i, "%s", moec_dtype_name(dtype));
    }
    int32_t ids[2];
    mc_store_elem(MOEC_I32, ids, 1, -7);
    ck_assert_int_eq(ids[1], -7);
    int64_t wide;
    mc_store_elem(MOEC_I64, &wide, 0, 1e15);
    ck_assert_int_eq(wide, 1000000000000000);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("dtype");
    TCase *all = tcase_create("dtype");
    tcase_set_timeout(all, 60);
    tcase_add_loop_test(all, every_pattern_widens_and_returns, 0, N_FORMATS);
    tcase_add_loop_test(all, every_gap_rounds_to_nearest_even, 0, N_FORMATS);
    tcase_add_loop_test(all, overflow_is_as_documented, 0, N_FORMATS);
    tcase_add_test(all, names_go_both_ways);
    tcase_add_test(all, elements_load_and_store);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
