/* comm_threads: ranks that are threads of one process. The one idea: whoever comes second to a pair's exchange copies,
 * straight from the sender's buffer to the receiver's, under the receiver's lock.
 *
 * Each side of a pair counts the exchanges that it began with the other, those of 0 bytes too. So a run that finds the
 * other side ahead knows that it had 0 bytes in this one, and both sizes can always be compared. A rank's lock guards
 * what comes to it: the pairs (any, rank), their counts, and the runs of either side that wait there.
 *
 * After abort() nobody copies any more: it takes every lock once, so a copy under way has ended when it returns, and
 * buffers may go. aborted() is true only from then on. */
#define _POSIX_C_SOURCE 200809L
#include "runtime/abi_model.h"
#include "runtime/comm/comm_impl.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct request request;

typedef struct run { /* one direction of an exchange with one peer */
    struct run *next;
    request *of;
    void *data;
    size_t n_bytes;
    uint32_t peer, number; /* number: of the exchange, among the pair's */
    uint32_t direction;
    bool waiting; /* for the other side */
} run;

typedef struct pair {
    run *first, *last; /* that wait: all sends, or all receives */
    uint32_t begun[2]; /* exchanges begun by the sender, by the receiver */
} pair;

enum { SENDER = 0, RECEIVER = 1 };
enum { FINE = 0, CLAIMED = 1, WRONG = 2 };

struct request {
    atomic_uint pending; /* runs, and one while it is being begun */
    atomic_uint verdict;
    uint32_t peer, direction; /* when WRONG: the peer, and what sizes the two sides had */
    size_t ours, theirs;
    uint32_t n_runs;
    run *runs; /* [2 size] */
};

typedef struct group group;

typedef struct rank {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_uint events;
    atomic_bool rests;
    unsigned seen; /* events before the last look; the rank's own */
    atomic_bool left;
    uint32_t number;
    group *of;
    request requests[MC_COMM_REQUESTS];
    run *runs;
} rank;

struct group {
    uint32_t n, n_ready; /* ready: their lock and condition exist */
    atomic_uint n_open, n_left;
    pair *pairs; /* [receiver][sender] */
    rank *ranks;
    pthread_mutex_t lock; /* of who and why */
    atomic_bool broken, told;
    uint32_t who;
    char why[MC_FAULT_BYTES];
};

/* ---- waking --------------------------------------------------------------------------------------------------- */

/* Counts the event, then looks whether the rank rests; the rank says that it rests, then looks at the count. Both are
 * sequentially consistent, so one of the two sees the other. */
