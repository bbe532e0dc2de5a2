/* Family files: each reference checkpoint's config.json is imported, the text elaborated, and its weights matched by
 * its rules against the tensors that are really in the checkpoint: every weight must find its tensors, with as many
 * elements as it needs, and every tensor must be used. */
#define mc_stage mc_rules_stage /* ir/ir.h has another type of this name */
#include "runtime/rules.h"
#undef mc_stage

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/import.h"
#include "runtime/checkpoint.h"

enum { MAX_BYTES = 1 << 20, PATH_BYTES = 512 };

static const char *const cases[] = {"mixtral_tiny",    "mixtral_bf16_tiny",       "mixtral_fused_tiny",
                                    "qwen2moe_tiny",   "qwen3moe_tiny",           "olmoe_tiny",
                                    "deepseekv3_tiny", "deepseekv3_noqlora_tiny", "deepseekv3_fp8_tiny"};
enum { N_CASES = sizeof cases / sizeof cases[0] };

typedef struct family {
    mc_arena *arena;
    mc_sources sources;
    mc_diags diags;
    mc_elab_result plain; /* of the imported text */
    mc_buf text, scratch;
    mc_checkpoint checkpoint;
    mc_rules rules;
    mc_str rules_text;
} family;

static family f;

static void
setup(void)
{
    f = (family){.arena = mc_arena_create()};
    f.sources.arena = f.arena;
    mc_diags_init(&f.diags, f.arena, &f.sources);
}

static void
teardown(void)
{
    mc_module_destroy(f.plain.module);
    mc_rules_fini(&f.rules);
    mc_checkpoint_fini(&f.checkpoint);
    mc_buf_fini(&f.text);
    mc_buf_fini(&f.scratch);
    mc_arena_destroy(f.arena);
}

static const char *
messages(void)
{
    mc_buf_clear(&f.scratch);
    mc_buf_putc(&f.scratch, '\n');
    for (size_t i = 0; i < f.diags.list.n; i++) mc_diag_render(&f.diags, &f.diags.list.items[i], false, &f.scratch);
    return f.scratch.data;
}

static mc_str
read_file(const char *format, const char *name)
{
    char path[PATH_BYTES];
    mc_buf text = {0};
    mc_fault fault = {0};
    snprintf(path, sizeof path, format, name);
    ck_assert_msg(mc_file_read(path, MAX_BYTES, &text, &fault) == MOEC_OK, "%s", fault.text);
    mc_str copy = mc_str_dup(f.arena, mc_buf_view(&text));
    mc_buf_fini(&text);
    return copy;
}

/* config.json -> plain text -> module, all without a complaint. */
static void
import_and_elaborate(mc_str config)
{
    mc_import_options options = {.config = config};
    ck_assert_msg(mc_import(f.arena, &f.sources, &options, &f.diags, &f.text), "%s", messages());
    uint32_t file = mc_sources_add(&f.sources, MC_STR("plain.moe"), mc_buf_view(&f.text));
    ck_assert_msg(mc_elaborate(f.arena, &f.sources, file, NULL, &f.diags, &f.plain), "%s", messages());
    ck_assert_msg(f.diags.list.n == 0, "%s", messages());
    ck_assert_msg(!strstr(f.text.data, "config(") && !strstr(f.text.data, "when ="), "%s", f.text.data);
}

static void
open_checkpoint(const char *name)
{
    char path[PATH_BYTES];
    mc_fault fault = {0};
    snprintf(path, sizeof path, "tests/reference/%s", name);
    ck_assert_msg(mc_checkpoint_find(path, &f.checkpoint, &fault) == MOEC_OK, "%s", fault.text);
    ck_assert_msg(mc_checkpoint_load(&f.checkpoint, &fault) == MOEC_OK, "%s", fault.text);
    mc_str map = mc_module_meta(f.plain.module, "weights");
    mc_str key = mc_strf(f.arena, "weights.%.*s", MC_FMT(map));
    f.rules_text =
        mc_strf(f.arena, "weights %.*s {\n%.*s}\n", MC_FMT(map), MC_FMT(mc_module_meta(f.plain.module, key.data)));
    ck_assert_msg(mc_rules_parse(f.rules_text.data, &f.rules, &fault) == MOEC_OK, "%s\n%s", fault.text,
                  f.rules_text.data);
}

static int64_t
elements(const mc_st_tensor *t)
{
    int64_t n = 1;
    for (uint32_t i = 0; i < t->rank; i++) n *= t->dims[i];
    return n;
}

static int64_t
weight_elements(const mc_weight_info *w)
{
    mc_dim n;
    ck_assert(mc_dims_product(w->type->dims, w->type->rank, &n));
    return n.mul;
}

/* Marks the tensor, and the scale that belongs to it in an FP8 checkpoint. */
static int64_t
use(const char *name)
{
    uint32_t at, scale;
    const mc_st_tensor *t = mc_checkpoint_get(&f.checkpoint, mc_str_of(name), &at);
    if (!t) return 0;
    f.checkpoint.used[at] = true;
    mc_str scale_name = mc_strf(f.arena, "%s_scale_inv", name);
    if (mc_checkpoint_get(&f.checkpoint, scale_name, &scale)) f.checkpoint.used[scale] = true;
    return elements(t);
}

