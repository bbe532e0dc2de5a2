/* comm_nccl: the parts of the NCCL backend among themselves. Messages go from device memory to device memory; runs in
 * the processor's memory pass through a pinned copy and a copy on the device, because only of those two nothing has to
 * wait: a peer that is gone must never hold this thread. */
#ifndef MC_RUNTIME_COMM_COMM_NCCL_H
#define MC_RUNTIME_COMM_COMM_NCCL_H

#include "runtime/comm/comm.h"
#include "runtime/comm/nccl_api.h"
#include "runtime/gpu/gpu_device.h"

/* One message. */
typedef struct mc_nccl_run {
    void *data;
    size_t n_bytes, at; /* at: where it stands in the slot's copies */
    uint32_t peer;
    bool on_device;
} mc_nccl_run;

/* One side's messages; those of the processor's memory stand one behind the other. */
typedef struct mc_nccl_side {
    mc_nccl_run *runs; /* room for one from each rank */
    uint32_t n;
    size_t begin, n_bytes; /* of the copies */
} mc_nccl_side;

/* An exchange under way. QUEUED: NCCL is still busy with starting another; LAUNCHED: it starts this one; RUNNING: on
 * the stream, and the event behind it. */
typedef struct mc_nccl_slot {
    enum { MC_NCCL_IDLE, MC_NCCL_QUEUED, MC_NCCL_LAUNCHED, MC_NCCL_RUNNING } phase;
    mc_nccl_side send, recv;
    CUdeviceptr device;
    unsigned char *pinned;
    size_t room; /* of each of the two */
    CUevent event;
} mc_nccl_slot;

/* Copies that have become too small while something was under way: they stay until the end. */
typedef struct mc_nccl_old {
    struct mc_nccl_old *next;
    CUdeviceptr device;
    void *pinned;
} mc_nccl_old;

typedef struct mc_nccl {
    const mc_nccl_api *api;
    const moec_gpu *gpu;
    ncclComm comm; /* NULL: aborted */
    uint32_t rank, size;
    double deadline;        /* seconds that closing may wait, as opening did */
    CUstream stream, aside; /* aside: for looking at what has arrived, while the other stream waits */
    CUevent looked;
    mc_nccl_slot slots[MC_COMM_REQUESTS];
    uint32_t queue[MC_COMM_REQUESTS], n_queue; /* slots not yet RUNNING, in the order of their begin */
    mc_nccl_run *runs;                         /* of all slots */
    mc_nccl_old *old;
    double moved; /* mc_seconds when an exchange was begun or came to its end, for rest */
} mc_nccl;

/* What the ranks tell each other before NCCL can. */
typedef struct mc_nccl_meeting {
    const char *path; /* the file; ranks put others beside it, path.RANK */
    uint32_t rank, size;
    double until;            /* mc_seconds */
    ncclUniqueId id;         /* given by rank 0, then everybody's */
    uint32_t ranks_per_node; /* out */
} mc_nccl_meeting;

/* Rank 0 writes the id to the file once all others have said, each in a file of its own with a number drawn for this
 * run, that they are there; the numbers go into rank 0's file, so that what an earlier run left behind is nobody's
 * answer. All files are gone in the end. Errors: COMM (who did not come), IO, MEMORY. */
moec_status mc_nccl_meet(mc_nccl_meeting *m, mc_fault *error) MOEC_MUST_USE;

/* comm_nccl_exchange.c: entries of the backend's table; the first enters the GPU's context by itself, as all do. */
moec_status mc_nccl_begin(void *state, uint32_t index, const mc_exchange *x, mc_fault *error);
moec_status mc_nccl_test(void *state, uint32_t index, bool *out_done, uint32_t *out_peer, mc_fault *error);
void mc_nccl_late(void *state, uint32_t index, uint32_t *out_peer, size_t *out_bytes);
void mc_nccl_rest(void *state, double seconds);
/* Frees the copies, when nothing is under way. In the GPU's context. */
void mc_nccl_free_copies(mc_nccl *n);
/* Sleeps so long. */
void mc_nccl_nap(double seconds);

#endif
