/* libFuzzer: one rank of expert parallelism among peers that announce and send whatever the input says: counts, lists,
 * masks, sizes of gathers. Everything must end in success, with lists that fit, or in a MISMATCH with a message. What
 * the input does not say, peers do as this rank does.
 * Run: fuzz_ep NEW tests/fuzz/corpus/ep */
#include "runtime/comm/comm_impl.h"
#include "runtime/ep/ep.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { RECORD_MAGIC = 0x3143524D }; /* as in comm_records.c */
enum { MAX_RANKS = 8, MAX_TOKENS = 6, MAX_K = 4, MAX_SLOTS = 6, MAX_EXPERTS = MAX_RANKS * MAX_SLOTS, MAX_WIDTH = 140 };

static void
must(bool holds)
{
    if (!holds) abort();
}

/* ---- peers that do what the input says -------------------------------------------------------------------------- */

typedef struct input {
    const uint8_t *data;
    size_t n, at;
} input;

static uint8_t
next(input *in)
{
    return in->at < in->n ? in->data[in->at++] : 0;
}

static uint32_t
next_below(input *in, uint32_t n)
{
    return next(in) % n;
}

/* A number that a peer sends where we send `ours`: small ones take one byte. */
static uint32_t
next_word(input *in, uint32_t ours)
{
    if (in->at >= in->n) return ours;
    uint8_t b = next(in);
    if (b < 0x80) return b;
    if (b < 0xC0) return ours;
    if (b < 0xE0) return ours + 1;
    if (b < 0xF0) return (uint32_t) - (int32_t)(b - 0xDF);
    uint32_t raw = 0;
    for (int i = 0; i < 4; i++) raw = raw << 8 | next(in);
    return raw;
}

static void
fill(input *in, const unsigned char *ours, size_t n_ours, unsigned char *out, size_t n)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        uint32_t word = 0;
        if (i + 4 <= n_ours) memcpy(&word, ours + i, 4);
        word = next_word(in, word);
        memcpy(out + i, &word, 4);
    }
    for (; i < n; i++) out[i] = next(in);
}

static void
fill_record(input *in, uint32_t peer, const unsigned char *ours, unsigned char *out)
{
    mc_record_header h;
    memcpy(&h, ours, sizeof h);
    h.from = peer;
    memcpy(out, &h, sizeof h);
    if (next(in) >= 0xF0) { /* one word of the header is another */
        uint32_t at = next_below(in, sizeof h / 4) * 4, word;
        memcpy(&word, out + at, 4);
        word = next_word(in, word);
        memcpy(out + at, &word, 4);
    }
    size_t n = h.n_bytes < MC_RECORD_INLINE_BYTES ? (size_t)h.n_bytes : MC_RECORD_INLINE_BYTES;
    memcpy(out + sizeof h, ours + sizeof h, MC_RECORD_INLINE_BYTES);
    fill(in, ours + sizeof h, n, out + sizeof h, n);
}

typedef struct hostile {
    input *in;
    uint32_t rank;
} hostile;

static bool
is_record(const mc_exchange *x, uint32_t i)
{
    uint32_t magic = 0;
    if (x->send[i].n_bytes != MC_RECORD_FIRST_BYTES || x->recv[i].n_bytes != MC_RECORD_FIRST_BYTES) return false;
    memcpy(&magic, x->send[i].data, sizeof magic);
    return magic == RECORD_MAGIC;
}

static moec_status
begin(void *state, uint32_t index, const mc_exchange *x, mc_fault *error)
{
    const hostile *h = state;
    (void)index;
    (void)error;
    for (uint32_t i = 0; i < x->n_peers; i++) {
        const mc_comm_run *out = &x->send[i], *in = &x->recv[i];
        if (x->peers[i] == h->rank) {
            must(out->n_bytes == in->n_bytes);
            if (in->n_bytes) memmove(in->data, out->data, in->n_bytes);
        } else if (is_record(x, i)) {
            fill_record(h->in, x->peers[i], out->data, in->data);
        } else {
            fill(h->in, out->data, out->n_bytes, in->data, in->n_bytes);
        }
    }
    return MOEC_OK;
}

