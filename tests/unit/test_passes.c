/* The harness of passes: pipeline syntax, order, fuel, skipping, dumps, checks on passes that lie; and the rules of fp8
 * lines. What each pass does is in tests/golden/passes. */
#define _XOPEN_SOURCE 700 /* mkdtemp */
#include "ir/edit.h"
#include "ir/op.h"
#include "ir/print.h"
#include "passes/fp8_rules.h"
#include "passes/pipeline.h"
#include "runtime/base/file.h"
#include "tests/support/golden.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mc_arena *arena;
static mc_sources sources;
static mc_diags diags;
static mc_module *module;

static const char text[] = "moir 1 stage=tensor\n"
                           "dim T\n"
                           "\n"
                           "model @f(%x: f32[T, 8]) -> (f32[T, 8]) {\n"
                           "  %one = const {value = 1.0} : f32\n"
                           "  %a = mul %x, %one : f32[T, 8]\n"
                           "  %b = div %a, %one : f32[T, 8]\n"
                           "  %c = silu %b : f32[T, 8]\n"
                           "  %d = silu %b : f32[T, 8]\n"
                           "  %y = add %c, %d : f32[T, 8]\n"
                           "  return %y\n"
                           "}\n";

static mc_module *
read_text(const char *moir)
{
    mc_module *m = mc_module_read(&sources, mc_sources_add(&sources, MC_STR("test.moir"), mc_str_of(moir)), &diags);
    ck_assert_int_eq(diags.n_errors, 0);
    ck_assert(m);
    return m;
}

static void
setup(void)
{
    arena = mc_arena_create();
    sources = (mc_sources){.arena = arena};
    mc_diags_init(&diags, arena, &sources);
    module = read_text(text);
}

static void
teardown(void)
{
    mc_module_destroy(module);
    mc_arena_destroy(arena);
}

static int
count_ops(void)
{
    int n = 0;
    MC_FOR_OPS(op, mc_module_model(module))
    {
        n++;
    }
    return n;
}

static void
ends_with(mc_code code)
{
    ck_assert_uint_gt(diags.list.n, 0);
    ck_assert_str_eq(mc_code_name(diags.list.items[diags.list.n - 1].code), mc_code_name(code));
}

/* ---- pipelines ------------------------------------------------------------------------------------------------- */

static const struct {
    const char *in, *out;
} good_pipelines[] = {
    {"cse", "cse"},
    {" canonicalize , cse ", "canonicalize,cse"},
    {"lower-to-plan{nr=32}", "lower-to-plan{nr=32}"},
    {"lower-to-plan { nr = 32 }", "lower-to-plan{nr=32}"},
    {"repeat(cse,dce)", "repeat(cse,dce)"},
    {"repeat( cse , repeat(dce) ),@default", "repeat(cse,repeat(dce)),@default"},
    {"@simplify", "@simplify"},
    {"repeat(@simplify)", "repeat(@simplify)"},
};

START_TEST(test_pipeline_roundtrip)
{
    mc_pipeline p;
    mc_buf once = {0}, twice = {0};
    ck_assert(mc_pipeline_parse(mc_str_of(good_pipelines[_i].in), arena, &diags, &p));
    mc_pipeline_print(&p, &once);
    ck_assert_str_eq(once.data, good_pipelines[_i].out);
    ck_assert(mc_pipeline_parse(mc_buf_view(&once), arena, &diags, &p));
    mc_pipeline_print(&p, &twice);
    ck_assert_str_eq(once.data, twice.data);
    mc_buf_fini(&once);
    mc_buf_fini(&twice);
}
END_TEST

static const char *const bad_pipelines[] = {
    "",
    ",",
    "cse,",
    "cse dce",
    "nonsense",
    "@nonsense",
    "@",
    "repeat",
    "repeat(",
    "repeat()",
    "repeat(cse",
    "repeat(cse))",
    "cse)",
    "cse{nr=1}",
    "lower-to-plan{",
    "lower-to-plan{}",
    "lower-to-plan{nr}",
    "lower-to-plan{nr=}",
    "lower-to-plan{nr=x}",
    "lower-to-plan{nr=-4}",
    "lower-to-plan{nr=99999999999999999999}",
    "lower-to-plan{nr=16 nr=16}",
    "lower-to-plan{nr=16",
    "repeat(repeat(repeat(repeat(repeat(repeat(repeat(repeat(repeat(cse)))))))))",
};

