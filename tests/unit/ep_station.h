/* One rank's part of a case: what its routes, sends, returns and sums give, checked against ep_rig.h's statement. */
#ifndef TESTS_UNIT_EP_STATION_H
#define TESTS_UNIT_EP_STATION_H

#include "tests/unit/ep_rig.h"

static uint32_t everyone[MC_COMM_MAX_RANKS]; /* 0, 1, 2, ..: main fills it */

/* One rank's arrays of one case. */
typedef struct station {
    rig_rank *rank;
    const ep_case *c;
    const ep_facts *f;
    mc_ep *ep;
    mc_fault fault;
    size_t row_bytes;
    int64_t a, x, y, most_a, most_x, most_y; /* most: of any rank */
    int32_t *offsets, *tokens;
    mc_ep_lists lists, kept;  /* kept: as the route gave them */
    const ep_fact **received; /* [Y] sorted by slot, source, token */
    unsigned char *data, *out, *expected;
} station;

#define WANT(condition, ...)                                                                                           \
    do {                                                                                                               \
        if (!(condition)) return rig_fail(s->rank, __VA_ARGS__);                                                       \
    } while (0)

static int
by_slot(const void *a, const void *b)
{
    const ep_fact *x = *(const ep_fact *const *)a, *y = *(const ep_fact *const *)b;
    if (x->slot != y->slot) return x->slot < y->slot ? -1 : 1;
    if (x->source != y->source) return x->source < y->source ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

static int32_t *
ints(int64_t n)
{
    int32_t *p = malloc(((size_t)n + 1) * sizeof *p);
    for (int64_t i = 0; i <= n; i++) p[i] = -77;
    return p;
}

static mc_ep_lists
make_lists(const station *s)
{
    return (mc_ep_lists){ints(s->c->n_slots + 1),
                         ints(s->y),
                         ints(s->y),
                         ints(s->a),
                         ints(s->a),
                         ints(MC_EP_COUNTS * (int64_t)s->c->n_ranks)};
}

static void
free_lists(mc_ep_lists *l)
{
    int32_t *all[] = {l->offsets, l->rows, l->order, l->sent, l->sent_tokens, l->counts};
    for (int i = 0; i < 6; i++) free(all[i]);
}

static void
copy_lists(const station *s, mc_ep_lists *to, const mc_ep_lists *from)
{
    memcpy(to->offsets, from->offsets, ((size_t)s->c->n_slots + 1) * 4);
    memcpy(to->rows, from->rows, (size_t)s->y * 4);
    memcpy(to->order, from->order, (size_t)s->y * 4);
    memcpy(to->sent, from->sent, (size_t)s->a * 4);
    memcpy(to->sent_tokens, from->sent_tokens, (size_t)s->a * 4);
    memcpy(to->counts, from->counts, (size_t)MC_EP_COUNTS * s->c->n_ranks * 4);
}

/* Lists may change after an operation began. */
static void
spoil_lists(station *s)
{
    memset(s->lists.rows, 0x7f, (size_t)s->y * 4);
    memset(s->lists.order, 0x7f, (size_t)s->y * 4);
    memset(s->lists.sent, 0x7f, (size_t)s->a * 4);
    memset(s->lists.sent_tokens, 0x7f, (size_t)s->a * 4);
    memset(s->lists.counts, 0x7f, (size_t)MC_EP_COUNTS * s->c->n_ranks * 4);
}

/* Counts of all ranks, this rank's dispatch, and what it is to receive. */
static void
open_station(station *s)
{
    const ep_case *c = s->c;
    int64_t a[MC_COMM_MAX_RANKS] = {0}, x[MC_COMM_MAX_RANKS] = {0}, y[MC_COMM_MAX_RANKS] = {0};
    for (int64_t i = 0; i < s->f->n; i++) {
        const ep_fact *f = &s->f->all[i];
        a[f->source]++;
        y[f->owner]++;
        if (f->row >= x[f->owner]) x[f->owner] = f->row + 1;
    }
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        if (a[r] > s->most_a) s->most_a = a[r];
        if (x[r] > s->most_x) s->most_x = x[r];
        if (y[r] > s->most_y) s->most_y = y[r];
    }
    s->a = a[s->rank->me];
    s->x = x[s->rank->me];
    s->y = y[s->rank->me];
    s->offsets = calloc((size_t)c->n_experts + 1, 4);
    s->tokens = ints(s->a);
    s->received = calloc((size_t)s->y + 1, sizeof(ep_fact *));
    int64_t n = 0;
    for (int64_t i = 0; i < s->f->n; i++) {
        const ep_fact *f = &s->f->all[i];
        if (f->owner == (int32_t)s->rank->me) s->received[n++] = f;
        if (f->source != (int32_t)s->rank->me) continue;
        s->tokens[f->at] = f->token;
        s->offsets[f->expert + 1]++;
    }
    for (int64_t e = 0; e < c->n_experts; e++) s->offsets[e + 1] += s->offsets[e];
    qsort(s->received, (size_t)s->y, sizeof(ep_fact *), by_slot);
    s->lists = make_lists(s);
    s->kept = make_lists(s);
    s->row_bytes = (size_t)c->row.width * moec_dtype_bytes(c->row.dtype);
    int64_t rows = s->a + s->x + s->y + c->max_tokens + 1;
    s->data = malloc((size_t)rows * s->row_bytes + 1);
    s->out = malloc((size_t)rows * s->row_bytes + 1);
    s->expected = malloc(s->row_bytes + 4);
}

