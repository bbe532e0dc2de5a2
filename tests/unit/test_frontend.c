/* The front end: parameter totals of known models, golden modules, one faulty text for each code, families against
 * their configurations, and hostile or cut-off texts. */
#define _POSIX_C_SOURCE 200809L
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/elaborate.h"
#include "frontend/format.h"
#include "ir/print.h"
#include "runtime/base/clock.h"
#include "tests/support/golden.h"

enum { MAX_BYTES = 16 << 20, MAX_LIST = 8 };

typedef struct fixture {
    mc_arena *arena;
    mc_sources sources;
    mc_diags diags;
    mc_elab_options options;
    mc_str defines[MAX_LIST], settings[MAX_LIST];
    mc_elab_result result;
    uint32_t file;
    mc_buf text; /* scratch: files read, messages */
} fixture;

static fixture x;

static void
setup(void)
{
    x = (fixture){.arena = mc_arena_create()};
    x.sources.arena = x.arena;
    mc_diags_init(&x.diags, x.arena, &x.sources);
    x.options.defines = x.defines;
    x.options.settings = x.settings;
}

static void
teardown(void)
{
    mc_module_destroy(x.result.module);
    mc_buf_fini(&x.text);
    mc_arena_destroy(x.arena);
}

static mc_str
read_text(const char *path)
{
    mc_fault fault = {0};
    mc_buf_clear(&x.text);
    ck_assert_msg(mc_file_read(path, MAX_BYTES, &x.text, &fault) == MOEC_OK, "%s", fault.text);
    return mc_str_dup(x.arena, mc_buf_view(&x.text));
}

static const char *
messages(void)
{
    mc_buf_clear(&x.text);
    mc_buf_putc(&x.text, '\n');
    for (size_t i = 0; i < x.diags.list.n; i++) mc_diag_render(&x.diags, &x.diags.list.items[i], false, &x.text);
    return x.text.data;
}

static bool
elaborate_text(const char *name, mc_str text)
{
    x.file = mc_sources_add(&x.sources, mc_str_of(name), text);
    return mc_elaborate(x.arena, &x.sources, x.file, &x.options, &x.diags, &x.result);
}

static bool
elaborate_file(const char *path)
{
    return elaborate_text(path, read_text(path));
}

/* "-D N=V", "--set K=V", "--config FILE", "-m NAME", "--map NAME" of a RUN line. */
static void
read_options(mc_str run)
{
    char *words = mc_arena_alloc(x.arena, run.len + 1), *rest = NULL;
    if (run.len) memcpy(words, run.data, run.len);
    for (char *w = strtok_r(words, " ", &rest); w; w = strtok_r(NULL, " ", &rest)) {
        char *value = strtok_r(NULL, " ", &rest);
        ck_assert_ptr_nonnull(value);
        mc_str v = mc_str_of(value);
        if (!strcmp(w, "-D"))
            x.defines[x.options.n_defines++] = v;
        else if (!strcmp(w, "--set"))
            x.settings[x.options.n_settings++] = v;
        else if (!strcmp(w, "--config"))
            x.options.config = read_text(value);
        else if (!strcmp(w, "-m"))
            x.options.model = v;
        else if (!strcmp(w, "--map"))
            x.options.weights_map = v;
        else
            ck_abort_msg("unknown option %s", w);
        ck_assert(x.options.n_defines < MAX_LIST && x.options.n_settings < MAX_LIST);
    }
}

/* ---- totals: the numbers of weights and parameters that these models are known to have ---- */

