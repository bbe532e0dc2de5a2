/* What the CPU backend writes about a model, what it refuses, and that the same module gives the same bytes. */
#include "ir/print.h"
#include "passes/pass.h"
#include "tests/support/exec_case.h"
#include "tests/unit/cpu_walk.h"

#include <stdio.h>

#define EXEC_DIR "tests/exec/"

static mc_arena *arena;
static mc_sources sources;
static mc_diags diags;
static mc_cpu_target target;

static void
setup(void)
{
    arena = mc_arena_create();
    sources = (mc_sources){.arena = arena};
    mc_diags_init(&diags, arena, &sources);
    ck_assert(mc_cpu_target_find("native", &diags, &target));
}

static void
teardown(void)
{
    mc_arena_destroy(arena);
}

static mc_exec_case *
load(const char *name)
{
    mc_exec_case *c = mc_exec_load(mc_strf(arena, EXEC_DIR "%s", name).data, arena, &diags);
    if (!c) walk_fail(&diags);
    mc_pass_setting nr = {MC_STR_INIT("nr"), target.nr};
    mc_pass_options options = mc_pass_options_default();
    options.settings = &nr;
    options.n_settings = 1;
    if (!mc_run_pipeline(c->module, MC_STR("@default"), &options, &diags)) walk_fail(&diags);
    return c;
}

/* ---- tables ---------------------------------------------------------------------------------------------------- */

START_TEST(language_model)
{
    mc_exec_case *c = load("odd_lm_bf16.moir");
    walk w;
    walk_open(&w, c->module, (walk_source){mc_exec_weight, c}, &diags);
    const moec_abi_model *m = w.abi;
    ck_assert_str_eq(m->name, "test-model");
    ck_assert_str_eq(m->meta, "{}");
    ck_assert_uint_eq(m->n_inputs, 1);
    ck_assert_int_eq(m->inputs[0].limit, 31); /* rows of the embedding, found through the call graph */
    ck_assert_uint_eq(m->inputs[0].dtype, MOEC_I32);
    ck_assert_uint_eq(m->outputs[0].rank, 3);
    ck_assert_int_eq(m->outputs[0].dims[2].mul + m->outputs[0].dims[2].add, 31);
    for (uint32_t i = 0; i < m->n_syms; i++) {
        uint32_t kind = 0;
        if (strcmp(m->syms[i].name, "S") == 0) kind = 1; /* new positions */
        if (strcmp(m->syms[i].name, "C") == 0) kind = 2; /* with those before */
        if (strcmp(m->syms[i].name, "R") == 0) kind = 3; /* rows of an expert: gone since expand-moe */
        ck_assert_uint_eq(m->syms[i].kind, kind);
    }
    ck_assert_str_eq(m->syms[m->batch_sym].name, "B");
    ck_assert_uint_eq(m->n_states, 6); /* keys and values of three layers */
    ck_assert_str_eq(m->states[5].name, "model.layers.2.cache1");
    ck_assert_int_eq(m->states[5].bytes, 2 * 6 * 4);
    ck_assert_uint_eq(m->states[5].kind, 0);
    bool seen = false;
    for (uint32_t i = 0; i < m->n_weights; i++) {
        const moec_abi_weight *x = &m->weights[i];
        if (strcmp(x->path, "model.layers.2.mlp.experts.gate_proj.weight") != 0) continue;
        seen = true;
        ck_assert_str_eq(x->path2, "model.layers.2.mlp.experts.up_proj.weight");
        ck_assert_uint_eq(x->layout, MOEC_ABI_PAIR_PANELS);
        ck_assert_uint_eq(x->nr, (uint32_t)target.nr);
        ck_assert_uint_eq(x->rank, 3);
        ck_assert_int_eq(x->dims[0], 7);
        ck_assert_int_eq(x->dims[1], 18);
        ck_assert_int_eq(x->dims[2], 22);
    }
    ck_assert(seen);
    for (uint32_t i = 0; i < m->n_kernels; i++) ck_assert_ptr_nonnull((void *)(uintptr_t)m->kernels[i]);
    walk_close(&w);
    mc_exec_close(c);
}
END_TEST

START_TEST(scales_name_their_weight)
{
    mc_exec_case *c = load("linear_fp8.moir");
    walk w;
    walk_open(&w, c->module, (walk_source){mc_exec_weight, c}, &diags);
    int scales = 0;
    for (uint32_t i = 0; i < w.abi->n_weights; i++) {
        const moec_abi_weight *x = &w.abi->weights[i];
        if (!x->scale_of) continue;
        scales++;
        ck_assert_int_eq(x->block[0], 128);
        ck_assert_int_eq(x->block[1], 128);
        uint32_t owner = 0;
        while (owner < w.abi->n_weights && strcmp(w.abi->weights[owner].path, x->scale_of) != 0) owner++;
        ck_assert_uint_lt(owner, w.abi->n_weights);
        ck_assert_uint_eq(w.abi->weights[owner].dtype, MOEC_F8E4M3);
    }
    ck_assert_int_gt(scales, 0);
    walk_close(&w);
    mc_exec_close(c);
}
END_TEST

