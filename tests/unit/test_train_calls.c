/* Calls of moec/train.h: what may be left out, what is added, who may call at the same time, and what is refused.
 * Numbers are judged elsewhere (test_train.c); here results are compared with those of the plainest call, bit by bit.
 */
#include "driver/compiled.h"
#include "tests/support/poisoned.h"
#include "tests/support/train_rig.h"

#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char layer[] = "moe 1\ndim T in 1..4096\nmodel layer(x: f32[T, 24]) -> f32[T, 24] {\n"
                            "  return x + moe@mlp(x) {\n    route linear@gate | softmax | top 2 | renorm\n"
                            "    experts 6 of swiglu(20)\n  }\n}\ntrain { aux switch; z 1 }\n";
static const moec_limit seven[] = {{"T", 7}};

static void
open_rig(mc_rig *rig, bool recompute, const char *frozen)
{
    moec_compile_options options = {.cache = "", .recompute = recompute, .frozen = frozen};
    mc_rig_open(rig, "layer.moe", layer, &options, NULL, NULL);
}

static void
open_seven(mc_rig_step *s, const mc_rig *rig, uint32_t n_threads)
{
    mc_rig_step_open(s, rig, seven, 1, n_threads, 3);
}

/* All results of one forward and backward. */
static mc_buf
results(mc_rig_step *s)
{
    mc_buf out = {0};
    mc_rig_zero(s);
    mc_rig_forward(s);
    mc_rig_backward(s);
    mc_rig_collect(s, &out);
    return out;
}

static mc_buf
plain_results(const mc_rig *rig)
{
    mc_rig_step s;
    open_seven(&s, rig, 0);
    mc_buf out = results(&s);
    mc_rig_step_close(&s);
    return out;
}

static void
expect_same(mc_buf *got, const mc_buf *want)
{
    ck_assert_uint_eq(got->len, want->len);
    ck_assert_mem_eq(got->data, want->data, want->len);
    mc_buf_fini(got);
}

/* ---- the same bits --------------------------------------------------------------------------------------------- */

START_TEST(test_threads)
{
    mc_rig rig;
    open_rig(&rig, false, NULL);
    mc_buf want = plain_results(&rig);
    for (uint32_t n = 0; n <= 4; n++) {
        mc_rig_step s;
        open_seven(&s, &rig, n);
        for (int again = 0; again < 2; again++) {
            mc_buf got = results(&s);
            expect_same(&got, &want);
        }
        mc_rig_step_close(&s);
    }
    mc_buf_fini(&want);
    mc_rig_close(&rig);
}
END_TEST

START_TEST(test_recompute)
{
    mc_rig save, recompute;
    mc_rig_step s;
    moec_train_sizes sizes;
    moec_error error;
    open_rig(&save, false, NULL);
    open_rig(&recompute, true, NULL);
    mc_buf want = plain_results(&save), got = plain_results(&recompute);
    expect_same(&got, &want);
    ck_assert_int_eq(moec_train_query(save.model, seven, 1, 1, &sizes, &error), MOEC_OK);
    open_seven(&s, &recompute, 0);
    ck_assert_uint_lt(s.sizes.saved_bytes, sizes.saved_bytes);
    mc_rig_step_close(&s);
    mc_buf_fini(&want);
    mc_rig_close(&save);
    mc_rig_close(&recompute);
}
END_TEST

/* Several threads of the caller's call one model, each with buffers of its own. */
typedef struct caller {
    mc_rig_step step;
    const mc_buf *want;
    pthread_t thread;
    bool same;
} caller;

static void *
call_often(void *argument)
{
    caller *c = argument;
    c->same = true;
    for (int i = 0; i < 12; i++) {
        mc_buf got = results(&c->step);
        c->same = c->same && got.len == c->want->len && memcmp(got.data, c->want->data, got.len) == 0;
        mc_buf_fini(&got);
    }
    return NULL;
}

