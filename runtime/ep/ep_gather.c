/* ep_gather: what all ranks of a group need whole: arrays of their tokens one after another, rows of the same experts
 * from all replicas, sums. Nothing is copied on the way: everything is sent from and received into the caller's arrays.
 */
#include "runtime/ep/ep_state.h"

#include <string.h>

enum {
    MAX_RUNS = MC_COMM_MAX_RANKS,
    CHUNK_COUNTS = 8192, /* of slots, of all ranks, at a time */
    AHEAD = 4            /* exchanges under way at once */
};

static int64_t
least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- gather ---------------------------------------------------------------------------------------------------- */

moec_status
mc_ep_gather(moec_comm *comm, const mc_ep_group *group, const void *x, int64_t n, int64_t row_bytes, int64_t limit,
             void *out, int64_t *out_n, int64_t *out_own, mc_fault *error)
{
    int64_t mine[2] = {n, row_bytes}, all[MAX_RUNS][2];
    mc_comm_run send[MAX_RUNS], recv[MAX_RUNS];
    uint32_t size = group->n_ranks;
    *out_n = *out_own = 0;
    if (size == 0 || size > MAX_RUNS || group->me >= size || n < 0 || row_bytes < 0 || n > limit ||
        (row_bytes > 0 && limit > INT64_MAX / row_bytes))
        return mc_ep_refuse(size > 1 ? comm : NULL, error, MOEC_ERR_ARGUMENT,
                            "ep.gather: %lld elements of %lld bytes in %u ranks; room is for %lld", (long long)n,
                            (long long)row_bytes, size, (long long)limit);
    if (size == 1) {
        if (n * row_bytes > 0) memcpy(out, x, (size_t)(n * row_bytes));
        *out_n = n;
        return MOEC_OK;
    }
    int64_t mine_for_all[MAX_RUNS][2];
    for (uint32_t r = 0; r < size; r++) memcpy(mine_for_all[r], mine, sizeof mine);
    moec_status status =
        mc_comm_records(comm, "ep.gather counts", size, group->ranks, mine_for_all, all, sizeof mine, error);
    if (status != MOEC_OK) return status;
    int64_t total = 0;
    for (uint32_t r = 0; r < size; r++) {
        if (all[r][0] < 0 || all[r][0] > limit - total || all[r][1] != row_bytes)
            return mc_ep_refuse(
                comm, error, MOEC_ERR_MISMATCH,
                "ep.gather: rank %u has %lld elements of %lld bytes, those before it %lld of %lld bytes; "
                "room is for %lld",
                group->ranks[r], (long long)all[r][0], (long long)all[r][1], (long long)total, (long long)row_bytes,
                (long long)limit);
        if (r == group->me) *out_own = total;
        send[r] = (mc_comm_run){(void *)(uintptr_t)x, (size_t)(n * row_bytes)};
        recv[r] = (mc_comm_run){(unsigned char *)out + total * row_bytes, (size_t)(all[r][0] * row_bytes)};
        total += all[r][0];
    }
    *out_n = total;
    mc_exchange exchange = {"ep.gather", size, group->ranks, send, recv};
    return mc_comm_exchange(comm, &exchange, error);
}

/* ---- merge ----------------------------------------------------------------------------------------------------- */

typedef struct merge {
    moec_comm *comm;
    const mc_ep_group *group;
    int64_t n_slots, row_bytes, limit, total; /* total: rows of `out` so far */
    const int32_t *offsets;
    const unsigned char *x;
    unsigned char *out;
    mc_comm_request *ahead[AHEAD]; /* the oldest at [first % AHEAD] */
    uint64_t first, next;
    mc_fault *error;
} merge;

static moec_status
end_oldest(merge *m)
{
    mc_comm_request *oldest = m->ahead[m->first++ % AHEAD];
    return mc_comm_wait(m->comm, oldest, m->error);
}