START_TEST(test_pipeline_refused)
{
    mc_pipeline p;
    ck_assert(!mc_pipeline_parse(mc_str_of(bad_pipelines[_i]), arena, &diags, &p));
    ends_with(MC_E0501);
    ck_assert_int_eq(diags.n_errors, 1);
}
END_TEST

START_TEST(test_named_pipelines_are_ordered)
{
    for (int i = 0; i < mc_n_named_pipelines; i++) {
        mc_pipeline p;
        ck_assert(mc_pipeline_parse(mc_str_of(mc_named_pipelines[i].text), arena, &diags, &p));
        ck_assert_msg(mc_pipeline_check_order(&p, arena, &diags), "%s", mc_named_pipelines[i].name);
    }
}
END_TEST

START_TEST(test_order_rows_name_passes)
{
    for (int i = 0; i < mc_n_pass_orders; i++) {
        ck_assert_ptr_nonnull(mc_pass_find(mc_str_of(mc_pass_orders[i].first)));
        ck_assert_ptr_nonnull(mc_pass_find(mc_str_of(mc_pass_orders[i].then)));
        ck_assert_uint_gt(strlen(mc_pass_orders[i].why), 0);
    }
}
END_TEST

START_TEST(test_every_order_row_is_checked)
{
    const mc_pass_order *o = &mc_pass_orders[_i];
    mc_pipeline p;
    ck_assert(mc_pipeline_parse(mc_strf(arena, "repeat(%s),%s", o->then, o->first), arena, &diags, &p));
    ck_assert(!mc_pipeline_check_order(&p, arena, &diags));
    ends_with(MC_E0502);
    mc_diags_init(&diags, arena, &sources);
    ck_assert(mc_pipeline_parse(mc_strf(arena, "%s,%s,%s", o->first, o->then, o->first), arena, &diags, &p));
    mc_pipeline_check_order(&p, arena, &diags);
    for (size_t i = 0; i < diags.list.n; i++)
        ck_assert(!strstr(diags.list.items[i].text.data,
                          mc_strf(arena, "'%s' must come before '%s'", o->first, o->then).data));
}
END_TEST

/* ---- running --------------------------------------------------------------------------------------------------- */

typedef struct journal {
    mc_step_report steps[64];
    char last_rewrite[64][80];
    int n;
    mc_buf reproducer;
} journal;

static void
note_step(void *user, const mc_step_report *r)
{
    journal *l = user;
    snprintf(l->last_rewrite[l->n], sizeof l->last_rewrite[0], "%.*s", MC_FMT(r->last_rewrite));
    l->steps[l->n++] = *r;
}

static void
note_reproducer(void *user, mc_str reproducer)
{
    mc_buf_str(&((journal *)user)->reproducer, reproducer);
}

static mc_pass_options
logged(journal *l)
{
    *l = (journal){0};
    return (mc_pass_options){.verify_each = true,
                             .roundtrip_each = true,
                             .check_unchanged = true,
                             .on_step = note_step,
                             .on_reproducer = note_reproducer,
                             .user = l};
}

START_TEST(test_reports)
{
    journal l;
    mc_pass_options o = logged(&l);
    ck_assert(mc_run_pipeline(module, MC_STR("canonicalize,cse,cse"), &o, &diags));
    ck_assert_int_eq(l.n, 3);
    ck_assert_str_eq(l.steps[0].pass, "canonicalize");
    ck_assert_int_eq(l.steps[0].result, MC_CHANGED);
    ck_assert_int_eq(l.steps[0].n_rewrites, 2);
    ck_assert_int_eq(l.steps[1].result, MC_CHANGED);
    ck_assert_int_eq(l.steps[1].n_rewrites, 1);
    ck_assert_int_eq(l.steps[2].result, MC_UNCHANGED);
    ck_assert_int_eq(l.steps[2].index, 3);
    ck_assert(l.steps[0].module == module && l.steps[0].seconds >= 0);
    ck_assert_uint_eq(l.reproducer.len, 0);
}
END_TEST

START_TEST(test_repeat_until_unchanged)
{
    journal l;
    mc_pass_options o = logged(&l);
    ck_assert(mc_run_pipeline(module, MC_STR("@simplify"), &o, &diags));
    ck_assert_int_eq(l.n, 6); /* a round that changes, a round that does not */
    for (int i = 3; i < 6; i++) ck_assert_int_eq(l.steps[i].result, MC_UNCHANGED);
    ck_assert_int_eq(count_ops(), 3);
}
END_TEST

