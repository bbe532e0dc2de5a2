/* comm: groups of ranks: joining, leaving, and which backend moves the bytes. Everything else about a group is made of
 * exchanges (comm_wait.c) and records (comm_records.c). */
#include "moec/comm.h"

#include "runtime/abi_model.h"
#include "runtime/comm/comm_impl.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_DEADLINE = 30, MAX_DEADLINE = 1000000000 };

/* ---- making --------------------------------------------------------------------------------------------------- */

static void
free_comm(moec_comm *c)
{
    free(c->everyone);
    free(c->send);
    free(c->recv);
    free(c->first_out);
    free(c->first_in);
    free(c);
}

moec_status
mc_comm_make(const mc_comm_backend *backend, void *state, const mc_comm_place *place, double deadline, moec_comm **out,
             mc_fault *error)
{
    *out = NULL;
    size_t n = place->size;
    moec_comm *c = calloc(1, sizeof *c);
    if (c) {
        c->everyone = calloc(n, sizeof *c->everyone);
        c->send = calloc(n, sizeof *c->send);
        c->recv = calloc(n, sizeof *c->recv);
        c->first_out = calloc(n, MC_RECORD_FIRST_BYTES);
        c->first_in = calloc(n, MC_RECORD_FIRST_BYTES);
    }
    if (!c || !c->everyone || !c->send || !c->recv || !c->first_out || !c->first_in) {
        if (c) free_comm(c);
        backend->close(state, false);
        return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    }
    for (uint32_t i = 0; i < n; i++) c->everyone[i] = i;
    c->backend = backend;
    c->state = state;
    c->place = *place;
    c->deadline = deadline;
    *out = c;
    return MOEC_OK;
}

moec_status
mc_comm_settle(const moec_comm_options *o, double *out_deadline, mc_fault *error)
{
    double d = o->deadline_seconds;
    if (!(d >= 0 && d <= MAX_DEADLINE))
        return mc_fail(error, MOEC_ERR_ARGUMENT, "a deadline of %g s: it must be a number of seconds, or 0 for %d", d,
                       DEFAULT_DEADLINE);
    *out_deadline = d > 0 ? d : DEFAULT_DEADLINE;
    return MOEC_OK;
}

moec_status
mc_comm_settle_nodes(const moec_comm_options *o, mc_comm_place *place, mc_fault *error)
{
    if (o->ranks_per_node) place->ranks_per_node = o->ranks_per_node;
    if (!place->ranks_per_node) place->ranks_per_node = 1;
    if (place->size % place->ranks_per_node == 0) return MOEC_OK;
    if (o->ranks_per_node)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "%u ranks for each node do not divide the %u ranks of the group",
                       o->ranks_per_node, place->size);
    place->ranks_per_node = 1; /* nodes with different numbers of ranks are no nodes to us */
    return MOEC_OK;
}

/* ---- opening -------------------------------------------------------------------------------------------------- */

static bool
launched(void)
{
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMI_SIZE") || getenv("PMIX_RANK");
}

static moec_status
find_backend(const char *name, const mc_comm_backend **out, mc_fault *error)
{
    static const struct {
        const char *name;
        const mc_comm_backend *backend;
    } known[] = {{"local", &mc_comm_local}, {"nccl", &mc_comm_nccl}};
    if (!name) name = launched() ? "mpi" : "local";
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            *out = known[i].backend;
            return MOEC_OK;
        }
    return mc_comm_load(name, out, error);
}

moec_status
moec_comm_open(const moec_comm_options *options, moec_comm **out_comm, moec_error *error)
{
    static const moec_comm_options defaults = {0};
    const moec_comm_options *o = options ? options : &defaults;
    const mc_comm_backend *backend = NULL;
    mc_comm_place place = {0};
    mc_fault e = {{0}};
    double deadline = 0;
    void *state = NULL;
    *out_comm = NULL;
    moec_status s = mc_comm_settle(o, &deadline, &e);
    if (s == MOEC_OK) s = find_backend(o->backend, &backend, &e);
    if (s == MOEC_OK) s = backend->open(o, deadline, &state, &place, &e);
    if (s != MOEC_OK) return mc_give(error, &e, s);
    if (!place.size || place.size > MC_COMM_MAX_RANKS || place.rank >= place.size)
        s = mc_fail(&e, MOEC_ERR_ARGUMENT, "%u ranks: at most %d are possible", place.size, MC_COMM_MAX_RANKS);
    if (s == MOEC_OK) s = mc_comm_settle_nodes(o, &place, &e);
    if (s != MOEC_OK) {
        backend->close(state, false);
        return mc_give(error, &e, s);
    }
    place.name[sizeof place.name - 1] = 0;
    s = mc_comm_make(backend, state, &place, deadline, out_comm, &e);
    return mc_give(error, &e, s);
}

void
moec_comm_close(moec_comm *c)
{
    if (!c) return;
    mc_comm_attach(c, NULL, NULL);
    bool clean = c->status == MOEC_OK;
    for (int i = 0; i < MC_COMM_REQUESTS; i++) clean = clean && !c->requests[i].busy;
    c->backend->close(c->state, clean);
    free_comm(c);
}

void
mc_comm_attach(moec_comm *c, void *thing, void (*end)(void *thing))
{
    if (c->attached) c->end_attached(c->attached);
    c->attached = thing;
    c->end_attached = end;
}

void *
mc_comm_attached(const moec_comm *c)
{
    return c->attached;
}

/* ---- what it is ----------------------------------------------------------------------------------------------- */

uint32_t
moec_comm_rank(const moec_comm *c)
{
    return c->place.rank;
}

uint32_t
moec_comm_size(const moec_comm *c)
{
    return c->place.size;
}

uint32_t
moec_comm_ranks_per_node(const moec_comm *c)
{
    return c->place.ranks_per_node;
}

const char *
moec_comm_backend(const moec_comm *c)
{
    return c->place.name;
}

void
mc_comm_identify(moec_comm *c, uint64_t hash, uint32_t epoch)
{
    c->hash = hash;
    c->epoch = epoch;
}

void
mc_comm_at_step(moec_comm *c, uint64_t step)
{
    c->step = step;
    c->at_step = true;
    c->calls = 0;
}
