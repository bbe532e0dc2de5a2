/* A rank that dies, stops, fails or sends other sizes at the n-th exchange of a model's step, for every n: training and
 * inference on ranks that are threads. Every survivor is told in time which operation, peer and step it was; parameters
 * and histories are those of the last completed step, and nothing with that comm waits again. */
#define _POSIX_C_SOURCE 200809L
#include "driver/train/train_ranks.h"
#include "moec/moec.h"
#include "runtime/base/clock.h"
#include "tests/support/play.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_PARAMS = 32, BATCH = 2, LENGTH = 3, WIDTH = 40, ROUNDS = 2, POSITIONS = 8 };

static const double deadline = 0.25, at_once = 5; /* at_once: on a machine that is busy with other things */

static const char language[] =
    "moe 1\ndim B, S in 1..64\nmodel m(tokens: i32[B, S]) -> f32[B, S, 40] {\n  x = embed@e(tokens, 40, 24)\n"
    "  x = x + attention@a(rmsnorm@n(x), heads = 2, rope = rope(theta = 1e4))\n"
    "  x = x + moe@f(rmsnorm@k(x)) {\n    route linear@g | softmax | select_bias | top 2 | renorm\n"
    "    experts 8 of swiglu(12)\n    shared 1 of swiglu(12)\n  }\n"
    "  return linear(rmsnorm@norm(x), 40, weight = @e.weight)\n}\ntrain { aux sequence; z 1e-3 }\n"
    "precision { storage f32 }\n";

static const struct mesh {
    const char *name;
    uint32_t n;
    const char *settings[4];
} meshes[] = {
    {"ep = 2", 2, {"place.mesh=ep = 2", "place.experts=over = ep", "place.tokens=over = [ep]", "place.order=strict"}},
    {"dp = 2, ep = 2, tree",
     4,
     {"place.mesh=dp = 2, ep = 2", "place.experts=over = ep", "place.tokens=over = [dp, ep]", "place.order=tree"}},
};
enum { N_MESHES = sizeof meshes / sizeof *meshes };

static void
say(void *user, const moec_diagnostic *d)
{
    (void)user;
    if (d->severity == MOEC_SEVERITY_ERROR) printf("%s", d->rendered);
}

typedef struct game {
    const struct mesh *mesh;
    moec_compiled *compiled;
    moec_model *model;
    uint32_t begun[MC_MAX_PLAYERS]; /* exchanges of each rank */
} game;

static void
prepare(game *g, const struct mesh *mesh, bool train)
{
    moec_error error;
    moec_compile_options o = {.settings = mesh->settings,
                              .n_settings = 4,
                              .cache = "",
                              .train = train,
                              .target = "x86-64-v3",
                              .on_diagnostic = say};
    *g = (game){.mesh = mesh};
    ck_assert(moec_compile_text("language", language, sizeof language - 1, &o, &g->compiled) == MOEC_OK);
    ck_assert_msg(moec_compiled_load(g->compiled, &g->model, &error) == MOEC_OK, "%s", error.text);
}

/* The same error again, without any waiting. */
static void
again(mc_player *p, const char *what, moec_status s, const moec_error *error, double begin)
{
    if (s != p->status || strcmp(error->text, p->fault.text) != 0)
        mc_wrong(p, "%s then: %s: %.150s", what, moec_status_name(s), error->text);
    if (mc_seconds() - begin > deadline) mc_wrong(p, "%s then took %.2f s", what, mc_seconds() - begin);
}

static void
ended(mc_player *p, moec_status s, const moec_error *error)
{
    game *g = p->context;
    p->status = s;
    p->seconds = mc_seconds() - p->seconds;
    if (s != MOEC_OK) snprintf(p->fault.text, sizeof p->fault.text, "%s", error->text);
    g->begun[p->rank] = mc_comm_begun(p->comm);
}

/* ---- training ---------------------------------------------------------------------------------------------------- */

static moec_tensor
of(const moec_tensor_info *info)
{
    const int64_t sizes[] = {BATCH, LENGTH, WIDTH};
    moec_tensor t = {.name = info->name, .dtype = info->dtype, .rank = info->rank};
    t.n_bytes = moec_dtype_bytes(info->dtype);
    for (uint32_t d = 0; d < info->rank; d++) {
        t.dims[d] = info->dims[d] >= 0 ? info->dims[d] : sizes[d];
        t.n_bytes *= (size_t)t.dims[d];
    }
    t.data = calloc(t.n_bytes + 64, 1);
    return t;
}

typedef struct trainee {
    moec_train_call call;
    moec_tensor outputs[8], cotangents[8], input;
    void *params[MAX_PARAMS];
    float *grads[MAX_PARAMS];
    size_t n_bytes[MAX_PARAMS], n_params;
} trainee;

