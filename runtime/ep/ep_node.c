/* ep_node: the way over nodes. A token that several ranks of another node need travels once, to the rank of the same
 * number there (its lane peer), with a mask that says which ranks of that node; the lane peer passes it on. The way
 * back is the same backwards: the lane peer adds up what the ranks of its node computed, and returns one row.
 *
 * Both are two exchanges: the first is begun by *_begin, the second belongs to the wait, so that every rank begins all
 * its exchanges in the same order. Masks travel with every operation, and nothing is kept between them. */
#include "runtime/ep/ep_state.h"

#include <string.h>

static uint32_t
home_of(const mc_ep *ep)
{
    return ep->me / ep->per_node;
}

static uint32_t
lane_of(const mc_ep *ep)
{
    return ep->me % ep->per_node;
}

static int64_t
share(const int64_t *begin, uint32_t r)
{
    return begin[r + 1] - begin[r];
}

/* Rows for the lane peer in `node`, from it, and how many of these are for rank j here. */
static int64_t
rows_to(const mc_ep *ep, uint32_t node)
{
    return ep->counts[NODES * ep->n_ranks + node];
}

static int64_t
rows_from(const mc_ep *ep, uint32_t node)
{
    return ep->counts[NODES * ep->n_ranks + ep->n_nodes + node];
}

static int64_t
relayed(const mc_ep *ep, uint32_t node, uint32_t j)
{
    return ep->counts[RELAY * ep->n_ranks + node * ep->per_node + j];
}

/* ---- masks ----------------------------------------------------------------------------------------------------- */

static size_t
mask_bytes(const mc_ep *ep)
{
    return (ep->per_node + 7) / 8;
}

/* Of n rows, in front of them. */
static size_t
masks_bytes(const mc_ep *ep, int64_t n)
{
    return ((size_t)n * mask_bytes(ep) + 7) & ~(size_t)7;
}

static uint64_t
mask_at(const mc_ep *ep, const unsigned char *masks, int64_t i)
{
    size_t bytes = mask_bytes(ep);
    uint64_t mask = 0;
    for (size_t b = 0; b < bytes; b++) mask |= (uint64_t)masks[(size_t)i * bytes + b] << 8 * b;
    return mask;
}

/* Lists the tokens that any rank of the node gets, ascending, in ep->node_tokens, and their masks. False: not as many
 * as the route said. */
static bool
list_node(mc_ep *ep, const int32_t *sent_tokens, uint32_t node, unsigned char *masks)
{
    int32_t first = INT32_MAX, last = -1;
    for (uint32_t j = 0; j < ep->per_node; j++) {
        uint32_t r = node * ep->per_node + j;
        int64_t begin = ep->at.out_rows[r], end = ep->at.out_rows[r + 1];
        if (begin == end) continue;
        if (sent_tokens[begin] < first) first = sent_tokens[begin];
        if (sent_tokens[end - 1] > last) last = sent_tokens[end - 1];
        for (int64_t i = begin; i < end; i++) ep->masks[sent_tokens[i]] |= (uint64_t)1 << j;
    }
    int64_t n = 0, most = rows_to(ep, node);
    size_t bytes = mask_bytes(ep);
    int32_t *tokens = ep->node_tokens + ep->node_begin[node];
    for (int64_t token = first; token <= last; token++) {
        uint64_t mask = ep->masks[token];
        ep->masks[token] = 0;
        if (mask == 0) continue;
        if (n++ >= most) continue;
        tokens[n - 1] = (int32_t)token;
        for (size_t b = 0; b < bytes; b++) masks[(size_t)(n - 1) * bytes + b] = (unsigned char)(mask >> 8 * b);
    }
    return n == most;
}

static moec_status
not_of_route(mc_ep *ep, mc_fault *error)
{
    return mc_ep_refuse(ep->comm, error, MOEC_ERR_INTERNAL, "ep: these lists are of no route by node");
}

