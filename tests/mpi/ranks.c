/* One rank of a group under a launcher; run.py starts it.
 *
 *     mpi_ranks exchange               runs, records, gathers and broadcasts of many sizes, every byte checked
 *     mpi_ranks fault KIND WHO STEP PLACE DEADLINE
 *                                      steps of a records exchange, rows and a gather; in STEP at PLACE (records, rows,
 *                                      large, gather), rank WHO does what KIND says
 *
 * What ends in an error prints "rank R: after SECONDS: MESSAGE", leaves the group and exits with 75. */
#define _GNU_SOURCE
#include "moec/comm.h"
#include "runtime/base/clock.h"
#include "runtime/comm/comm.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEPS = 4, FAILED = 75, SMALL = 1000, LARGE = 3000000, MOST_RANKS = 64 };

static double began; /* the call that may fail */

static _Noreturn void
fail(moec_comm *c, const char *why)
{
    char line[2048]; /* in one piece, whatever the others write */
    snprintf(line, sizeof line, "rank %u: after %.3f: %s\n", moec_comm_rank(c), mc_seconds() - began, why);
    if (write(STDOUT_FILENO, line, strlen(line)) < 0) _exit(1);
    moec_comm_close(c);
    exit(FAILED);
}

static uint64_t
mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* ---- exchange --------------------------------------------------------------------------------------------------- */

/* Bytes that `from` sends to `to` in a round: both know. Some are 0, a few need more than one packet of any kind. */
static size_t
size_of(uint32_t round, uint32_t from, uint32_t to)
{
    static const size_t sizes[] = {0, 1, 7, 64, 511, 4096, 4097, 40000, 70001, 0, 8, 300000, 3, 16, 1200007, 0};
    return sizes[mix(((uint64_t)round << 32) + from * 1024 + to + 1) % (sizeof sizes / sizeof *sizes)];
}

static unsigned char
byte_of(uint32_t round, uint32_t from, uint32_t to, size_t i)
{
    return (unsigned char)(mix(round * 7919u + from * 131u + to) + i * 3 + (i >> 8));
}

typedef struct round_trip {
    uint32_t number, n_peers;
    uint32_t peers[MOST_RANKS];
    mc_comm_run send[MOST_RANKS], recv[MOST_RANKS];
    mc_comm_request *request;
} round_trip;

/* step: every how many ranks belong to the group, from the own one's remainder. */
static void
begin_round(moec_comm *c, round_trip *t, uint32_t number, uint32_t step)
{
    uint32_t me = moec_comm_rank(c);
    mc_fault e = {{0}};
    *t = (round_trip){.number = number};
    for (uint32_t peer = me % step; peer < moec_comm_size(c); peer += step) {
        uint32_t i = t->n_peers++;
        t->peers[i] = peer;
        t->send[i].n_bytes = size_of(number, me, peer);
        t->recv[i].n_bytes = size_of(number, peer, me);
        unsigned char *out = t->send[i].data = malloc(t->send[i].n_bytes + 1);
        t->recv[i].data = calloc(1, t->recv[i].n_bytes + 1);
        if (!out || !t->recv[i].data) fail(c, "out of memory");
        for (size_t k = 0; k < t->send[i].n_bytes; k++) out[k] = byte_of(number, me, peer, k);
    }
    mc_exchange x = {.what = "round", .n_peers = t->n_peers, .peers = t->peers, .send = t->send, .recv = t->recv};
    if (mc_comm_begin(c, &x, &t->request, &e) != MOEC_OK) fail(c, e.text);
}

static void
end_round(moec_comm *c, round_trip *t)
{
    mc_fault e = {{0}};
    if (mc_comm_wait(c, t->request, &e) != MOEC_OK) fail(c, e.text);
    for (uint32_t i = 0; i < t->n_peers; i++) {
        const unsigned char *in = t->recv[i].data;
        for (size_t k = 0; k < t->recv[i].n_bytes; k++)
            if (in[k] != byte_of(t->number, t->peers[i], moec_comm_rank(c), k)) fail(c, "wrong bytes in a run");
        if (in[t->recv[i].n_bytes]) fail(c, "a run was written past its end");
        free(t->send[i].data);
        free(t->recv[i].data);
    }
}

