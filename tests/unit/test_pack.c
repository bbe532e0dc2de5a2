/* Packing: every layout, stored type and stage against the plain formula of what should lie where. */
#define _GNU_SOURCE
#include "moec/runtime.h"
#include "runtime/base/dtype.h"
#include "runtime/session.h"
#include "tests/support/fake_model.h"
#include "tests/support/st_file.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *dir;
static moec_error error;
static st_file file;
static moec_model *model;
static moec_weights *weights;
static uint32_t n_threads = 1;

#define DIMS(...) ((const int64_t[]){__VA_ARGS__})
enum { MAX = 40000 };
static float values[MAX];

static void
setup(void)
{
    dir = test_directory();
    st_begin(&file);
    uint32_t state = 12345;
    for (int i = 0; i < MAX; i++) { /* multiples of 1/8 in -4 .. 4: exact in bf16 and f16 */
        state = state * 1664525 + 1013904223;
        values[i] = (float)((int)(state >> 26) - 32) / 8;
    }
}

static void
teardown(void)
{
    moec_weights_close(weights);
    moec_model_destroy(model);
    test_directory_remove(dir);
}

static void
pack(const moec_abi_weight *w, size_t n, const char *rules, bool narrow)
{
    moec_weights_options options = {.in_memory = true, .allow_narrowing = narrow, .n_threads = n_threads};
    st_write(&file, test_path(dir, "model.safetensors"));
    ck_assert_msg(moec_model_from_abi(fake_weights(w, n, rules), &model, &error) == MOEC_OK, "%s", error.text);
    ck_assert_msg(moec_weights_open(model, dir, &options, &weights, &error) == MOEC_OK, "%s", error.text);
}

static double
stored(const moec_abi_weight *w, uint32_t index, int64_t at)
{
    return mc_load_elem((moec_dtype)w->dtype, mc_weights_addresses(weights)[index], (size_t)at);
}

/* Where element (g, n, k) of a [G,] N x K tensor lies; which: 0 gate or only tensor, 1 up. */
static int64_t
place(const moec_abi_weight *w, int which, int64_t g, int64_t n, int64_t k)
{
    int64_t N = w->dims[w->rank - 2], K = w->dims[w->rank - 1], nr = w->nr;
    if (w->layout == MOEC_ABI_ROWS) return (g * N + n) * K + k;
    int64_t wide = w->layout == MOEC_ABI_PAIR_PANELS ? nr / 2 : nr, panels = (N + wide - 1) / wide;
    return ((g * panels + n / wide) * K + k) * nr + n % wide + which * wide;
}

static moec_abi_weight
matrix(const char *path, moec_dtype dtype, uint32_t layout, uint32_t nr, int64_t g, int64_t n, int64_t k)
{
    moec_abi_weight w = {.path = path, .role = "dense", .dtype = dtype, .layout = layout, .nr = nr, .rank = g ? 3 : 2};
    memcpy(w.dims, g ? DIMS(g, n, k) : DIMS(n, k, 0), 3 * sizeof *w.dims);
    return w;
}

/* Zero padding: as many elements of the packed weight are not zero as of its source. */
static void
check_padding(const moec_abi_weight *w, uint32_t index, int64_t n_packed, const float *source, int64_t n_source)
{
    int64_t have = 0, expect = 0;
    for (int64_t i = 0; i < n_packed; i++) have += stored(w, index, i) != 0;
    for (int64_t i = 0; i < n_source; i++) expect += source[i] != 0;
    ck_assert_int_eq(have, expect);
}

/* ---- layouts and types ----------------------------------------------------------------------------------------- */

