/* app_ranks: the same program on every rank of a group. Each reads the whole input and takes its share of the sequences
 * (or tokens); what comes out is collected on rank 0, which alone prints and writes files. */
#define _GNU_SOURCE
#include "runtime/app/app.h"
#include "runtime/base/clock.h"
#include "runtime/comm/comm.h"
#include "runtime/ranks.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static bool
by_threads(const mc_app *app)
{
    const char *name = mc_app_value(app, MC_APP_COMM);
    return name && strcmp(name, "threads") == 0;
}

static void
belong(mc_app *app, moec_comm *comm)
{
    app->comm = comm;
    app->rank = moec_comm_rank(comm);
    app->size = moec_comm_size(comm);
    app->default_threads = mc_ranks_threads(comm);
}

int
mc_app_join(mc_app *app)
{
    moec_error error;
    double deadline;
    if (!mc_app_real(app, MC_APP_DEADLINE, 0.01, 1e6, 0, &deadline)) return MC_APP_USAGE;
    if (mc_ranks_needed(app->abi) == 1 && !mc_app_has(app, MC_APP_COMM)) return MC_APP_OK;
    moec_comm_options options = {
        .backend = mc_app_value(app, MC_APP_COMM), .deadline_seconds = deadline, .gpu = app->gpu};
    moec_comm *comm;
    if (moec_comm_open(&options, &comm, &error) != MOEC_OK) {
        mc_app_fail(app, "%s", error.text);
        return MC_APP_GROUP;
    }
    belong(app, comm);
    return MC_APP_OK;
}

int
mc_app_leave(mc_app *app, int result)
{
    if (result != MC_APP_OK && app->comm) mc_comm_abort(app->comm, app->said->text);
    moec_session_destroy(app->session);
    moec_weights_close(app->weights);
    moec_comm_close(app->comm);
    app->session = NULL;
    app->weights = NULL;
    app->comm = NULL;
    return app->size > 1 && result == MC_APP_FAILED ? MC_APP_GROUP : result;
}

/* ---- ranks as threads ----------------------------------------------------------------------------------------- */

typedef struct player {
    mc_app app;
    moec_error said;
    mc_app_command *command;
    int result;
    pthread_t thread;
} player;

static void *
play(void *argument)
{
    player *p = argument;
    p->result = mc_app_leave(&p->app, p->command(&p->app));
    return NULL;
}

bool
mc_app_is_played(const mc_app *app)
{
    return by_threads(app);
}

/* Players 1 .. n - 1 begin; false: not all of them could, and those that did are told. */
static bool
begin_play(player *players, uint32_t n, uint32_t *out_started)
{
    uint32_t i = 1;
    while (i < n && pthread_create(&players[i].thread, NULL, play, &players[i]) == 0) i++;
    *out_started = i;
    if (i == n) return true;
    mc_comm_abort(players[0].app.comm, "its threads cannot be made");
    for (; i < n; i++) moec_comm_close(players[i].app.comm);
    moec_comm_close(players[0].app.comm);
    return false;
}

static int
play_all(mc_app *app, player *players, moec_comm *const *comms, uint32_t n, mc_app_command *command)
{
    uint32_t started;
    for (uint32_t i = 0; i < n; i++) {
        players[i] = (player){.app = *app, .command = command};
        players[i].app.said = &players[i].said;
        belong(&players[i].app, comms[i]);
    }
    int result = MC_APP_OK;
    if (begin_play(players, n, &started))
        play(&players[0]);
    else
        result = mc_app_fail(app, "cannot make %u threads", n);
    for (uint32_t i = 1; i < started; i++) pthread_join(players[i].thread, NULL);
    for (uint32_t i = 0; i < n && result == MC_APP_OK; i++) result = players[i].result;
    return result;
}

int
mc_app_play(mc_app *app, mc_app_command *command)
{
    moec_error error;
    double deadline;
    uint32_t n = mc_ranks_needed(app->abi);
    if (!mc_app_real(app, MC_APP_DEADLINE, 0.01, 1e6, 0, &deadline)) return MC_APP_USAGE;
    moec_comm_options options = {.deadline_seconds = deadline,
                                 .ranks_per_node = app->abi->ep ? app->abi->ep->per_node : 0};
    moec_comm **comms = calloc(n, sizeof *comms);
    player *players = calloc(n, sizeof *players);
    int result = comms && players ? MC_APP_OK : mc_app_fail(app, "out of memory");
    if (result == MC_APP_OK && moec_comm_threads(n, &options, comms, &error) != MOEC_OK)
        result = mc_app_fail(app, "%s", error.text);
    if (result == MC_APP_OK) result = play_all(app, players, comms, n, command);
    free(players);
    free(comms);
    return result;
}

/* ---- opening weights takes each rank its own time ---------------------------------------------------------------- */

