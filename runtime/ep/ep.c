/* ep: see ep.h. Creation lays out one mapping with every array and buffer that any step can need; pages that no step
 * touches cost nothing. An operation under way is one exchange begun, and what is left to do when it has ended. */
#include "runtime/ep/ep_state.h"

#include "runtime/base/dtype.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

moec_status
mc_ep_refuse(moec_comm *comm, mc_fault *error, moec_status status, const char *format, ...)
{
    char text[MC_FAULT_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (comm) mc_comm_abort(comm, text);
    return mc_fail(error, status, "%s", text);
}

/* ---- creation -------------------------------------------------------------------------------------------------- */

enum { MAX_REGIONS = 40 };

typedef struct layout {
    struct {
        void **at;
        size_t begin;
    } regions[MAX_REGIONS];
    uint32_t n;
    size_t total;
    bool overflow;
} layout;

static void
reserve(layout *l, void *pointer_address, uint64_t count, uint64_t bytes)
{
    size_t n, next;
    l->overflow = l->overflow || l->n == MAX_REGIONS || __builtin_mul_overflow(count, bytes, &n) || n > SIZE_MAX / 4 ||
                  __builtin_add_overflow(l->total, mc_ep_aligned(n), &next);
    if (l->overflow) return;
    l->regions[l->n].at = pointer_address;
    l->regions[l->n++].begin = l->total;
    l->total = next;
}

static void
reserve_bounds(layout *l, ep_bounds *b, uint64_t n_ranks)
{
    int64_t **all[] = {&b->out_assignments, &b->out_rows, &b->in_assignments, &b->in_rows};
    for (int i = 0; i < 4; i++) reserve(l, all[i], n_ranks + 1, sizeof(int64_t));
}

static int64_t
most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t
least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* The most rows that one rank passes on in its node. All factors are at most 2^31: nothing overflows. */
static int64_t
relayed_rows(const mc_ep *ep)
{
    if (ep->n_nodes == 1 || ep->per_node == 1) return 0;
    int64_t of_one = least(ep->max_assignments, (int64_t)ep->per_node * ep->max_tokens);
    return (int64_t)(ep->n_nodes - 1) * of_one;
}

static void
lay_out(mc_ep *ep, layout *l)
{
    uint64_t r = ep->n_ranks, a = (uint64_t)ep->max_assignments, y = (uint64_t)ep->max_received;
    uint64_t t = (uint64_t)ep->max_tokens, i32 = sizeof(int32_t);
    reserve_bounds(l, &ep->route, r);
    reserve_bounds(l, &ep->at, r);
    reserve(l, &ep->records_out, r * (3 + ep->per_node), i32);
    reserve(l, &ep->records_in, r * (3 + ep->per_node), i32);
    reserve(l, &ep->last_token, r, i32);
    reserve(l, &ep->last_node, r, i32);
    reserve(l, &ep->cursor, r, sizeof(int64_t));
    reserve(l, &ep->owner, a, i32);
    reserve(l, &ep->slot, a, i32);
    reserve(l, &ep->row, a, i32);
    reserve(l, &ep->by_token, a, i32);
    reserve(l, &ep->token_begin, t + 1, i32);
    reserve(l, &ep->pairs_out, a, 2 * i32);
    reserve(l, &ep->pairs_in, y, 2 * i32);
    reserve(l, &ep->copy_begin, EP_MAX_SLOTS + 1, i32);
    reserve(l, &ep->copies, EP_MAX_SLOTS, i32);
    reserve(l, &ep->send, r, sizeof(mc_comm_run));
    reserve(l, &ep->recv, r, sizeof(mc_comm_run));
    reserve(l, &ep->counts, MC_EP_COUNTS * r, i32);
    reserve(l, &ep->index, a > y ? a : y, i32);

    uint64_t relayed = (uint64_t)relayed_rows(ep);
    uint64_t rows = (uint64_t)most(most(ep->max_assignments, ep->max_rows), ep->max_received) + relayed;
    uint64_t row = (uint64_t)ep->max_row_bytes + 16; /* f8e4m3 of one element is 8 bytes; masks of nodes */
    if (ep->n_nodes > 1 && ep->per_node > 1) {
        reserve(l, &ep->masks, t, sizeof(uint64_t));
        reserve(l, &ep->node_tokens, a, i32);
        reserve(l, &ep->node_begin, ep->n_nodes + 1, sizeof(int64_t));
        reserve(l, &ep->one_row, (uint64_t)ep->max_row_bytes, 1);
    }
    size_t rows_bytes, relay_bytes;
    l->overflow = l->overflow || __builtin_mul_overflow(rows, row, &rows_bytes) || rows_bytes > SIZE_MAX / 4 ||
                  __builtin_mul_overflow(relayed, row, &relay_bytes);
    if (l->overflow) return;
    ep->buffer_bytes = rows_bytes + 4 * r * EP_ALIGN; /* messages begin on cache lines */
    ep->relay_bytes = relay_bytes + 4 * r * EP_ALIGN;
    reserve(l, &ep->out, ep->buffer_bytes, 1);
    reserve(l, &ep->in, ep->buffer_bytes, 1);
    reserve(l, &ep->relay, ep->relay_bytes, 1);
}

static moec_status
check_options(const mc_ep_options *o, mc_fault *error)
{
    if (o->n_ranks == 0 || o->n_ranks > MC_COMM_MAX_RANKS || o->me >= o->n_ranks || o->per_node == 0 ||
        o->n_ranks % o->per_node != 0)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "rank %u of %u, %u in a node: not a group", o->me, o->n_ranks,
                       o->per_node);
    int64_t limits[] = {o->max_tokens, o->max_assignments, o->max_rows, o->max_received};
    for (int i = 0; i < 4; i++)
        if (limits[i] < 0 || limits[i] > INT32_MAX)
            return mc_fail(error, MOEC_ERR_ARGUMENT,
                           "a step of %lld rows on one rank: lists of rows have 32 bits; give each rank fewer tokens",
                           (long long)limits[i]);
    if (o->max_row_bytes < 0) return mc_fail(error, MOEC_ERR_ARGUMENT, "rows of a negative size");
    return MOEC_OK;
}