static float
value_of(size_t param, size_t i)
{
    return (float)((param * 131 + i * 37) % 101) / 101 - 0.5f;
}

static void
open_trainee(trainee *t, mc_player *p)
{
    const moec_model *model = ((game *)p->context)->model;
    moec_limit limits[] = {{"B", BATCH}, {"S", LENGTH}};
    moec_train_sizes sizes;
    moec_tensor_info info;
    moec_error error;
    if (moec_train_query(model, limits, 2, 1, &sizes, &error) != MOEC_OK) mc_wrong(p, "%.200s", error.text);
    if (moec_model_input(model, 0, &info) != MOEC_OK) mc_wrong(p, "no input");
    t->input = of(&info);
    for (int32_t i = 0; i < BATCH * LENGTH; i++)
        ((int32_t *)t->input.data)[i] = (i * 7 + (int32_t)p->rank * 11) % WIDTH;
    size_t n = moec_model_n_outputs(model);
    for (size_t i = 0; i < n; i++) {
        if (moec_model_output(model, i, &info) != MOEC_OK) mc_wrong(p, "no output");
        t->outputs[i] = of(&info);
        if (!moec_train_output_has_gradient(model, i)) continue;
        t->cotangents[i] = of(&info);
        for (size_t k = 0; k < t->cotangents[i].n_bytes / 4; k++) ((float *)t->cotangents[i].data)[k] = 0.1f;
    }
    t->n_params = moec_train_n_params(model);
    for (size_t i = 0; i < t->n_params; i++) {
        moec_param_info param;
        if (moec_train_param(model, i, &param) != MOEC_OK) mc_wrong(p, "no parameter");
        t->n_bytes[i] = sizeof(float);
        for (uint32_t d = 0; d < param.rank; d++) t->n_bytes[i] *= (size_t)param.dims[d];
        float *values = t->params[i] = malloc(t->n_bytes[i]);
        for (size_t k = 0; k < t->n_bytes[i] / 4; k++) values[k] = value_of(i, k);
        t->grads[i] = calloc(t->n_bytes[i], 1);
    }
    t->call = (moec_train_call){.inputs = &t->input,
                                .n_inputs = 1,
                                .params = t->params,
                                .saved = aligned_alloc(64, (sizes.saved_bytes + 127) / 64 * 64),
                                .saved_bytes = sizes.saved_bytes,
                                .workspace = aligned_alloc(64, (sizes.workspace_bytes + 127) / 64 * 64),
                                .workspace_bytes = sizes.workspace_bytes,
                                .outputs = t->outputs,
                                .n_outputs = n,
                                .cotangents = t->cotangents,
                                .n_cotangents = n,
                                .param_grads = t->grads,
                                .comm = p->comm};
}

static void
close_trainee(trainee *t)
{
    for (size_t i = 0; i < t->call.n_outputs; i++) {
        free(t->outputs[i].data);
        free(t->cotangents[i].data);
    }
    for (size_t i = 0; i < t->n_params; i++) {
        free(t->params[i]);
        free(t->grads[i]);
    }
    free(t->input.data);
    free(t->call.saved);
    free(t->call.workspace);
}

static void
play_training(mc_player *p)
{
    const moec_model *model = ((game *)p->context)->model;
    trainee *t = calloc(1, sizeof *t);
    moec_error error = {{0}}, then = {{0}};
    open_trainee(t, p);
    p->seconds = mc_seconds();
    moec_status s = moec_train_forward(model, &t->call, &error);
    bool forward = s == MOEC_OK;
    if (s == MOEC_OK) s = moec_train_backward(model, &t->call, &error);
    if (s == MOEC_OK) s = moec_train_reduce(model, p->comm, t->grads, &error);
    ended(p, s, &error);
    for (size_t i = 0; i < t->n_params; i++)
        for (size_t k = 0; k < t->n_bytes[i] / 4; k++)
            if (((float *)t->params[i])[k] != value_of(i, k)) mc_wrong(p, "parameter %zu is another", i);
    if (s != MOEC_OK) {
        double begin = mc_seconds();
        again(p, "forward", moec_train_forward(model, &t->call, &then), &then, begin);
        begin = mc_seconds();
        if (forward) again(p, "backward", moec_train_backward(model, &t->call, &then), &then, begin);
        begin = mc_seconds();
        if (strstr(((game *)p->context)->mesh->name, "tree"))
            again(p, "reduce", moec_train_reduce(model, p->comm, t->grads, &then), &then, begin);
    }
    close_trainee(t);
    free(t);
}

/* ---- inference --------------------------------------------------------------------------------------------------- */

