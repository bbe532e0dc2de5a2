/* The elementary functions against libm in double: accuracy over the whole range of floats, limits, NaN, and the same
 * bits from scalars and from vectors of any length. Also the builder's loops and conversions, and the JIT on many
 * threads. */
#define _POSIX_C_SOURCE 200809L
#include "codegen/cpu/llvm_emit.h"
#include "codegen/cpu/llvm_jit.h"
#include "codegen/cpu/math.h"
#include "runtime/base/dtype.h"

#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 1 << 18 };

static double
ref_rsqrt(double x)
{
    return 1 / sqrt(x);
}

static double
ref_sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static double
ref_silu(double x)
{
    return x / (1 + exp(-x));
}

static double
ref_softplus(double x)
{
    return x > 20 ? x : log1p(exp(x));
}

static double
ref_gelu(double x)
{
    return x * (1 + erf(x * 0.70710678118654752)) / 2;
}

static double
ref_gelu_tanh(double x)
{
    return x * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x))) / 2;
}

/* clang-format off */
typedef struct function {
    const char *name;
    LLVMValueRef (*emit)(mc_kb *kb, LLVMValueRef x);
    double (*reference)(double x);
    double tolerance; /* relative to the result, or to |x| */
    bool of_x;
    double low, high; /* where the tolerance holds */
} function;

static const function FUNCTIONS[] = {
    {"exp", kb_exp, exp, 3e-7, false, -87.3, 88.7},
    {"log", kb_log, log, 3e-7, false, 0, INFINITY},
    {"log1p", kb_log1p, log1p, 3e-7, false, -0.9999999, INFINITY},
    {"tanh", kb_tanh, tanh, 3e-7, false, -INFINITY, INFINITY},
    {"erf", kb_erf, erf, 3e-7, false, -INFINITY, INFINITY},
    {"rsqrt", kb_rsqrt, ref_rsqrt, 3e-7, false, 0, INFINITY},
    {"sigmoid", kb_sigmoid, ref_sigmoid, 3e-7, false, -87, INFINITY},
    {"silu", kb_silu, ref_silu, 3e-7, false, -80, INFINITY},
    {"softplus", kb_softplus, ref_softplus, 4e-7, false, -80, INFINITY},
    {"gelu", kb_gelu, ref_gelu, 2e-7, true, -1e30, 1e30},
    {"gelu_tanh", kb_gelu_tanh, ref_gelu_tanh, 2e-7, true, -1e12, 1e12},
};
/* clang-format on */
enum { N_FUNCTIONS = sizeof FUNCTIONS / sizeof FUNCTIONS[0] };

static mc_arena *arena;
static mc_diags diags;
static mc_jit *jit;
static mc_buf object;
static moec_kernel_fn *vectors[N_FUNCTIONS], *scalars[N_FUNCTIONS], *sums, *narrows, *widens, *splits;

/* y[i] = f(x[i]) for i below the count: by vectors with a masked rest, and one by one. */
static void
add_function(mc_kb *kb, const function *f)
{
    kb_kernel_begin(kb, mc_strf(arena, "%s_v", f->name).data);
    LLVMValueRef x = kb_arg_ptr(kb, 0), y = kb_arg_ptr(kb, 1), n = kb_arg_int(kb, 0), zero = kb_i64(kb, 0);
    for (kb_vloop l = kb_vloop_begin(kb, zero, n, 0, NULL); kb_vloop_next(kb, &l);) {
        LLVMValueRef v = kb_load_f32(kb, MOEC_F32, kb_elem(kb, x, l.i, 4), l.lanes, l.mask);
        kb_store_f32(kb, MOEC_F32, f->emit(kb, v), kb_elem(kb, y, l.i, 4), l.mask);
    }
    kb_kernel_end(kb);
    kb_kernel_begin(kb, mc_strf(arena, "%s_s", f->name).data);
    x = kb_arg_ptr(kb, 0), y = kb_arg_ptr(kb, 1), n = kb_arg_int(kb, 0);
    kb_loop l = kb_loop_begin(kb, zero, n, kb_i64(kb, 1), 0, NULL);
    LLVMValueRef v = kb_load(kb, kb->f32, kb_elem(kb, x, l.i, 4), 4);
    kb_store(kb, f->emit(kb, v), kb_elem(kb, y, l.i, 4), 4);
    kb_loop_end(kb, &l);
    kb_kernel_end(kb);
}