START_TEST(test_callers)
{
    enum { N = 3 };
    bool shared = _i == 1; /* one moec_threads for all of them */
    mc_rig rig;
    caller callers[N];
    open_rig(&rig, false, NULL);
    mc_buf want = plain_results(&rig);
    for (int i = 0; i < N; i++) {
        callers[i].want = &want;
        open_seven(&callers[i].step, &rig, 2);
        if (shared) callers[i].step.call.threads = callers[0].step.threads;
    }
    for (int i = 0; i < N; i++) ck_assert_int_eq(pthread_create(&callers[i].thread, NULL, call_often, &callers[i]), 0);
    for (int i = 0; i < N; i++) pthread_join(callers[i].thread, NULL);
    for (int i = 0; i < N; i++) {
        ck_assert(callers[i].same);
        mc_rig_step_close(&callers[i].step);
    }
    mc_buf_fini(&want);
    mc_rig_close(&rig);
}
END_TEST

/* ---- what may be left out -------------------------------------------------------------------------------------- */

START_TEST(test_frozen_parameters)
{
    mc_rig rig;
    mc_rig_step s;
    open_rig(&rig, false, NULL);
    open_seven(&s, &rig, 2);
    mc_buf full = results(&s);
    for (size_t p = 0; p <= rig.n_params; p++) { /* n_params: none is wanted */
        float *kept[16];
        mc_buf want = {0}, got;
        ck_assert_uint_le(rig.n_params, 16);
        memcpy(kept, s.grads, rig.n_params * sizeof *kept);
        mc_buf all = results(&s);
        expect_same(&all, &full);
        for (size_t i = 0; i < rig.n_params; i++)
            if (i == p || p == rig.n_params) s.grads[i] = NULL;
        mc_rig_collect(&s, &want); /* of the full run, without what is frozen now */
        s.call.param_grads = p == rig.n_params ? NULL : s.grads;
        got = results(&s);
        expect_same(&got, &want);
        mc_buf_fini(&want);
        memcpy(s.grads, kept, rig.n_params * sizeof *kept);
        s.call.param_grads = s.grads;
    }
    mc_buf_fini(&full);
    mc_rig_step_close(&s);
    mc_rig_close(&rig);
}
END_TEST

START_TEST(test_frozen_by_compiler)
{
    mc_rig rig, frozen;
    mc_rig_step s, f;
    open_rig(&rig, false, NULL);
    open_rig(&frozen, false, "**.gate.*,mlp.experts.up_proj.*");
    open_seven(&s, &rig, 2);
    open_seven(&f, &frozen, 2);
    mc_buf want = results(&s), got = results(&f);
    int n_frozen = 0;
    ck_assert_uint_eq(rig.n_params, frozen.n_params);
    for (size_t i = 0; i < rig.n_params; i++) {
        const moec_param_info *p = &frozen.params[i];
        size_t at = mc_rig_param(&rig, p->path);
        bool expected = strcmp(p->path, "mlp.gate.weight") == 0 || strcmp(p->path, "mlp.experts.up_proj.weight") == 0;
        ck_assert(rig.params[at].has_gradient);
        ck_assert_int_eq(p->has_gradient, !expected);
        n_frozen += expected;
        if (p->has_gradient) ck_assert_mem_eq(f.grads[i], s.grads[at], mc_rig_param_bytes(&rig, at));
    }
    ck_assert_int_eq(n_frozen, 2);
    ck_assert_mem_eq(f.input_grads[0].data, s.input_grads[0].data, s.input_grads[0].n_bytes);
    mc_buf_fini(&want);
    mc_buf_fini(&got);
    mc_rig_step_close(&s);
    mc_rig_step_close(&f);
    mc_rig_close(&rig);
    mc_rig_close(&frozen);
}
END_TEST