static const struct {
    moec_dtype from, to;
    uint32_t layout, nr;
    int64_t g, n, k;
} plain[] = {
    {MOEC_F32, MOEC_F32, MOEC_ABI_ROWS, 0, 0, 5, 7},       {MOEC_BF16, MOEC_BF16, MOEC_ABI_ROWS, 0, 3, 4, 5},
    {MOEC_BF16, MOEC_F32, MOEC_ABI_ROWS, 0, 0, 6, 1},      {MOEC_F16, MOEC_F16, MOEC_ABI_PANELS, 4, 0, 10, 3},
    {MOEC_BF16, MOEC_BF16, MOEC_ABI_PANELS, 16, 2, 33, 9}, {MOEC_F32, MOEC_F32, MOEC_ABI_PANELS, 16, 0, 16, 8},
    {MOEC_F32, MOEC_BF16, MOEC_ABI_PANELS, 8, 2, 7, 5},    {MOEC_F16, MOEC_BF16, MOEC_ABI_PANELS, 8, 0, 9, 4},
    {MOEC_F64, MOEC_F32, MOEC_ABI_PANELS, 32, 0, 1, 40},   {MOEC_BF16, MOEC_F16, MOEC_ABI_ROWS, 0, 0, 2, 2},
};
enum { N_PLAIN = sizeof plain / sizeof *plain };

START_TEST(plain_matrices)
{
    int64_t g = plain[_i].g, n = plain[_i].n, k = plain[_i].k, groups = g ? g : 1;
    moec_abi_weight w = matrix("a", plain[_i].to, plain[_i].layout, plain[_i].nr, g, n, k);
    st_add_f32(&file, "a", plain[_i].from, g ? 3 : 2, w.dims, values);
    n_threads = 1 + (uint32_t)_i % 3;
    pack(&w, 1, "", true);
    for (int64_t e = 0; e < groups; e++)
        for (int64_t r = 0; r < n; r++)
            for (int64_t c = 0; c < k; c++)
                ck_assert_double_eq(stored(&w, 0, place(&w, 0, e, r, c)), values[(e * n + r) * k + c]);
    int64_t elems = (int64_t)(moec_weights_bytes(weights) / moec_dtype_bytes(plain[_i].to));
    check_padding(&w, 0, elems, values, groups * n * k);
}
END_TEST

START_TEST(pairs)
{
    /* gate and up as two tensors, as one to be split, as one with even and odd rows, and stacked from experts */
    static const char *const rules[] = {"", "\"g\", \"u\" <- \"w13\" | split(axis = 1)",
                                        "\"g\", \"u\" <- \"w13\" | unzip(axis = -2)",
                                        "\"g\" <- \"e.{e}.w1\"; \"u\" <- \"e.{e}.w3\""};
    enum { E = 3, F = 5, D = 7 };
    moec_abi_weight w = matrix("g", MOEC_BF16, MOEC_ABI_PAIR_PANELS, 8, E, F, D);
    w.path2 = "u";
    if (_i == 0) {
        st_add_f32(&file, "g", MOEC_BF16, 3, DIMS(E, F, D), values);
        st_add_f32(&file, "u", MOEC_BF16, 3, DIMS(E, F, D), values + E * F * D);
    } else if (_i < 3) {
        st_add_f32(&file, "w13", MOEC_BF16, 3, DIMS(E, 2 * F, D), values);
    } else {
        for (int e = 0; e < E; e++) {
            char name[16];
            snprintf(name, sizeof name, "e.%d.w3", e);
            st_add_f32(&file, name, MOEC_BF16, 2, DIMS(F, D), values + (2 * e + 1) * F * D);
            snprintf(name, sizeof name, "e.%d.w1", e);
            st_add_f32(&file, name, MOEC_BF16, 2, DIMS(F, D), values + 2 * e * F * D);
        }
    }
    pack(&w, 1, rules[_i], false);
    for (int64_t e = 0; e < E; e++)
        for (int64_t which = 0; which < 2; which++)
            for (int64_t f = 0; f < F; f++)
                for (int64_t d = 0; d < D; d++) {
                    int64_t row = _i == 0   ? which * E * F + e * F + f
                                  : _i == 2 ? e * 2 * F + 2 * f + which
                                            : (2 * e + which) * F + f;
                    ck_assert_double_eq(stored(&w, 0, place(&w, (int)which, e, f, d)), values[row * D + d]);
                }
    check_padding(&w, 0, (int64_t)moec_weights_bytes(weights) / 2, values, 2 * E * F * D);
}
END_TEST