/* Whether the masks of a peer's rows say what it announced in the route. */
static moec_status
check_masks(mc_ep *ep, uint32_t node, const unsigned char *masks, mc_fault *error)
{
    int64_t n = rows_from(ep, node), counted[EP_MAX_PER_NODE] = {0};
    uint64_t beyond = ep->per_node < 64 ? ~(uint64_t)0 << ep->per_node : 0;
    bool fine = true;
    for (int64_t i = 0; i < n; i++) {
        uint64_t mask = mask_at(ep, masks, i);
        fine = fine && mask != 0 && (mask & beyond) == 0;
        for (uint32_t j = 0; j < ep->per_node; j++) counted[j] += mask >> j & 1;
    }
    for (uint32_t j = 0; j < ep->per_node; j++) fine = fine && counted[j] == relayed(ep, node, j);
    if (fine) return MOEC_OK;
    return mc_ep_refuse(ep->comm, error, MOEC_ERR_MISMATCH,
                        "rank %u sends rows for other ranks of the node of rank %u than it announced",
                        ep->ranks[node * ep->per_node + lane_of(ep)], ep->ranks[ep->me]);
}

/* ---- send ------------------------------------------------------------------------------------------------------ */

moec_status
mc_ep_send_by_node(mc_ep *ep, const mc_ep_lists *lists, const void *x, mc_fault *error)
{
    const ep_codec *c = &ep->codec;
    const int64_t *to = ep->at.out_rows, *from = ep->at.in_rows;
    uint32_t home = home_of(ep), first = home * ep->per_node;
    size_t at = 0, in = 0, relay = 0;
    mc_ep_move(c, ep->target + (size_t)from[ep->me] * c->row_bytes, NULL, x, lists->sent_tokens + to[ep->me],
               share(to, ep->me));
    ep->straight = c->code == EP_SAME;
    for (uint32_t r = first; r < first + ep->per_node; r++) {
        if (r == ep->me) continue;
        size_t bytes = (size_t)share(from, r) * c->wire_bytes;
        ep->recv[r] = (mc_comm_run){ep->straight ? ep->target + (size_t)from[r] * c->row_bytes : ep->in + in, bytes};
        in = mc_ep_aligned(in + bytes);
        ep->send[r] = (mc_comm_run){ep->out + at, (size_t)share(to, r) * c->wire_bytes};
        mc_ep_pack(c, ep->out + at, x, lists->sent_tokens + to[r], share(to, r));
        at = mc_ep_aligned(at + ep->send[r].n_bytes);
    }
    ep->node_begin[0] = 0;
    for (uint32_t node = 0; node < ep->n_nodes; node++) {
        uint32_t peer = node * ep->per_node + lane_of(ep);
        int64_t n = node != home ? rows_to(ep, node) : 0, m = node != home ? rows_from(ep, node) : 0;
        ep->node_begin[node + 1] = ep->node_begin[node] + n;
        if (node == home) continue;
        size_t masks = masks_bytes(ep, n);
        if (!list_node(ep, lists->sent_tokens, node, ep->out + at)) return not_of_route(ep, error);
        mc_ep_pack(c, ep->out + at + masks, x, ep->node_tokens + ep->node_begin[node], n);
        ep->send[peer] = (mc_comm_run){ep->out + at, masks + (size_t)n * c->wire_bytes};
        at = mc_ep_aligned(at + ep->send[peer].n_bytes);
        ep->recv[peer] = (mc_comm_run){ep->relay + relay, masks_bytes(ep, m) + (size_t)m * c->wire_bytes};
        relay = mc_ep_aligned(relay + ep->recv[peer].n_bytes);
    }
    return mc_ep_launch(ep, EP_SEND_BY_NODE, "ep.send", error);
}

/* What lane peers sent for rank j of this node: to its message, or, for this rank, where it belongs. Returns the bytes
 * of the message. */
static size_t
pass_on(mc_ep *ep, uint32_t j, unsigned char *message)
{
    const ep_codec *c = &ep->codec;
    const unsigned char *relay = ep->relay;
    unsigned char *to = message;
    for (uint32_t node = 0; node < ep->n_nodes; node++) {
        if (node == home_of(ep)) continue;
        int64_t n = rows_from(ep, node);
        const unsigned char *rows = relay + masks_bytes(ep, n);
        int64_t own = ep->at.in_rows[node * ep->per_node + j];
        for (int64_t i = 0; i < n && c->wire_bytes > 0; i++) {
            const unsigned char *row = rows + (size_t)i * c->wire_bytes;
            if (!(mask_at(ep, relay, i) >> j & 1)) continue;
            if (j == lane_of(ep)) {
                mc_ep_unpack(c, ep->target + (size_t)own++ * c->row_bytes, NULL, row, 1);
            } else {
                memcpy(to, row, c->wire_bytes);
                to += c->wire_bytes;
            }
        }
        relay += mc_ep_aligned(masks_bytes(ep, n) + (size_t)n * c->wire_bytes);
    }
    return (size_t)(to - message);
}

