/* The reference checkpoints of transformers on the GPU backend, without a GPU: compiled for sm_80 with the fake NVRTC,
 * run in sessions on the fake driver (tests/gpu/README.md). Logits of a prompt at once, in chunks and token by token
 * must be those of the reference; so must the greedy continuation. With operands of 16 bits a token near the border
 * between two experts may choose the other one, so only the whole is compared. The figures are printed. */
#define _GNU_SOURCE
#include "tests/unit/truth_rig.h"

static const double max_error_f32 = 2e-5, max_norm_narrow = 2e-2;
static const char *const compute_f32 = "precision.compute=f32";

static void
gpu_subject_open(subject *s, const char *name, bool in_f32)
{
    moec_compile_options options = {.gpu = "sm_80", .settings = &compute_f32, .n_settings = in_f32};
    subject_open_with(s, name, options);
    ck_assert_msg(moec_gpu_open(0, &s->gpu, &s->error) == MOEC_OK, "%s", s->error.text);
}

/* |a - b| / |b| */
static double
norm_error(const float *a, const float *b, int64_t n)
{
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(difference / norm);
}

static double
worst_of_length(subject *s, const char *length, bool in_f32)
{
    double allowed = in_f32 ? max_error_f32 : max_norm_narrow;
    mc_npy ids = read_npy(s->name, "ids", length), want = read_npy(s->name, "logits", length);
    int64_t steps[] = {ids.dims[1], 3, 1};
    double worst = 0;
    for (int i = 0; i < 3; i++) {
        if (i && ids.dims[1] > 7) continue;
        float *got = logits_of(s, &ids, 0, steps[i]);
        double error = (in_f32 ? relative_error : norm_error)(got, as_floats(&want), count(&want));
        ck_assert_msg(error <= allowed, "%s, T = %s, %d at once: relative error %.3g", s->name, length, (int)steps[i],
                      error);
        if (error > worst) worst = error;
        free(got);
    }
    mc_npy_fini(&ids);
    mc_npy_fini(&want);
    return worst;
}

static void
check_logits(const char *name, bool in_f32)
{
    subject s;
    gpu_subject_open(&s, name, in_f32);
    double worst = 0;
    for (int i = 0; i < N_LENGTHS; i++) {
        double error = worst_of_length(&s, lengths[i], in_f32);
        if (error > worst) worst = error;
    }
    printf("%-24s GPU, %s logits within %.2g\n", s.name, in_f32 ? "in f32    " : "as written", worst);
    subject_close(&s);
}

START_TEST(test_logits)
{
    check_logits(cases[_i / 2], _i % 2);
}
END_TEST

START_TEST(test_greedy)
{
    subject s;
    gpu_subject_open(&s, cases[_i], true);
    mc_npy want = read_npy(s.name, "greedy", "");
    const int32_t *ids = as_ids(&want);
    moec_session *session = open_session(&s, 0);
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

int
main(void)
{
    setenv("MOEC_NVRTC", FAKE_NVRTC, 1);
    setenv("MOEC_CUDA_DRIVER", FAKE_CUDA, 1);
    Suite *suite = suite_create("gpu truth");
    TCase *tests = tcase_create("reference checkpoints");
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, test_logits, 0, 2 * N_CASES);
    tcase_add_loop_test(tests, test_greedy, 0, N_CASES);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
