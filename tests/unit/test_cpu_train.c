/* A whole step of training on the CPU backend: every file of tests/grad, compiled through the pipeline of training,
 * must give the outputs and gradients that the interpreter gives in f64 for the same plan, with the same bits for 1, 2
 * and 3 threads, saved or computed again; and gradients add to what is there, or are not wanted. */
#include "passes/pass.h"
#include "tests/support/exec_case.h"
#include "tests/support/finite_difference.h"
#include "tests/support/gen_module.h"
#include "tests/support/golden.h"
#include "tests/unit/cpu_walk.h"

#include <math.h>
#include <stdio.h>

#define GRAD_DIR "tests/grad"

static mc_arena *files_arena;
static mc_paths files;

/* A step, compiled and interpreted. Buffers of the step lie in args: x..., y..., saved... and then x..., saved...,
 * dy..., dx.... */
typedef struct step {
    const char *name;
    mc_arena *arena;
    mc_diags diags;
    mc_module *module;
    walk_source weights;
    const mc_ref_tensor *cotangents; /* NULL: random ones */
    mc_fd want;
    walk w;
    mc_ref_tensor *inputs, *results, *dy, *dx; /* results: outputs, then what is saved */
    int n_inputs, n_outputs, n_results, n_dy, n_dx;
} step;

/* ---- opening --------------------------------------------------------------------------------------------------- */

static void
interpret(step *s)
{
    mc_fd_options options = {.module = s->module,
                             .arena = s->arena,
                             .diags = &s->diags,
                             .weight = s->weights.fn,
                             .weight_user = s->weights.user,
                             .seed = 1,
                             .cotangents = s->cotangents};
    if (!mc_fd_open(&s->want, &options, s->inputs, s->n_inputs)) walk_fail(&s->diags);
    s->n_outputs = s->want.n_outputs;
    s->n_results = s->want.n_forward;
    s->n_dy = (int)s->want.cotangents.n;
    s->n_dx = (int)s->want.input_grads.n;
}

/* A parameter may stand in the table several times; its gradient is one buffer, the first's. */
static void
share_gradients(step *s)
{
    mc_map first;
    mc_map_init(&first, s->arena);
    for (uint32_t i = 0; i < s->w.abi->n_weights; i++) {
        const moec_abi_weight *weight = &s->w.abi->weights[i];
        if (weight->layout != MOEC_ABI_GRAD) continue;
        void *buffer = mc_map_get(&first, mc_str_of(weight->path));
        if (buffer) {
            mc_poisoned_free(s->w.weights[i]);
            s->w.weights[i] = buffer;
        } else {
            mc_map_set(&first, mc_str_of(weight->path), s->w.weights[i]);
        }
    }
}

static int64_t
count_of(const moec_abi_weight *weight)
{
    int64_t n = 1;
    for (uint32_t d = 0; d < weight->rank; d++) n *= weight->dims[d];
    return n;
}

static bool
is_gradient(const step *s, uint32_t weight)
{
    return s->w.abi->weights[weight].layout == MOEC_ABI_GRAD;
}

static size_t
gradient_bytes(const step *s, uint32_t weight)
{
    return (size_t)count_of(&s->w.abi->weights[weight]) * sizeof(float);
}

static void
set_gradients(step *s, float value)
{
    for (uint32_t i = 0; i < s->w.abi->n_weights; i++) {
        float *gradient = s->w.weights[i];
        for (int64_t k = 0; is_gradient(s, i) && k < count_of(&s->w.abi->weights[i]); k++) gradient[k] = value;
    }
}

static void
compile(step *s)
{
    interpret(s);
    walk_open(&s->w, s->module, s->weights, &s->diags);
    s->w.cache_cap = INT32_MAX;
    for (int i = 0; i < MC_MAX_SYMS; i++) s->w.syms[i] = -1;
    share_gradients(s);
    ck_assert_uint_ne(s->w.abi->backward, UINT32_MAX);
    ck_assert_uint_eq(s->w.abi->n_outputs + s->w.abi->n_saved, (uint32_t)s->n_results);
    ck_assert_uint_eq(s->w.abi->n_cotangents, (uint32_t)s->n_dy);
    ck_assert_uint_eq(s->w.abi->n_input_grads, (uint32_t)s->n_dx);
    s->results = MC_NEW_N(s->arena, mc_ref_tensor, s->n_results);
    s->dy = MC_NEW_N(s->arena, mc_ref_tensor, s->n_dy + 1);
    s->dx = MC_NEW_N(s->arena, mc_ref_tensor, s->n_dx + 1);
}