/* Rows of lane `lane` of the other nodes for this rank, which the rank of that lane here passes on. */
static int64_t
rows_over(const mc_ep *ep, uint32_t lane)
{
    int64_t n = 0;
    for (uint32_t node = 0; node < ep->n_nodes; node++)
        if (node != home_of(ep)) n += share(ep->at.in_rows, node * ep->per_node + lane);
    return n;
}

static void
unpack_direct(mc_ep *ep)
{
    const ep_codec *c = &ep->codec;
    uint32_t first = home_of(ep) * ep->per_node;
    size_t in = 0;
    for (uint32_t r = first; r < first + ep->per_node; r++) {
        if (r == ep->me) continue;
        int64_t n = share(ep->at.in_rows, r);
        mc_ep_unpack(c, ep->target + (size_t)ep->at.in_rows[r] * c->row_bytes, NULL, ep->in + in, n);
        in = mc_ep_aligned(in + (size_t)n * c->wire_bytes);
    }
}

moec_status
mc_ep_end_send_by_node(mc_ep *ep, mc_fault *error)
{
    const ep_codec *c = &ep->codec;
    uint32_t home = home_of(ep), first = home * ep->per_node;
    const unsigned char *relay = ep->relay;
    size_t at = 0, in = 0;
    for (uint32_t node = 0; node < ep->n_nodes; node++) {
        if (node == home) continue;
        moec_status status = check_masks(ep, node, relay, error);
        if (status != MOEC_OK) return status;
        relay += mc_ep_aligned(masks_bytes(ep, rows_from(ep, node)) + (size_t)rows_from(ep, node) * c->wire_bytes);
    }
    if (!ep->straight) unpack_direct(ep);
    mc_ep_clear_runs(ep);
    for (uint32_t j = 0; j < ep->per_node; j++) {
        size_t bytes = pass_on(ep, j, ep->out + at);
        if (j == lane_of(ep)) continue;
        ep->send[first + j] = (mc_comm_run){ep->out + at, bytes};
        ep->recv[first + j] = (mc_comm_run){ep->in + in, (size_t)rows_over(ep, j) * c->wire_bytes};
        at = mc_ep_aligned(at + bytes);
        in = mc_ep_aligned(in + ep->recv[first + j].n_bytes);
    }
    moec_status status = mc_ep_start(ep, "ep.send in the node", error);
    if (status == MOEC_OK) status = mc_ep_finish(ep, error);
    if (status != MOEC_OK) return status;
    const unsigned char *row = ep->in;
    for (uint32_t j = 0; j < ep->per_node; j++) {
        const unsigned char *next = row;
        for (uint32_t node = 0; node < ep->n_nodes && j != lane_of(ep); node++) {
            uint32_t r = node * ep->per_node + j;
            if (node == home) continue;
            int64_t n = share(ep->at.in_rows, r);
            mc_ep_unpack(c, ep->target + (size_t)ep->at.in_rows[r] * c->row_bytes, NULL, next, n);
            next += (size_t)n * c->wire_bytes;
        }
        row += mc_ep_aligned((size_t)(next - row));
    }
    return MOEC_OK;
}

/* ---- reduce ---------------------------------------------------------------------------------------------------- */

/* Bytes of the message that rank j of this node sends here: rows of own tokens, then those to add up for lane peers. */
static size_t
bytes_back(const mc_ep *ep, uint32_t j)
{
    int64_t n = share(ep->at.out_rows, home_of(ep) * ep->per_node + j);
    for (uint32_t node = 0; node < ep->n_nodes; node++)
        if (node != home_of(ep)) n += relayed(ep, node, j);
    return (size_t)n * ep->codec.wire_bytes;
}