static moec_status
test(void *state, uint32_t index, bool *out_done, uint32_t *out_peer, mc_fault *error)
{
    (void)state;
    (void)index;
    (void)out_peer;
    (void)error;
    *out_done = true;
    return MOEC_OK;
}

static void
late(void *state, uint32_t index, uint32_t *out_peer, size_t *out_bytes)
{
    (void)state;
    (void)index;
    *out_peer = 0;
    *out_bytes = 0;
}

static void
leave(void *state, bool clean)
{
    (void)state;
    (void)clean;
}

static void
say(void *state, const char *why)
{
    (void)state;
    must(why[0] != 0);
}

static const mc_comm_backend peers = {.n_bytes = sizeof peers,
                                      .version = MC_COMM_BACKEND_VERSION,
                                      .close = leave,
                                      .begin = begin,
                                      .test = test,
                                      .late = late,
                                      .abort = say};

/* ---- one rank --------------------------------------------------------------------------------------------------- */

typedef struct rank {
    input *in;
    moec_comm *comm;
    mc_ep *ep;
    uint32_t ranks[MAX_RANKS], n_ranks, me;
    mc_ep_way way;
    int64_t n_slots, n_experts, n_tokens, n_assignments, max_received, max_rows, x, y;
    int32_t slots[MAX_RANKS * MAX_SLOTS], offsets[MAX_EXPERTS + 1], tokens[MAX_TOKENS * MAX_K];
    bool has_slots;
    mc_ep_lists lists;
    mc_fault fault;
} rank;

static void *
make(int64_t n, size_t bytes)
{
    void *p = calloc((size_t)n ? (size_t)n : 1, bytes ? bytes : 1);
    must(p != NULL);
    return p;
}

/* Either all is well, or the message of a mismatch. */
static bool
went_well(rank *r, moec_status s)
{
    must(s == MOEC_OK || (s == MOEC_ERR_MISMATCH && r->fault.text[0]));
    return s == MOEC_OK;
}

static void
make_dispatch(rank *r)
{
    int per_token[MAX_TOKENS] = {0};
    r->n_tokens = next_below(r->in, MAX_TOKENS + 1);
    r->n_assignments = 0;
    for (int64_t e = 0; e < r->n_experts; e++) {
        uint8_t mask = next(r->in);
        r->offsets[e] = (int32_t)r->n_assignments;
        for (int32_t t = 0; t < r->n_tokens; t++) {
            if (!(mask >> t & 1) || per_token[t] == MAX_K) continue;
            per_token[t]++;
            r->tokens[r->n_assignments++] = t;
        }
    }
    r->offsets[r->n_experts] = (int32_t)r->n_assignments;
}

static void
make_group(rank *r)
{
    static const uint8_t sizes[] = {2, 4, 1, 3, 6, 8, 5, 7};
    input *in = r->in;
    r->n_ranks = sizes[next_below(in, sizeof sizes)];
    r->me = next_below(in, r->n_ranks);
    for (uint32_t i = 0; i < r->n_ranks; i++) r->ranks[i] = i;
    r->n_slots = 1 + next_below(in, MAX_SLOTS);
    r->n_experts = 1 + next_below(in, (uint32_t)r->n_slots * r->n_ranks);
    r->has_slots = next(in) & 1;
    for (int64_t i = 0; i < r->n_slots * r->n_ranks; i++) r->slots[i] = (int32_t)(i % r->n_experts);
}