static const struct total {
    const char *file, *options;
    size_t n_weights;
    double total, active; /* in 10^9, three digits */
} totals[] = {
    {"mixtral", "", 323, 46.703, 12.880},
    {"dbrx", "", 323, 131.597, 36.470},
    {"dsv2lite", "", 377, 15.706, 2.661},
    {"dsv2", "", 959, 235.741, 21.376},
    {"dsv3", "", 1025, 671.026, 37.552},
    {"qwen2moe", "", 411, 14.316, 2.689},
    {"qwen3", "", 579, 30.532, 3.353},
    {"qwen3_235b", "", 1131, 235.094, 22.191},
    {"jetmoe", "", 290, 8.522, 2.331},
    {"jamba", "", 531, 51.570, 12.110},
    {"olmoe", "", 195, 6.919, 1.282},
    {"phimoe", "", 517, 41.873, 6.641},
    {"granite", "", 242, 1.335, 0.429},
    {"llama4", "", 627, 107.770, 17.173},
    {"llama4", "-D every=2 -D E=128", 531, 400.712, 17.185}, /* Maverick */
    {"glm45air", "", 780, 106.852, 13.424},
    {"ernie", "", 389, 21.825, 3.352},
    {"gptoss", "", 459, 20.915, 4.187},
    {"qwen3next", "", 807, 79.674, 3.875},
    {"minimaxm2", "", 809, 228.690, 11.031},
    {"kimi2", "", 1035, 1026.408, 32.862},
    {"hunyuan", "", 482, 80.393, 12.747},
    {"dots1", "", 990, 142.774, 14.017},
    {"flexolmo", "", 387, 33.271, 24.614},
    {"glm5", "", 1704, 743.911, 41.785},
    {"longcat", "", 815, 560.665, 32.183},
    {"layer", "", 4, 0.088, 0.022},
    {"latent", "", 73, 0.007, 0.005},
    {"stages", "", 66, 0.001, 0.000},
    {"families/qwen3_moe", "--config tests/golden/families/qwen3_moe.json", 579, 30.532, 3.353},
    {"families/deepseek_v3", "--config tests/golden/families/deepseek_v3.json", 1025, 671.026, 37.552},
    {"families/deepseek_v3", "--config tests/golden/families/moonlight.json", 403, 15.960, 2.915},
};
enum { N_TOTALS = sizeof totals / sizeof totals[0] };

static void
check_total(const struct total *t)
{
    char path[256], got[64], want[64];
    snprintf(path, sizeof path, "examples/%s.moe", t->file);
    read_options(mc_str_of(t->options));
    double begin = mc_thread_seconds();
    ck_assert_msg(elaborate_file(path), "%s: %s", path, messages());
    double seconds = mc_thread_seconds() - begin;
    const mc_elab_result *r = &x.result;
    snprintf(got, sizeof got, "%zu weights, %.3f B, %.3f B active", r->weights.n, (double)r->n_params / 1e9,
             (double)r->n_active_params / 1e9);
    snprintf(want, sizeof want, "%zu weights, %.3f B, %.3f B active", t->n_weights, t->total, t->active);
    ck_assert_msg(!strcmp(got, want), "%s: %s, but it has %s", path, got, want);
    ck_assert_msg(seconds < 1.0, "%s took %.3f s to elaborate", path, seconds);
}

START_TEST(totals_agree)
{
    check_total(&totals[_i]);
}
END_TEST

/* What we ship is written as `moec fmt` writes it. */
START_TEST(shipped_texts_are_formatted)
{
    mc_paths paths = mc_golden_find(x.arena, "examples", ".moe");
    mc_vec_push(x.arena, &paths, "frontend/prelude.moe");
    ck_assert_uint_gt(paths.n, N_TOTALS - 4);
    for (size_t i = 0; i < paths.n; i++) {
        mc_buf out = {0};
        mc_str text = read_text(paths.items[i]);
        uint32_t file = mc_sources_add(&x.sources, mc_str_of(paths.items[i]), text);
        ck_assert_msg(mc_format(x.arena, &x.sources, file, &x.diags, &out), "%s", messages());
        ck_assert_msg(mc_str_eq(text, mc_buf_view(&out)), "%s: run moec fmt --write on it", paths.items[i]);
        mc_buf_fini(&out);
    }
}
END_TEST

/* ---- golden modules ---- */

