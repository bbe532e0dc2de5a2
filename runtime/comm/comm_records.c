/* comm_records: bytes that say who sent them. Each goes in one or two messages: the first is always as long and begins
 * with a header; the second takes what did not fit, and only goes when the headers of all peers are as they should be.
 * So ranks that disagree about sizes, steps or models find out before anything of a size that they disagree about
 * moves. */
#include "runtime/abi_model.h"
#include "runtime/comm/comm_impl.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

enum { MAGIC = 0x3143524D };
static const uint32_t nobody = UINT32_MAX;

_Static_assert(sizeof(mc_record_header) == 40, "the same on the wire for every compiler");

/* Who gives what to whom. Of a root: its bytes go to all others, who answer with a header only. */
typedef struct talk {
    const char *what;
    uint32_t n_peers;
    const uint32_t *peers;
    uint32_t root; /* or nobody: all to all */
    const unsigned char *send;
    unsigned char *recv;
    size_t send_stride, recv_stride, n_bytes;
} talk;

static bool
speaks(const moec_comm *c, const talk *t, uint32_t peer)
{
    return peer != c->place.rank && (t->root == nobody || t->root == peer || t->root == c->place.rank);
}

static bool
gives(const moec_comm *c, const talk *t)
{
    return t->root == nobody || t->root == c->place.rank;
}

static bool
takes(const talk *t, uint32_t peer)
{
    return t->root == nobody || t->root == peer;
}

/* ---- headers -------------------------------------------------------------------------------------------------- */

static moec_status
differ(moec_comm *c, const talk *t, uint32_t peer, const char *has, uint64_t theirs, uint64_t ours, const char *unit)
{
    char step[40];
    return mc_comm_break(c, MOEC_ERR_MISMATCH, "%s: rank %u %s %" PRIu64 "%s, rank %u %s %" PRIu64 "%s%s", t->what,
                         peer, has, theirs, unit, c->place.rank, has, ours, unit,
                         mc_comm_in_step(c, step, sizeof step));
}

static moec_status
check_header(moec_comm *c, const talk *t, uint32_t peer, const mc_record_header *theirs, const mc_record_header *ours)
{
    char step[40];
    mc_comm_in_step(c, step, sizeof step);
    if (theirs->magic != ours->magic)
        return mc_comm_break(c, MOEC_ERR_MISMATCH,
                             "%s: what rank %u sends to rank %u is no record (it begins with %08" PRIx32
                             " instead of %08" PRIx32 ")%s",
                             t->what, peer, c->place.rank, theirs->magic, ours->magic, step);
    if (theirs->from != peer)
        return mc_comm_break(c, MOEC_ERR_MISMATCH,
                             "%s: what rank %u sends to rank %u is a record of rank %" PRIu32 "%s", t->what, peer,
                             c->place.rank, theirs->from, step);
    if (theirs->hash != ours->hash)
        return mc_comm_break(c, MOEC_ERR_MISMATCH,
                             "%s: rank %u runs the model %016" PRIx64 ", rank %u runs %016" PRIx64
                             "%s: start all ranks with the same one",
                             t->what, peer, theirs->hash, c->place.rank, ours->hash, step);
    if (theirs->epoch != ours->epoch)
        return differ(c, t, peer, "has placement", theirs->epoch, ours->epoch, " of the experts");
    if (theirs->step != ours->step) return differ(c, t, peer, "is at step", theirs->step, ours->step, "");
    if (theirs->call != ours->call) return differ(c, t, peer, "is at call", theirs->call, ours->call, "");
    if (theirs->n_bytes != ours->n_bytes) return differ(c, t, peer, "has", theirs->n_bytes, ours->n_bytes, " bytes");
    return MOEC_OK;
}

/* ---- the two messages ----------------------------------------------------------------------------------------- */

static mc_exchange
exchange_of(const moec_comm *c, const talk *t)
{
    return (mc_exchange){.what = t->what, .n_peers = t->n_peers, .peers = t->peers, .send = c->send, .recv = c->recv};
}

