/* Ranks that announce what cannot be, lists that no route made, groups and sizes that cannot be: each is an error that
 * names the rank and the bound, on every rank, and nothing waits for long. */
#define _GNU_SOURCE
#include "tests/unit/ep_rig.h"

#include <check.h>

enum { EXPERTS = 4, TOKENS = 3, K = 2, ROOM = 8, WIDTH = 5 };

static uint32_t everyone[MC_COMM_MAX_RANKS];

/* A small model on n ranks of one expert each; token t chooses experts t and t + 1 (mod n). */
typedef struct model {
    uint32_t n_ranks, per_node;
    mc_ep_way way;
    int what;          /* the case */
    uint32_t odd;      /* the rank that does it */
    const char *wants; /* what rank 0's message must contain */
} model;

typedef struct arrays {
    mc_ep *ep;
    int32_t offsets[65], tokens[ROOM], own_offsets[2], rows[64], order[64], sent[ROOM], sent_tokens[ROOM],
        counts[MC_EP_COUNTS * 64];
    int64_t x, y;
    float in[64 * WIDTH], out[64 * WIDTH];
    mc_fault fault;
} arrays;

static mc_ep_lists
lists_of(arrays *a)
{
    return (mc_ep_lists){a->own_offsets, a->rows, a->order, a->sent, a->sent_tokens, a->counts};
}

static const mc_ep_row row = {WIDTH, MOEC_F32, MOEC_F32};

static moec_status
prepare(rig_rank *rank, const model *m, arrays *a)
{
    mc_ep_options o = {.comm = rank->comm,
                       .ranks = everyone,
                       .n_ranks = m->n_ranks,
                       .me = rank->me,
                       .per_node = m->per_node,
                       .max_tokens = TOKENS,
                       .max_assignments = ROOM,
                       .max_rows = 60,
                       .max_received = 60,
                       .max_row_bytes = sizeof(float) * WIDTH};
    int32_t n = 0;
    for (uint32_t e = 0; e < m->n_ranks; e++) {
        for (int32_t t = 0; t < TOKENS; t++)
            if ((uint32_t)t % m->n_ranks == e || (uint32_t)(t + 1) % m->n_ranks == e) a->tokens[n++] = t;
        a->offsets[e + 1] = n;
    }
    return mc_ep_create(&o, &a->ep, &a->fault);
}

static moec_status
route(const model *m, arrays *a, int64_t n_tokens)
{
    mc_ep_lists lists = lists_of(a);
    return mc_ep_route(a->ep, m->way, NULL, m->n_ranks, 1, a->offsets, a->tokens, n_tokens, &lists, &a->x, &a->y,
                       &a->fault);
}

/* Rank 0 must be told. Others may have been done before it happened; that they end is enough. */
static void
judge(rig_rank *rank, const model *m, arrays *a, moec_status status)
{
    mc_ep_destroy(a->ep);
    if (rank->me == 0 && status != MOEC_ERR_MISMATCH && status != MOEC_ERR_COMM)
        rig_fail(rank, "case %d: status %d: %s", m->what, (int)status, a->fault.text);
    if (rank->me == 0 && !strstr(a->fault.text, m->wants))
        rig_fail(rank, "case %d: \"%s\" is not in \"%s\"", m->what, m->wants, a->fault.text);
    free(a);
}

static void
run(model *m, void *(*body)(void *))
{
    const char *text = rig_run(m->n_ranks, body, m, 0, 5);
    ck_assert_msg(!text, "%s", text);
}

/* ---- counts and lists of a hostile peer ----------------------------------------------------------------------------
 */

