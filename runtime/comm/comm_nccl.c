/* The NCCL backend: one rank with a GPU of its own in each process, which find each other through a file. The
 * communicator does not block, so that every wait here ends at the deadline. */
#include "runtime/comm/comm_nccl.h"
#include "runtime/base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double poll_seconds = 0.001;

#define CUDA(name, ...) MC_CUDA(n->gpu->cuda, error, name, __VA_ARGS__)

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static moec_status
check_options(const moec_comm_options *o, mc_fault *error)
{
    if (!o->gpu)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "a rank of an NCCL group needs a GPU: give one in the options");
    if (o->size == 0 || o->size > MC_COMM_MAX_RANKS)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "a group of %u ranks: 1 to %d are possible", o->size,
                       MC_COMM_MAX_RANKS);
    if (o->rank >= o->size)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "rank %u of %u: ranks are numbered from 0", o->rank, o->size);
    if (o->size > 1 && (!o->rendezvous || !*o->rendezvous))
        return mc_fail(error, MOEC_ERR_ARGUMENT,
                       "an NCCL group of %u ranks needs a rendezvous: the name of a file that all of them can read "
                       "and write",
                       o->size);
    return MOEC_OK;
}

/* Waits until NCCL has done what it does in the background. */
static moec_status
settle(const mc_nccl *n, double until, const char *call, mc_fault *error)
{
    for (;;) {
        ncclResult state = ncclSuccess;
        moec_status s = mc_nccl_check(n->api, n->comm, n->api->ncclCommGetAsyncError(n->comm, &state), call, error);
        if (s != MOEC_OK) return s;
        if (state != ncclInProgress) return mc_nccl_check(n->api, n->comm, state, call, error);
        if (mc_seconds() >= until)
            return mc_fail(error, MOEC_ERR_COMM,
                           "%s: rank %u of %u waited in vain for the others; NCCL_DEBUG=INFO says what NCCL waits for, "
                           "NCCL_SOCKET_IFNAME which network it uses",
                           call, n->rank, n->size);
        mc_nccl_nap(poll_seconds);
    }
}

/* The communicator, once all ranks have come. */
static moec_status
join(mc_nccl *n, const moec_comm_options *o, double until, mc_comm_place *out, mc_fault *error)
{
    mc_nccl_meeting m = {.path = o->rendezvous, .rank = n->rank, .size = n->size, .until = until};
    ncclConfig config = {.size = sizeof config,
                         .magic = NCCL_CONFIG_MAGIC,
                         .version = NCCL_CONFIG_VERSION,
                         .blocking = 0,
                         .cgaClusterSize = NCCL_CONFIG_UNDEF_INT,
                         .minCTAs = NCCL_CONFIG_UNDEF_INT,
                         .maxCTAs = NCCL_CONFIG_UNDEF_INT,
                         .splitShare = NCCL_CONFIG_UNDEF_INT};
    moec_status s = MOEC_OK;
    if (n->rank == 0) s = mc_nccl_check(n->api, NULL, n->api->ncclGetUniqueId(&m.id), "ncclGetUniqueId", error);
    if (s == MOEC_OK) s = mc_nccl_meet(&m, error);
    if (s != MOEC_OK) return s;
    out->ranks_per_node = m.ranks_per_node;
    ncclResult r = n->api->ncclCommInitRankConfig(&n->comm, (int)n->size, m.id, (int)n->rank, &config);
    s = mc_nccl_check(n->api, n->comm, r, "ncclCommInitRankConfig", error);
    return s == MOEC_OK ? settle(n, until, "ncclCommInitRankConfig", error) : s;
}

static moec_status
make_slots(mc_nccl *n, mc_fault *error)
{
    n->runs = calloc(2 * (size_t)MC_COMM_REQUESTS * n->size, sizeof *n->runs);
    if (!n->runs) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    moec_status s = CUDA(cuStreamCreate, &n->stream, CU_STREAM_NON_BLOCKING);
    if (s == MOEC_OK) s = CUDA(cuStreamCreate, &n->aside, CU_STREAM_NON_BLOCKING);
    if (s == MOEC_OK) s = CUDA(cuEventCreate, &n->looked, CU_EVENT_DISABLE_TIMING);
    for (uint32_t i = 0; i < MC_COMM_REQUESTS && s == MOEC_OK; i++) {
        mc_nccl_slot *slot = &n->slots[i];
        slot->send.runs = n->runs + 2 * (size_t)i * n->size;
        slot->recv.runs = slot->send.runs + n->size;
        s = CUDA(cuEventCreate, &slot->event, CU_EVENT_DISABLE_TIMING);
    }
    return s;
}

