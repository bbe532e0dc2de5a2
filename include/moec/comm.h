/* moec/comm.h: ranks that run one model together (expert parallelism). A moec_comm is one rank's end of a group:
 *
 *     moec_comm *comm;
 *     moec_comm_open(NULL, &comm, &error);                    under mpirun: MPI; otherwise a group of one
 *     moec_weights_options w = {.comm = comm};                reads only this rank's experts
 *     moec_session_options o = {.comm = comm};                every rank creates its session and takes every step
 *
 * Rules
 *   - Every rank makes the same calls in the same order: creating sessions and training handles, steps. Sizes may
 * differ: a step may have no tokens at all on a rank.
 *   - Nothing waits without a deadline. A rank that is dead, stopped, runs another model, or gives other sizes than it
 * announced ends the step on every survivor with MOEC_ERR_COMM or MOEC_ERR_MISMATCH: operation, peer, bytes, step.
 * After that the group is broken and every call with it gives the same error; sessions keep the state of the last
 * completed step and can be destroyed.
 *   - A comm belongs to one thread at a time, and outlives what was created with it.
 */
#ifndef MOEC_COMM_H
#define MOEC_COMM_H

#include "moec/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moec_comm_options {
    const char *backend;     /* "local" (one rank), "mpi", "nccl"; NULL: mpi when a launcher started us, else local */
    double deadline_seconds; /* longest wait for a peer; 0: 30 */
    uint32_t ranks_per_node; /* neighbours that share fast links; 0: asked of the backend */
    moec_gpu *gpu;           /* nccl: the device of this rank */
    uint32_t rank, size;     /* nccl: of this process; others ask their launcher */
    const char *rendezvous;  /* nccl: a file (and beside it FILE.1, ..) that all ranks can write; the group removes them */
} moec_comm_options;

/* Joins the group. options may be NULL. Every rank must call it; returns when all have.
 * Errors: NOT_FOUND (the backend's library: which, and where it was looked for), MISMATCH (a library of another
 * version), ARGUMENT, COMM (a rank did not come in time), DEVICE, MEMORY. */
MOEC_API moec_status moec_comm_open(const moec_comm_options *options, moec_comm **out_comm,
                                    moec_error *error) MOEC_MUST_USE;
/* n ranks in this process: out_comms[r] is for the thread that plays rank r. Of options the deadline and ranks_per_node
 * count. Errors: ARGUMENT (n is 0 or above 1024), MEMORY. */
MOEC_API moec_status moec_comm_threads(uint32_t n_ranks, const moec_comm_options *options, moec_comm **out_comms,
                                       moec_error *error) MOEC_MUST_USE;
/* Leaves. When the group is broken, or others still wait for this rank, they get their error. NULL is allowed. */
MOEC_API void moec_comm_close(moec_comm *comm);

MOEC_API uint32_t moec_comm_rank(const moec_comm *comm);
MOEC_API uint32_t moec_comm_size(const moec_comm *comm);
MOEC_API uint32_t moec_comm_ranks_per_node(const moec_comm *comm);
MOEC_API const char *moec_comm_backend(const moec_comm *comm); /* "mpi (Open MPI 4.1.4)" */

/* The bytes of rank `root` on every rank. Errors: COMM, MISMATCH (ranks disagree about n_bytes). */
MOEC_API moec_status moec_comm_broadcast(moec_comm *comm, uint32_t root, void *data, size_t n_bytes,
                                         moec_error *error) MOEC_MUST_USE;
/* n_bytes of every rank, in rank order, on every rank: out has size * n_bytes. Errors: as broadcast. */
MOEC_API moec_status moec_comm_gather(moec_comm *comm, const void *data, size_t n_bytes, void *out,
                                      moec_error *error) MOEC_MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