/* y[0] = sum of x, y[1] = greatest, over n elements: carried values and a masked rest. */
static void
add_sums(mc_kb *kb)
{
    kb_kernel_begin(kb, "sums");
    LLVMValueRef x = kb_arg_ptr(kb, 0), y = kb_arg_ptr(kb, 1),
                 init[2] = {LLVMConstNull(kb->vf), kb_const(kb->vf, -1e30)};
    kb_vloop l = kb_vloop_begin(kb, kb_i64(kb, 0), kb_arg_int(kb, 0), 2, init);
    while (kb_vloop_next(kb, &l)) {
        LLVMValueRef v = kb_load_f32(kb, MOEC_F32, kb_elem(kb, x, l.i, 4), l.lanes, l.mask);
        l.v[0] = kb_fadd(kb, l.v[0], v);
        l.v[1] = kb_keep(kb, l.mask, kb_fmax(kb, v, l.v[1]), l.v[1]);
    }
    kb_store(kb, kb_reduce_add(kb, &l.v[0], 1), y, 4);
    kb_store(kb, kb_reduce_max(kb, &l.v[1], 1), kb_gepi(kb, y, 4), 4);
    kb_kernel_end(kb);
}

static const moec_dtype NARROW[] = {MOEC_BF16, MOEC_F16}, WIDE[] = {MOEC_BF16, MOEC_F16, MOEC_F8E4M3, MOEC_F8E5M2};

/* ptr 0 -> ptr 1.. : every dtype of NARROW, or WIDE */
static void
add_conversions(mc_kb *kb)
{
    kb_kernel_begin(kb, "narrows");
    LLVMValueRef x = kb_arg_ptr(kb, 0), n = kb_arg_int(kb, 0), zero = kb_i64(kb, 0);
    for (kb_vloop l = kb_vloop_begin(kb, zero, n, 0, NULL); kb_vloop_next(kb, &l);)
        for (int t = 0; t < 2; t++)
            kb_store_f32(kb, NARROW[t], kb_load_f32(kb, MOEC_F32, kb_elem(kb, x, l.i, 4), l.lanes, l.mask),
                         kb_elem(kb, kb_arg_ptr(kb, 1 + t), l.i, 2), l.mask);
    kb_kernel_end(kb);
    kb_kernel_begin(kb, "widens");
    n = kb_arg_int(kb, 0);
    for (kb_vloop l = kb_vloop_begin(kb, zero, n, 0, NULL); kb_vloop_next(kb, &l);)
        for (int t = 0; t < 4; t++)
            kb_store_f32(kb, MOEC_F32,
                         kb_load_f32(kb, WIDE[t],
                                     kb_elem(kb, kb_arg_ptr(kb, 0), l.i, (int64_t)moec_dtype_bytes(WIDE[t])), l.lanes,
                                     l.mask),
                         kb_elem(kb, kb_arg_ptr(kb, 1 + t), l.i, 4), l.mask);
    kb_kernel_end(kb);
    kb_kernel_begin(kb, "splits");
    LLVMValueRef begin, end, out = kb_arg_ptr(kb, 0);
    kb_split(kb, kb_arg_int(kb, 0), 4, &begin, &end);
    kb_store(kb, begin, out, 8);
    kb_store(kb, end, kb_gepi(kb, out, 8), 8);
    kb_kernel_end(kb);
}

static moec_kernel_fn *
look_up(mc_jit *j, const char *name)
{
    uintptr_t address = mc_jit_symbol(j, name, &diags);
    ck_assert(address != 0);
    return (moec_kernel_fn *)address;
}

static void
setup(void)
{
    mc_cpu_target target;
    arena = mc_arena_create();
    mc_diags_init(&diags, arena, NULL);
    ck_assert(mc_cpu_target_find("native", &diags, &target));
    mc_kb *kb = mc_kb_create(&target, "math", arena);
    for (int i = 0; i < N_FUNCTIONS; i++) add_function(kb, &FUNCTIONS[i]);
    add_sums(kb);
    add_conversions(kb);
    ck_assert(mc_kb_emit(kb, MC_EMIT_OBJECT, &diags, &object));
    mc_kb_destroy(kb);
    jit = mc_jit_load(object.data, object.len, &diags);
    ck_assert(jit != NULL);
    for (int i = 0; i < N_FUNCTIONS; i++) {
        vectors[i] = look_up(jit, mc_strf(arena, "%s_v", FUNCTIONS[i].name).data);
        scalars[i] = look_up(jit, mc_strf(arena, "%s_s", FUNCTIONS[i].name).data);
    }
    sums = look_up(jit, "sums");
    narrows = look_up(jit, "narrows");
    widens = look_up(jit, "widens");
    splits = look_up(jit, "splits");
}

static void
teardown(void)
{
    mc_jit_destroy(jit);
    mc_buf_fini(&object);
    mc_arena_destroy(arena);
}

