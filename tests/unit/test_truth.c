/* The whole road against transformers: every case of tests/reference is imported, compiled, bound and run; logits,
 * chosen experts, gates and greedy continuations must be those of the reference, from the compiled model, the
 * executable and the interpreter alike. The figures are printed. */
#define _GNU_SOURCE
#include "codegen/ref/interp.h"
#include "driver/unit.h"
#include "moec/moec.h"
#include "runtime/npy.h"
#include "tests/support/plain_weights.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const cases[] = {"mixtral_tiny",    "mixtral_bf16_tiny",       "mixtral_fused_tiny",
                                    "qwen2moe_tiny",   "qwen3moe_tiny",           "olmoe_tiny",
                                    "deepseekv3_tiny", "deepseekv3_noqlora_tiny", "deepseekv3_fp8_tiny"};
enum { N_CASES = sizeof cases / sizeof cases[0], PATH_BYTES = 512 };
static const char *const lengths[] = {"1", "7", "64", "2x7"};
enum { N_LENGTHS = 4 };
static const double max_logit_error = 1e-5;

/* ---- small tools ---- */

static const char *
moec_binary(void)
{
    const char *path = getenv("MOEC_TEST_BINARY");
    return path ? path : "build/moec";
}

static void
run_command(const char *format, ...)
{
    char command[4 * PATH_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    int status = system(command);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "failed: %s", command);
}

static mc_npy
read_npy(const char *name, const char *what, const char *suffix)
{
    char path[PATH_BYTES];
    mc_fault fault = {0};
    mc_npy npy;
    snprintf(path, sizeof path, "tests/reference/%s/expected/%s%s%s.npy", name, what, *suffix ? "_" : "", suffix);
    ck_assert_msg(mc_npy_read(path, &npy, &fault) == MOEC_OK, "%s", fault.text);
    return npy;
}

static int64_t
count(const mc_npy *npy)
{
    int64_t n = 1;
    for (uint32_t i = 0; i < npy->rank; i++) n *= npy->dims[i];
    return n;
}

static const int32_t *
as_ids(const mc_npy *npy)
{
    ck_assert_int_eq(npy->dtype, MOEC_I32);
    return (const int32_t *)(const void *)npy->data.data;
}

static const float *
as_floats(const mc_npy *npy)
{
    ck_assert_int_eq(npy->dtype, MOEC_F32);
    return (const float *)(const void *)npy->data.data;
}

/* Greatest difference over greatest value. */
static double
relative_error(const float *a, const float *b, int64_t n)
{
    double worst = 0, scale = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d;
        if (fabs((double)b[i]) > scale) scale = fabs((double)b[i]);
    }
    return worst / scale;
}

static void
print_diagnostic(void *user, const moec_diagnostic *d)
{
    (void)user;
    if (d->severity == MOEC_SEVERITY_ERROR) fputs(d->rendered, stderr);
}

/* ---- a case, imported and compiled ---- */

typedef struct subject {
    const char *name;
    char directory[PATH_BYTES], work[PATH_BYTES], text[PATH_BYTES];
    moec_compiled *compiled;
    moec_model *model;
    moec_weights *weights;
    moec_error error;
} subject;