/* What rank 1 of 2 announces to rank 0: counts, then pairs. */
static const struct hostile {
    int32_t counts[2], pairs[3][2];
    mc_ep_way way;
    const char *wants;
} hostile[] = {
    {{-1, 0}, {{0, 0}}, MC_EP_RANK, "rank 1 announces -1 assignments to rank 0; the bound is 8"},
    {{9, 1}, {{0, 0}}, MC_EP_RANK, "rank 1 announces 9 assignments to rank 0; the bound is 8"},
    {{INT32_MAX, 1}, {{0, 0}}, MC_EP_RANK, "rank 1 announces 2147483647 assignments"},
    {{2, 3}, {{0, 0}}, MC_EP_RANK, "rank 1 announces 3 rows to rank 0; the bound is 2"},
    {{2, 0}, {{0, 0}}, MC_EP_RANK, "rank 1 announces 0 rows"},
    {{2, -5}, {{0, 0}}, MC_EP_RANK, "rank 1 announces -5 rows"},
    {{8, 4}, {{0, 0}}, MC_EP_RANK, "rank 1 announces 4 rows to rank 0; the bound is 3"},
    {{2, 1}, {{0, 0}}, MC_EP_EXPERT, "rank 1 announces 1 rows"},
    {{3, 3}, {{0, 0}, {1, 1}, {0, 2}}, MC_EP_RANK, "rank 1 announces 1 as the slot of an assignment"},
    {{3, 3}, {{0, 0}, {-1, 1}, {0, 2}}, MC_EP_RANK, "rank 1 announces -1 as the slot of an assignment"},
    {{3, 2}, {{0, 0}, {0, 1}, {0, 2}}, MC_EP_RANK, "rank 1 announces 2 as the row of an assignment"},
    {{3, 2}, {{0, 0}, {0, -1}, {0, 1}}, MC_EP_RANK, "rank 1 announces -1 as the row of an assignment"},
    {{3, 2}, {{0, 1}, {0, 0}, {0, 1}}, MC_EP_RANK, "not in ascending order"},
    {{3, 3}, {{0, 0}, {0, 0}, {0, 1}}, MC_EP_EXPERT, "not in ascending order"},
};

static moec_status
be_hostile(rig_rank *rank, const struct hostile *h, arrays *a)
{
    int32_t out[2][2] = {{h->counts[0], h->counts[1]}, {0, 0}}, in[2][2], unused[ROOM][2];
    moec_status status = mc_comm_records(rank->comm, "ep.route counts", 2, everyone, out, in, sizeof in[0], &a->fault);
    if (status != MOEC_OK) return status;
    size_t n = h->counts[0] >= 0 && h->counts[0] <= 3 ? (size_t)h->counts[0] : 0;
    mc_comm_run send[2] = {{(void *)(uintptr_t)h->pairs, n * 8}, {NULL, 0}};
    mc_comm_run recv[2] = {{unused, (size_t)in[0][0] * 8}, {NULL, 0}};
    mc_exchange x = {"ep.route lists", 2, everyone, send, recv};
    return mc_comm_exchange(rank->comm, &x, &a->fault);
}

static void *
meet_hostile(void *argument)
{
    rig_rank *rank = argument;
    model *m = rank->shared;
    arrays *a = calloc(1, sizeof *a);
    moec_status status = prepare(rank, m, a);
    if (status == MOEC_OK) status = rank->me == m->odd ? be_hostile(rank, &hostile[m->what], a) : route(m, a, TOKENS);
    judge(rank, m, a, status);
    return NULL;
}

START_TEST(hostile_counts_and_lists_are_named)
{
    for (int i = 0; i < (int)(sizeof hostile / sizeof hostile[0]); i++) {
        model m = {.n_ranks = 2, .per_node = 1, .way = hostile[i].way, .what = i, .odd = 1, .wants = hostile[i].wants};
        run(&m, meet_hostile);
    }
}
END_TEST

/* ---- one rank does something else -----------------------------------------------------------------------------------
 */

static moec_status
send(const model *m, arrays *a, mc_ep_row r)
{
    mc_ep_lists lists = lists_of(a);
    moec_status status = mc_ep_send_begin(a->ep, m->way, &lists, r, a->in, a->out, &a->fault);
    return status == MOEC_OK ? mc_ep_wait(a->ep, &a->fault) : status;
}

enum {
    TOO_MANY_TOKENS,
    NO_DISPATCH,
    OTHER_COUNTS,
    OTHER_WIDTH,
    TWICE,
    OTHER_EPOCH,
    FALSE_MASKS,
    OTHER_WAY,
    WRONG_TYPE
};