static float
from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static uint32_t
to_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* Every exponent and sign evenly, then everything near 0 and 1. */
static void
fill(float *x)
{
    uint32_t state = 5;
    for (int i = 0; i < N; i++) {
        state = state * 1664525u + 1013904223u;
        float small = (float)((int)(state >> 8) - (1 << 23)) / (float)(1 << 23);
        x[i] = i % 4 == 0 ? small * 4 : i % 4 == 1 ? small * 100 : from_bits(state ^ (uint32_t)i << 16);
    }
}

/* ---- tests ---------------------------------------------------------------------------------------------------- */

START_TEST(test_accuracy)
{
    const function *f = &FUNCTIONS[_i];
    float *x = malloc(N * 4), *v = malloc(N * 4), *s = malloc(N * 4);
    fill(x);
    vectors[_i](&(moec_kernel_args){.ptr = {x, v}, .i = {N - 3}}); /* not a multiple of any vector */
    scalars[_i](&(moec_kernel_args){.ptr = {x, s}, .i = {N - 3}});
    double worst = 0;
    float at = 0;
    for (int i = 0; i < N - 3; i++) {
        bool same = to_bits(v[i]) == to_bits(s[i]) || (isnan(v[i]) && isnan(s[i]));
        if (!same)
            ck_abort_msg("%s(%.9g): vector %.9g, scalar %.9g", f->name, (double)x[i], (double)v[i], (double)s[i]);
        if (isnan(x[i]) != isnan(v[i]) && isnan(x[i])) ck_abort_msg("%s(NaN) is %.9g", f->name, (double)v[i]);
        if (!(x[i] > f->low && x[i] < f->high)) continue;
        double want = f->reference((double)x[i]), unit = f->of_x ? fabs((double)x[i]) : fabs(want);
        if (unit < 1.2e-38) continue; /* subnormal results have fewer bits */
        double error = fabs((double)v[i] - want) / unit;
        if (!(error <= worst)) worst = error, at = x[i];
    }
    ck_assert_msg(worst <= f->tolerance, "%s: relative error %g at %.9g", f->name, worst, (double)at);
    free(x), free(v), free(s);
}
END_TEST

static float
apply(const char *name, float x)
{
    float y = 0;
    for (int i = 0; i < N_FUNCTIONS; i++)
        if (strcmp(name, FUNCTIONS[i].name) == 0) vectors[i](&(moec_kernel_args){.ptr = {&x, &y}, .i = {1}});
    return y;
}

START_TEST(test_limits)
{
    /* clang-format off */
    static const struct { const char *name; float x, want; } CASES[] = {
        {"exp", INFINITY, INFINITY}, {"exp", -INFINITY, 0}, {"exp", 89, INFINITY}, {"exp", 1e30f, INFINITY},
        {"exp", -104, 0}, {"exp", -1e30f, 0}, {"exp", 0, 1},
        {"log", 0, -INFINITY}, {"log", INFINITY, INFINITY}, {"log", -1, NAN}, {"log", 1, 0},
        {"log1p", -1, -INFINITY}, {"log1p", INFINITY, INFINITY}, {"log1p", -2, NAN}, {"log1p", -0.0f, -0.0f},
        {"tanh", INFINITY, 1}, {"tanh", -INFINITY, -1}, {"tanh", -0.0f, -0.0f},
        {"erf", INFINITY, 1}, {"erf", -INFINITY, -1}, {"erf", -9, -1}, {"erf", 0, 0},
        {"rsqrt", 0, INFINITY}, {"rsqrt", INFINITY, 0}, {"rsqrt", -1, NAN}, {"rsqrt", 4, 0.5f},
        {"sigmoid", INFINITY, 1}, {"sigmoid", -INFINITY, 0}, {"sigmoid", -200, 0}, {"sigmoid", 0, 0.5f},
        {"silu", INFINITY, INFINITY}, {"silu", -200, -0.0f}, {"silu", 200, 200}, {"silu", 0, 0},
        {"softplus", INFINITY, INFINITY}, {"softplus", -INFINITY, 0}, {"softplus", 21, 21},
        {"gelu", 100, 100}, {"gelu", -100, -0.0f}, {"gelu_tanh", 100, 100}, {"gelu_tanh", -100, -0.0f},
    };
    /* clang-format on */
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        float y = apply(CASES[i].name, CASES[i].x), want = CASES[i].want;
        ck_assert_msg(isnan(want) ? isnan(y) : to_bits(y) == to_bits(want), "%s(%g) is %g, not %g", CASES[i].name,
                      (double)CASES[i].x, (double)y, (double)want);
    }
}
END_TEST

START_TEST(test_sums)
{
    float x[40], y[2];
    for (int i = 0; i < 40; i++) x[i] = (float)(i * 7 % 40) - 50;
    for (int n = 1; n <= 40; n++) {
        float sum = 0, most = -1e30f;
        for (int i = 0; i < n; i++) sum += x[i], most = fmaxf(most, x[i]);
        sums(&(moec_kernel_args){.ptr = {x, y}, .i = {n}});
        ck_assert_msg(y[0] == sum && y[1] == most, "%d elements", n);
    }
}
END_TEST