static void
check_records(moec_comm *c, uint32_t number, size_t n_bytes)
{
    uint32_t n = moec_comm_size(c), me = moec_comm_rank(c), peers[MOST_RANKS];
    mc_fault e = {{0}};
    unsigned char *out = malloc(n * n_bytes + 1), *in = calloc(n, n_bytes + 1);
    if (!out || !in) fail(c, "out of memory");
    for (uint32_t r = 0; r < n; r++) {
        peers[r] = r;
        for (size_t k = 0; k < n_bytes; k++) out[r * n_bytes + k] = byte_of(number, me, r, k);
    }
    if (mc_comm_records(c, "records", n, peers, out, in, n_bytes, &e) != MOEC_OK) fail(c, e.text);
    for (uint32_t r = 0; r < n; r++)
        for (size_t k = 0; k < n_bytes; k++)
            if (in[r * n_bytes + k] != byte_of(number, r, me, k)) fail(c, "wrong bytes in a record");
    free(out);
    free(in);
}

static void
check_gather(moec_comm *c, uint32_t number, size_t n_bytes)
{
    uint32_t n = moec_comm_size(c), me = moec_comm_rank(c);
    moec_error e = {{0}};
    unsigned char *own = malloc(n_bytes + 1), *all = calloc(n, n_bytes + 1);
    if (!own || !all) fail(c, "out of memory");
    for (size_t k = 0; k < n_bytes; k++) own[k] = byte_of(number, me, 0, k);
    if (moec_comm_gather(c, own, n_bytes, all, &e) != MOEC_OK) fail(c, e.text);
    for (uint32_t r = 0; r < n; r++)
        for (size_t k = 0; k < n_bytes; k++)
            if (all[r * n_bytes + k] != byte_of(number, r, 0, k)) fail(c, "wrong bytes in a gather");
    for (uint32_t root = 0; root < n; root++) {
        for (size_t k = 0; k < n_bytes; k++) own[k] = byte_of(number, me, 0, k);
        if (moec_comm_broadcast(c, root, own, n_bytes, &e) != MOEC_OK) fail(c, e.text);
        for (size_t k = 0; k < n_bytes; k++)
            if (own[k] != byte_of(number, root, 0, k)) fail(c, "wrong bytes in a broadcast");
    }
    free(own);
    free(all);
}

static int
exchange(moec_comm *c)
{
    static const size_t record_sizes[] = {0, 8, 600, 65536};
    for (uint32_t number = 0; number < 6; number++) {
        round_trip a, b, third;
        mc_comm_at_step(c, number);
        begin_round(c, &a, 3 * number, 1); /* three at once, ended in another order, one of them in groups */
        begin_round(c, &b, 3 * number + 1, 2);
        begin_round(c, &third, 3 * number + 2, 1);
        mc_comm_progress(c);
        end_round(c, &third);
        end_round(c, &a);
        end_round(c, &b);
        check_records(c, number, record_sizes[number % 4]);
        if (number % 3 == 0) check_gather(c, number, number ? 100000 : 1000);
    }
    uint32_t per_node = moec_comm_ranks_per_node(c);
    printf("rank %u of %u, %u on each node, over %s: good\n", moec_comm_rank(c), moec_comm_size(c), per_node,
           moec_comm_backend(c));
    fflush(stdout);
    moec_comm_close(c);
    return 0;
}

/* ---- faults ----------------------------------------------------------------------------------------------------- */

typedef struct fault {
    const char *kind, *place;
    uint32_t who, step;
} fault;

/* Whether it is this rank's turn to fail in this way now. */
static bool
now(moec_comm *c, const fault *f, const char *kind, const char *place, uint32_t step)
{
    return moec_comm_rank(c) == f->who && step == f->step && strcmp(f->place, place) == 0 && strcmp(f->kind, kind) == 0;
}

