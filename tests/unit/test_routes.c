/* Choices of experts that are recorded (trace-routes, give-outputs) and replayed (replay-routes), in the interpreter:
 * recording changes no bit of a model's results, what is recorded replays to the same bits, and other choices are
 * followed. Every case of tests/exec takes part. Run from the root of the source tree. */
#include "ir/op.h"
#include "passes/pass.h"
#include "tests/support/exec_case.h"
#include "tests/support/golden.h"

#include <check.h>
#include <string.h>

#define EXPAND "expand-moe,@simplify"
#define TRACE EXPAND ",trace-routes,give-outputs"
#define REPLAY EXPAND ",trace-routes,replay-routes,give-outputs"

enum { MAX_VALUES = 64 };

static mc_arena *files_arena;
static mc_paths cases;

typedef struct subject { /* a case after a pipeline */
    mc_diags diags;
    mc_exec_case *exec;
    mc_ref *ref;
    const mc_func *model;
    int n_inputs, n_outputs;
} subject;

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

/* Without the two cases of great products, which take seconds and whose choices are like others'. */
static bool
has_experts(const char *path)
{
    if (strstr(path, "_products")) return false;
    mc_golden g;
    mc_fault fault = {{0}};
    ck_assert_msg(mc_golden_load(&g, path, &fault), "%s", fault.text);
    const char *text = g.text.data;
    bool yes = strstr(text, "moir 1 stage=tensor") && (strstr(text, "moe") || strstr(text, "expert_"));
    mc_golden_free(&g);
    return yes;
}

/* False: the pipeline refuses it with E0510. */
static bool
open_subject(subject *s, const char *path, const char *pipeline, mc_arena *arena)
{
    static mc_sources none;
    none = (mc_sources){.arena = arena};
    mc_diags_init(&s->diags, arena, &none);
    s->exec = mc_exec_load(path, arena, &s->diags);
    must_be_clean(&s->diags, path);
    mc_pass_options options = mc_pass_options_default();
    options.verify_each = true;
    if (!mc_run_pipeline(s->exec->module, mc_str_of(pipeline), &options, &s->diags)) {
        ck_assert_int_eq(s->diags.list.items[s->diags.list.n - 1].code, MC_E0510);
        mc_exec_close(s->exec);
        return false;
    }
    s->exec->synthetic.bf16_grid = true;
    mc_ref_options how = {.precision = MC_REF_F32, .weight = mc_exec_weight, .weight_user = s->exec};
    s->ref = mc_ref_create(s->exec->module, &how, &s->diags);
    must_be_clean(&s->diags, path);
    for (size_t i = 0; i < s->exec->sets.n; i++)
        mc_ref_set_symbol(s->ref, s->exec->sets.items[i].name, s->exec->sets.items[i].value);
    s->model = mc_module_model(s->exec->module);
    s->n_inputs = (int)s->model->formals.n;
    s->n_outputs = s->model->last->n_operands;
    ck_assert(s->n_inputs <= MAX_VALUES && s->n_outputs <= MAX_VALUES);
    return true;
}

static void
close_subject(subject *s)
{
    mc_ref_destroy(s->ref);
    mc_exec_close(s->exec);
}

static mc_str
output_name(const subject *s, int i)
{
    return mc_operand(s->model->last, i)->name;
}

static bool
run(subject *s, mc_ref_state *state, const mc_ref_tensor *inputs, mc_arena *arena, mc_ref_tensor *outputs)
{
    return mc_ref_run(s->ref, state, inputs, s->n_inputs, arena, outputs, s->n_outputs);
}

static void
same_bits(const mc_ref_tensor *a, const mc_ref_tensor *b, const char *path, const char *what, int i)
{
    mc_close_report r = mc_close_exact(MC_ARRAY(*a), MC_ARRAY(*b));
    ck_assert_msg(r.ok, "%s: %s, output %d: %s", path, what, i, r.text);
}

/* ---- recording ---- */

/* Returns how many layers are recorded. */
static int
record(const char *path)
{
    mc_arena *arena = mc_arena_create();
    subject plain, told;
    ck_assert(open_subject(&plain, path, EXPAND, arena) && open_subject(&told, path, TRACE, arena));
    int n_layers = told.n_outputs - plain.n_outputs;
    mc_ref_state *a = mc_ref_state_create(), *b = mc_ref_state_create();
    for (size_t i = 0; n_layers && i < plain.exec->steps.n; i++) {
        const mc_exec_step *step = &plain.exec->steps.items[i];
        mc_ref_tensor want[MAX_VALUES], got[MAX_VALUES];
        bool ran = run(&plain, a, step->inputs.items, arena, want);
        ck_assert_int_eq(ran, run(&told, b, step->inputs.items, arena, got));
        for (int k = 0; ran && k < plain.n_outputs; k++) same_bits(&got[k], &want[k], path, "recorded", k);
        for (int k = plain.n_outputs; ran && k < told.n_outputs; k++) ck_assert_int_eq(got[k].dtype, MOEC_I32);
    }
    mc_ref_state_destroy(a);
    mc_ref_state_destroy(b);
    close_subject(&plain);
    close_subject(&told);
    mc_arena_destroy(arena);
    return n_layers;
}