/* The message for rank j of this node. */
static size_t
pack_back(mc_ep *ep, uint32_t j, const unsigned char *y, unsigned char *message)
{
    const ep_codec *c = &ep->codec;
    unsigned char *to = message;
    for (uint32_t i = 0; i <= ep->n_nodes; i++) { /* first its own tokens' */
        uint32_t node = i == 0 ? home_of(ep) : i - 1, r = node * ep->per_node + j;
        if (i > 0 && node == home_of(ep)) continue;
        int64_t n = share(ep->at.in_rows, r);
        if (n == 0) continue;
        mc_ep_pack(c, to, y + (size_t)ep->at.in_rows[r] * c->row_bytes, NULL, n);
        to += (size_t)n * c->wire_bytes;
    }
    return (size_t)(to - message);
}

moec_status
mc_ep_reduce_by_node(mc_ep *ep, const mc_ep_lists *lists, const void *y, mc_fault *error)
{
    uint32_t home = home_of(ep), first = home * ep->per_node;
    size_t at = 0, in = 0, relay = 0;
    for (uint32_t j = 0; j < ep->per_node; j++) {
        size_t bytes = bytes_back(ep, j);
        if (first + j == ep->me) {
            pack_back(ep, j, y, ep->in + in);
        } else {
            ep->send[first + j] = (mc_comm_run){ep->out + at, pack_back(ep, j, y, ep->out + at)};
            ep->recv[first + j] = (mc_comm_run){ep->in + in, bytes};
            at = mc_ep_aligned(at + ep->send[first + j].n_bytes);
        }
        in = mc_ep_aligned(in + bytes);
    }
    ep->node_begin[0] = 0;
    for (uint32_t node = 0; node < ep->n_nodes; node++) {
        uint32_t peer = node * ep->per_node + lane_of(ep);
        ep->node_begin[node + 1] = ep->node_begin[node] + (node != home ? rows_to(ep, node) : 0);
        if (node == home) continue;
        if (!list_node(ep, lists->sent_tokens, node, ep->out + at)) return not_of_route(ep, error);
        ep->send[peer] = (mc_comm_run){ep->out + at, (size_t)rows_to(ep, node) * mask_bytes(ep)};
        ep->recv[peer] = (mc_comm_run){ep->relay + relay, (size_t)rows_from(ep, node) * mask_bytes(ep)};
        at = mc_ep_aligned(at + ep->send[peer].n_bytes);
        relay = mc_ep_aligned(relay + ep->recv[peer].n_bytes);
    }
    return mc_ep_launch(ep, EP_REDUCE_BY_NODE, "ep.reduce in the node", error);
}

/* Adds up, for each row of the lane peers, what the ranks of this node have of it, into messages in ep->out. */
static void
add_for_peers(mc_ep *ep)
{
    const ep_codec *c = &ep->codec;
    const unsigned char *next[EP_MAX_PER_NODE], *masks = ep->relay, *in = ep->in;
    unsigned char *to = ep->out;
    for (uint32_t j = 0; j < ep->per_node; j++) {
        next[j] = in + (size_t)share(ep->at.out_rows, home_of(ep) * ep->per_node + j) * c->wire_bytes;
        in += mc_ep_aligned(bytes_back(ep, j));
    }
    for (uint32_t node = 0; node < ep->n_nodes; node++) {
        if (node == home_of(ep)) continue;
        int64_t n = rows_from(ep, node);
        for (int64_t i = 0; i < n; i++) {
            float *sum = c->code == EP_SAME ? (float *)(void *)(to + (size_t)i * c->wire_bytes) : ep->one_row;
            bool begun = false;
            uint64_t mask = mask_at(ep, masks, i);
            for (uint32_t j = 0; j < ep->per_node; j++) {
                if (!(mask >> j & 1)) continue;
                (begun ? mc_ep_add : mc_ep_set)(c, sum, next[j]);
                next[j] += c->wire_bytes;
                begun = true;
            }
            if (c->code != EP_SAME) mc_ep_pack(c, to + (size_t)i * c->wire_bytes, sum, NULL, 1);
        }
        masks += mc_ep_aligned((size_t)n * mask_bytes(ep));
        to += mc_ep_aligned((size_t)n * c->wire_bytes);
    }
}