static void
subject_open(subject *s, const char *name)
{
    *s = (subject){.name = name};
    snprintf(s->directory, sizeof s->directory, "tests/reference/%s", name);
    snprintf(s->work, sizeof s->work, "/tmp/moec-truth-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(s->work));
    snprintf(s->text, sizeof s->text, "%.400s/model.moe", s->work);
    run_command("%s import %s -o %s", moec_binary(), s->directory, s->text);
    moec_compile_options options = {.on_diagnostic = print_diagnostic, .cache = ""};
    ck_assert_int_eq(moec_compile_file(s->text, &options, &s->compiled), MOEC_OK);
    ck_assert_msg(moec_compiled_load(s->compiled, &s->model, &s->error) == MOEC_OK, "%s", s->error.text);
    moec_weights_options in_memory = {.in_memory = true};
    ck_assert_msg(moec_weights_open(s->model, s->directory, &in_memory, &s->weights, &s->error) == MOEC_OK, "%s",
                  s->error.text);
}

static void
subject_close(subject *s)
{
    moec_weights_close(s->weights);
    moec_compiled_destroy(s->compiled);
    run_command("rm -r %s", s->work);
}

static moec_session *
open_session(subject *s, uint32_t n_threads)
{
    moec_session *session;
    moec_session_options options = {.n_threads = n_threads, .max_batch = 2, .max_positions = 128, .max_new = 64};
    moec_status status = moec_session_create(s->model, s->weights, &options, &session, &s->error);
    ck_assert_msg(status == MOEC_OK, "%s", s->error.text);
    return session;
}

/* Caller frees. */
static float *
logits_of(subject *s, const mc_npy *ids, uint32_t n_threads, int64_t step)
{
    int64_t batch = ids->dims[0], n = ids->dims[1], vocab = moec_model_vocab(s->model);
    const int32_t *all = as_ids(ids);
    float *out = calloc((size_t)(batch * n * vocab), sizeof *out),
          *part = calloc((size_t)(batch * step * vocab), sizeof *out);
    int32_t *chunk = calloc((size_t)(batch * step), sizeof *chunk);
    moec_session *session = open_session(s, n_threads);
    for (int64_t at = 0; at < n; at += step) {
        int64_t now = n - at < step ? n - at : step;
        for (int64_t b = 0; b < batch; b++) memcpy(chunk + b * now, all + b * n + at, (size_t)now * sizeof *chunk);
        moec_status status = moec_session_feed(session, chunk, (size_t)batch, (size_t)now, part, &s->error);
        ck_assert_msg(status == MOEC_OK, "%s", s->error.text);
        for (int64_t b = 0; b < batch; b++)
            memcpy(out + (b * n + at) * vocab, part + b * now * vocab, (size_t)(now * vocab) * sizeof *out);
    }
    moec_session_destroy(session);
    free(part);
    free(chunk);
    return out;
}

/* ---- the compiled model ---- */

START_TEST(test_compiled)
{
    subject s;
    subject_open(&s, cases[_i]);
    double worst = 0;
    for (int i = 0; i < N_LENGTHS; i++) {
        mc_npy ids = read_npy(s.name, "ids", lengths[i]), want = read_npy(s.name, "logits", lengths[i]);
        size_t n_bytes = (size_t)count(&want) * sizeof(float);
        float *one = logits_of(&s, &ids, 1, ids.dims[1]);
        double error = relative_error(one, as_floats(&want), count(&want));
        ck_assert_msg(error <= max_logit_error, "%s, T = %s: relative error %.3g", s.name, lengths[i], error);
        if (error > worst) worst = error;
        for (uint32_t threads = 2; threads <= 3; threads++) {
            float *more = logits_of(&s, &ids, threads, ids.dims[1]);
            ck_assert_msg(memcmp(one, more, n_bytes) == 0, "%s, T = %s: %u threads give other bits", s.name, lengths[i],
                          threads);
            free(more);
        }
        float *decoded = logits_of(&s, &ids, 2, 1), *chunked = logits_of(&s, &ids, 2, 3);
        ck_assert_msg(memcmp(one, decoded, n_bytes) == 0, "%s, T = %s: decoding gives other bits than prefill", s.name,
                      lengths[i]);
        ck_assert_msg(memcmp(one, chunked, n_bytes) == 0, "%s, T = %s: chunks give other bits than prefill", s.name,
                      lengths[i]);
        free(decoded);
        free(chunked);
        free(one);
        mc_npy_fini(&ids);
        mc_npy_fini(&want);
    }
    printf("%-24s compiled     logits within %.2g\n", s.name, worst);
    subject_close(&s);
}
END_TEST

START_TEST(test_greedy)
{
    subject s;
    subject_open(&s, cases[_i]);
    mc_npy want = read_npy(s.name, "greedy", "");
    const int32_t *ids = as_ids(&want);
    moec_session *session = open_session(&s, 2);
    ck_assert_msg(moec_session_feed(session, ids, 1, 7, NULL, &s.error) == MOEC_OK, "%s", s.error.text);
    for (int64_t i = 7; i < count(&want); i++) {
        int32_t id;
        ck_assert_msg(moec_sample(session, 0, NULL, (uint64_t)i, &id, &s.error) == MOEC_OK, "%s", s.error.text);
        ck_assert_msg(id == ids[i], "%s: token %d is %d, not %d", s.name, (int)i, id, ids[i]);
        ck_assert_msg(moec_session_feed(session, &id, 1, 1, NULL, &s.error) == MOEC_OK, "%s", s.error.text);
    }
    moec_session_destroy(session);
    mc_npy_fini(&want);
    subject_close(&s);
}
END_TEST

/* ---- the executable: the same bits as just in time ---- */

START_TEST(test_executable)
{
    subject s;
    char app[PATH_BYTES + 16], out[PATH_BYTES + 16], list[2048] = "";
    subject_open(&s, cases[_i]);
    snprintf(app, sizeof app, "%s/app", s.work);
    snprintf(out, sizeof out, "%s/logits.npy", s.work);
    run_command("%s compile %s -o %s --cache '' >/dev/null", moec_binary(), s.text, app);
    mc_npy ids = read_npy(s.name, "ids", "64");
    for (int64_t i = 0; i < count(&ids); i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%d", i ? "," : "", as_ids(&ids)[i]);
    run_command("MOEC_CACHE=%s/cache %s --weights %s --ids %s --max-new 0 --threads 2 --logits %s >/dev/null", s.work,
                app, s.directory, list, out);
    mc_npy got;
    mc_fault fault = {0};
    ck_assert_msg(mc_npy_read(out, &got, &fault) == MOEC_OK, "%s", fault.text);
    float *jit = logits_of(&s, &ids, 1, 64);
    ck_assert_int_eq(count(&got), count(&ids) * moec_model_vocab(s.model));
    ck_assert_msg(memcmp(jit, got.data.data, (size_t)count(&got) * sizeof(float)) == 0,
                  "%s: the executable gives other bits", s.name);
    free(jit);
    mc_npy_fini(&got);
    mc_npy_fini(&ids);
    run_command("cd %s && rm -r cache app logits.npy", s.work);
    subject_close(&s);
}
END_TEST

/* ---- the interpreter, and the experts it chooses ---- */

typedef struct choice_recorder {
    const mc_npy *experts;
    int64_t layer, flips;
} choice_recorder;

static void
record_choice(void *user, const mc_ref_event *event)
{
    choice_recorder *r = user;
    if (event->op->opcode != MC_OP_ROUTE_TOP) return;
    const mc_ref_tensor *ids = &event->results[1];
    const int32_t *want = as_ids(r->experts) + r->layer * r->experts->dims[1] * r->experts->dims[2];
    ck_assert_int_eq(ids->n, r->experts->dims[1] * r->experts->dims[2]);
    for (int64_t i = 0; i < ids->n; i++) r->flips += (int32_t)mc_ref_tensor_get(ids, i) != want[i];
    r->layer++;
}

static double
interpret(subject *s, mc_unit *u, mc_plain_weights *weights, const char *length, int64_t *flips)
{
    mc_npy ids = read_npy(s->name, "ids", length), want = read_npy(s->name, "logits", length),
           experts = read_npy(s->name, "experts", length);
    choice_recorder recorder = {.experts = &experts};
    mc_ref_options options = {.precision = MC_REF_F32,
                              .weight = mc_plain_weights_get,
                              .weight_user = weights,
                              .record = record_choice,
                              .record_user = &recorder};
    mc_ref *ref = mc_ref_create(u->module, &options, &u->diags);
    ck_assert_ptr_nonnull(ref);
    mc_ref_tensor in, out;
    mc_arena *arena = mc_arena_create();
    ck_assert(mc_ref_tensor_init(&in, MOEC_I32, ids.dims, 2, arena));
    memcpy(in.data, ids.data.data, (size_t)count(&ids) * sizeof(int32_t));
    if (!mc_ref_run(ref, NULL, &in, 1, arena, &out, 1)) {
        mc_unit_deliver(u);
        ck_abort_msg("%s: the interpreter refused", s->name);
    }
    ck_assert_int_eq(out.n, count(&want));
    double error = relative_error(out.data, as_floats(&want), out.n);
    ck_assert_int_eq(recorder.layer, experts.dims[0]);
    *flips += recorder.flips;
    mc_ref_destroy(ref);
    mc_arena_destroy(arena);
    mc_npy_fini(&ids);
    mc_npy_fini(&want);
    mc_npy_fini(&experts);
    return error;
}

START_TEST(test_interpreter)
{
    subject s;
    subject_open(&s, cases[_i]);
    static const char *const exact = "precision.storage=f32"; /* FP8 times its scale does not fit bf16 */
    moec_compile_options options = {.settings = &exact, .n_settings = 1, .on_diagnostic = print_diagnostic};
    mc_unit u;
    mc_unit_init(&u, &options);
    ck_assert(mc_unit_load(&u, s.text) && mc_unit_elaborate(&u));
    mc_plain_weights *weights = mc_plain_weights_open(&u.elab, s.directory, &s.error);
    ck_assert_msg(weights != NULL, "%s", s.error.text);
    double worst = 0;
    int64_t flips = 0;
    for (int i = 0; i < N_LENGTHS; i++) {
        double error = interpret(&s, &u, weights, lengths[i], &flips);
        ck_assert_msg(error <= max_logit_error, "%s, T = %s: relative error %.3g", s.name, lengths[i], error);
        if (error > worst) worst = error;
    }
    printf("%-24s interpreter  logits within %.2g, %lld experts differ\n", s.name, worst, (long long)flips);
    ck_assert_int_eq(flips, 0);
    mc_plain_weights_close(weights);
    mc_unit_fini(&u);
    subject_close(&s);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("truth");
    TCase *tests = tcase_create("reference checkpoints");
    tcase_set_timeout(tests, 30);
    tcase_add_loop_test(tests, test_compiled, 0, N_CASES);
    tcase_add_loop_test(tests, test_greedy, 0, N_CASES);
    tcase_add_loop_test(tests, test_executable, 0, N_CASES);
    tcase_add_loop_test(tests, test_interpreter, 0, N_CASES);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
