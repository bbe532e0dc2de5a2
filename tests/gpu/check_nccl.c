/* check_nccl [--threads] RANKS: exchanges over the NCCL that is there, between as many processes; on one GPU too, where
 * each claims to be a machine of its own and NCCL goes over the loopback network. Or between threads, on a GPU each.
 * Bytes of all sizes from the processor's and the device's memory, and a rank that falls silent, who must be named in
 * time. Prints times; they are NCCL's, not ours. */
#define _GNU_SOURCE
#include "moec/comm.h"
#include "moec/gpu.h"
#include "runtime/base/clock.h"
#include "runtime/comm/comm_impl.h"
#include "runtime/gpu/gpu_device.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_RANKS = 16, REPEATS = 5 };

static const size_t sizes[] = {0, 1, 1000, 65536, 1 << 20, 4 << 20};
enum { N_SIZES = sizeof sizes / sizeof *sizes };
enum { N_SIZES_OF_THREADS = 4 }; /* may be sanitized */
static bool in_threads;
static const double silence = 1; /* deadline while a rank is silent */

typedef struct check {
    moec_comm *comm;
    moec_gpu *gpu;
    uint32_t rank, size;
    unsigned char *host;
    CUdeviceptr device; /* as large as host: first what is sent, then a part for each rank */
    mc_fault fault;
} check;

static unsigned char
byte_of(uint32_t from, uint32_t to, size_t i)
{
    return (unsigned char)(37 * from + 11 * to + i * (i >> 7 | 1));
}

/* What rank a sends rank b when the round's size is n: sizes differ, and some are 0. */
static size_t
bytes_of(size_t n, uint32_t a, uint32_t b)
{
    return (a + 2 * b) % 5 == 4 ? 0 : n - (n > 8 ? (a + b) % 8 : 0);
}

static size_t
room(void)
{
    return sizes[in_threads ? N_SIZES_OF_THREADS - 1 : N_SIZES - 1];
}

static moec_status
copy(check *c, bool to_device)
{
    size_t n = 2 * c->size * room();
    moec_status s = mc_gpu_enter(c->gpu, &c->fault);
    if (s != MOEC_OK) return s;
    if (to_device)
        s = MC_CUDA(c->gpu->cuda, &c->fault, cuMemcpyHtoDAsync, c->device, c->host, n, NULL);
    else
        s = MC_CUDA(c->gpu->cuda, &c->fault, cuMemcpyDtoHAsync, c->host, c->device, n, NULL);
    if (s == MOEC_OK) s = MC_CUDA(c->gpu->cuda, &c->fault, cuStreamSynchronize, NULL);
    mc_gpu_leave(c->gpu);
    return s;
}

static moec_status
exchange(check *c, size_t n, bool on_device)
{
    mc_comm_run send[MAX_RANKS], recv[MAX_RANKS];
    uint32_t peers[MAX_RANKS];
    unsigned char *at = on_device ? mc_gpu_pointer(c->device) : c->host;
    for (uint32_t p = 0; p < c->size; p++) {
        peers[p] = p;
        send[p] = (mc_comm_run){at + p * room(), bytes_of(n, c->rank, p)};
        recv[p] = (mc_comm_run){at + (c->size + p) * room(), bytes_of(n, p, c->rank)};
    }
    mc_exchange x = {"check", c->size, peers, send, recv};
    return mc_comm_exchange(c->comm, &x, &c->fault);
}

static moec_status
round_of(check *c, size_t n, bool on_device)
{
    moec_status s = MOEC_OK;
    double best = 1e9, longest = 0, begin = mc_seconds();
    memset(c->host, 0, 2 * c->size * room());
    for (uint32_t p = 0; p < c->size; p++)
        for (size_t i = 0; i < bytes_of(n, c->rank, p); i++) c->host[p * room() + i] = byte_of(c->rank, p, i);
    if (on_device) s = copy(c, true);
    for (int i = 0; i < REPEATS && s == MOEC_OK; i++) {
        begin = mc_seconds();
        s = exchange(c, n, on_device);
        double seconds = mc_seconds() - begin;
        best = seconds < best ? seconds : best;
        longest = seconds > longest ? seconds : longest;
    }
    if (s == MOEC_OK && on_device) s = copy(c, false);
    for (uint32_t p = 0; p < c->size && s == MOEC_OK; p++)
        for (size_t i = 0; i < bytes_of(n, p, c->rank); i++)
            if (c->host[(c->size + p) * room() + i] != byte_of(p, c->rank, i))
                return mc_fail(&c->fault, MOEC_ERR_INTERNAL, "byte %zu of %zu from rank %u is wrong", i, n, p);
    if (s == MOEC_OK && c->rank == 0)
        printf("%9zu bytes a pair, %s: %.1f us (longest %.1f ms)\n", n, on_device ? "device" : "host  ", 1e6 * best,
               1e3 * longest);
    if (s != MOEC_OK) {
        mc_fault why = c->fault;
        return mc_fail(&c->fault, s, "%zu bytes a pair, %s: after %.1f s: %.500s", n, on_device ? "device" : "host",
                       mc_seconds() - begin, why.text);
    }
    return s;
}

/* The last rank says nothing; the others must say who. */
static moec_status
fall_silent(check *c)
{
    uint32_t silent = c->size - 1;
    char name[40];
    c->comm->deadline = silence;
    if (c->rank == silent) {
        sleep((unsigned)(2 * silence));
        return MOEC_OK;
    }
    double begin = mc_seconds();
    moec_status s = exchange(c, 1000, false);
    double seconds = mc_seconds() - begin;
    snprintf(name, sizeof name, "rank %u", silent);
    if (s != MOEC_ERR_COMM || seconds > silence + 1 || !strstr(c->fault.text, name))
        return mc_fail(&c->fault, MOEC_ERR_INTERNAL, "a silent rank %u: after %.1f s: %s: %.400s", silent, seconds,
                       moec_status_name(s), c->fault.text);
    if (c->rank == 0) printf("a silent rank: %s\n", c->fault.text);
    return MOEC_OK;
}

