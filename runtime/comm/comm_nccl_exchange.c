/* Exchanges over NCCL: one group of sends and receives each, all on one stream in the order of their begin, which is
 * the same on all ranks. A communicator that does not block may still be starting one group when the next is begun:
 * that one then waits in a queue here, since NCCL takes no call meanwhile. What the processor receives is copied to its
 * place when the event behind it all has come. */
#include "runtime/base/clock.h"
#include "runtime/comm/comm_nccl.h"

#include <assert.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { RUN_ALIGN = 256, LEAST_ROOM = 65536, TAIL = 16 };
/* What a copy holds before a message is received into it. */
enum { UNTOUCHED = 0xA5 };

#define CUDA(name, ...) MC_CUDA(n->gpu->cuda, error, name, __VA_ARGS__)
#define NCCL(name, ...) mc_nccl_check(n->api, n->comm, n->api->name(__VA_ARGS__), #name, error)

static const double look_seconds = 0.25, yield_seconds = 0.001, longest_nap = 0.001;

/* ---- what is to be moved ---------------------------------------------------------------------------------------- */

/* Memory of this GPU: NCCL reads and writes it where it lies. All else is the processor's to copy. */
static moec_status
is_on_device(const mc_nccl *n, const void *data, bool *out, mc_fault *error)
{
    int attributes[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                        CU_POINTER_ATTRIBUTE_IS_MANAGED};
    unsigned type = 0, managed = 0;
    int ordinal = -1;
    void *values[] = {&type, &ordinal, &managed};
    moec_status s = CUDA(cuPointerGetAttributes, 3, attributes, values, mc_gpu_address(data));
    *out = type == CU_MEMORYTYPE_DEVICE && !managed;
    if (s != MOEC_OK || !*out || ordinal == n->gpu->info.ordinal) return s;
    return mc_fail(error, MOEC_ERR_ARGUMENT, "a buffer lies on GPU %d, but the group of this rank is on GPU %d",
                   ordinal, n->gpu->info.ordinal);
}

/* Appends a message; moves *at past the room that it needs in the copies. */
static moec_status
add_run(const mc_nccl *n, mc_nccl_side *side, uint32_t peer, mc_comm_run run, size_t *at, mc_fault *error)
{
    mc_nccl_run *r = &side->runs[side->n];
    *r = (mc_nccl_run){.data = run.data, .n_bytes = run.n_bytes, .peer = peer};
    moec_status s = is_on_device(n, run.data, &r->on_device, error);
    if (s != MOEC_OK) return s;
    if (!r->on_device) {
        size_t end;
        r->at = *at;
        if (__builtin_add_overflow(*at, run.n_bytes, &end) || end > SIZE_MAX / 4)
            return mc_fail(error, MOEC_ERR_MEMORY, "messages of more bytes than there is memory");
        *at = (end + RUN_ALIGN - 1) / RUN_ALIGN * RUN_ALIGN;
    }
    side->n++;
    return MOEC_OK;
}

/* A rank's own run is copied at once when the processor can reach both ends; NCCL copies all others. */
static moec_status
add_own(const mc_nccl *n, const mc_exchange *x, uint32_t i, bool *out_copied, mc_fault *error)
{
    bool from_device, to_device;
    *out_copied = true;
    if (x->send[i].n_bytes != x->recv[i].n_bytes)
        return mc_fail(error, MOEC_ERR_MISMATCH, "rank %u sends itself %zu bytes and expects %zu", n->rank,
                       x->send[i].n_bytes, x->recv[i].n_bytes);
    if (!x->send[i].n_bytes) return MOEC_OK;
    moec_status s = is_on_device(n, x->send[i].data, &from_device, error);
    if (s == MOEC_OK) s = is_on_device(n, x->recv[i].data, &to_device, error);
    if (s != MOEC_OK) return s;
    *out_copied = !from_device && !to_device;
    if (*out_copied) memmove(x->recv[i].data, x->send[i].data, x->send[i].n_bytes);
    return MOEC_OK;
}