START_TEST(modules_are_as_expected)
{
    mc_paths paths = mc_golden_find(x.arena, "tests/golden/frontend", ".moe");
    ck_assert_uint_gt(paths.n, 0);
    bool ok = true;
    for (size_t i = 0; i < paths.n; i++) {
        mc_golden g;
        mc_fault fault = {0};
        mc_buf out = {0}, report = {0};
        teardown();
        setup();
        paths = mc_golden_find(x.arena, "tests/golden/frontend", ".moe");
        ck_assert_msg(mc_golden_load(&g, paths.items[i], &fault), "%s", fault.text);
        read_options(g.run);
        if (elaborate_text(paths.items[i], g.text))
            mc_module_print(x.result.module, &out);
        else
            mc_buf_puts(&out, messages());
        if (!mc_golden_check(&g, mc_buf_view(&out), &report)) {
            fprintf(stderr, "%s: %s\n", paths.items[i], report.data);
            ok = false;
        }
        mc_buf_fini(&out);
        mc_buf_fini(&report);
        mc_golden_free(&g);
    }
    ck_assert_msg(ok, "see above");
}
END_TEST

/* Printing a module and reading it back gives the same text, for every example. */
START_TEST(modules_survive_their_text)
{
    char path[256];
    mc_buf again = {0};
    snprintf(path, sizeof path, "examples/%s.moe", totals[_i].file);
    read_options(mc_str_of(totals[_i].options));
    ck_assert_msg(elaborate_file(path), "%s", messages());
    mc_buf_clear(&x.text);
    mc_module_print(x.result.module, &x.text);
    mc_str text = mc_str_dup(x.arena, mc_buf_view(&x.text));
    mc_module *read = mc_module_read(&x.sources, mc_sources_add(&x.sources, MC_STR("printed"), text), &x.diags);
    ck_assert_msg(read != NULL, "%s", messages());
    mc_module_print(read, &again);
    ck_assert(mc_str_eq(text, mc_buf_view(&again)));
    mc_module_destroy(read);
    mc_buf_fini(&again);
}
END_TEST

/* ---- faulty texts ---- */

static bool
check_faults(const char *path)
{
    mc_golden g;
    mc_fault fault = {0};
    mc_buf report = {0};
    teardown();
    setup();
    ck_assert_msg(mc_golden_load(&g, path, &fault), "%s", fault.text);
    read_options(g.run);
    elaborate_text(path, g.text);
    bool good = mc_golden_check_diags(&g, &x.diags, x.file, &report);
    if (!good) fprintf(stderr, "%s%s", report.data, messages());
    mc_buf_fini(&report);
    mc_golden_free(&g);
    return good;
}

START_TEST(faults_are_reported_where_they_are)
{
    mc_arena *arena = mc_arena_create();
    mc_paths paths = mc_golden_find(arena, "tests/golden/diag", ".moe");
    ck_assert_uint_gt(paths.n, 0);
    bool good = true;
    for (size_t i = 0; i < paths.n; i++) good = check_faults(paths.items[i]) && good;
    mc_arena_destroy(arena);
    ck_assert_msg(good, "see above");
}
END_TEST

START_TEST(every_code_has_a_faulty_text)
{
    mc_paths paths = mc_golden_find(x.arena, "tests/golden/diag", ".moe");
    mc_buf all = {0};
    for (size_t i = 0; i < paths.n; i++) mc_buf_str(&all, read_text(paths.items[i]));
    for (int code = 0; code < MC_N_CODES; code++) {
        const char *name = mc_code_name((mc_code)code);
        bool ours = !strncmp(name, "E01", 3) || !strncmp(name, "E02", 3) || !strncmp(name, "E03", 3) ||
                    !strncmp(name, "W03", 3);
        char comment[32];
        snprintf(comment, sizeof comment, "# %s %s", name[0] == 'W' ? "warning" : "error", name);
        ck_assert_msg(!ours || strstr(all.data, comment), "no text in tests/golden/diag triggers %s", name);
    }
    mc_buf_fini(&all);
}
END_TEST

static void
expect_fault(mc_code code, const char *words)
{
    for (size_t i = 0; i < x.diags.list.n; i++) {
        const mc_diagnostic *d = &x.diags.list.items[i];
        if (d->code == code && strstr(mc_str_dup(x.arena, d->text).data, words)) return;
    }
    ck_abort_msg("no %s that says '%s' in: %s", mc_code_name(code), words, messages());
}

static const char plain[] = "moe 1\ndim B, S\nparam D = 8\nmodel m(x: f32[B, S, D]) -> [B, S, D] { return x }\n";

