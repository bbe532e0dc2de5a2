/* What the files of ep share: the state behind mc_ep, and how rows look on the wire. */
#ifndef MC_RUNTIME_EP_EP_STATE_H
#define MC_RUNTIME_EP_EP_STATE_H

#include "runtime/ep/ep.h"
#include "runtime/pages.h"

enum { EP_MAX_SLOTS = 1 << 16, EP_MAX_PER_NODE = 64, EP_RUN = 128, EP_ALIGN = 64 };

/* Rows of mc_ep_lists.counts. RELAY [node * S + j]: rows that the lane peer in `node` sends here for rank j of this
 * node. NODES [node]: rows sent to the lane peer in `node`; [N + node]: rows received from it. */
enum { SENT_ASSIGNMENTS, SENT_ROWS, GOT_ASSIGNMENTS, GOT_ROWS, RELAY, NODES };

/* ---- ep_wire.c ---- */

typedef enum ep_code { EP_SAME, EP_BF16, EP_F8 } ep_code;

typedef struct ep_codec {
    ep_code code;
    int64_t width;
    size_t row_bytes, wire_bytes;
    const float *values; /* of the 256 codes of f8e4m3 */
} ep_codec;

/* False: no such pair of types, or a row beyond max_row_bytes. */
bool mc_ep_codec(mc_ep_row row, int64_t max_row_bytes, const float *values, ep_codec *out);
/* wire[i] = rows[index[i]]; index NULL: i. */
void mc_ep_pack(const ep_codec *c, void *wire, const void *rows, const int32_t *index, int64_t n);
/* rows[index[i]] = wire[i] */
void mc_ep_unpack(const ep_codec *c, void *rows, const int32_t *index, const void *wire, int64_t n);
/* to[to_index[i]] = from[from_index[i]], as it would arrive */
void mc_ep_move(const ep_codec *c, void *to, const int32_t *to_index, const void *from, const int32_t *from_index,
                int64_t n);
/* sum = or += the row */
void mc_ep_set(const ep_codec *c, float *sum, const void *wire);
void mc_ep_add(const ep_codec *c, float *sum, const void *wire);

/* ---- ep.c ---- */

/* Where each rank's share begins: prefix sums of the counts, [R + 1]. */
typedef struct ep_bounds {
    int64_t *out_assignments, *out_rows, *in_assignments, *in_rows;
} ep_bounds;

typedef enum ep_operation {
    EP_NOTHING,
    EP_SEND,
    EP_SEND_ROWS,
    EP_RETURN_ROWS,
    EP_REDUCE,
    EP_SEND_BY_NODE,
    EP_REDUCE_BY_NODE
} ep_operation;

struct mc_ep {
    moec_comm *comm;
    const uint32_t *ranks;
    uint32_t n_ranks, me, per_node, n_nodes;
    int64_t max_tokens, max_assignments, max_rows, max_received, max_row_bytes;
    float f8_values[256];
    mc_pages pages; /* every array below */

    /* route */
    ep_bounds route;
    int32_t *records_out, *records_in;      /* [R, 3 + S] */
    int32_t *last_token, *last_node;        /* [R] */
    int64_t *cursor;                        /* [R] */
    int32_t *owner, *slot, *row, *by_token; /* [A] */
    int32_t *token_begin;                   /* [T + 1] */
    int32_t *pairs_out, *pairs_in;          /* [A, 2], [Y, 2]: slot and row of an assignment */
    int32_t *copy_begin, *copies;           /* slots of each expert */

    /* the operation under way */
    ep_operation under_way;
    mc_comm_request *request;
    ep_codec codec;
    ep_bounds at;
    mc_comm_run *send, *recv; /* [R]; only until begun */
    unsigned char *target;    /* the caller's `out` */
    int64_t n_tokens;
    bool straight;        /* rows are received where they belong */
    bool in_order;        /* rows are received in the order in which they belong; otherwise index says where to */
    int32_t *index;       /* [max(A, Y)] */
    int32_t *counts;      /* [MC_EP_COUNTS, R] copy */
    uint64_t *masks;      /* [T] zero between uses */
    int32_t *node_tokens; /* tokens that go to each other node */
    int64_t *node_begin;  /* [N + 1] where those of each node begin */
    float *one_row;
    unsigned char *out, *in, *relay;
    size_t buffer_bytes, relay_bytes;
};

/* Fails, and the group with us. Returns status. */
moec_status mc_ep_refuse(moec_comm *comm, mc_fault *error, moec_status status, const char *format, ...)
    MOEC_PRINTF(4, 5);
/* MC_EP_NODE with nodes in it: otherwise it is MC_EP_RANK. */
bool mc_ep_by_node(const mc_ep *ep, mc_ep_way way);
/* Checks what every begin is given; sets codec, at, counts. */
moec_status mc_ep_prepare(mc_ep *ep, const char *what, const mc_ep_lists *lists, mc_ep_row row, void *out,
                          mc_fault *error) MOEC_MUST_USE;
/* Begins ep->send, ep->recv. For one rank there is nothing to do. */
moec_status mc_ep_start(mc_ep *ep, const char *what, mc_fault *error) MOEC_MUST_USE;
moec_status mc_ep_finish(mc_ep *ep, mc_fault *error) MOEC_MUST_USE;
void mc_ep_clear_runs(mc_ep *ep);

static inline size_t
mc_ep_aligned(size_t n)
{
    return (n + EP_ALIGN - 1) & ~(size_t)(EP_ALIGN - 1);
}

/* Begins as mc_ep_start, and is then under way. */
moec_status mc_ep_launch(mc_ep *ep, ep_operation what, const char *name, mc_fault *error) MOEC_MUST_USE;

/* ---- ep_place.c ---- */

/* ep->owner, ep->slot of each assignment. */
moec_status mc_ep_place(mc_ep *ep, const int32_t *slots, int64_t n_experts, int64_t n_slots, const int32_t *offsets,
                        const int32_t *tokens, mc_fault *error) MOEC_MUST_USE;

/* ---- ep_node.c: MC_EP_NODE, after mc_ep_prepare ---- */

moec_status mc_ep_send_by_node(mc_ep *ep, const mc_ep_lists *lists, const void *x, mc_fault *error) MOEC_MUST_USE;
moec_status mc_ep_reduce_by_node(mc_ep *ep, const mc_ep_lists *lists, const void *y, mc_fault *error) MOEC_MUST_USE;

/* ---- second halves, after the first exchange of the operation under way ---- */

moec_status mc_ep_end_send(mc_ep *ep) MOEC_MUST_USE;
moec_status mc_ep_end_send_rows(mc_ep *ep) MOEC_MUST_USE;
moec_status mc_ep_end_return_rows(mc_ep *ep) MOEC_MUST_USE;
moec_status mc_ep_end_reduce(mc_ep *ep) MOEC_MUST_USE;
moec_status mc_ep_end_send_by_node(mc_ep *ep, mc_fault *error) MOEC_MUST_USE;
moec_status mc_ep_end_reduce_by_node(mc_ep *ep, mc_fault *error) MOEC_MUST_USE;

#endif
