#define _POSIX_C_SOURCE 200809L
/* comm when things go wrong: every field of a header, sizes that the two sides disagree about, ranks that die, stop,
 * leave or give up at every exchange. Everybody else gets an error that names the rank, in time, and nothing after it
 * waits. */
#include "runtime/base/clock.h"
#include "runtime/comm/comm_impl.h"
#include "tests/support/play.h"

#include <check.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX = MC_MAX_PLAYERS, ROW_BYTES = 1000, STEPS = 4, PER_STEP = 2 };

static const double deadline = 0.2, in_time = 2; /* in_time: on a machine that is busy with other things */

static mc_player players[MAX];

static void
nap(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

/* ---- what a model does ---------------------------------------------------------------------------------------- */

/* After an error: the same one again from every call, at once. */
static void
check_sticky(mc_player *p)
{
    uint32_t peers[MAX];
    unsigned char out[MAX] = {0}, in[MAX];
    mc_comm_run none[MAX] = {{0}};
    mc_comm_request *request = NULL;
    moec_error error = {{0}};
    mc_fault fault = {{0}};
    double begin = mc_seconds();
    for (uint32_t i = 0; i < p->n; i++) peers[i] = i;
    mc_exchange x = {"more rows", p->n, peers, none, none};
    moec_status s = mc_comm_begin(p->comm, &x, &request, &fault);
    if (s != p->status || strcmp(fault.text, p->fault.text) != 0) mc_wrong(p, "begin then: %s", fault.text);
    if (request) mc_wrong(p, "a request of a broken comm");
    s = mc_comm_records(p->comm, "more counts", p->n, peers, out, in, 1, &fault);
    if (s != p->status || strcmp(fault.text, p->fault.text) != 0) mc_wrong(p, "records then: %s", fault.text);
    s = moec_comm_gather(p->comm, out, 1, in, &error);
    if (s != p->status || strcmp(error.text, p->fault.text) != 0) mc_wrong(p, "gather then: %s", error.text);
    s = moec_comm_broadcast(p->comm, 0, out, 1, &error);
    if (s != p->status || strcmp(error.text, p->fault.text) != 0) mc_wrong(p, "broadcast then: %s", error.text);
    mc_comm_abort(p->comm, "again");
    if (!mc_comm_progress(p->comm)) mc_wrong(p, "something is under way in a broken comm");
    if (mc_seconds() - begin > in_time) mc_wrong(p, "a broken comm waits");
}

/* Counts and rows, a few steps of them. */
static void
work(mc_player *p)
{
    uint32_t peers[MAX];
    uint64_t counts[MAX] = {0}, got[MAX];
    unsigned char *rows = calloc(2 * (size_t)p->n, ROW_BYTES);
    mc_comm_run send[MAX], recv[MAX];
    for (uint32_t i = 0; i < p->n; i++) {
        peers[i] = i;
        send[i] = (mc_comm_run){rows + (size_t)i * ROW_BYTES, ROW_BYTES};
        recv[i] = (mc_comm_run){rows + (size_t)(p->n + i) * ROW_BYTES, ROW_BYTES};
    }
    mc_exchange x = {"rows of layers.3.mlp", p->n, peers, send, recv};
    mc_comm_identify(p->comm, 1, 0);
    for (uint64_t step = 0; step < STEPS && p->status == MOEC_OK; step++) {
        mc_comm_at_step(p->comm, step);
        p->status = mc_comm_records(p->comm, "counts", p->n, peers, counts, got, sizeof *counts, &p->fault);
        if (p->status == MOEC_OK) p->status = mc_comm_exchange(p->comm, &x, &p->fault);
    }
    if (p->status != MOEC_OK) check_sticky(p);
    free(rows);
}

static void
expect(const mc_player *p, moec_status status, const char *text)
{
    ck_assert_msg(!p->wrong[0], "rank %u: %s", p->rank, p->wrong);
    ck_assert_msg(p->status == status, "rank %u: %s: %s", p->rank, moec_status_name(p->status), p->fault.text);
    ck_assert_msg(strstr(p->fault.text, text), "rank %u: %s\nwithout: %s", p->rank, p->fault.text, text);
}

static void
expect_whole(const mc_player *p, moec_status status, const char *text)
{
    expect(p, status, text);
    ck_assert_str_eq(p->fault.text, text);
}

/* ---- dying, stopping, leaving --------------------------------------------------------------------------------- */

/* A rank of n has the fault at its exchange `at`. */
static void
play_fault(uint32_t n, uint32_t victim, mc_comm_faults fault)
{
    mc_comm_faults faults[MAX] = {{0}};
    faults[victim] = fault;
    mc_play(n, fault.kind == MC_COMM_STOPS ? deadline : 30, work, NULL, faults, players);
}

static void
expect_all(uint32_t n, uint32_t victim, const char *text)
{
    for (uint32_t r = 0; r < n; r++) {
        if (r == victim) continue;
        expect(&players[r], MOEC_ERR_COMM, text);
        ck_assert_msg(players[r].seconds < in_time, "rank %u noticed after %.3f s", r, players[r].seconds);
    }
}

START_TEST(test_dies)
{
    for (uint32_t n = 2; n <= 5; n += 1 + (n == 3))
        for (uint32_t victim = 0; victim < n; victim += n - 1)
            for (uint32_t at = 1; at <= STEPS * PER_STEP; at++) {
                char text[64];
                snprintf(text, sizeof text, "rank %u gave up: it left in the middle of an exchange", victim);
                play_fault(n, victim, (mc_comm_faults){.kind = MC_COMM_DIES, .at = at});
                expect_all(n, victim, text);
                expect(&players[victim], MOEC_ERR_COMM, "this rank was made to die");
            }
}
END_TEST

START_TEST(test_fails)
{
    for (uint32_t at = 1; at <= STEPS * PER_STEP; at += 3) {
        char text[128];
        snprintf(text, sizeof text, "%s: rank 1 in step %u: a wire was cut", at % 2 ? "counts" : "rows of layers.3.mlp",
                 (at - 1) / PER_STEP);
        play_fault(4, 1, (mc_comm_faults){.kind = MC_COMM_FAILS, .at = at});
        expect_whole(&players[1], MOEC_ERR_COMM, text);
        expect_all(4, 1, text);
        expect(&players[0], MOEC_ERR_COMM, "rank 1 gave up: ");
    }
}
END_TEST

START_TEST(test_stops)
{
    for (uint32_t at = 1; at <= STEPS * PER_STEP; at += 3) {
        char text[128];
        snprintf(text, sizeof text, "waited 0.2 s for %d bytes from rank 2 in step %u",
                 at % 2 ? MC_RECORD_FIRST_BYTES : ROW_BYTES, (at - 1) / PER_STEP);
        play_fault(3, 2, (mc_comm_faults){.kind = MC_COMM_STOPS, .at = at, .seconds = 0.5});
        expect_all(3, 2, text);
        ck_assert(players[0].seconds >= deadline || players[1].seconds >= deadline); /* the other one heard of it */
        expect(&players[2], MOEC_ERR_COMM, text); /* when it goes on it hears of it */
    }
    play_fault(2, 1, (mc_comm_faults){.kind = MC_COMM_STOPS, .at = 4, .seconds = 0.5});
    expect_whole(&players[0], MOEC_ERR_COMM,
                 "rows of layers.3.mlp: rank 0 waited 0.2 s for 1000 bytes from rank 1 in step 1");
}
END_TEST

/* Slow is not dead. */
START_TEST(test_slow)
{
    play_fault(3, 0, (mc_comm_faults){.kind = MC_COMM_STOPS, .at = 3, .seconds = 0.05});
    mc_played(players, 3, MOEC_OK);
}
END_TEST

static void
leave_early(mc_player *p)
{
    if (p->rank != 1) work(p);
}

START_TEST(test_leaves)
{
    mc_play(4, 30, leave_early, NULL, NULL, players);
    expect_all(4, 1, "rank 1 left the group; it should send 512 bytes");
    mc_played(&players[1], 1, MOEC_OK);
}
END_TEST

/* Nobody takes what rank 0 sends. */
static void
only_sends(mc_player *p)
{
    uint32_t peers[2] = {0, 1};
    unsigned char data[10] = {0};
    mc_comm_run send[2] = {{0}, {data, p->rank ? 0 : 10}}, recv[2] = {{data, p->rank ? 10 : 0}, {0}};
    mc_exchange x = {"rows", 2, peers, send, recv};
    if (p->rank == 1) nap(3 * deadline);
    p->status = mc_comm_exchange(p->comm, &x, &p->fault);
}

START_TEST(test_nobody_takes)
{
    mc_play(2, deadline, only_sends, NULL, NULL, players);
    expect_whole(&players[0], MOEC_ERR_COMM, "rows: rank 0 waited 0.2 s for rank 1 to take its bytes");
    expect(&players[1], MOEC_ERR_COMM, "rank 0 gave up: ");
}
END_TEST

static void
gives_up(mc_player *p)
{
    if (p->rank != 2) {
        work(p);
        return;
    }
    mc_comm_at_step(p->comm, 7);
    mc_comm_abort(p->comm, "out of memory");
    mc_comm_abort(p->comm, "something else");
    p->status = moec_comm_gather(p->comm, NULL, 0, NULL, (moec_error *)&p->fault);
}

START_TEST(test_gives_up)
{
    mc_play(5, 30, gives_up, NULL, NULL, players);
    for (uint32_t r = 0; r < 5; r++)
        expect_whole(&players[r], MOEC_ERR_COMM, "rank 2 gave up: out of memory in step 7");
}
END_TEST

/* Random deaths among random delays: whoever survives names a rank, nobody hangs, and no buffer is touched later. */
START_TEST(test_random_deaths)
{
    for (uint64_t seed = 0; seed < 40; seed++) {
        mc_comm_faults faults[MAX] = {{0}};
        uint32_t n = 2 + (uint32_t)(seed * 7 % 9), victim = (uint32_t)(seed * 5 % n);
        for (uint32_t r = 0; r < n; r++) faults[r] = (mc_comm_faults){.longest_delay = 2e-4, .seed = seed};
        faults[victim].kind = seed % 2 ? MC_COMM_DIES : MC_COMM_SHORT;
        faults[victim].at = 1 + (uint32_t)(seed * 3 % (STEPS * PER_STEP));
        mc_play(n, 30, work, NULL, faults, players);
        for (uint32_t r = 0; r < n; r++) {
            ck_assert_msg(!players[r].wrong[0], "rank %u: %s", r, players[r].wrong);
            ck_assert_int_ne(players[r].status, MOEC_OK);
            ck_assert(strstr(players[r].fault.text, "rank "));
            ck_assert_double_lt(players[r].seconds, in_time);
        }
    }
}
END_TEST

/* ---- sizes ---------------------------------------------------------------------------------------------------- */

START_TEST(test_sizes)
{
    play_fault(2, 1, (mc_comm_faults){.kind = MC_COMM_SHORT, .at = 4});
    expect_whole(&players[0], MOEC_ERR_MISMATCH,
                 "rows of layers.3.mlp: rank 0 in step 1: rank 1 sends 999 bytes where 1000 are expected");
    expect_whole(&players[1], MOEC_ERR_MISMATCH,
                 "rows of layers.3.mlp: rank 1 in step 1: rank 0 expects 1000 bytes where 999 are sent");
    play_fault(4, 1, (mc_comm_faults){.kind = MC_COMM_SHORT, .at = 3});
    for (uint32_t r = 0; r < 4; r++) {
        ck_assert_msg(!players[r].wrong[0], "rank %u: %s", r, players[r].wrong);
        ck_assert(players[r].status == MOEC_ERR_MISMATCH || players[r].status == MOEC_ERR_COMM);
        ck_assert_msg(strstr(players[r].fault.text, "511") && strstr(players[r].fault.text, "512"), "%s",
                      players[r].fault.text);
    }
}
END_TEST

/* One side thinks that nothing goes. context: who comes first. */
static void
nothing_expected(mc_player *p)
{
    uint32_t peers[2] = {0, 1};
    unsigned char data[100] = {0};
    mc_comm_run send[2] = {{0}, {data, p->rank ? 0 : 100}}, recv[2] = {{0}, {0}};
    mc_exchange x = {"rows", 2, peers, send, recv};
    if (p->rank == *(const uint32_t *)p->context) nap(0.05);
    p->status = mc_comm_exchange(p->comm, &x, &p->fault);
    if (p->rank == 1 && p->status == MOEC_OK) nap(0.2);
}

START_TEST(test_zero)
{
    for (uint32_t late = 0; late < 2; late++) {
        mc_play(2, 30, nothing_expected, &late, NULL, players);
        expect_whole(&players[0], MOEC_ERR_MISMATCH, "rows: rank 0: rank 1 expects 0 bytes where 100 are sent");
        if (players[1].status != MOEC_OK) expect(&players[1], players[1].status, "100");
    }
}
END_TEST

static void
own_size(mc_player *p)
{
    unsigned char data[20] = {0};
    mc_comm_run send = {data, 5}, recv = {data + 10, 6};
    mc_exchange x = {"rows", 1, &p->rank, &send, &recv};
    p->status = mc_comm_exchange(p->comm, &x, &p->fault);
}

START_TEST(test_own_size)
{
    mc_player p = {.n = 1};
    moec_comm_options options = {.backend = "local"};
    mc_play(1, 30, own_size, NULL, NULL, players);
    expect_whole(&players[0], MOEC_ERR_MISMATCH, "rows: rank 0: rank 0 sends itself 5 bytes and expects 6");
    ck_assert_int_eq(moec_comm_open(&options, &p.comm, NULL), MOEC_OK);
    own_size(&p);
    expect_whole(&p, MOEC_ERR_MISMATCH, players[0].fault.text);
    check_sticky(&p);
    ck_assert_msg(!p.wrong[0], "%s", p.wrong);
    moec_comm_close(p.comm);
}
END_TEST

static void
nine_at_once(mc_player *p)
{
    mc_comm_run none = {0};
    mc_comm_request *request;
    mc_exchange x = {"rows", 1, &p->rank, &none, &none};
    for (int i = 0; i < MC_COMM_REQUESTS; i++)
        if (mc_comm_begin(p->comm, &x, &request, &p->fault) != MOEC_OK) mc_wrong(p, "request %d", i);
    p->status = mc_comm_begin(p->comm, &x, &request, &p->fault);
}

START_TEST(test_too_many)
{
    mc_play(1, 30, nine_at_once, NULL, NULL, players);
    expect_whole(&players[0], MOEC_ERR_INTERNAL, "rows: rank 0 has 8 exchanges under way already");
}
END_TEST

/* ---- headers -------------------------------------------------------------------------------------------------- */

typedef enum field { MAGIC, FROM, HASH, EPOCH, STEP, CALL, SIZE, N_FIELDS } field;

static void
record_with(mc_player *p)
{
    field f = *(const field *)p->context;
    bool odd = p->rank == 1;
    uint32_t peers[2] = {0, 1};
    uint64_t out[4] = {0}, in[4];
    mc_comm_identify(p->comm, f == HASH && odd ? 0xBEEF : 0xCAFE, f == EPOCH && odd ? 3 : 2);
    mc_comm_at_step(p->comm, f == STEP && odd ? 8 : 7);
    if (f == CALL && odd) p->status = mc_comm_records(p->comm, "own counts", 1, &p->rank, out, in, 8, &p->fault);
    if (p->status == MOEC_OK)
        p->status = mc_comm_records(p->comm, "counts", 2, peers, out, in, f == SIZE && odd ? 16 : 8, &p->fault);
}

START_TEST(test_headers)
{
    static const struct {
        const char *text;
        size_t offset; /* of the byte to spoil */
    } want[N_FIELDS] = {
        [MAGIC] = {"counts: what rank 1 sends to rank 0 is no record (it begins with 3143525d instead of 3143524d) in "
                   "step 7",
                   offsetof(mc_record_header, magic)},
        [FROM] = {"counts: what rank 1 sends to rank 0 is a record of rank 17 in step 7",
                  offsetof(mc_record_header, from)},
        [HASH] = {"counts: rank 1 runs the model 000000000000beef, rank 0 runs 000000000000cafe in step 7: start all "
                  "ranks with the same one",
                  0},
        [EPOCH] = {"counts: rank 1 has placement 3 of the experts, rank 0 has placement 2 of the experts in step 7", 0},
        [STEP] = {"counts: rank 1 is at step 8, rank 0 is at step 7 in step 7", 0},
        [CALL] = {"counts: rank 1 is at call 2, rank 0 is at call 1 in step 7", 0},
        [SIZE] = {"counts: rank 1 has 16 bytes, rank 0 has 8 bytes in step 7", 0},
    };
    for (int f = 0; f < N_FIELDS; f++) {
        field context = (field)f;
        mc_comm_faults faults[2] = {{0}};
        if (f <= FROM) faults[1] = (mc_comm_faults){.kind = MC_COMM_SPOILS, .at = 1, .offset = want[f].offset};
        mc_play(2, 30, record_with, &context, faults, players);
        /* Whoever looks first breaks the group; the other one sees the same difference, or hears of it. */
        if (players[0].status != MOEC_ERR_COMM) expect_whole(&players[0], MOEC_ERR_MISMATCH, want[f].text);
        if (f <= FROM) {
            ck_assert_int_eq(players[0].status, MOEC_ERR_MISMATCH);
            continue;
        }
        if (players[0].status == MOEC_ERR_COMM) expect(&players[0], MOEC_ERR_COMM, "rank 1 gave up: counts: rank 0 ");
        if (players[1].status == MOEC_ERR_COMM) expect(&players[1], MOEC_ERR_COMM, want[f].text);
        ck_assert(players[0].status == MOEC_ERR_MISMATCH || players[1].status == MOEC_ERR_MISMATCH);
        ck_assert(players[1].status != MOEC_OK);
    }
}
END_TEST

/* No byte of a header may be another one. */
START_TEST(test_header_bytes)
{
    for (size_t offset = 0; offset < sizeof(mc_record_header); offset++) {
        field none = N_FIELDS;
        mc_comm_faults faults[2] = {{0}, {.kind = MC_COMM_SPOILS, .at = 1, .offset = offset}};
        mc_play(2, 30, record_with, &none, faults, players);
        expect(&players[0], MOEC_ERR_MISMATCH, "counts: ");
        expect(&players[0], MOEC_ERR_MISMATCH, "rank 1 ");
    }
}
END_TEST

/* Broadcasts and gathers of different sizes. */
static void
other_size(mc_player *p)
{
    unsigned char data[4000] = {0}, all[4000];
    size_t n = p->rank == 1 ? 600 : 500;
    bool gathers = *(const bool *)p->context;
    moec_error *error = (moec_error *)&p->fault;
    p->status =
        gathers ? moec_comm_gather(p->comm, data, n, all, error) : moec_comm_broadcast(p->comm, 0, data, n, error);
    if (!gathers && p->rank == 2 && p->status == MOEC_OK) /* it has all it needs from rank 0, perhaps */
        p->status = moec_comm_broadcast(p->comm, 0, data, n, error);
}

START_TEST(test_other_size)
{
    for (int gathers = 0; gathers < 2; gathers++) {
        bool context = gathers != 0;
        mc_play(3, 30, other_size, &context, NULL, players);
        for (uint32_t r = 0; r < 3; r++) {
            ck_assert(players[r].status == MOEC_ERR_MISMATCH || players[r].status == MOEC_ERR_COMM);
            ck_assert_msg(strstr(players[r].fault.text, "has 600 bytes") &&
                              strstr(players[r].fault.text, "has 500 bytes"),
                          "%s", players[r].fault.text);
        }
    }
}
END_TEST

/* A rank that is at an exchange while the others are at a record. */
static void
elsewhere(mc_player *p)
{
    uint32_t peers[2] = {0, 1};
    unsigned char data[2 * MC_RECORD_FIRST_BYTES] = {0}, got[MC_RECORD_FIRST_BYTES];
    mc_comm_run send[2] = {{0}}, recv[2] = {{0}};
    send[0] = (mc_comm_run){data, MC_RECORD_FIRST_BYTES};
    recv[0] = (mc_comm_run){got, MC_RECORD_FIRST_BYTES};
    mc_exchange x = {"rows", 2, peers, send, recv};
    p->status = p->rank ? mc_comm_exchange(p->comm, &x, &p->fault)
                        : mc_comm_records(p->comm, "counts", 2, peers, data, got, 8, &p->fault);
}

START_TEST(test_elsewhere)
{
    mc_play(2, 30, elsewhere, NULL, NULL, players);
    expect(&players[0], MOEC_ERR_MISMATCH, "counts: what rank 1 sends to rank 0 is no record");
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("comm faults");
    TCase *t = tcase_create("comm faults");
    tcase_add_test(t, test_dies);
    tcase_add_test(t, test_fails);
    tcase_add_test(t, test_stops);
    tcase_add_test(t, test_slow);
    tcase_add_test(t, test_leaves);
    tcase_add_test(t, test_nobody_takes);
    tcase_add_test(t, test_gives_up);
    tcase_add_test(t, test_random_deaths);
    tcase_add_test(t, test_sizes);
    tcase_add_test(t, test_zero);
    tcase_add_test(t, test_own_size);
    tcase_add_test(t, test_too_many);
    tcase_add_test(t, test_headers);
    tcase_add_test(t, test_header_bytes);
    tcase_add_test(t, test_other_size);
    tcase_add_test(t, test_elsewhere);
    suite_add_tcase(suite, t);
    SRunner *r = srunner_create(suite);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
