/* sdpa_grad, and attention over keys and values that no state holds, on the CPU backend against the interpreter. */
#include "tests/unit/cpu_pair.h"

typedef struct shape {
    int64_t B, S, H, KV, h, hv;
    const char *attributes;
} shape;

static const shape shapes[] = {
    {1, 1, 1, 1, 1, 1, ""},
    {2, 17, 4, 2, 6, 6, ""},
    {3, 5, 6, 1, 2, 3, ""},
    {1, 0, 4, 2, 8, 8, ""},
    {0, 9, 4, 2, 8, 8, ""},
    {2, 100, 6, 2, 20, 11, ""},
    {1, 70, 3, 3, 32, 32, ", causal = false"},
    {1, 130, 8, 2, 32, 32, ", window = 19"},
    {2, 60, 4, 4, 33, 17, ", chunk = 16"},
    {1, 110, 4, 1, 16, 40, ", chunk = 50, window = 20"},
    {2, 50, 4, 2, 32, 24, ", softcap = 3.0"},
    {1, 101, 2, 1, 96, 96, ", softcap = 2.0, window = 50"},
    {1, 65, 2, 2, 192, 128, ""},
    {1, 1100, 1, 1, 8, 8, ""}, /* more keys than are kept */
    {1, 1060, 1, 1, 6, 5, ", softcap = 4.0"},
    {1, 40, 5, 1, 64, 64, ", causal = false, window = 7"},
    {5, 33, 2, 1, 16, 16, ", causal = false, softcap = 1.0"},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void
inputs_of(pair *p, const shape *s, mc_ref_tensor *inputs)
{
    const int64_t q[] = {s->B, s->S, s->H, s->h}, k[] = {s->B, s->S, s->KV, s->h}, v[] = {s->B, s->S, s->KV, s->hv};
    const int64_t dy[] = {s->B, s->S, s->H, s->hv};
    pair_normal(p, &inputs[0], q, 4, 1);
    pair_normal(p, &inputs[1], k, 4, 1);
    pair_normal(p, &inputs[2], v, 4, 1);
    pair_normal(p, &inputs[3], dy, 4, 1);
}

START_TEST(derivatives_of_attention)
{
    const shape *s = &shapes[_i];
    int H = (int)s->H, KV = (int)s->KV, h = (int)s->h, hv = (int)s->hv;
    char text[2048], type[4][64];
    snprintf(type[0], sizeof type[0], "f32[B, S, %d, %d]", H, h);
    snprintf(type[1], sizeof type[1], "f32[B, S, %d, %d]", KV, h);
    snprintf(type[2], sizeof type[2], "f32[B, S, %d, %d]", KV, hv);
    snprintf(type[3], sizeof type[3], "f32[B, S, %d, %d]", H, hv);
    snprintf(text, sizeof text,
             "moir 1 stage=tensor\n"
             "dim B in 0..64\n"
             "dim S in 0..4096\n"
             "model @m(%%q: %s, %%k: %s, %%v: %s, %%dy: %s) -> (%s, %s, %s, %s) {\n"
             "  %%o = sdpa %%q, %%k, %%v {scale = %g%s} : %s\n"
             "  %%dq, %%dk, %%dv = sdpa_grad %%q, %%k, %%v, %%dy {scale = %g%s} : %s, %s, %s\n"
             "  return %%o, %%dq, %%dk, %%dv\n"
             "}\n",
             type[0], type[1], type[2], type[3], type[3], type[0], type[1], type[2], 1 / sqrt((double)h), s->attributes,
             type[3], 1 / sqrt((double)h), s->attributes, type[0], type[1], type[2]);
    mc_ref_tensor inputs[4];
    pair p;
    pair_open(&p, (uint64_t)_i);
    inputs_of(&p, s, inputs);
    pair_check(&p, text, inputs, MC_TOL_ATTENTION);
    pair_close(&p);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("cpu_grad_attention");
    TCase *t = tcase_create("cpu_grad_attention");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, derivatives_of_attention, 0, N_SHAPES);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
