/* Weights: hostile safetensors files, rules, binding and its errors, packing into every layout and type, packed files.
 */
#define _GNU_SOURCE
#include "moec/runtime.h"
#include "runtime/base/file.h"
#include "runtime/session.h"
#include "tests/support/fake_model.h"
#include "tests/support/st_file.h"

#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *dir;
static moec_error error;
static st_file file;

static void
setup(void)
{
    dir = test_directory();
    setenv("MOEC_CACHE", test_path(dir, "cache"), 1);
    st_begin(&file);
}

static void
teardown(void)
{
    test_directory_remove(dir);
}

#define OK(expression) ck_assert_msg((expression) == MOEC_OK, "%s", error.text)
#define SAYS(text, part) ck_assert_msg(strstr((text), (part)) != NULL, "\"%s\" does not say \"%s\"", (text), (part))
#define REFUSED(expression, status, part)                                                                              \
    do {                                                                                                               \
        ck_assert_int_eq((expression), (status));                                                                      \
        SAYS(error.text, part);                                                                                        \
    } while (0)
#define DIMS(...) ((const int64_t[]){__VA_ARGS__})

static moec_status
open_model(const moec_abi_model *abi, const char *path, const moec_weights_options *options)
{
    moec_model *model;
    moec_weights *weights;
    OK(moec_model_from_abi(abi, &model, &error));
    moec_status s = moec_weights_open(model, path, options, &weights, &error);
    if (s != MOEC_OK) ck_assert_ptr_null(weights);
    if (s == MOEC_OK) ck_assert_str_eq(error.text, "");
    moec_weights_close(weights);
    moec_model_destroy(model);
    return s;
}

/* ---- binding: what is refused, and how it is said -------------------------------------------------------------- */

static moec_abi_weight
weight(const char *path, moec_dtype dtype, int rank, int64_t a, int64_t b, int64_t c)
{
    return (moec_abi_weight){.path = path, .role = "dense", .dtype = dtype, .rank = (uint32_t)rank, .dims = {a, b, c}};
}

static void
write_model(void)
{
    st_write(&file, test_path(dir, "model.safetensors"));
}

START_TEST(e0901_unbound)
{
    moec_abi_weight w = weight("layers.3.mlp.gate.weight", MOEC_F32, 2, 8, 4, 0);
    st_add(&file, "model.layers.3.mlp.gate.weight", MOEC_F32, 2, DIMS(8, 4), NULL);
    write_model();
    REFUSED(open_model(
                fake_weights(&w, 1, "weights hf { \"layers.{i}.mlp.gate.**\" <- \"model.layers.{i}.block.gate.**\" }"),
                dir, NULL),
            MOEC_ERR_NOT_FOUND, "E0901: layers.3.mlp.gate.weight is not bound");
    SAYS(error.text, "looks for model.layers.3.block.gate.weight");
    SAYS(error.text, "nearest tensor: model.layers.3.mlp.gate.weight [8, 4]");
    REFUSED(open_model(fake_weights(&w, 1, "\"other.**\" <- \"model.**\""), dir, NULL), MOEC_ERR_NOT_FOUND, "no rule");
    moec_abi_weight two[] = {weight("p", MOEC_F32, 1, 1, 0, 0), weight("q", MOEC_F32, 1, 1, 0, 0)};
    REFUSED(open_model(fake_weights(two, 2, "\"**\" <- \"model.**\""), dir, NULL), MOEC_ERR_NOT_FOUND,
            "(and 1 more weights)");
}
END_TEST

START_TEST(e0902_left_over)
{
    moec_abi_weight w = weight("a", MOEC_F32, 1, 2, 0, 0);
    st_add(&file, "a", MOEC_F32, 1, DIMS(2), NULL);
    st_add(&file, "layers.61.x", MOEC_F32, 1, DIMS(2), NULL);
    st_add(&file, "layers.61.y.z", MOEC_F32, 1, DIMS(2), NULL);
    write_model();
    REFUSED(
        open_model(fake_weights(&w, 1, ""), dir, NULL), MOEC_ERR_MISMATCH,
        "E0902: 2 tensors of the checkpoint are not used, first layers.61.x; add a rule or: ignore \"layers.61.**\"");
    OK(open_model(fake_weights(&w, 1, "weights { \"**\" <- \"**\"; ignore \"layers.61.**\" }"), dir, NULL));
}
END_TEST

