/* ep_reduce: one row comes back for each row that was sent, and those of a token are added up in ascending rank: a
 * chain that begins with the first one's value, whatever the order of arrival. Tokens are taken in blocks, so that the
 * sums of a block stay in the cache while the ranks' rows, each rank's in ascending token, stream by. */
#include "runtime/ep/ep_state.h"

#include <string.h>

enum { BLOCK_BYTES = 64 << 10, BLOCK_TOKENS = 256 };

moec_status
mc_ep_reduce_begin(mc_ep *ep, mc_ep_way way, const mc_ep_lists *lists, mc_ep_row row, const void *y, int64_t n_tokens,
                   void *out, mc_fault *error)
{
    moec_status status = mc_ep_prepare(ep, "reduce", lists, row, out, error);
    if (status != MOEC_OK) return status;
    if (row.dtype != MOEC_F32 || n_tokens < 0 || n_tokens > ep->max_tokens)
        return mc_ep_refuse(ep->comm, error, MOEC_ERR_ARGUMENT, "ep.reduce: sums of %lld tokens in %s",
                            (long long)n_tokens, moec_dtype_name(row.dtype));
    ep->n_tokens = n_tokens;
    int64_t n = ep->at.out_rows[ep->n_ranks];
    if (n > 0) memcpy(ep->index, lists->sent_tokens, (size_t)n * sizeof *ep->index);
    if (mc_ep_by_node(ep, way)) return mc_ep_reduce_by_node(ep, lists, y, error);
    const ep_codec *c = &ep->codec;
    const int64_t *in = ep->at.in_rows, *out_rows = ep->at.out_rows;
    const unsigned char *from = y;
    size_t sent = 0;
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        unsigned char *back = ep->in + (size_t)out_rows[r] * c->wire_bytes;
        size_t bytes = (size_t)(in[r + 1] - in[r]) * c->wire_bytes;
        bool own = r == ep->me;
        if (bytes > 0)
            mc_ep_pack(c, own ? back : ep->out + sent, from + (size_t)in[r] * c->row_bytes, NULL, in[r + 1] - in[r]);
        if (own) continue;
        ep->send[r] = (mc_comm_run){ep->out + sent, bytes};
        ep->recv[r] = (mc_comm_run){back, (size_t)(out_rows[r + 1] - out_rows[r]) * c->wire_bytes};
        sent = mc_ep_aligned(sent + bytes);
    }
    return mc_ep_launch(ep, EP_REDUCE, "ep.reduce", error);
}

moec_status
mc_ep_end_reduce(mc_ep *ep)
{
    const ep_codec *c = &ep->codec;
    const int64_t *begin = ep->at.out_rows;
    if (c->row_bytes == 0) return MOEC_OK;
    int64_t block = c->row_bytes < BLOCK_BYTES ? BLOCK_BYTES / (int64_t)c->row_bytes : 1;
    if (block > BLOCK_TOKENS) block = BLOCK_TOKENS;
    bool begun[BLOCK_TOKENS];
    memcpy(ep->cursor, begin, ep->n_ranks * sizeof *begin);
    for (int64_t first = 0; first < ep->n_tokens; first += block) {
        int64_t end = first + block < ep->n_tokens ? first + block : ep->n_tokens;
        memset(begun, 0, sizeof begun);
        for (uint32_t r = 0; r < ep->n_ranks; r++) {
            int64_t i = ep->cursor[r];
            for (; i < begin[r + 1] && ep->index[i] < end; i++) {
                int64_t token = ep->index[i];
                float *sum = (float *)(void *)(ep->target + (size_t)token * c->row_bytes);
                const unsigned char *row = ep->in + (size_t)i * c->wire_bytes;
                (begun[token - first] ? mc_ep_add : mc_ep_set)(c, sum, row);
                begun[token - first] = true;
            }
            ep->cursor[r] = i;
        }
        for (int64_t token = first; token < end; token++)
            if (!begun[token - first]) memset(ep->target + (size_t)token * c->row_bytes, 0, c->row_bytes);
    }
    return MOEC_OK;
}
