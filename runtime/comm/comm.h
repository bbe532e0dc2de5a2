/* comm: how ranks exchange bytes. A backend moves runs of bytes between pairs of ranks and knows nothing of models;
 * records with checked headers, gathers, deadlines and messages are made of that here, once.
 *
 *     mc_exchange x = {.what = "rows", .n_peers = n, .peers = group, .send = to, .recv = from};
 *     mc_comm_begin(comm, &x, &request, error);        x and its arrays may go; the buffers stay as they are
 *     ... compute ...
 *     mc_comm_wait(comm, request, error);              ends the request in every case
 *
 * Both sides of a pair know how many bytes go (from a records exchange before). 0 bytes: no message, on either side. A
 * rank's own run is copied. Requests of one pair are matched in the order in which they were begun. */
#ifndef MC_RUNTIME_COMM_COMM_H
#define MC_RUNTIME_COMM_COMM_H

#include "moec/comm.h"
#include "runtime/base/file.h"

enum { MC_COMM_MAX_RANKS = 1024, MC_COMM_REQUESTS = 8 }; /* at once, on one rank */

typedef struct mc_comm_run {
    void *data;
    size_t n_bytes;
} mc_comm_run;

typedef struct mc_exchange {
    const char *what; /* for messages; lives as long as the request */
    uint32_t n_peers;
    const uint32_t *peers; /* ranks, ascending, the own one among them or not; the same on all of them */
    const mc_comm_run *send, *recv;
} mc_exchange;

typedef struct mc_comm_request mc_comm_request;

/* ---- for whoever runs models -------------------------------------------------------------------------------- */

/* What messages say, and records carry: the artefact's hash, the step, and the epoch of the placement of experts. */
void mc_comm_identify(moec_comm *c, uint64_t hash, uint32_t epoch);
void mc_comm_at_step(moec_comm *c, uint64_t step);

/* Errors: COMM (a peer is gone, or the deadline has passed: operation, peer, bytes, step), MISMATCH (a peer sends
 * another number of bytes), MEMORY. After any of them the comm is broken: this and every later call fail the same way.
 */
moec_status mc_comm_begin(moec_comm *c, const mc_exchange *x, mc_comm_request **out, mc_fault *error) MOEC_MUST_USE;
/* Lets messages move for a moment; true when nothing is under way any more. */
bool mc_comm_progress(moec_comm *c);
moec_status mc_comm_wait(moec_comm *c, mc_comm_request *request, mc_fault *error) MOEC_MUST_USE;

/* begin and wait */
moec_status mc_comm_exchange(moec_comm *c, const mc_exchange *x, mc_fault *error) MOEC_MUST_USE;

/* A record of n_bytes (at most 64 KiB) for and from each peer: send and recv hold n_peers of them. On the wire each has
 * a header with hash, step, epoch, the number of this call and n_bytes: a peer that is elsewhere is named, with both
 * sides' values (MISMATCH). */
moec_status mc_comm_records(moec_comm *c, const char *what, uint32_t n_peers, const uint32_t *peers, const void *send,
                            void *recv, size_t n_bytes, mc_fault *error) MOEC_MUST_USE;

/* One thing that lives as long as the comm, and is ended with it, or by the next one. */
void mc_comm_attach(moec_comm *c, void *thing, void (*end)(void *thing));
void *mc_comm_attached(const moec_comm *c); /* NULL: nothing */

/* Breaks the group on purpose, with this message for the others: "rank 2 gave up: out of memory in step 7". */
void mc_comm_abort(moec_comm *c, const char *why);

/* ---- for backends ------------------------------------------------------------------------------------------- */

#define MC_COMM_BACKEND_VERSION 1u

/* What a backend gives back of a rank's state after an open. */
typedef struct mc_comm_place {
    uint32_t rank, size, ranks_per_node;
    char name[64]; /* "mpi (Open MPI 4.1.4)" */
} mc_comm_place;

typedef struct mc_comm_backend {
    uint32_t n_bytes, version; /* of this struct; MC_COMM_BACKEND_VERSION: checked before anything else is called */
    /* deadline: seconds for joining. */
    moec_status (*open)(const moec_comm_options *options, double deadline, void **out_state, mc_comm_place *out,
                        mc_fault *error);
    /* clean: every rank is done, nothing is under way. Otherwise others may be dead or waiting. */
    void (*close)(void *state, bool clean);
    /* Starts an exchange; index < MC_COMM_REQUESTS is a free slot of the state's. Errors as in mc_comm_begin. */
    moec_status (*begin)(void *state, uint32_t index, const mc_exchange *x, mc_fault *error);
    /* Whether it is done. The error says what came of which peer; *out_peer then is that peer. */
    moec_status (*test)(void *state, uint32_t index, bool *out_done, uint32_t *out_peer, mc_fault *error);
    /* The lowest peer that it still waits for, and for how many bytes from it; 0: it only waits for that peer to take
     * its own. For the message at a deadline. */
    void (*late)(void *state, uint32_t index, uint32_t *out_peer, size_t *out_bytes);
    /* Rests until something may have changed, at most that long; NULL: callers poll and yield. */
    void (*rest)(void *state, double seconds);
    /* Tells the others, as well as that is possible, that this rank stops and why; when one of them said so first, that
     * is what counts. From then on nothing reads or writes the buffers of what is under way, as far as the backend can
     * help it. Never waits. */
    void (*abort)(void *state, const char *why);
    /* What another rank said with abort: false when nobody did; empty: it left without a word. NULL: backends that
     * cannot. */
    bool (*aborted)(void *state, uint32_t *out_rank, char *out_why, size_t n_bytes);
} mc_comm_backend;

extern const mc_comm_backend mc_comm_local;
extern const mc_comm_backend mc_comm_nccl;

/* A shared object exports this under the name moec_comm_backend_query; NULL when `version` is not its own. */
typedef const mc_comm_backend *mc_comm_backend_query_fn(uint32_t version);

/* Looks for the file libmoec_comm_<name>.so: $MOEC_COMM_<NAME> (the file itself), beside the running program or the
 * library that holds moec, ../lib/moec from there, then as the dynamic linker does. */
moec_status mc_comm_load(const char *name, const mc_comm_backend **out, mc_fault *error) MOEC_MUST_USE;

#endif