START_TEST(test_evaluation)
{
    mc_rig rig;
    mc_rig_step s;
    moec_error error;
    open_rig(&rig, false, NULL);
    open_seven(&s, &rig, 2);
    mc_rig_forward(&s);
    mc_buf want = {0}, got = {0};
    mc_buf_write(&want, s.outputs[0].data, s.outputs[0].n_bytes);
    void *saved = s.call.saved, *workspace = s.call.workspace;
    size_t saved_bytes = s.call.saved_bytes, workspace_bytes = s.call.workspace_bytes;
    s.call.saved = NULL;
    s.call.saved_bytes = 0;
    s.call.workspace_bytes += saved_bytes;
    s.call.workspace = mc_poisoned((int64_t)s.call.workspace_bytes);
    mc_rig_forward(&s);
    mc_buf_write(&got, s.outputs[0].data, s.outputs[0].n_bytes);
    expect_same(&got, &want);
    ck_assert_int_eq(moec_train_backward(rig.model, &s.call, &error), MOEC_ERR_ARGUMENT);
    mc_poisoned_free(s.call.workspace);
    s.call.workspace = workspace;
    s.call.workspace_bytes = 1 << 12;
    ck_assert_int_eq(moec_train_forward(rig.model, &s.call, &error), MOEC_ERR_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(error.text, "workspace has 4096 bytes"));
    s.call.saved = saved;
    s.call.saved_bytes = saved_bytes;
    s.call.workspace_bytes = workspace_bytes;
    mc_buf_fini(&want);
    mc_rig_step_close(&s);
    mc_rig_close(&rig);
}
END_TEST

/* No outputs wanted, no input gradient wanted, cotangents only where they are not zero. */
START_TEST(test_least_call)
{
    mc_rig rig;
    mc_rig_step s;
    moec_error error;
    open_rig(&rig, false, NULL);
    open_seven(&s, &rig, 2);
    for (size_t i = 1; i < s.call.n_cotangents; i++)
        if (s.cotangents[i].data) memset(s.cotangents[i].data, 0, s.cotangents[i].n_bytes);
    mc_buf full = results(&s), want = {0}, got = {0};
    for (size_t i = 0; i < rig.n_params; i++)
        if (s.grads[i]) mc_buf_write(&want, s.grads[i], mc_rig_param_bytes(&rig, i));
    moec_train_call least = s.call;
    least.n_outputs = least.n_input_grads = 0;
    least.outputs = least.input_grads = NULL;
    least.n_cotangents = 1;
    mc_rig_zero(&s);
    memset(least.workspace, MC_POISON, least.workspace_bytes);
    ck_assert_int_eq(moec_train_forward(rig.model, &least, &error), MOEC_OK);
    memset(least.workspace, MC_POISON, least.workspace_bytes);
    ck_assert_int_eq(moec_train_backward(rig.model, &least, &error), MOEC_OK);
    for (size_t i = 0; i < rig.n_params; i++)
        if (s.grads[i]) mc_buf_write(&got, s.grads[i], mc_rig_param_bytes(&rig, i));
    expect_same(&got, &want);
    mc_buf_fini(&full);
    mc_buf_fini(&want);
    mc_rig_step_close(&s);
    mc_rig_close(&rig);
}
END_TEST

/* Gradients are added to what is there. */
START_TEST(test_accumulation)
{
    mc_rig rig;
    mc_rig_step s;
    open_rig(&rig, false, NULL);
    open_seven(&s, &rig, 2);
    mc_buf once = results(&s), grads = {0};
    for (size_t i = 0; i < rig.n_params; i++) mc_buf_write(&grads, s.grads[i], mc_rig_param_bytes(&rig, i));
    mc_rig_forward(&s);
    mc_rig_backward(&s);
    size_t at = 0;
    for (size_t i = 0; i < rig.n_params; i++) {
        size_t n = mc_rig_param_bytes(&rig, i) / sizeof(float);
        double difference = 0, norm = 0;
        for (size_t k = 0; k < n; k++, at++) {
            double one = (double)((const float *)(const void *)grads.data)[at], two = (double)s.grads[i][k];
            difference += (two - 2 * one) * (two - 2 * one);
            norm += two * two;
        }
        ck_assert_msg(norm > 0 && sqrt(difference / norm) < 1e-6, "%s: %g of %g", rig.params[i].path, difference, norm);
    }
    mc_buf_fini(&once);
    mc_buf_fini(&grads);
    mc_rig_step_close(&s);
    mc_rig_close(&rig);
}
END_TEST