/* What add_up reads: the next row of each rank of this node and of each other node. */
typedef struct sources {
    int64_t row[EP_MAX_PER_NODE]; /* in ep->index */
    const unsigned char *at[EP_MAX_PER_NODE];
    int64_t *node_row; /* [N] in ep->node_tokens */
} sources;

/* The part of this node, rounded as if it had travelled. False: the token has none. */
static bool
add_home(mc_ep *ep, sources *s, int64_t token, float *sum)
{
    static const int32_t zero = 0;
    const ep_codec *c = &ep->codec;
    bool begun = false;
    for (uint32_t j = 0; j < ep->per_node; j++) {
        uint32_t r = home_of(ep) * ep->per_node + j;
        for (; s->row[j] < ep->at.out_rows[r + 1] && ep->index[s->row[j]] == token; s->row[j]++) {
            (begun ? mc_ep_add : mc_ep_set)(c, sum, s->at[j]);
            s->at[j] += c->wire_bytes;
            begun = true;
        }
    }
    if (begun && c->code != EP_SAME) mc_ep_move(c, sum, NULL, sum, &zero, 1);
    return begun;
}

static void
add_up(mc_ep *ep)
{
    const ep_codec *c = &ep->codec;
    ep_codec plain = {EP_SAME, c->width, c->row_bytes, c->row_bytes, NULL};
    sources s = {.node_row = ep->cursor};
    const unsigned char *in = ep->in;
    for (uint32_t j = 0; j < ep->per_node; j++) {
        s.row[j] = ep->at.out_rows[home_of(ep) * ep->per_node + j];
        s.at[j] = in;
        in += mc_ep_aligned(bytes_back(ep, j));
    }
    memcpy(s.node_row, ep->node_begin, ep->n_nodes * sizeof *s.node_row);
    for (int64_t token = 0; token < ep->n_tokens; token++) {
        float *sum = (float *)(void *)(ep->target + (size_t)token * c->row_bytes);
        const unsigned char *partial = ep->relay;
        bool begun = false;
        for (uint32_t node = 0; node < ep->n_nodes; node++) {
            if (node == home_of(ep)) {
                if (!add_home(ep, &s, token, begun ? ep->one_row : sum)) continue;
                if (begun) mc_ep_add(&plain, sum, ep->one_row);
                begun = true;
                continue;
            }
            int64_t *i = &s.node_row[node];
            if (*i < ep->node_begin[node + 1] && ep->node_tokens[*i] == token) {
                (begun ? mc_ep_add : mc_ep_set)(c, sum, partial + (size_t)(*i - ep->node_begin[node]) * c->wire_bytes);
                begun = true;
                ++*i;
            }
            partial += mc_ep_aligned((size_t)rows_to(ep, node) * c->wire_bytes);
        }
        if (!begun) memset(sum, 0, c->row_bytes);
    }
}

moec_status
mc_ep_end_reduce_by_node(mc_ep *ep, mc_fault *error)
{
    const ep_codec *c = &ep->codec;
    const unsigned char *masks = ep->relay;
    size_t at = 0, relay = 0;
    for (uint32_t node = 0; node < ep->n_nodes; node++) {
        if (node == home_of(ep)) continue;
        moec_status status = check_masks(ep, node, masks, error);
        if (status != MOEC_OK) return status;
        masks += mc_ep_aligned((size_t)rows_from(ep, node) * mask_bytes(ep));
    }
    if (c->row_bytes > 0) add_for_peers(ep);
    mc_ep_clear_runs(ep);
    for (uint32_t node = 0; node < ep->n_nodes; node++) {
        uint32_t peer = node * ep->per_node + lane_of(ep);
        if (node == home_of(ep)) continue;
        ep->send[peer] = (mc_comm_run){ep->out + at, (size_t)rows_from(ep, node) * c->wire_bytes};
        ep->recv[peer] = (mc_comm_run){ep->relay + relay, (size_t)rows_to(ep, node) * c->wire_bytes};
        at = mc_ep_aligned(at + ep->send[peer].n_bytes);
        relay = mc_ep_aligned(relay + ep->recv[peer].n_bytes);
    }
    moec_status status = mc_ep_start(ep, "ep.reduce between nodes", error);
    if (status == MOEC_OK) status = mc_ep_finish(ep, error);
    if (status == MOEC_OK && c->row_bytes > 0) add_up(ep);
    return status;
}