START_TEST(test_fuel)
{
    static const int left[] = {7, 6, 5, 4, 3, 3}; /* ops after 0, 1, ... rewrites of canonicalize, cse, dce */
    journal l;
    mc_pass_options o = logged(&l);
    o.limit_fuel = true;
    o.fuel = _i;
    ck_assert(mc_run_pipeline(module, MC_STR("canonicalize,cse,dce"), &o, &diags));
    ck_assert_int_eq(count_ops(), left[_i]);
    int64_t n = 0;
    const char *last = "";
    for (int i = 0; i < l.n; i++) {
        n += l.steps[i].n_rewrites;
        if (l.last_rewrite[i][0]) last = l.last_rewrite[i];
    }
    ck_assert_int_eq(n, _i < 4 ? _i : 4);
    if (_i == 2) ck_assert_str_eq(last, "%b = div %x, %one : f32[T, 8]");
    if (_i == 0 || _i == 5) ck_assert_str_eq(last, "");
}
END_TEST

START_TEST(test_fuel_spares_required_passes)
{
    mc_pass_options o = {.limit_fuel = true, .fuel = 0, .verify_each = true};
    ck_assert(mc_run_pipeline(module, MC_STR("@default"), &o, &diags));
    ck_assert_int_eq(module->stage, MC_STAGE_PLAN);
}
END_TEST

START_TEST(test_skip)
{
    journal l;
    mc_pass_options o = logged(&l);
    o.skip = (mc_str[]){MC_STR("canonicalize")};
    o.n_skip = 1;
    ck_assert(mc_run_pipeline(module, MC_STR("canonicalize,cse"), &o, &diags));
    ck_assert(l.steps[0].skipped && !l.steps[1].skipped);
    ck_assert_int_eq(count_ops(), 6);
}
END_TEST

START_TEST(test_skip_refused)
{
    mc_str name = _i ? MC_STR("lower-to-plan") : MC_STR("nonsense");
    mc_pass_options o = {.skip = &name, .n_skip = 1};
    ck_assert(!mc_run_pipeline(module, MC_STR("cse"), &o, &diags));
    ends_with(MC_E0501);
}
END_TEST

START_TEST(test_settings)
{
    mc_pass_setting setting = {MC_STR("nr"), 8};
    mc_pass_options o = {.settings = &setting, .n_settings = 1};
    mc_module_destroy(module);
    module = read_text("moir 1 stage=tensor\ndim T\n\nmodel @f(%x: f32[T, 8]) -> (f32[T, 8]) {\n"
                       "  %w = weight {path = \"w\", role = \"dense\"} : bf16[8, 8]\n"
                       "  %y = linear %x, %w : f32[T, 8]\n  return %y\n}\n");
    ck_assert(mc_run_pipeline(module, _i ? MC_STR("lower-to-plan{nr=4}") : MC_STR("lower-to-plan"), &o, &diags));
    ck_assert_int_eq(mc_attr_int(mc_module_model(module)->first, "nr"), _i ? 4 : 8);
}
END_TEST

START_TEST(test_settings_refused)
{
    mc_pass_setting setting = _i ? (mc_pass_setting){MC_STR("nr"), 1 << 20} : (mc_pass_setting){MC_STR("mr"), 4};
    mc_pass_options o = {.settings = &setting, .n_settings = 1};
    ck_assert(!mc_run_pipeline(module, MC_STR("cse"), &o, &diags));
    ends_with(MC_E0501);
}
END_TEST

START_TEST(test_dump)
{
    char dir[] = "/tmp/moec-test-passes-XXXXXX";
    ck_assert_ptr_nonnull(mkdtemp(dir));
    mc_pass_options o = {.dump_dir = mc_strf(arena, "%s/a/b", dir).data};
    ck_assert(mc_run_pipeline(module, MC_STR("canonicalize,canonicalize,cse"), &o, &diags));
    static const char *const names[] = {"00-input.moir", "01-canonicalize.moir", "03-cse.moir"};
    for (int i = 0; i < 3; i++) {
        mc_buf content = {0};
        mc_str path = mc_strf(arena, "%s/%s", o.dump_dir, names[i]);
        ck_assert_int_eq(mc_file_read(path.data, 1 << 20, &content, NULL), MOEC_OK);
        if (i == 0) ck_assert_str_eq(content.data, text);
        ck_assert(mc_str_starts(mc_buf_view(&content), "moir 1"));
        mc_buf_fini(&content);
        remove(path.data);
    }
    ck_assert(!mc_file_exists(mc_strf(arena, "%s/02-canonicalize.moir", o.dump_dir).data));
    remove(o.dump_dir);
    remove(mc_strf(arena, "%s/a", dir).data);
    ck_assert_int_eq(remove(dir), 0);
}
END_TEST