/* ---- what is refused ------------------------------------------------------------------------------------------- */

typedef struct fixture {
    mc_rig rig, other; /* other: the same with recompute, whose saved buffer is another plan's */
    mc_rig_step s, eight;
} fixture;

static moec_tensor changed[MC_RIG_MAX];
static void *no_params[16];

static moec_tensor *
change(const moec_tensor *tensors, size_t n)
{
    memcpy(changed, tensors, n * sizeof *changed);
    return changed;
}

#define WRONG(name) static void name(moec_train_call *c, const fixture *f)

/* clang-format off */
WRONG(workspace_missing) { (void)f; c->workspace = NULL; }
WRONG(workspace_moved) { (void)f; c->workspace = (char *)c->workspace + 8; }
WRONG(workspace_tiny) { (void)f; c->workspace_bytes = 100; }
WRONG(workspace_small) { (void)f; c->workspace_bytes = c->workspace_bytes / 2; }
WRONG(saved_moved) { (void)f; c->saved = (char *)c->saved + 4; }
WRONG(saved_small) { (void)f; c->saved_bytes--; }
WRONG(reserved_used) { (void)f; c->reserved[0] = 1; }
WRONG(input_missing) { (void)f; c->n_inputs = 0; }
WRONG(input_unknown) { change(c->inputs, 1)->name = "z"; c->inputs = changed; (void)f; }
WRONG(input_dtype) { change(c->inputs, 1)->dtype = MOEC_I32; c->inputs = changed; (void)f; }
WRONG(input_rank) { change(c->inputs, 1)->rank = 1; c->inputs = changed; (void)f; }
WRONG(input_width) { change(c->inputs, 1)->dims[1] = 23; c->inputs = changed; (void)f; }
WRONG(input_long) { change(c->inputs, 1)->dims[0] = 8; c->inputs = changed; (void)f; }
WRONG(input_range) { change(c->inputs, 1)->dims[0] = 0; c->inputs = changed; (void)f; }
WRONG(input_null) { change(c->inputs, 1)->data = NULL; c->inputs = changed; (void)f; }
WRONG(params_null) { (void)f; c->params = NULL; }
WRONG(param_null) { (void)f; c->params = no_params; }
WRONG(output_unknown) { change(c->outputs, 1)->name = "w"; c->outputs = changed; c->n_outputs = 1; (void)f; }
WRONG(output_small) { change(c->outputs, 1)->n_bytes = 12; c->outputs = changed; c->n_outputs = 1; (void)f; }
WRONG(cotangent_rank) { change(c->cotangents, 1)->rank = 3; c->cotangents = changed; c->n_cotangents = 1; (void)f; }
WRONG(cotangent_dtype) { change(c->cotangents, 1)->dtype = MOEC_F64; c->cotangents = changed; c->n_cotangents = 1; (void)f; }
WRONG(cotangent_dims) { change(c->cotangents, 1)->dims[0] = 6; c->cotangents = changed; c->n_cotangents = 1; (void)f; }
WRONG(cotangent_small) { change(c->cotangents, 1)->n_bytes = 12; c->cotangents = changed; c->n_cotangents = 1; (void)f; }
WRONG(cotangent_unknown) { change(c->cotangents, 1)->name = "w"; c->cotangents = changed; c->n_cotangents = 1; (void)f; }

/* Of the loads, which are counts. */
WRONG(cotangent_of_load)
{
    size_t load = mc_rig_output(&f->rig, "mlp.load");
    *change(c->outputs, c->n_outputs) = c->outputs[load];
    changed[0].name = "mlp.load";
    c->cotangents = changed;
    c->n_cotangents = 1;
}