static moec_status
collect(const mc_nccl *n, mc_nccl_slot *slot, const mc_exchange *x, mc_fault *error)
{
    size_t at = 0;
    moec_status s = MOEC_OK;
    slot->send.n = slot->recv.n = 0;
    for (int receives = 0; receives < 2; receives++) {
        mc_nccl_side *side = receives ? &slot->recv : &slot->send;
        const mc_comm_run *runs = receives ? x->recv : x->send;
        side->begin = at;
        for (uint32_t i = 0; i < x->n_peers && s == MOEC_OK; i++) {
            bool copied = false;
            if (x->peers[i] == n->rank) s = add_own(n, x, i, &copied, error);
            if (s == MOEC_OK && !copied && runs[i].n_bytes) s = add_run(n, side, x->peers[i], runs[i], &at, error);
        }
        side->n_bytes = at - side->begin;
    }
    return s;
}

/* ---- copies ----------------------------------------------------------------------------------------------------- */

static bool
is_idle(const mc_nccl *n)
{
    for (int i = 0; i < MC_COMM_REQUESTS; i++)
        if (n->slots[i].phase != MC_NCCL_IDLE) return false;
    return true;
}

static void
free_pair(const mc_nccl *n, CUdeviceptr device, void *pinned)
{
    if (device) n->gpu->cuda->cuMemFree(device);
    if (pinned) n->gpu->cuda->cuMemFreeHost(pinned);
}

void
mc_nccl_free_copies(mc_nccl *n)
{
    while (n->old) {
        mc_nccl_old *old = n->old;
        n->old = old->next;
        free_pair(n, old->device, old->pinned);
        free(old);
    }
    for (int i = 0; i < MC_COMM_REQUESTS; i++) {
        free_pair(n, n->slots[i].device, n->slots[i].pinned);
        n->slots[i].device = 0;
        n->slots[i].pinned = NULL;
        n->slots[i].room = 0;
    }
}

/* Freeing waits for the device: while another exchange is under way, which may never end, that must not be. */
static moec_status
retire(mc_nccl *n, mc_nccl_slot *slot, mc_fault *error)
{
    if (is_idle(n)) {
        free_pair(n, slot->device, slot->pinned);
    } else if (slot->device || slot->pinned) {
        mc_nccl_old *old = malloc(sizeof *old);
        if (!old) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
        *old = (mc_nccl_old){n->old, slot->device, slot->pinned};
        n->old = old;
    }
    slot->device = 0;
    slot->pinned = NULL;
    slot->room = 0;
    return MOEC_OK;
}

/* Room for as much as ever; half as much again, so that it soon is. */
static moec_status
make_room(mc_nccl *n, mc_nccl_slot *slot, size_t n_bytes, mc_fault *error)
{
    if (n_bytes <= slot->room) return MOEC_OK;
    size_t room = n_bytes + n_bytes / 2;
    void *pinned = NULL;
    if (room < LEAST_ROOM) room = LEAST_ROOM;
    moec_status s = retire(n, slot, error);
    if (s == MOEC_OK) s = mc_gpu_alloc(n->gpu, room, "messages between ranks", &slot->device, error);
    if (s == MOEC_OK) s = CUDA(cuMemAllocHost, &pinned, room);
    slot->pinned = pinned;
    if (s == MOEC_OK) slot->room = room;
    return s;
}

static void
copy_in(mc_nccl_slot *slot)
{
    for (uint32_t i = 0; i < slot->send.n; i++) {
        const mc_nccl_run *r = &slot->send.runs[i];
        if (!r->on_device) memcpy(slot->pinned + r->at, r->data, r->n_bytes);
    }
}

static void
copy_out(const mc_nccl_slot *slot)
{
    for (uint32_t i = 0; i < slot->recv.n; i++) {
        const mc_nccl_run *r = &slot->recv.runs[i];
        if (!r->on_device) memcpy(r->data, slot->pinned + r->at, r->n_bytes);
    }
}

/* ---- starting --------------------------------------------------------------------------------------------------- */

static void *
address_of(const mc_nccl_slot *slot, const mc_nccl_run *r)
{
    return r->on_device ? r->data : mc_gpu_pointer(slot->device + r->at);
}