START_TEST(test_dump_refused)
{
    mc_pass_options o = {.dump_dir = "/dev/null/nowhere"};
    ck_assert(!mc_run_pipeline(module, MC_STR("cse"), &o, &diags));
    ends_with(MC_E0910);
}
END_TEST

START_TEST(test_malformed_input)
{
    mc_pass_options o = {.verify_each = true};
    mc_op_remove(mc_module_model(module)->last);
    ck_assert(!mc_run_pipeline(module, MC_STR("cse"), &o, &diags));
    ends_with(MC_E0407);
}
END_TEST

/* ---- passes that break their contract -------------------------------------------------------------------------- */

static mc_pass_result
change_in_secret(mc_pass *p, mc_module *m)
{
    (void)p;
    mc_module_set_meta(m, MC_STR("secret"), MC_STR("change"));
    return MC_UNCHANGED;
}

static mc_pass_result
fail_in_silence(mc_pass *p, mc_module *m)
{
    (void)p;
    (void)m;
    return MC_FAILED;
}

static mc_pass_result
complain_and_go_on(mc_pass *p, mc_module *m)
{
    mc_error(p->diags, mc_module_model(m)->span, MC_E0505, "nothing of importance");
    return MC_UNCHANGED;
}

static mc_pass_result
break_module(mc_pass *p, mc_module *m)
{
    (void)p;
    mc_op_remove(mc_module_model(m)->last);
    return MC_CHANGED;
}

static const mc_pass_info liars[] = {
    {.name = "secret", .run = change_in_secret, .stages = MC_IN_TENSOR},
    {.name = "silent", .run = fail_in_silence, .stages = MC_IN_TENSOR},
    {.name = "careless", .run = complain_and_go_on, .stages = MC_IN_TENSOR},
    {.name = "breaker", .run = break_module, .stages = MC_IN_TENSOR},
};

START_TEST(test_internal_errors)
{
    journal l;
    mc_pass_options o = logged(&l);
    mc_pipeline p;
    ck_assert(mc_pipeline_parse(MC_STR("cse,dce"), arena, &diags, &p));
    p.items[1].pass = &liars[_i];
    ck_assert(!mc_pipeline_run(&p, module, MC_STR("cse,liar"), &o, &diags));
    ends_with(MC_E0504);
    const char *head = "# moec " MOEC_VERSION_STRING " --passes='cse,liar'\n";
    ck_assert(mc_str_starts(mc_buf_view(&l.reproducer), head));
    ck_assert_str_eq(l.reproducer.data + strlen(head), text);
    mc_buf_fini(&l.reproducer);
}
END_TEST

START_TEST(test_secret_change_is_trusted_without_the_check)
{
    mc_pass_options o = {0};
    mc_pipeline p;
    ck_assert(mc_pipeline_parse(MC_STR("cse"), arena, &diags, &p));
    p.items[0].pass = &liars[0];
    ck_assert(mc_pipeline_run(&p, module, MC_STR("liar"), &o, &diags));
}
END_TEST

/* ---- every module of the tree through the whole pipeline ------------------------------------------------------- */

static int64_t
bytes_at(const mc_type *t, const int64_t *values)
{
    int64_t n = (int64_t)moec_dtype_bytes(t->dtype);
    for (int i = 0; i < t->rank; i++) n *= mc_dim_eval(t->dims[i], values);
    return n;
}

static int64_t
slot_bytes_at(const mc_slot *slot, const int64_t *values)
{
    int64_t greatest = 0;
    for (size_t i = 0; i < slot->n_bytes; i++) {
        int64_t n = mc_dim_eval(slot->bytes[i], values);
        if (n > greatest) greatest = n;
    }
    return greatest;
}

/* Executes nothing, but follows who owns each slot: an operand must still own its own when it is read, a result may not
 * take one that an operand of the same op lies in, and every value must fit for whatever the symbols are. */