START_TEST(e0903_shapes)
{
    moec_abi_weight w = weight("up", MOEC_F32, 3, 2, 5, 3);
    for (int e = 0; e < 2; e++) {
        char name[16];
        snprintf(name, sizeof name, "e.%d.w3", e);
        st_add(&file, name, MOEC_F32, 2, DIMS(3, 5), NULL);
    }
    write_model();
    REFUSED(open_model(fake_weights(&w, 1, "\"up\" <- \"e.{e}.w3\""), dir, NULL), MOEC_ERR_MISMATCH,
            "E0903: up is [2, 5, 3]; tensor e.0.w3 is [3, 5]; a transpose would fit: | transpose(0, 1)");
    OK(open_model(fake_weights(&w, 1, "\"up\" <- \"e.{e}.w3\" | transpose(0, 1)"), dir, NULL));
    OK(open_model(fake_weights(&w, 1, "\"up\" <- \"e.{e}.w3\" | stack | transpose(1, 2)"), dir, NULL));
    REFUSED(open_model(fake_weights(&w, 1, "\"up\" <- \"e.{e}.w3\" | transpose(0, 4)"), dir, NULL), MOEC_ERR_MISMATCH,
            "stage transpose does not fit a tensor [3, 5]: no such axis");
    REFUSED(open_model(fake_weights(&w, 1, "\"up\" <- \"e.{e}.w3\" | reshape(4, 4)"), dir, NULL), MOEC_ERR_MISMATCH,
            "another number of elements");
}
END_TEST

START_TEST(e0904_experts)
{
    static const int have[] = {0, 1, 2, 4};
    moec_abi_weight w = weight("up", MOEC_F32, 2, 5, 3, 0);
    for (int i = 0; i < 4; i++) {
        char name[16];
        snprintf(name, sizeof name, "e.%d.w", have[i]);
        st_add(&file, name, MOEC_F32, 1, DIMS(3), NULL);
    }
    write_model();
    REFUSED(open_model(fake_weights(&w, 1, "\"up\" <- \"e.{e}.w\""), dir, NULL), MOEC_ERR_MISMATCH,
            "found 0..2, 4; 3 is missing");
    SAYS(error.text, "E0904");
    w.dims[0] = 2;
    REFUSED(open_model(fake_weights(&w, 1, "\"up\" <- \"e.{e}.w\""), dir, NULL), MOEC_ERR_MISMATCH, "e.2.w too");
    w.dims[0] = INT64_C(1) << 40;
    REFUSED(open_model(fake_weights(&w, 1, "\"up\" <- \"e.{e}.w\""), dir, NULL), MOEC_ERR_MISMATCH, "E0904");
    w.dims[0] = 5;
    REFUSED(open_model(fake_weights(&w, 1, "\"up\" <- \"f.{e}.w\""), dir, NULL), MOEC_ERR_NOT_FOUND, "f.{e}.w");
}
END_TEST

START_TEST(e0905_scales)
{
    moec_abi_weight w = weight("a", MOEC_F32, 2, 130, 4, 0);
    st_add(&file, "a", MOEC_F8E4M3, 2, DIMS(130, 4), NULL);
    write_model();
    REFUSED(open_model(fake_weights(&w, 1, ""), dir, NULL), MOEC_ERR_MISMATCH,
            "E0905: a is F8_E4M3 but has no a_scale_inv");
    st_add(&file, "a_scale_inv", MOEC_F32, 2, DIMS(1, 1), NULL);
    write_model();
    REFUSED(open_model(fake_weights(&w, 1, ""), dir, NULL), MOEC_ERR_MISMATCH, "E0905: a_scale_inv [1, 1]");
    OK(open_model(fake_weights(&w, 1, "\"a\" <- \"a\" | fp8(130, 4)"), dir, NULL));
}
END_TEST

