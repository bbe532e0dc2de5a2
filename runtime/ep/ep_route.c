/* ep_route: a dispatch becomes lists. Two exchanges of integers: how many assignments and rows go from whom to whom,
 * and then, for each assignment, its slot and its row. Everything a peer announces is checked against the bounds before
 * it is used, so nothing that is done with the lists later can leave the arrays. Sorting is by counting, and stable:
 * from assignments in order of (expert, token) on every source come received ones in order of (slot, source, token). */
#include "runtime/ep/ep_state.h"

#include <string.h>

typedef struct route {
    mc_ep *ep;
    mc_ep_way way;
    bool by_node;
    int64_t n_slots, n_tokens, n_assignments;
    const int32_t *tokens;
    const mc_ep_lists *lists;
    mc_fault *error;
} route;

static int32_t *
counts_of(const route *t, int row)
{
    return t->lists->counts + (size_t)row * t->ep->n_ranks;
}

static moec_status
check_dispatch(const route *t, const int32_t *offsets, int64_t n_experts, const int32_t *slots)
{
    mc_ep *ep = t->ep;
    if (n_experts < 0 || n_experts > INT32_MAX || t->n_slots < 1 || t->n_slots > INT32_MAX / ep->n_ranks ||
        (!slots && n_experts > t->n_slots * ep->n_ranks))
        return mc_ep_refuse(ep->comm, t->error, MOEC_ERR_ARGUMENT,
                            "ep.route: %lld experts in %lld slots on each of %u ranks", (long long)n_experts,
                            (long long)t->n_slots, ep->n_ranks);
    if (t->n_tokens < 0 || t->n_tokens > ep->max_tokens || t->n_assignments < 0 ||
        t->n_assignments > ep->max_assignments)
        return mc_ep_refuse(ep->comm, t->error, MOEC_ERR_ARGUMENT,
                            "ep.route: %lld tokens with %lld assignments; room is for %lld with %lld",
                            (long long)t->n_tokens, (long long)t->n_assignments, (long long)ep->max_tokens,
                            (long long)ep->max_assignments);
    bool fine = offsets[0] == 0;
    for (int64_t e = 0; e < n_experts && fine; e++) {
        fine = offsets[e] <= offsets[e + 1] && offsets[e + 1] <= t->n_assignments;
        for (int32_t a = offsets[e], last = 0; fine && a < offsets[e + 1]; a++) {
            fine = t->tokens[a] >= last && t->tokens[a] < t->n_tokens;
            last = t->tokens[a];
        }
    }
    if (!fine)
        return mc_ep_refuse(ep->comm, t->error, MOEC_ERR_ARGUMENT,
                            "ep.route: not a dispatch of %lld tokens, sorted by expert", (long long)t->n_tokens);
    return MOEC_OK;
}

/* ---- what this rank sends -------------------------------------------------------------------------------------- */

/* Assignments in order of token, stable. */
static void
sort_by_token(const route *t)
{
    mc_ep *ep = t->ep;
    int32_t *begin = ep->token_begin;
    memset(begin, 0, ((size_t)t->n_tokens + 1) * sizeof *begin);
    for (int64_t a = 0; a < t->n_assignments; a++) begin[t->tokens[a]]++;
    for (int64_t i = 0, sum = 0; i <= t->n_tokens; i++) {
        int32_t n = begin[i];
        begin[i] = (int32_t)sum;
        sum += n;
    }
    for (int64_t a = 0; a < t->n_assignments; a++) ep->by_token[begin[t->tokens[a]]++] = (int32_t)a;
}