START_TEST(vectors_and_integers)
{
    moec_abi_weight w[3] = {{.path = "norm", .role = "norm", .dtype = MOEC_F32, .rank = 1, .dims = {9}},
                            {.path = "scalars", .role = "norm", .dtype = MOEC_F32, .rank = 1, .dims = {3}},
                            {.path = "table", .role = "router", .dtype = MOEC_I32, .rank = 2, .dims = {2, 2}}};
    int64_t table[] = {5, -7, 2147483647, 0};
    st_add_f32(&file, "norm", MOEC_BF16, 1, DIMS(9), values);
    for (int i = 0; i < 3; i++)
        st_add_f32(&file, i == 0 ? "s.0" : i == 1 ? "s.1" : "s.2", MOEC_F32, 0, DIMS(1), &values[i]);
    st_add(&file, "table", MOEC_I64, 2, DIMS(2, 2), table);
    pack(w, 3, "\"scalars\" <- \"s.{i}\"; \"**\" <- \"**\"", false);
    for (int i = 0; i < 9; i++) ck_assert_double_eq(stored(&w[0], 0, i), values[i]);
    for (int i = 0; i < 3; i++) ck_assert_double_eq(stored(&w[1], 1, i), values[i]);
    for (int i = 0; i < 4; i++) ck_assert_double_eq(stored(&w[2], 2, i), (double)table[i]);
}
END_TEST

START_TEST(integers_must_fit)
{
    moec_abi_weight w = {.path = "table", .role = "router", .dtype = MOEC_I32, .rank = 1, .dims = {2}};
    int64_t table[] = {5, INT64_C(1) << 31};
    moec_weights_options options = {.in_memory = true};
    st_add(&file, "table", MOEC_I64, 1, DIMS(2), table);
    st_write(&file, test_path(dir, "model.safetensors"));
    ck_assert_int_eq(moec_model_from_abi(fake_weights(&w, 1, ""), &model, &error), MOEC_OK);
    ck_assert_int_eq(moec_weights_open(model, dir, &options, &weights, &error), MOEC_ERR_MISMATCH);
    ck_assert_ptr_nonnull(strstr(error.text, "table holds an integer that does not fit i32"));
}
END_TEST

/* ---- stages ---------------------------------------------------------------------------------------------------- */

START_TEST(stages_compute)
{
    /* w [4, 6] from the source "s": what element (n, k) must be */
    static const struct {
        const char *rule;
        int rank;
        int64_t dims[3];
    } cases[] = {
        {"\"w\" <- \"s\" | transpose(0, 1)", 2, {6, 4}},
        {"\"w\" <- \"s\" | reshape(4, 6)", 3, {2, 4, 3}},
        {"\"w\" <- \"s\" | transpose(0, 1) | reshape(4, 6)", 2, {3, 8}},
        {"\"w\" <- \"s\" | scale(0.5) | add(3)", 2, {4, 6}},
        {"\"w\" <- \"s\" | add(3) | scale(0.5)", 2, {4, 6}},
        {"\"w\", \"w2\" <- \"s\" | split(axis = 1)", 2, {4, 12}},
        {"\"w\" <- \"p.{i}\" | concat", 2, {2, 6}},
        {"\"w\" <- \"p.{i}\" | concat(axis = 1)", 2, {4, 3}},
        {"\"w\" <- \"p.{i}\" | stack | reshape(4, 6)", 2, {4, 3}},
        {"\"w\", \"w2\" <- \"s\" | transpose(0, 2) | unzip(axis = 1) | reshape(4, 6)", 3, {6, 2, 4}},
    };
    moec_abi_weight w[2] = {matrix("w", MOEC_F32, MOEC_ABI_ROWS, 0, 0, 4, 6),
                            matrix("w2", MOEC_F32, MOEC_ABI_PANELS, 4, 0, 4, 6)};
    bool two = strstr(cases[_i].rule, "w2") != NULL, parts = strstr(cases[_i].rule, "p.{i}") != NULL;
    int64_t size = 1;
    for (int d = 0; d < cases[_i].rank; d++) size *= cases[_i].dims[d];
    for (int i = 0; i < (parts ? 2 : 1); i++)
        st_add_f32(&file, parts ? (i ? "p.1" : "p.0") : "s", MOEC_F32, cases[_i].rank, cases[_i].dims,
                   values + i * size);
    pack(w, two ? 2 : 1, cases[_i].rule, false);
    for (int64_t n = 0; n < 4; n++)
        for (int64_t k = 0; k < 6; k++) {
            int64_t flat = n * 6 + k, at[2] = {flat, flat};
            switch (_i) {
            case 0: at[0] = k * 4 + n; break;
            case 2: at[0] = flat % 3 * 8 + flat / 3; break;
            case 5:
                at[0] = n * 12 + k;
                at[1] = n * 12 + 6 + k;
                break;
            case 7: at[0] = k < 3 ? n * 3 + k : 12 + n * 3 + k - 3; break;
            case 9: /* [4, 2, 6] -> part j: [4, 1, 6] */
                at[0] = (k * 2 + 0) * 4 + n;
                at[1] = (k * 2 + 1) * 4 + n;
                break;
            default: break; /* in order */
            }
            for (int j = 0; j < (two ? 2 : 1); j++) {
                float expect = values[at[j]];
                if (_i == 3) expect = expect * 0.5f + 3;
                if (_i == 4) expect = (expect + 3) * 0.5f;
                ck_assert_msg(stored(&w[j], (uint32_t)j, place(&w[j], 0, 0, n, k)) == expect,
                              "case %d, part %d, %lld, %lld", _i, j, (long long)n, (long long)k);
            }
        }
}
END_TEST