START_TEST(narrowing_is_asked_for)
{
    moec_abi_weight w = weight("a", MOEC_BF16, 2, 2, 2, 0), i = weight("a", MOEC_I32, 2, 2, 2, 0);
    moec_weights_options narrow = {.allow_narrowing = true};
    st_add(&file, "a", MOEC_F32, 2, DIMS(2, 2), NULL);
    write_model();
    REFUSED(open_model(fake_weights(&w, 1, ""), dir, NULL), MOEC_ERR_MISMATCH, "would lose digits");
    SAYS(error.text, "--narrow");
    OK(open_model(fake_weights(&w, 1, ""), dir, &narrow));
    OK(open_model(fake_weights(&w, 1, "\"**\" <- \"**\" | cast"), dir, NULL));
    REFUSED(open_model(fake_weights(&i, 1, ""), dir, &narrow), MOEC_ERR_MISMATCH, "a is i32, its tensor is f32");
}
END_TEST

START_TEST(maps_are_tried)
{
    moec_abi_weight w = weight("a", MOEC_F32, 1, 2, 0, 0);
    const char *rules = "weights hf { \"**\" <- \"x.**\" }\nweights own { \"**\" <- \"y.**\" }";
    moec_weights_options hf = {.map = "hf"}, none = {.map = "none"};
    st_add(&file, "y.a", MOEC_F32, 1, DIMS(2), NULL);
    write_model();
    OK(open_model(fake_weights(&w, 1, rules), dir, NULL));
    REFUSED(open_model(fake_weights(&w, 1, rules), dir, &hf), MOEC_ERR_NOT_FOUND, "x.a");
    REFUSED(open_model(fake_weights(&w, 1, rules), dir, &none), MOEC_ERR_ARGUMENT, "named none");
}
END_TEST

/* ---- packed files ---------------------------------------------------------------------------------------------- */

static moec_model *model;
static moec_weights *weights;

static const void *
packed(uint32_t index)
{
    return mc_weights_addresses(weights)[index];
}

START_TEST(cache_is_used)
{
    moec_abi_weight w = weight("a", MOEC_F32, 1, 3, 0, 0);
    float values[] = {1, 2, 3}, others[] = {4, 5, 6};
    char path[512];
    st_add(&file, "a", MOEC_F32, 1, DIMS(3), values);
    write_model();
    OK(moec_model_from_abi(fake_weights(&w, 1, ""), &model, &error));
    OK(moec_weights_open(model, dir, NULL, &weights, &error));
    snprintf(path, sizeof path, "%s", moec_weights_file(weights));
    ck_assert_msg(strstr(path, "/cache/weights/weights_only-") != NULL, "%s", path);
    ck_assert_str_eq(moec_weights_note(weights), "");
    ck_assert_uint_eq(moec_weights_bytes(weights), 12);
    moec_weights_close(weights);
    OK(moec_weights_open(model, path, NULL, &weights, &error)); /* the packed file itself */
    ck_assert_mem_eq(packed(0), values, sizeof values);
    moec_weights_close(weights);
    memcpy(file.data, others, sizeof others); /* another checkpoint at the same place: found out by its time */
    usleep(20000);
    write_model();
    OK(moec_weights_open(model, dir, NULL, &weights, &error));
    ck_assert_mem_eq(packed(0), others, sizeof others);
    ck_assert_str_ne(moec_weights_file(weights), path);
    moec_weights_close(weights);
    moec_model_destroy(model);
}
END_TEST

