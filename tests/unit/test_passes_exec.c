/* Passes keep the meaning: the interpreter runs a module before and after a pipeline, and the results must have the
 * same bits. Inputs are every case of tests/exec, and every golden test of a pass with random weights and inputs. What
 * carve-fp8 changes is checked against the same rounding of the weights done by hand; absorb-mla, which adds in another
 * order, within tolerances. Run from the root of the source tree. */
#include "ir/op.h"
#include "ir/print.h"
#include "passes/pass.h"
#include "runtime/base/dtype.h"
#include "runtime/base/hash.h"
#include "tests/support/exec_case.h"
#include "tests/support/golden.h"

#include <check.h>
#include <math.h>
#include <string.h>

enum { MAX_OUTPUTS = 64, BLOCK = 128 };

static const char *const pipelines[] = {
    "expand-moe",
    "expand-moe,@simplify",
    "expand-moe,@simplify,fuse-moe,@simplify",
    "expand-moe,@simplify,fuse-moe{train=1},@simplify",
    "@unfused",
    "@default",
    "expand-moe,fuse-moe,lower-to-plan{nr=32},plan-memory",
    "expand-moe,@simplify,plan-ep{single=1},@simplify",
    "expand-moe,@simplify,fuse-moe,plan-ep{single=1},canonicalize,cse,dce,lower-to-plan,plan-memory",
};
enum { N_PIPELINES = sizeof pipelines / sizeof pipelines[0] };

/* Of the golden inputs these take the ones that can be trained: stateless or without a past, and in f32 for plans. */
static const struct training {
    const char *pipeline;
    int least;
} trainings[] = {
    {"expand-moe,@simplify,routing-losses,fuse-moe{train=1},autodiff,@simplify", 40},
    {"expand-moe,@simplify,routing-losses,fuse-moe{train=1},autodiff{recompute=1},@simplify", 40},
    {"@train", 40},
    {"expand-moe,@simplify,routing-losses,fuse-moe{train=1},autodiff,@simplify,fuse-grad,plan-ep{single=1},@simplify",
     40},
};
enum { N_TRAININGS = sizeof trainings / sizeof trainings[0] };

static mc_arena *files_arena;
static mc_paths cases, goldens, carvings, absorbed, narrowed;

static void
must_be_clean(const mc_diags *d, const char *path)
{
    mc_buf text = {0};
    for (size_t i = 0; i < d->list.n; i++)
        if (mc_code_severity(d->list.items[i].code) == MC_SEVERITY_ERROR)
            mc_diag_render(d, &d->list.items[i], false, &text);
    ck_assert_msg(text.len == 0, "%s: %s", path, text.data);
    mc_buf_fini(&text);
}

static mc_pass_options
checking(void)
{
    mc_pass_options o = mc_pass_options_default();
    o.verify_each = o.roundtrip_each = o.check_unchanged = true;
    return o;
}

/* ---- cases of tests/exec --------------------------------------------------------------------------------------- */

typedef struct outcome { /* of one run */
    mc_code fails;       /* MC_N_CODES: it succeeded */
    mc_ref_tensor outputs[MAX_OUTPUTS];
    int n_outputs;
} outcome;

typedef MC_VEC(outcome) outcomes;

static outcomes
play(const char *path, const char *pipeline, mc_arena *arena)
{
    outcomes out = {0};
    mc_sources none = {.arena = arena};
    mc_diags diags;
    mc_diags_init(&diags, arena, &none);
    mc_exec_case *c = mc_exec_load(path, arena, &diags);
    must_be_clean(&diags, path);
    mc_pass_options options = checking();
    if (pipeline) mc_run_pipeline(c->module, mc_str_of(pipeline), &options, &diags);
    must_be_clean(&diags, path);
    c->synthetic.bf16_grid = true;
    mc_ref_options how = {.precision = MC_REF_F32, .weight = mc_exec_weight, .weight_user = c};
    mc_ref *ref = mc_ref_create(c->module, &how, &diags);
    must_be_clean(&diags, path);
    for (size_t i = 0; i < c->sets.n; i++) mc_ref_set_symbol(ref, c->sets.items[i].name, c->sets.items[i].value);
    mc_ref_state *state = mc_ref_state_create();
    int n_outputs = mc_module_model(c->module)->last->n_operands;
    for (size_t i = 0; i < c->steps.n; i++) {
        outcome o = {.fails = MC_N_CODES, .n_outputs = n_outputs};
        size_t n_before = diags.list.n;
        const mc_exec_step *s = &c->steps.items[i];
        if (!mc_ref_run(ref, state, s->inputs.items, (int)s->inputs.n, arena, o.outputs, n_outputs))
            o.fails = diags.list.items[n_before].code;
        mc_vec_push(arena, &out, o);
    }
    mc_ref_state_destroy(state);
    mc_ref_destroy(ref);
    mc_exec_close(c);
    return out;
}

