/* comm_plugin: backends of comm in files of their own, for test_comm_load.c: COMM_PLUGIN says which one.
 *   1  a good one: a group of one
 *   2  of another version of the interface
 *   3  whose table has another size
 *   4  that serves no version at all
 *   5  that is no backend */
#include "runtime/comm/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

MOEC_API mc_comm_backend_query_fn moec_comm_backend_query;

static moec_status
join(const moec_comm_options *options, double deadline, void **out_state, mc_comm_place *out, mc_fault *error)
{
    (void)options;
    (void)error;
    *out_state = malloc(1);
    *out = (mc_comm_place){.size = 1, .ranks_per_node = 1};
    snprintf(out->name, sizeof out->name, "plugin, %.1f s", deadline);
    return MOEC_OK;
}

static void
leave(void *state, bool clean)
{
    (void)clean;
    free(state);
}

static moec_status
begin(void *state, uint32_t index, const mc_exchange *x, mc_fault *error)
{
    (void)state;
    (void)index;
    (void)error;
    if (x->n_peers && x->send[0].n_bytes) memcpy(x->recv[0].data, x->send[0].data, x->send[0].n_bytes);
    return MOEC_OK;
}

static moec_status
test(void *state, uint32_t index, bool *out_done, uint32_t *out_peer, mc_fault *error)
{
    (void)state;
    (void)index;
    (void)out_peer;
    (void)error;
    *out_done = true;
    return MOEC_OK;
}

static void
late(void *state, uint32_t index, uint32_t *out_peer, size_t *out_bytes)
{
    (void)state;
    (void)index;
    *out_peer = 0;
    *out_bytes = 0;
}

static void
tell(void *state, const char *why)
{
    (void)state;
    (void)why;
}

static const mc_comm_backend table = {
    .n_bytes = sizeof table + (COMM_PLUGIN == 3 ? 8 : 0),
    .version = COMM_PLUGIN == 2 ? 7 : MC_COMM_BACKEND_VERSION,
    .open = join,
    .close = leave,
    .begin = begin,
    .test = test,
    .late = late,
    .abort = tell,
};

#if COMM_PLUGIN == 5
MOEC_API const mc_comm_backend *moec_comm_other_query(uint32_t version);
#define moec_comm_backend_query moec_comm_other_query
#endif

const mc_comm_backend *
moec_comm_backend_query(uint32_t version)
{
    return COMM_PLUGIN != 4 && version == table.version ? &table : NULL;
}