/* A packed file with one thing wrong: as a path of its own it is refused; in the cache it is made anew. */
START_TEST(damaged_packed_files)
{
    moec_abi_weight w = weight("a", MOEC_F32, 1, 3, 0, 0);
    float values[] = {1, 2, 3};
    unsigned char image[8192];
    mc_mapping m;
    moec_weights_options options = {.packed_path = test_path(dir, "p")};
    st_add(&file, "a", MOEC_F32, 1, DIMS(3), values);
    write_model();
    OK(moec_model_from_abi(fake_weights(&w, 1, ""), &model, &error));
    OK(moec_weights_open(model, dir, &options, &weights, &error));
    moec_weights_close(weights);
    ck_assert_int_eq(mc_file_map(options.packed_path, &m, NULL), MOEC_OK);
    size_t n = m.n_bytes;
    ck_assert_uint_le(n, sizeof image);
    memcpy(image, m.data, n);
    mc_file_unmap(&m);
    static const struct {
        size_t at;
        const char *says;
        moec_status status;
    } damages[] = {{8, "another version", MOEC_ERR_MISMATCH}, {12, "another model", MOEC_ERR_MISMATCH},
                   {16, "another model", MOEC_ERR_MISMATCH},  {32, "damaged", MOEC_ERR_SYNTAX},
                   {40, "damaged", MOEC_ERR_SYNTAX},          {48, "another version", MOEC_ERR_MISMATCH},
                   {64, "damaged", MOEC_ERR_SYNTAX},          {72, "damaged", MOEC_ERR_SYNTAX}};
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        image[damages[i].at] ^= 0x41;
        ck_assert_int_eq(mc_file_write(options.packed_path, image, n, 0644, NULL), MOEC_OK);
        REFUSED(moec_weights_open(model, options.packed_path, NULL, &weights, &error), damages[i].status,
                damages[i].says);
        OK(moec_weights_open(model, dir, &options, &weights, &error));
        ck_assert_mem_eq(packed(0), values, sizeof values);
        moec_weights_close(weights);
        image[damages[i].at] ^= 0x41;
    }
    for (size_t shorter = 0; shorter < n; shorter += 13) {
        ck_assert_int_eq(mc_file_write(options.packed_path, image, shorter, 0644, NULL), MOEC_OK);
        ck_assert_int_ne(moec_weights_open(model, options.packed_path, NULL, &weights, &error), MOEC_OK);
    }
    moec_model_destroy(model);
}
END_TEST

START_TEST(cache_that_cannot_be_used)
{
    moec_abi_weight w = weight("a", MOEC_F32, 1, 3, 0, 0);
    float values[] = {1, 2, 3};
    st_add(&file, "a", MOEC_F32, 1, DIMS(3), values);
    write_model();
    OK(moec_model_from_abi(fake_weights(&w, 1, ""), &model, &error));
    const char *place = test_path(dir, "place");
    if (_i == 0) setenv("MOEC_CACHE", "/proc/nowhere", 1);
    if (_i == 1) {
        ck_assert_int_eq(mkdir(place, 0777) || mkdir(test_path(place, "weights"), 0777) ||
                             chmod(test_path(place, "weights"), 0777),
                         0);
        setenv("MOEC_CACHE", place, 1);
    }
    if (_i == 2) {
        unsetenv("MOEC_CACHE");
        unsetenv("XDG_CACHE_HOME");
        unsetenv("HOME");
    }
    OK(moec_weights_open(model, dir, NULL, &weights, &error));
    SAYS(moec_weights_note(weights), "packed in memory each time");
    ck_assert_str_eq(moec_weights_file(weights), "");
    ck_assert_mem_eq(packed(0), values, sizeof values);
    moec_weights_close(weights);
    moec_weights_options options = {.in_memory = true};
    OK(moec_weights_open(model, dir, &options, &weights, &error));
    ck_assert_str_eq(moec_weights_note(weights), "");
    moec_weights_close(weights);
    moec_model_destroy(model);
}
END_TEST