WRONG(cotangent_not_a_number)
{
    static float values[7 * 24];
    (void)f;
    values[30] = NAN;
    change(c->cotangents, 1)->data = values;
    c->cotangents = changed;
    c->n_cotangents = 1;
    c->check_finite = true;
}

WRONG(grad_small) { change(c->input_grads, 1)->n_bytes = 12; c->input_grads = changed; c->n_input_grads = 1; (void)f; }
WRONG(grad_unknown) { change(c->input_grads, 1)->name = "w"; c->input_grads = changed; c->n_input_grads = 1; (void)f; }
WRONG(saved_missing) { (void)f; c->saved = NULL; }
WRONG(saved_poisoned) { (void)f; memset(c->saved, MC_POISON, c->saved_bytes); }
WRONG(saved_of_eight) { c->saved = f->eight.call.saved; c->saved_bytes = f->eight.call.saved_bytes; }
WRONG(saved_of_other_plan)
{
    moec_train_call call = *c;
    moec_error error;
    call.n_outputs = 0;
    ck_assert_int_eq(moec_train_forward(f->other.model, &call, &error), MOEC_OK);
}
/* clang-format on */

typedef struct mistake {
    void (*make)(moec_train_call *call, const fixture *f);
    bool forward, backward; /* which must refuse it */
    moec_status status;
    const char *says;
} mistake;

/* clang-format off */
static const mistake mistakes[] = {
    {workspace_missing, 1, 1, MOEC_ERR_ARGUMENT, "workspace"},
    {workspace_moved, 1, 1, MOEC_ERR_ARGUMENT, "workspace is missing or not at a multiple of 64 bytes"},
    {workspace_tiny, 1, 1, MOEC_ERR_ARGUMENT, "workspace has 100 bytes"},
    {workspace_small, 0, 1, MOEC_ERR_ARGUMENT, "moec_train_query"},
    {saved_moved, 1, 1, MOEC_ERR_ARGUMENT, "saved is not at a multiple of 64 bytes"},
    {saved_small, 1, 1, MOEC_ERR_ARGUMENT, "saved has"},
    {reserved_used, 1, 1, MOEC_ERR_ARGUMENT, "reserved"},
    {input_missing, 1, 1, MOEC_ERR_ARGUMENT, "input x is missing"},
    {input_unknown, 1, 1, MOEC_ERR_ARGUMENT, "no input named z"},
    {input_dtype, 1, 1, MOEC_ERR_ARGUMENT, "input x is f32, not i32"},
    {input_rank, 1, 1, MOEC_ERR_ARGUMENT, "input x has 2 dimensions, not 1"},
    {input_width, 1, 1, MOEC_ERR_MISMATCH, "dimension 1 is 23 and must be 24"},
    {input_long, 1, 1, MOEC_ERR_ARGUMENT, "fewer than its dimensions need"},
    {input_range, 1, 1, MOEC_ERR_RANGE, "T = 0: the model allows 1..4096"},
    {input_null, 1, 1, MOEC_ERR_ARGUMENT, "input x"},
    {params_null, 1, 1, MOEC_ERR_ARGUMENT, "params is null"},
    {param_null, 1, 1, MOEC_ERR_ARGUMENT, "parameter mlp.gate.weight is null"},
    {output_unknown, 1, 0, MOEC_ERR_ARGUMENT, "no output named w"},
    {output_small, 1, 0, MOEC_ERR_ARGUMENT, "its buffer has 12"},
    {cotangent_rank, 0, 1, MOEC_ERR_ARGUMENT, "has 3 dimensions, not 2"},
    {cotangent_dtype, 0, 1, MOEC_ERR_ARGUMENT, "is f64, not f32"},
    {cotangent_dims, 0, 1, MOEC_ERR_MISMATCH, "dimension 0 is 6, the output's 7"},
    {cotangent_small, 0, 1, MOEC_ERR_ARGUMENT, "its buffer has 12"},
    {cotangent_unknown, 0, 1, MOEC_ERR_ARGUMENT, "no output named w"},
    {cotangent_of_load, 0, 1, MOEC_ERR_ARGUMENT, "output mlp.load takes no cotangent"},
    {cotangent_not_a_number, 0, 1, MOEC_ERR_RANGE, "nan at element 30"},
    {grad_small, 0, 1, MOEC_ERR_ARGUMENT, "its buffer has 12"},
    {grad_unknown, 0, 1, MOEC_ERR_ARGUMENT, "no input named w"},
    {saved_missing, 0, 1, MOEC_ERR_ARGUMENT, "backward needs the saved buffer"},
    {saved_poisoned, 0, 1, MOEC_ERR_MISMATCH, "not written by a forward"},
    {saved_of_eight, 0, 1, MOEC_ERR_MISMATCH, "other sizes"},
    {saved_of_other_plan, 0, 1, MOEC_ERR_MISMATCH, "another plan"},
};
/* clang-format on */
enum { N_MISTAKES = sizeof mistakes / sizeof *mistakes };

