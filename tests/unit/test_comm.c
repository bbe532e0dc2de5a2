/* comm: every pattern of an exchange on 1 to 64 ranks with its contents checked, records, gathers, several requests at
 * once, and random runs of all of them with late ranks. What goes wrong is in test_comm_faults.c. */
#include "runtime/comm/comm_impl.h"
#include "tests/support/play.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

enum { MAX = MC_MAX_PLAYERS };

static mc_player players[MAX];

/* ---- one exchange with known contents ------------------------------------------------------------------------- */

typedef enum pattern { UNIFORM, SKEWED, HOLES, SELF, RING, N_PATTERNS } pattern;

static uint64_t
mix(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t x = a * 0x9E3779B97F4A7C15u ^ (b + 1) * 0xC2B2AE3D27D4EB4Fu ^ (c + 1) * 0x165667B19E3779F9u;
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9u;
    return x ^ x >> 32;
}

/* What `from` sends to `to`: both know. */
static size_t
size_of(pattern p, uint32_t n, uint32_t from, uint32_t to, uint64_t seed)
{
    switch (p) {
    case UNIFORM: return 100;
    case SKEWED: return to == 0 ? 3000 : 1 + from;
    case HOLES: return mix(from, to, seed) % 3 ? 0 : mix(to, from, seed) % 500;
    case SELF: return from == to ? 77 : 0;
    case RING: return (from + 1) % n == to ? 1000 : 0;
    case N_PATTERNS: break;
    }
    return 0;
}

typedef struct traffic {
    unsigned char *bytes;
    mc_comm_run send[MAX], recv[MAX];
    uint32_t peers[MAX], n_peers;
    uint64_t seed;
    mc_comm_request *request;
} traffic;

static unsigned char
byte_of(uint64_t seed, uint32_t from, uint32_t to, size_t i)
{
    return (unsigned char)(mix(seed, from, to) + i * 7);
}

/* Peers: every `stride`-th rank, like the own one. */
static void
prepare(traffic *t, const mc_player *p, pattern kind, uint32_t stride, uint64_t seed)
{
    size_t total = 1, at = 0;
    t->n_peers = 0;
    t->seed = seed;
    for (uint32_t r = p->rank % stride; r < p->n; r += stride) t->peers[t->n_peers++] = r;
    for (uint32_t i = 0; i < t->n_peers; i++) {
        t->send[i].n_bytes = size_of(kind, p->n, p->rank, t->peers[i], seed);
        t->recv[i].n_bytes = size_of(kind, p->n, t->peers[i], p->rank, seed);
        total += t->send[i].n_bytes + t->recv[i].n_bytes;
    }
    t->bytes = calloc(total, 1);
    for (uint32_t i = 0; i < t->n_peers; i++) {
        t->send[i].data = t->bytes + at;
        for (size_t j = 0; j < t->send[i].n_bytes; j++) t->bytes[at++] = byte_of(seed, p->rank, t->peers[i], j);
        t->recv[i].data = t->bytes + at;
        at += t->recv[i].n_bytes;
    }
}

static mc_exchange
exchange_of(const traffic *t)
{
    return (mc_exchange){"rows", t->n_peers, t->peers, t->send, t->recv};
}

static void
verify(traffic *t, mc_player *p)
{
    for (uint32_t i = 0; i < t->n_peers && p->status == MOEC_OK; i++) {
        const unsigned char *got = t->recv[i].data;
        for (size_t j = 0; j < t->recv[i].n_bytes; j++)
            if (got[j] != byte_of(t->seed, t->peers[i], p->rank, j))
                mc_wrong(p, "byte %zu from %u is %u", j, t->peers[i], got[j]);
    }
    free(t->bytes);
}

static void
all_patterns(mc_player *p)
{
    for (uint64_t round = 0; round < 3; round++)
        for (int kind = 0; kind < N_PATTERNS; kind++)
            for (uint32_t stride = 1; stride <= 3; stride++) {
                traffic t;
                prepare(&t, p, (pattern)kind, stride, round);
                mc_exchange x = exchange_of(&t);
                if (p->status == MOEC_OK) p->status = mc_comm_exchange(p->comm, &x, &p->fault);
                verify(&t, p);
            }
}