static moec_status
first(moec_comm *c, const talk *t, size_t n_inline, mc_fault *error)
{
    mc_record_header ours = {MAGIC, c->place.rank, c->hash, c->step, c->epoch, c->calls, t->n_bytes};
    for (uint32_t i = 0; i < t->n_peers; i++) {
        size_t at = (size_t)i * MC_RECORD_FIRST_BYTES, n = speaks(c, t, t->peers[i]) ? MC_RECORD_FIRST_BYTES : 0;
        unsigned char *out = c->first_out + at;
        memcpy(out, &ours, sizeof ours);
        if (n_inline && gives(c, t)) memcpy(out + sizeof ours, t->send + i * t->send_stride, n_inline);
        c->send[i] = (mc_comm_run){out, n};
        c->recv[i] = (mc_comm_run){c->first_in + at, n};
    }
    mc_exchange x = exchange_of(c, t);
    moec_status s = mc_comm_exchange(c, &x, error);
    for (uint32_t i = 0; s == MOEC_OK && i < t->n_peers; i++) {
        const unsigned char *in = c->first_in + (size_t)i * MC_RECORD_FIRST_BYTES;
        mc_record_header theirs;
        if (!speaks(c, t, t->peers[i])) continue;
        memcpy(&theirs, in, sizeof theirs);
        s = check_header(c, t, t->peers[i], &theirs, &ours);
        if (s != MOEC_OK) return mc_comm_broken(c, error);
        if (n_inline && takes(t, t->peers[i])) memcpy(t->recv + i * t->recv_stride, in + sizeof theirs, n_inline);
    }
    return s;
}

static moec_status
second(moec_comm *c, const talk *t, size_t n_inline, mc_fault *error)
{
    for (uint32_t i = 0; i < t->n_peers; i++) {
        size_t n = speaks(c, t, t->peers[i]) ? t->n_bytes - n_inline : 0;
        unsigned char *from = (unsigned char *)(uintptr_t)t->send + i * t->send_stride; /* only read */
        c->send[i] = (mc_comm_run){from + n_inline, gives(c, t) ? n : 0};
        c->recv[i] = (mc_comm_run){t->recv + i * t->recv_stride + n_inline, takes(t, t->peers[i]) ? n : 0};
    }
    mc_exchange x = exchange_of(c, t);
    return mc_comm_exchange(c, &x, error);
}

static moec_status
run(moec_comm *c, const talk *t, mc_fault *error)
{
    if (c->status != MOEC_OK) return mc_comm_broken(c, error);
    size_t n_inline = t->n_bytes < MC_RECORD_INLINE_BYTES ? t->n_bytes : MC_RECORD_INLINE_BYTES;
    c->calls++;
    for (uint32_t i = 0; t->root == nobody && i < t->n_peers; i++)
        if (t->peers[i] == c->place.rank && t->n_bytes)
            memmove(t->recv + i * t->recv_stride, t->send + i * t->send_stride, t->n_bytes);
    moec_status s = first(c, t, n_inline, error);
    return s == MOEC_OK && t->n_bytes > n_inline ? second(c, t, n_inline, error) : s;
}

/* ---- what is made of it --------------------------------------------------------------------------------------- */

moec_status
mc_comm_records(moec_comm *c, const char *what, uint32_t n_peers, const uint32_t *peers, const void *send, void *recv,
                size_t n_bytes, mc_fault *error)
{
    assert(n_bytes <= MC_RECORD_MAX_BYTES);
    talk t = {what, n_peers, peers, nobody, send, recv, n_bytes, n_bytes, n_bytes};
    return run(c, &t, error);
}

moec_status
moec_comm_gather(moec_comm *c, const void *data, size_t n_bytes, void *out, moec_error *error)
{
    mc_fault e = {{0}};
    talk t = {"gather", c->place.size, c->everyone, nobody, data, out, 0, n_bytes, n_bytes};
    moec_status s = run(c, &t, &e);
    return mc_give(error, &e, s);
}

moec_status
moec_comm_broadcast(moec_comm *c, uint32_t root, void *data, size_t n_bytes, moec_error *error)
{
    mc_fault e = {{0}};
    if (root >= c->place.size)
        return mc_give(error, &e, mc_fail(&e, MOEC_ERR_ARGUMENT, "no rank %u: there are %u", root, c->place.size));
    talk t = {"broadcast", c->place.size, c->everyone, root, data, data, 0, 0, n_bytes};
    moec_status s = run(c, &t, &e);
    return mc_give(error, &e, s);
}
