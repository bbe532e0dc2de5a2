/* A whole step of training on the CPU backend: every file of tests/grad, compiled through the pipeline of training,
 * must give the outputs and gradients that the interpreter gives in f64 for the same plan, with the same bits for 1, 2
 * and 3 threads, saved or computed again; and gradients add to what is there. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "passes/pass.h"
#include "tests/support/exec_case.h"
#include "tests/support/finite_difference.h"
#include "tests/unit/cpu_walk.h"

#include <dirent.h>
#include <stdio.h>

#ifndef MOEC_SOURCE_DIR
#define MOEC_SOURCE_DIR "."
#endif
#define GRAD_DIR MOEC_SOURCE_DIR "/tests/grad"

enum { MAX_FILES = 100 };
static char *files[MAX_FILES];
static int n_files;

/* A step, compiled and interpreted. Buffers of the step lie in args: x..., y..., saved... and then x..., saved...,
 * dy..., dx.... */
typedef struct step {
    const char *path;
    mc_arena *arena;
    mc_diags diags;
    mc_exec_case *c;
    mc_fd want;
    walk w;
    mc_ref_tensor *inputs, *results, *dy, *dx; /* results: outputs, then what is saved */
    int n_inputs, n_outputs, n_results, n_dy, n_dx;
} step;

/* ---- opening --------------------------------------------------------------------------------------------------- */