static void
check_places(const mc_func *f, const char *path)
{
    const mc_value *owner[64] = {NULL};
    int64_t values[2][MC_MAX_SYMS];
    for (int i = 0; i < MC_MAX_SYMS; i++) {
        values[0][i] = 3 + i;
        values[1][i] = 40 - i;
    }
    ck_assert_uint_le(f->n_slots, 64);
    MC_FOR_OPS(op, f)
    {
        for (int i = 0; i < op->n_operands; i++) {
            const mc_value *v = mc_operand(op, i);
            while (v && v->place.kind == MC_PLACE_VIEW) v = v->place.base;
            if (!v) continue;
            ck_assert_msg(v->place.kind != MC_PLACE_NONE, "%s: a value without a place", path);
            if (v->place.kind != MC_PLACE_SLOT) continue;
            ck_assert_msg(owner[v->place.index] == v, "%s: slot %d is overwritten while in use", path, v->place.index);
        }
        for (int i = 0; i < op->n_results; i++) {
            const mc_value *v = &op->results[i];
            ck_assert_msg(v->place.kind != MC_PLACE_NONE, "%s: a value without a place", path);
            if (v->place.kind != MC_PLACE_SLOT) continue;
            for (int k = 0; k < op->n_operands; k++) {
                const mc_value *x = mc_operand(op, k);
                while (x && x->place.kind == MC_PLACE_VIEW) x = x->place.base;
                ck_assert(!x || x->place.kind != MC_PLACE_SLOT || x->place.index != v->place.index);
            }
            for (int k = 0; k < i; k++)
                ck_assert(op->results[k].place.kind != MC_PLACE_SLOT || op->results[k].place.index != v->place.index);
            owner[v->place.index] = v;
            for (int k = 0; k < 2; k++)
                ck_assert(slot_bytes_at(&f->slots[v->place.index], values[k]) >= bytes_at(v->type, values[k]));
        }
    }
    for (int i = 0; i < f->last->n_operands; i++) {
        const mc_place *p = &mc_operand(f->last, i)->place;
        ck_assert_msg(p->kind == MC_PLACE_RESULT && p->index == i, "%s: result %d is elsewhere", path, i);
    }
}

/* True when the module reached the plan; a refusal must not be an internal error. */
static bool
plan_file(const char *path, const char *pipeline)
{
    mc_golden g;
    mc_fault fault = {{0}};
    ck_assert_msg(mc_golden_load(&g, path, &fault), "%s", fault.text);
    mc_diags d;
    mc_diags_init(&d, arena, &sources);
    mc_module *m = mc_module_read(&sources, mc_sources_add(&sources, mc_str_of(g.path), g.text), &d);
    mc_pass_options o = {.verify_each = true, .roundtrip_each = true, .check_unchanged = true};
    bool planned = false;
    if (m) {
        if (m->stage == MC_STAGE_PLAN) pipeline = "plan-memory";
        planned = mc_run_pipeline(m, mc_str_of(pipeline), &o, &d);
        MC_FOR_FUNCS(f, m)
        {
            if (planned) check_places(f, path);
        }
    }
    for (size_t k = 0; k < d.list.n; k++)
        ck_assert_msg(d.list.items[k].code != MC_E0504, "%s: %s", path, d.list.items[k].text.data);
    mc_module_destroy(m);
    mc_golden_free(&g);
    return planned;
}

static const char *const folders[] = {"tests/golden/ir/ops", "tests/exec", "tests/golden/passes"};

START_TEST(test_every_file)
{
    mc_paths files = mc_golden_find(arena, folders[_i], ".moir");
    size_t n = 0;
    for (size_t i = 0; i < files.n; i++) {
        n += plan_file(files.items[i], "@default");
        n += plan_file(files.items[i], "@unfused");
    }
    ck_assert_uint_ge(n, files.n); /* at least half of the runs get through */
}
END_TEST

/* ---- fp8 lines ------------------------------------------------------------------------------------------------- */

