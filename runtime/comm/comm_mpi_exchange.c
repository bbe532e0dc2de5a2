/* Exchanges over MPI: a message for each pair, receives posted first, then sends beginning with the next rank, so that
 * not everybody sends to rank 0 first. The tag counts the exchanges of the pair, with those of 0 bytes, which have no
 * message: so one side's mistake about 0 is never taken for the next exchange's bytes. A run above 2 GiB is still one
 * message, of a datatype of larger pieces, because MPI counts with int. */
#include "runtime/base/clock.h"
#include "runtime/comm/comm_mpi.h"

#include <assert.h>
#include <limits.h>
#include <string.h>

enum { PIECE_BYTES = 1 << 20 };
static const double between_looks = 0.001, after_leaving = 0.3;

/* count * *type are n_bytes. *type is to be freed when it is not MPI_BYTE. */
static int
type_of(size_t n_bytes, MPI_Datatype *type, int *count)
{
    *type = MPI_BYTE;
    *count = (int)n_bytes;
    if (n_bytes <= INT_MAX) return MPI_SUCCESS;
    MPI_Datatype piece, parts[2] = {MPI_DATATYPE_NULL, MPI_BYTE};
    size_t n_pieces = n_bytes / PIECE_BYTES;
    if (n_pieces > INT_MAX) return MPI_ERR_COUNT;
    *count = 1;
    int code = MPI_Type_contiguous(PIECE_BYTES, MPI_BYTE, &piece);
    if (code != MPI_SUCCESS) return code;
    parts[0] = piece;
    int lengths[2] = {(int)n_pieces, (int)(n_bytes % PIECE_BYTES)};
    MPI_Aint offsets[2] = {0, (MPI_Aint)(n_pieces * PIECE_BYTES)};
    code = MPI_Type_create_struct(2, lengths, offsets, parts, type);
    if (code == MPI_SUCCESS) code = MPI_Type_commit(type);
    MPI_Type_free(&piece);
    return code;
}

static int
post(mc_mpi *m, mc_mpi_slot *slot, uint32_t peer, int tag, bool receives, mc_comm_run run)
{
    MPI_Datatype type;
    int count;
    int code = type_of(run.n_bytes, &type, &count);
    MPI_Request *request = &slot->requests[slot->n_parts];
    if (code == MPI_SUCCESS && receives) code = MPI_Irecv(run.data, count, type, (int)peer, tag, m->rows, request);
    if (code == MPI_SUCCESS && !receives) code = MPI_Isend(run.data, count, type, (int)peer, tag, m->rows, request);
    if (type != MPI_BYTE) MPI_Type_free(&type);
    if (code != MPI_SUCCESS) return code;
    slot->parts[slot->n_parts++] = (mc_mpi_part){.peer = peer, .receives = receives, .n_bytes = run.n_bytes};
    slot->n_left++;
    return code;
}

moec_status
mc_mpi_begin(void *state, uint32_t index, const mc_exchange *x, mc_fault *error)
{
    mc_mpi *m = state;
    assert(index < MC_COMM_REQUESTS);
    mc_mpi_slot *slot = &m->slots[index];
    slot->n_parts = slot->n_left = 0;
    m->last_news = mc_seconds();
    uint32_t n = x->n_peers, next = 0;
    while (next < n && x->peers[next] <= m->rank) next++;
    int code = MPI_SUCCESS;
    for (uint32_t i = 0; i < n && code == MPI_SUCCESS; i++) {
        uint32_t at = (next + i) % n, peer = x->peers[at];
        if (peer != m->rank && x->recv[at].n_bytes) code = post(m, slot, peer, m->turns[peer], true, x->recv[at]);
    }
    for (uint32_t i = 0; i < n && code == MPI_SUCCESS; i++) {
        uint32_t at = (next + i) % n, peer = x->peers[at];
        if (peer != m->rank && x->send[at].n_bytes) code = post(m, slot, peer, m->turns[peer], false, x->send[at]);
        m->turns[peer] = (uint16_t)((m->turns[peer] + 1) % MC_MPI_TAGS);
    }
    if (code != MPI_SUCCESS) return mc_mpi_fail(error, code, "an exchange could not begin");
    if (!next || x->peers[next - 1] != m->rank) return MOEC_OK;
    const mc_comm_run *from = &x->send[next - 1], *to = &x->recv[next - 1]; /* the own one */
    if (from->n_bytes != to->n_bytes)
        return mc_fail(error, MOEC_ERR_MISMATCH, "rank %u sends itself %zu bytes and expects %zu", m->rank,
                       from->n_bytes, to->n_bytes);
    if (to->n_bytes) memcpy(to->data, from->data, to->n_bytes);
    return MOEC_OK;
}

/* One message has ended: well? code: its own error. */
static moec_status
end_part(mc_mpi_part *part, const MPI_Status *status, int code, mc_fault *error)
{
    part->done = true;
    int class = MPI_SUCCESS;
    if (code != MPI_SUCCESS) MPI_Error_class(code, &class);
    if (code != MPI_SUCCESS && class != MPI_ERR_TRUNCATE) return mc_mpi_fail(error, code, "a message was lost");
    if (!part->receives) return MOEC_OK;
    MPI_Count came = 0;
    MPI_Get_elements_x(status, MPI_BYTE, &came);
    if (code == MPI_SUCCESS && came == (MPI_Count)part->n_bytes) return MOEC_OK;
    if (came <= (MPI_Count)part->n_bytes && code != MPI_SUCCESS) /* some only say that it was too long */
        return mc_fail(error, MOEC_ERR_MISMATCH, "rank %u sends more than the %zu bytes that were expected", part->peer,
                       part->n_bytes);
    return mc_fail(error, MOEC_ERR_MISMATCH, "rank %u sends %lld bytes where %zu were expected", part->peer,
                   (long long)came, part->n_bytes);
}