static void
interpret(step *s)
{
    const mc_exec_step *given = &s->c->steps.items[0];
    mc_fd_options options = {.module = s->c->module,
                             .arena = s->arena,
                             .diags = &s->diags,
                             .weight = mc_exec_weight,
                             .weight_user = s->c,
                             .seed = 1,
                             .cotangents = given->cotangents.n ? given->cotangents.items : NULL};
    s->n_inputs = (int)given->inputs.n;
    s->inputs = given->inputs.items;
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
            walk_free(s->w.weights[i]);
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

static void
set_gradients(step *s, float value)
{
    for (uint32_t i = 0; i < s->w.abi->n_weights; i++) {
        const moec_abi_weight *weight = &s->w.abi->weights[i];
        float *gradient = s->w.weights[i];
        for (int64_t k = 0; weight->layout == MOEC_ABI_GRAD && k < count_of(weight); k++) gradient[k] = value;
    }
}

static void
open_step(step *s, const char *path, const char *pipeline)
{
    *s = (step){.path = path, .arena = mc_arena_create()};
    mc_diags_init(&s->diags, s->arena, NULL);
    s->c = mc_exec_load(path, s->arena, &s->diags);
    mc_pass_options options = mc_pass_options_default();
    if (!s->c || !mc_run_pipeline(s->c->module, mc_str_of(pipeline), &options, &s->diags)) walk_fail(&s->diags);
    interpret(s);
    walk_open(&s->w, s->c->module, (walk_source){mc_exec_weight, s->c}, &s->diags);
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
    mc_exec_close(s->c);
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
    void *p = walk_poisoned((int64_t)bytes_of(t));
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
    for (int i = 0; i < n_threads; i++) s->w.scratch[i] = walk_poisoned((int64_t)s->w.abi->scratch_bytes);
    for (int i = 0; i < s->n_inputs; i++) args[n++] = back[n_back++] = buffer_of(&s->inputs[i]);
    for (int i = 0; i < s->n_results; i++) args[n++] = walk_poisoned((int64_t)bytes_of(&s->results[i]));
    walk_func(&s->w, s->w.abi->entry, args, 0, 0);
    for (int i = 0; i < s->n_results; i++) take(&s->results[i], args[s->n_inputs + i]);
    for (int i = 0; i < n_saved; i++) back[n_back++] = args[s->n_inputs + s->n_outputs + i];
    for (int i = 0; i < s->n_dy; i++) back[n_back++] = args[n++] = buffer_of(&s->dy[i]);
    for (int i = 0; i < s->n_dx; i++) back[n_back + i] = args[n++] = walk_poisoned((int64_t)bytes_of(&s->dx[i]));
    walk_func(&s->w, s->w.abi->backward, back, s->w.abi->backward_weight_base, 0);
    for (int i = 0; i < s->n_dx; i++) take(&s->dx[i], back[n_back + i]);
    for (int i = 0; i < n; i++) walk_free(args[i]);
    for (int i = 0; i < n_threads; i++) walk_free(s->w.scratch[i]);
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

static void
compare(const step *s, const char *what, mc_array got, mc_array want)
{
    mc_close_report r = mc_close(got, want, MC_TOL_MODEL);
    ck_assert_msg(r.ok, "%s: %s: %s", s->path, what, r.text);
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
        if (weight->layout != MOEC_ABI_GRAD) continue;
        const mc_fd_tensor *want = mc_fd_param(&s->want, weight->path);
        ck_assert_msg(want != NULL, "%s: no gradient of %s", s->path, weight->path);
        compare(s, weight->path, (mc_array){MOEC_F32, s->w.weights[i], count_of(weight)}, MC_ARRAY(want->grad));
    }
}

/* Everything that a run gave, end to end. */
static void
collect(const step *s, mc_buf *out)
{
    for (int i = 0; i < s->n_outputs; i++) mc_buf_write(out, s->results[i].data, bytes_of(&s->results[i]));
    for (int i = 0; i < s->n_dx; i++) mc_buf_write(out, s->dx[i].data, bytes_of(&s->dx[i]));
    for (uint32_t i = 0; i < s->w.abi->n_weights; i++) {
        const moec_abi_weight *weight = &s->w.abi->weights[i];
        if (weight->layout == MOEC_ABI_GRAD)
            mc_buf_write(out, s->w.weights[i], (size_t)count_of(weight) * sizeof(float));
    }
}

static void
check_same(const step *s, const mc_buf *first, const char *what)
{
    mc_buf again = {0};
    collect(s, &again);
    ck_assert_msg(again.len == first->len && memcmp(again.data, first->data, first->len) == 0, "%s: %s differs",
                  s->path, what);
    mc_buf_fini(&again);
}

START_TEST(file)
{
    step s;
    mc_buf first = {0};
    bool recompute = _i % 2;
    open_step(&s, files[_i / 2],
              recompute ? "expand-moe,canonicalize,cse,dce,routing-losses,fuse-moe{train=1},dce,autodiff{recompute=1},"
                          "canonicalize,cse,dce,fuse-grad,lower-to-plan{rows=1},plan-memory"
                        : "@train");
    set_gradients(&s, 0);
    run(&s, 1);
    compare_all(&s);
    collect(&s, &first);
    for (int threads = 2; threads <= 3; threads++) {
        set_gradients(&s, 0);
        run(&s, threads);
        check_same(&s, &first, "a run with more threads");
    }
    mc_buf_fini(&first);
    close_step(&s);
}
END_TEST

static int
is_moir(const struct dirent *d)
{
    size_t n = strlen(d->d_name);
    return n > 5 && strcmp(d->d_name + n - 5, ".moir") == 0;
}

static void
list_files(void)
{
    struct dirent **entries;
    int n = scandir(GRAD_DIR, &entries, is_moir, alphasort);
    for (int i = 0; i < n; i++) {
        char *path = malloc(strlen(GRAD_DIR) + strlen(entries[i]->d_name) + 2);
        sprintf(path, "%s/%s", GRAD_DIR, entries[i]->d_name);
        free(entries[i]);
        if (n_files < MAX_FILES)
            files[n_files++] = path;
        else
            free(path);
    }
    if (n >= 0) free(entries);
}

int
main(void)
{
    list_files();
    Suite *suite = suite_create("cpu_train");
    TCase *t = tcase_create("cpu_train");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, file, 0, 2 * n_files);
    suite_add_tcase(suite, t);
    SRunner *r = srunner_create(suite);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    for (int i = 0; i < n_files; i++) free(files[i]);
    return failed || !n_files ? EXIT_FAILURE : EXIT_SUCCESS;
}
