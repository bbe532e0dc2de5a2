/* Weights: hostile safetensors files, rules, binding and its errors, packing into every layout and type, packed files.
 */
#define _GNU_SOURCE
#include "moec/runtime.h"
#include "runtime/base/file.h"
#include "runtime/rules.h"
#include "tests/support/fake_model.h"
#include "tests/support/st_file.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/* ---- safetensors files ----------------------------------------------------------------------------------------- */

static const struct {
    const char *header;
    size_t data;
    const char *says;
} hostile[] = {
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, "outside the file"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, "bytes after the last tensor"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12, "hole"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":[2],"
     "\"data_offsets\":[4,12]}}",
     12, "overlap"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":[2],"
     "\"data_offsets\":[0,8]}}",
     8, "overlap"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "disagree"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "outside the file"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8, "outside the file"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "natural number"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8, "natural number"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,8]}}", 8, "larger than memory"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0,4611686018427387904,4],\"data_offsets\":[0,0]}}", 0, "larger than memory"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,8]}}", 8, ": byte"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "more than 6"},
    {"{\"a\":{\"dtype\":\"Q4_K\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "element type Q4_K"},
    {"{\"a\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype is not a string"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", 8, "shape is not a list"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "two numbers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "nothing else"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"extra\":1}}", 8, "nothing else"},
    {"{\"a\":[1]}", 0, "not an object"},
    {"[1]", 0, "not an object"},
    {"{\"\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, "length"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"F32\",\"shape\":[],"
     "\"data_offsets\":[4,8]}}",
     8, "duplicate"},
    {"{\"__metadata__\":{\"k\":1}}", 0, "__metadata__"},
    {"{\"__metadata__\":7}", 0, "__metadata__"},
    {"{", 0, ": byte"},
    {"", 0, ": byte"},
    {"{} x", 0, ": byte"},
};
enum { N_HOSTILE = sizeof hostile / sizeof *hostile };

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

START_TEST(hostile_headers)
{
    static const unsigned char zeros[64];
    const char *path = test_path(dir, "model.safetensors");
    st_write_raw(path, hostile[_i].header, zeros, hostile[_i].data);
    moec_status s = open_model(fake_weights(NULL, 0, ""), dir, NULL);
    ck_assert_msg(s == MOEC_ERR_SYNTAX || s == MOEC_ERR_UNSUPPORTED, "%d %s", s, error.text);
    SAYS(error.text, hostile[_i].says);
    SAYS(error.text, "model.safetensors");
}
END_TEST

START_TEST(hostile_lengths)
{
    static const uint64_t lengths[] = {0, 3, 1000, UINT64_C(1) << 40, UINT64_MAX, 101 << 20};
    static const size_t bytes[] = {0, 5, 7, 8, 9, 20};
    for (size_t i = 0; i < 6; i++)
        for (size_t j = 0; j < 6; j++) {
            unsigned char image[32] = {0};
            memcpy(image, &lengths[i], 8);
            ck_assert_int_eq(mc_file_write(test_path(dir, "model.safetensors"), image, bytes[j], 0644, NULL), MOEC_OK);
            REFUSED(open_model(fake_weights(NULL, 0, ""), dir, NULL), MOEC_ERR_SYNTAX, "not a valid safetensors file");
        }
}
END_TEST

START_TEST(harmless_files)
{
    st_write_raw(test_path(dir, "model.safetensors"), "{\"__metadata__\":{\"a\":\"b\"}}   ", "", 0);
    OK(open_model(fake_weights(NULL, 0, ""), dir, NULL));
    st_add(&file, "empty", MOEC_F32, 3, DIMS(4, 0, 2), NULL);
    st_write(&file, test_path(dir, "model.safetensors"));
    REFUSED(open_model(fake_weights(NULL, 0, ""), dir, NULL), MOEC_ERR_MISMATCH, "E0902");
    OK(open_model(fake_weights(NULL, 0, "ignore \"**\""), dir, NULL));
}
END_TEST

START_TEST(no_files)
{
    REFUSED(open_model(fake_weights(NULL, 0, ""), dir, NULL), MOEC_ERR_NOT_FOUND, "neither model.safetensors");
    REFUSED(open_model(fake_weights(NULL, 0, ""), test_path(dir, "nowhere"), NULL), MOEC_ERR_NOT_FOUND, "there is no");
    mkdir(test_path(dir, "model.safetensors"), 0755);
    REFUSED(open_model(fake_weights(NULL, 0, ""), dir, NULL), MOEC_ERR_IO, "not a regular file");
}
END_TEST

/* ---- shards ---------------------------------------------------------------------------------------------------- */