static void
wake(rank *r)
{
    atomic_fetch_add(&r->events, 1);
    if (!atomic_load(&r->rests)) return;
    pthread_mutex_lock(&r->lock);
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static void
wake_all(group *g, const rank *but)
{
    for (uint32_t i = 0; i < g->n; i++)
        if (&g->ranks[i] != but) wake(&g->ranks[i]);
}

static void
rest(void *state, double seconds)
{
    rank *r = state;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double whole = (double)(long)seconds;
    t.tv_sec += (long)seconds;
    t.tv_nsec += (long)((seconds - whole) * 1e9);
    if (t.tv_nsec >= 1000000000) {
        t.tv_nsec -= 1000000000;
        t.tv_sec++;
    }
    pthread_mutex_lock(&r->lock);
    atomic_store(&r->rests, true);
    while (atomic_load(&r->events) == r->seen && pthread_cond_timedwait(&r->changed, &r->lock, &t) == 0) continue;
    atomic_store(&r->rests, false);
    pthread_mutex_unlock(&r->lock);
}

/* ---- runs that meet ------------------------------------------------------------------------------------------- */

/* Takes one from what a request waits for. True: that was the last. */
static bool
count_down(request *q)
{
    return atomic_fetch_sub_explicit(&q->pending, 1, memory_order_acq_rel) == 1;
}

static void
condemn(request *q, uint32_t peer, uint32_t direction, size_t ours, size_t theirs)
{
    unsigned fine = FINE;
    if (!atomic_compare_exchange_strong(&q->verdict, &fine, CLAIMED)) return;
    q->peer = peer;
    q->direction = direction;
    q->ours = ours;
    q->theirs = theirs;
    atomic_store(&q->verdict, WRONG);
}

static void
append(pair *p, run *mine)
{
    mine->waiting = true;
    mine->next = NULL;
    if (p->first)
        p->last->next = mine;
    else
        p->first = mine;
    p->last = mine;
}

/* Begins one direction of an exchange with mine->peer. Returns the rank that has reason to wake up. */
static rank *
meet(rank *me, run *mine)
{
    group *g = me->of;
    uint32_t direction = mine->direction;
    rank *other = &g->ranks[mine->peer], *receiver = direction == SENDER ? other : me, *woken = NULL;
    const rank *sender = direction == SENDER ? me : other;
    pair *p = &g->pairs[(size_t)receiver->number * g->n + sender->number];
    pthread_mutex_lock(&receiver->lock);
    mine->number = p->begun[direction]++;
    if (atomic_load(&g->broken)) {
        pthread_mutex_unlock(&receiver->lock);
        return NULL;
    }
    if ((int32_t)(p->begun[!direction] - mine->number) <= 0) {
        if (mine->n_bytes) append(p, mine);
    } else {
        run *theirs = p->first && p->first->number == mine->number ? p->first : NULL;
        size_t n = theirs ? theirs->n_bytes : 0;
        if (theirs) {
            p->first = theirs->next;
            theirs->waiting = false;
        }
        if (n != mine->n_bytes) {
            condemn(mine->of, mine->peer, direction, mine->n_bytes, n);
            if (theirs) condemn(theirs->of, me->number, !direction, n, mine->n_bytes);
            woken = theirs ? other : NULL;
        } else if (n) {
            if (direction == SENDER)
                memcpy(theirs->data, mine->data, n);
            else
                memcpy(mine->data, theirs->data, n);
            count_down(mine->of);
            if (count_down(theirs->of)) woken = other;
        }
    }
    pthread_mutex_unlock(&receiver->lock);
    return woken;
}

static moec_status
copy_own(const rank *me, mc_comm_run from, mc_comm_run to, mc_fault *error)
{
    if (from.n_bytes != to.n_bytes)
        return mc_fail(error, MOEC_ERR_MISMATCH, "rank %u sends itself %zu bytes and expects %zu", me->number,
                       from.n_bytes, to.n_bytes);
    if (to.n_bytes) memmove(to.data, from.data, to.n_bytes);
    return MOEC_OK;
}

static moec_status
begin(void *state, uint32_t index, const mc_exchange *x, mc_fault *error)
{
    rank *me = state;
    request *q = &me->requests[index];
    uint32_t n = x->n_peers, next = 0;
    moec_status s = MOEC_OK;
    q->n_runs = 0;
    atomic_store(&q->verdict, FINE);
    atomic_store(&q->pending, 1);
    while (next < n && x->peers[next] <= me->number) next++;
    for (uint32_t i = 0; i < n; i++) { /* not everybody with rank 0 first */
        uint32_t at = (next + i) % n, peer = x->peers[at];
        if (peer == me->number) {
            s = copy_own(me, x->send[at], x->recv[at], error);
            continue;
        }
        for (uint32_t direction = SENDER; direction <= RECEIVER; direction++) {
            mc_comm_run r = direction == SENDER ? x->send[at] : x->recv[at];
            run *mine = &q->runs[q->n_runs];
            *mine = (run){.of = q, .data = r.data, .n_bytes = r.n_bytes, .peer = peer, .direction = direction};
            if (r.n_bytes) {
                q->n_runs++;
                atomic_fetch_add_explicit(&q->pending, 1, memory_order_relaxed);
            }
            rank *woken = meet(me, mine);
            if (woken) wake(woken);
        }
    }
    count_down(q);
    return s;
}

/* ---- how it goes ---------------------------------------------------------------------------------------------- */

static bool
waits(rank *me, const run *r)
{
    rank *receiver = r->direction == RECEIVER ? me : &me->of->ranks[r->peer];
    pthread_mutex_lock(&receiver->lock);
    bool is = r->waiting;
    pthread_mutex_unlock(&receiver->lock);
    return is;
}

/* The lowest peer that this rank waits for, of those that left or of all; of one peer, what it owes before what it has
 * not taken. */
static const run *
awaited(rank *me, const request *q, bool left)
{
    const run *found = NULL;
    for (uint32_t i = 0; i < q->n_runs; i++) {
        const run *r = &q->runs[i];
        if (left && !atomic_load(&me->of->ranks[r->peer].left)) continue;
        if (found && (found->peer < r->peer || (found->peer == r->peer && found->direction == RECEIVER))) continue;
        if (waits(me, r)) found = r;
    }
    return found;
}

static moec_status
wrong_size(const request *q, mc_fault *error)
{
    if (q->direction == RECEIVER)
        return mc_fail(error, MOEC_ERR_MISMATCH, "rank %u sends %zu bytes where %zu are expected", q->peer, q->theirs,
                       q->ours);
    return mc_fail(error, MOEC_ERR_MISMATCH, "rank %u expects %zu bytes where %zu are sent", q->peer, q->theirs,
                   q->ours);
}

static moec_status
test(void *state, uint32_t index, bool *out_done, uint32_t *out_peer, mc_fault *error)
{
    rank *me = state;
    request *q = &me->requests[index];
    me->seen = atomic_load(&me->events);
    *out_done = atomic_load_explicit(&q->pending, memory_order_acquire) == 0;
    if (*out_done) return MOEC_OK;
    if (atomic_load(&q->verdict) == WRONG) {
        *out_peer = q->peer;
        return wrong_size(q, error);
    }
    if (atomic_load(&me->of->broken) || atomic_load(&me->of->n_left) == 0) return MOEC_OK;
    const run *r = awaited(me, q, true);
    if (!r) return MOEC_OK;
    *out_peer = r->peer;
    return mc_fail(error, MOEC_ERR_COMM, "rank %u left the group; it should %s %zu bytes", r->peer,
                   r->direction == RECEIVER ? "send" : "take", r->n_bytes);
}

static void
late(void *state, uint32_t index, uint32_t *out_peer, size_t *out_bytes)
{
    rank *me = state;
    const run *found = awaited(me, &me->requests[index], false);
    *out_peer = found ? found->peer : me->number;
    *out_bytes = found && found->direction == RECEIVER ? found->n_bytes : 0;
}

/* ---- the end -------------------------------------------------------------------------------------------------- */

static void
abort_group(void *state, const char *why)
{
    rank *me = state;
    group *g = me->of;
    pthread_mutex_lock(&g->lock);
    if (!atomic_load(&g->broken)) {
        g->who = me->number;
        snprintf(g->why, sizeof g->why, "%s", why);
        atomic_store(&g->broken, true);
    }
    pthread_mutex_unlock(&g->lock);
    for (uint32_t i = 0; i < g->n; i++) {
        pthread_mutex_lock(&g->ranks[i].lock);
        pthread_mutex_unlock(&g->ranks[i].lock);
    }
    if (!atomic_exchange(&g->told, true)) wake_all(g, me);
}

static bool
aborted(void *state, uint32_t *out_rank, char *out_why, size_t n_bytes)
{
    rank *me = state;
    group *g = me->of;
    if (!atomic_load(&g->told) || g->who == me->number) return false;
    *out_rank = g->who;
    snprintf(out_why, n_bytes, "%s", g->why);
    return true;
}

static void
free_group(group *g)
{
    for (uint32_t i = 0; i < g->n_ready; i++) {
        pthread_cond_destroy(&g->ranks[i].changed);
        pthread_mutex_destroy(&g->ranks[i].lock);
    }
    for (uint32_t i = 0; g->ranks && i < g->n; i++) free(g->ranks[i].runs);
    pthread_mutex_destroy(&g->lock);
    free(g->ranks);
    free(g->pairs);
    free(g);
}

static void
leave(void *state, bool clean)
{
    rank *me = state;
    group *g = me->of;
    if (!clean) abort_group(me, "");
    atomic_store(&me->left, true);
    atomic_fetch_add(&g->n_left, 1);
    wake_all(g, me);
    if (atomic_fetch_sub(&g->n_open, 1) == 1) free_group(g);
}

/* ---- the beginning -------------------------------------------------------------------------------------------- */

static const mc_comm_backend threads = {
    .n_bytes = sizeof threads,
    .version = MC_COMM_BACKEND_VERSION,
    .close = leave, /* opened by moec_comm_threads */
    .begin = begin,
    .test = test,
    .late = late,
    .rest = rest,
    .abort = abort_group,
    .aborted = aborted,
};

static bool
make_rank(group *g, uint32_t number)
{
    rank *r = &g->ranks[number];
    pthread_condattr_t monotonic;
    r->number = number;
    r->of = g;
    r->runs = calloc((size_t)2 * g->n * MC_COMM_REQUESTS, sizeof *r->runs);
    if (!r->runs || pthread_mutex_init(&r->lock, NULL) != 0) return false;
    bool well = pthread_condattr_init(&monotonic) == 0;
    if (well) {
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        well = pthread_cond_init(&r->changed, &monotonic) == 0;
        pthread_condattr_destroy(&monotonic);
    }
    if (!well) {
        pthread_mutex_destroy(&r->lock);
        return false;
    }
    for (uint32_t i = 0; i < MC_COMM_REQUESTS; i++) r->requests[i].runs = r->runs + (size_t)2 * g->n * i;
    g->n_ready++;
    return true;
}

static group *
make_group(uint32_t n)
{
    group *g = calloc(1, sizeof *g);
    if (!g) return NULL;
    if (pthread_mutex_init(&g->lock, NULL) != 0) {
        free(g);
        return NULL;
    }
    g->n = n;
    atomic_store(&g->n_open, n);
    g->pairs = calloc((size_t)n * n, sizeof *g->pairs);
    g->ranks = calloc(n, sizeof *g->ranks);
    bool well = g->pairs && g->ranks;
    for (uint32_t i = 0; i < n && well; i++) well = make_rank(g, i);
    if (well) return g;
    free_group(g);
    return NULL;
}

moec_status
moec_comm_threads(uint32_t n_ranks, const moec_comm_options *options, moec_comm **out_comms, moec_error *error)
{
    static const moec_comm_options defaults = {0};
    const moec_comm_options *o = options ? options : &defaults;
    mc_fault e = {{0}};
    double deadline = 0;
    if (n_ranks == 0 || n_ranks > MC_COMM_MAX_RANKS)
        return mc_give(
            error, &e,
            mc_fail(&e, MOEC_ERR_ARGUMENT, "%u ranks: from 1 to %d are possible", n_ranks, MC_COMM_MAX_RANKS));
    for (uint32_t i = 0; i < n_ranks; i++) out_comms[i] = NULL;
    mc_comm_place place = {.size = n_ranks, .ranks_per_node = n_ranks};
    snprintf(place.name, sizeof place.name, "threads");
    moec_status s = mc_comm_settle(o, &deadline, &e);
    if (s == MOEC_OK) s = mc_comm_settle_nodes(o, &place, &e);
    if (s != MOEC_OK) return mc_give(error, &e, s);
    group *g = make_group(n_ranks);
    if (!g) return mc_give(error, &e, mc_fail(&e, MOEC_ERR_MEMORY, "out of memory"));
    for (uint32_t i = 0; i < n_ranks; i++) {
        place.rank = i;
        if (s == MOEC_OK)
            s = mc_comm_make(&threads, &g->ranks[i], &place, deadline, &out_comms[i], &e);
        else
            leave(&g->ranks[i], false);
    }
    for (uint32_t i = 0; s != MOEC_OK && i < n_ranks; i++) {
        moec_comm_close(out_comms[i]);
        out_comms[i] = NULL;
    }
    return mc_give(error, &e, s);
}