static void
fall(moec_comm *c, const fault *f, const char *place, uint32_t step)
{
    if (now(c, f, "kill", place, step)) kill(getpid(), SIGKILL);
    if (now(c, f, "stop", place, step)) kill(getpid(), SIGSTOP);
    if (now(c, f, "exit", place, step)) exit(1);
    if (now(c, f, "cut", place, step) && system("ip link set eth0 down") != 0) fail(c, "the link cannot be cut");
    if (now(c, f, "model", place, step)) mc_comm_identify(c, 0x5678, 1);
    if (now(c, f, "epoch", place, step)) mc_comm_identify(c, 0x1234, 2);
    if (now(c, f, "step", place, step)) mc_comm_at_step(c, step + 1);
    if (now(c, f, "abort", place, step)) mc_comm_abort(c, "out of patience");
    if (now(c, f, "leave", place, step)) {
        moec_comm_close(c);
        exit(FAILED);
    }
}

static void
rows(moec_comm *c, const fault *f, const char *place, uint32_t step, size_t n_bytes)
{
    static unsigned char out[LARGE + 8], in[MOST_RANKS][LARGE + 8];
    uint32_t n = moec_comm_size(c), peers[MOST_RANKS];
    mc_comm_run send[MOST_RANKS], recv[MOST_RANKS];
    mc_fault e = {{0}};
    for (uint32_t r = 0; r < n; r++) {
        peers[r] = r;
        send[r] = (mc_comm_run){out, n_bytes};
        recv[r] = (mc_comm_run){in[r], n_bytes};
        bool other = r != moec_comm_rank(c);
        if (other && now(c, f, "less", place, step)) send[r].n_bytes -= 8;
        if (other && now(c, f, "more", place, step)) send[r].n_bytes += 8;
        if (other && now(c, f, "nothing", place, step)) send[r].n_bytes = 0;
    }
    fall(c, f, place, step);
    began = mc_seconds();
    mc_exchange x = {.what = place, .n_peers = n, .peers = peers, .send = send, .recv = recv};
    mc_comm_request *request;
    if (mc_comm_begin(c, &x, &request, &e) != MOEC_OK) fail(c, e.text);
    if (now(c, f, "kill_between", place, step)) kill(getpid(), SIGKILL);
    if (now(c, f, "stop_between", place, step)) kill(getpid(), SIGSTOP);
    if (mc_comm_wait(c, request, &e) != MOEC_OK) fail(c, e.text);
}

static int
steps(moec_comm *c, const fault *f)
{
    uint32_t n = moec_comm_size(c), peers[MOST_RANKS];
    static unsigned char out[MOST_RANKS * 64], in[MOST_RANKS * 64];
    moec_error e = {{0}};
    mc_fault why = {{0}};
    for (uint32_t r = 0; r < n; r++) peers[r] = r;
    mc_comm_identify(c, 0x1234, 1);
    for (uint32_t step = 0; step < STEPS; step++) {
        mc_comm_at_step(c, step);
        fall(c, f, "records", step);
        began = mc_seconds();
        if (mc_comm_records(c, "records", n, peers, out, in, 64, &why) != MOEC_OK) fail(c, why.text);
        rows(c, f, "rows", step, SMALL);
        rows(c, f, "large", step, LARGE);
        fall(c, f, "gather", step);
        began = mc_seconds();
        if (moec_comm_gather(c, out, 64, in, &e) != MOEC_OK) fail(c, e.text);
    }
    printf("rank %u: all steps\n", moec_comm_rank(c));
    fflush(stdout);
    moec_comm_close(c);
    return 0;
}

int
main(int argc, char **argv)
{
    bool faults = argc == 7 && strcmp(argv[1], "fault") == 0;
    if (!faults && (argc != 2 || strcmp(argv[1], "exchange") != 0)) {
        fprintf(stderr, "usage: see the head of tests/mpi/ranks.c\n");
        return 2;
    }
    moec_comm_options options = {.backend = "mpi", .deadline_seconds = faults ? atof(argv[6]) : 60};
    moec_comm *c;
    moec_error error = {{0}};
    moec_status s = moec_comm_open(&options, &c, &error);
    if (s != MOEC_OK) {
        printf("no group (%s): %s\n", moec_status_name(s), error.text);
        fflush(stdout);
        return FAILED;
    }
    if (moec_comm_size(c) > MOST_RANKS) fail(c, "too many ranks for this program");
    if (!faults) return exchange(c);
    fault f = {argv[2], argv[5], (uint32_t)atoi(argv[3]), (uint32_t)atoi(argv[4])};
    return steps(c, &f);
}
