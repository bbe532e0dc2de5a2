/* What training adds to routing, and the small derivatives beside it, on the CPU backend against the interpreter. */
#include "tests/unit/cpu_pair.h"

/* ---- routing --------------------------------------------------------------------------------------------------- */

typedef struct routing {
    int64_t B, S, k, E;
    int64_t lo; /* -1: dropped choices among the ids; ids go up to E + 2, identity experts */
} routing;

static const routing routings[] = {{2, 0, 2, 8, -1},   {1, 1, 1, 1, 0},      {3, 17, 2, 5, -1}, {1, 5, 8, 64, 0},
                                   {2, 33, 4, 17, -1}, {2, 100, 6, 130, -1}, {0, 4, 2, 8, 0}};
enum { N_ROUTINGS = sizeof routings / sizeof *routings };

static const char route_text[] =
    "moir 1 stage=tensor\n"
    "dim B in 0..64\n"
    "dim S in 0..4096\n"
    "model @m(%%w: f32[B, S, %d], %%ids: i32[B, S, %d], %%x: f32[B, S, %d], %%d: f32[]) -> "
    "(f32[B, S, %d], f32[B, S, %d], f32[2, %d]) {\n"
    "  %%a = route.scatter %%w, %%ids {experts = %d} : f32[B, S, %d]\n"
    "  %%b = route.mask %%w, %%ids {from = %d} : f32[B, S, %d]\n"
    "  %%c = moe.load %%w, %%ids {experts = %d} : f32[2, %d]\n"
    "  return %%a, %%b, %%c\n"
    "}\n";

static void
routing_inputs(pair *p, const routing *r, mc_ref_tensor *inputs)
{
    const int64_t choices[] = {r->B, r->S, r->k}, scores[] = {r->B, r->S, r->E};
    pair_normal(p, &inputs[0], choices, 3, 1);
    pair_ids(p, &inputs[1], choices, 3, r->lo, r->E + 2);
    pair_normal(p, &inputs[2], scores, 3, 3);
    pair_normal(p, &inputs[3], NULL, 0, 1);
}

START_TEST(choices_scattered_masked_counted)
{
    const routing *r = &routings[_i];
    int k = (int)r->k, n = (int)r->E;
    char text[2048];
    snprintf(text, sizeof text, route_text, k, k, n, n, k, n, n, n, n - 1, k, n, n);
    mc_ref_tensor inputs[4];
    pair p;
    pair_open(&p, (uint64_t)_i);
    routing_inputs(&p, r, inputs);
    pair_check(&p, text, inputs, MC_TOL_NORM);
    pair_close(&p);
}
END_TEST

static const char loss_text[] =
    "moir 1 stage=tensor\n"
    "dim B in 0..64\n"
    "dim S in 0..4096\n"
    "model @m(%%w: f32[B, S, %d], %%ids: i32[B, S, %d], %%x: f32[B, S, %d], %%d: f32[]) -> "
    "(f32[], f32[], f32[], f32[B, S, %d], f32[B, S, %d], f32[B, S, %d], f32[B, S, %d], f32[B, S, %d]) {\n"
    "  %%p = softmax %%x : f32[B, S, %d]\n"
    "  %%a = moe.balance %%p, %%ids : f32[]\n"
    "  %%b = moe.balance %%p, %%ids {per = \"sequence\"} : f32[]\n"
    "  %%c = moe.z_loss %%x : f32[]\n"
    "  %%e = moe.balance_grad %%ids, %%d : f32[B, S, %d]\n"
    "  %%f = moe.balance_grad %%ids, %%d {per = \"sequence\"} : f32[B, S, %d]\n"
    "  %%g = moe.z_loss_grad %%x, %%d : f32[B, S, %d]\n"
    "  %%one = const {value = 0.25} : f32[]\n"
    "  %%h = moe.balance_grad %%ids, %%one : f32[B, S, %d]\n"
    "  %%i = moe.z_loss_grad %%x, %%one : f32[B, S, %d]\n"
    "  return %%a, %%b, %%c, %%e, %%f, %%g, %%h, %%i\n"
    "}\n";

START_TEST(losses_and_their_derivatives)
{
    const routing *r = &routings[_i];
    int k = (int)r->k, n = (int)r->E;
    char text[4096];
    snprintf(text, sizeof text, loss_text, k, k, n, n, n, n, n, n, n, n, n, n, n, n);
    mc_ref_tensor inputs[4];
    pair p;
    pair_open(&p, 100 + (uint64_t)_i);
    routing_inputs(&p, r, inputs);
    pair_check(&p, text, inputs, MC_TOL_NORM);
    pair_close(&p);
}
END_TEST

/* ---- embed_dw -------------------------------------------------------------------------------------------------- */

static const struct embedding {
    int64_t n, V, D;
} embeddings[] = {{0, 5, 7}, {1, 1, 1}, {40, 11, 33}, {17, 300, 64}, {100, 3, 100}, {9, 4, 16}};

START_TEST(rows_added_to_a_table)
{
    const struct embedding *e = &embeddings[_i];
    int V = (int)e->V, D = (int)e->D;
    char text[512];
    snprintf(text, sizeof text,
             "moir 1 stage=tensor\n"
             "dim T in 0..4096\n"
             "model @m(%%ids: i32[T], %%dy: f32[T, %d]) -> (f32[%d, %d]) {\n"
             "  %%t = embed_dw %%ids, %%dy : f32[%d, %d]\n"
             "  return %%t\n"
             "}\n",
             D, V, D, V, D);
    mc_ref_tensor inputs[2];
    pair p;
    pair_open(&p, (uint64_t)_i);
    pair_ids(&p, &inputs[0], (int64_t[]){e->n}, 1, 0, e->V);
    pair_normal(&p, &inputs[1], (int64_t[]){e->n, e->D}, 2, 1);
    pair_check(&p, text, inputs, MC_TOL_MATMUL);
    pair_close(&p);
}
END_TEST