START_TEST(same_module_same_bytes)
{
    mc_buf code[2] = {0};
    uint64_t hashes[2][2];
    for (int i = 0; i < 2; i++) {
        mc_exec_case *c = load("odd_lm_f32.moir");
        mc_cpu_options options = {.target = target, .name = MC_STR("m")};
        mc_cpu_result r;
        if (!mc_cpu_compile(c->module, &options, &diags, &r)) walk_fail(&diags);
        if (!mc_cpu_emit(&r, MC_EMIT_OBJECT, &diags, &code[i])) walk_fail(&diags);
        hashes[i][0] = r.hash;
        hashes[i][1] = r.weights_hash;
        ck_assert_str_eq(r.query, "moec_abi_query_m");
        mc_cpu_result_fini(&r);
        mc_exec_close(c);
    }
    ck_assert_mem_eq(hashes[0], hashes[1], sizeof hashes[0]);
    ck_assert_uint_ne(hashes[0][0], 0);
    ck_assert_uint_eq(code[0].len, code[1].len);
    ck_assert_mem_eq(code[0].data, code[1].data, code[0].len);
    for (int i = 0; i < 2; i++) mc_buf_fini(&code[i]);
}
END_TEST

/* ---- refusals -------------------------------------------------------------------------------------------------- */

static const struct {
    const char *body, *message;
} refused[] = {
    {"model @m(%x: f32[3, 8]) -> (f32[3, 5]) {\n"
     "  %w = packed {path = \"w\", role = \"dense\", layout = \"panels\", nr = 6} : f32[5, 8]\n"
     "  %y = linear %x, %w : f32[3, 5]\n  return %y\n}\n",
     "its weight is packed as panels with nr = 6"},
    {"model @m(%x: f32[3, 8], %w: f32[5, 8]) -> (f32[3, 5]) {\n"
     "  %y = linear %x, %w : f32[3, 5]\n  return %y\n}\n",
     "its weight is not a weight of the model"},
    {"model @m(%x: f32[3, 8], %o: i32[3], %r: i32[6]) -> (f32[6, 5]) {\n"
     "  %w = packed {path = \"w\", role = \"experts\", layout = \"panels\", nr = 16} : f32[2, 5, 8]\n"
     "  %y = grouped_matmul %x, %w, %o, _, _, %r : f32[6, 5]\n  return %y\n}\n",
     "rows are gathered only where weights lie row by row"},
    {"model @m(%x: f32[3, 8]) -> (f32[3, 5]) {\n"
     "  %w = packed {path = \"w\", role = \"dense\", layout = \"rows\"} : bf16[5, 8]\n"
     "  %y = linear %x, %w : f32[3, 5]\n  return %y\n}\n",
     "an operand is bf16, not f32"},
    {"model @m(%x: f64[3, 8]) -> (f64[3, 8]) {\n  %y = neg %x : f64[3, 8]\n  return %y\n}\n", "is not f32"},
    {"model @m(%x: f64[3, 8]) -> (bf16[3, 8]) {\n  %y = cast %x {to = bf16} : bf16[3, 8]\n  return %y\n}\n",
     "no conversion from f64 to bf16"},
    {"model @m(%x: f32[2, 1, 2, 1, 2, 1], %y: f32[1, 2, 1, 2, 1, 2]) -> (f32[2, 2, 2, 2, 2, 2]) {\n"
     "  %z = add %x, %y : f32[2, 2, 2, 2, 2, 2]\n  return %z\n}\n",
     "stretch in more than 4 ways"},
};

START_TEST(refusals)
{
    mc_str text = mc_strf(arena, "moir 1 stage=plan\n%s", refused[_i].body);
    uint32_t file = mc_sources_add(&sources, MC_STR("t.moir"), text);
    mc_module *m = mc_module_read(&sources, file, &diags);
    if (!m) walk_fail(&diags);
    mc_pass_options options = mc_pass_options_default();
    if (!mc_run_pipeline(m, MC_STR("plan-memory"), &options, &diags)) walk_fail(&diags);
    mc_cpu_options cpu = {.target = target};
    mc_cpu_result r;
    ck_assert(!mc_cpu_compile(m, &cpu, &diags, &r));
    ck_assert_int_eq(diags.n_errors, 1);
    const mc_diagnostic *d = &diags.list.items[diags.list.n - 1];
    ck_assert_int_eq(d->code, MC_E0601);
    ck_assert_uint_ne(d->span.file, 0); /* says where */
    ck_assert_msg(strstr(d->text.data, refused[_i].message) != NULL, "%s", d->text.data);
    mc_module_destroy(m);
}
END_TEST

START_TEST(wants_a_plan)
{
    mc_exec_case *c = mc_exec_load(EXEC_DIR "norms.moir", arena, &diags);
    mc_cpu_options cpu = {.target = target};
    mc_cpu_result r;
    ck_assert_ptr_nonnull(c);
    ck_assert(!mc_cpu_compile(c->module, &cpu, &diags, &r));
    ck_assert_int_eq(diags.list.items[diags.list.n - 1].code, MC_E0601);
    mc_exec_close(c);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("cpu_tables");
    TCase *t = tcase_create("cpu_tables");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, language_model);
    tcase_add_test(t, scales_name_their_weight);
    tcase_add_test(t, same_module_same_bytes);
    tcase_add_loop_test(t, refusals, 0, (int)(sizeof refused / sizeof *refused));
    tcase_add_test(t, wants_a_plan);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