static bool
is_tensor_stage(const char *path)
{
    mc_golden g;
    mc_fault fault = {{0}};
    ck_assert_msg(mc_golden_load(&g, path, &fault), "%s", fault.text);
    bool yes = strstr(g.text.data, "moir 1 stage=tensor") != NULL;
    mc_golden_free(&g);
    return yes;
}

/* An id that names no expert is an error to the composite ops; dispatch gives it no row. Nothing else may differ. */
static void
same_outcome(const outcome *before, const outcome *after, const char *path, const char *pipeline, size_t run)
{
    if (before->fails == MC_E0306 && after->fails == MC_N_CODES) return;
    ck_assert_msg(before->fails == after->fails, "%s, %s: run %zu ends otherwise", path, pipeline, run);
    for (int i = 0; before->fails == MC_N_CODES && i < before->n_outputs; i++) {
        mc_close_report r = mc_close_exact(MC_ARRAY(after->outputs[i]), MC_ARRAY(before->outputs[i]));
        ck_assert_msg(r.ok, "%s, %s, run %zu, output %d: %s", path, pipeline, run, i, r.text);
    }
}

START_TEST(test_cases)
{
    const char *path = cases.items[_i];
    if (!is_tensor_stage(path)) return;
    mc_arena *arena = mc_arena_create();
    outcomes before = play(path, NULL, arena);
    for (int p = 0; p < N_PIPELINES; p++) {
        /* a model that gives rows of experts out is one that plan-ep refuses */
        bool gives_rows = strstr(path, "odd_dispatch") || strstr(path, "_products");
        if (strstr(pipelines[p], "plan-ep") && gives_rows) continue;
        outcomes after = play(path, pipelines[p], arena);
        ck_assert_uint_eq(before.n, after.n);
        for (size_t i = 0; i < before.n; i++) same_outcome(&before.items[i], &after.items[i], path, pipelines[p], i);
    }
    mc_arena_destroy(arena);
}
END_TEST

/* ---- golden inputs with random weights ------------------------------------------------------------------------- */

typedef struct weights {
    mc_synthetic synthetic;
    mc_map fp8;    /* full path -> mc_ref_tensor of its block scales: weights that the other run has in FP8 */
    bool carrying; /* this run has them */
} weights;

/* Scales are powers of two, so that a weight rounded to FP8 and scaled back is exact in bf16. */
static double
block_scale(const mc_ref_tensor *w, int64_t e, int64_t o, int64_t i)
{
    int64_t rows = w->dims[w->rank - 2], columns = w->dims[w->rank - 1];
    double greatest = 0;
    for (int64_t r = o * BLOCK; r < rows && r < (o + 1) * BLOCK; r++)
        for (int64_t c = i * BLOCK; c < columns && c < (i + 1) * BLOCK; c++)
            greatest = fmax(greatest, fabs(mc_ref_tensor_get(w, (e * rows + r) * columns + c)));
    return greatest > 0 ? exp2(ceil(log2(greatest / 448))) : 1;
}