/* Rows of one slot: from every rank to every rank, where they belong. */
static moec_status
merge_slot(merge *m, int64_t slot, const int32_t *counts, int64_t stride)
{
    mc_comm_run send[MAX_RUNS], recv[MAX_RUNS];
    uint32_t size = m->group->n_ranks;
    int64_t begin = m->offsets[slot], n = m->offsets[slot + 1] - begin, before = m->total;
    for (uint32_t r = 0; r < size; r++) {
        int32_t theirs = counts[(int64_t)r * stride];
        if (theirs < 0 || theirs > m->limit - m->total)
            return mc_ep_refuse(
                m->comm, m->error, MOEC_ERR_MISMATCH,
                "ep.merge: rank %u has %d rows of slot %lld; with the %lld before them, room is for %lld",
                m->group->ranks[r], theirs, (long long)slot, (long long)m->total, (long long)m->limit);
        send[r] = (mc_comm_run){(void *)(uintptr_t)(m->x + begin * m->row_bytes), (size_t)(n * m->row_bytes)};
        recv[r] = (mc_comm_run){m->out + m->total * m->row_bytes, (size_t)(theirs * m->row_bytes)};
        m->total += theirs;
    }
    if (m->total == before) return MOEC_OK; /* for all ranks */
    if (m->next - m->first == AHEAD) {
        moec_status status = end_oldest(m);
        if (status != MOEC_OK) return status;
    }
    mc_exchange exchange = {"ep.merge", size, m->group->ranks, send, recv};
    moec_status status = mc_comm_begin(m->comm, &exchange, &m->ahead[m->next % AHEAD], m->error);
    if (status == MOEC_OK) m->next++;
    return status;
}

/* Counts of so many slots that those of all ranks fit on the stack, then their rows. */
static moec_status
merge_slots(merge *m, int64_t first, int64_t n, int32_t *out_offsets)
{
    int32_t mine[CHUNK_COUNTS], all[CHUNK_COUNTS];
    uint32_t size = m->group->n_ranks;
    for (uint32_t r = 0; r < size; r++)
        for (int64_t s = 0; s < n; s++) mine[r * n + s] = m->offsets[first + s + 1] - m->offsets[first + s];
    moec_status status = mc_comm_records(m->comm, "ep.merge counts", size, m->group->ranks, mine, all,
                                         (size_t)n * sizeof *mine, m->error);
    for (int64_t s = 0; status == MOEC_OK && s < n; s++) {
        status = merge_slot(m, first + s, all + s, n);
        out_offsets[first + s + 1] = (int32_t)m->total;
    }
    return status;
}

static moec_status
merge_ranks(merge *m, int32_t *out_offsets)
{
    int64_t chunk = CHUNK_COUNTS / m->group->n_ranks;
    moec_status status = MOEC_OK;
    for (int64_t s = 0; status == MOEC_OK && s < m->n_slots; s += chunk)
        status = merge_slots(m, s, least(chunk, m->n_slots - s), out_offsets);
    mc_fault *error = m->error;
    mc_fault unwanted;
    while (m->first < m->next) {
        if (status != MOEC_OK) m->error = &unwanted; /* the first fault is the one to tell */
        moec_status last = end_oldest(m);
        if (status == MOEC_OK) status = last;
    }
    m->error = error;
    return status;
}

moec_status
mc_ep_merge(moec_comm *comm, const mc_ep_group *group, int64_t n_slots, const int32_t *offsets, const void *x,
            int64_t row_bytes, int64_t limit, void *out, int32_t *out_offsets, int64_t *out_n, mc_fault *error)
{
    *out_n = 0;
    bool fine = group->n_ranks > 0 && group->n_ranks <= MAX_RUNS && group->me < group->n_ranks && n_slots >= 0 &&
                row_bytes >= 0 && limit >= 0 && limit <= INT32_MAX &&
                (row_bytes == 0 || limit <= INT64_MAX / row_bytes) && offsets[0] == 0 && offsets[n_slots] <= limit;
    for (int64_t s = 0; fine && s < n_slots; s++) fine = offsets[s] <= offsets[s + 1];
    if (!fine)
        return mc_ep_refuse(group->n_ranks > 1 ? comm : NULL, error, MOEC_ERR_ARGUMENT,
                            "ep.merge: rows of %lld slots, %lld bytes each: not what a route gives, or more than %lld",
                            (long long)n_slots, (long long)row_bytes, (long long)limit);
    out_offsets[0] = 0;
    if (group->n_ranks == 1) {
        if (offsets[n_slots] * row_bytes > 0) memcpy(out, x, (size_t)(offsets[n_slots] * row_bytes));
        memcpy(out_offsets, offsets, ((size_t)n_slots + 1) * sizeof *offsets);
        *out_n = offsets[n_slots];
        return MOEC_OK;
    }
    merge m = {.comm = comm,
               .group = group,
               .n_slots = n_slots,
               .row_bytes = row_bytes,
               .limit = limit,
               .offsets = offsets,
               .x = x,
               .out = out,
               .error = error};
    moec_status status = merge_ranks(&m, out_offsets);
    *out_n = m.total;
    return status;
}