static void
expect_refused(const mistake *m, moec_status status, const moec_error *error)
{
    ck_assert_msg(status == m->status, "%s, not %s: %s", moec_status_name(status), moec_status_name(m->status),
                  error->text);
    ck_assert_msg(strstr(error->text, m->says) != NULL, "'%s' does not say '%s'", error->text, m->says);
}

/* Also: a call that is refused writes to no output and no gradient. */
START_TEST(test_mistakes)
{
    const moec_limit eight[] = {{"T", 8}};
    fixture f;
    open_rig(&f.rig, false, NULL);
    open_rig(&f.other, true, NULL);
    open_seven(&f.s, &f.rig, 2);
    mc_rig_step_open(&f.eight, &f.rig, eight, 1, 2, 3);
    mc_rig_forward(&f.eight);
    for (int i = 0; i < N_MISTAKES; i++) {
        const mistake *m = &mistakes[i];
        moec_error error = {{0}};
        mc_buf before = results(&f.s), after = {0};
        moec_train_call call = f.s.call;
        m->make(&call, &f);
        if (m->forward) expect_refused(m, moec_train_forward(f.rig.model, &call, &error), &error);
        if (m->backward) expect_refused(m, moec_train_backward(f.rig.model, &call, &error), &error);
        mc_rig_collect(&f.s, &after);
        expect_same(&after, &before);
        mc_buf_fini(&before);
    }
    mc_rig_step_close(&f.s);
    mc_rig_step_close(&f.eight);
    mc_rig_close(&f.rig);
    mc_rig_close(&f.other);
}
END_TEST

START_TEST(test_query)
{
    static const moec_limit wrong[] = {{"T", 7}, {"U", 7}}, huge[] = {{"T", 4097}}, nameless[] = {{NULL, 7}};
    mc_rig rig;
    moec_train_sizes a, b;
    moec_error error;
    open_rig(&rig, false, NULL);
    ck_assert_int_eq(moec_train_query(rig.model, seven, 0, 1, &a, &error), MOEC_ERR_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(error.text, "dimension T has no value"));
    ck_assert_int_eq(moec_train_query(rig.model, wrong, 2, 1, &a, &error), MOEC_ERR_ARGUMENT);
    ck_assert_int_eq(moec_train_query(rig.model, nameless, 1, 1, &a, &error), MOEC_ERR_ARGUMENT);
    ck_assert_int_eq(moec_train_query(rig.model, huge, 1, 1, &a, &error), MOEC_ERR_RANGE);
    ck_assert_uint_eq(a.saved_bytes + a.workspace_bytes, 0);
    ck_assert_int_eq(moec_train_query(rig.model, seven, 1, 1, &a, &error), MOEC_OK);
    ck_assert_int_eq(moec_train_query(rig.model, seven, 1, 4, &b, &error), MOEC_OK);
    ck_assert_uint_eq(a.saved_bytes, b.saved_bytes);
    ck_assert_uint_ge(b.workspace_bytes, a.workspace_bytes);
    mc_rig_close(&rig);
}
END_TEST

