/* comm_faults: see comm_faults.h. Only begin and test do something of their own. */
#define _POSIX_C_SOURCE 200809L
#include "tests/support/comm_faults.h"

#include "runtime/comm/comm_impl.h"

#include <sched.h>
#include <stdlib.h>
#include <time.h>

typedef struct faulty {
    const mc_comm_backend *inner;
    void *state;
    mc_comm_faults faults;
    uint64_t random;
    uint32_t rank, n_begun;
    bool dead;
    bool delayed[MC_COMM_REQUESTS]; /* its end was held back already */
    mc_comm_run *send;              /* [size] */
} faulty;

static void
nap(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

static void
delay(faulty *f)
{
    if (f->faults.longest_delay <= 0) return;
    f->random = f->random * 6364136223846793005u + 1442695040888963407u;
    double share = (double)(f->random >> 40) / (double)(1 << 24);
    if (share < 0.5)
        sched_yield(); /* half of them are not late at all */
    else
        nap((2 * share - 1) * f->faults.longest_delay);
}

static moec_status
dead(mc_fault *error)
{
    return mc_fail(error, MOEC_ERR_COMM, "this rank was made to die");
}

static moec_status
begin(void *state, uint32_t index, const mc_exchange *x, mc_fault *error)
{
    faulty *f = state;
    mc_exchange changed = *x;
    if (f->dead) return dead(error);
    delay(f);
    f->delayed[index] = false;
    if (++f->n_begun != f->faults.at) return f->inner->begin(f->state, index, x, error);
    switch (f->faults.kind) {
    case MC_COMM_NO_FAULT: break;
    case MC_COMM_DIES:
        f->dead = true;
        f->inner->close(f->state, false);
        return dead(error);
    case MC_COMM_STOPS: nap(f->faults.seconds); break;
    case MC_COMM_SHORT:
        for (uint32_t i = 0; i < x->n_peers; i++) {
            f->send[i] = x->send[i];
            if (x->send[i].n_bytes && x->peers[i] != f->rank) f->send[i].n_bytes--;
        }
        changed.send = f->send;
        break;
    case MC_COMM_SPOILS:
        for (uint32_t i = 0; i < x->n_peers; i++)
            if (x->send[i].n_bytes > f->faults.offset) ((unsigned char *)x->send[i].data)[f->faults.offset] ^= 0x10;
        break;
    case MC_COMM_FAILS: return mc_fail(error, MOEC_ERR_COMM, "a wire was cut");
    }
    return f->inner->begin(f->state, index, &changed, error);
}

static moec_status
test(void *state, uint32_t index, bool *out_done, uint32_t *out_peer, mc_fault *error)
{
    faulty *f = state;
    if (f->dead) return dead(error);
    moec_status s = f->inner->test(f->state, index, out_done, out_peer, error);
    if (s == MOEC_OK && *out_done && !f->delayed[index]) {
        f->delayed[index] = true;
        delay(f);
    }
    return s;
}

static void
late(void *state, uint32_t index, uint32_t *out_peer, size_t *out_bytes)
{
    faulty *f = state;
    *out_peer = 0;
    *out_bytes = 0;
    if (!f->dead) f->inner->late(f->state, index, out_peer, out_bytes);
}

static void
rest(void *state, double seconds)
{
    faulty *f = state;
    if (!f->dead && f->inner->rest)
        f->inner->rest(f->state, seconds);
    else
        sched_yield();
}

static void
tell(void *state, const char *why)
{
    faulty *f = state;
    if (!f->dead) f->inner->abort(f->state, why);
}

static bool
aborted(void *state, uint32_t *out_rank, char *out_why, size_t n_bytes)
{
    faulty *f = state;
    return !f->dead && f->inner->aborted && f->inner->aborted(f->state, out_rank, out_why, n_bytes);
}

static void
leave(void *state, bool clean)
{
    faulty *f = state;
    if (!f->dead) f->inner->close(f->state, clean);
    free(f->send);
    free(f);
}

static const mc_comm_backend table = {
    .n_bytes = sizeof table,
    .version = MC_COMM_BACKEND_VERSION,
    .close = leave, /* never opened: put over one that is */
    .begin = begin,
    .test = test,
    .late = late,
    .rest = rest,
    .abort = tell,
    .aborted = aborted,
};

bool
mc_comm_inject(moec_comm *comm, const mc_comm_faults *faults)
{
    faulty *f = calloc(1, sizeof *f);
    if (!f) return false;
    f->send = calloc(comm->place.size, sizeof *f->send);
    if (!f->send) {
        free(f);
        return false;
    }
    f->inner = comm->backend;
    f->state = comm->state;
    f->faults = *faults;
    f->rank = comm->place.rank;
    f->random = faults->seed + 0x9E3779B97F4A7C15u * (comm->place.rank + 1);
    comm->backend = &table;
    comm->state = f;
    return true;
}

uint32_t
mc_comm_begun(const moec_comm *comm)
{
    return comm->backend == &table ? ((const faulty *)comm->state)->n_begun : 0;
}