static moec_status
run(check *c)
{
    uint32_t ranks[MAX_RANKS];
    moec_error error;
    c->host = malloc(2 * c->size * room());
    if (!c->host) return mc_fail(&c->fault, MOEC_ERR_MEMORY, "out of memory");
    moec_status s = mc_gpu_enter(c->gpu, &c->fault);
    if (s != MOEC_OK) return s;
    s = mc_gpu_alloc(c->gpu, 2 * c->size * room(), "messages", &c->device, &c->fault);
    mc_gpu_leave(c->gpu);
    if (s != MOEC_OK) return s;
    s = moec_comm_gather(c->comm, &c->rank, sizeof c->rank, ranks, &error);
    if (s != MOEC_OK) return mc_fail(&c->fault, s, "%s", error.text);
    for (uint32_t r = 0; r < c->size; r++)
        if (ranks[r] != r) return mc_fail(&c->fault, MOEC_ERR_INTERNAL, "gather: rank %u says %u", r, ranks[r]);
    for (int i = 0; i < 2 * (in_threads ? N_SIZES_OF_THREADS : N_SIZES) && s == MOEC_OK; i++)
        s = round_of(c, sizes[i / 2], i % 2);
    if (s == MOEC_OK && c->size > 1) s = fall_silent(c);
    return s;
}

static uint32_t size;
static char folder[] = "/tmp/moec-check-nccl-XXXXXX", meeting[64];

static int
rank_main(uint32_t rank)
{
    check c = {.rank = rank, .size = size};
    moec_error error = {0};
    uint32_t n_gpus = moec_gpu_count();
    char host[32];
    if (n_gpus && n_gpus < size && !in_threads) { /* NCCL allows only one rank of a machine on a GPU */
        snprintf(host, sizeof host, "moec-check-%u", rank);
        setenv("NCCL_HOSTID", host, 1);
        setenv("NCCL_SOCKET_IFNAME", "lo", 0);
    }
    moec_comm_options o = {.backend = "nccl", .rank = rank, .size = size, .rendezvous = meeting};
    moec_status s = moec_gpu_open(n_gpus ? (int32_t)(rank % n_gpus) : 0, &c.gpu, &error);
    o.gpu = c.gpu;
    if (s == MOEC_OK) s = moec_comm_open(&o, &c.comm, &error);
    snprintf(c.fault.text, sizeof c.fault.text, "%s", error.text);
    if (s == MOEC_OK) {
        if (rank == 0) printf("%u ranks, %u GPUs, %s\n", size, n_gpus, moec_comm_backend(c.comm));
        s = run(&c);
    }
    if (s != MOEC_OK) fprintf(stderr, "rank %u: %s: %s\n", rank, moec_status_name(s), c.fault.text);
    moec_comm_close(c.comm);
    if (c.gpu) mc_gpu_free(c.gpu, c.device);
    moec_gpu_close(c.gpu);
    free(c.host);
    return s == MOEC_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}

static void *
thread_main(void *rank)
{
    return rank_main(*(uint32_t *)rank) ? rank : NULL;
}

static bool
run_threads(void)
{
    pthread_t threads[MAX_RANKS];
    uint32_t ranks[MAX_RANKS];
    bool failed = false;
    for (uint32_t r = 0; r < size; r++) {
        ranks[r] = r;
        if (pthread_create(&threads[r], NULL, thread_main, &ranks[r]) != 0) {
            fprintf(stderr, "rank %u: no thread for it\n", r);
            exit(EXIT_FAILURE);
        }
    }
    for (uint32_t r = 0; r < size; r++) {
        void *result = NULL;
        pthread_join(threads[r], &result);
        failed = failed || result;
    }
    return !failed;
}

static bool
run_processes(void)
{
    bool failed = false;
    for (uint32_t r = 0; r < size; r++) { /* before anything of CUDA: it does not survive a fork */
        pid_t child = fork();
        if (child == 0) exit(rank_main(r));
        failed = failed || child < 0;
    }
    for (int status = 0; wait(&status) > 0;) {
        if (WIFSIGNALED(status)) fprintf(stderr, "a rank was ended by signal %d\n", WTERMSIG(status));
        failed = failed || !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    }
    return !failed;
}

int
main(int argc, char **argv)
{
    in_threads = argc == 3 && strcmp(argv[1], "--threads") == 0;
    int n = argc == 2 + in_threads ? atoi(argv[argc - 1]) : 0;
    if (n < 1 || n > MAX_RANKS) {
        fprintf(stderr, "usage: check_nccl [--threads] RANKS (1 to %d)\n", MAX_RANKS);
        return 2;
    }
    size = (uint32_t)n;
    if (!mkdtemp(folder)) {
        perror(folder);
        return EXIT_FAILURE;
    }
    setvbuf(stdout, NULL, _IOLBF, 0); /* in one order with standard error */
    double begin = mc_seconds();
    snprintf(meeting, sizeof meeting, "%s/meeting", folder);
    bool good = in_threads ? run_threads() : run_processes();
    rmdir(folder);
    printf("check_nccl: %s after %.1f s\n", good ? "ok" : "FAILED (see above)", mc_seconds() - begin);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
