/* comm_local: a group of one. A rank's own runs are all there is, and they are copied at once. */
#include "runtime/comm/comm.h"

#include <stdio.h>
#include <string.h>

static moec_status
open_local(const moec_comm_options *options, double deadline, void **out_state, mc_comm_place *out, mc_fault *error)
{
    (void)options;
    (void)deadline;
    (void)error;
    *out_state = NULL;
    *out = (mc_comm_place){.rank = 0, .size = 1, .ranks_per_node = 1};
    snprintf(out->name, sizeof out->name, "local");
    return MOEC_OK;
}

static void
close_local(void *state, bool clean)
{
    (void)state;
    (void)clean;
}

static moec_status
begin_local(void *state, uint32_t index, const mc_exchange *x, mc_fault *error)
{
    (void)state;
    (void)index;
    for (uint32_t i = 0; i < x->n_peers; i++) {
        if (x->send[i].n_bytes != x->recv[i].n_bytes)
            return mc_fail(error, MOEC_ERR_MISMATCH, "rank 0 sends itself %zu bytes and expects %zu",
                           x->send[i].n_bytes, x->recv[i].n_bytes);
        if (x->send[i].n_bytes) memmove(x->recv[i].data, x->send[i].data, x->send[i].n_bytes);
    }
    return MOEC_OK;
}

static moec_status
test_local(void *state, uint32_t index, bool *out_done, uint32_t *out_peer, mc_fault *error)
{
    (void)state;
    (void)index;
    (void)out_peer;
    (void)error;
    *out_done = true;
    return MOEC_OK;
}

static void
late_local(void *state, uint32_t index, uint32_t *out_peer, size_t *out_bytes)
{
    (void)state;
    (void)index;
    *out_peer = 0;
    *out_bytes = 0;
}

static void
abort_local(void *state, const char *why)
{
    (void)state;
    (void)why;
}

const mc_comm_backend mc_comm_local = {
    .n_bytes = sizeof mc_comm_local,
    .version = MC_COMM_BACKEND_VERSION,
    .open = open_local,
    .close = close_local,
    .begin = begin_local,
    .test = test_local,
    .late = late_local,
    .abort = abort_local,
};