static void
open_rank(rank *r, hostile *h)
{
    make_group(r);
    h->in = r->in;
    h->rank = r->me;
    mc_comm_place place = {.rank = r->me, .size = r->n_ranks, .ranks_per_node = 1, .name = "hostile"};
    must(mc_comm_make(&peers, h, &place, 30, &r->comm, &r->fault) == MOEC_OK);
    int64_t at_most = r->n_slots < MAX_K ? r->n_slots : MAX_K, per_node = 1 + next_below(r->in, 4);
    r->max_received = r->n_ranks * MAX_TOKENS * at_most;
    r->max_rows = r->n_ranks * MAX_TOKENS; /* as few as MC_EP_RANK needs */
    mc_ep_options o = {.comm = r->comm,
                       .ranks = r->ranks,
                       .n_ranks = r->n_ranks,
                       .me = r->me,
                       .per_node = r->n_ranks % per_node ? 1 : (uint32_t)per_node,
                       .max_tokens = MAX_TOKENS,
                       .max_assignments = MAX_TOKENS * MAX_K,
                       .max_rows = r->max_rows,
                       .max_received = r->max_received,
                       .max_row_bytes = MAX_WIDTH * 4};
    must(mc_ep_create(&o, &r->ep, &r->fault) == MOEC_OK);
    r->lists.offsets = make(r->n_slots + 1, sizeof(int32_t));
    r->lists.rows = make(r->max_received, sizeof(int32_t));
    r->lists.order = make(r->max_received, sizeof(int32_t));
    r->lists.sent = make(MAX_TOKENS * MAX_K, sizeof(int32_t));
    r->lists.sent_tokens = make(MAX_TOKENS * MAX_K, sizeof(int32_t));
    r->lists.counts = make(MC_EP_COUNTS * r->n_ranks, sizeof(int32_t));
}

static void
close_rank(rank *r)
{
    mc_ep_destroy(r->ep);
    moec_comm_close(r->comm);
    free(r->lists.offsets);
    free(r->lists.rows);
    free(r->lists.order);
    free(r->lists.sent);
    free(r->lists.sent_tokens);
    free(r->lists.counts);
}

/* What whoever computes with the lists relies on. */
static void
check_lists(const rank *r)
{
    const mc_ep_lists *l = &r->lists;
    bool seen[MAX_RANKS * MAX_TOKENS * MAX_K] = {0};
    must(r->x >= 0 && r->x <= r->max_rows && r->y >= 0 && r->y <= r->max_received);
    must(l->offsets[0] == 0 && l->offsets[r->n_slots] == r->y);
    for (int64_t s = 0; s < r->n_slots; s++) must(l->offsets[s] <= l->offsets[s + 1]);
    for (int64_t y = 0; y < r->y; y++) {
        must(l->rows[y] >= 0 && l->rows[y] < r->x);
        must(l->order[y] >= 0 && l->order[y] < r->y && !seen[l->order[y]]);
        seen[l->order[y]] = true;
    }
    for (int64_t a = 0; a < r->n_assignments; a++) must(l->sent[a] >= 0 && l->sent[a] < r->n_assignments);
}