moec_status
mc_ep_create(const mc_ep_options *o, mc_ep **out, mc_fault *error)
{
    *out = NULL;
    moec_status status = check_options(o, error);
    if (status != MOEC_OK) return status;
    mc_ep *ep = calloc(1, sizeof *ep);
    if (!ep) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    ep->comm = o->n_ranks > 1 ? o->comm : NULL;
    ep->ranks = o->ranks;
    ep->n_ranks = o->n_ranks;
    ep->me = o->me;
    ep->per_node = o->per_node;
    ep->n_nodes = o->n_ranks / o->per_node;
    ep->max_tokens = o->max_tokens;
    ep->max_assignments = o->max_assignments;
    ep->max_rows = o->max_rows;
    ep->max_received = o->max_received;
    ep->max_row_bytes = o->max_row_bytes;
    for (int i = 0; i < 256; i++) ep->f8_values[i] = mc_f8e4m3_to_f32((uint8_t)i);
    layout l = {.total = 0};
    lay_out(ep, &l);
    if (l.overflow)
        status = mc_fail(error, MOEC_ERR_MEMORY, "buffers for %lld rows of %lld bytes: more than there are addresses",
                         (long long)o->max_rows, (long long)o->max_row_bytes);
    else
        status = mc_pages_alloc(l.total, "rows of other ranks", &ep->pages, error);
    if (status != MOEC_OK) {
        free(ep);
        return status;
    }
    for (uint32_t i = 0; i < l.n; i++) {
        void *at = ep->pages.data + l.regions[i].begin;
        memcpy(l.regions[i].at, &at, sizeof at);
    }
    *out = ep;
    return MOEC_OK;
}

void
mc_ep_destroy(mc_ep *ep)
{
    if (!ep) return;
    mc_fault unwanted; /* rows may still be arriving in our buffers */
    moec_status status = mc_ep_finish(ep, &unwanted);
    (void)status;
    mc_pages_free(&ep->pages);
    free(ep);
}

size_t
mc_ep_bytes(const mc_ep *ep)
{
    return ep->pages.n_bytes;
}

bool
mc_ep_by_node(const mc_ep *ep, mc_ep_way way)
{
    return way == MC_EP_NODE && ep->n_nodes > 1 && ep->per_node > 1 && ep->per_node <= EP_MAX_PER_NODE;
}

