/* Streams, events and graphs of the fake device. Work is done at once, or (MOEC_FAKE_LAZY=1) when somebody waits for
 * it, so that whoever forgets to wait sees old bytes. A capture is a list of work that graphs repeat. Captures of one
 * stream only: no forks. */
#define _GNU_SOURCE
#include "tests/gpu/fake_cuda.h"

#include "runtime/abi.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct queue {
    fake_work *items;
    size_t n, room;
} queue;

struct CUstream_st {
    CUstream next;
    CUcontext context;
    queue work;
    CUgraph captured; /* while it captures */
    bool spoiled, blocking, running;
};

struct CUevent_st {
    CUcontext context;
    CUstream stream;         /* of the last record */
    uint64_t recorded, done; /* numbers of records */
    unsigned flags;
    double seconds; /* when the last record was reached */
};

struct CUgraph_st {
    queue work;
};

struct CUgraphExec_st {
    CUcontext context;
    queue work;
};

static struct CUstream_st legacy[FAKE_MAX_DEVICES]; /* the stream NULL of each device */
static CUstream streams;

static void finish(CUstream s);

/* ---- queues --------------------------------------------------------------------------------------------------------
 */

static bool
push(queue *q, fake_work w)
{
    if (q->n == q->room) {
        size_t room = q->room ? 2 * q->room : 64;
        fake_work *more = realloc(q->items, room * sizeof *more);
        if (!more) return false;
        q->items = more;
        q->room = room;
    }
    q->items[q->n++] = w;
    return true;
}

static void
empty(queue *q)
{
    for (size_t i = 0; i < q->n; i++) free(q->items[i].kept);
    free(q->items);
    *q = (queue){0};
}

/* ---- doing the work ------------------------------------------------------------------------------------------------
 */

static double
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void
copy(CUcontext c, const fake_work *w)
{
    unsigned char *to = (unsigned char *)(uintptr_t)w->to;
    const unsigned char *from = (const unsigned char *)(uintptr_t)w->from;
    bool to_device = fake_is_memory(w->to, w->n, CU_MEMORYTYPE_DEVICE);
    bool from_device = fake_is_memory(w->from, w->n, CU_MEMORYTYPE_DEVICE);
    if (!to_device && !from_device)
        fake_lose(c, CUDA_ERROR_ILLEGAL_ADDRESS, "a copy's memory was freed before it");
    else
        memmove(to, from, w->n);
}

static void
set(CUcontext c, const fake_work *w)
{
    unsigned char *to = (unsigned char *)(uintptr_t)w->to;
    if (!fake_is_memory(w->to, w->n * w->element, CU_MEMORYTYPE_DEVICE)) {
        fake_lose(c, CUDA_ERROR_ILLEGAL_ADDRESS, "memory was freed before it was set");
        return;
    }
    for (size_t i = 0; i < w->n; i++) memcpy(to + i * w->element, &w->value, w->element); /* little-endian */
}

/* How far it came: work of another library may have to wait. */
static size_t
work_off(CUcontext c, const queue *q)
{
    for (size_t i = 0; i < q->n && c->lost == CUDA_SUCCESS; i++) {
        const fake_work *w = &q->items[i];
        CUresult r = CUDA_SUCCESS;
        switch (w->kind) {
        case FAKE_COPY: copy(c, w); break;
        case FAKE_SET: set(c, w); break;
        case FAKE_LAUNCH: r = fake_run_launch(c, w); break;
        case FAKE_GRAPH: work_off(c, &w->graph->work); break;
        case FAKE_RECORD:
            w->event->done = w->mark;
            w->event->seconds = now();
            break;
        case FAKE_WAIT:
            if (w->event->done < w->mark) finish(w->event->stream);
            if (w->event->done < w->mark) return i;
            break;
        case FAKE_FOREIGN:
            if (!w->done(w->argument)) return i;
            break;
        }
        if (r != CUDA_SUCCESS) fake_lose(c, r, "the context is lost");
    }
    return q->n;
}