static moec_status
launch(mc_nccl *n, mc_nccl_slot *slot, mc_fault *error)
{
    const mc_nccl_side *out = &slot->send, *in = &slot->recv;
    moec_status s = MOEC_OK;
    if (out->n_bytes)
        s = CUDA(cuMemcpyHtoDAsync, slot->device + out->begin, slot->pinned + out->begin, out->n_bytes, n->stream);
    if (s == MOEC_OK && in->n_bytes)
        s = CUDA(cuMemsetD8Async, slot->device + in->begin, UNTOUCHED, in->n_bytes, n->stream);
    if (s == MOEC_OK) s = mc_nccl_check(n->api, n->comm, n->api->ncclGroupStart(), "ncclGroupStart", error);
    if (s != MOEC_OK) return s;
    for (uint32_t i = 0; i < in->n && s == MOEC_OK; i++) {
        const mc_nccl_run *r = &in->runs[i];
        s = NCCL(ncclRecv, address_of(slot, r), r->n_bytes, ncclUint8, (int)r->peer, n->comm, n->stream);
    }
    for (uint32_t i = 0; i < out->n && s == MOEC_OK; i++) {
        const mc_nccl_run *r = &out->runs[i];
        s = NCCL(ncclSend, address_of(slot, r), r->n_bytes, ncclUint8, (int)r->peer, n->comm, n->stream);
    }
    mc_fault ignored;
    ncclResult end = n->api->ncclGroupEnd(); /* also after an error: the group must end */
    moec_status of_end = mc_nccl_check(n->api, n->comm, end, "ncclGroupEnd", s == MOEC_OK ? error : &ignored);
    slot->phase = MC_NCCL_LAUNCHED;
    return s == MOEC_OK ? of_end : s;
}

/* What comes behind the group on the stream. */
static moec_status
follow_up(mc_nccl *n, mc_nccl_slot *slot, mc_fault *error)
{
    const mc_nccl_side *in = &slot->recv;
    moec_status s = MOEC_OK;
    if (in->n_bytes)
        s = CUDA(cuMemcpyDtoHAsync, slot->pinned + in->begin, slot->device + in->begin, in->n_bytes, n->stream);
    if (s == MOEC_OK) s = CUDA(cuEventRecord, slot->event, n->stream);
    slot->phase = MC_NCCL_RUNNING;
    return s;
}

/* Starts whatever NCCL is ready for. */
static moec_status
pump(mc_nccl *n, mc_fault *error)
{
    for (;;) {
        ncclResult state = ncclSuccess;
        moec_status s = NCCL(ncclCommGetAsyncError, n->comm, &state);
        if (s == MOEC_OK) s = mc_nccl_check(n->api, n->comm, state, "NCCL", error);
        if (s != MOEC_OK || state == ncclInProgress || n->n_queue == 0) return s;
        mc_nccl_slot *slot = &n->slots[n->queue[0]];
        if (slot->phase == MC_NCCL_QUEUED) {
            s = launch(n, slot, error);
        } else {
            s = follow_up(n, slot, error);
            n->n_queue--;
            memmove(n->queue, n->queue + 1, n->n_queue * sizeof *n->queue);
        }
        if (s != MOEC_OK) return s;
    }
}

static moec_status
enter(const mc_nccl *n, mc_fault *error)
{
    if (!n->comm) return mc_fail(error, MOEC_ERR_COMM, "this rank has left its NCCL group");
    return mc_gpu_enter(n->gpu, error);
}

moec_status
mc_nccl_begin(void *state, uint32_t index, const mc_exchange *x, mc_fault *error)
{
    mc_nccl *n = state;
    mc_nccl_slot *slot = &n->slots[index];
    assert(slot->phase == MC_NCCL_IDLE);
    moec_status s = enter(n, error);
    if (s != MOEC_OK) return s;
    n->moved = mc_seconds();
    s = collect(n, slot, x, error);
    if (s == MOEC_OK && slot->send.n + slot->recv.n) {
        s = make_room(n, slot, slot->recv.begin + slot->recv.n_bytes, error);
        if (s == MOEC_OK) {
            copy_in(slot);
            slot->phase = MC_NCCL_QUEUED;
            n->queue[n->n_queue++] = index;
            s = pump(n, error);
        }
    }
    mc_gpu_leave(n->gpu);
    return s;
}

/* ---- ending ----------------------------------------------------------------------------------------------------- */

static uint32_t
first_peer(const mc_nccl_slot *slot)
{
    uint32_t peer = UINT32_MAX;
    if (slot->recv.n) peer = slot->recv.runs[0].peer;
    if (slot->send.n && slot->send.runs[0].peer < peer) peer = slot->send.runs[0].peer;
    return peer == UINT32_MAX ? 0 : peer;
}