static void
close_step(step *s)
{
    for (uint32_t i = 0; i < s->w.abi->n_weights; i++)
        for (uint32_t j = 0; j < i; j++)
            if (s->w.weights[i] == s->w.weights[j]) s->w.weights[i] = NULL;
    walk_close(&s->w);
    mc_fd_close(&s->want);
    mc_arena_destroy(s->arena);
}

/* ---- running ----------------------------------------------------------------------------------------------------- */

static size_t
bytes_of(const mc_ref_tensor *t)
{
    return (size_t)t->n * moec_dtype_bytes(t->dtype);
}

static void *
buffer_of(const mc_ref_tensor *t)
{
    void *p = mc_poisoned((int64_t)bytes_of(t));
    if (t->data && bytes_of(t)) memcpy(p, t->data, bytes_of(t));
    return p;
}

static void
take(mc_ref_tensor *t, const void *buffer)
{
    if (bytes_of(t)) memcpy(t->data, buffer, bytes_of(t));
}

static void
make_like(step *s, mc_ref_tensor *t, const mc_ref_tensor *shape, moec_dtype dtype)
{
    ck_assert(mc_ref_tensor_init(t, dtype, shape->dims, shape->rank, s->arena));
}

static void
prepare(step *s)
{
    const moec_abi_model *abi = s->w.abi;
    walk_bind(&s->w, s->inputs);
    for (int i = 0; i < s->n_results; i++) {
        const moec_abi_tensor *t = i < s->n_outputs ? &abi->outputs[i] : &abi->saved[i - s->n_outputs];
        const mc_ref_tensor *want = &s->want.outputs[i];
        ck_assert_uint_eq(t->rank, (uint32_t)want->rank);
        for (int d = 0; d < want->rank; d++) ck_assert_int_eq(walk_eval(&s->w, &t->dims[d]), want->dims[d]);
        make_like(s, &s->results[i], want, (moec_dtype)t->dtype);
    }
    for (int i = 0; i < s->n_dy; i++) {
        ck_assert_uint_eq(abi->cotangents[i], (uint32_t)s->want.cotangents.items[i]);
        make_like(s, &s->dy[i], &s->want.dy[i], MOEC_F32);
        for (int64_t k = 0; k < s->dy[i].n; k++) mc_ref_tensor_set(&s->dy[i], k, mc_ref_tensor_get(&s->want.dy[i], k));
    }
    for (int i = 0; i < s->n_dx; i++) {
        ck_assert_uint_eq(abi->input_grads[i], (uint32_t)s->want.input_grads.items[i]);
        make_like(s, &s->dx[i], &s->inputs[abi->input_grads[i]], s->inputs[abi->input_grads[i]].dtype);
    }
}