START_TEST(bad_options_are_refused)
{
    x.defines[0] = MC_STR("DD=3");
    x.defines[1] = MC_STR("D=3\nparam X=1");
    x.defines[2] = MC_STR("D=(");
    x.options.n_defines = 3;
    x.settings[0] = MC_STR("precision.router");
    x.settings[1] = MC_STR("loss.x=1");
    x.settings[2] = MC_STR("train.loss=mse } train { seed 1");
    x.settings[3] = MC_STR("train.lost=mse");
    x.options.n_settings = 4;
    x.options.weights_map = MC_STR("hf");
    ck_assert(!elaborate_text("plain", mc_str_of(plain)));
    expect_fault(MC_E0912, "no such param; it has D (did you mean 'D'?)");
    expect_fault(MC_E0912, "-D needs NAME=value");
    expect_fault(MC_E0101, "expected");
    expect_fault(MC_E0912, "--set needs BLOCK.NAME=VALUE");
    expect_fault(MC_E0206, "'lost' is not a setting of train");
    expect_fault(MC_E0201, "no weights block 'hf'");
}
END_TEST

START_TEST(bad_configurations_are_refused)
{
    static const char *const texts[] = {"{", "[]", "{\"a\": 1, \"a\": 2}", "nonsense", "{\"hidden_size\": {\"a\": 1}}"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        teardown();
        setup();
        x.options.config = mc_str_of(texts[i]);
        ck_assert(
            !elaborate_text("c", MC_STR("moe 1\nparam D = config(\"hidden_size\")\nmodel m() -> [D] { return 1 }\n")));
        ck_assert_int_gt(x.diags.n_errors, 0);
    }
}
END_TEST

START_TEST(unread_keys_are_listed)
{
    x.options.config = MC_STR(
        "{\"hidden_size\": 8, \"use_cache\": true, \"eos_token_id\": 2, \"new_idea\": 1, \"rope_scaling\": null}");
    ck_assert_msg(elaborate_text("c", MC_STR("moe 1\ndim B\nparam D = config(\"hidden_size\")\n"
                                             "model m(x: f32[B, D]) -> [B, D] { return x }\n")),
                  "%s", messages());
    expect_fault(MC_W0907, "config.json keys not read: new_idea");
    ck_assert_uint_eq(x.result.config_read.n, 1);
    ck_assert_uint_eq(x.result.config_unread.n, 1);
}
END_TEST

START_TEST(overrides_reach_the_model)
{
    x.defines[0] = MC_STR("D=2 * 16");
    x.options.n_defines = 1;
    x.settings[0] = MC_STR("precision.storage=f32");
    x.settings[1] = MC_STR("place.mesh=ep = 2, dp = 3");
    x.options.n_settings = 2;
    const char *text = "moe 1\ndim B\nparam D = 8\nmodel m(x: f32[B, D]) -> [B, D] { return linear@a(x, D) }\n"
                       "precision { storage bf16 }\nplace { mesh ep = 4 }\n";
    ck_assert_msg(elaborate_text("o", mc_str_of(text)), "%s", messages());
    const mc_type *t = x.result.weights.items[0].type;
    ck_assert_int_eq(t->dtype, MOEC_F32);
    ck_assert_int_eq(t->dims[0].mul, 32);
    ck_assert(mc_str_is(mc_module_meta(x.result.module, "precision.storage"), "f32"));
    ck_assert(mc_str_is(mc_module_meta(x.result.module, "place"), "mesh ep = 2, dp = 3"));
    ck_assert(x.result.params.items[0].overridden && mc_str_is(x.result.params.items[0].value, "32"));
}
END_TEST

static bool
load_pieces(void *user, mc_arena *arena, mc_str from, mc_str path, mc_str *out_name, mc_str *out_text)
{
    (void)user;
    (void)from;
    *out_name = mc_str_dup(arena, path);
    if (mc_str_is(path, "a.moe")) {
        *out_text = MC_STR("moe 1\nuse \"b.moe\"\nblock half(x: [..., d]) -> [..., d] { return x / K }\n");
    } else if (mc_str_is(path, "b.moe")) {
        *out_text = MC_STR("moe 1\nuse \"a.moe\"\nparam K = 2\n");
    } else {
        return false;
    }
    return true;
}