/* Each kind of model refuses what is the other's. */
START_TEST(test_kinds)
{
    moec_compile_options options = {.cache = ""};
    moec_compiled *compiled;
    moec_model *model;
    moec_weights *weights;
    moec_session *session;
    moec_error error;
    moec_train_sizes sizes;
    moec_train_call call = {0};
    moec_param_info param;
    moec_saved_info saved;
    mc_rig rig;
    ck_assert_int_eq(moec_compile_text("layer.moe", layer, strlen(layer), &options, &compiled), MOEC_OK);
    ck_assert_int_eq(moec_compiled_load(compiled, &model, &error), MOEC_OK);
    ck_assert(!moec_model_is_trainable(model));
    ck_assert_uint_eq(moec_train_n_params(model) + moec_train_n_saved(model), 0);
    ck_assert_int_eq(moec_train_query(model, seven, 1, 1, &sizes, &error), MOEC_ERR_UNSUPPORTED);
    ck_assert_int_eq(moec_train_forward(model, &call, &error), MOEC_ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(error.text, "compile it with `train`"));
    ck_assert_int_eq(moec_train_backward(model, &call, &error), MOEC_ERR_UNSUPPORTED);
    ck_assert_int_eq(moec_train_param(model, 0, &param), MOEC_ERR_UNSUPPORTED);
    ck_assert_int_eq(moec_train_saved(model, 0, &saved), MOEC_ERR_UNSUPPORTED);
    ck_assert(!moec_train_output_has_gradient(model, 0) && !moec_train_input_has_gradient(model, 0));
    moec_compiled_destroy(compiled);

    open_rig(&rig, false, NULL);
    ck_assert_int_eq(moec_session_create(rig.model, NULL, NULL, &session, &error), MOEC_ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(error.text, "compile it without `train`"));
    ck_assert_int_eq(moec_weights_synthetic(rig.model, NULL, &weights, &error), MOEC_ERR_UNSUPPORTED);
    ck_assert_int_eq(moec_weights_open(rig.model, "/nowhere", NULL, &weights, &error), MOEC_ERR_UNSUPPORTED);
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < rig.n_params; i++) n_bytes += mc_rig_param_bytes(&rig, i);
    ck_assert_uint_eq(moec_model_weights_bytes(rig.model), n_bytes);
    ck_assert_int_eq(moec_compiled_write(rig.compiled, MOEC_EXECUTABLE, "/tmp/never", &error), MOEC_ERR_UNSUPPORTED);
    mc_rig_close(&rig);
}
END_TEST

/* A descriptor whose training tables are wrong is refused before anything uses it. */
START_TEST(test_malformed)
{
    mc_rig rig;
    const moec_abi_model *good;
    mc_fault fault;
    moec_error error;
    open_rig(&rig, false, NULL);
    ck_assert_int_eq(mc_compiled_abi(rig.compiled, &good, &fault), MOEC_OK);
    const uint32_t bad_index[] = {99};
    moec_abi_model bad[8];
    for (int i = 0; i < 8; i++) bad[i] = *good;
    bad[0].backward = good->n_funcs;
    bad[1].backward = UINT32_MAX; /* but with saved values */
    bad[2].backward_weight_base = good->n_weights + 1;
    bad[3].n_saved--;
    bad[4].cotangents = bad_index, bad[4].n_cotangents = 1;
    bad[5].input_grads = bad_index;
    bad[6].backward_weight_base = good->n_weights; /* its weights lie beyond the end */
    bad[7].backward = good->entry;
    for (int i = 0; i < 8; i++) {
        moec_model *model = NULL;
        ck_assert_msg(moec_model_from_abi(&bad[i], &model, &error) == MOEC_ERR_INTERNAL, "%d: %s", i, error.text);
        ck_assert_ptr_null(model);
    }
    mc_rig_close(&rig);
}
END_TEST