/* ---- FP8 and MXFP4 --------------------------------------------------------------------------------------------- */

enum { N8 = 200, K8 = 140 }; /* ragged: 2 x 2 blocks */
static uint8_t codes[2 * N8 * K8];
static const float scales8[8] = {0.5f, 0.25f, 2, 0.125f, 1, 4, 0.0625f, 8};

static void
add_fp8(const char *name, int n_groups, int rows)
{
    char scale_name[64];
    int64_t dims[3] = {n_groups, rows, K8}, scale_dims[3] = {n_groups, (rows + 127) / 128, 2};
    int skip = n_groups ? 0 : 1;
    int total = (n_groups ? n_groups : 1) * rows * K8;
    for (int i = 0; i < total; i++) codes[i] = mc_f32_to_f8e4m3(values[i]);
    snprintf(scale_name, sizeof scale_name, "%s_scale_inv", name);
    st_add(&file, scale_name, MOEC_F32, 3 - skip, scale_dims + skip, scales8);
    st_add(&file, name, MOEC_F8E4M3, 3 - skip, dims + skip, codes);
}

static moec_abi_weight
scales_of(const char *path, const char *of, int64_t g, int64_t n, int64_t k)
{
    moec_abi_weight w = matrix(path, MOEC_F32, MOEC_ABI_ROWS, 0, g, n, k);
    w.scale_of = of;
    w.block[0] = w.block[1] = 128;
    return w;
}

START_TEST(fp8_stays)
{
    moec_abi_weight w[2] = {matrix("w", MOEC_F8E4M3, MOEC_ABI_PANELS, 16, 0, N8, K8),
                            scales_of("w_scale_inv", "w", 0, 2, 2)};
    add_fp8("w", 0, N8);
    pack(w, 2, "", false);
    const uint8_t *have = mc_weights_addresses(weights)[0];
    for (int64_t n = 0; n < N8; n++)
        for (int64_t k = 0; k < K8; k++) ck_assert_uint_eq(have[place(&w[0], 0, 0, n, k)], codes[n * K8 + k]);
    for (int i = 0; i < 4; i++) ck_assert_double_eq(stored(&w[1], 1, i), scales8[i]);
}
END_TEST