static const struct {
    const char *lines, *role, *path;
    mc_fp8_choice choice;
} choices[] = {
    {"", "dense", "a", MC_FP8_UNNAMED},
    {"e4m3", "dense", "a", MC_FP8_CHOSEN},
    {"e4m3", "attention", "a", MC_FP8_CHOSEN},
    {"e4m3", "experts", "a", MC_FP8_UNNAMED},
    {"e4m3", "shared", "a", MC_FP8_UNNAMED},
    {"e4m3", "router", "a", MC_FP8_UNNAMED},
    {"e4m3", "head", "a", MC_FP8_UNNAMED},
    {"e4m3, on = [experts]", "dense", "a", MC_FP8_UNNAMED},
    {"e4m3, on = [experts, router]", "router", "a", MC_FP8_CHOSEN},
    {"e4m3, act = token, block = [128, 128], on = [experts, router], except = [router]", "router", "a",
     MC_FP8_EXCEPTED},
    {"e4m3, except = [\"a.**\"]", "dense", "a.b", MC_FP8_EXCEPTED},
    {"e4m3, except = [\"a.**\"]", "dense", "b.a", MC_FP8_CHOSEN},
    {"e4m3, act = tensor, on = [head]", "head", "a", MC_FP8_CHOSEN},
    {"e4m3, act = [1, 128], on = [head]", "head", "a", MC_FP8_CHOSEN},
    {"e4m3, except = [dense]\ne4m3, on = [dense]", "dense", "a", MC_FP8_CHOSEN},
    {"e4m3, on = [dense]\ne4m3, on = [], except = [\"a\"]", "dense", "a", MC_FP8_EXCEPTED},
};

START_TEST(test_fp8_choices)
{
    mc_fp8_rules rules;
    ck_assert(mc_fp8_rules_parse(mc_str_of(choices[_i].lines), arena, &diags, &rules));
    ck_assert_int_eq(mc_fp8_rules_choose(&rules, mc_str_of(choices[_i].role), mc_str_of(choices[_i].path)),
                     choices[_i].choice);
}
END_TEST

static const char *const bad_lines[] = {
    "e5m2",
    "e4m4",
    "e4m3,",
    "e4m3 on = [dense]",
    "e4m3, on [dense]",
    "e4m3, on = dense",
    "e4m3, on = [dense",
    "e4m3, on = [dense,]",
    "e4m3, on = [\"a\"]",
    "e4m3, except = [\"a]",
    "e4m3, except = [a]",
    "e4m3, block = [128]",
    "e4m3, block = [128, 64]",
    "e4m3, act = [2, 128]",
    "e4m3, act = row",
    "e4m3, tile = [1, 1]",
    "e4m3\ne4m3, on = [expert]",
};

START_TEST(test_fp8_lines_refused)
{
    mc_fp8_rules rules;
    ck_assert(!mc_fp8_rules_parse(mc_str_of(bad_lines[_i]), arena, &diags, &rules));
    ends_with(MC_E0506);
}
END_TEST

#define COUNT(array) (int)(sizeof(array) / sizeof((array)[0]))

int
main(void)
{
    Suite *suite = suite_create("passes");
    TCase *tc = tcase_create("passes");
    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, test_pipeline_roundtrip, 0, COUNT(good_pipelines));
    tcase_add_loop_test(tc, test_pipeline_refused, 0, COUNT(bad_pipelines));
    tcase_add_test(tc, test_named_pipelines_are_ordered);
    tcase_add_test(tc, test_order_rows_name_passes);
    tcase_add_loop_test(tc, test_every_order_row_is_checked, 0, mc_n_pass_orders);
    tcase_add_test(tc, test_reports);
    tcase_add_test(tc, test_repeat_until_unchanged);
    tcase_add_loop_test(tc, test_fuel, 0, 6);
    tcase_add_test(tc, test_fuel_spares_required_passes);
    tcase_add_test(tc, test_skip);
    tcase_add_loop_test(tc, test_skip_refused, 0, 2);
    tcase_add_loop_test(tc, test_settings, 0, 2);
    tcase_add_loop_test(tc, test_settings_refused, 0, 2);
    tcase_add_test(tc, test_dump);
    tcase_add_test(tc, test_dump_refused);
    tcase_add_test(tc, test_malformed_input);
    tcase_add_loop_test(tc, test_internal_errors, 0, COUNT(liars));
    tcase_add_test(tc, test_secret_change_is_trusted_without_the_check);
    tcase_add_loop_test(tc, test_every_file, 0, COUNT(folders));
    tcase_add_loop_test(tc, test_fp8_choices, 0, COUNT(choices));
    tcase_add_loop_test(tc, test_fp8_lines_refused, 0, COUNT(bad_lines));
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