static void
finish(CUstream s)
{
    if (s->running || !s->work.n) return; /* running: it waits for itself */
    queue q = s->work;
    s->work = (queue){0};
    s->running = true;
    fake_open_memory();
    size_t done = work_off(s->context, &q);
    fake_close_memory();
    s->running = false;
    for (size_t i = 0; i < done; i++) free(q.items[i].kept);
    q.n -= done;
    memmove(q.items, q.items + done, q.n * sizeof *q.items);
    if (q.n)
        s->work = q;
    else
        free(q.items);
}

void
fake_finish_all(CUcontext context)
{
    finish(&legacy[context->device]);
    for (CUstream s = streams; s; s = s->next)
        if (s->context == context) finish(s);
}

static bool
is_busy(CUcontext context)
{
    if (context->lost != CUDA_SUCCESS) return false;
    if (legacy[context->device].work.n) return true;
    for (CUstream s = streams; s; s = s->next)
        if (s->context == context && s->work.n) return true;
    return false;
}

void
fake_wait_for_device(CUcontext context)
{
    for (fake_finish_all(context); is_busy(context); fake_finish_all(context)) fake_pause();
}

/* The stream of a handle; NULL when it is none of this context. */
static CUstream
resolve(CUstream handle)
{
    CUcontext c = fake_context();
    if (!handle) {
        legacy[c->device].context = c;
        legacy[c->device].blocking = true;
        return &legacy[c->device];
    }
    for (CUstream s = streams; s; s = s->next)
        if (s == handle) return s->context == c ? s : NULL;
    return NULL;
}

/* The stream NULL and blocking streams wait for each other. */
static CUresult
order_with_legacy(CUstream s)
{
    CUstream null = &legacy[s->context->device];
    if (!s->blocking) return CUDA_SUCCESS;
    if (s != null) {
        if (null->work.n) finish(null);
        return CUDA_SUCCESS;
    }
    for (CUstream other = streams; other; other = other->next) {
        if (other->context != s->context || !other->blocking) continue;
        if (other->captured) {
            other->spoiled = true;
            return FAKE_CAPTURE_IMPLICIT;
        }
        finish(other);
    }
    return CUDA_SUCCESS;
}

CUresult
fake_append(CUstream handle, fake_work w)
{
    CUstream s = resolve(handle);
    CUresult r = s ? order_with_legacy(s) : FAKE_INVALID_HANDLE;
    if (r == CUDA_SUCCESS && !push(s->captured ? &s->captured->work : &s->work, w)) r = CUDA_ERROR_OUT_OF_MEMORY;
    if (r != CUDA_SUCCESS) {
        free(w.kept);
        return r;
    }
    if (!s->captured && !fake_number("MOEC_FAKE_LAZY", 0)) finish(s);
    return CUDA_SUCCESS;
}

__attribute__((visibility("default"))) fake_enqueue_fn fake_cuda_enqueue;

int
fake_cuda_enqueue(void *stream, fake_done_fn *done, void *argument)
{
    ENTER(true);
    if (fake_is_capturing()) LEAVE(fake_spoil_capture());
    LEAVE(fake_append(stream, (fake_work){.kind = FAKE_FOREIGN, .done = done, .argument = argument}));
}

/* ---- streams -------------------------------------------------------------------------------------------------------
 */