/* A fused [2, 256, K] split into gate and up of 128 rows: blocks divide, so codes and scales move as they are. */
START_TEST(fp8_splits_by_blocks)
{
    moec_abi_weight w[3] = {matrix("g", MOEC_F8E4M3, MOEC_ABI_PAIR_PANELS, 16, 1, 128, K8),
                            scales_of("gs", "g", 1, 1, 2), scales_of("us", "u", 1, 1, 2)};
    w[0].path2 = "u";
    add_fp8("gu", 1, 256);
    pack(w, 3, "\"g\", \"u\" <- \"gu\" | split(axis = 1)", false);
    const uint8_t *have = mc_weights_addresses(weights)[0];
    for (int64_t n = 0; n < 128; n++)
        for (int64_t k = 0; k < K8; k++) {
            ck_assert_uint_eq(have[place(&w[0], 0, 0, n, k)], codes[n * K8 + k]);
            ck_assert_uint_eq(have[place(&w[0], 1, 0, n, k)], codes[(128 + n) * K8 + k]);
        }
    for (int i = 0; i < 2; i++) {
        ck_assert_double_eq(stored(&w[1], 1, i), scales8[i]);
        ck_assert_double_eq(stored(&w[2], 2, i), scales8[2 + i]);
    }
}
END_TEST

START_TEST(fp8_is_dequantised)
{
    static const char *const rules[] = {"", "\"w\" <- \"w\" | transpose(0, 1)",
                                        "\"w\", \"v\" <- \"w\" | split(axis = 0)"};
    moec_abi_weight w[2] = {matrix("w", MOEC_F32, MOEC_ABI_PANELS, 16, 0,
                                   _i == 1   ? K8
                                   : _i == 2 ? N8 / 2
                                             : N8,
                                   _i == 1 ? N8 : K8),
                            matrix("v", MOEC_F32, MOEC_ABI_ROWS, 0, 0, N8 / 2, K8)};
    add_fp8("w", 0, N8);
    pack(w, _i == 2 ? 2 : 1, rules[_i], false);
    for (int64_t n = 0; n < N8; n++)
        for (int64_t k = 0; k < K8; k++) {
            float expect = mc_f8e4m3_to_f32(codes[n * K8 + k]) * scales8[n / 128 * 2 + k / 128];
            double have = _i == 0   ? stored(w, 0, place(w, 0, 0, n, k))
                          : _i == 1 ? stored(w, 0, place(w, 0, 0, k, n))
                          : n < 100 ? stored(w, 0, place(w, 0, 0, n, k))
                                    : stored(&w[1], 1, place(&w[1], 0, 0, n - 100, k));
            ck_assert_double_eq(have, expect);
        }
}
END_TEST

START_TEST(fp8_is_made)
{
    moec_abi_weight w[2] = {matrix("w", MOEC_F8E4M3, MOEC_ABI_PANELS, 16, 0, 130, 131), scales_of("ws", "w", 0, 2, 2)};
    for (int64_t k = 128; k < 131; k++)
        for (int64_t n = 128; n < 130; n++) values[n * 131 + k] = 0; /* a block of zeros */
    values[5] = 1000;
    st_add_f32(&file, "w", MOEC_BF16, 2, DIMS(130, 131), values);
    pack(w, 2, "", false);
    for (int64_t br = 0; br < 2; br++)
        for (int64_t bk = 0; bk < 2; bk++) {
            float amax = 0;
            for (int64_t n = br * 128; n < (br ? 130 : 128); n++)
                for (int64_t k = bk * 128; k < (bk ? 131 : 128); k++)
                    amax = fmaxf(amax, fabsf(mc_bf16_to_f32(mc_f32_to_bf16(values[n * 131 + k]))));
            float scale = amax > 0 ? amax / 448.0f : 1.0f;
            ck_assert_double_eq(stored(&w[1], 1, br * 2 + bk), scale);
            for (int64_t n = br * 128; n < (br ? 130 : 128); n++)
                for (int64_t k = bk * 128; k < (bk ? 131 : 128); k++) {
                    float x = mc_bf16_to_f32(mc_f32_to_bf16(values[n * 131 + k]));
                    double have = stored(w, 0, place(w, 0, 0, n, k)) * scale;
                    ck_assert_double_le(fabs(have - x), fabs(x) / 16 + scale * 0x1p-9);
                }
        }
}
END_TEST