START_TEST(test_patterns)
{
    static const uint32_t sizes[] = {1, 2, 3, 5, 8, 16, 64};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        mc_play(sizes[i], 30, all_patterns, NULL, NULL, players);
        mc_played(players, sizes[i], MOEC_OK);
    }
}
END_TEST

/* The same calls on a group of one that is no thread's. */
START_TEST(test_local)
{
    moec_comm_options options = {.backend = "local"};
    mc_player p = {.n = 1};
    moec_error error;
    ck_assert_int_eq(moec_comm_open(&options, &p.comm, &error), MOEC_OK);
    ck_assert_str_eq(moec_comm_backend(p.comm), "local");
    ck_assert_uint_eq(moec_comm_rank(p.comm), 0);
    ck_assert_uint_eq(moec_comm_size(p.comm), 1);
    ck_assert_uint_eq(moec_comm_ranks_per_node(p.comm), 1);
    all_patterns(&p);
    int32_t mine = 5, all = 0;
    ck_assert_int_eq(moec_comm_gather(p.comm, &mine, sizeof mine, &all, &error), MOEC_OK);
    ck_assert_int_eq(all, 5);
    ck_assert_int_eq(moec_comm_broadcast(p.comm, 0, &mine, sizeof mine, &error), MOEC_OK);
    ck_assert_int_eq(moec_comm_broadcast(p.comm, 1, &mine, sizeof mine, &error), MOEC_ERR_ARGUMENT);
    moec_comm_close(p.comm);
    p.comm = NULL;
    mc_played(&p, 1, MOEC_OK);
    moec_comm_close(NULL);
}
END_TEST

/* A big run goes whole. */
static void
one_big(mc_player *p)
{
    size_t n = (size_t)5 << 20;
    uint32_t peers[2] = {0, 1};
    unsigned char *out = malloc(n), *in = malloc(n);
    mc_comm_run send[2] = {{0}}, recv[2] = {{0}};
    for (size_t i = 0; i < n; i++) out[i] = (unsigned char)(i * 31 >> 3 ^ p->rank);
    send[!p->rank] = (mc_comm_run){out, n};
    recv[!p->rank] = (mc_comm_run){in, n};
    mc_exchange x = {"rows", 2, peers, send, recv};
    p->status = mc_comm_exchange(p->comm, &x, &p->fault);
    for (size_t i = 0; i < n; i++)
        if (in[i] != (unsigned char)(i * 31 >> 3 ^ !p->rank)) mc_wrong(p, "byte %zu", i);
    free(out);
    free(in);
}

START_TEST(test_big)
{
    mc_play(2, 30, one_big, NULL, NULL, players);
    mc_played(players, 2, MOEC_OK);
}
END_TEST

/* ---- several at once ------------------------------------------------------------------------------------------ */

static void
eight_at_once(mc_player *p)
{
    static const int order[MC_COMM_REQUESTS] = {3, 7, 0, 1, 6, 2, 5, 4};
    traffic *t = calloc(MC_COMM_REQUESTS, sizeof *t);
    bool quiet = false;
    for (uint64_t round = 0; round < 4; round++) {
        for (int i = 0; i < MC_COMM_REQUESTS; i++) {
            prepare(&t[i], p, (pattern)(i % N_PATTERNS), 1 + (uint32_t)i % 2, round * 8 + (uint64_t)i);
            mc_exchange x = exchange_of(&t[i]);
            if (p->status == MOEC_OK) p->status = mc_comm_begin(p->comm, &x, &t[i].request, &p->fault);
        }
        quiet = mc_comm_progress(p->comm);
        for (int i = 0; i < MC_COMM_REQUESTS; i++) {
            traffic *one = &t[order[i]];
            if (p->status == MOEC_OK) p->status = mc_comm_wait(p->comm, one->request, &p->fault);
            verify(one, p);
        }
        quiet = mc_comm_progress(p->comm);
    }
    if (!quiet) mc_wrong(p, "something is still under way");
    free(t);
}