START_TEST(test_thread_counts)
{
    moec_threads *threads;
    moec_error error;
    ck_assert_uint_eq(moec_threads_count(NULL), 1);
    ck_assert_int_eq(moec_threads_create(1025, &threads, &error), MOEC_ERR_ARGUMENT);
    ck_assert_ptr_null(threads);
    ck_assert_int_eq(moec_threads_create(0, &threads, &error), MOEC_OK);
    ck_assert_uint_ge(moec_threads_count(threads), 1);
    moec_threads_destroy(threads);
    moec_threads_destroy(NULL);
}
END_TEST

/* ---- balancing without a loss ---------------------------------------------------------------------------------- */

START_TEST(test_bias)
{
    float counts[] = {4, 1, 1, 2}, none[] = {0, 0, 0, 0}, bias[] = {0, 0.5F, 0, 0},
          ema[] = {0.25F, 0.25F, 0.25F, 0.25F};
    const float wrong[] = {1, NAN, 1, 1}, negative[] = {1, -1, 1, 1};
    const float sign[] = {-0.25F, 0.75F, 0.25F, 0}, averages[] = {0.375F, 0.1875F, 0.1875F, 0.25F};
    moec_error error;
    ck_assert_int_eq(moec_bias_update(MOEC_BIAS_SIGN, 0.25, 0, 4, counts, NULL, bias, &error), MOEC_OK);
    ck_assert_mem_eq(bias, sign, sizeof bias);
    ck_assert_int_eq(moec_bias_update(MOEC_BIAS_SIGN, 0.25, 0, 4, none, NULL, bias, &error), MOEC_OK);
    ck_assert_int_eq(moec_bias_update(MOEC_BIAS_EMA, 0.25, 0.5, 4, none, ema, bias, &error), MOEC_OK);
    ck_assert_mem_eq(bias, sign, sizeof bias);
    ck_assert_int_eq(moec_bias_update(MOEC_BIAS_EMA, 2, 0.5, 4, counts, ema, bias, &error), MOEC_OK);
    ck_assert_mem_eq(ema, averages, sizeof ema);
    for (int i = 0; i < 4; i++) ck_assert(bias[i] == sign[i] + 2 * (0.25F - averages[i]));
    memcpy(bias, sign, sizeof bias);
    ck_assert_int_eq(moec_bias_update(MOEC_BIAS_SIGN, 1, 0, 4, wrong, NULL, bias, &error), MOEC_ERR_RANGE);
    ck_assert_int_eq(moec_bias_update(MOEC_BIAS_SIGN, 1, 0, 4, negative, NULL, bias, &error), MOEC_ERR_RANGE);
    ck_assert_int_eq(moec_bias_update(MOEC_BIAS_EMA, 1, 0.5, 4, counts, NULL, bias, &error), MOEC_ERR_ARGUMENT);
    ck_assert_int_eq(moec_bias_update(MOEC_BIAS_SIGN, (double)NAN, 0, 4, counts, NULL, bias, &error),
                     MOEC_ERR_ARGUMENT);
    ck_assert_int_eq(moec_bias_update((moec_bias_rule)7, 1, 0, 4, counts, NULL, bias, &error), MOEC_ERR_ARGUMENT);
    ck_assert_mem_eq(bias, sign, sizeof bias);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("train_calls");
    TCase *t = tcase_create("train_calls");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, test_threads);
    tcase_add_test(t, test_recompute);
    tcase_add_loop_test(t, test_callers, 0, 2);
    tcase_add_test(t, test_frozen_parameters);
    tcase_add_test(t, test_frozen_by_compiler);
    tcase_add_test(t, test_evaluation);
    tcase_add_test(t, test_least_call);
    tcase_add_test(t, test_accumulation);
    tcase_add_test(t, test_mistakes);
    tcase_add_test(t, test_query);
    tcase_add_test(t, test_kinds);
    tcase_add_test(t, test_malformed);
    tcase_add_test(t, test_thread_counts);
    tcase_add_test(t, test_bias);
    suite_add_tcase(suite, t);
    SRunner *r = srunner_create(suite);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
