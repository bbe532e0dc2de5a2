/* Models on several ranks, as threads: in strict order every result has the bits of one rank, whatever the mesh, the
 * way of the rows, the layout of the experts and the number of tokens of each rank (none, too). Weights are synthetic:
 * those of an expert are the same on whatever rank it lies. */
#include "moec/moec.h"
#include "tests/support/play.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 64, MAX_FLOATS = 1 << 17 };

/* Most of the time goes to LLVM, which the sanitizers slow down: they see every third case. */
#if defined(__SANITIZE_ADDRESS__)
enum { EVERY = 3 };
#else
enum { EVERY = 1 };
#endif

static const struct text {
    const char *name, *body;
    const char *sized; /* precision and the like after the model */
} texts[] = {
    {"plain", "route linear@r | softmax | top 2 | renorm\n experts 8 of swiglu(20)", ""},
    {"shared",
     "route linear@r | sigmoid | top 3 | renorm | scale 2.5\n experts 8 of swiglu(20)\n shared 1 of swiglu(28)", ""},
    {"bias", "route linear(bias = true) | temperature 0.7 | softmax | top 2\n experts 8 of mlp(24)", ""},
    {"tail", "route linear@r | softmax | top 2\n experts 8 of swiglu(20)\n capacity 1.0, drop = tail", ""},
    {"score", "route linear@r | softmax | top 2\n experts 8 of swiglu(20)\n capacity 0.75, per = slot, drop = score",
     ""},
    {"choice", "route linear@r | softmax | choose_tokens(2.0)\n experts 8 of swiglu(20, act = gelu)", ""},
    {"grouped", "route linear@r | sigmoid | groups(4, keep = 2) | top 2 | renorm\n experts 8 of swiglu(20)", ""},
    {"fp8", "route linear@r | softmax | top 2\n experts 8 of swiglu(20)",
     "precision { storage bf16; fp8 e4m3, block = [128, 128], on = [experts] }"},
    {"input", "route linear@r | top 1 | sigmoid | on_input\n experts 8 of swiglu(20)", ""},
    {"hashed",
     "route linear | hash(tables = 2, buckets = 4, bucket_size = 3) | top 2 | softmax\n experts 8 of mlp(12)\n"
     " shared 1 of mlp(4)",
     ""},
    {"identity", "route linear | softmax | top 3\n experts 8 of mlp(12)\n identity 4", ""},
    {"latent", "route linear | softmax | top 2\n experts 8 of swiglu(12)\n latent 16, norm = rmsnorm", ""},
};
enum { N_TEXTS = sizeof texts / sizeof *texts };

typedef struct made {
    moec_compiled *compiled;
    moec_model *model;
} made;

static void
say(void *user, const moec_diagnostic *d)
{
    if (d->severity == MOEC_SEVERITY_ERROR) printf("%s: %s", (const char *)user, d->rendered);
}

static bool
make(const char *name, const char *text, const char *const *settings, size_t n_settings, const char *pipeline,
     made *out)
{
    moec_error error;
    moec_compile_options o = {.settings = settings,
                              .n_settings = n_settings,
                              .pipeline = pipeline,
                              .cache = "",
                              .target = "x86-64-v3",
                              .on_diagnostic = say,
                              .user = (void *)(uintptr_t)name};
    if (moec_compile_text(name, text, strlen(text), &o, &out->compiled) != MOEC_OK) return false;
    ck_assert_msg(moec_compiled_load(out->compiled, &out->model, &error) == MOEC_OK, "%s: %s", name, error.text);
    return true;
}

static void
write_text(const struct text *t, char *out, size_t n)
{
    snprintf(out, n,
             "moe 1\ndim T in 1..4096\nmodel m(x: f32[T, 24]) -> f32[T, 24] {\n"
             "  return x + moe@ffn(x) {\n %s\n }\n}\n%s\n",
             t->body, t->sized);
}

static float
number(uint32_t i)
{
    i = (i + 1) * 2654435761u;
    return (float)(int32_t)(i ^ i >> 15) * 0x1p-31f;
}