START_TEST(test_requests)
{
    for (uint32_t n = 1; n <= 9; n += 4) {
        mc_play(n, 30, eight_at_once, NULL, NULL, players);
        mc_played(players, n, MOEC_OK);
    }
}
END_TEST

/* progress alone brings an exchange to its end. */
static void
only_progress(mc_player *p)
{
    traffic t;
    prepare(&t, p, UNIFORM, 1, 5);
    mc_exchange x = exchange_of(&t);
    if (!mc_comm_progress(p->comm)) mc_wrong(p, "something is under way before the begin");
    p->status = mc_comm_begin(p->comm, &x, &t.request, &p->fault);
    while (p->status == MOEC_OK && !mc_comm_progress(p->comm)) mc_comm_progress(p->comm);
    if (p->status == MOEC_OK) p->status = mc_comm_wait(p->comm, t.request, &p->fault);
    verify(&t, p);
}

START_TEST(test_progress)
{
    mc_play(3, 30, only_progress, NULL, NULL, players);
    mc_played(players, 3, MOEC_OK);
}
END_TEST

/* ---- records, gathers, broadcasts ----------------------------------------------------------------------------- */

static void
record_once(mc_player *p, uint32_t stride, size_t n_bytes)
{
    uint32_t peers[MAX], n = 0;
    unsigned char *out, *in;
    for (uint32_t r = p->rank % stride; r < p->n; r += stride) peers[n++] = r;
    out = calloc(n * n_bytes + 1, 1);
    in = calloc(n * n_bytes + 1, 1);
    for (uint32_t i = 0; i < n; i++)
        for (size_t j = 0; j < n_bytes; j++) out[i * n_bytes + j] = byte_of(n_bytes, p->rank, peers[i], j);
    if (p->status == MOEC_OK) p->status = mc_comm_records(p->comm, "counts", n, peers, out, in, n_bytes, &p->fault);
    for (uint32_t i = 0; i < n && p->status == MOEC_OK; i++)
        for (size_t j = 0; j < n_bytes; j++)
            if (in[i * n_bytes + j] != byte_of(n_bytes, peers[i], p->rank, j))
                mc_wrong(p, "%zu bytes: byte %zu from %u", n_bytes, j, peers[i]);
    if (in[n * n_bytes]) mc_wrong(p, "written past the end");
    free(out);
    free(in);
}

static void
all_records(mc_player *p)
{
    static const size_t sizes[] = {0, 1, 8, MC_RECORD_INLINE_BYTES, MC_RECORD_INLINE_BYTES + 1, 5000};
    mc_comm_identify(p->comm, 0xABCDEF, 3);
    for (uint64_t step = 0; step < 2; step++) {
        mc_comm_at_step(p->comm, step);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (uint32_t stride = 1; stride <= 3; stride++) record_once(p, stride, sizes[i]);
    }
    if (p->n <= 3) record_once(p, 1, MC_RECORD_MAX_BYTES);
}

START_TEST(test_records)
{
    static const uint32_t sizes[] = {1, 2, 3, 7, 16};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        mc_play(sizes[i], 30, all_records, NULL, NULL, players);
        mc_played(players, sizes[i], MOEC_OK);
    }
}
END_TEST

static void
gather_once(mc_player *p, size_t n_bytes)
{
    unsigned char *mine = malloc(n_bytes + 1), *all = calloc(p->n * n_bytes + 1, 1);
    moec_error error = {{0}};
    for (size_t j = 0; j < n_bytes; j++) mine[j] = byte_of(1, p->rank, 0, j);
    if (p->status == MOEC_OK) p->status = moec_comm_gather(p->comm, mine, n_bytes, all, &error);
    if (error.text[0]) mc_wrong(p, "%s", error.text);
    for (uint32_t r = 0; r < p->n; r++)
        for (size_t j = 0; j < n_bytes; j++)
            if (all[r * n_bytes + j] != byte_of(1, r, 0, j)) mc_wrong(p, "gather: byte %zu of %u", j, r);
    free(mine);
    free(all);
}