static const struct {
    const char *index, *says;
    moec_status status;
} indices[] = {
    {"{\"weight_map\":{\"a\":\"../one.safetensors\"}}", "../one.safetensors", MOEC_ERR_SYNTAX},
    {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "/etc/passwd", MOEC_ERR_SYNTAX},
    {"{\"weight_map\":{\"a\":\"sub/one.safetensors\"}}", "beside the index", MOEC_ERR_SYNTAX},
    {"{\"weight_map\":{\"a\":\"..\"}}", "beside the index", MOEC_ERR_SYNTAX},
    {"{\"weight_map\":{\"a\":\"\"}}", "beside the index", MOEC_ERR_SYNTAX},
    {"{\"weight_map\":{\"a\":5}}", "beside the index", MOEC_ERR_SYNTAX},
    {"{\"weight_map\":{\"a\":\"missing.safetensors\"}}", "missing", MOEC_ERR_NOT_FOUND},
    {"{\"weight_map\":{}}", "no weight_map", MOEC_ERR_SYNTAX},
    {"{\"weight_map\":[]}", "no weight_map", MOEC_ERR_SYNTAX},
    {"{}", "no weight_map", MOEC_ERR_SYNTAX},
    {"[]", "no weight_map", MOEC_ERR_SYNTAX},
    {"", "index.json", MOEC_ERR_SYNTAX},
    {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}", "in another shard too", MOEC_ERR_SYNTAX},
};
enum { N_INDICES = sizeof indices / sizeof *indices };

START_TEST(hostile_indices)
{
    const char *path = test_path(dir, "model.safetensors.index.json");
    st_add(&file, "a", MOEC_F32, 1, DIMS(2), NULL);
    st_write(&file, test_path(dir, "one.safetensors"));
    st_write(&file, test_path(dir, "two.safetensors"));
    ck_assert_int_eq(mc_file_write(path, indices[_i].index, strlen(indices[_i].index), 0644, NULL), MOEC_OK);
    REFUSED(open_model(fake_weights(NULL, 0, "ignore \"**\""), dir, NULL), indices[_i].status, indices[_i].says);
}
END_TEST

START_TEST(good_shards)
{
    static const char index[] =
        "{\"metadata\":{\"total_size\":16},\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}";
    static const moec_abi_weight w[] = {{"a", NULL, "r", MOEC_F32, 0, 0, 1, {2}, NULL, {0}, "", 0},
                                        {"b", NULL, "r", MOEC_F32, 0, 0, 1, {2}, NULL, {0}, "", 0}};
    static st_file second;
    st_begin(&second);
    st_add(&file, "a", MOEC_F32, 1, DIMS(2), NULL);
    st_add(&second, "b", MOEC_F32, 1, DIMS(2), NULL);
    st_write(&file, test_path(dir, "one.safetensors"));
    st_write(&second, test_path(dir, "two.safetensors"));
    ck_assert_int_eq(mc_file_write(test_path(dir, "model.safetensors.index.json"), index, strlen(index), 0644, NULL),
                     MOEC_OK);
    OK(open_model(fake_weights(w, 2, ""), dir, NULL));
}
END_TEST

/* ---- rules ----------------------------------------------------------------------------------------------------- */

static const struct {
    const char *pattern, *path, *source, *result; /* result NULL: no match */
} patterns[] = {
    {"**", "a.b.c", "model.**", "model.a.b.c"},
    {"lm_head.**", "lm_head.weight", "lm_head.**", "lm_head.weight"},
    {"lm_head.**", "lm_headx.weight", "lm_head.**", NULL},
    {"layers.{i}.x", "layers.12.x", "model.{i}.y", "model.12.y"},
    {"layers.{i}.x", "layers.1.2.x", "model.{i}.y", NULL},
    {"*.x", "ab.x", "*.y", "ab.y"},
    {"*.x", "a.b.x", "*.y", NULL},
    {"{a}.{a}", "q.q", "{a}", "q"},
    {"{a}.{a}", "q.r", "{a}", NULL},
    {"**.experts.{p}.weight", "layers.0.mlp.experts.up_proj.weight", "model.**.experts.{e}.{p}.weight",
     "model.layers.0.mlp.experts.7.up_proj.weight"},
    {"**.m.**", "a.m.b.m.c", "<**|**>", "<a.m.b|c>"},
    {"a.**", "a.", "x.**", NULL},
    {"ab*", "abc", "z*", "zc"},
    {"ab*", "ab", "z*", NULL},
};
enum { N_PATTERNS = sizeof patterns / sizeof *patterns };