static void
close_station(station *s)
{
    mc_ep_destroy(s->ep);
    free_lists(&s->lists);
    free_lists(&s->kept);
    free(s->offsets);
    free(s->tokens);
    free(s->received);
    free(s->data);
    free(s->out);
    free(s->expected);
}

static bool
create(station *s)
{
    const ep_case *c = s->c;
    int64_t room = c->tight ? 0 : 9;
    mc_ep_options o = {.comm = s->rank->comm,
                       .ranks = everyone,
                       .n_ranks = c->n_ranks,
                       .me = s->rank->me,
                       .per_node = c->per_node,
                       .max_tokens = c->max_tokens + room,
                       .max_assignments = s->most_a + room,
                       .max_rows = s->most_x + room,
                       .max_received = s->most_y + room,
                       .max_row_bytes = (s->row_bytes > 4 ? (int64_t)s->row_bytes : 4) + room};
    WANT(mc_ep_create(&o, &s->ep, &s->fault) == MOEC_OK, "create: %s", s->fault.text);
    WANT(mc_ep_bytes(s->ep) > 0, "no bytes");
    return true;
}

/* ---- route ------------------------------------------------------------------------------------------------------- */

static bool
check_sent(station *s)
{
    int64_t i = 0, n_rows = 0;
    for (uint32_t r = 0; r < s->c->n_ranks; r++) {
        int64_t first = i, first_row = n_rows;
        for (int64_t at = 0; at < s->f->n; at++) {
            const ep_fact *f = &s->f->all[at];
            if (f->source != (int32_t)s->rank->me || f->owner != (int32_t)r) continue;
            WANT(s->lists.sent[i] == f->at, "sent[%lld] is %d, not %d", (long long)i, s->lists.sent[i], f->at);
            i++;
        }
        for (int32_t token = 0; token < s->c->n_tokens[s->rank->me]; token++) {
            bool one = false;
            for (int64_t at = 0; at < s->f->n; at++) {
                const ep_fact *f = &s->f->all[at];
                if (f->source != (int32_t)s->rank->me || f->owner != (int32_t)r || f->token != token) continue;
                if (one && s->c->way != MC_EP_EXPERT) continue;
                WANT(s->lists.sent_tokens[n_rows] == token, "row %lld is of token %d, not %d", (long long)n_rows,
                     s->lists.sent_tokens[n_rows], token);
                n_rows++;
                one = true;
            }
        }
        WANT(s->lists.counts[r] == i - first && s->lists.counts[s->c->n_ranks + r] == n_rows - first_row,
             "%d assignments and %d rows for rank %u, not %lld and %lld", s->lists.counts[r],
             s->lists.counts[s->c->n_ranks + r], r, (long long)(i - first), (long long)(n_rows - first_row));
    }
    return true;
}

static bool
check_received(station *s)
{
    uint32_t n = s->c->n_ranks;
    const int32_t *got = s->lists.counts + 2 * n, *got_rows = s->lists.counts + 3 * n;
    int64_t in[MC_COMM_MAX_RANKS + 1] = {0}, rows = 0;
    for (uint32_t r = 0; r < n; r++) {
        in[r + 1] = in[r] + got[r];
        rows += got_rows[r];
    }
    WANT(in[n] == s->y && rows == s->x, "counts of %lld and %lld", (long long)in[n], (long long)rows);
    int64_t at[MC_COMM_MAX_RANKS] = {0};
    int32_t *taken = calloc((size_t)s->y + 1, 4);
    bool once = true;
    for (int64_t y = 0; y < s->y; y++) {
        int32_t w = s->lists.order[y];
        once = once && w >= 0 && w < s->y && !taken[w]++;
    }
    free(taken);
    WANT(once, "order is no permutation");
    for (int64_t y = 0; y < s->y; y++) {
        const ep_fact *f = s->received[y];
        WANT(s->lists.rows[y] == f->row, "row %d, not %d, for received assignment %lld", s->lists.rows[y], f->row,
             (long long)y);
        WANT(s->lists.offsets[f->slot] <= y && y < s->lists.offsets[f->slot + 1], "slot %d misses %lld", f->slot,
             (long long)y);
        int64_t before = 0; /* assignments of the same source for this rank that precede it there */
        for (int64_t i = 0; i < s->y; i++) before += s->received[i]->source == f->source && s->received[i]->at < f->at;
        WANT(s->lists.order[y] == in[f->source] + before, "order[%lld] is %d", (long long)y, s->lists.order[y]);
        at[f->source]++;
    }
    for (uint32_t r = 0; r < n; r++)
        WANT(at[r] == got[r], "%d assignments of rank %u, not %lld", got[r], r, (long long)at[r]);
    return true;
}

