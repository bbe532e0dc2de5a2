/* play: see play.h. */
#include "tests/support/play.h"

#include "runtime/base/clock.h"

#include <check.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct part {
    mc_player *player;
    mc_player_fn *fn;
} part;

static void *
perform(void *argument)
{
    part *p = argument;
    double begin = mc_seconds();
    p->fn(p->player);
    p->player->seconds = mc_seconds() - begin;
    moec_comm_close(p->player->comm);
    p->player->comm = NULL;
    return NULL;
}

void
mc_play(uint32_t n, double deadline, mc_player_fn *fn, void *context, const mc_comm_faults *faults, mc_player *players)
{
    moec_comm_options options = {.deadline_seconds = deadline};
    moec_comm *comms[MC_MAX_PLAYERS];
    pthread_t threads[MC_MAX_PLAYERS];
    part parts[MC_MAX_PLAYERS];
    moec_error error;
    ck_assert_uint_le(n, MC_MAX_PLAYERS);
    ck_assert_msg(moec_comm_threads(n, &options, comms, &error) == MOEC_OK, "%s", error.text);
    for (uint32_t r = 0; r < n; r++) {
        players[r] = (mc_player){.comm = comms[r], .rank = r, .n = n, .context = context};
        parts[r] = (part){&players[r], fn};
        if (faults && (faults[r].kind != MC_COMM_NO_FAULT || faults[r].longest_delay > 0)) {
            players[r].faults = &faults[r];
            ck_assert(mc_comm_inject(comms[r], &faults[r]));
        }
    }
    for (uint32_t r = 0; r < n; r++) ck_assert_int_eq(pthread_create(&threads[r], NULL, perform, &parts[r]), 0);
    for (uint32_t r = 0; r < n; r++) pthread_join(threads[r], NULL);
}

void
mc_played(const mc_player *players, uint32_t n, moec_status want)
{
    for (uint32_t r = 0; r < n; r++) {
        ck_assert_msg(!players[r].wrong[0], "rank %u: %s", r, players[r].wrong);
        ck_assert_msg(players[r].status == want, "rank %u: %s: %s", r, moec_status_name(players[r].status),
                      players[r].fault.text);
    }
}

void
mc_wrong(mc_player *p, const char *format, ...)
{
    if (p->wrong[0]) return;
    va_list args;
    va_start(args, format);
    vsnprintf(p->wrong, sizeof p->wrong, format, args);
    va_end(args);
}