/* Rows begin..begin+n-1 of the input go through a session of its own; false: *error says why. */
static bool
run_rows(const made *m, moec_comm *comm, int64_t begin, int64_t n, uint32_t n_threads, float *out, moec_error *error)
{
    static const moec_limit most = {"T", MAX_ROWS};
    moec_weights *weights = NULL;
    moec_session *session = NULL;
    float *x = malloc((size_t)(n + 1) * 24 * sizeof *x);
    for (int64_t i = 0; i < n * 24; i++) x[i] = number((uint32_t)(begin * 24 + i));
    moec_session_options o = {.n_threads = n_threads, .limits = &most, .n_limits = 1, .comm = comm};
    moec_tensor in = {.dtype = MOEC_F32, .rank = 2, .dims = {n, 24}, .data = x, .n_bytes = (size_t)n * 24 * 4};
    moec_tensor y = {.data = out, .n_bytes = MAX_FLOATS * sizeof *out};
    bool ok = moec_weights_synthetic(m->model, comm, &weights, error) == MOEC_OK &&
              moec_session_create(m->model, weights, &o, &session, error) == MOEC_OK;
    for (int again = 0; ok && again < 2; again++) ok = moec_session_run(session, &in, 1, &y, 1, error) == MOEC_OK;
    moec_session_destroy(session);
    moec_weights_close(weights);
    free(x);
    return ok;
}

typedef struct job {
    const made *model;
    int64_t rows[MC_MAX_PLAYERS], begin[MC_MAX_PLAYERS];
    uint32_t n_threads;
    float *out; /* of all rows */
} job;

static void
play_rows(mc_player *p)
{
    job *j = p->context;
    moec_error error = {{0}};
    float *out = malloc(MAX_FLOATS * sizeof *out);
    bool ok = run_rows(j->model, p->comm, j->begin[p->rank], j->rows[p->rank], j->n_threads, out, &error);
    p->status = ok ? MOEC_OK : MOEC_ERR_INTERNAL;
    snprintf(p->fault.text, sizeof p->fault.text, "%s", error.text);
    if (ok) memcpy(j->out + j->begin[p->rank] * 24, out, (size_t)j->rows[p->rank] * 24 * sizeof *out);
    free(out);
}

/* How `total` rows fall to ranks: evenly, all to the last, or by a draw. */
static void
share(job *j, uint32_t n, int64_t total, uint32_t how)
{
    int64_t at = 0;
    for (uint32_t r = 0; r < n; r++) {
        int64_t left = total - at;
        j->begin[r] = at;
        j->rows[r] = how == 0 ? total * (r + 1) / n - at : how == 1 ? 0 : left * ((how * 7 + r * 5) % 4) / 4;
        if (r == n - 1) j->rows[r] = left;
        at += j->rows[r];
    }
}

static const struct mesh {
    const char *mesh;
    uint32_t n;
} meshes[] = {{"ep = 2", 2}, {"ep = 4", 4}, {"dp = 2, ep = 2", 4}, {"dp = 3, ep = 1", 3}, {"ep = 1", 1}};

static const char *const exchanges[] = {"expert", "rank", "node"};

/* Settings of a mesh; the number of them. */
static size_t
settings_of(char text[][64], const char **out, const char *mesh, const char *exchange, bool round_robin,
            const char *order)
{
    size_t n = 0;
    bool two = strstr(mesh, "dp") != NULL;
    snprintf(text[n++], 64, "place.mesh=%s", mesh);
    snprintf(text[n++], 64, "place.experts=over = ep");
    snprintf(text[n++], 64, "place.tokens=over = %s", two ? "[dp, ep]" : "[ep]");
    if (exchange) snprintf(text[n++], 64, "place.exchange=%s", exchange);
    if (exchange && strcmp(exchange, "node") == 0) snprintf(text[n++], 64, "place.nodes=2"); /* of ep = 4 */
    if (round_robin) snprintf(text[n++], 64, "place.layout=round_robin");
    if (order) snprintf(text[n++], 64, "place.order=%s", order);
    for (size_t i = 0; i < n; i++) out[i] = text[i];
    return n;
}

static void
one_rank(const char *name, const char *text, const char *pipeline, int64_t total, float *out)
{
    moec_error error = {{0}};
    made m;
    ck_assert(make(name, text, NULL, 0, pipeline, &m));
    ck_assert_msg(run_rows(&m, NULL, 0, total, 1, out, &error), "%s: %s", name, error.text);
    moec_compiled_destroy(m.compiled);
}