/* ---- sums ------------------------------------------------------------------------------------------------------ */

/* Where the part of rank r begins, of `base` elements for each rank and one more for the first `extra`. */
static int64_t
part(uint32_t r, int64_t base, int64_t extra)
{
    return r * base + least(r, extra);
}

/* Every rank adds up its part of x, and then has those of the others. */
static moec_status
add_parts(moec_comm *comm, const mc_ep_group *group, float *x, int64_t base, int64_t extra, float *scratch,
          mc_fault *error)
{
    mc_comm_run send[MAX_RUNS], recv[MAX_RUNS];
    uint32_t me = group->me;
    float *own = x + part(me, base, extra);
    int64_t n = part(me + 1, base, extra) - part(me, base, extra), held = 0;
    for (uint32_t r = 0; r < group->n_ranks; r++) {
        int64_t begin = part(r, base, extra), end = part(r + 1, base, extra);
        bool other = r != me;
        send[r] = (mc_comm_run){x + begin, other ? (size_t)(end - begin) * sizeof *x : 0};
        recv[r] = (mc_comm_run){scratch + held, other ? (size_t)n * sizeof *x : 0};
        if (other) held += n;
    }
    mc_exchange exchange = {"ep.all_reduce", group->n_ranks, group->ranks, send, recv};
    moec_status status = mc_comm_exchange(comm, &exchange, error);
    if (status != MOEC_OK) return status;
    for (int64_t i = 0; i < n; i++) {
        const float *theirs = scratch + i;
        float sum = 0, mine = own[i];
        for (uint32_t r = 0; r < group->n_ranks; r++) {
            float value = mine;
            if (r != me) {
                value = *theirs;
                theirs += n;
            }
            sum = r == 0 ? value : sum + value;
        }
        own[i] = sum;
    }
    for (uint32_t r = 0; r < group->n_ranks; r++) {
        mc_comm_run sent = send[r];
        send[r] = (mc_comm_run){own, r != me ? (size_t)n * sizeof *x : 0};
        recv[r] = sent; /* where their part lay, it comes back as the sum */
    }
    return mc_comm_exchange(comm, &exchange, error);
}

moec_status
mc_ep_all_reduce(moec_comm *comm, const mc_ep_group *group, float *x, int64_t n, float *scratch, mc_fault *error)
{
    uint32_t size = group->n_ranks;
    int64_t theirs[MAX_RUNS], mine[MAX_RUNS];
    if (size == 0 || size > MAX_RUNS || group->me >= size || n < 0)
        return mc_ep_refuse(size > 1 ? comm : NULL, error, MOEC_ERR_ARGUMENT,
                            "ep.all_reduce: %lld elements in %u ranks", (long long)n, size);
    if (size == 1) return MOEC_OK;
    for (uint32_t r = 0; r < size; r++) mine[r] = n;
    moec_status status = mc_comm_records(comm, "ep.all_reduce", size, group->ranks, mine, theirs, sizeof *mine, error);
    for (uint32_t r = 0; status == MOEC_OK && r < size; r++)
        if (theirs[r] != n)
            status =
                mc_ep_refuse(comm, error, MOEC_ERR_MISMATCH, "ep.all_reduce: rank %u adds %lld elements, rank %u %lld",
                             group->ranks[r], (long long)theirs[r], group->ranks[group->me], (long long)n);
    if (status != MOEC_OK || n == 0) return status;
    if (n >= size) status = add_parts(comm, group, x, n / size, 0, scratch, error);
    float few[MAX_RUNS]; /* less than one for each rank is left */
    if (status == MOEC_OK && n % size != 0)
        status = add_parts(comm, group, x + n / size * size, 0, n % size, few, error);
    return status;
}
