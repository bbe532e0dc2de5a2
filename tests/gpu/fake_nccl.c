/* An NCCL whose ranks are threads of this process, on the fake CUDA driver: groups of sends and receives, communicators
 * that do not block, and the switches that tests turn (README.md). What a program must not do with the real one is
 * refused here. */
#define _GNU_SOURCE
#include "tests/gpu/fake_lock.h"
#include "tests/gpu/fake_nccl_impl.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FUNCTIONS = 32 };

__attribute__((visibility("default"))) fake_nccl_stats_fn fake_nccl_stats;

fake_nccl_numbers fake_nccl_now;

static fake_lock lock = FAKE_LOCK;
static fake_clique *cliques;
static uint64_t n_ids;
static _Thread_local bool grouping;
static _Thread_local fake_group *open_group; /* of this thread, between ncclGroupStart and ncclGroupEnd */

/* ---- switches and failures -------------------------------------------------------------------------------------- */

void
fake_nccl_lock(void)
{
    fake_lock_take(&lock);
}

void
fake_nccl_unlock(void)
{
    fake_lock_give(&lock);
}

int
fake_nccl_number(const char *variable, int otherwise)
{
    const char *text = getenv(variable);
    return text && *text ? atoi(text) : otherwise;
}

void
fake_nccl_stats(fake_nccl_numbers *out)
{
    fake_nccl_lock();
    *out = fake_nccl_now;
    fake_nccl_unlock();
}

/* $MOEC_FAKE_NCCL_FAIL=function:call:code. Takes the lock, which is held when it gives ncclSuccess. */
static ncclResult
enter(const char *function)
{
    static struct {
        const char *name;
        int n;
    } calls[MAX_FUNCTIONS];
    char name[64];
    int at = 0, call, code;
    fake_nccl_lock();
    while (at < MAX_FUNCTIONS - 1 && calls[at].name && strcmp(calls[at].name, function) != 0) at++;
    calls[at].name = function;
    calls[at].n++;
    const char *plan = getenv("MOEC_FAKE_NCCL_FAIL");
    if (!plan || sscanf(plan, "%63[^:]:%d:%d", name, &call, &code) != 3) return ncclSuccess;
    if (strcmp(name, function) != 0 || call != calls[at].n) return ncclSuccess;
    fake_nccl_unlock();
    return code;
}

static ncclResult
leave(ncclResult result)
{
    fake_nccl_unlock();
    return result;
}

#define ENTER                                                                                                          \
    ncclResult entered = enter(__func__);                                                                              \
    if (entered != ncclSuccess) return entered
#define LEAVE(result) return leave(result)

static ncclResult
refuse(ncclResult code, const char *why)
{
    fprintf(stderr, "fake NCCL: %s\n", why);
    return code;
}

/* Whether a call may be made now. */
static ncclResult
check(ncclComm comm)
{
    if (!comm || comm->gone) return refuse(ncclInvalidArgument, "a call with no communicator");
    if (comm->error != ncclSuccess) return comm->error;
    if (comm->busy || !comm->joined)
        return refuse(ncclInvalidArgument, "a call while the communicator is still busy with the one before");
    if (comm->finalized) return refuse(ncclInvalidUsage, "a call with a communicator that was finalized");
    return ncclSuccess;
}

static int
slowness(void)
{
    return fake_nccl_number("MOEC_FAKE_NCCL_SLOW", 2);
}

const char *
ncclGetErrorString(ncclResult result)
{
    static const char *const texts[] = {"no error",       "unhandled cuda error", "unhandled system error",
                                        "internal error", "invalid argument",     "invalid usage",
                                        "remote error",   "operation in progress"};
    return result >= 0 && result <= ncclInProgress ? texts[result] : "unknown result code";
}

const char *
ncclGetLastError(ncclComm comm)
{
    static _Thread_local char text[FAKE_TEXT];
    fake_nccl_lock();
    memcpy(text, comm ? comm->text : "", comm ? sizeof text : 1);
    fake_nccl_unlock();
    return text;
}

ncclResult
ncclGetVersion(int *out_version)
{
    *out_version = fake_nccl_number("MOEC_FAKE_NCCL_VERSION", 22809);
    return ncclSuccess;
}

/* ---- communicators ---------------------------------------------------------------------------------------------- */