static moec_status
do_odd(rig_rank *rank, const model *m, arrays *a)
{
    bool odd = rank->me == m->odd;
    mc_ep_row r = row;
    if (odd && m->what == NO_DISPATCH) a->tokens[0] = TOKENS;
    if (m->what == OTHER_EPOCH) mc_comm_identify(rank->comm, 1, odd ? 8 : 7);
    model mine = *m;
    if (odd && m->what == OTHER_WAY) mine.way = MC_EP_RANK;
    moec_status status = route(&mine, a, odd && m->what == TOO_MANY_TOKENS ? TOKENS + 1 : TOKENS);
    if (status != MOEC_OK) return status;
    if (odd && m->what == OTHER_COUNTS) a->counts[m->n_ranks]--;
    if (odd && m->what == OTHER_WIDTH) r.width--;
    if (odd && m->what == WRONG_TYPE) r.wire = MOEC_F16;
    if (odd && m->what == FALSE_MASKS) { /* tokens 0 for rank 0, 0 and 1 for rank 1 */
        a->sent_tokens[0] = 1;
        a->sent_tokens[2] = 0;
    }
    if (m->what == TWICE) {
        mc_ep_lists lists = lists_of(a);
        status = odd ? mc_ep_send_begin(a->ep, m->way, &lists, r, a->in, a->out, &a->fault) : send(m, a, r);
        if (status != MOEC_OK) return status;
    }
    return send(m, a, r);
}

static void *
meet_odd(void *argument)
{
    rig_rank *rank = argument;
    model *m = rank->shared;
    arrays *a = calloc(1, sizeof *a);
    moec_status status = prepare(rank, m, a);
    if (status == MOEC_OK) status = do_odd(rank, m, a);
    if (rank->me == m->odd && status == MOEC_OK && m->what != FALSE_MASKS) rig_fail(rank, "case %d: no error", m->what);
    judge(rank, m, a, status);
    return NULL;
}