/* No room: an error for a path the user gave, packing in memory for the cache; never a half-written file. */
START_TEST(no_room)
{
    moec_abi_weight w = weight("a", MOEC_F32, 2, 100, 100, 0);
    st_add(&file, "a", MOEC_F32, 2, DIMS(100, 100), NULL);
    write_model();
    OK(moec_model_from_abi(fake_weights(&w, 1, ""), &model, &error));
    struct rlimit small = {4096, 4096};
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    moec_weights_options options = {.packed_path = test_path(dir, "p")};
    REFUSED(moec_weights_open(model, dir, &options, &weights, &error), MOEC_ERR_IO, "cannot write");
    ck_assert(!mc_file_exists(options.packed_path));
    OK(moec_weights_open(model, dir, NULL, &weights, &error));
    SAYS(moec_weights_note(weights), "File too large");
    ck_assert_str_eq(moec_weights_file(weights), "");
    moec_weights_close(weights);
    moec_model_destroy(model);
}
END_TEST

static uint64_t done_bytes, total_bytes;

static void
note_progress(void *context, uint64_t done, uint64_t total)
{
    ck_assert_ptr_eq(context, &done_bytes);
    ck_assert(done > done_bytes);
    done_bytes = done;
    total_bytes = total;
}

START_TEST(other_files_are_not_written_over)
{
    moec_abi_weight w = weight("a", MOEC_F32, 1, 3, 0, 0);
    char path[512];
    st_add(&file, "a", MOEC_F32, 1, DIMS(3), NULL);
    write_model();
    snprintf(path, sizeof path, "%s", test_path(dir, "model.safetensors"));
    moec_weights_options options = {.packed_path = path};
    REFUSED(open_model(fake_weights(&w, 1, ""), dir, &options), MOEC_ERR_ARGUMENT, "not written over");
    OK(open_model(fake_weights(&w, 1, ""), dir, NULL));
}
END_TEST

START_TEST(equal_weights_share)
{
    moec_abi_weight w[] = {weight("a", MOEC_F32, 2, 4, 4, 0), weight("b", MOEC_F32, 2, 4, 4, 0),
                           weight("a", MOEC_F32, 2, 4, 4, 0), weight("a", MOEC_F32, 2, 4, 4, 0)};
    moec_weights_options options = {.in_memory = true, .progress = note_progress, .progress_context = &done_bytes};
    w[3].layout = MOEC_ABI_PANELS;
    w[3].nr = 8;
    st_add(&file, "a", MOEC_F32, 2, DIMS(4, 4), NULL);
    st_add(&file, "b", MOEC_F32, 2, DIMS(4, 4), NULL);
    write_model();
    OK(moec_model_from_abi(fake_weights(w, 4, ""), &model, &error));
    OK(moec_weights_open(model, dir, &options, &weights, &error));
    ck_assert_ptr_eq(packed(0), packed(2));
    ck_assert_ptr_ne(packed(0), packed(3));
    for (uint32_t i = 0; i < 4; i++) ck_assert_uint_eq((uintptr_t)packed(i) % 64, 0);
    ck_assert_uint_eq(moec_weights_bytes(weights), 64 + 64 + 128);
    ck_assert_uint_eq(done_bytes, 64 + 64 + 128);
    ck_assert_uint_eq(total_bytes, done_bytes);
    moec_weights_close(weights);
    moec_model_destroy(model);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("weights");
    TCase *t = tcase_create("weights");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, e0901_unbound);
    tcase_add_test(t, e0902_left_over);
    tcase_add_test(t, e0903_shapes);
    tcase_add_test(t, e0904_experts);
    tcase_add_test(t, e0905_scales);
    tcase_add_test(t, narrowing_is_asked_for);
    tcase_add_test(t, maps_are_tried);
    tcase_add_test(t, cache_is_used);
    tcase_add_test(t, damaged_packed_files);
    tcase_add_loop_test(t, cache_that_cannot_be_used, 0, 3);
    tcase_add_test(t, no_room);
    tcase_add_test(t, other_files_are_not_written_over);
    tcase_add_test(t, equal_weights_share);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