/* Does the rule bind the weight? All experts, or none. */
static bool
bind_by(const mc_rule *rule, const mc_weight_info *w)
{
    char name[MC_PATH_BYTES];
    mc_captures captures;
    for (int t = 0; t < rule->n_targets && !rule->ignore; t++) {
        if (!mc_pattern_match(rule->targets[t], w->path, &captures)) continue;
        int64_t found = 0, n = rule->stacked.len ? w->experts : 1;
        ck_assert(mc_rule_source(rule, &captures, 0, name));
        if (!mc_checkpoint_get(&f.checkpoint, mc_str_of(name), &(uint32_t){0})) return false;
        for (int64_t i = 0; i < n; i++) {
            ck_assert(mc_rule_source(rule, &captures, i, name));
            int64_t size = use(name);
            ck_assert_msg(size > 0, "%.*s: no tensor %s", MC_FMT(w->path), name);
            found += size;
        }
        ck_assert_msg(found == weight_elements(w) * rule->n_targets, "%.*s has %lld elements, its tensors %lld",
                      MC_FMT(w->path), (long long)weight_elements(w), (long long)found);
        return true;
    }
    return false;
}

START_TEST(checkpoints_bind_both_ways)
{
    import_and_elaborate(read_file("tests/reference/%s/config.json", cases[_i]));
    open_checkpoint(cases[_i]);
    for (size_t i = 0; i < f.plain.weights.n; i++) {
        bool bound = false;
        for (size_t r = 0; r < f.rules.n_rules && !bound; r++)
            bound = bind_by(&f.rules.rules[r], &f.plain.weights.items[i]);
        ck_assert_msg(bound, "%.*s is bound by no rule", MC_FMT(f.plain.weights.items[i].path));
    }
    for (size_t i = 0; i < f.checkpoint.n_tensors; i++)
        ck_assert_msg(f.checkpoint.used[i], "%.*s is not used", MC_FMT(f.checkpoint.tensors[i]->name));
}
END_TEST

/* The plain text and the family file with the configuration are the same model. */
START_TEST(import_keeps_the_model)
{
    static const struct {
        const char *config, *family;
    } pairs[] = {{"tests/golden/families/qwen3_moe.json", "qwen3_moe"},
                 {"tests/golden/families/deepseek_v3.json", "deepseek_v3"},
                 {"tests/golden/families/moonlight.json", "deepseek_v3"}};
    mc_elab_result direct;
    mc_str config = read_file("%s", pairs[_i].config);
    import_and_elaborate(config);
    mc_elab_options options = {.config = config};
    mc_str text = read_file("examples/families/%s.moe", pairs[_i].family);
    uint32_t file = mc_sources_add(&f.sources, MC_STR("family.moe"), text);
    ck_assert_msg(mc_elaborate(f.arena, &f.sources, file, &options, &f.diags, &direct), "%s", messages());
    ck_assert_uint_eq(direct.weights.n, f.plain.weights.n);
    ck_assert_int_eq(direct.n_params, f.plain.n_params);
    ck_assert_int_eq(direct.n_active_params, f.plain.n_active_params);
    for (size_t i = 0; i < direct.weights.n; i++) {
        const mc_weight_info *a = &direct.weights.items[i], *b = &f.plain.weights.items[i];
        ck_assert_msg(mc_str_eq(a->path, b->path) && mc_str_eq(a->role, b->role), "%.*s", MC_FMT(a->path));
        ck_assert_int_eq(weight_elements(a), weight_elements(b));
    }
    mc_module_destroy(direct.module);
}
END_TEST

START_TEST(unknown_families_are_named)
{
    static const struct {
        const char *config;
        mc_code code;
    } faults[] = {{"{\"model_type\": \"mixtrall\"}", MC_E0911},
                  {"{\"hidden_size\": 3}", MC_E0911},
                  {"{\"model_type\": \"prelude\"}", MC_E0911},
                  {"not json", MC_E0908},
                  {"{\"model_type\": \"mixtral\"}", MC_E0906}};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        teardown();
        setup();
        mc_import_options options = {.config = mc_str_of(faults[i].config)};
        ck_assert(!mc_import(f.arena, &f.sources, &options, &f.diags, &f.text));
        ck_assert_msg(f.diags.list.n > 0 && f.diags.list.items[0].code == faults[i].code, "%s", messages());
        ck_assert_uint_eq(f.text.len, 0);
    }
}
END_TEST

START_TEST(defines_reach_the_import)
{
    const mc_str defines[] = {MC_STR_INIT("L=1"), MC_STR_INIT("norm_topk=false")};
    mc_str config = read_file("tests/reference/%s/config.json", "qwen3moe_tiny");
    mc_import_options options = {.config = config, .defines = defines, .n_defines = 2};
    ck_assert_msg(mc_import(f.arena, &f.sources, &options, &f.diags, &f.text), "%s", messages());
    ck_assert_msg(strstr(f.text.data, "L = 1") && !strstr(f.text.data, "renorm"), "%s", f.text.data);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("families");
    TCase *t = tcase_create("families");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, checkpoints_bind_both_ways, 0, N_CASES);
    tcase_add_loop_test(t, import_keeps_the_model, 0, 3);
    tcase_add_test(t, unknown_families_are_named);
    tcase_add_test(t, defines_reach_the_import);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