ncclResult
ncclGetUniqueId(ncclUniqueId *out_id)
{
    ENTER;
    memset(out_id, 0, sizeof *out_id);
    snprintf(out_id->internal, sizeof out_id->internal, "fake %llu", (unsigned long long)++n_ids);
    LEAVE(ncclSuccess);
}

/* An id that nobody made is somebody's of another run: its ranks wait for ever. */
static fake_clique *
find_clique(const ncclUniqueId *id, int n_ranks)
{
    for (fake_clique *c = cliques; c; c = c->next)
        if (memcmp(&c->id, id, sizeof *id) == 0) return c;
    fake_clique *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->id = *id;
    c->n_ranks = n_ranks;
    c->next = cliques;
    cliques = c;
    fake_nccl_now.cliques++;
    return c;
}

ncclResult
ncclCommInitRankConfig(ncclComm *out_comm, int n_ranks, ncclUniqueId id, int rank, ncclConfig *config)
{
    ENTER;
    *out_comm = NULL;
    if (!config || config->size < sizeof *config || config->magic != NCCL_CONFIG_MAGIC || config->version < 21400)
        LEAVE(refuse(ncclInvalidArgument, "a config that is none"));
    if (config->blocking != 0) LEAVE(refuse(ncclInvalidArgument, "only communicators that do not block"));
    if (n_ranks < 1 || n_ranks > FAKE_MAX_RANKS || rank < 0 || rank >= n_ranks) LEAVE(ncclInvalidArgument);
    fake_clique *c = find_clique(&id, n_ranks);
    ncclComm comm = calloc(1, sizeof *comm);
    if (!c || !comm) LEAVE(ncclSystemError);
    if (c->n_ranks != n_ranks || c->ranks[rank]) LEAVE(refuse(ncclInvalidUsage, "a rank that is there already"));
    comm->clique = c;
    comm->rank = rank;
    comm->busy = slowness();
    c->ranks[rank] = comm;
    c->n_joined++;
    c->n_alive++;
    fake_nccl_now.comms++;
    *out_comm = comm;
    LEAVE(ncclInProgress);
}