CUresult
cuStreamCreate(CUstream *out_stream, unsigned flags)
{
    ENTER(true);
    CUstream s = calloc(1, sizeof *s);
    if (!s) LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
    s->context = fake_context();
    s->blocking = !(flags & CU_STREAM_NON_BLOCKING);
    s->next = streams;
    streams = s;
    fake_now.streams++;
    *out_stream = s;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuStreamDestroy(CUstream stream)
{
    ENTER(false);
    for (CUstream *at = &streams; *at; at = &(*at)->next) {
        if (*at != stream) continue;
        *at = stream->next;
        finish(stream);
        empty(&stream->work);
        if (stream->captured) empty(&stream->captured->work);
        free(stream->captured);
        free(stream);
        fake_now.streams--;
        LEAVE(CUDA_SUCCESS);
    }
    LEAVE(fake_refuse(FAKE_INVALID_HANDLE, "a stream is destroyed that there is not"));
}

CUresult
cuStreamSynchronize(CUstream stream)
{
    ENTER(true);
    CUstream s = resolve(stream);
    if (!s) LEAVE(FAKE_INVALID_HANDLE);
    if (s->captured) {
        s->spoiled = true;
        LEAVE(FAKE_CAPTURE_UNSUPPORTED);
    }
    CUresult r = order_with_legacy(s);
    if (r != CUDA_SUCCESS) LEAVE(r);
    for (finish(s); s->work.n && s->context->lost == CUDA_SUCCESS; finish(s)) fake_pause();
    fake_now.synchronizations++;
    LEAVE(fake_context()->lost);
}

CUresult
cuStreamGetCtx(CUstream stream, CUcontext *out_context)
{
    ENTER(true);
    *out_context = NULL;
    if (!stream) *out_context = fake_context();
    for (CUstream s = streams; s && stream; s = s->next)
        if (s == stream) *out_context = s->context;
    LEAVE(*out_context ? CUDA_SUCCESS : FAKE_INVALID_HANDLE);
}

/* ---- events --------------------------------------------------------------------------------------------------------
 */

CUresult
cuEventCreate(CUevent *out_event, unsigned flags)
{
    ENTER(true);
    CUevent e = calloc(1, sizeof *e);
    if (!e) LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
    e->context = fake_context();
    e->flags = flags;
    fake_now.events++;
    *out_event = e;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuEventDestroy(CUevent event)
{
    ENTER(false);
    if (!event) LEAVE(FAKE_INVALID_HANDLE);
    fake_finish_all(event->context); /* streams may still want it */
    free(event);
    fake_now.events--;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuEventRecord(CUevent event, CUstream stream)
{
    ENTER(true);
    CUstream s = resolve(stream);
    if (!event || !s) LEAVE(FAKE_INVALID_HANDLE);
    if (s->captured) LEAVE(fake_refuse(FAKE_CAPTURE_UNSUPPORTED, "events in a capture are not imitated"));
    event->stream = s;
    event->recorded++;
    LEAVE(fake_append(stream, (fake_work){.kind = FAKE_RECORD, .event = event, .mark = event->recorded}));
}

CUresult
cuEventQuery(CUevent event)
{
    ENTER(true);
    if (!event) LEAVE(FAKE_INVALID_HANDLE);
    if (event->done < event->recorded) finish(event->stream);
    LEAVE(event->done < event->recorded ? FAKE_NOT_READY : fake_context()->lost);
}

CUresult
cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags)
{
    ENTER(true);
    CUstream s = resolve(stream);
    if (!event || !s || flags) LEAVE(FAKE_INVALID_HANDLE);
    if (s->captured) LEAVE(fake_refuse(FAKE_CAPTURE_UNSUPPORTED, "events in a capture are not imitated"));
    if (event->recorded == 0) LEAVE(CUDA_SUCCESS);
    LEAVE(fake_append(stream, (fake_work){.kind = FAKE_WAIT, .event = event, .mark = event->recorded}));
}

CUresult
cuEventElapsedTime(float *out_milliseconds, CUevent begin, CUevent end)
{
    ENTER(true);
    if (!begin || !end || (begin->flags | end->flags) & CU_EVENT_DISABLE_TIMING) LEAVE(FAKE_INVALID_HANDLE);
    if (!begin->recorded || !end->recorded) LEAVE(FAKE_INVALID_HANDLE);
    if (begin->done < begin->recorded || end->done < end->recorded) LEAVE(FAKE_NOT_READY);
    *out_milliseconds = (float)(1e3 * (end->seconds - begin->seconds));
    LEAVE(CUDA_SUCCESS);
}

/* ---- capture and graphs --------------------------------------------------------------------------------------------
 */

static CUstream
capturing(void)
{
    for (CUstream s = streams; s; s = s->next)
        if (s->captured && s->context == fake_context()) return s;
    return NULL;
}

bool
fake_is_capturing(void)
{
    return capturing() != NULL;
}

CUresult
fake_spoil_capture(void)
{
    capturing()->spoiled = true;
    return fake_refuse(FAKE_CAPTURE_UNSUPPORTED, "a call that must not be made while a stream captures");
}

CUresult
cuStreamIsCapturing(CUstream stream, int *out_status)
{
    ENTER(true);
    CUstream s = resolve(stream);
    if (!s) LEAVE(FAKE_INVALID_HANDLE);
    *out_status = !s->captured ? CU_STREAM_CAPTURE_STATUS_NONE : s->spoiled ? 2 : 1;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuStreamBeginCapture(CUstream stream, int mode)
{
    ENTER(true);
    CUstream s = resolve(stream);
    if (!s || s->captured || mode < 0 || mode > 2) LEAVE(FAKE_INVALID_VALUE);
    if (s == &legacy[s->context->device]) LEAVE(FAKE_CAPTURE_UNSUPPORTED);
    s->captured = calloc(1, sizeof *s->captured);
    s->spoiled = false;
    LEAVE(s->captured ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}

CUresult
cuStreamEndCapture(CUstream stream, CUgraph *out_graph)
{
    ENTER(true);
    CUstream s = resolve(stream);
    *out_graph = NULL;
    if (!s || !s->captured) LEAVE(FAKE_INVALID_VALUE);
    CUgraph g = s->captured;
    s->captured = NULL;
    if (s->spoiled) {
        empty(&g->work);
        free(g);
        LEAVE(FAKE_CAPTURE_INVALIDATED);
    }
    fake_now.graphs++;
    *out_graph = g;
    LEAVE(CUDA_SUCCESS);
}

static size_t
kept_bytes(const fake_work *w)
{
    return !w->kept ? 0 : w->kind == FAKE_COPY ? w->n : sizeof(moec_gpu_args);
}

CUresult
cuGraphInstantiateWithFlags(CUgraphExec *out_exec, CUgraph graph, unsigned long long flags)
{
    ENTER(true);
    if (!graph || flags) LEAVE(FAKE_INVALID_VALUE);
    CUgraphExec e = calloc(1, sizeof *e);
    if (!e) LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
    e->context = fake_context();
    for (size_t i = 0; i < graph->work.n; i++) {
        fake_work w = graph->work.items[i];
        size_t n = kept_bytes(&w);
        if (n) {
            void *kept = malloc(n);
            if (kept) memcpy(kept, w.kept, n);
            if (w.from == (uintptr_t)w.kept) w.from = (uintptr_t)kept;
            w.kept = kept;
        }
        if ((n && !w.kept) || !push(&e->work, w)) LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
    }
    fake_now.graph_execs++;
    *out_exec = e;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuGraphLaunch(CUgraphExec exec, CUstream stream)
{
    ENTER(true);
    if (!exec || exec->context != fake_context()) LEAVE(FAKE_INVALID_VALUE);
    fake_now.graph_launches++;
    LEAVE(fake_append(stream, (fake_work){.kind = FAKE_GRAPH, .graph = exec}));
}

CUresult
cuGraphExecDestroy(CUgraphExec exec)
{
    ENTER(false);
    if (!exec) LEAVE(FAKE_INVALID_VALUE);
    fake_finish_all(exec->context);
    empty(&exec->work);
    free(exec);
    fake_now.graph_execs--;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuGraphDestroy(CUgraph graph)
{
    ENTER(false);
    if (!graph) LEAVE(FAKE_INVALID_VALUE);
    empty(&graph->work);
    free(graph);
    fake_now.graphs--;
    LEAVE(CUDA_SUCCESS);
}