START_TEST(a_rank_that_errs_ends_the_step_for_all)
{
    static const struct {
        int what;
        const char *wants;
    } cases[] = {
        {TOO_MANY_TOKENS, "rank 1 gave up: ep.route: 4 tokens with 6 assignments; room is for 3 with 8"},
        {NO_DISPATCH, "rank 1 gave up: ep.route: not a dispatch of 3 tokens, sorted by expert"},
        {OTHER_COUNTS, "rank 1"},
        {OTHER_WIDTH, "rank 1"},
        {TWICE, "rank 1 gave up: ep.send: another operation is under way"},
        {OTHER_EPOCH, "has placement 8 of the experts, rank 0 has placement 7"},
        {WRONG_TYPE, "rank 1 gave up: ep.send: rows of 5 f32 as f16"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        model m = {
            .n_ranks = 2, .per_node = 1, .way = MC_EP_RANK, .what = cases[i].what, .odd = 1, .wants = cases[i].wants};
        run(&m, meet_odd);
    }
}
END_TEST

START_TEST(nodes_check_what_they_pass_on)
{
    model m = {.n_ranks = 4,
               .per_node = 2,
               .way = MC_EP_NODE,
               .what = FALSE_MASKS,
               .odd = 2,
               .wants = "rank 2 sends rows for other ranks of the node of rank 0 than it announced"};
    run(&m, meet_odd);
    m.what = OTHER_WAY; /* the record of counts is of another size */
    m.wants = "ep.route counts";
    run(&m, meet_odd);
}
END_TEST

/* ---- tables of slots ------------------------------------------------------------------------------------------------
 */

START_TEST(tables_of_slots_are_checked)
{
    static const struct {
        int32_t slots[4];
        int64_t n_experts, n_slots;
        const char *wants;
    } cases[] = {
        {{0, 1, 2, 9}, 4, 4, "slot 3 holds expert 9 of 4"}, {{0, 1, 2, -2}, 4, 4, "slot 3 holds expert -2 of 4"},
        {{0, 1, 2, 2}, 4, 4, "expert 3 is in no slot"},     {{0, 0, 0, 0}, 65537, 4, "65537 experts in 4 slots"},
        {{0, 0, 0, 0}, 4, 0, "4 experts in 0 slots"},       {{0, 0, 0, 0}, -1, 4, "-1 experts in 4 slots"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mc_fault fault;
        int32_t *offsets = calloc(70000, 4), tokens[4] = {0, 0, 0, 0}, lists[8][64];
        for (int e = 0; e < 65538; e++) offsets[e] = e < 4 ? e : 4;
        mc_ep *ep;
        mc_ep_options o = {.ranks = everyone,
                           .n_ranks = 1,
                           .per_node = 1,
                           .max_tokens = 4,
                           .max_assignments = 8,
                           .max_rows = 8,
                           .max_received = 8,
                           .max_row_bytes = 8};
        ck_assert_msg(mc_ep_create(&o, &ep, &fault) == MOEC_OK, "%s", fault.text);
        mc_ep_lists l = {lists[0], lists[1], lists[2], lists[3], lists[4], lists[5]};
        int64_t x, y;
        moec_status status = mc_ep_route(ep, MC_EP_RANK, cases[i].slots, cases[i].n_experts, cases[i].n_slots, offsets,
                                         tokens, 1, &l, &x, &y, &fault);
        ck_assert_int_eq(status, MOEC_ERR_ARGUMENT);
        ck_assert_msg(strstr(fault.text, cases[i].wants), "%s", fault.text);
        mc_ep_destroy(ep);
        free(offsets);
    }
}
END_TEST

/* ---- creation -------------------------------------------------------------------------------------------------------
 */

START_TEST(groups_and_sizes_that_cannot_be)
{
    const mc_ep_options good = {.ranks = everyone,
                                .n_ranks = 4,
                                .me = 1,
                                .per_node = 2,
                                .max_tokens = 10,
                                .max_assignments = 10,
                                .max_rows = 10,
                                .max_received = 10,
                                .max_row_bytes = 10};
    mc_ep_options bad[11];
    for (int i = 0; i < 11; i++) bad[i] = good;
    bad[0].n_ranks = 0;
    bad[1].me = 4;
    bad[2].per_node = 3;
    bad[3].per_node = 0;
    bad[4].max_tokens = -1;
    bad[5].max_rows = (int64_t)INT32_MAX + 1;
    bad[6].max_received = INT64_MAX;
    bad[7].max_row_bytes = -1;
    bad[8].n_ranks = MC_COMM_MAX_RANKS + 2;
    bad[9].max_row_bytes = INT64_MAX;
    bad[10].max_row_bytes = INT64_MAX / 16;
    mc_fault fault;
    mc_ep *ep;
    for (int i = 0; i < 11; i++) {
        fault.text[0] = 0;
        moec_status status = mc_ep_create(&bad[i], &ep, &fault);
        ck_assert_msg(status == (i < 9 ? MOEC_ERR_ARGUMENT : MOEC_ERR_MEMORY) && fault.text[0] && !ep, "%d: %d %s", i,
                      (int)status, fault.text);
    }
    ck_assert(mc_ep_create(&good, &ep, &fault) == MOEC_OK);
    mc_ep_destroy(ep);
    mc_ep_destroy(NULL);
}
END_TEST

/* Worst-case buffers cost addresses, not memory. */
START_TEST(bounds_cost_nothing_until_touched)
{
    mc_ep_options o = {.ranks = everyone,
                       .n_ranks = 64,
                       .per_node = 8,
                       .max_tokens = 4096,
                       .max_assignments = 32768,
                       .max_rows = 64 * 4096,
                       .max_received = 64 * 32768,
                       .max_row_bytes = 4 * 7168};
    mc_fault fault;
    mc_ep *ep;
    long before, after;
    char text[64];
    FILE *f = fopen("/proc/self/statm", "r");
    ck_assert(f && fscanf(f, "%63s %ld", text, &before) == 2);
    fclose(f);
    ck_assert_msg(mc_ep_create(&o, &ep, &fault) == MOEC_OK, "%s", fault.text);
    f = fopen("/proc/self/statm", "r");
    ck_assert(f && fscanf(f, "%63s %ld", text, &after) == 2);
    fclose(f);
    ck_assert(mc_ep_bytes(ep) > (size_t)64 << 30);
    ck_assert_msg(after - before < 1024, "%ld pages", after - before);
    mc_ep_destroy(ep);
}
END_TEST

int
main(void)
{
    for (uint32_t r = 0; r < MC_COMM_MAX_RANKS; r++) everyone[r] = r;
    Suite *s = suite_create("ep_faults");
    TCase *t = tcase_create("ep_faults");
    tcase_set_timeout(t, 300);
    tcase_add_test(t, hostile_counts_and_lists_are_named);
    tcase_add_test(t, a_rank_that_errs_ends_the_step_for_all);
    tcase_add_test(t, nodes_check_what_they_pass_on);
    tcase_add_test(t, tables_of_slots_are_checked);
    tcase_add_test(t, groups_and_sizes_that_cannot_be);
    tcase_add_test(t, bounds_cost_nothing_until_touched);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
