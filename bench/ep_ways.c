/* Dispatch of rows in each of the three ways, on hosts with slow links between them.
 *
 *     MOEC_COMM_MPI=BUILD/libmoec_comm_mpi.so bench/ep_namespaces.sh 4 2 400mbit BUILD/bench_ep_ways [ROUNDS]
 *
 * 64 experts, 8 for each token, out of those of 2 nodes; 256 tokens on each rank; rows of 4 KB. Medians, over rounds in
 * which the ways take turns, of the slowest rank: routing (two exchanges of integers), and the rows. Before the clock
 * runs, every received row is compared with what its experts must read, in order. */
#include "moec/comm.h"
#include "runtime/base/clock.h"
#include "runtime/ep/ep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { E = 64, K = 8, M = 2, T = 256, WIDTH = 1024, A = T * K, MOST_RANKS = 64, MOST_ROUNDS = 201 };

static const char *const names[] = {"expert", "rank", "node"};

typedef struct bench {
    moec_comm *comm;
    mc_ep *ep;
    uint32_t n, me, per_node, peers[MOST_RANKS];
    int32_t *chosen; /* [R, T, K] of all ranks */
    int32_t offsets[E + 1], tokens[A];
    float *x, *out;
    int64_t most;
} bench;

static _Noreturn void
stop(const char *why)
{
    fprintf(stderr, "ep_ways: %s\n", why);
    exit(1);
}

static void *
get(size_t n_bytes)
{
    void *p = calloc(1, n_bytes);
    if (!p) stop("out of memory");
    return p;
}

static uint32_t
draw(uint64_t *state, uint32_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*state >> 33) % below);
}

/* K different experts of M different nodes for each token of a rank. */
static void
choose(const bench *b, uint32_t rank, int32_t *chosen)
{
    uint32_t n_nodes = b->n / b->per_node, of_node = E / n_nodes;
    uint64_t state = rank + 1;
    for (int t = 0; t < T; t++) {
        uint32_t nodes[M], m = 0;
        uint64_t taken = 0;
        while (m < M && m < n_nodes) {
            uint32_t node = draw(&state, n_nodes);
            if (m == 0 || nodes[0] != node) nodes[m++] = node;
        }
        for (int k = 0; k < K;) {
            uint32_t e = nodes[draw(&state, m)] * of_node + draw(&state, of_node);
            if (taken >> e & 1) continue;
            taken |= (uint64_t)1 << e;
            chosen[t * K + k++] = (int32_t)e;
        }
    }
}

static bool
goes_to(const bench *b, uint32_t from, int t, uint32_t rank, int *out_times)
{
    const int32_t *experts = b->chosen + ((size_t)from * T + (size_t)t) * K;
    *out_times = 0;
    for (int k = 0; k < K; k++) *out_times += (uint32_t)experts[k] / (E / b->n) == rank;
    return *out_times > 0;
}

static void
sort_assignments(bench *b)
{
    int n = 0;
    for (int e = 0; e < E; e++) {
        b->offsets[e] = n;
        for (int t = 0; t < T; t++)
            for (int k = 0; k < K; k++)
                if (b->chosen[((size_t)b->me * T + (size_t)t) * K + (size_t)k] == e) b->tokens[n++] = t;
    }
    b->offsets[E] = n;
}

/* What the experts of this rank would read: by expert, then source, then token. */
static void
check(const bench *b, const mc_ep_lists *lists, int64_t n_rows)
{
    int32_t at = 0;
    for (uint32_t slot = 0; slot < E / b->n; slot++) {
        for (uint32_t from = 0; from < b->n; from++)
            for (int t = 0; t < T; t++)
                for (int k = 0; k < K; k++) {
                    const int32_t *experts = b->chosen + ((size_t)from * T + (size_t)t) * K;
                    if ((uint32_t)experts[k] != b->me * (E / b->n) + slot) continue;
                    int64_t row = at < lists->offsets[slot + 1] ? lists->rows[at++] : n_rows;
                    if (row >= n_rows || b->out[row * WIDTH + t] != (float)(from * T + (uint32_t)t + 1))
                        stop("a wrong row");
                }
        if (at != lists->offsets[slot + 1]) stop("more rows than were sent");
    }
}

/* Rows that leave this rank's node: what the links carry. */
static int64_t
rows_out(const bench *b, mc_ep_way way)
{
    int64_t n = 0;
    for (int t = 0; t < T; t++)
        for (uint32_t node = 0; node < b->n / b->per_node; node++) {
            int64_t ranks = 0, all = 0;
            for (uint32_t r = node * b->per_node; r < (node + 1) * b->per_node; r++) {
                int times;
                ranks += goes_to(b, b->me, t, r, &times);
                all += times;
            }
            if (node != b->me / b->per_node) n += way == MC_EP_EXPERT ? all : way == MC_EP_RANK ? ranks : ranks > 0;
        }
    return n;
}