static void
make_scales(weights *ws, const mc_ref_tensor *w, mc_ref_tensor *out)
{
    int64_t dims[MC_MAX_RANK], n_experts = w->rank == 3 ? w->dims[0] : 1;
    for (int k = 0; k < w->rank; k++) dims[k] = k < w->rank - 2 ? w->dims[k] : (w->dims[k] + BLOCK - 1) / BLOCK;
    ck_assert(mc_ref_tensor_init(out, MOEC_F32, dims, w->rank, ws->synthetic.arena));
    int64_t rows = dims[w->rank - 2], columns = dims[w->rank - 1];
    for (int64_t e = 0; e < n_experts; e++)
        for (int64_t o = 0; o < rows; o++)
            for (int64_t i = 0; i < columns; i++)
                mc_ref_tensor_set(out, (e * rows + o) * columns + i, block_scale(w, e, o, i));
}

/* w as FP8 codes (or, for another dtype, as what they stand for). */
static void
quantise(weights *ws, const mc_ref_tensor *w, const mc_ref_tensor *scales, moec_dtype dtype, mc_ref_tensor *out)
{
    ck_assert(mc_ref_tensor_init(out, dtype, w->dims, w->rank, ws->synthetic.arena));
    int64_t rows = w->dims[w->rank - 2], columns = w->dims[w->rank - 1];
    int64_t scale_rows = scales->dims[w->rank - 2], scale_columns = scales->dims[w->rank - 1];
    for (int64_t k = 0; k < w->n; k++) {
        int64_t e = k / (rows * columns), o = k / columns % rows, i = k % columns;
        double s = mc_ref_tensor_get(scales, (e * scale_rows + o / BLOCK) * scale_columns + i / BLOCK);
        double code = mc_f8e4m3_to_f32(mc_f32_to_f8e4m3((float)(mc_ref_tensor_get(w, k) / s)));
        mc_ref_tensor_set(out, k, dtype == MOEC_F8E4M3 ? code : code * s);
    }
}

static bool
give_weight(void *user, const mc_ref_weight_request *request, mc_ref_tensor *out)
{
    weights *ws = user;
    mc_ref_weight_request plain = *request;
    const char *suffix = "_scale_inv";
    if (mc_str_ends(request->path, suffix)) {
        plain.path = mc_str_slice(request->path, 0, request->path.len - strlen(suffix));
        const mc_ref_tensor *scales = mc_map_get(&ws->fp8, plain.path);
        if (!scales) return false;
        *out = *scales;
        return true;
    }
    bool fp8 = request->dtype == MOEC_F8E4M3;
    if (fp8) plain.dtype = MOEC_BF16;
    if (!mc_ref_synthetic_weight(&ws->synthetic, &plain, out)) return false;
    const mc_ref_tensor w = *out, *scales = mc_map_get(&ws->fp8, request->path);
    if (!fp8 && (!scales || ws->carrying)) return true;
    ck_assert_msg(scales != NULL, "FP8 weight %.*s before its scales", MC_FMT(request->path));
    quantise(ws, &w, scales, request->dtype, out);
    return true;
}

/* The scales of every weight that is FP8 in the module: reads the paths of calls as carve-fp8 does. */
static void
find_fp8(weights *ws, const mc_func *f, mc_str scope)
{
    mc_arena *arena = ws->synthetic.arena;
    MC_FOR_OPS(op, f)
    {
        if (op->opcode == MC_OP_CALL) {
            mc_str inner = mc_attr_str(op, "scope");
            if (scope.len) inner = mc_strf(arena, "%.*s.%.*s", MC_FMT(scope), MC_FMT(inner));
            find_fp8(ws, mc_attr_func(op, "callee"), inner);
        }
        if (mc_op_has(op, MC_TRAIT_BODY)) find_fp8(ws, mc_attr_func(op, "body"), scope);
        if (op->opcode != MC_OP_WEIGHT || op->results[0].type->dtype != MOEC_F8E4M3) continue;
        const mc_type *t = op->results[0].type;
        mc_ref_weight_request r = {
            .path = mc_attr_str(op, "path"), .role = mc_attr_str(op, "role"), .dtype = MOEC_BF16};
        if (scope.len) r.path = mc_strf(arena, "%.*s.%.*s", MC_FMT(scope), MC_FMT(r.path));
        int64_t experts = mc_attr_int(op, "experts");
        if (experts) r.dims[r.rank++] = experts;
        for (int i = 0; i < t->rank; i++) r.dims[r.rank++] = t->dims[i].mul;
        mc_ref_tensor w, *scales = MC_NEW(arena, mc_ref_tensor);
        ck_assert(mc_ref_synthetic_weight(&ws->synthetic, &r, &w));
        make_scales(ws, &w, scales);
        mc_map_set(&ws->fp8, r.path, scales);
    }
}