static moec_status
take_step(moec_session *session, uint32_t rank, int64_t n, moec_error *error)
{
    int32_t ids[BATCH * LENGTH];
    float logits[BATCH * LENGTH * WIDTH];
    for (int32_t i = 0; i < BATCH * n; i++) ids[i] = (i * 5 + (int32_t)rank * 3) % WIDTH;
    moec_tensor in = {
        .dtype = MOEC_I32, .rank = 2, .dims = {BATCH, n}, .data = ids, .n_bytes = (size_t)(BATCH * n) * 4};
    moec_tensor out = {.data = logits, .n_bytes = sizeof logits};
    return moec_session_run(session, &in, 1, &out, 1, error);
}

static void
play_inference(mc_player *p)
{
    const moec_model *model = ((game *)p->context)->model;
    moec_weights *weights = NULL;
    moec_session *session = NULL;
    moec_error error = {{0}}, then = {{0}};
    int64_t past = 0;
    moec_session_options o = {.n_threads = 1 + p->rank % 2,
                              .max_batch = BATCH,
                              .max_positions = POSITIONS,
                              .max_new = LENGTH,
                              .comm = p->comm};
    moec_status s = moec_weights_synthetic(model, p->comm, &weights, &error);
    p->seconds = mc_seconds();
    if (s == MOEC_OK) s = moec_session_create(model, weights, &o, &session, &error);
    for (int i = 0; s == MOEC_OK && i < ROUNDS; i++) {
        int64_t n = i == 0 ? LENGTH : 1;
        s = take_step(session, p->rank, n, &error);
        if (s == MOEC_OK) past += n;
    }
    ended(p, s, &error);
    if (session && moec_session_past(session) != past)
        mc_wrong(p, "%lld positions, not %lld", (long long)moec_session_past(session), (long long)past);
    double begin = mc_seconds();
    if (session && s != MOEC_OK) {
        again(p, "a step", take_step(session, p->rank, 1, &then), &then, begin);
        if (moec_session_past(session) != past) mc_wrong(p, "a step that failed left a position");
    }
    moec_session *other = NULL;
    begin = mc_seconds();
    if (s != MOEC_OK && weights) {
        again(p, "a session", moec_session_create(model, weights, &o, &other, &then), &then, begin);
        if (other) mc_wrong(p, "there is a session of a broken comm");
    }
    moec_session_destroy(session);
    moec_weights_close(weights);
}

/* ---- faults ------------------------------------------------------------------------------------------------------ */

static mc_player players[MC_MAX_PLAYERS];

/* Exchanges of the victim when nothing goes wrong. */
static uint32_t
count(game *g, mc_player_fn *fn, uint32_t victim)
{
    mc_comm_faults none[MC_MAX_PLAYERS] = {{0}};
    none[victim] = (mc_comm_faults){.kind = MC_COMM_FAILS, .at = UINT32_MAX};
    mc_play(g->mesh->n, 30, fn, g, none, players);
    mc_played(players, g->mesh->n, MOEC_OK);
    ck_assert_uint_gt(g->begun[victim], 3);
    return g->begun[victim];
}

enum { BEFORE = 0 };
static const char *const operations[] = {"the model and its greatest sizes", "ep."};

/* Where ranks agree about sizes no step has begun. */
static void
judge(const mc_player *p, uint32_t victim, uint32_t at)
{
    const char *text = p->fault.text;
    char peer[16];
    bool named = false, begun = !strstr(text, operations[BEFORE]);
    snprintf(peer, sizeof peer, "rank %u", victim);
    ck_assert_msg(p->status == MOEC_ERR_COMM || p->status == MOEC_ERR_MISMATCH, "exchange %u, rank %u: %s: %s", at,
                  p->rank, moec_status_name(p->status), text);
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        named = named || strstr(text, operations[i]) != NULL;
    ck_assert_msg(named, "exchange %u, rank %u: no operation in: %s", at, p->rank, text);
    ck_assert_msg(strstr(text, peer), "exchange %u, rank %u: not %s: %s", at, p->rank, peer, text);
    ck_assert_msg(!begun || strstr(text, " in step "), "exchange %u, rank %u: no step in: %s", at, p->rank, text);
}

/* Replicas do not talk to each other in a step of inference: the other one may go on, and hears of it later. */
static bool
apart(const game *g, mc_player_fn *fn, uint32_t rank, uint32_t victim, uint32_t at)
{
    return g->mesh->n == 4 && fn == play_inference && rank / 2 != victim / 2 && at > 1;
}