/* Hands the group to the driver, without the lock: the driver asks for it at once. */
static ncclResult
enqueue(fake_group *g)
{
    fake_enqueue_fn *give = NULL;
    void *driver = dlopen(getenv("MOEC_CUDA_DRIVER"), RTLD_NOW);
    void *address = driver ? dlsym(driver, "fake_cuda_enqueue") : NULL;
    if (!address) return refuse(ncclUnhandledCudaError, "MOEC_CUDA_DRIVER is not the fake driver");
    memcpy(&give, &address, sizeof give);
    return give(g->stream, fake_group_done, g) == CUDA_SUCCESS ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult
ncclCommGetAsyncError(ncclComm comm, ncclResult *out_result)
{
    ENTER;
    fake_group *g = NULL;
    *out_result = ncclInProgress;
    if (!comm || comm->gone) LEAVE(refuse(ncclInvalidArgument, "the state of no communicator"));
    if (comm->busy) comm->busy--;
    if (!comm->joined && comm->clique->n_joined == comm->clique->n_ranks) comm->joined = true;
    if (comm->error != ncclSuccess) {
        *out_result = comm->error;
    } else if (!comm->busy && comm->joined) {
        g = comm->launch;
        comm->launch = NULL;
        if (!comm->finalized || !comm->n_alive) *out_result = ncclSuccess;
    }
    leave(ncclSuccess);
    if (g) *out_result = enqueue(g);
    return ncclSuccess;
}

ncclResult
ncclCommFinalize(ncclComm comm)
{
    ENTER;
    ncclResult r = check(comm);
    if (r != ncclSuccess) LEAVE(r);
    comm->finalized = true;
    comm->busy = slowness();
    LEAVE(ncclInProgress);
}

static void
unpost(ncclComm comm)
{
    for (fake_op **at = &comm->clique->posted; *at;) {
        if ((*at)->group->comm == comm)
            *at = (*at)->next_posted;
        else
            at = &(*at)->next_posted;
    }
}

static void
part(ncclComm comm)
{
    fake_clique *c = comm->clique;
    unpost(comm);
    comm->gone = true;
    comm->clique = NULL;
    c->ranks[comm->rank] = NULL;
    c->n_alive--;
    fake_nccl_now.comms--;
    if (comm->launch) fake_group_free(comm->launch);
    comm->launch = NULL;
    if (!comm->n_alive) free(comm); /* else with its last group */
    if (c->n_alive) return;
    fake_clique **at = &cliques;
    while (*at != c) at = &(*at)->next;
    *at = c->next;
    free(c);
    fake_nccl_now.cliques--;
}

ncclResult
ncclCommDestroy(ncclComm comm)
{
    ENTER;
    if (!comm || comm->gone) LEAVE(refuse(ncclInvalidArgument, "a communicator is destroyed that is gone"));
    if (!comm->finalized || comm->busy || comm->n_alive)
        LEAVE(refuse(ncclInvalidUsage, "a communicator is destroyed that is not finalized"));
    part(comm);
    LEAVE(ncclSuccess);
}

ncclResult
ncclCommAbort(ncclComm comm)
{
    ENTER;
    if (!comm || comm->gone) LEAVE(refuse(ncclInvalidArgument, "a communicator is aborted that is gone"));
    if (fake_nccl_number("MOEC_FAKE_NCCL_NETWORK", 0)) /* over a network the others notice */
        for (int r = 0; r < comm->clique->n_ranks; r++)
            if (r != comm->rank && comm->clique->ranks[r])
                fake_nccl_break(comm->clique->ranks[r], ncclRemoteError, "rank %d closed the connection", comm->rank);
    part(comm);
    LEAVE(ncclSuccess);
}

/* ---- groups ----------------------------------------------------------------------------------------------------- */

ncclResult
ncclGroupStart(void)
{
    ENTER;
    if (grouping) LEAVE(refuse(ncclInvalidUsage, "groups within groups are not imitated"));
    grouping = true;
    LEAVE(ncclSuccess);
}

static ncclResult
add(void *data, size_t n, int type, int peer, ncclComm comm, CUstream stream, bool receives)
{
    ncclResult r = check(comm);
    if (r != ncclSuccess) return r;
    if (!grouping) return refuse(ncclInvalidUsage, "a message outside of a group");
    if (!n || !data || type != ncclUint8 || peer < 0 || peer >= comm->clique->n_ranks) return ncclInvalidArgument;
    if (open_group && (open_group->comm != comm || open_group->stream != stream))
        return refuse(ncclInvalidUsage, "groups of several communicators or streams are not imitated");
    fake_op *op = calloc(1, sizeof *op);
    if (op && !open_group) {
        open_group = calloc(1, sizeof *open_group);
        if (open_group) {
            *open_group = (fake_group){.comm = comm, .stream = stream, .number = ++comm->n_groups};
            comm->n_alive++;
            fake_nccl_now.groups++;
            fake_nccl_now.groups_alive++;
        }
    }
    if (!op || !open_group) {
        free(op);
        return ncclSystemError;
    }
    *op = (fake_op){.group = open_group, .data = data, .n_bytes = n, .peer = peer, .receives = receives};
    fake_op **end = &open_group->ops;
    while (*end) end = &(*end)->next;
    *end = op;
    open_group->n_left++;
    return ncclSuccess;
}

ncclResult
ncclSend(const void *data, size_t n, int type, int peer, ncclComm comm, CUstream stream)
{
    ENTER;
    union {
        const void *given;
        void *kept; /* is only read */
    } address = {data};
    LEAVE(add(address.kept, n, type, peer, comm, stream, false));
}

ncclResult
ncclRecv(void *data, size_t n, int type, int peer, ncclComm comm, CUstream stream)
{
    ENTER;
    LEAVE(add(data, n, type, peer, comm, stream, true));
}

ncclResult
ncclGroupEnd(void)
{
    fake_group *g = open_group;
    if (!grouping) return refuse(ncclInvalidUsage, "the end of a group that was not begun");
    grouping = false;
    open_group = NULL;
    ncclResult entered = enter(__func__);
    if (entered != ncclSuccess) fake_nccl_lock();
    int slow = slowness();
    if (g && entered != ncclSuccess) fake_group_free(g);
    if (g && entered == ncclSuccess && slow) {
        g->comm->busy = slow;
        g->comm->launch = g;
    }
    fake_nccl_unlock();
    if (entered != ncclSuccess || !g) return entered;
    return slow ? ncclInProgress : enqueue(g);
}