static int64_t
symbol_value(mc_str name)
{
    return mc_str_is(name, "B") ? 2 : mc_str_is(name, "S") || mc_str_is(name, "C") ? 3 : 5;
}

static int64_t
size_of(const mc_module *m, mc_dim d)
{
    int64_t values[MC_MAX_SYMS];
    for (int i = 0; i < m->n_syms; i++) values[i] = symbol_value(m->syms[i].name);
    return mc_dim_eval(d, values);
}

static void
random_inputs(const mc_module *m, mc_arena *arena, mc_ref_tensor *out)
{
    const mc_func *model = mc_module_model(m);
    for (size_t i = 0; i < model->formals.n; i++) {
        const mc_type *t = model->formals.items[i]->type;
        int64_t dims[MC_MAX_RANK];
        for (int k = 0; k < t->rank; k++) dims[k] = size_of(m, t->dims[k]);
        ck_assert(mc_ref_tensor_init(&out[i], t->dtype, dims, t->rank, arena));
        for (int64_t k = 0; k < out[i].n; k++)
            mc_ref_tensor_set(&out[i], k,
                              mc_type_is_float(t) ? mc_noise_normal(i + 1, k) : floor(4 * mc_noise_uniform(i + 1, k)));
    }
}

static mc_module *
read_module(const mc_golden *g, mc_sources *sources, mc_diags *diags)
{
    mc_module *m = mc_module_read(sources, mc_sources_add(sources, mc_str_of(g->path), g->text), diags);
    must_be_clean(diags, g->path);
    return m;
}

static void
run_random(mc_module *m, weights *ws, mc_arena *arena, mc_diags *diags, mc_ref_tensor *outputs)
{
    mc_ref_options how = {.precision = MC_REF_F32, .weight = give_weight, .weight_user = ws};
    mc_ref *ref = mc_ref_create(m, &how, diags);
    must_be_clean(diags, "interpreter");
    for (int i = 0; i < m->n_syms; i++)
        if (!mc_str_is(m->syms[i].name, "C")) mc_ref_set_symbol(ref, m->syms[i].name, symbol_value(m->syms[i].name));
    mc_ref_tensor inputs[MAX_OUTPUTS];
    random_inputs(m, arena, inputs);
    const mc_func *model = mc_module_model(m);
    ck_assert_int_le(model->last->n_operands, MAX_OUTPUTS);
    mc_ref_state *state = mc_ref_state_create();
    mc_ref_run(ref, state, inputs, (int)model->formals.n, arena, outputs, model->last->n_operands);
    must_be_clean(diags, "run");
    mc_ref_state_destroy(state);
    mc_ref_destroy(ref);
}

#define SAME_BITS MC_N_TOL_CLASSES

/* Runs the file's module before and after a pipeline; false when the pipeline refuses it. */
static bool
compare(const char *path, const char *pipeline, mc_tol_class class, mc_buf *report)
{
    mc_arena *arena = mc_arena_create();
    mc_golden g;
    mc_fault fault = {{0}};
    ck_assert_msg(mc_golden_load(&g, path, &fault), "%s", fault.text);
    mc_sources sources = {.arena = arena};
    mc_diags diags;
    mc_diags_init(&diags, arena, &sources);
    mc_module *before = read_module(&g, &sources, &diags), *after = read_module(&g, &sources, &diags);
    mc_pass_options options = checking();
    bool ran = before->stage == MC_STAGE_TENSOR && mc_run_pipeline(after, mc_str_of(pipeline), &options, &diags);
    weights ws = {0};
    mc_synthetic_init(&ws.synthetic, arena, 11);
    ws.synthetic.bf16_grid = true;
    mc_map_init(&ws.fp8, arena);
    mc_ref_tensor want[MAX_OUTPUTS], got[MAX_OUTPUTS];
    if (ran) {
        find_fp8(&ws, mc_module_model(before), (mc_str){0});
        find_fp8(&ws, mc_module_model(after), (mc_str){0});
        run_random(before, &ws, arena, &diags, want);
        ws.carrying = true;
        run_random(after, &ws, arena, &diags, got);
    }
    for (int i = 0; ran && i < mc_module_model(before)->last->n_operands; i++) {
        mc_close_report r = class == SAME_BITS ? mc_close_exact(MC_ARRAY(got[i]), MC_ARRAY(want[i]))
                                               : mc_close(MC_ARRAY(got[i]), MC_ARRAY(want[i]), class);
        if (!r.ok) mc_buf_printf(report, "%s, %s, output %d: %s\n", path, pipeline, i, r.text);
    }
    mc_module_destroy(before);
    mc_module_destroy(after);
    mc_golden_free(&g);
    mc_arena_destroy(arena);
    return ran;
}