static const char gradient_text[] = "moir 1 stage=tensor\n"
                                    "dim T in 0..4096\n"
                                    "model @m(%ids: i32[T], %dy: f32[T, 37]) -> (f32[T, 37]) {\n"
                                    "  %w = weight {path = \"table\", role = \"embed\"} : f32[9, 37]\n"
                                    "  %y = embed %ids, %w : f32[T, 37]\n"
                                    "  %d = embed_dw %ids, %dy : f32[9, 37]\n"
                                    "  accumulate %d {path = \"table\"}\n"
                                    "  return %y\n"
                                    "}\n";

static bool
table_weight(void *user, const mc_ref_weight_request *request, mc_ref_tensor *out)
{
    (void)request;
    *out = *(const mc_ref_tensor *)user;
    return true;
}

/* In the buffer of a gradient rows are added to what is there; without a buffer nothing happens. */
START_TEST(rows_added_to_a_gradient)
{
    mc_ref_tensor inputs[2], table, want, y;
    pair p;
    walk w;
    pair_open(&p, 1);
    pair_ids(&p, &inputs[0], (int64_t[]){50}, 1, 0, 9);
    pair_normal(&p, &inputs[1], (int64_t[]){50, 37}, 2, 1);
    pair_normal(&p, &table, (int64_t[]){9, 37}, 2, 1);
    pair_normal(&p, &want, (int64_t[]){9, 37}, 2, 1);
    mc_module *m = mc_ir_read(&p.x, gradient_text);
    if (!m) walk_fail(&p.x.diags);
    pair_lower(&p, m, "lower-to-plan{rows=1},plan-memory");
    walk_open(&w, m, (walk_source){table_weight, &table}, &p.x.diags);
    w.cache_cap = INT32_MAX;
    uint32_t at = 0;
    while (at < w.abi->n_weights && w.abi->weights[at].layout != MOEC_ABI_GRAD) at++;
    ck_assert_uint_lt(at, w.abi->n_weights);
    memcpy(w.weights[at], want.data, (size_t)want.n * 4);
    float *sum = want.data;
    for (int threads = 1; threads <= 3; threads++) {
        for (int64_t t = 0; t < 50; t++) {
            int64_t row = (int64_t)mc_ref_tensor_get(&inputs[0], t);
            for (int64_t i = 0; i < 37; i++) sum[row * 37 + i] += ((float *)inputs[1].data)[t * 37 + i];
        }
        w.n_threads = threads;
        walk_forget(&w);
        walk_run(&w, inputs, p.x.arena, &y);
        ck_assert_mem_eq(w.weights[at], want.data, (size_t)want.n * 4);
    }
    mc_poisoned_free(w.weights[at]);
    w.weights[at] = NULL;
    walk_run(&w, inputs, p.x.arena, &y);
    walk_close(&w);
    pair_close(&p);
}
END_TEST

/* ---- rope ------------------------------------------------------------------------------------------------------ */

static const char *const rotations[] = {
    "theta = 10000.0",
    "theta = 500000.0, adjacent = true",
    "theta = 10000.0, dims = 6",
    "theta = 10000.0, dims = 10, adjacent = true",
    "theta = 10000.0, scaling = \"linear\", args = [4.0]",
    "theta = 10000.0, scaling = \"llama3\", args = [8.0, 1.0, 4.0, 64.0]",
    "theta = 10000.0, scaling = \"yarn\", args = [4.0, 64.0, 32.0, 1.0, 0.0, 0.0, 1.0, 0.0]",
};
enum { N_ROTATIONS = sizeof rotations / sizeof *rotations };

START_TEST(rotations_both_ways)
{
    char text[1024];
    snprintf(text, sizeof text,
             "moir 1 stage=tensor\n"
             "dim B in 0..64\n"
             "dim S in 0..4096\n"
             "model @m(%%x: f32[B, S, 3, 22]) -> (f32[B, S, 3, 22], f32[B, S, 3, 22]) {\n"
             "  %%a = rope %%x {%s} : f32[B, S, 3, 22]\n"
             "  %%b = rope %%x {%s, inverse = true} : f32[B, S, 3, 22]\n"
             "  return %%a, %%b\n"
             "}\n",
             rotations[_i], rotations[_i]);
    mc_ref_tensor x;
    pair p;
    pair_open(&p, (uint64_t)_i);
    pair_normal(&p, &x, (int64_t[]){2, 19, 3, 22}, 4, 1);
    pair_check(&p, text, &x, MC_TOL_NORM);
    pair_close(&p);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("cpu_grad_route");
    TCase *t = tcase_create("cpu_grad_route");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, choices_scattered_masked_counted, 0, N_ROUTINGS);
    tcase_add_loop_test(t, losses_and_their_derivatives, 0, N_ROUTINGS);
    tcase_add_loop_test(t, rows_added_to_a_table, 0, sizeof embeddings / sizeof *embeddings);
    tcase_add_test(t, rows_added_to_a_gradient);
    tcase_add_loop_test(t, rotations_both_ways, 0, N_ROTATIONS);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
