/* The whole road against transformers: every case of tests/reference is imported, compiled, bound and run; logits,
 * chosen experts, gates and greedy continuations must be those of the reference, from the compiled model, the
 * executable and the interpreter alike. The figures are printed. */
#define _GNU_SOURCE
#include "codegen/ref/interp.h"
#include "driver/unit.h"
#include "tests/support/plain_weights.h"
#include "tests/unit/truth_rig.h"

static const double max_logit_error = 1e-5;

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