/* ---- operations ------------------------------------------------------------------------------------------------ */

static bool
sum_up(const int32_t *counts, uint32_t n, int64_t limit, int64_t *begin)
{
    begin[0] = 0;
    for (uint32_t r = 0; r < n; r++) {
        if (counts[r] < 0) return false;
        begin[r + 1] = begin[r] + counts[r];
    }
    return begin[n] <= limit;
}

moec_status
mc_ep_prepare(mc_ep *ep, const char *what, const mc_ep_lists *lists, mc_ep_row row, void *out, mc_fault *error)
{
    uint32_t n = ep->n_ranks;
    if (ep->under_way)
        return mc_ep_refuse(ep->comm, error, MOEC_ERR_INTERNAL, "ep.%s: another operation is under way", what);
    if (!mc_ep_codec(row, ep->max_row_bytes, ep->f8_values, &ep->codec))
        return mc_ep_refuse(
            ep->comm, error, MOEC_ERR_ARGUMENT,
            "ep.%s: rows of %lld %s as %s: room is for %lld bytes, and f32 alone travels as another type", what,
            (long long)row.width, moec_dtype_name(row.dtype), moec_dtype_name(row.wire), (long long)ep->max_row_bytes);
    const int32_t *c = lists->counts;
    if (!sum_up(c + SENT_ASSIGNMENTS * n, n, ep->max_assignments, ep->at.out_assignments) ||
        !sum_up(c + SENT_ROWS * n, n, ep->max_assignments, ep->at.out_rows) ||
        !sum_up(c + GOT_ASSIGNMENTS * n, n, ep->max_received, ep->at.in_assignments) ||
        !sum_up(c + GOT_ROWS * n, n, ep->max_rows, ep->at.in_rows))
        return mc_ep_refuse(ep->comm, error, MOEC_ERR_INTERNAL, "ep.%s: these counts are of no route", what);
    memcpy(ep->counts, c, sizeof(int32_t) * MC_EP_COUNTS * n);
    ep->target = out;
    mc_ep_clear_runs(ep);
    return MOEC_OK;
}

void
mc_ep_clear_runs(mc_ep *ep)
{
    memset(ep->send, 0, ep->n_ranks * sizeof *ep->send);
    memset(ep->recv, 0, ep->n_ranks * sizeof *ep->recv);
}

moec_status
mc_ep_start(mc_ep *ep, const char *what, mc_fault *error)
{
    ep->request = NULL;
    if (ep->n_ranks == 1) return MOEC_OK;
    mc_exchange x = {.what = what, .n_peers = ep->n_ranks, .peers = ep->ranks, .send = ep->send, .recv = ep->recv};
    return mc_comm_begin(ep->comm, &x, &ep->request, error);
}

moec_status
mc_ep_launch(mc_ep *ep, ep_operation what, const char *name, mc_fault *error)
{
    moec_status status = mc_ep_start(ep, name, error);
    if (status == MOEC_OK) ep->under_way = what;
    return status;
}

moec_status
mc_ep_finish(mc_ep *ep, mc_fault *error)
{
    if (!ep->request) return MOEC_OK;
    mc_comm_request *request = ep->request;
    ep->request = NULL;
    return mc_comm_wait(ep->comm, request, error);
}

void
mc_ep_progress(mc_ep *ep)
{
    if (ep->request) mc_comm_progress(ep->comm);
}

moec_status
mc_ep_wait(mc_ep *ep, mc_fault *error)
{
    moec_status status = mc_ep_finish(ep, error);
    ep_operation what = ep->under_way;
    ep->under_way = EP_NOTHING;
    if (status != MOEC_OK) return status;
    switch (what) {
    case EP_NOTHING: return MOEC_OK;
    case EP_SEND: return mc_ep_end_send(ep);
    case EP_SEND_ROWS: return mc_ep_end_send_rows(ep);
    case EP_RETURN_ROWS: return mc_ep_end_return_rows(ep);
    case EP_REDUCE: return mc_ep_end_reduce(ep);
    case EP_SEND_BY_NODE: return mc_ep_end_send_by_node(ep, error);
    case EP_REDUCE_BY_NODE: return mc_ep_end_reduce_by_node(ep, error);
    }
    return MOEC_OK;
}