static bool
route(rank *r)
{
    r->way = (mc_ep_way)next_below(r->in, 3);
    make_dispatch(r);
    int32_t *offsets = make(r->n_experts + 1, sizeof *offsets), *tokens = make(r->n_assignments, sizeof *tokens);
    memcpy(offsets, r->offsets, (size_t)(r->n_experts + 1) * sizeof *offsets);
    memcpy(tokens, r->tokens, (size_t)r->n_assignments * sizeof *tokens);
    moec_status s = mc_ep_route(r->ep, r->way, r->has_slots ? r->slots : NULL, r->n_experts, r->n_slots, offsets,
                                tokens, r->n_tokens, &r->lists, &r->x, &r->y, &r->fault);
    free(offsets);
    free(tokens);
    if (!went_well(r, s)) return false;
    check_lists(r);
    return true;
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

static mc_ep_row
make_row(rank *r, bool sums)
{
    static const moec_dtype wires[] = {MOEC_F32, MOEC_BF16, MOEC_F8E4M3};
    mc_ep_row row = {.width = 1 + next_below(r->in, MAX_WIDTH), .dtype = MOEC_F32};
    uint8_t kind = next(r->in);
    row.wire = wires[kind % 3];
    if (!sums && kind >= 0x80) row.dtype = row.wire = kind & 1 ? MOEC_I32 : MOEC_BF16;
    return row;
}

typedef enum operation { SEND, SEND_ROWS, RETURN_ROWS, REDUCE, N_OPERATIONS } operation;

/* Every array is as long as it must be, so that the address sanitizer sees who goes further. */
static bool
move(rank *r, operation what)
{
    const mc_ep_lists *l = &r->lists;
    int64_t sizes[N_OPERATIONS][2] = {
        {r->n_tokens, r->x}, {r->n_assignments, r->y}, {r->y, r->n_assignments}, {r->x, r->n_tokens}};
    mc_ep_row row = make_row(r, what == REDUCE);
    size_t bytes = (size_t)row.width * moec_dtype_bytes(row.dtype);
    void *from = make(sizes[what][0], bytes), *to = make(sizes[what][1], bytes);
    moec_status s = MOEC_OK;
    switch (what) {
    case SEND: s = mc_ep_send_begin(r->ep, r->way, l, row, from, to, &r->fault); break;
    case SEND_ROWS: s = mc_ep_send_rows_begin(r->ep, l, row, from, to, &r->fault); break;
    case RETURN_ROWS: s = mc_ep_return_rows_begin(r->ep, l, row, from, to, &r->fault); break;
    default: s = mc_ep_reduce_begin(r->ep, r->way, l, row, from, r->n_tokens, to, &r->fault); break;
    }
    if (s == MOEC_OK) {
        mc_ep_progress(r->ep);
        s = mc_ep_wait(r->ep, &r->fault);
    }
    free(from);
    free(to);
    return went_well(r, s);
}

/* ---- gathers ---------------------------------------------------------------------------------------------------- */

static bool
gather(rank *r)
{
    mc_ep_group group = {r->ranks, r->n_ranks, r->me};
    int64_t n = next_below(r->in, 9), row_bytes = next_below(r->in, 20), limit = n + next_below(r->in, 64), all, own;
    void *x = make(n, (size_t)row_bytes), *out = make(limit, (size_t)row_bytes);
    moec_status s = mc_ep_gather(r->comm, &group, x, n, row_bytes, limit, out, &all, &own, &r->fault);
    free(x);
    free(out);
    if (!went_well(r, s)) return false;
    must(all >= 0 && all <= limit && own >= 0 && own + n <= all);
    return true;
}

static bool
merge(rank *r)
{
    mc_ep_group group = {r->ranks, r->n_ranks, r->me};
    int64_t n_slots = r->n_slots, row_bytes = 1 + next_below(r->in, 20), all;
    int32_t *offsets = make(n_slots + 1, sizeof *offsets), *out_offsets = make(n_slots + 1, sizeof *out_offsets);
    for (int64_t s = 0; s < n_slots; s++) offsets[s + 1] = offsets[s] + (int32_t)next_below(r->in, 5);
    int64_t limit = offsets[n_slots] + next_below(r->in, 64);
    void *x = make(offsets[n_slots], (size_t)row_bytes), *out = make(limit, (size_t)row_bytes);
    moec_status s =
        mc_ep_merge(r->comm, &group, n_slots, offsets, x, row_bytes, limit, out, out_offsets, &all, &r->fault);
    if (s == MOEC_OK) {
        must(all >= 0 && all <= limit && out_offsets[0] == 0 && out_offsets[n_slots] == all);
        for (int64_t i = 0; i < n_slots; i++) must(out_offsets[i] <= out_offsets[i + 1]);
    }
    free(offsets);
    free(out_offsets);
    free(x);
    free(out);
    return went_well(r, s);
}

static bool
all_reduce(rank *r)
{
    mc_ep_group group = {r->ranks, r->n_ranks, r->me};
    int64_t n = next_below(r->in, 40);
    float *x = make(n, sizeof *x), *scratch = make(n, sizeof *scratch);
    moec_status s = mc_ep_all_reduce(r->comm, &group, x, n, scratch, &r->fault);
    free(x);
    free(scratch);
    return went_well(r, s);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size, 0};
    hostile h;
    rank r = {.in = &in};
    open_rank(&r, &h);
    bool well = true;
    for (int turn = 0; turn < 3 && well; turn++) {
        well = route(&r);
        for (int i = 0; i < N_OPERATIONS && well; i++) well = move(&r, (operation)i);
        if (well) well = gather(&r) && merge(&r) && all_reduce(&r);
    }
    if (!well && r.n_ranks > 1) must(r.comm->status != MOEC_OK); /* and stays so */
    close_rank(&r);
    return 0;
}
