/* ep: moves rows of tokens to the ranks that own their experts, and back. The integers of a dispatch are arrays of the
 * plan's (they are read again in backward); buffers for the wire are the mc_ep's, all made at creation.
 *
 *   R ranks of the group, L slots (experts) a rank, E experts, T tokens of this rank, A assignments (token, expert) of
 *   this rank, sorted by expert and then token: offsets [E + 1], tokens [A] as moe.dispatch gives them; those past
 *   offsets[E] do not count. X rows received, Y assignments received.
 *
 *   route        offsets, tokens -> what goes where: lists, and counts for both sides
 *   send         x [T, w]  -> [X, w]   each token once for each rank (or each assignment) that needs it
 *   send_rows    v [A, w]  -> [Y, w]   a row for each assignment (gates)
 *   return_rows  y [Y, w]  -> [A, w]   the way back of send_rows: exactly the rows that were computed
 *   reduce       y [X, w]  -> [T, w]   one row for each received row, added up in ascending rank
 *
 * Received assignments are sorted by local slot, then source rank, then token; received rows by source rank, then
 * token: never by arrival. Ranks may have different T, 0 too. Ids of a rank's peers are positions in the group.
 *
 * Errors of all of them: those of comm.h; MISMATCH when counts that a peer announces cannot be (negative, beyond the
 * bounds: which peer, what, the bound). */
#ifndef MC_RUNTIME_EP_EP_H
#define MC_RUNTIME_EP_EP_H

#include "runtime/comm/comm.h"

typedef enum mc_ep_way {                   /* how rows travel */
                         MC_EP_EXPERT = 0, /* a row for every assignment: X = Y */
                         MC_EP_RANK = 1,   /* a row for each (token, rank) */
                         MC_EP_NODE = 2    /* between nodes a row for each (token, node), to the rank of the same number
                                              there, which passes    it on; results as MC_EP_RANK */
} mc_ep_way;

typedef struct mc_ep_options {
    moec_comm *comm;
    const uint32_t *ranks; /* of the group, ascending; borrowed */
    uint32_t n_ranks, me;  /* me: this rank's position among them */
    uint32_t per_node;     /* positions i * per_node .. are a node's; divides n_ranks */
    /* The most that any rank of the group can have in any step: what buffers are sized by. */
    int64_t max_tokens, max_assignments; /* T, A of one rank */
    int64_t max_rows, max_received;      /* X, Y of one rank */
    int64_t max_row_bytes;               /* of one row of any operation */
} mc_ep_options;

typedef struct mc_ep mc_ep;

moec_status mc_ep_create(const mc_ep_options *options, mc_ep **out, mc_fault *error) MOEC_MUST_USE;
void mc_ep_destroy(mc_ep *ep);       /* NULL is allowed */
size_t mc_ep_bytes(const mc_ep *ep); /* that it has reserved */

/* The lists of one dispatch: arrays of the caller's. */
typedef struct mc_ep_lists {
    int32_t *offsets;     /* [L + 1] local slot s has the received assignments offsets[s] .. offsets[s + 1] - 1 */
    int32_t *rows;        /* [Y] the received row of each */
    int32_t *order;       /* [Y] where each stands on the wire: sorted by source rank, then the source's `sent` */
    int32_t *sent;        /* [A] own assignments, grouped by owner, ascending in each group */
    int32_t *sent_tokens; /* [A] tokens of own rows, grouped by owner, ascending in each group; the rest unused */
    int32_t *counts; /* [MC_EP_COUNTS, R]: assignments sent, rows sent, assignments received, rows received, of each
                        rank; then two rows of what MC_EP_NODE passes on (ep_state.h), zeros otherwise */
} mc_ep_lists;

enum { MC_EP_COUNTS = 6 };

/* slots [R * L]: the expert in each slot of each rank, -1: none; NULL: expert e is slot e mod L of rank e / L. An
 * expert in several slots: a token goes to one on its own rank, else node, else any: number (token mod copies) of
 * those. At most 65536 slots and experts where slots are given. *out_x, *out_y: rows and assignments received. */