/* Numbers the rows for each rank in order of token; ep->row: the one of each assignment. */
static void
number_rows(const route *t)
{
    mc_ep *ep = t->ep;
    int32_t *rows = counts_of(t, SENT_ROWS), *nodes = counts_of(t, NODES);
    memset(ep->last_token, -1, ep->n_ranks * sizeof *ep->last_token);
    memset(ep->last_node, -1, ep->n_ranks * sizeof *ep->last_node);
    for (int64_t i = 0; i < t->n_assignments; i++) {
        int32_t a = ep->by_token[i], token = t->tokens[a];
        uint32_t owner = (uint32_t)ep->owner[a], node = owner / ep->per_node;
        if (t->way == MC_EP_EXPERT || ep->last_token[owner] != token) rows[owner]++;
        ep->last_token[owner] = token;
        ep->row[a] = rows[owner] - 1;
        if (t->by_node && node != ep->me / ep->per_node && ep->last_node[node] != token) {
            ep->last_node[node] = token;
            nodes[node]++;
        }
    }
}

static void
list_sent(const route *t)
{
    mc_ep *ep = t->ep;
    const int32_t *n = counts_of(t, SENT_ASSIGNMENTS), *rows = counts_of(t, SENT_ROWS);
    ep_bounds *b = &ep->route;
    b->out_assignments[0] = b->out_rows[0] = 0;
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        b->out_assignments[r + 1] = b->out_assignments[r] + n[r];
        b->out_rows[r + 1] = b->out_rows[r] + rows[r];
        ep->cursor[r] = b->out_assignments[r];
    }
    for (int64_t a = 0; a < t->n_assignments; a++) {
        int32_t owner = ep->owner[a];
        int64_t i = ep->cursor[owner]++;
        t->lists->sent[i] = (int32_t)a;
        t->lists->sent_tokens[b->out_rows[owner] + ep->row[a]] = t->tokens[a];
        ep->pairs_out[2 * i] = ep->slot[a];
        ep->pairs_out[2 * i + 1] = ep->row[a];
    }
}

/* ---- counts ---------------------------------------------------------------------------------------------------- */

static moec_status
exchange_counts(const route *t)
{
    mc_ep *ep = t->ep;
    uint32_t n = t->by_node ? 3 + ep->per_node : 2, lane = ep->me % ep->per_node, home = ep->me / ep->per_node;
    const int32_t *assignments = counts_of(t, SENT_ASSIGNMENTS), *rows = counts_of(t, SENT_ROWS);
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        int32_t *record = ep->records_out + (size_t)r * n;
        uint32_t node = r / ep->per_node;
        memset(record, 0, n * sizeof *record);
        record[0] = assignments[r];
        record[1] = rows[r];
        if (!t->by_node || node == home || r % ep->per_node != lane) continue;
        record[2] = counts_of(t, NODES)[node];
        memcpy(record + 3, rows + node * ep->per_node, ep->per_node * sizeof *rows);
    }
    if (ep->n_ranks == 1) {
        memcpy(ep->records_in, ep->records_out, n * sizeof *ep->records_in);
        return MOEC_OK;
    }
    return mc_comm_records(ep->comm, "ep.route counts", ep->n_ranks, ep->ranks, ep->records_out, ep->records_in,
                           n * sizeof *ep->records_in, t->error);
}

static moec_status
wrong(const route *t, uint32_t from, const char *what, int64_t got, int64_t bound)
{
    mc_ep *ep = t->ep;
    return mc_ep_refuse(ep->comm, t->error, MOEC_ERR_MISMATCH,
                        "ep.route: rank %u announces %lld %s to rank %u; the bound is %lld", ep->ranks[from],
                        (long long)got, what, ep->ranks[ep->me], (long long)bound);
}