/* Refusals are cases of their own elsewhere; here each kind of pass must have some files that do run. */
static void
compare_all(const mc_paths *files, const char *pipeline, mc_tol_class class, int least)
{
    mc_buf report = {0};
    int n = 0;
    for (size_t i = 0; i < files->n; i++) n += compare(files->items[i], pipeline, class, &report);
    ck_assert_msg(report.len == 0, "%s", report.data);
    ck_assert_int_ge(n, least);
}

START_TEST(test_goldens)
{
    compare_all(&goldens, pipelines[_i], SAME_BITS, 20);
}
END_TEST

/* A model that is prepared for training gives its results, with the same bits, and then what backward needs. */
START_TEST(test_training)
{
    compare_all(&goldens, trainings[_i].pipeline, SAME_BITS, trainings[_i].least);
}
END_TEST

START_TEST(test_fp8)
{
    compare_all(&carvings, "carve-fp8", MC_TOL_MODEL, 9);
    compare_all(&carvings, "expand-moe,fuse-moe,carve-fp8", MC_TOL_MODEL, 9);
}
END_TEST

START_TEST(test_absorbed)
{
    compare_all(&absorbed, "absorb-mla", MC_TOL_MODEL, 8);
    compare_all(&absorbed, "absorb-mla,fuse-moe,carve-fp8", MC_TOL_MODEL, 8);
}
END_TEST

/* Operands of products are rounded, sums are not; what is f32 throughout keeps its bits. */
START_TEST(test_narrow)
{
    compare_all(&narrowed, "narrow", MC_TOL_NARROW, 3);
    compare_all(&narrowed, "narrow,canonicalize,cse,dce", MC_TOL_NARROW, 3);
}
END_TEST

static mc_paths
without(mc_paths all, const char *part)
{
    mc_paths out = {0};
    for (size_t i = 0; i < all.n; i++)
        if (!strstr(all.items[i], part)) mc_vec_push(files_arena, &out, all.items[i]);
    return out;
}

int
main(void)
{
    files_arena = mc_arena_create();
    cases = mc_golden_find(files_arena, "tests/exec", ".moir");
    goldens = without(without(mc_golden_find(files_arena, "tests/golden/passes", ".moir"), "carve-fp8"), "pipelines");
    /* plan-ep refuses the one; its own are for several ranks */
    goldens = without(without(without(goldens, "absorb-mla"), "refuses_gather"), "/plan-ep/");
    absorbed = mc_golden_find(files_arena, "tests/golden/passes/absorb-mla", ".moir");
    narrowed = without(mc_golden_find(files_arena, "tests/golden/passes/narrow", ".moir"), "train");
    carvings = mc_golden_find(files_arena, "tests/golden/passes/carve-fp8", ".moir");
    Suite *suite = suite_create("passes_exec");
    TCase *tc = tcase_create("same bits");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, test_cases, 0, (int)cases.n);
    tcase_add_loop_test(tc, test_goldens, 0, N_PIPELINES);
    tcase_add_loop_test(tc, test_training, 0, N_TRAININGS);
    tcase_add_test(tc, test_fp8);
    tcase_add_test(tc, test_absorbed);
    tcase_add_test(tc, test_narrow);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    mc_arena_destroy(files_arena);
    return failed != 0;
}