moec_status mc_ep_route(mc_ep *ep, mc_ep_way way, const int32_t *slots, int64_t n_experts, int64_t n_slots,
                        const int32_t *offsets, const int32_t *tokens, int64_t n_tokens, const mc_ep_lists *lists,
                        int64_t *out_x, int64_t *out_y, mc_fault *error) MOEC_MUST_USE;

/* Elements of a row, as they lie (dtype) and as they travel (wire): equal, or bf16 or f8e4m3 for f32. f8e4m3 is scaled
 * by max|x| / 448 of each run of 128 elements (of the finite ones; infinities become NaN), an f32 that travels with it.
 * Rows that stay on their rank are rounded just as well: results do not depend on where a token is. */
typedef struct mc_ep_row {
    int64_t width;
    moec_dtype dtype, wire;
} mc_ep_row;

/* One operation may be under way at a time: begun by *_begin, ended by mc_ep_wait. What it reads, lists too, may change
 * after begin returned; what it writes is complete after wait. Routes, gathers and merges may come in between. */
moec_status mc_ep_send_begin(mc_ep *ep, mc_ep_way way, const mc_ep_lists *lists, mc_ep_row row, const void *x,
                             void *out, mc_fault *error) MOEC_MUST_USE;
moec_status mc_ep_send_rows_begin(mc_ep *ep, const mc_ep_lists *lists, mc_ep_row row, const void *v, void *out,
                                  mc_fault *error) MOEC_MUST_USE;
moec_status mc_ep_return_rows_begin(mc_ep *ep, const mc_ep_lists *lists, mc_ep_row row, const void *y, void *out,
                                    mc_fault *error) MOEC_MUST_USE;
/* f32. Adds in ascending rank (a chain from the first one's value); MC_EP_NODE: first the ranks of a node, in the node,
 * then the nodes. out: every one of the n_tokens rows; zero for a token that was not sent. */
moec_status mc_ep_reduce_begin(mc_ep *ep, mc_ep_way way, const mc_ep_lists *lists, mc_ep_row row, const void *y,
                               int64_t n_tokens, void *out, mc_fault *error) MOEC_MUST_USE;
moec_status mc_ep_wait(mc_ep *ep, mc_fault *error) MOEC_MUST_USE;
/* Gives messages a chance while something else is computed. */
void mc_ep_progress(mc_ep *ep);

/* Elements n of this rank (of row_bytes each) on every rank, in rank order; *out_n: how many there are of all,
 * *out_own: where this rank's begin. The most of all together: limit. Used on whole worlds and on replicas (any
 * ascending list with `me` in it). */
typedef struct mc_ep_group {
    const uint32_t *ranks;
    uint32_t n_ranks, me;
} mc_ep_group;
moec_status mc_ep_gather(moec_comm *comm, const mc_ep_group *group, const void *x, int64_t n, int64_t row_bytes,
                         int64_t limit, void *out, int64_t *out_n, int64_t *out_own, mc_fault *error) MOEC_MUST_USE;
/* x [Y, w] sorted by slot with offsets [L + 1], of each rank of the group -> all of them, sorted by slot, then rank,
 * with out_offsets. limit: rows that fit in out. */
moec_status mc_ep_merge(moec_comm *comm, const mc_ep_group *group, int64_t n_slots, const int32_t *offsets,
                        const void *x, int64_t row_bytes, int64_t limit, void *out, int32_t *out_offsets,
                        int64_t *out_n, mc_fault *error) MOEC_MUST_USE;
/* x [n] f32 of every rank added in ascending rank (a chain from rank 0's value), the same bits on all of them. Memory
 * for the way: scratch of n f32. */
moec_status mc_ep_all_reduce(moec_comm *comm, const mc_ep_group *group, float *x, int64_t n, float *scratch,
                             mc_fault *error) MOEC_MUST_USE;

#endif