static bool
route(station *s)
{
    int64_t x, y;
    moec_status status = mc_ep_route(s->ep, s->c->way, s->c->slots, s->c->n_experts, s->c->n_slots, s->offsets,
                                     s->tokens, s->c->n_tokens[s->rank->me], &s->lists, &x, &y, &s->fault);
    WANT(status == MOEC_OK, "route: %s", s->fault.text);
    WANT(x == s->x && y == s->y, "%lld rows and %lld assignments, not %lld and %lld", (long long)x, (long long)y,
         (long long)s->x, (long long)s->y);
    copy_lists(s, &s->kept, &s->lists);
    return check_sent(s) && check_received(s);
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

static void
fill(station *s, uint32_t what, int64_t n)
{
    for (int64_t i = 0; i < n; i++) rig_fill(s->c, what, s->rank->me, i, s->data + (size_t)i * s->row_bytes);
    memset(s->out, 0x55, (size_t)(s->a + s->x + s->y + s->c->max_tokens + 1) * s->row_bytes);
}

/* Other things that ranks do while rows travel: the same route again, and a gather. */
static bool
meanwhile(station *s)
{
    if ((s->c->seed & 7) > 0) return true;
    mc_ep_lists other = make_lists(s);
    int64_t x, y, n, own, mine = s->rank->me, all[MC_COMM_MAX_RANKS];
    moec_status status = mc_ep_route(s->ep, s->c->way, s->c->slots, s->c->n_experts, s->c->n_slots, s->offsets,
                                     s->tokens, s->c->n_tokens[s->rank->me], &other, &x, &y, &s->fault);
    bool same = status == MOEC_OK && memcmp(other.rows, s->kept.rows, (size_t)s->y * 4) == 0;
    free_lists(&other);
    WANT(same, "a route in between: %s", s->fault.text);
    mc_ep_group group = {everyone, s->c->n_ranks, s->rank->me};
    status = mc_ep_gather(s->rank->comm, &group, &mine, 1, 8, s->c->n_ranks, all, &n, &own, &s->fault);
    WANT(status == MOEC_OK && n == s->c->n_ranks && all[n - 1] == n - 1, "a gather in between: %s", s->fault.text);
    return true;
}

/* After a begin: what was read changes, others get a moment, and then it ends. */
static bool
end(station *s, moec_status begun, const char *what, int64_t n_read)
{
    WANT(begun == MOEC_OK, "%s begins: %s", what, s->fault.text);
    memset(s->data, 0x3c, (size_t)n_read * s->row_bytes);
    spoil_lists(s);
    rig_dawdle(s->rank);
    mc_ep_progress(s->ep);
    if (!meanwhile(s)) return false;
    WANT(mc_ep_wait(s->ep, &s->fault) == MOEC_OK, "%s: %s", what, s->fault.text);
    copy_lists(s, &s->lists, &s->kept);
    return true;
}

static bool
check_row(station *s, const char *what, int64_t at)
{
    WANT(rig_same(s->c->row, s->out + (size_t)at * s->row_bytes, s->expected), "%s: row %lld has other values", what,
         (long long)at);
    return true;
}

static bool
send(station *s)
{
    int64_t n = s->c->n_tokens[s->rank->me];
    fill(s, 0, n);
    if (!end(s, mc_ep_send_begin(s->ep, s->c->way, &s->lists, s->c->row, s->data, s->out, &s->fault), "send", n))
        return false;
    for (int64_t y = 0; y < s->y; y++) {
        rig_fill(s->c, 0, (uint32_t)s->received[y]->source, s->received[y]->token, s->expected);
        rig_round(s->c->row, s->expected);
        if (!check_row(s, "send", s->received[y]->row)) return false;
    }
    return true;
}

static bool
send_rows(station *s)
{
    fill(s, 1, s->a);
    if (!end(s, mc_ep_send_rows_begin(s->ep, &s->lists, s->c->row, s->data, s->out, &s->fault), "send_rows", s->a))
        return false;
    for (int64_t y = 0; y < s->y; y++) {
        rig_fill(s->c, 1, (uint32_t)s->received[y]->source, s->received[y]->at, s->expected);
        rig_round(s->c->row, s->expected);
        if (!check_row(s, "send_rows", y)) return false;
    }
    return true;
}

/* A returned row is known by who computed what: the owner, and the assignment's number and source. */
static void
fill_return(const ep_case *c, const ep_fact *f, void *out)
{
    rig_fill(c, 2, (uint32_t)f->owner, (int64_t)f->source << 20 | f->at, out);
}

static bool
return_rows(station *s)
{
    fill(s, 2, 0);
    for (int64_t y = 0; y < s->y; y++) fill_return(s->c, s->received[y], s->data + (size_t)y * s->row_bytes);
    if (!end(s, mc_ep_return_rows_begin(s->ep, &s->lists, s->c->row, s->data, s->out, &s->fault), "return", s->y))
        return false;
    for (int64_t i = 0; i < s->f->n; i++) {
        if (s->f->all[i].source != (int32_t)s->rank->me) continue;
        fill_return(s->c, &s->f->all[i], s->expected);
        rig_round(s->c->row, s->expected);
        if (!check_row(s, "return", s->f->all[i].at)) return false;
    }
    return true;
}

static bool
reduce(station *s)
{
    if (s->c->row.dtype != MOEC_F32) return true;
    int64_t n = s->c->n_tokens[s->rank->me];
    fill(s, 3, s->x);
    if (!end(s, mc_ep_reduce_begin(s->ep, s->c->way, &s->lists, s->c->row, s->data, n, s->out, &s->fault), "reduce",
             s->x))
        return false;
    for (int64_t token = 0; token < n; token++) {
        rig_sum(s->c, s->f, (int32_t)s->rank->me, (int32_t)token, 3, (float *)(void *)s->expected);
        if (!check_row(s, "reduce", token)) return false;
    }
    return true;
}

/* What is sent and comes back as it is: the number of ranks that the token went to, times the token. */
static bool
there_and_back(station *s)
{
    const ep_case *c = s->c;
    int64_t n = c->n_tokens[s->rank->me];
    mc_ep_row row = {1, MOEC_F32, MOEC_F32};
    float *x = malloc((size_t)(n + 1) * 4), *there = malloc((size_t)(s->x + 1) * 4),
          *back = malloc((size_t)(n + 1) * 4);
    for (int64_t t = 0; t < n; t++) x[t] = (float)(1 + t + 1000 * (int64_t)s->rank->me);
    bool fine = mc_ep_send_begin(s->ep, c->way, &s->lists, row, x, there, &s->fault) == MOEC_OK &&
                mc_ep_wait(s->ep, &s->fault) == MOEC_OK &&
                mc_ep_reduce_begin(s->ep, c->way, &s->lists, row, there, n, back, &s->fault) == MOEC_OK &&
                mc_ep_wait(s->ep, &s->fault) == MOEC_OK;
    for (int64_t t = 0; fine && t < n; t++) {
        int targets = 0;
        for (int64_t i = 0; i < c->n_ranks * c->n_slots; i++) { /* assignments of the token, or ranks with any */
            int here = 0;
            for (int64_t a = 0; a < s->f->n; a++) {
                const ep_fact *f = &s->f->all[a];
                here += f->source == (int32_t)s->rank->me && f->token == t &&
                        (c->way == MC_EP_EXPERT ? f->owner * c->n_slots + f->slot == i : f->owner == i);
            }
            targets += c->way == MC_EP_EXPERT ? here : here > 0;
        }
        fine = back[t] == (float)targets * x[t];
    }
    free(x);
    free(there);
    free(back);
    WANT(fine, "there and back: %s", s->fault.text);
    return true;
}

/* Runs the case on this rank. False: the rank's text says what was wrong, and the group is told. */
static bool
run_case(rig_rank *rank, const ep_case *c, const ep_facts *facts)
{
    station s = {.rank = rank, .c = c, .f = facts};
    open_station(&s);
    bool fine = create(&s) && route(&s) && send(&s) && send_rows(&s) && return_rows(&s) && reduce(&s) &&
                ((c->seed & 56) || there_and_back(&s));
    close_station(&s);
    if (fine) return true;
    mc_comm_abort(rank->comm, "a check failed");
    size_t n = strlen(rank->text);
    snprintf(rank->text + n, sizeof rank->text - n,
             " (way %d, %u in a node, %lld experts, %lld slots%s, k %lld, rows of %lld %s as %s)", c->way, c->per_node,
             (long long)c->n_experts, (long long)c->n_slots, c->slots ? " by a table" : "", (long long)c->k,
             (long long)c->row.width, moec_dtype_name(c->row.dtype), moec_dtype_name(c->row.wire));
    return false;
}

#endif