START_TEST(nan_and_infinity_pass)
{
    moec_abi_weight w[4] = {matrix("a", MOEC_BF16, MOEC_ABI_PANELS, 4, 0, 2, 2),
                            matrix("b", MOEC_F8E4M3, MOEC_ABI_ROWS, 0, 0, 2, 2), scales_of("bs", "b", 0, 1, 1),
                            matrix("c", MOEC_F32, MOEC_ABI_ROWS, 0, 0, 2, 2)};
    float odd[4] = {NAN, INFINITY, -INFINITY, 1};
    st_add_f32(&file, "a", MOEC_F32, 2, DIMS(2, 2), odd);
    st_add_f32(&file, "b", MOEC_F32, 2, DIMS(2, 2), odd);
    st_add_f32(&file, "c", MOEC_BF16, 2, DIMS(2, 2), odd);
    pack(w, 4, "", true);
    for (int i = 0; i < 4; i++) {
        double a = stored(&w[0], 0, place(&w[0], 0, 0, i / 2, i % 2)), c = stored(&w[3], 3, i);
        ck_assert(isnan(odd[i]) ? isnan(a) && isnan(c) : a == odd[i] && c == odd[i]);
    }
    ck_assert(isnan(stored(&w[1], 1, 0)));
    ck_assert_double_eq(stored(&w[1], 1, 1), 448);
    ck_assert(isfinite(stored(&w[2], 2, 0)));
}
END_TEST

START_TEST(mxfp4_is_read)
{
    static const float table[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    enum { E = 2, R = 6, G = 2 };
    uint8_t blocks[E * R * G * 16], exponents[E * R * G];
    moec_abi_weight w[2] = {matrix("g", MOEC_BF16, MOEC_ABI_ROWS, 0, E, R / 2, G * 32),
                            matrix("u", MOEC_F32, MOEC_ABI_PANELS, 4, E, R / 2, G * 32)};
    for (size_t i = 0; i < sizeof blocks; i++) blocks[i] = (uint8_t)(i * 73 + 11);
    for (size_t i = 0; i < sizeof exponents; i++) exponents[i] = (uint8_t)(120 + i % 9);
    st_add(&file, "gu_blocks", MOEC_U8, 4, DIMS(E, R, G, 16), blocks);
    st_add(&file, "gu_scales", MOEC_U8, 3, DIMS(E, R, G), exponents);
    pack(w, 2, "\"g\", \"u\" <- \"gu\" | mxfp4 | unzip(axis = 1)", false);
    for (int64_t e = 0; e < E; e++)
        for (int64_t r = 0; r < R; r++)
            for (int64_t k = 0; k < G * 32; k++) {
                int64_t at = (e * R + r) * G * 32 + k;
                unsigned code = at % 2 ? blocks[at / 2] >> 4 : blocks[at / 2] & 15; /* low nibble first */
                double expect = (code & 8 ? -1 : 1) * table[code & 7] * exp2((double)exponents[at / 32] - 127);
                const moec_abi_weight *p = &w[r % 2];
                ck_assert_double_eq(stored(p, (uint32_t)(r % 2), place(p, 0, e, r / 2, k)), expect);
            }
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("pack");
    TCase *t = tcase_create("pack");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, plain_matrices, 0, N_PLAIN);
    tcase_add_loop_test(t, pairs, 0, 4);
    tcase_add_test(t, vectors_and_integers);
    tcase_add_test(t, integers_must_fit);
    tcase_add_loop_test(t, stages_compute, 0, 10);
    tcase_add_test(t, fp8_stays);
    tcase_add_test(t, fp8_splits_by_blocks);
    tcase_add_loop_test(t, fp8_is_dequantised, 0, 3);
    tcase_add_test(t, fp8_is_made);
    tcase_add_test(t, nan_and_infinity_pass);
    tcase_add_test(t, mxfp4_is_read);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
