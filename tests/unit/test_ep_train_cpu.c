/* Training on several ranks, as threads: in strict order results, losses, loads and every gradient have the bits of one
 * rank; in tree order moec_train_reduce makes gradients that are near them, and the same everywhere. */
#include "moec/moec.h"
#include "tests/support/play.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PARAMS = 64, MAX_TENSORS = 16 };

/* Most of the time goes to LLVM, which the sanitizers slow down: they see every third case. */
#if defined(__SANITIZE_ADDRESS__)
enum { EVERY = 3 };
#else
enum { EVERY = 1 };
#endif

static const struct text {
    const char *name, *text;
    const char *axis; /* what is shared out */
    int64_t total;    /* divides by 4 */
    int64_t other;    /* S */
} texts[] = {
    {"plain",
     "model m(x: f32[T, 24]) -> f32[T, 24] {\n  return x + moe@ffn(rmsnorm@n(x)) {\n"
     "    route linear@r | softmax | top 2 | renorm\n    experts 8 of swiglu(20)\n    shared 1 of swiglu(12)\n  }\n}\n"
     "train { aux switch; z 1e-3 }",
     "T", 24, 0},
    {"bias",
     "model m(x: f32[T, 24]) -> f32[T, 24] {\n  return x + moe@ffn(x) {\n"
     "    route linear(bias = true) | sigmoid | top 3 | renorm\n    experts 8 of mlp(20, bias = true)\n  }\n}\n",
     "T", 16, 0},
    {"capacity",
     "model m(x: f32[T, 24]) -> f32[T, 24] {\n  return x + moe@ffn(x) {\n"
     "    route linear@r | softmax | top 2\n    experts 8 of swiglu(20)\n    capacity 1.0, drop = score\n  }\n}\n"
     "train { aux switch }",
     "T", 24, 0},
    {"choice",
     "model m(x: f32[T, 24]) -> f32[T, 24] {\n  return x + moe@ffn(x) {\n"
     "    route linear@r | softmax | choose_tokens(2.0)\n    experts 8 of swiglu(20)\n  }\n}\n",
     "T", 16, 0},
    {"language",
     "param L = 2\nmodel m(tokens: i32[B, S]) -> f32[B, S, 40] {\n  x = embed@e(tokens, 40, 24)\n  repeat@layers L {\n"
     "    x = x + attention@a(rmsnorm@n(x), heads = 2, rope = rope(theta = 1e4))\n"
     "    x = x + moe@f(rmsnorm@k(x)) {\n      route linear@g | softmax | select_bias | top 2 | renorm\n"
     "      experts 8 of swiglu(20)\n      shared 1 of swiglu(20) gate linear(1) | sigmoid\n    }\n  }\n"
     "  return linear(rmsnorm@norm(x), 40, weight = @e.weight)\n}\ntrain { aux sequence; z 1e-3 }",
     "B", 8, 5},
    {"two layers",
     "param L = 2\nmodel m(x: f32[T, 24]) -> f32[T, 24] {\n  repeat@layers L {\n"
     "    x = x + moe@f(rmsnorm@k(x)) {\n      route linear@g | softmax | top 2\n      experts 8 of swiglu(20)\n    }\n"
     "    x = x + moe@h(x) { route linear@g | sigmoid | top 1\n experts 4 of mlp(12) }\n  }\n  return x\n}\n",
     "T", 16, 0},
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

static void
make(const struct text *t, const char *const *settings, size_t n_settings, bool recompute, made *out)
{
    char text[2048];
    moec_error error;
    moec_compile_options o = {.settings = settings,
                              .n_settings = n_settings,
                              .cache = "",
                              .train = true,
                              .recompute = recompute,
                              .target = "x86-64-v3",
                              .on_diagnostic = say,
                              .user = (void *)(uintptr_t)t->name};
    snprintf(text, sizeof text, "moe 1\ndim T in 1..4096\ndim B, S in 1..64\n%s\nprecision { storage f32 }\n", t->text);
    ck_assert_msg(moec_compile_text(t->name, text, strlen(text), &o, &out->compiled) == MOEC_OK, "%s", t->name);
    ck_assert_msg(moec_compiled_load(out->compiled, &out->model, &error) == MOEC_OK, "%s: %s", t->name, error.text);
}

/* ---- a step ------------------------------------------------------------------------------------------------------ */

typedef struct buffer {
    moec_tensor tensor;
    char name[64];
} buffer;

/* Everything of one forward and backward on a rank. */
typedef struct step {
    const struct text *text;
    moec_model *model;
    uint32_t number, n_numbers; /* which share of the experts */
    void *params[MAX_PARAMS];
    float *grads[MAX_PARAMS];
    size_t whole[MAX_PARAMS];                        /* the same parameter of the model for one rank */
    int64_t counts[MAX_PARAMS], experts[MAX_PARAMS]; /* experts: of the whole parameter; 0: it is not shared out */
    buffer outputs[MAX_TENSORS], input_grad;
    size_t n_params, n_outputs;
} step;

static float
number(uint32_t i)
{
    i = (i + 1) * 2654435761u;
    return (float)(int32_t)(i ^ i >> 15) * 0x1p-31f;
}

static uint32_t
seed_of(const char *path)
{
    uint32_t h = 17;
    for (; *path; path++) h = h * 31 + (unsigned char)*path;
    return h;
}

static void
make_params(step *s, const made *whole, bool zero)
{
    s->n_params = moec_train_n_params(s->model);
    ck_assert_uint_le(s->n_params, MAX_PARAMS);
    for (size_t i = 0; i < s->n_params; i++) {
        moec_param_info own, all;
        ck_assert_int_eq(moec_train_param(s->model, i, &own), MOEC_OK);
        s->whole[i] = 0;
        do ck_assert_msg(moec_train_param(whole->model, s->whole[i], &all) == MOEC_OK, "%s is new", own.path);
        while (strcmp(own.path, all.path) && ++s->whole[i]);
        int64_t n = 1, first = 0;
        for (uint32_t d = 0; d < own.rank; d++) n *= own.dims[d];
        bool shared = own.rank && own.dims[0] != all.dims[0];
        if (shared) first = n * s->number;
        s->experts[i] = shared ? all.dims[0] : 0;
        s->counts[i] = n;
        float *p = malloc((size_t)n * sizeof *p);
        s->params[i] = p;
        s->grads[i] = malloc((size_t)n * sizeof(float));
        for (int64_t k = 0; k < n; k++) {
            p[k] = 0.5f * number(seed_of(own.path) + (uint32_t)(first + k));
            /* gradients add to what is there; in tree order, to a part of what is added up later */
            s->grads[i][k] = zero ? 0 : number((uint32_t)(first + k));
        }
    }
}

static moec_tensor
tensor_of(const moec_tensor_info *info, int64_t rows, int64_t other)
{
    moec_tensor t = {.name = info->name, .dtype = info->dtype, .rank = info->rank};
    t.n_bytes = moec_dtype_bytes(info->dtype);
    for (uint32_t d = 0; d < info->rank; d++) {
        t.dims[d] = info->dims[d] >= 0 ? info->dims[d] : d == 0 ? rows : other;
        t.n_bytes *= (size_t)t.dims[d];
    }
    t.data = calloc(t.n_bytes + 1, 1);
    return t;
}

static void
fill_rows(moec_tensor *t, int64_t begin, uint32_t seed)
{
    size_t n = t->n_bytes / 4, per_row = t->dims[0] ? n / (size_t)t->dims[0] : 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t at = seed + (uint32_t)((size_t)begin * per_row + i);
        if (t->dtype == MOEC_I32)
            ((int32_t *)t->data)[i] = (int32_t)(at * 2654435761u >> 16) % 40;
        else
            ((float *)t->data)[i] = number(at);
    }
}