/* True when the fault was one: a rank that sends nothing sends nothing short. */
static bool
play_fault(game *g, mc_player_fn *fn, uint32_t victim, mc_comm_faults fault)
{
    mc_comm_faults faults[MC_MAX_PLAYERS] = {{0}};
    bool waits = fault.kind == MC_COMM_STOPS, harmless = fault.kind == MC_COMM_SHORT;
    faults[victim] = fault;
    mc_play(g->mesh->n, waits ? deadline : 30, fn, g, faults, players);
    for (uint32_t r = 0; r < g->mesh->n; r++) {
        ck_assert_msg(!players[r].wrong[0], "exchange %u, rank %u: %s", fault.at, r, players[r].wrong);
        harmless = harmless && players[r].status == MOEC_OK;
    }
    for (uint32_t r = 0; r < g->mesh->n && !harmless; r++) {
        if (apart(g, fn, r, victim, fault.at) && players[r].status == MOEC_OK) continue;
        if (r != victim) judge(&players[r], victim, fault.at);
        if (r == victim) ck_assert_int_ne(players[r].status, MOEC_OK);
        ck_assert_msg(players[r].seconds < (waits ? deadline + 1 : at_once), "exchange %u, rank %u: after %.2f s",
                      fault.at, r, players[r].seconds);
    }
    return !harmless;
}

static void
every_exchange(game *g, mc_player_fn *fn, mc_comm_fault_kind kind)
{
    uint32_t faulty = 0;
    for (uint32_t victim = 0; victim < g->mesh->n; victim += g->mesh->n - 1) {
        uint32_t n = count(g, fn, victim);
        for (uint32_t at = 1; at <= n; at++)
            faulty += play_fault(g, fn, victim, (mc_comm_faults){.kind = kind, .at = at});
        ck_assert_uint_ge(faulty, kind == MC_COMM_SHORT ? n / 2 : n);
    }
}

/* These wait: first, last and two between. Of two ranks, so that nobody else is late. */
static void
stops(game *g, mc_player_fn *fn)
{
    uint32_t n = count(g, fn, 1);
    for (uint32_t i = 0; i < 4; i++)
        play_fault(g, fn, 1, (mc_comm_faults){.kind = MC_COMM_STOPS, .at = 1 + i * (n - 1) / 3, .seconds = 0.4});
}

static void
all_kinds(const struct mesh *mesh, bool train)
{
    game g;
    mc_player_fn *fn = train ? play_training : play_inference;
    prepare(&g, mesh, train);
    every_exchange(&g, fn, MC_COMM_DIES);
    every_exchange(&g, fn, MC_COMM_FAILS);
    every_exchange(&g, fn, MC_COMM_SHORT);
    if (mesh->n == 2) stops(&g, fn);
    moec_compiled_destroy(g.compiled);
}

START_TEST(test_training)
{
    all_kinds(&meshes[_i], true);
}
END_TEST

START_TEST(test_inference)
{
    all_kinds(&meshes[_i], false);
}
END_TEST

/* ---- what takes long is no fault --------------------------------------------------------------------------------- */

static moec_status
write_slowly(void *context, mc_fault *fault)
{
    const struct timespec t = {.tv_nsec = (long)(2.5 * deadline * 1e9)};
    nanosleep(&t, NULL);
    return *(bool *)context ? mc_fail(fault, MOEC_ERR_IO, "the disk is full") : MOEC_OK;
}

static void
play_checkpoint(mc_player *p)
{
    bool *full = p->context;
    mc_train_ranks r = {.comm = p->comm, .rank = p->rank, .size = p->n};
    p->seconds = mc_seconds();
    p->status = mc_train_ranks_first(&r, write_slowly, full, &p->fault);
    if (mc_seconds() - p->seconds < 2 * deadline) mc_wrong(p, "nobody wrote");
    bool said = p->rank == 2;
    if (p->rank == 0 && *full) mc_comm_abort(p->comm, p->fault.text);
    if (p->status == MOEC_OK) p->status = mc_train_ranks_any(&r, &said, &p->fault);
}

/* Only rank 0 writes checkpoints, in whatever time: the others wait longer than the deadline, as long as it lives. */
START_TEST(test_slow_checkpoint)
{
    bool full = false;
    mc_play(3, deadline, play_checkpoint, &full, NULL, players);
    mc_played(players, 3, MOEC_OK);
    full = true;
    mc_play(3, deadline, play_checkpoint, &full, NULL, players);
    ck_assert_int_eq(players[0].status, MOEC_ERR_IO);
    for (int r = 1; r < 3; r++)
        ck_assert_msg(strstr(players[r].fault.text, "disk is full"), "%s", players[r].fault.text);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("ep_faults_models");
    TCase *tc = tcase_create("faults");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, test_training, 0, N_MESHES);
    tcase_add_loop_test(tc, test_inference, 0, N_MESHES);
    tcase_add_test(tc, test_slow_checkpoint);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
