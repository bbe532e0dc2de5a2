/* ep_place: which slot of which rank computes an assignment. Without a table that is arithmetic; with one, the copies
 * of each expert are listed once for a route (a counting sort of the slots), and a token takes the nearest. */
#include "runtime/ep/ep_state.h"

#include <string.h>

/* Lists the slots of each expert in ascending order. */
static moec_status
list_copies(mc_ep *ep, const int32_t *slots, int64_t n_experts, int64_t n_all, mc_fault *error)
{
    if (n_experts > EP_MAX_SLOTS || n_all > EP_MAX_SLOTS)
        return mc_ep_refuse(ep->comm, error, MOEC_ERR_ARGUMENT,
                            "ep.route: %lld experts in %lld slots: at most %d of each", (long long)n_experts,
                            (long long)n_all, EP_MAX_SLOTS);
    int32_t *begin = ep->copy_begin;
    memset(begin, 0, ((size_t)n_experts + 1) * sizeof *begin);
    for (int64_t s = 0; s < n_all; s++) {
        if (slots[s] < -1 || slots[s] >= n_experts)
            return mc_ep_refuse(ep->comm, error, MOEC_ERR_ARGUMENT, "ep.route: slot %lld holds expert %d of %lld",
                                (long long)s, slots[s], (long long)n_experts);
        if (slots[s] >= 0) begin[slots[s] + 1]++;
    }
    for (int64_t e = 0; e < n_experts; e++) begin[e + 1] += begin[e];
    for (int64_t s = 0; s < n_all; s++)
        if (slots[s] >= 0) ep->copies[begin[slots[s]]++] = (int32_t)s;
    memmove(begin + 1, begin, (size_t)n_experts * sizeof *begin);
    begin[0] = 0;
    return MOEC_OK;
}

/* The copies that a token of this rank chooses among: on its own rank, else in its node, else all. They are neighbours
 * in an ascending list. */
static void
nearest(const mc_ep *ep, int64_t n_slots, const int32_t **copies, int32_t *n)
{
    int64_t widths[2] = {1, ep->per_node};
    for (int level = 0; level < 2; level++) {
        int64_t first = ep->me / widths[level] * widths[level] * n_slots, last = first + widths[level] * n_slots;
        int32_t begin = 0, end;
        while (begin < *n && (*copies)[begin] < first) begin++;
        for (end = begin; end < *n && (*copies)[end] < last;) end++;
        if (end == begin) continue;
        *copies += begin;
        *n = end - begin;
        return;
    }
}

moec_status
mc_ep_place(mc_ep *ep, const int32_t *slots, int64_t n_experts, int64_t n_slots, const int32_t *offsets,
            const int32_t *tokens, mc_fault *error)
{
    if (slots) {
        moec_status status = list_copies(ep, slots, n_experts, n_slots * ep->n_ranks, error);
        if (status != MOEC_OK) return status;
    }
    for (int64_t e = 0; e < n_experts; e++) {
        if (offsets[e] == offsets[e + 1]) continue;
        int32_t only = (int32_t)e, n = 1;
        const int32_t *copies = &only;
        if (slots) {
            copies = ep->copies + ep->copy_begin[e];
            n = ep->copy_begin[e + 1] - ep->copy_begin[e];
            nearest(ep, n_slots, &copies, &n);
        }
        if (n == 0)
            return mc_ep_refuse(ep->comm, error, MOEC_ERR_ARGUMENT, "ep.route: expert %lld is in no slot",
                                (long long)e);
        for (int32_t a = offsets[e]; a < offsets[e + 1]; a++) {
            int32_t at = n == 1 ? copies[0] : copies[tokens[a] % n];
            ep->owner[a] = (int32_t)(at / n_slots);
            ep->slot[a] = (int32_t)(at % n_slots);
        }
    }
    return MOEC_OK;
}