START_TEST(test_conversions)
{
    float *x = malloc(N * 4), *wide[4];
    uint16_t *narrow[2] = {malloc(N * 2), malloc(N * 2)}, *codes = malloc(65536 * 2);
    fill(x);
    narrows(&(moec_kernel_args){.ptr = {x, narrow[0], narrow[1]}, .i = {N - 1}});
    for (int i = 0; i < N - 1; i++) {
        bool nan = isnan(x[i]) && isnan(mc_f16_to_f32(narrow[1][i]));
        if (narrow[0][i] != mc_f32_to_bf16(x[i]) || (!nan && narrow[1][i] != mc_f32_to_f16(x[i])))
            ck_abort_msg("%.9g becomes %04x, %04x", (double)x[i], narrow[0][i], narrow[1][i]);
    }
    for (int i = 0; i < 65536; i++) codes[i] = (uint16_t)i;
    for (int t = 0; t < 4; t++) wide[t] = malloc(65536 * 4);
    widens(&(moec_kernel_args){.ptr = {codes, wide[0], wide[1], wide[2], wide[3]}, .i = {65536}});
    for (int t = 0; t < 4; t++)
        for (size_t i = 0; i < 65536; i++) {
            float want = (float)mc_load_elem(WIDE[t], codes, i);
            bool nan = isnan(want) && isnan(wide[t][i]);
            if (!nan && to_bits(want) != to_bits(wide[t][i]))
                ck_abort_msg("%s element %zu is %.9g, not %.9g", moec_dtype_name(WIDE[t]), i, (double)wide[t][i],
                             (double)want);
        }
    for (int t = 0; t < 4; t++) free(wide[t]);
    free(x), free(narrow[0]), free(narrow[1]), free(codes);
}
END_TEST

START_TEST(test_split)
{
    for (int64_t n = 0; n < 50; n++)
        for (int64_t n_threads = 1; n_threads < 9; n_threads++) {
            int64_t at = 0, least = 1000, most = 0;
            for (int64_t t = 0; t < n_threads; t++) {
                int64_t part[2];
                splits(&(moec_kernel_args){.ptr = {part}, .i = {n}, .thread = t, .n_threads = n_threads});
                ck_assert_msg(part[0] == at && part[1] >= at && (part[1] % 4 == 0 || part[1] == n),
                              "%d of %d, thread %d", (int)n, (int)n_threads, (int)t);
                int64_t units = (part[1] - part[0] + 3) / 4;
                if (units < least) least = units;
                if (units > most) most = units;
                at = part[1];
            }
            ck_assert(at == n && most - least <= 1);
        }
}
END_TEST

static void *
load_and_call(void *result)
{
    mc_arena *own = mc_arena_create();
    mc_diags d;
    mc_diags_init(&d, own, NULL);
    float x = 1, y = 0;
    for (int i = 0; i < 20; i++) {
        mc_jit *j = mc_jit_load(object.data, object.len, &d);
        uintptr_t exp_v = j ? mc_jit_symbol(j, "exp_v", &d) : 0;
        if (exp_v) ((moec_kernel_fn *)exp_v)(&(moec_kernel_args){.ptr = {&x, &y}, .i = {1}});
        mc_jit_destroy(j);
    }
    *(float *)result = y;
    mc_arena_destroy(own);
    return NULL;
}

START_TEST(test_jit_threads)
{
    pthread_t threads[4];
    float results[4] = {0};
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, load_and_call, &results[i]);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 4; i++) ck_assert(to_bits(results[i]) == to_bits(apply("exp", 1)));
}
END_TEST

START_TEST(test_jit_refuses)
{
    ck_assert(mc_jit_symbol(jit, "no_such_kernel", &diags) == 0);
    ck_assert_int_eq(diags.list.items[diags.list.n - 1].code, MC_E0603);
    size_t before = diags.list.n;
    mc_jit *j = mc_jit_load("not an object", 13, &diags);
    ck_assert(!j || mc_jit_symbol(j, "exp_v", &diags) == 0);
    ck_assert(diags.list.n > before);
    mc_jit_destroy(j);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("cpu_math");
    TCase *tc = tcase_create("math");
    tcase_set_timeout(tc, 60);
    tcase_add_unchecked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, test_accuracy, 0, N_FUNCTIONS);
    tcase_add_test(tc, test_limits);
    tcase_add_test(tc, test_sums);
    tcase_add_test(tc, test_conversions);
    tcase_add_test(tc, test_split);
    tcase_add_test(tc, test_jit_threads);
    tcase_add_test(tc, test_jit_refuses);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
