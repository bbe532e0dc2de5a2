/* comm_mpi: ranks as MPI processes. Made into shared objects of their own (libmoec_comm_mpi.so), which are all that
 * links MPI; the rest of the runtime loads them. */
#ifndef MC_RUNTIME_COMM_COMM_MPI_H
#define MC_RUNTIME_COMM_COMM_MPI_H

#include "runtime/comm/comm.h"

#include <mpi.h>

enum { MC_MPI_TAGS = 32768 }; /* MPI promises that many */

/* One message of an exchange. */
typedef struct mc_mpi_part {
    uint32_t peer;
    bool receives, done;
    size_t n_bytes;
} mc_mpi_part;

typedef struct mc_mpi_slot { /* an exchange under way: parts[i] is what requests[i] does */
    int n_parts, n_left;
    MPI_Request *requests;
    mc_mpi_part *parts;
} mc_mpi_slot;

/* What a rank says to all others when it leaves: its work is done, or it gives up and says why. */
typedef struct mc_mpi_word {
    uint32_t gives_up, rank; /* rank: whose fault it is, as far as the speaker heard */
    char why[MC_FAULT_BYTES];
} mc_mpi_word;

/* A process of this machine, and nothing else that may get its number later. */
typedef struct mc_mpi_process {
    long long pid, started, space; /* started: ticks; space: of numbers of processes */
} mc_mpi_process;

typedef struct mc_mpi {
    MPI_Comm rows, control; /* control: only words, so that their open receive is no burden to rows */
    uint32_t rank, size;
    double deadline; /* of joining and leaving */
    bool ours;       /* MPI was begun here, not by the host program */
    mc_mpi_slot slots[MC_COMM_REQUESTS];
    MPI_Status *statuses; /* of one look at a slot */
    int *indices;
    uint16_t *turns;           /* of each peer: the tag of the next exchange with it */
    mc_mpi_process *processes; /* of each rank of this node */
    double until_yields;       /* seconds of a wait before others get the processor */
    double last_news;          /* when something of an exchange last changed */
    double next_look;          /* when to look for what ends an exchange early again */
    double next_hearing;       /* when to look for words alone */
    MPI_Request word;          /* the open receive */
    MPI_Request *said_word;    /* sends of our own word, never waited for */
    mc_mpi_word heard, said;
    bool has_said;
    bool is_quiet; /* nothing can write into callers' buffers any more */
    double *left;  /* of each peer: when it said a word; 0: not yet */
    uint32_t n_left;
    bool has_failed; /* a rank gave up: failed_rank was the first, failure is what it said */
    uint32_t failed_rank;
    char failure[MC_FAULT_BYTES];
} mc_mpi;

/* Runs work(argument) in a thread of its own, for what MPI cannot be asked to give up. False: it is still busy (the
 * argument is then its own for ever) or could not begin. */
bool mc_mpi_within(double seconds, void (*work)(void *), void *argument);
/* The error of an MPI call. */
moec_status mc_mpi_fail(mc_fault *error, int code, const char *what);
/* Tests `request` until it is done; false at the deadline. */
bool mc_mpi_finish(MPI_Request *request, double seconds);

moec_status mc_mpi_begin(void *state, uint32_t index, const mc_exchange *x, mc_fault *error);
moec_status mc_mpi_test(void *state, uint32_t index, bool *out_done, uint32_t *out_peer, mc_fault *error);
void mc_mpi_late(void *state, uint32_t index, uint32_t *out_peer, size_t *out_bytes);
/* Takes back receives that no message has reached. True when nothing is left that could write into buffers. */
bool mc_mpi_take_back(mc_mpi *m);

moec_status mc_mpi_listen(mc_mpi *m, mc_fault *error);
/* Takes the words that have come; looks for them once in a while only, because a look costs MPI a turn of its own. */
void mc_mpi_hear(mc_mpi *m, double now);
/* Says that our work is done; true when everybody said so by the deadline. */
bool mc_mpi_leave(mc_mpi *m);
void mc_mpi_abort(void *state, const char *why);
bool mc_mpi_aborted(void *state, uint32_t *out_rank, char *out_why, size_t n_bytes);
/* Sleeps a little when nothing has come for long. */
void mc_mpi_rest(void *state, double seconds);
/* Gives the words that were said a moment to arrive, and others the time to say theirs; then wakes those of this node
 * that are stopped, because the launcher would wait for them for ever: they find the word and end. */
void mc_mpi_linger(mc_mpi *m);

mc_mpi_process mc_mpi_this_process(void);
void mc_mpi_wake(const mc_mpi_process *process);

#endif
