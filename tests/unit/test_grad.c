/* Derivatives are true: the files of tests/grad (at least one for each rule of passes/derivatives.def) against finite
 * differences in f64 and against numbers printed elsewhere, fused and unfused, with everything saved and with
 * everything computed again. */
#include "ir/op.h"
#include "ir/print.h"
#include "passes/derive.h"
#include "passes/pass.h"
#include "tests/support/exec_case.h"
#include "tests/support/finite_difference.h"
#include "tests/support/golden.h"
#include "tests/support/messages.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GRAD_DIR "tests/grad"
#define BEFORE "expand-moe,canonicalize,cse,dce,routing-losses,"
#define FUSED "fuse-moe{train=1},dce,"

/* The first is compared with finite differences, the others with the first: recompute bit for bit. */
static const char *const pipelines[] = {BEFORE FUSED "autodiff",
                                        BEFORE FUSED "autodiff{recompute=1}",
                                        BEFORE "autodiff",
                                        BEFORE FUSED "autodiff,canonicalize,cse,dce,fuse-grad",
                                        BEFORE FUSED "autodiff{recompute=1},canonicalize,cse,dce,fuse-grad",
                                        "@train"};
enum { N_PIPELINES = sizeof pipelines / sizeof *pipelines, RECOMPUTE = 1, ALL = 200 };
static const double limit = 1e-6, same_limit = 1e-9;

static mc_arena *files_arena;
static mc_paths files;

typedef struct rig {
    const char *path;
    mc_arena *arena;
    mc_diags diags;
    mc_exec_case *c;
    mc_fd fd;
} rig;

static void
load(rig *r, const char *path, const char *pipeline)
{
    *r = (rig){.path = path, .arena = mc_arena_create()};
    mc_diags_init(&r->diags, r->arena, NULL);
    r->c = mc_exec_load(path, r->arena, &r->diags);
    ck_assert_msg(r->c != NULL, "%s", mc_messages(&r->diags).data);
    mc_pass_options options = mc_pass_options_default();
    options.verify_each = options.roundtrip_each = true;
    bool ok = mc_run_pipeline(r->c->module, mc_str_of(pipeline), &options, &r->diags);
    ck_assert_msg(ok, "%s, %s: %s", path, pipeline, mc_messages(&r->diags).data);
}

static void
differentiate(rig *r, const char *path, const char *pipeline)
{
    load(r, path, pipeline);
    const mc_exec_step *step = &r->c->steps.items[0];
    mc_fd_options options = {.module = r->c->module,
                             .arena = r->arena,
                             .diags = &r->diags,
                             .weight = mc_exec_weight,
                             .weight_user = r->c,
                             .seed = 1,
                             .cotangents = step->cotangents.n ? step->cotangents.items : NULL};
    bool ok = mc_fd_open(&r->fd, &options, step->inputs.items, (int)step->inputs.n);
    ck_assert_msg(ok, "%s, %s: %s", path, pipeline, mc_messages(&r->diags).data);
    if (step->cotangents.n) ck_assert_uint_eq(step->cotangents.n, r->fd.cotangents.n);
}

static void
finish(rig *r)
{
    if (r->fd.scratch) mc_fd_close(&r->fd);
    mc_exec_close(r->c);
    mc_arena_destroy(r->arena);
}

/* ---- the files ------------------------------------------------------------------------------------------------- */

static void
check_printed(rig *r)
{
    const mc_exec_step *step = &r->c->steps.items[0];
    for (size_t i = 0; i < step->expects.n; i++) {
        const mc_exec_expect *e = &step->expects.items[i];
        mc_array got = MC_ARRAY(r->fd.outputs[e->result]), want = MC_ARRAY(e->want);
        mc_close_report c = e->exact ? mc_close_within(got, want, (mc_tolerance){0}) : mc_close(got, want, e->class);
        ck_assert_msg(c.ok, "%s: output %d: %s", r->path, e->result, c.text);
    }
    for (size_t i = 0; i < step->gradients.n; i++) {
        const mc_exec_gradient *g = &step->gradients.items[i];
        const mc_fd_tensor *t = mc_fd_param(&r->fd, g->name.data);
        for (size_t k = 0; k < r->fd.inputs.n; k++)
            if (mc_str_eq(r->fd.inputs.items[k].name, g->name)) t = &r->fd.inputs.items[k];
        ck_assert_msg(t != NULL, "%s: no %s", r->path, g->name.data);
        mc_close_report c = mc_close(MC_ARRAY(t->grad), MC_ARRAY(g->want), g->class);
        ck_assert_msg(c.ok, "%s: gradient of %s: %s", r->path, g->name.data, c.text);
    }
}