/* One beat of the group: whether every rank has opened its weights. Every rank beats equally often. */
static moec_status
beat(mc_app *app, bool ready, bool *out_all, moec_error *error)
{
    unsigned char own = ready, all[MC_COMM_MAX_RANKS];
    moec_status s = moec_comm_gather(app->comm, &own, 1, all, error);
    *out_all = s == MOEC_OK;
    for (uint32_t i = 0; i < app->size && s == MOEC_OK; i++) *out_all = *out_all && all[i];
    return s;
}

void
mc_app_still_opening(mc_app *app)
{
    bool all;
    if (app->size == 1 || mc_seconds() < app->next_beat) return;
    moec_error ignored; /* the next call says it again */
    moec_status s = beat(app, false, &all, &ignored);
    app->next_beat = s == MOEC_OK ? mc_seconds() + 1 : INFINITY;
}

int
mc_app_has_opened(mc_app *app)
{
    moec_error error;
    bool all = app->size == 1;
    while (!all)
        if (beat(app, true, &all, &error) != MOEC_OK) return mc_app_fail(app, "%s", error.text);
    return MC_APP_OK;
}

/* ---- shares ------------------------------------------------------------------------------------------------------ */

size_t
mc_app_first(const mc_app *app, size_t n, uint32_t rank)
{
    return n / app->size * rank + n % app->size * rank / app->size;
}

size_t
mc_app_count(const mc_app *app, size_t n)
{
    return mc_app_first(app, n, app->rank + 1) - mc_app_first(app, n, app->rank);
}

size_t
mc_app_most(const mc_app *app, size_t n)
{
    return n / app->size + (n % app->size != 0);
}

/* Every rank's rows, to rank 0 alone. */
static moec_status
send_to_first(mc_app *app, mc_pages own, size_t n_rows, size_t row_bytes, unsigned char *all, mc_fault *e)
{
    mc_comm_run send[MC_COMM_MAX_RANKS] = {{0}}, recv[MC_COMM_MAX_RANKS] = {{0}};
    uint32_t peers[MC_COMM_MAX_RANKS];
    for (uint32_t i = 0; i < app->size; i++) {
        size_t first = mc_app_first(app, n_rows, i), n = mc_app_first(app, n_rows, i + 1) - first;
        peers[i] = i;
        if (app->rank == 0) recv[i] = (mc_comm_run){all + first * row_bytes, n * row_bytes};
    }
    send[0] = (mc_comm_run){own.data, mc_app_count(app, n_rows) * row_bytes};
    mc_exchange x = {.what = "output", .n_peers = app->size, .peers = peers, .send = send, .recv = recv};
    return mc_comm_exchange(app->comm, &x, e);
}

int
mc_app_collect(mc_app *app, size_t n_rows, size_t row_bytes, mc_pages *pages)
{
    mc_pages all = {0};
    mc_fault e = {{0}};
    size_t n_bytes;
    if (app->size == 1) return MC_APP_OK;
    if (__builtin_mul_overflow(n_rows, row_bytes, &n_bytes)) return mc_app_fail(app, "an output is too large");
    moec_status s = mc_pages_alloc(app->rank ? 0 : n_bytes, "an output", &all, &e);
    if (s == MOEC_OK) s = send_to_first(app, *pages, n_rows, row_bytes, all.data, &e);
    if (s != MOEC_OK) {
        mc_pages_free(&all);
        return mc_app_fail(app, "%s", e.text);
    }
    mc_pages_free(pages);
    *pages = all;
    return MC_APP_OK;
}

int
mc_app_share(mc_app *app, void *rows, size_t n_rows, size_t row_bytes)
{
    moec_error error;
    if (app->size == 1) return MC_APP_OK;
    size_t block = mc_app_most(app, n_rows) * row_bytes;
    unsigned char *all = malloc(block * (app->size + 1)), *own = all + block * app->size;
    if (!all) return mc_app_fail(app, "out of memory");
    memset(own, 0, block);
    memcpy(own, (unsigned char *)rows + mc_app_first(app, n_rows, app->rank) * row_bytes,
           mc_app_count(app, n_rows) * row_bytes);
    moec_status s = moec_comm_gather(app->comm, own, block, all, &error);
    for (uint32_t i = 0; i < app->size && s == MOEC_OK; i++) {
        size_t first = mc_app_first(app, n_rows, i), n = mc_app_first(app, n_rows, i + 1) - first;
        memcpy((unsigned char *)rows + first * row_bytes, all + i * block, n * row_bytes);
    }
    free(all);
    return s == MOEC_OK ? MC_APP_OK : mc_app_fail(app, "%s", error.text);
}

int
mc_app_decide(mc_app *app, bool *decision)
{
    moec_error error;
    if (app->size == 1 || moec_comm_broadcast(app->comm, 0, decision, sizeof *decision, &error) == MOEC_OK)
        return MC_APP_OK;
    return mc_app_fail(app, "%s", error.text);
}
