/* ep_move: rows of tokens to their experts' ranks, rows of assignments there and back. What is sent is packed, in one
 * pass that also narrows; what arrives lands where it belongs when it needs neither widening nor sorting. Rows that
 * stay on this rank are moved at once. */
#include "runtime/ep/ep_state.h"

#include <string.h>

static int64_t
share(const int64_t *begin, uint32_t r)
{
    return begin[r + 1] - begin[r];
}

/* A message for each other rank out of ep->out, rows begin[r] .. being rank r's: index says which of `rows`. */
static void
pack_messages(mc_ep *ep, const int64_t *begin, const void *rows, const int32_t *index)
{
    size_t at = 0;
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        int64_t n = share(begin, r);
        if (r == ep->me || n == 0) continue;
        ep->send[r] = (mc_comm_run){ep->out + at, (size_t)n * ep->codec.wire_bytes};
        mc_ep_pack(&ep->codec, ep->out + at, rows, index + begin[r], n);
        at = mc_ep_aligned(at + ep->send[r].n_bytes);
    }
}

/* Where rows begin[r] .. of rank r arrive: in `rows`, as they are, or packed in ep->in. */
static void
expect_messages(mc_ep *ep, const int64_t *begin, void *rows)
{
    size_t at = 0;
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        int64_t n = share(begin, r);
        if (r == ep->me || n == 0) continue;
        size_t bytes = (size_t)n * ep->codec.wire_bytes;
        void *to = rows ? (unsigned char *)rows + (size_t)begin[r] * ep->codec.wire_bytes : ep->in + at;
        ep->recv[r] = (mc_comm_run){to, bytes};
        at = mc_ep_aligned(at + bytes);
    }
}

/* Messages in ep->in become rows: of rank r, rows index[begin[r]] .. */
static moec_status
unpack_messages(mc_ep *ep, const int64_t *begin)
{
    if (ep->straight) return MOEC_OK;
    const int32_t *index = ep->in_order ? NULL : ep->index;
    size_t at = 0;
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        int64_t n = share(begin, r);
        if (r == ep->me || n == 0) continue;
        if (index)
            mc_ep_unpack(&ep->codec, ep->target, index + begin[r], ep->in + at, n);
        else
            mc_ep_unpack(&ep->codec, ep->target + (size_t)begin[r] * ep->codec.row_bytes, NULL, ep->in + at, n);
        at = mc_ep_aligned(at + (size_t)n * ep->codec.wire_bytes);
    }
    return MOEC_OK;
}

/* ---- a row for each (token, rank) ------------------------------------------------------------------------------ */

moec_status
mc_ep_send_begin(mc_ep *ep, mc_ep_way way, const mc_ep_lists *lists, mc_ep_row row, const void *x, void *out,
                 mc_fault *error)
{
    moec_status status = mc_ep_prepare(ep, "send", lists, row, out, error);
    if (status != MOEC_OK) return status;
    if (mc_ep_by_node(ep, way)) return mc_ep_send_by_node(ep, lists, x, error);
    const ep_codec *c = &ep->codec;
    const int32_t *own = lists->sent_tokens + ep->at.out_rows[ep->me];
    mc_ep_move(c, ep->target + (size_t)ep->at.in_rows[ep->me] * c->row_bytes, NULL, x, own,
               share(ep->at.out_rows, ep->me));
    pack_messages(ep, ep->at.out_rows, x, lists->sent_tokens);
    ep->in_order = true;
    ep->straight = c->code == EP_SAME;
    expect_messages(ep, ep->at.in_rows, ep->straight ? out : NULL);
    return mc_ep_launch(ep, EP_SEND, "ep.send", error);
}

moec_status
mc_ep_end_send(mc_ep *ep)
{
    return unpack_messages(ep, ep->at.in_rows);
}

/* ---- a row for each assignment --------------------------------------------------------------------------------- */

/* ep->index[i]: which received assignment the i-th on the wire is. True when it is the same everywhere. */
static bool
invert_order(mc_ep *ep, const mc_ep_lists *lists)
{
    int64_t n = ep->at.in_assignments[ep->n_ranks];
    bool same = true;
    for (int64_t y = 0; y < n; y++) {
        same = same && lists->order[y] == y;
        ep->index[lists->order[y]] = (int32_t)y;
    }
    return same;
}

moec_status
mc_ep_send_rows_begin(mc_ep *ep, const mc_ep_lists *lists, mc_ep_row row, const void *v, void *out, mc_fault *error)
{
    moec_status status = mc_ep_prepare(ep, "send_rows", lists, row, out, error);
    if (status != MOEC_OK) return status;
    const ep_codec *c = &ep->codec;
    ep->in_order = invert_order(ep, lists);
    mc_ep_move(c, out, ep->index + ep->at.in_assignments[ep->me], v, lists->sent + ep->at.out_assignments[ep->me],
               share(ep->at.in_assignments, ep->me));
    pack_messages(ep, ep->at.out_assignments, v, lists->sent);
    ep->straight = ep->in_order && c->code == EP_SAME;
    expect_messages(ep, ep->at.in_assignments, ep->straight ? out : NULL);
    return mc_ep_launch(ep, EP_SEND_ROWS, "ep.send_rows", error);
}

moec_status
mc_ep_end_send_rows(mc_ep *ep)
{
    return unpack_messages(ep, ep->at.in_assignments);
}

moec_status
mc_ep_return_rows_begin(mc_ep *ep, const mc_ep_lists *lists, mc_ep_row row, const void *y, void *out, mc_fault *error)
{
    moec_status status = mc_ep_prepare(ep, "return", lists, row, out, error);
    if (status != MOEC_OK) return status;
    const ep_codec *c = &ep->codec;
    invert_order(ep, lists);
    mc_ep_move(c, out, lists->sent + ep->at.out_assignments[ep->me], y, ep->index + ep->at.in_assignments[ep->me],
               share(ep->at.out_assignments, ep->me));
    pack_messages(ep, ep->at.in_assignments, y, ep->index);
    int64_t n = ep->at.out_assignments[ep->n_ranks];
    ep->in_order = true;
    for (int64_t i = 0; i < n && ep->in_order; i++) ep->in_order = lists->sent[i] == i;
    ep->straight = ep->in_order && c->code == EP_SAME;
    if (!ep->in_order) memcpy(ep->index, lists->sent, (size_t)n * sizeof *ep->index);
    expect_messages(ep, ep->at.out_assignments, ep->straight ? out : NULL);
    return mc_ep_launch(ep, EP_RETURN_ROWS, "ep.return", error);
}

moec_status
mc_ep_end_return_rows(mc_ep *ep)
{
    return unpack_messages(ep, ep->at.out_assignments);
}