START_TEST(pattern_cases)
{
    mc_captures captures;
    mc_rule rule = {.source = mc_str_of(patterns[_i].source)};
    char out[MC_PATH_BYTES];
    bool matched = mc_pattern_match(mc_str_of(patterns[_i].pattern), mc_str_of(patterns[_i].path), &captures);
    ck_assert_int_eq(matched, patterns[_i].result != NULL);
    if (!matched) return;
    ck_assert(mc_rule_source(&rule, &captures, 7, out));
    ck_assert_str_eq(out, patterns[_i].result);
}
END_TEST

static const struct {
    const char *text, *says;
} bad_rules[] = {
    {"weights { \"a\" - \"b\" }", "'<-'"},
    {"weights { \"a\" <- b }", "quotes"},
    {"weights { \"a\" <- \"b }", "unfinished"},
    {"weights { \"\" <- \"b\" }", "length"},
    {"weights \"a\" <- \"b\"", "'{'"},
    {"nonsense", "'weights'"},
    {"weights { \"a\" <- \"b\" | spin }", "not a stage"},
    {"weights { \"a\" <- \"b\" | transpose(1) }", "arguments"},
    {"weights { \"a\" <- \"b\" | transpose(1, }", "number"},
    {"weights { \"a\" <- \"b\" | reshape(1.5) }", "integer"},
    {"weights { \"a\" <- \"b\" | reshape(1,2,3,4,5,6,7) }", "too many"},
    {"weights { \"a\" <- \"b\" | fp8(128) }", "arguments"},
    {"weights { \"a\", \"c\" <- \"b\" }", "belong together"},
    {"weights { \"a\" <- \"b\" | split(axis = 0) }", "belong together"},
    {"weights { \"a\" <- \"b.*\" }", "more wildcards"},
    {"weights { \"a\" <- \"b.{e}.{f}\" }", "two names"},
    {"weights { \"a.{i}\", \"b\" <- \"{i}\" | split }", "only some targets"},
    {"weights { \"a{\" <- \"b\" }", "'{'"},
    {"weights { \"a}\" <- \"b\" }", "'}'"},
    {"weights { \"a\" <- \"b\" | add(1e400) }", "out of range"},
    {"weights { ignore a }", "quotes"},
    {"weights { ", "quotes"},
};
enum { N_BAD_RULES = sizeof bad_rules / sizeof *bad_rules };

START_TEST(rules_refused)
{
    mc_rules rules;
    mc_fault fault = {{0}};
    ck_assert_int_eq(mc_rules_parse(bad_rules[_i].text, &rules, &fault), MOEC_ERR_SYNTAX);
    SAYS(fault.text, bad_rules[_i].says);
    SAYS(fault.text, "line 1");
}
END_TEST

START_TEST(rules_read)
{
    static const char text[] =
        "# maps\nweights hf {\n  \"a.{i}\", \"b.{i}\" <- \"x.{i}.{e}\" # stacked\n    | transpose(1, -2)\n"
        "    | unzip(axis = 1) | scale 0.5 | reshape(1_024, 2)\n  ignore \"y.**\", \"z\"; \"c\" <- \"d\" }\nweights "
        "gguf { \"**\" <- \"**\" }";
    mc_rules rules;
    mc_fault fault;
    ck_assert_msg(mc_rules_parse(text, &rules, &fault) == MOEC_OK, "%s", fault.text);
    ck_assert_uint_eq(rules.n_maps, 2);
    ck_assert(mc_str_is(rules.maps[1].name, "gguf"));
    ck_assert_uint_eq(rules.maps[0].n, 3);
    ck_assert_uint_eq(rules.maps[1].first, 3);
    const mc_rule *r = rules.rules;
    ck_assert_int_eq(r->n_targets, 2);
    ck_assert(mc_str_is(r->stacked, "e"));
    ck_assert_int_eq(r->n_stages, 4);
    ck_assert_int_eq(r->stages[0].ints[1], -2);
    ck_assert_int_eq(r->stages[1].kind, MC_STAGE_UNZIP);
    ck_assert_int_eq(r->stages[1].ints[0], 1);
    ck_assert_double_eq(r->stages[2].number, 0.5);
    ck_assert_int_eq(r->stages[3].ints[0], 1024);
    ck_assert(r[1].ignore);
    ck_assert_int_eq(r[1].n_targets, 2);
    mc_rules_fini(&rules);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("checkpoint");
    TCase *t = tcase_create("checkpoint");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, hostile_headers, 0, N_HOSTILE);
    tcase_add_test(t, hostile_lengths);
    tcase_add_test(t, harmless_files);
    tcase_add_test(t, no_files);
    tcase_add_loop_test(t, hostile_indices, 0, N_INDICES);
    tcase_add_test(t, good_shards);
    tcase_add_loop_test(t, pattern_cases, 0, N_PATTERNS);
    tcase_add_loop_test(t, rules_refused, 0, N_BAD_RULES);
    tcase_add_test(t, rules_read);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