static void
run(step *s, int n_threads)
{
    void *args[WALK_MAX_ARGS], *back[WALK_MAX_ARGS];
    int n = 0, n_back = 0, n_saved = s->n_results - s->n_outputs;
    ck_assert_int_le(s->n_inputs + s->n_results + s->n_dy + s->n_dx, WALK_MAX_ARGS);
    walk_forget(&s->w);
    s->w.n_threads = n_threads;
    prepare(s);
    for (int i = 0; i < n_threads; i++) s->w.scratch[i] = mc_poisoned((int64_t)s->w.abi->scratch_bytes);
    for (int i = 0; i < s->n_inputs; i++) args[n++] = back[n_back++] = buffer_of(&s->inputs[i]);
    for (int i = 0; i < s->n_results; i++) args[n++] = mc_poisoned((int64_t)bytes_of(&s->results[i]));
    walk_func(&s->w, s->w.abi->entry, args, 0, 0);
    for (int i = 0; i < s->n_results; i++) take(&s->results[i], args[s->n_inputs + i]);
    for (int i = 0; i < n_saved; i++) back[n_back++] = args[s->n_inputs + s->n_outputs + i];
    for (int i = 0; i < s->n_dy; i++) back[n_back++] = args[n++] = buffer_of(&s->dy[i]);
    for (int i = 0; i < s->n_dx; i++) back[n_back + i] = args[n++] = mc_poisoned((int64_t)bytes_of(&s->dx[i]));
    walk_func(&s->w, s->w.abi->backward, back, s->w.abi->backward_weight_base, 0);
    for (int i = 0; i < s->n_dx; i++) take(&s->dx[i], back[n_back + i]);
    for (int i = 0; i < n; i++) mc_poisoned_free(args[i]);
    for (int i = 0; i < n_threads; i++) mc_poisoned_free(s->w.scratch[i]);
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

static void
compare(const step *s, const char *what, mc_array got, mc_array want)
{
    mc_close_report r = mc_close(got, want, MC_TOL_GRADIENT);
    ck_assert_msg(r.ok, "%s: %s: %s", s->name, what, r.text);
}

static void
compare_all(const step *s)
{
    for (int i = 0; i < s->n_outputs; i++)
        compare(s, "an output", MC_ARRAY(s->results[i]), MC_ARRAY(s->want.outputs[i]));
    for (int i = 0; i < s->n_dx; i++)
        compare(s, "gradient of an input", MC_ARRAY(s->dx[i]),
                MC_ARRAY(s->want.inputs.items[s->want.input_grads.items[i]].grad));
    for (uint32_t i = 0; i < s->w.abi->n_weights; i++) {
        const moec_abi_weight *weight = &s->w.abi->weights[i];
        if (!is_gradient(s, i)) continue;
        const mc_fd_tensor *want = mc_fd_param(&s->want, weight->path);
        ck_assert_msg(want != NULL, "%s: no gradient of %s", s->name, weight->path);
        compare(s, weight->path, (mc_array){MOEC_F32, s->w.weights[i], count_of(weight)}, MC_ARRAY(want->grad));
    }
}

/* Outputs and gradients of inputs, end to end. */
static void
collect_results(const step *s, mc_buf *out)
{
    for (int i = 0; i < s->n_outputs; i++) mc_buf_write(out, s->results[i].data, bytes_of(&s->results[i]));
    for (int i = 0; i < s->n_dx; i++) mc_buf_write(out, s->dx[i].data, bytes_of(&s->dx[i]));
}

/* The same, then the gradients of parameters. */
static void
collect(const step *s, mc_buf *out)
{
    collect_results(s, out);
    for (uint32_t i = 0; i < s->w.abi->n_weights; i++)
        if (is_gradient(s, i)) mc_buf_write(out, s->w.weights[i], gradient_bytes(s, i));
}

static void
check_same(const step *s, const mc_buf *first, const char *what)
{
    mc_buf again = {0};
    collect(s, &again);
    ck_assert_msg(again.len == first->len && memcmp(again.data, first->data, first->len) == 0, "%s: %s differs",
                  s->name, what);
    mc_buf_fini(&again);
}

/* Gradients that are not zero are added to. */
static void
check_adding(step *s)
{
    enum { START = 4 };
    float **was = MC_NEW_N(s->arena, float *, s->w.abi->n_weights);
    for (uint32_t i = 0; i < s->w.abi->n_weights; i++)
        if (is_gradient(s, i)) was[i] = mc_arena_copy(s->arena, s->w.weights[i], gradient_bytes(s, i));
    set_gradients(s, START);
    run(s, 2);
    for (uint32_t i = 0; i < s->w.abi->n_weights; i++) {
        const float *now = s->w.weights[i];
        for (int64_t k = 0; is_gradient(s, i) && k < count_of(&s->w.abi->weights[i]); k++) {
            double error = fabs(now[k] - (was[i][k] + (double)START)), most = 1e-4 + 1e-4 * fabs(was[i][k]);
            ck_assert_msg(error <= most, "%s: %s[%lld] is %g, was %g", s->name, s->w.abi->weights[i].path, (long long)k,
                          now[k], was[i][k]);
        }
    }
}

/* Parameters without a gradient are left alone; the gradients of inputs stay. */
static void
check_frozen(step *s, const mc_buf *first)
{
    void **kept = mc_arena_copy(s->arena, s->w.weights, s->w.abi->n_weights * sizeof *kept);
    for (uint32_t i = 0; i < s->w.abi->n_weights; i++)
        if (is_gradient(s, i)) s->w.weights[i] = NULL;
    run(s, 2);
    memcpy(s->w.weights, kept, s->w.abi->n_weights * sizeof *kept);
    mc_buf again = {0};
    collect_results(s, &again);
    ck_assert_msg(again.len <= first->len && (!again.len || memcmp(again.data, first->data, again.len) == 0),
                  "%s: without gradients of parameters, results differ", s->name);
    mc_buf_fini(&again);
}

static void
check(step *s)
{
    mc_buf first = {0};
    set_gradients(s, 0);
    run(s, 1);
    compare_all(s);
    collect(s, &first);
    for (int threads = 2; threads <= 3; threads++) {
        set_gradients(s, 0);
        run(s, threads);
        check_same(s, &first, "a run with more threads");
    }
    check_adding(s);
    check_frozen(s, &first);
    mc_buf_fini(&first);
}

static const char *const pipelines[] = {
    "@train", "expand-moe,canonicalize,cse,dce,routing-losses,fuse-moe{train=1},dce,autodiff{recompute=1},"
              "canonicalize,cse,dce,fuse-grad,lower-to-plan{rows=1},plan-memory"};

static void
open_step(step *s, const char *name)
{
    *s = (step){.name = name, .arena = mc_arena_create()};
    mc_diags_init(&s->diags, s->arena, NULL);
}

static void
lower(step *s, mc_module *m, const char *pipeline)
{
    mc_pass_options options = mc_pass_options_default();
    if (!m || !mc_run_pipeline(m, mc_str_of(pipeline), &options, &s->diags)) walk_fail(&s->diags);
    s->module = m;
}

START_TEST(file)
{
    step s;
    open_step(&s, files.items[_i]);
    mc_exec_case *c = mc_exec_load(s.name, s.arena, &s.diags);
    lower(&s, c ? c->module : NULL, pipelines[0]);
    const mc_exec_step *given = &c->steps.items[0];
    s.weights = (walk_source){mc_exec_weight, c};
    s.inputs = given->inputs.items;
    s.n_inputs = (int)given->inputs.n;
    s.cotangents = given->cotangents.n ? given->cotangents.items : NULL;
    compile(&s);
    check(&s);
    mc_exec_close(c);
    close_step(&s);
}
END_TEST

START_TEST(program)
{
    step s;
    char name[32];
    mc_synthetic weights;
    mc_ref_tensor inputs[MC_GEN_INPUTS];
    snprintf(name, sizeof name, "program %d", _i);
    open_step(&s, name);
    mc_gen_options options = {.seed = (uint64_t)_i, .n_blocks = 5, .trainable = true, .continuous = true};
    mc_module *m = mc_gen_module(&options, &s.diags);
    lower(&s, m, pipelines[_i % 2]);
    mc_synthetic_init(&weights, s.arena, (uint64_t)_i);
    mc_gen_inputs(m, (uint64_t)_i, 1 + _i % 3, 1 + _i % 19, s.arena, inputs);
    s.weights = (walk_source){mc_ref_synthetic_weight, &weights};
    s.inputs = inputs;
    s.n_inputs = MC_GEN_INPUTS;
    compile(&s);
    check(&s);
    mc_module_destroy(m);
    close_step(&s);
}
END_TEST

/* Sanitizers look at our code, of which a few programs reach all; truth is for the plain build. */
#ifdef __SANITIZE_ADDRESS__
enum { N_PROGRAMS = 6 };
#else
enum { N_PROGRAMS = 40 };
#endif

int
main(void)
{
    const char *more = getenv("MOEC_GRAD_PROGRAMS");
    files_arena = mc_arena_create();
    files = mc_golden_find(files_arena, GRAD_DIR, ".moir");
    Suite *suite = suite_create("cpu_train");
    TCase *t = tcase_create("cpu_train");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, file, 0, (int)files.n);
    tcase_add_loop_test(t, program, 0, more ? atoi(more) : N_PROGRAMS);
    suite_add_tcase(suite, t);
    SRunner *r = srunner_create(suite);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    mc_arena_destroy(files_arena);
    return failed || !files.n ? EXIT_FAILURE : EXIT_SUCCESS;
}
