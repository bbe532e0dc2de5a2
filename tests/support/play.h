/* play: a function on every rank of a group of threads. Each player opens nothing and closes nothing: its comm is
 * there, and is closed when the function returns. What it has to say it leaves in status, fault and wrong; whoever
 * called mc_play checks that in its own thread. */
#ifndef MC_SUPPORT_PLAY_H
#define MC_SUPPORT_PLAY_H

#include "tests/support/comm_faults.h"

typedef struct mc_player {
    moec_comm *comm;
    uint32_t rank, n;
    void *context;
    moec_status status;
    mc_fault fault;
    char wrong[256]; /* what should not be; empty: nothing */
    double seconds;  /* from the beginning of the function to its end */
    const mc_comm_faults *faults;
} mc_player;

typedef void mc_player_fn(mc_player *p);

enum { MC_MAX_PLAYERS = 64 };

/* players [n]: filled in here. faults [n], or NULL: put under the ranks (kind NO_FAULT and no delay: none). Fails the
 * test when threads or comms cannot be had. */
void mc_play(uint32_t n, double deadline, mc_player_fn *fn, void *context, const mc_comm_faults *faults,
             mc_player *players);
/* The same status everywhere, and nothing wrong. */
void mc_played(const mc_player *players, uint32_t n, moec_status want);

/* Remembers the first thing that is wrong. */
void mc_wrong(mc_player *p, const char *format, ...) MOEC_PRINTF(2, 3);

#endif