/* ---- closing ---------------------------------------------------------------------------------------------------- */

/* Ends what runs on the device, too. */
static void
leave_at_once(mc_nccl *n)
{
    if (n->comm) n->api->ncclCommAbort(n->comm);
    n->comm = NULL;
}

static void
leave_in_order(mc_nccl *n)
{
    mc_fault ignored;
    double until = mc_seconds() + n->deadline;
    ncclResult r = n->api->ncclCommFinalize(n->comm);
    if (mc_nccl_check(n->api, n->comm, r, "ncclCommFinalize", &ignored) == MOEC_OK &&
        settle(n, until, "ncclCommFinalize", &ignored) == MOEC_OK) {
        n->api->ncclCommDestroy(n->comm);
        n->comm = NULL;
    }
    leave_at_once(n);
}

static void
free_device(mc_nccl *n)
{
    const mc_cuda *cuda = n->gpu->cuda;
    mc_nccl_free_copies(n);
    for (int i = 0; i < MC_COMM_REQUESTS; i++)
        if (n->slots[i].event) cuda->cuEventDestroy(n->slots[i].event);
    if (n->looked) cuda->cuEventDestroy(n->looked);
    if (n->aside) cuda->cuStreamDestroy(n->aside);
    if (n->stream) cuda->cuStreamDestroy(n->stream);
}

static void
close_nccl(void *state, bool clean)
{
    mc_nccl *n = state;
    mc_fault ignored;
    if (mc_gpu_enter(n->gpu, &ignored) == MOEC_OK) {
        if (clean && n->comm)
            leave_in_order(n);
        else
            leave_at_once(n);
        free_device(n);
        mc_gpu_leave(n->gpu);
    }
    free(n->runs);
    free(n);
}

static moec_status
open_nccl(const moec_comm_options *o, double deadline, void **out_state, mc_comm_place *out, mc_fault *error)
{
    const mc_nccl_api *api;
    char version[32];
    moec_status s = check_options(o, error);
    if (s == MOEC_OK) s = mc_nccl_get(&api, error);
    if (s != MOEC_OK) return s;
    mc_nccl *n = calloc(1, sizeof *n);
    if (!n) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    *n = (mc_nccl){.api = api, .gpu = o->gpu, .rank = o->rank, .size = o->size, .deadline = deadline};
    *out = (mc_comm_place){.rank = o->rank, .size = o->size};
    mc_nccl_version_text(api->version, version, sizeof version);
    snprintf(out->name, sizeof out->name, "nccl (%s)", version);
    s = mc_gpu_enter(n->gpu, error);
    if (s == MOEC_OK) {
        s = make_slots(n, error);
        if (s == MOEC_OK) s = join(n, o, mc_seconds() + deadline, out, error);
        mc_gpu_leave(n->gpu);
    }
    if (s != MOEC_OK)
        close_nccl(n, false);
    else
        *out_state = n;
    return s;
}

/* NCCL has no words for others: a network that breaks tells them, or their deadline. */
static void
abort_nccl(void *state, const char *why)
{
    mc_nccl *n = state;
    mc_fault ignored;
    (void)why;
    if (mc_gpu_enter(n->gpu, &ignored) != MOEC_OK) return;
    leave_at_once(n);
    mc_gpu_leave(n->gpu);
}

const mc_comm_backend mc_comm_nccl = {
    .n_bytes = sizeof mc_comm_nccl,
    .version = MC_COMM_BACKEND_VERSION,
    .open = open_nccl,
    .close = close_nccl,
    .begin = mc_nccl_begin,
    .test = mc_nccl_test,
    .late = mc_nccl_late,
    .rest = mc_nccl_rest,
    .abort = abort_nccl,
};