moec_status
mc_nccl_test(void *state, uint32_t index, bool *out_done, uint32_t *out_peer, mc_fault *error)
{
    mc_nccl *n = state;
    mc_nccl_slot *slot = &n->slots[index];
    *out_done = slot->phase == MC_NCCL_IDLE;
    *out_peer = first_peer(slot);
    if (*out_done) return MOEC_OK;
    moec_status s = enter(n, error);
    if (s != MOEC_OK) return s;
    s = pump(n, error);
    if (s == MOEC_OK && slot->phase == MC_NCCL_RUNNING) {
        CUresult r = n->gpu->cuda->cuEventQuery(slot->event);
        if (r == CUDA_SUCCESS) {
            copy_out(slot);
            slot->phase = MC_NCCL_IDLE;
            n->moved = mc_seconds();
            *out_done = true;
        } else if (r != CUDA_ERROR_NOT_READY) {
            s = mc_cuda_check(n->gpu->cuda, r, "cuEventQuery", error);
        }
    }
    mc_gpu_leave(n->gpu);
    return s;
}

/* Yields at first; later sleeps for a small part of what it has waited already, which costs that part at most and
 * leaves the processor, and the driver's locks, to those who are still at work. */
void
mc_nccl_rest(void *state, double seconds)
{
    const mc_nccl *n = state;
    double waited = mc_seconds() - n->moved, nap = waited / 20;
    if (nap > longest_nap) nap = longest_nap;
    if (nap > seconds) nap = seconds;
    if (waited < yield_seconds)
        sched_yield();
    else
        mc_nccl_nap(nap);
}

/* ---- who is late ------------------------------------------------------------------------------------------------ */

/* NCCL does not say which of a group's messages have come. The copies do: their ends are still as they were before. */
static bool
has_come(const mc_nccl_slot *slot, const mc_nccl_run *r)
{
    size_t n_bytes = r->n_bytes < TAIL ? r->n_bytes : TAIL;
    const unsigned char *tail = slot->pinned + r->at + r->n_bytes - n_bytes;
    for (size_t i = 0; i < n_bytes; i++)
        if (tail[i] != UNTOUCHED) return true;
    return false;
}

/* Reads what has been received so far, past the stream that still waits; false when the GPU does not answer either. */
static bool
look_at_copies(mc_nccl *n, const mc_nccl_slot *slot)
{
    const mc_cuda *cuda = n->gpu->cuda;
    const mc_nccl_side *in = &slot->recv;
    double end = mc_seconds() + look_seconds;
    mc_fault ignored;
    bool seen = false;
    if (slot->phase != MC_NCCL_RUNNING || !in->n_bytes || enter(n, &ignored) != MOEC_OK) return false;
    if (cuda->cuMemcpyDtoHAsync(slot->pinned + in->begin, slot->device + in->begin, in->n_bytes, n->aside) ==
            CUDA_SUCCESS &&
        cuda->cuEventRecord(n->looked, n->aside) == CUDA_SUCCESS) {
        CUresult r;
        while ((r = cuda->cuEventQuery(n->looked)) == CUDA_ERROR_NOT_READY && mc_seconds() < end) mc_nccl_nap(0.001);
        seen = r == CUDA_SUCCESS;
    }
    mc_gpu_leave(n->gpu);
    return seen;
}

static bool
has_come_from(const mc_nccl_slot *slot, uint32_t peer)
{
    for (uint32_t i = 0; i < slot->recv.n; i++)
        if (slot->recv.runs[i].peer == peer)
            return !slot->recv.runs[i].on_device && has_come(slot, &slot->recv.runs[i]);
    return false;
}

void
mc_nccl_late(void *state, uint32_t index, uint32_t *out_peer, size_t *out_bytes)
{
    mc_nccl *n = state;
    const mc_nccl_slot *slot = &n->slots[index];
    bool seen = look_at_copies(n, slot);
    *out_bytes = 0;
    *out_peer = first_peer(slot);
    for (uint32_t i = 0; i < slot->recv.n; i++) {
        const mc_nccl_run *r = &slot->recv.runs[i];
        if (seen && !r->on_device && has_come(slot, r)) continue;
        *out_peer = r->peer;
        *out_bytes = r->n_bytes;
        return;
    }
    for (uint32_t i = 0; i < slot->send.n; i++) /* somebody takes no bytes: not one whose own have come */
        if (!has_come_from(slot, slot->send.runs[i].peer)) {
            *out_peer = slot->send.runs[i].peer;
            return;
        }
}