/* What forward gave before there was a backward, bit for bit. */
static void
check_forward(rig *r, rig *plain)
{
    mc_ref_options options = {.precision = MC_REF_F64, .weight = mc_exec_weight, .weight_user = plain->c};
    mc_ref *ref = mc_ref_create(plain->c->module, &options, &plain->diags);
    const mc_exec_step *step = &plain->c->steps.items[0];
    int n = mc_module_model(plain->c->module)->last->n_operands;
    mc_ref_tensor *out = MC_NEW_N(plain->arena, mc_ref_tensor, n);
    bool ok = ref && mc_ref_run(ref, NULL, step->inputs.items, (int)step->inputs.n, plain->arena, out, n);
    ck_assert_msg(ok, "%s: %s", r->path, mc_messages(&plain->diags).data);
    for (int i = 0; i < n; i++) {
        mc_close_report c = mc_close_exact(MC_ARRAY(r->fd.outputs[i]), MC_ARRAY(out[i]));
        ck_assert_msg(c.ok, "%s: autodiff changed output %d: %s", r->path, i, c.text);
    }
    mc_ref_destroy(ref);
}

/* Vectors of the design may stand where two experts are equally good: there, nothing can be compared. */
static bool
is_golden(const char *path)
{
    return strncmp(path, GRAD_DIR "/golden_", sizeof GRAD_DIR "/golden_" - 1) == 0;
}

static void
check_differences(rig *r)
{
    mc_fd_report report = mc_fd_compare(&r->fd, ALL);
    ck_assert_msg(report.worst <= limit, "%s: %s", r->path, report.text);
    ck_assert_msg(report.n_checked > 0 && report.n_skipped * 20 <= report.n_checked, "%s: %d of %d elements skipped",
                  r->path, report.n_skipped, report.n_skipped + report.n_checked);
    if (getenv("MOEC_GRAD_REPORT"))
        printf("%-32s %5d elements %3d skipped  worst %.2e\n", r->path, report.n_checked, report.n_skipped,
               report.worst);
}

START_TEST(gradients_are_true)
{
    rig first, other;
    differentiate(&first, files.items[_i], pipelines[0]);
    check_printed(&first);
    load(&other, files.items[_i], BEFORE "dce");
    check_forward(&first, &other);
    finish(&other);
    if (!is_golden(files.items[_i])) check_differences(&first);
    for (int i = 1; i < N_PIPELINES; i++) {
        differentiate(&other, files.items[_i], pipelines[i]);
        double distance = mc_fd_distance(&other.fd, &first.fd), most = i == RECOMPUTE ? 0 : same_limit;
        ck_assert_msg(distance <= most, "%s, %s: gradients differ by %.3g", files.items[_i], pipelines[i], distance);
        finish(&other);
    }
    finish(&first);
}
END_TEST

/* No rule may be without a file whose model it goes back through. */
START_TEST(every_rule_has_a_case)
{
    bool seen[MC_N_OPCODES] = {0};
    int missing = 0;
    for (size_t i = 0; i < 2 * files.n; i++) {
        rig r;
        load(&r, files.items[i / 2], i % 2 ? BEFORE "dce" : BEFORE FUSED "dce");
        MC_FOR_FUNCS(f, r.c->module)
        {
            MC_FOR_OPS(op, f) seen[op->opcode] = true;
        }
        finish(&r);
    }
    for (int i = 0; i < MC_N_OPCODES; i++) {
        if (!mc_derivatives[i].rule || seen[i]) continue;
        fprintf(stderr, "no file of " GRAD_DIR " has '%s'\n", mc_op_infos[i].text);
        missing++;
    }
    ck_assert_int_eq(missing, 0);
}
END_TEST

/* ---- the comparison itself ------------------------------------------------------------------------------------- */

/* A gradient that is off by one part in ten thousand must be found. */
START_TEST(a_wrong_gradient_is_found)
{
    rig r;
    differentiate(&r, GRAD_DIR "/linear.moir", pipelines[0]);
    mc_fd_tensor *t = r.fd.params.items[1];
    ((double *)t->grad.data)[0] *= 1.0001;
    mc_fd_report report = mc_fd_compare(&r.fd, ALL);
    ck_assert_msg(report.worst > 1e-5, "%s", report.text);
    finish(&r);
}
END_TEST

int
main(void)
{
    files_arena = mc_arena_create();
    files = mc_golden_find(files_arena, GRAD_DIR, ".moir");
    Suite *suite = suite_create("grad");
    TCase *c = tcase_create("grad");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, gradients_are_true, 0, (int)files.n);
    tcase_add_test(c, every_rule_has_a_case);
    tcase_add_test(c, a_wrong_gradient_is_found);
    suite_add_tcase(suite, c);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    mc_arena_destroy(files_arena);
    return failed || !files.n;
}