START_TEST(test_record)
{
    int layers = 0, models = 0;
    for (size_t i = 0; i < cases.n; i++) {
        int n = has_experts(cases.items[i]) ? record(cases.items[i]) : 0;
        layers += n;
        models += n > 0;
    }
    ck_assert_int_ge(models, 20);
    ck_assert_int_ge(layers, models);
}
END_TEST

/* ---- replaying ---- */

/* The choice that input i of the replaying model stands for, among outputs. */
static int
choice_of(const subject *replay, int i, const subject *told)
{
    const char *suffix = ".replay";
    mc_str name = replay->model->formals.items[i]->name;
    ck_assert_msg(mc_str_ends(name, suffix), "%.*s", MC_FMT(name));
    name.len -= strlen(suffix);
    for (int k = 0; k < told->n_outputs; k++)
        if (mc_str_eq(output_name(told, k), name)) return k;
    ck_abort_msg("no output is named %.*s", MC_FMT(name));
}

/* Another choice of as many different experts: each id of those that occur becomes the next one. */
static void
rotate(const mc_ref_tensor *ids, mc_ref_tensor *out, mc_arena *arena)
{
    double greatest = 0;
    for (int64_t i = 0; i < ids->n; i++)
        if (mc_ref_tensor_get(ids, i) > greatest) greatest = mc_ref_tensor_get(ids, i);
    ck_assert(mc_ref_tensor_init(out, MOEC_I32, ids->dims, ids->rank, arena));
    for (int64_t i = 0; i < ids->n; i++) {
        double id = mc_ref_tensor_get(ids, i);
        mc_ref_tensor_set(out, i, id < 0 ? id : id == greatest ? 0 : id + 1);
    }
}

typedef struct tally {
    int replayed, refused, followed;
} tally;

static bool
differs(const mc_ref_tensor *a, const mc_ref_tensor *b)
{
    return !mc_close_exact(MC_ARRAY(*a), MC_ARRAY(*b)).ok;
}

static void
replay_step(const char *path, subject *told, subject *replay, mc_ref_state *states[3], size_t i, bool others,
            mc_arena *arena, tally *t)
{
    const mc_exec_step *step = &told->exec->steps.items[i];
    mc_ref_tensor want[MAX_VALUES], got[MAX_VALUES], other[MAX_VALUES], inputs[MAX_VALUES];
    if (!run(told, states[0], step->inputs.items, arena, want)) return;
    for (int k = 0; k < replay->n_inputs; k++)
        inputs[k] = k < told->n_inputs ? step->inputs.items[k] : want[choice_of(replay, k, told)];
    ck_assert_msg(run(replay, states[1], inputs, arena, got), "%s: replaying fails", path);
    for (int k = 0; k < told->n_outputs; k++) same_bits(&got[k], &want[k], path, "replayed", k);
    t->replayed++;
    for (int k = told->n_inputs; k < replay->n_inputs; k++) {
        mc_ref_tensor recorded = inputs[k];
        rotate(&recorded, &inputs[k], arena);
    }
    if (!others) return;
    ck_assert_msg(run(replay, states[2], inputs, arena, other), "%s: other choices fail", path);
    t->followed += differs(&other[0], &got[0]);
}

static void
replay(const char *path, tally *t)
{
    mc_arena *arena = mc_arena_create();
    subject told, again;
    ck_assert(open_subject(&told, path, TRACE, arena));
    if (!open_subject(&again, path, REPLAY, arena)) {
        t->refused++;
    } else {
        bool has_choices = again.n_inputs > told.n_inputs;
        ck_assert_int_eq(again.n_outputs, told.n_outputs);
        mc_ref_state *states[3] = {mc_ref_state_create(), mc_ref_state_create(), mc_ref_state_create()};
        for (size_t i = 0; has_choices && i < told.exec->steps.n; i++)
            replay_step(path, &told, &again, states, i, i == 0, arena, t);
        for (int i = 0; i < 3; i++) mc_ref_state_destroy(states[i]);
        close_subject(&again);
    }
    close_subject(&told);
    mc_arena_destroy(arena);
}

START_TEST(test_replay)
{
    tally t = {0};
    for (size_t i = 0; i < cases.n; i++)
        if (has_experts(cases.items[i])) replay(cases.items[i], &t);
    ck_assert_int_ge(t.replayed, 12);
    ck_assert_int_ge(t.followed, 6);
    ck_assert_int_ge(t.refused, 3);
}
END_TEST

int
main(void)
{
    files_arena = mc_arena_create();
    cases = mc_golden_find(files_arena, "tests/exec", ".moir");
    Suite *suite = suite_create("routes");
    TCase *tc = tcase_create("routes");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, test_record);
    tcase_add_test(tc, test_replay);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    mc_arena_destroy(files_arena);
    return failed != 0;
}