/* False: *error says why. Results stay in s. */
static bool
run(step *s, moec_comm *comm, int64_t begin, int64_t rows, moec_error *error)
{
    moec_limit limits[2] = {{s->text->axis, rows}, {"S", s->text->other}};
    moec_train_sizes sizes;
    moec_tensor_info info;
    moec_tensor cotangents[MAX_TENSORS] = {{0}}, outputs[MAX_TENSORS];
    if (moec_train_query(s->model, limits, s->text->other ? 2 : 1, 1, &sizes, error) != MOEC_OK) return false;
    ck_assert_int_eq(moec_model_input(s->model, 0, &info), MOEC_OK);
    moec_tensor in = tensor_of(&info, rows, s->text->other);
    fill_rows(&in, begin, 5);
    bool differentiable = moec_train_input_has_gradient(s->model, 0);
    if (differentiable) s->input_grad.tensor = tensor_of(&info, rows, s->text->other);
    s->n_outputs = moec_model_n_outputs(s->model);
    for (size_t i = 0; i < s->n_outputs; i++) {
        ck_assert_int_eq(moec_model_output(s->model, i, &info), MOEC_OK);
        snprintf(s->outputs[i].name, sizeof s->outputs[i].name, "%s", info.name);
        s->outputs[i].tensor = outputs[i] = tensor_of(&info, rows, s->text->other);
        if (!moec_train_output_has_gradient(s->model, i)) continue;
        cotangents[i] = tensor_of(&info, rows, s->text->other);
        if (info.rank)
            fill_rows(&cotangents[i], begin, 77 + (uint32_t)i);
        else
            *(float *)cotangents[i].data = 0.25f;
    }
    void *saved = aligned_alloc(64, (sizes.saved_bytes + 63) / 64 * 64 + 64);
    void *workspace = aligned_alloc(64, (sizes.workspace_bytes + 63) / 64 * 64 + 64);
    moec_train_call c = {.inputs = &in,
                         .n_inputs = 1,
                         .params = s->params,
                         .saved = saved,
                         .saved_bytes = sizes.saved_bytes,
                         .workspace = workspace,
                         .workspace_bytes = sizes.workspace_bytes,
                         .outputs = outputs,
                         .n_outputs = s->n_outputs,
                         .cotangents = cotangents,
                         .n_cotangents = s->n_outputs,
                         .input_grads = differentiable ? &s->input_grad.tensor : NULL,
                         .n_input_grads = differentiable,
                         .param_grads = s->grads,
                         .comm = comm};
    bool ok = moec_train_forward(s->model, &c, error) == MOEC_OK && moec_train_backward(s->model, &c, error) == MOEC_OK;
    for (size_t i = 0; i < s->n_outputs; i++) free(cotangents[i].data);
    free(in.data);
    free(saved);
    free(workspace);
    return ok;
}