static double
slowest(bench *b, double seconds)
{
    double all[MOST_RANKS], most = 0;
    moec_error e;
    if (moec_comm_gather(b->comm, &seconds, sizeof seconds, all, &e) != MOEC_OK) stop(e.text);
    for (uint32_t r = 0; r < b->n; r++)
        if (all[r] > most) most = all[r];
    return most;
}

static void
dispatch(bench *b, mc_ep_way way, const mc_ep_lists *lists, bool look, double *out_route, double *out_send)
{
    mc_fault e = {{0}};
    int64_t x = 0, y = 0;
    slowest(b, 0); /* begin together */
    double begin = mc_seconds();
    if (mc_ep_route(b->ep, way, NULL, E, E / b->n, b->offsets, b->tokens, T, lists, &x, &y, &e) != MOEC_OK)
        stop(e.text);
    *out_route = slowest(b, mc_seconds() - begin);
    mc_ep_row row = {WIDTH, MOEC_F32, MOEC_F32};
    begin = mc_seconds();
    if (mc_ep_send_begin(b->ep, way, lists, row, b->x, b->out, &e) != MOEC_OK) stop(e.text);
    if (mc_ep_wait(b->ep, &e) != MOEC_OK) stop(e.text);
    *out_send = slowest(b, mc_seconds() - begin);
    if (look) check(b, lists, x);
}

static int
compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void
prepare(bench *b)
{
    mc_fault e = {{0}};
    b->chosen = get((size_t)b->n * T * K * sizeof *b->chosen);
    for (uint32_t r = 0; r < b->n; r++) {
        b->peers[r] = r;
        choose(b, r, b->chosen + (size_t)r * T * K);
    }
    sort_assignments(b);
    int64_t slots = E / b->n;
    b->most = (int64_t)b->n * T * (slots < K ? slots : K);
    b->x = get((size_t)T * WIDTH * sizeof(float));
    b->out = get((size_t)b->most * WIDTH * sizeof(float));
    for (int t = 0; t < T; t++) b->x[t * WIDTH + t] = (float)(b->me * T + (uint32_t)t + 1);
    mc_ep_options o = {.comm = b->comm,
                       .ranks = b->peers,
                       .n_ranks = b->n,
                       .me = b->me,
                       .per_node = b->per_node,
                       .max_tokens = T,
                       .max_assignments = A,
                       .max_rows = b->most,
                       .max_received = b->most,
                       .max_row_bytes = WIDTH * sizeof(float)};
    if (mc_ep_create(&o, &b->ep, &e) != MOEC_OK) stop(e.text);
}

int
main(int argc, char **argv)
{
    static double route[3][MOST_ROUNDS], send[3][MOST_ROUNDS];
    int rounds = argc > 1 ? atoi(argv[1]) : 15;
    if (rounds < 1 || rounds > MOST_ROUNDS) rounds = MOST_ROUNDS;
    bench b = {.comm = NULL};
    moec_error error;
    if (moec_comm_open(NULL, &b.comm, &error) != MOEC_OK) stop(error.text);
    b.n = moec_comm_size(b.comm);
    b.me = moec_comm_rank(b.comm);
    b.per_node = moec_comm_ranks_per_node(b.comm);
    if (b.n > MOST_RANKS || E % b.n || b.n / b.per_node < M) stop("64 experts on at least two nodes are wanted");
    prepare(&b);
    mc_ep_lists lists = {.offsets = get((E / b.n + 1) * sizeof(int32_t)),
                         .rows = get((size_t)b.most * sizeof(int32_t)),
                         .order = get((size_t)b.most * sizeof(int32_t)),
                         .sent = get(A * sizeof(int32_t)),
                         .sent_tokens = get(A * sizeof(int32_t)),
                         .counts = get(MC_EP_COUNTS * (size_t)b.n * sizeof(int32_t))};
    for (int way = 0; way < 3; way++) dispatch(&b, (mc_ep_way)way, &lists, true, &route[way][0], &send[way][0]);
    for (int i = 0; i < rounds; i++)
        for (int way = 0; way < 3; way++) dispatch(&b, (mc_ep_way)way, &lists, false, &route[way][i], &send[way][i]);
    if (b.me == 0) {
        printf("%s, %u nodes of %u ranks\n\n", moec_comm_backend(b.comm), b.n / b.per_node, b.per_node);
        printf("| way | rows between nodes, rank 0 | routing ms | rows ms | to expert |\n|---|---|---|---|---|\n");
    }
    for (int way = 0; way < 3; way++) {
        qsort(route[way], (size_t)rounds, sizeof(double), compare);
        qsort(send[way], (size_t)rounds, sizeof(double), compare);
        if (b.me == 0)
            printf("| %s | %lld | %.2f | %.1f | %.2f |\n", names[way], (long long)rows_out(&b, (mc_ep_way)way),
                   route[way][rounds / 2] * 1e3, send[way][rounds / 2] * 1e3,
                   send[0][rounds / 2] / send[way][rounds / 2]);
    }
    fflush(stdout);
    mc_ep_destroy(b.ep);
    moec_comm_close(b.comm);
    return 0;
}