static void
broadcast_once(mc_player *p, uint32_t root, size_t n_bytes)
{
    unsigned char *data = malloc(n_bytes + 1);
    moec_error error = {{0}};
    for (size_t j = 0; j < n_bytes; j++) data[j] = byte_of(2, p->rank, 0, j);
    if (p->status == MOEC_OK) p->status = moec_comm_broadcast(p->comm, root, data, n_bytes, &error);
    if (error.text[0]) mc_wrong(p, "%s", error.text);
    for (size_t j = 0; j < n_bytes; j++)
        if (data[j] != byte_of(2, root, 0, j)) mc_wrong(p, "broadcast: byte %zu", j);
    free(data);
}

static void
gathers(mc_player *p)
{
    static const size_t sizes[] = {0, 1, 472, 473, 20000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        gather_once(p, sizes[i]);
        for (uint32_t root = 0; root < p->n; root += 1 + p->n / 4) broadcast_once(p, root, sizes[i]);
    }
}

START_TEST(test_gathers)
{
    static const uint32_t sizes[] = {1, 2, 5, 16};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        mc_play(sizes[i], 30, gathers, NULL, NULL, players);
        mc_played(players, sizes[i], MOEC_OK);
    }
}
END_TEST

/* ---- random runs ---------------------------------------------------------------------------------------------- */

/* Every rank draws the same calls; contents and order of arrival differ. */
static void
random_calls(mc_player *p)
{
    uint64_t seed = *(const uint64_t *)p->context;
    traffic *open = calloc(MC_COMM_REQUESTS, sizeof *open);
    int n_open = 0;
    mc_comm_identify(p->comm, seed, (uint32_t)seed);
    for (uint64_t step = 0; step < 12 && p->status == MOEC_OK && !p->wrong[0]; step++) {
        uint64_t draw = mix(seed, step, 99);
        mc_comm_at_step(p->comm, step);
        traffic *t = &open[n_open];
        switch (draw % 6) {
        case 0: record_once(p, 1 + (uint32_t)(draw >> 8) % 3, (draw >> 12) % 700); break;
        case 1: gather_once(p, (draw >> 8) % 600); break;
        case 2: broadcast_once(p, (uint32_t)(draw >> 8) % p->n, (draw >> 16) % 600); break;
        default:
            prepare(t, p, (pattern)((draw >> 8) % N_PATTERNS), 1 + (uint32_t)(draw >> 16) % 3, draw);
            mc_exchange x = exchange_of(t);
            p->status = mc_comm_begin(p->comm, &x, &t->request, &p->fault);
            n_open += p->status == MOEC_OK;
        }
        bool drain = n_open == MC_COMM_REQUESTS - 1 || draw >> 40 & 1 || step == 11;
        for (int i = 0; drain && i < n_open; i++) {
            moec_status s = mc_comm_wait(p->comm, open[i].request, &p->fault);
            if (p->status == MOEC_OK) p->status = s;
            verify(&open[i], p);
        }
        if (drain) n_open = 0;
    }
    free(open);
}

START_TEST(test_random)
{
    const char *asked = getenv("MOEC_COMM_CASES");
    uint64_t n_cases = asked ? strtoull(asked, NULL, 10) : 150;
    for (uint64_t i = 0; i < n_cases; i++) {
        mc_comm_faults faults[MAX] = {{0}};
        uint32_t n = 1 + (uint32_t)(mix(i, 1, 2) % (i % 64 == 1 ? 64 : i % 16 == 0 ? 24 : 6));
        for (uint32_t r = 0; r < n; r++)
            if (mix(i, r, 3) % 3 == 0) faults[r] = (mc_comm_faults){.longest_delay = 3e-4, .seed = i};
        mc_play(n, 30, random_calls, &i, faults, players);
        mc_played(players, n, MOEC_OK);
    }
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("comm");
    TCase *t = tcase_create("comm");
    tcase_add_test(t, test_patterns);
    tcase_add_test(t, test_local);
    tcase_add_test(t, test_big);
    tcase_add_test(t, test_requests);
    tcase_add_test(t, test_progress);
    tcase_add_test(t, test_records);
    tcase_add_test(t, test_gathers);
    tcase_add_test(t, test_random);
    suite_add_tcase(suite, t);
    SRunner *r = srunner_create(suite);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