/* A message for an exchange that was begun here already, and expected none. */
static moec_status
look_for_strays(mc_mpi *m, uint32_t *out_peer, mc_fault *error)
{
    int found = 0;
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, m->rows, &found, &status) != MPI_SUCCESS || !found) return MOEC_OK;
    uint32_t peer = (uint32_t)status.MPI_SOURCE;
    int ahead = (status.MPI_TAG - m->turns[peer] + MC_MPI_TAGS) % MC_MPI_TAGS;
    if (ahead < MC_MPI_TAGS / 2) return MOEC_OK; /* the peer is faster than we are */
    MPI_Count came = 0;
    MPI_Get_elements_x(&status, MPI_BYTE, &came);
    *out_peer = peer;
    return mc_fail(error, MOEC_ERR_MISMATCH, "rank %u sends %lld bytes where none were expected", peer,
                   (long long)came);
}

/* What another rank said ends the exchange even when it is complete: its bytes may be a broken rank's. */
static moec_status
look_for_failures(mc_mpi *m, uint32_t *out_peer, mc_fault *error)
{
    mc_mpi_hear(m, mc_seconds());
    if (!m->has_failed) return MOEC_OK;
    *out_peer = m->failed_rank;
    return mc_fail(error, MOEC_ERR_COMM, "rank %u gave up: %.900s", m->failed_rank, m->failure);
}

/* A peer whose work is done will not send any more. What it sent before comes before its word, more or less. */
static moec_status
look_for_leavers(const mc_mpi *m, const mc_mpi_slot *slot, double now, uint32_t *out_peer, mc_fault *error)
{
    for (int i = 0; i < slot->n_parts; i++) {
        const mc_mpi_part *part = &slot->parts[i];
        if (part->done || m->left[part->peer] == 0 || now < m->left[part->peer] + after_leaving) continue;
        *out_peer = part->peer;
        return mc_fail(error, MOEC_ERR_COMM, "rank %u has left the group: it %s", part->peer,
                       part->receives ? "sends no more" : "takes no more");
    }
    return MOEC_OK;
}

moec_status
mc_mpi_test(void *state, uint32_t index, bool *out_done, uint32_t *out_peer, mc_fault *error)
{
    mc_mpi *m = state;
    mc_mpi_slot *slot = &m->slots[index];
    int n_done = 0;
    *out_done = false;
    if (slot->n_left) {
        int code = MPI_Testsome(slot->n_parts, slot->requests, &n_done, m->indices, m->statuses);
        if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) {
            mc_mpi_late(m, index, out_peer, &(size_t){0});
            return mc_mpi_fail(error, code, "messages were lost");
        }
        if (n_done == MPI_UNDEFINED) n_done = 0;
        for (int i = 0; i < n_done; i++) {
            mc_mpi_part *part = &slot->parts[m->indices[i]];
            slot->n_left--;
            *out_peer = part->peer;
            moec_status s =
                end_part(part, &m->statuses[i], code == MPI_SUCCESS ? MPI_SUCCESS : m->statuses[i].MPI_ERROR, error);
            if (s != MOEC_OK) return s;
        }
    }
    *out_done = slot->n_left == 0;
    if (*out_done) return slot->n_parts ? look_for_failures(m, out_peer, error) : MOEC_OK;
    double now = mc_seconds();
    if (n_done) m->last_news = now;
    if (n_done || now < m->next_look) return MOEC_OK;
    m->next_look = now + between_looks;
    moec_status s = look_for_failures(m, out_peer, error);
    if (s == MOEC_OK) s = look_for_strays(m, out_peer, error);
    return s == MOEC_OK ? look_for_leavers(m, slot, now, out_peer, error) : s;
}

void
mc_mpi_late(void *state, uint32_t index, uint32_t *out_peer, size_t *out_bytes)
{
    mc_mpi *m = state;
    const mc_mpi_slot *slot = &m->slots[index];
    const mc_mpi_part *lowest = NULL;
    for (int i = 0; i < slot->n_parts; i++) { /* of one peer, what it owes us before what it has not taken */
        const mc_mpi_part *part = &slot->parts[i];
        if (part->done || (lowest && lowest->peer < part->peer)) continue;
        if (!lowest || part->peer < lowest->peer || (part->receives && !lowest->receives)) lowest = part;
    }
    *out_peer = lowest ? lowest->peer : m->rank;
    *out_bytes = lowest && lowest->receives ? lowest->n_bytes : 0; /* 0: it has not taken ours */
}

bool
mc_mpi_take_back(mc_mpi *m)
{
    bool quiet = true;
    for (int s = 0; s < MC_COMM_REQUESTS; s++) {
        mc_mpi_slot *slot = &m->slots[s];
        for (int i = 0; i < slot->n_parts; i++) {
            mc_mpi_part *part = &slot->parts[i];
            if (part->done || !part->receives) continue;
            int done = 0;
            MPI_Cancel(&slot->requests[i]);
            MPI_Request_get_status(slot->requests[i], &done, MPI_STATUS_IGNORE);
            part->done = true; /* as far as that is possible: never asked for again */
            quiet = quiet && done;
        }
    }
    return quiet;
}