static moec_status
take_relayed(const route *t, uint32_t from, const int32_t *record)
{
    mc_ep *ep = t->ep;
    int32_t *relay = counts_of(t, RELAY) + from / ep->per_node * ep->per_node;
    int64_t sum = 0;
    for (uint32_t j = 0; j < ep->per_node; j++) {
        if (record[3 + j] < 0 || record[3 + j] > record[2])
            return wrong(t, from, "rows to pass on", record[3 + j], record[2]);
        relay[j] = record[3 + j];
        sum += relay[j];
    }
    if (record[2] < 0 || record[2] > ep->max_tokens || record[2] > sum)
        return wrong(t, from, "rows for a node", record[2], sum < ep->max_tokens ? sum : ep->max_tokens);
    if (sum > ep->max_assignments) return wrong(t, from, "rows to pass on", sum, ep->max_assignments);
    if (relay[ep->me % ep->per_node] != record[1])
        return wrong(t, from, "rows to pass on to itself", relay[ep->me % ep->per_node], record[1]);
    counts_of(t, NODES)[ep->n_nodes + from / ep->per_node] = record[2];
    return MOEC_OK;
}

static moec_status
take_counts(const route *t)
{
    mc_ep *ep = t->ep;
    uint32_t n = t->by_node ? 3 + ep->per_node : 2, lane = ep->me % ep->per_node, home = ep->me / ep->per_node;
    ep_bounds *b = &ep->route;
    b->in_assignments[0] = b->in_rows[0] = 0;
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        const int32_t *record = ep->records_in + (size_t)r * n;
        int64_t most = t->way == MC_EP_EXPERT || record[0] < ep->max_tokens ? record[0] : ep->max_tokens;
        int64_t least = t->way == MC_EP_EXPERT ? record[0] : record[0] > 0;
        if (record[0] < 0 || record[0] > ep->max_assignments)
            return wrong(t, r, "assignments", record[0], ep->max_assignments);
        if (record[1] < least || record[1] > most) return wrong(t, r, "rows", record[1], most);
        counts_of(t, GOT_ASSIGNMENTS)[r] = record[0];
        counts_of(t, GOT_ROWS)[r] = record[1];
        b->in_assignments[r + 1] = b->in_assignments[r] + record[0];
        b->in_rows[r + 1] = b->in_rows[r] + record[1];
        if (b->in_assignments[r + 1] > ep->max_received)
            return wrong(t, r, "assignments (with those before it)", b->in_assignments[r + 1], ep->max_received);
        if (b->in_rows[r + 1] > ep->max_rows)
            return wrong(t, r, "rows (with those before it)", b->in_rows[r + 1], ep->max_rows);
        if (t->by_node && r / ep->per_node != home && r % ep->per_node == lane) {
            moec_status status = take_relayed(t, r, record);
            if (status != MOEC_OK) return status;
        }
    }
    return MOEC_OK;
}

/* ---- what it receives ------------------------------------------------------------------------------------------ */

static moec_status
exchange_pairs(const route *t)
{
    mc_ep *ep = t->ep;
    const ep_bounds *b = &ep->route;
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        ep->send[r].data = ep->pairs_out + 2 * b->out_assignments[r];
        ep->send[r].n_bytes = (size_t)(b->out_assignments[r + 1] - b->out_assignments[r]) * 2 * sizeof(int32_t);
        ep->recv[r].data = ep->pairs_in + 2 * b->in_assignments[r];
        ep->recv[r].n_bytes = (size_t)(b->in_assignments[r + 1] - b->in_assignments[r]) * 2 * sizeof(int32_t);
    }
    if (ep->n_ranks > 1) {
        mc_exchange x = {"ep.route lists", ep->n_ranks, ep->ranks, ep->send, ep->recv};
        return mc_comm_exchange(ep->comm, &x, t->error);
    }
    if (ep->send[0].n_bytes > 0) memcpy(ep->recv[0].data, ep->send[0].data, ep->send[0].n_bytes);
    return MOEC_OK;
}