START_TEST(files_use_files)
{
    x.options.load = load_pieces;
    ck_assert_msg(elaborate_text("main", MC_STR("moe 1\nuse \"a.moe\"\nuse \"b.moe\"\ndim B\n"
                                                "model m(x: f32[B, 4]) -> [B, 4] { return half(x) }\n")),
                  "%s", messages());
    mc_module_destroy(x.result.module);
    x.result.module = NULL;
    ck_assert(!elaborate_text("main2", MC_STR("moe 1\nuse \"c.moe\"\n")));
    expect_fault(MC_E0909, "cannot read \"c.moe\"");
}
END_TEST

/* ---- texts that nobody writes ---- */

/* Every example cut off anywhere, or with one byte changed, is elaborated or refused, but never crashes. */
START_TEST(broken_texts_are_survived)
{
    char path[256];
    snprintf(path, sizeof path, "examples/%s.moe", totals[_i].file);
    mc_str text = read_text(path);
    mc_str copy = text;
    unsigned state = 12345u + (unsigned)_i;
    for (int round = 0; round < 60; round++) {
        char *bytes = malloc(copy.len + 1);
        memcpy(bytes, copy.data, copy.len);
        state = state * 1103515245u + 12345u;
        size_t at = (state >> 8) % copy.len, len = copy.len;
        static const char odd[] = "(){}[]@|,.:\"#0-\n=x*";
        if (round % 3 == 0)
            len = at;
        else if (round % 3 == 1)
            bytes[at] = odd[(state >> 4) % (sizeof odd - 1)];
        else
            bytes[at] = (char)(state >> 16);
        mc_str broken = mc_str_slice((mc_str){bytes, copy.len}, 0, len);
        mc_arena *arena = mc_arena_create();
        mc_sources sources = {.arena = arena};
        mc_diags diags;
        mc_diags_init(&diags, arena, &sources);
        mc_elab_result result;
        uint32_t file = mc_sources_add(&sources, MC_STR("broken"), broken);
        bool ok = mc_elaborate(arena, &sources, file, NULL, &diags, &result);
        ck_assert(ok == (diags.n_errors == 0));
        mc_module_destroy(result.module);
        mc_arena_destroy(arena);
        free(bytes);
    }
}
END_TEST

START_TEST(hostile_texts_end_soon)
{
    mc_buf text = {0};
    mc_buf_puts(&text, "moe 1\ndim B\nparam D = 0");
    for (int i = 0; i < 100000; i++) mc_buf_puts(&text, " + 1");
    mc_buf_puts(&text, "\nmodel m(x: f32[B, 4]) -> [B, 4] { return x }\n");
    ck_assert(!elaborate_text("long", mc_buf_view(&text)));
    expect_fault(MC_E0319, "nested more than");
    mc_buf_clear(&text);
    mc_buf_puts(&text, "moe 1\ndim B\nparam l0 = [1, 1]\n");
    for (int i = 1; i < 60; i++) mc_buf_printf(&text, "param l%d = [l%d, l%d]\n", i, i - 1, i - 1);
    mc_buf_puts(&text, "model m(x: f32[B, 4]) -> [B, 4] { return x }\n");
    ck_assert(!elaborate_text("lists", mc_buf_view(&text)));
    expect_fault(MC_E0319, "a list of more than");
    mc_buf_fini(&text);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("frontend");
    TCase *t = tcase_create("models");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, totals_agree, 0, N_TOTALS);
    tcase_add_loop_test(t, modules_survive_their_text, 0, N_TOTALS);
    tcase_add_test(t, shipped_texts_are_formatted);
    tcase_add_test(t, modules_are_as_expected);
    suite_add_tcase(s, t);
    t = tcase_create("faults");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, faults_are_reported_where_they_are);
    tcase_add_test(t, every_code_has_a_faulty_text);
    tcase_add_test(t, bad_options_are_refused);
    tcase_add_test(t, bad_configurations_are_refused);
    tcase_add_test(t, unread_keys_are_listed);
    tcase_add_test(t, overrides_reach_the_model);
    tcase_add_test(t, files_use_files);
    tcase_add_loop_test(t, broken_texts_are_survived, 0, N_TOTALS);
    tcase_add_test(t, hostile_texts_end_soon);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