static void
close_step(step *s)
{
    for (size_t i = 0; i < s->n_params; i++) {
        free(s->params[i]);
        free(s->grads[i]);
    }
    for (size_t i = 0; i < s->n_outputs; i++) free(s->outputs[i].tensor.data);
    free(s->input_grad.tensor.data);
}

/* ---- ranks ------------------------------------------------------------------------------------------------------- */

typedef struct job {
    const struct text *text;
    const made *model;
    step steps[8];
    bool reduce;
} job;

static void
play_step(mc_player *p)
{
    job *j = p->context;
    moec_error error = {{0}};
    int64_t rows = j->text->total / p->n;
    step *s = &j->steps[p->rank];
    bool ok = run(s, p->comm, rows * p->rank, rows, &error);
    if (ok && j->reduce) ok = moec_train_reduce(s->model, p->comm, s->grads, &error) == MOEC_OK;
    p->status = ok ? MOEC_OK : MOEC_ERR_INTERNAL;
    snprintf(p->fault.text, sizeof p->fault.text, "%s", error.text);
}

static void
same(const char *what, const char *name, const float *got, const float *want, size_t n, double allowed)
{
    for (size_t i = 0; i < n; i++) {
        bool good = allowed > 0 ? fabs((double)got[i] - want[i]) <= allowed * (1 + fabs((double)want[i]))
                                : memcmp(&got[i], &want[i], 4) == 0;
        ck_assert_msg(good, "%s, %s: element %zu of %zu is %.9g, not %.9g", what, name, i, n, (double)got[i],
                      (double)want[i]);
    }
}

