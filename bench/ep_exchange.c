/* Row exchange of ranks against MPI_Alltoallv of the same bytes, in the same processes.
 *
 *     MOEC_COMM_MPI=BUILD/libmoec_comm_mpi.so mpirun -np R BUILD/bench_ep_exchange [SECONDS]
 *
 * A line for each size: medians over rounds that take turns, each begun together (a barrier), of the slowest rank. The
 * floor is what copying that many bytes costs on the processors that are there: every run is read and written once. */
#include "moec/comm.h"
#include "runtime/base/clock.h"
#include "runtime/comm/comm.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_RANKS = 64, MOST_ROUNDS = 2001, LEAST_ROUNDS = 21 };

typedef struct bench {
    moec_comm *comm;
    uint32_t n, me;
    unsigned char *out, *in;
    int counts[MOST_RANKS], offsets[MOST_RANKS];
    uint32_t peers[MOST_RANKS];
    mc_comm_run send[MOST_RANKS], recv[MOST_RANKS];
} bench;

static _Noreturn void
stop(const char *why)
{
    fprintf(stderr, "ep_exchange: %s\n", why);
    MPI_Abort(MPI_COMM_WORLD, 1);
    exit(1);
}

static void
raw(bench *b)
{
    MPI_Alltoallv(b->out, b->counts, b->offsets, MPI_BYTE, b->in, b->counts, b->offsets, MPI_BYTE, MPI_COMM_WORLD);
}

static void
ours(bench *b)
{
    mc_fault e = {{0}};
    mc_exchange x = {.what = "rows", .n_peers = b->n, .peers = b->peers, .send = b->send, .recv = b->recv};
    if (mc_comm_exchange(b->comm, &x, &e) != MOEC_OK) stop(e.text);
}

/* Seconds of the slowest rank. */
static double
time_of(bench *b, void (*way)(bench *))
{
    double seconds, slowest;
    MPI_Barrier(MPI_COMM_WORLD);
    double begin = mc_seconds();
    way(b);
    seconds = mc_seconds() - begin;
    MPI_Allreduce(&seconds, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return slowest;
}

static int
compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double
median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, compare);
    return values[n / 2];
}

/* Bytes a second that one rank copies, the others idle. */
static double
copy_rate(bench *b, size_t n_bytes)
{
    double best = 0;
    for (int i = 0; i < 9 && b->me == 0; i++) {
        double begin = mc_seconds();
        memcpy(b->in, b->out, n_bytes);
        double rate = (double)n_bytes / (mc_seconds() - begin);
        if (rate > best) best = rate;
    }
    MPI_Bcast(&best, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    return best;
}

static void
check(const bench *b, size_t n_bytes)
{
    for (uint32_t r = 0; r < b->n; r++)
        for (size_t i = 0; i < n_bytes; i++)
            if (b->in[r * n_bytes + i] != (unsigned char)(r * 7 + b->me * 3 + i % 251)) stop("wrong bytes");
}

static void
measure(bench *b, size_t n_bytes, double seconds, double rate)
{
    static double a[MOST_ROUNDS], c[MOST_ROUNDS];
    for (uint32_t r = 0; r < b->n; r++) {
        b->peers[r] = r;
        b->counts[r] = (int)n_bytes;
        b->offsets[r] = (int)(r * n_bytes);
        b->send[r] = (mc_comm_run){b->out + r * n_bytes, n_bytes};
        b->recv[r] = (mc_comm_run){b->in + r * n_bytes, n_bytes};
        for (size_t i = 0; i < n_bytes; i++) b->out[r * n_bytes + i] = (unsigned char)(b->me * 7 + r * 3 + i % 251);
    }
    memset(b->in, 0, b->n * n_bytes);
    ours(b);
    check(b, n_bytes);
    for (int i = 0; i < 10; i++) raw(b), ours(b);
    double until = mc_seconds() + seconds;
    int n = 0, more = 1;
    while (more) {
        a[n] = time_of(b, raw);
        c[n++] = time_of(b, ours);
        more = n < LEAST_ROUNDS || (mc_seconds() < until && n < MOST_ROUNDS);
        MPI_Bcast(&more, 1, MPI_INT, 0, MPI_COMM_WORLD);
    }
    double raw_time = median(a, n), our_time = median(c, n);
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    double share = b->n < (uint32_t)processors ? b->n : (double)processors;
    double floor_time = (double)b->n * b->n * (double)n_bytes / (rate * share);
    if (b->me == 0)
        printf("| %u | %zu KB | %.1f | %.1f | %.2f | %+.1f | %.1f | %d |\n", b->n, n_bytes >> 10, raw_time * 1e6,
               our_time * 1e6, raw_time / our_time, (our_time - raw_time) * 1e6, floor_time * 1e6, n);
    fflush(stdout);
}

int
main(int argc, char **argv)
{
    static const size_t sizes[] = {1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20};
    enum { N_SIZES = sizeof sizes / sizeof *sizes };
    double seconds = argc > 1 ? atof(argv[1]) : 1;
    int level;
    moec_error error = {{0}};
    bench b = {.comm = NULL};
    MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
    if (moec_comm_open(&(moec_comm_options){.backend = "mpi"}, &b.comm, &error) != MOEC_OK) stop(error.text);
    b.n = moec_comm_size(b.comm);
    b.me = moec_comm_rank(b.comm);
    if (b.n > MOST_RANKS) stop("too many ranks");
    b.out = malloc(b.n * sizes[N_SIZES - 1]);
    b.in = malloc(b.n * sizes[N_SIZES - 1]);
    if (!b.out || !b.in) stop("out of memory");
    memset(b.out, 1, b.n * sizes[N_SIZES - 1]);
    memset(b.in, 1, b.n * sizes[N_SIZES - 1]);
    double rate = copy_rate(&b, b.n * sizes[N_SIZES - 1]);
    if (b.me == 0) {
        printf("%s, %ld processors, copy %.1f GB/s\n\n", moec_comm_backend(b.comm), sysconf(_SC_NPROCESSORS_ONLN),
               rate * 1e-9);
        printf("| ranks | per peer | Alltoallv us | exchange us | ratio | difference us | floor us | rounds |\n");
        printf("|---|---|---|---|---|---|---|---|\n");
    }
    for (int i = 0; i < N_SIZES; i++) measure(&b, sizes[i], seconds, rate);
    moec_comm_close(b.comm);
    free(b.out);
    free(b.in);
    MPI_Finalize();
    return 0;
}