/* Rows become positions among all received ones; slots are counted in offsets[slot + 1]. */
static moec_status
check_pairs(const route *t)
{
    mc_ep *ep = t->ep;
    const ep_bounds *b = &ep->route;
    int32_t *offsets = t->lists->offsets;
    memset(offsets, 0, ((size_t)t->n_slots + 1) * sizeof *offsets);
    for (uint32_t r = 0; r < ep->n_ranks; r++) {
        int64_t n_rows = b->in_rows[r + 1] - b->in_rows[r];
        for (int64_t i = b->in_assignments[r]; i < b->in_assignments[r + 1]; i++) {
            int32_t slot = ep->pairs_in[2 * i], *row = &ep->pairs_in[2 * i + 1];
            if (slot < 0 || slot >= t->n_slots)
                return wrong(t, r, "as the slot of an assignment", slot, t->n_slots - 1);
            if (*row < 0 || *row >= n_rows) return wrong(t, r, "as the row of an assignment", *row, n_rows - 1);
            *row += (int32_t)b->in_rows[r];
            offsets[slot + 1]++;
        }
    }
    return MOEC_OK;
}

static moec_status
sort_received(const route *t)
{
    mc_ep *ep = t->ep;
    int32_t *offsets = t->lists->offsets, *rows = t->lists->rows;
    int64_t n = ep->route.in_assignments[ep->n_ranks];
    for (int64_t s = 0; s < t->n_slots; s++) offsets[s + 1] += offsets[s];
    for (int64_t i = 0; i < n; i++) {
        int32_t y = offsets[ep->pairs_in[2 * i]]++;
        t->lists->order[y] = (int32_t)i;
        rows[y] = ep->pairs_in[2 * i + 1];
    }
    memmove(offsets + 1, offsets, (size_t)t->n_slots * sizeof *offsets);
    offsets[0] = 0;
    for (int64_t s = 0; s < t->n_slots; s++)
        for (int32_t y = offsets[s] + 1; y < offsets[s + 1]; y++)
            if (rows[y] < rows[y - 1] || (t->way == MC_EP_EXPERT && rows[y] == rows[y - 1]))
                return mc_ep_refuse(ep->comm, t->error, MOEC_ERR_MISMATCH,
                                    "ep.route: rank %u was told of rows of a slot that are not in ascending order",
                                    ep->ranks[ep->me]);
    return MOEC_OK;
}

moec_status
mc_ep_route(mc_ep *ep, mc_ep_way way, const int32_t *slots, int64_t n_experts, int64_t n_slots, const int32_t *offsets,
            const int32_t *tokens, int64_t n_tokens, const mc_ep_lists *lists, int64_t *out_x, int64_t *out_y,
            mc_fault *error)
{
    *out_x = *out_y = 0;
    route t = {.ep = ep,
               .way = way,
               .by_node = mc_ep_by_node(ep, way),
               .n_slots = n_slots,
               .n_tokens = n_tokens,
               .n_assignments = n_experts > 0 ? offsets[n_experts] : 0,
               .tokens = tokens,
               .lists = lists,
               .error = error};
    moec_status status = check_dispatch(&t, offsets, n_experts, slots);
    if (status == MOEC_OK) status = mc_ep_place(ep, slots, n_experts, n_slots, offsets, tokens, error);
    if (status != MOEC_OK) return status;
    memset(lists->counts, 0, sizeof(int32_t) * MC_EP_COUNTS * ep->n_ranks);
    for (int64_t a = 0; a < t.n_assignments; a++)
        lists->counts[SENT_ASSIGNMENTS * ep->n_ranks + (uint32_t)ep->owner[a]]++;
    sort_by_token(&t);
    number_rows(&t);
    list_sent(&t);
    if ((status = exchange_counts(&t)) != MOEC_OK || (status = take_counts(&t)) != MOEC_OK ||
        (status = exchange_pairs(&t)) != MOEC_OK || (status = check_pairs(&t)) != MOEC_OK ||
        (status = sort_received(&t)) != MOEC_OK)
        return status;
    *out_x = ep->route.in_rows[ep->n_ranks];
    *out_y = ep->route.in_assignments[ep->n_ranks];
    return MOEC_OK;
}