/* The rank's part of every result against the whole. */
static void
compare(const char *what, const step *s, const step *want, uint32_t rank, uint32_t n, double allowed)
{
    for (size_t i = 0; i < s->n_outputs; i++) {
        const moec_tensor *a = &s->outputs[i].tensor, *b = &want->outputs[i].tensor;
        bool rows = a->n_bytes != b->n_bytes;
        ck_assert_uint_eq(b->n_bytes, rows ? a->n_bytes * n : a->n_bytes);
        same(what, s->outputs[i].name, a->data, (float *)b->data + (rows ? rank * a->n_bytes / 4 : 0), a->n_bytes / 4,
             allowed);
    }
    const moec_tensor *dx = &s->input_grad.tensor;
    if (dx->data)
        same(what, "input gradient", dx->data, (float *)want->input_grad.tensor.data + rank * dx->n_bytes / 4,
             dx->n_bytes / 4, allowed);
    for (size_t i = 0; i < s->n_params; i++) {
        moec_param_info info;
        ck_assert_int_eq(moec_train_param(s->model, i, &info), MOEC_OK);
        same(what, info.path, s->grads[i], want->grads[s->whole[i]] + (s->experts[i] ? s->number * s->counts[i] : 0),
             (size_t)s->counts[i], allowed);
    }
}

static const struct mesh {
    const char *name;
    uint32_t n, ep;
    const char *settings[4];
} meshes[] = {
    {"ep = 2", 2, 2, {"place.mesh=ep = 2", "place.experts=over = ep", "place.tokens=over = [ep]"}},
    {"ep = 4", 4, 4, {"place.mesh=ep = 4", "place.experts=over = ep", "place.tokens=over = [ep]"}},
    {"dp = 2, ep = 2", 4, 2, {"place.mesh=dp = 2, ep = 2", "place.experts=over = ep", "place.tokens=over = [dp, ep]"}},
    {"dp = 2, ep = 1", 2, 1, {"place.mesh=dp = 2, ep = 1", "place.experts=over = ep", "place.tokens=over = [dp, ep]"}},
};

static void
ranks(const struct text *t, const struct mesh *mesh, const char *order, bool recompute, const made *whole,
      const step *want, double allowed)
{
    const char *settings[5];
    char what[96];
    size_t n = 0;
    made m;
    mc_player players[MC_MAX_PLAYERS];
    job *j = calloc(1, sizeof *j);
    for (; n < 3; n++) settings[n] = mesh->settings[n];
    if (order) settings[n++] = order;
    make(t, settings, n, recompute, &m);
    *j = (job){.text = t, .model = &m, .reduce = order != NULL};
    for (uint32_t r = 0; r < mesh->n; r++) {
        j->steps[r] = (step){.text = t, .model = m.model, .number = r % mesh->ep, .n_numbers = mesh->ep};
        make_params(&j->steps[r], whole, order != NULL);
    }
    mc_play(mesh->n, 20, play_step, j, NULL, players);
    mc_played(players, mesh->n, MOEC_OK);
    for (uint32_t r = 0; r < mesh->n; r++) {
        snprintf(what, sizeof what, "%s, %s, rank %u", t->name, mesh->name, r);
        compare(what, &j->steps[r], want, r, mesh->n, allowed);
    }
    for (uint32_t r = 0; r < mesh->n; r++) close_step(&j->steps[r]);
    moec_compiled_destroy(m.compiled);
    free(j);
}

static void
every_mesh(const struct text *t, const char *order, bool recompute, double allowed)
{
    made whole;
    moec_error error = {{0}};
    make(t, NULL, 0, recompute, &whole);
    step want = {.text = t, .model = whole.model, .n_numbers = 1};
    make_params(&want, &whole, order != NULL);
    ck_assert_msg(run(&want, NULL, 0, t->total, &error), "%s: %s", t->name, error.text);
    for (size_t i = 0; i < sizeof meshes / sizeof *meshes; i++)
        ranks(t, &meshes[i], order, recompute, &whole, &want, allowed);
    close_step(&want);
    moec_compiled_destroy(whole.compiled);
}

START_TEST(test_strict)
{
    if ((_i + 2) % EVERY == 0) every_mesh(&texts[_i], NULL, false, 0);
}
END_TEST

START_TEST(test_recompute)
{
    if ((_i + 1) % EVERY == 0) every_mesh(&texts[_i], NULL, true, 0);
}
END_TEST

START_TEST(test_tree)
{
    if ((_i + 0) % EVERY == 0) every_mesh(&texts[_i], "place.order=tree", false, 2e-5);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("ep_train");
    TCase *tc = tcase_create("ranks");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, test_strict, 0, N_TEXTS);
    tcase_add_loop_test(tc, test_recompute, 0, N_TEXTS);
    tcase_add_loop_test(tc, test_tree, 0, N_TEXTS);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