static void
compare(const char *name, const struct mesh *mesh, const char *text, const char *const *settings, size_t n_settings,
        const char *pipeline, int64_t total, const float *want, float *got, double allowed)
{
    made m;
    mc_player players[MC_MAX_PLAYERS];
    ck_assert_msg(make(name, text, settings, n_settings, pipeline, &m), "%s, %s", name, mesh->mesh);
    for (uint32_t how = 0; how < 4; how++) {
        job j = {.model = &m, .n_threads = 1 + how % 2, .out = got};
        share(&j, mesh->n, total, how);
        memset(got, 0, (size_t)total * 24 * sizeof *got);
        mc_play(mesh->n, 20, play_rows, &j, NULL, players);
        mc_played(players, mesh->n, MOEC_OK);
        for (int64_t i = 0; i < total * 24; i++) {
            bool same = allowed > 0 ? fabs((double)got[i] - want[i]) <= allowed : memcmp(&got[i], &want[i], 4) == 0;
            ck_assert_msg(same, "%s, %s, shares %u: row %lld: %.9g, not %.9g", name, mesh->mesh, how, (long long)i / 24,
                          (double)got[i], (double)want[i]);
        }
    }
    moec_compiled_destroy(m.compiled);
}

/* Weights are made up by their place in the packed table, which is another one without fusion. */
static const char *const pipelines[] = {NULL, "@unfused"};

START_TEST(test_strict)
{
    if (_i % EVERY) return;
    const struct text *t = &texts[_i / 2];
    const char *pipeline = pipelines[_i % 2];
    char text[2048], lines[8][64];
    const char *settings[8];
    float *want = malloc(MAX_FLOATS * sizeof *want), *got = malloc(MAX_FLOATS * sizeof *got);
    write_text(t, text, sizeof text);
    one_rank(t->name, text, pipeline, 23, want);
    for (size_t i = 0; i < sizeof meshes / sizeof *meshes; i++) {
        bool nodes = strcmp(meshes[i].mesh, "ep = 4") == 0;
        if (((size_t)_i + (size_t)_i / 2 + i) % 2) continue; /* the other ones with the other pipeline */
        const char *exchange = exchanges[((size_t)_i / 2 + i) % (nodes ? 3 : 2)];
        size_t n = settings_of(lines, settings, meshes[i].mesh, exchange, (size_t)_i / 2 % 2 == i % 2, NULL);
        compare(t->name, &meshes[i], text, settings, n, pipeline, 23, want, got, 0);
    }
    free(want);
    free(got);
}
END_TEST

/* The program for ranks on a rank that is alone, without a group. */
START_TEST(test_alone)
{
    if (_i % EVERY) return;
    static const char pipeline[] =
        "expand-moe,canonicalize,cse,dce,absorb-mla,fuse-moe,carve-fp8,dce,plan-ep{single=1},"
        "lower-to-plan,plan-memory";
    char text[2048];
    float *want = malloc(MAX_FLOATS * sizeof *want), *got = malloc(MAX_FLOATS * sizeof *got);
    write_text(&texts[_i], text, sizeof text);
    one_rank(texts[_i].name, text, NULL, 23, want);
    one_rank(texts[_i].name, text, pipeline, 23, got);
    ck_assert_mem_eq(got, want, 23 * 24 * sizeof *want);
    free(want);
    free(got);
}
END_TEST

/* Another order of additions: near, and the same for every run. */
START_TEST(test_tree)
{
    if (_i % EVERY) return;
    const struct text *t = &texts[_i];
    char text[2048], lines[8][64];
    const char *settings[8];
    float *want = malloc(MAX_FLOATS * sizeof *want), *got = malloc(MAX_FLOATS * sizeof *got);
    write_text(t, text, sizeof text);
    one_rank(t->name, text, NULL, 23, want);
    size_t n = settings_of(lines, settings, "ep = 4", exchanges[1 + _i % 2], false, "tree");
    compare(t->name, &meshes[1], text, settings, n, NULL, 23, want, got, 1e-5);
    free(want);
    free(got);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("ep_models");
    TCase *tc = tcase_create("ranks");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, test_strict, 0, 2 * N_TEXTS);
    tcase_add_loop_test(tc, test_tree, 0, N_TEXTS);
    tcase_add_loop_test(tc, test_alone, 0, N_TEXTS);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
