/* The measuring kernels are made with the kernel builder too, so no compiler flag decides what they measure. */
#define _POSIX_C_SOURCE 200809L
#include "bench/cpu_limits.h"

#include "runtime/base/clock.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

/* ---- threads -------------------------------------------------------------------------------------------------- */

struct team {
    int n;
    pthread_t threads[BENCH_MAX_THREADS];
    atomic_int generation, busy;
    team_job *job; /* NULL: stop */
    void *context;
    double seconds[BENCH_MAX_THREADS];
};

typedef struct member {
    team *team;
    int thread;
} member;

static void
work(team *t, int thread)
{
    double begin = mc_thread_seconds();
    t->job(t->context, thread, t->n);
    t->seconds[thread] = mc_thread_seconds() - begin;
}

static void *
member_main(void *argument)
{
    member m = *(member *)argument;
    free(argument);
    for (int seen = 1;; seen++) {
        while (atomic_load(&m.team->generation) < seen) continue;
        if (!m.team->job) return NULL;
        work(m.team, m.thread);
        atomic_fetch_sub(&m.team->busy, 1);
    }
}

team *
team_create(int n_threads)
{
    team *t = calloc(1, sizeof *t);
    t->n = n_threads;
    for (int i = 1; i < n_threads; i++) {
        member *m = malloc(sizeof *m);
        *m = (member){t, i};
        pthread_create(&t->threads[i], NULL, member_main, m);
    }
    return t;
}

double
team_run(team *t, team_job *job, void *context)
{
    t->job = job;
    t->context = context;
    atomic_store(&t->busy, t->n - 1);
    atomic_fetch_add(&t->generation, 1);
    work(t, 0);
    while (atomic_load(&t->busy)) continue;
    double slowest = 0;
    for (int i = 0; i < t->n; i++)
        if (t->seconds[i] > slowest) slowest = t->seconds[i];
    return slowest;
}

void
team_destroy(team *t)
{
    t->job = NULL;
    atomic_fetch_add(&t->generation, 1);
    for (int i = 1; i < t->n; i++) pthread_join(t->threads[i], NULL);
    free(t);
}

int
team_size(const team *t)
{
    return t->n;
}

/* ---- kernels -------------------------------------------------------------------------------------------------- */

enum { CHAINS = 12, REPEATS = 8, STREAMS = 4, LOADS = 4 };

static void
add_fma_loop(mc_kb *kb)
{
    kb_kernel_begin(kb, "fma_loop");
    LLVMValueRef at = kb_arg_ptr(kb, 0), init[CHAINS], x = kb_load(kb, kb->vf, at, 4);
    for (int i = 0; i < CHAINS; i++) init[i] = kb_fadd(kb, x, kb_const(kb->vf, i));
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_arg_int(kb, 0), kb_i64(kb, 1), CHAINS, init);
    for (int r = 0; r < REPEATS; r++)
        for (int i = 0; i < CHAINS; i++) l.v[i] = kb_fma(kb, l.v[i], x, x);
    kb_loop_end(kb, &l);
    LLVMValueRef sum = l.v[0];
    for (int i = 1; i < CHAINS; i++) sum = kb_fadd(kb, sum, l.v[i]);
    kb_store(kb, sum, kb_gepi(kb, at, 64), 4);
    kb_kernel_end(kb);
}

static void
add_read_loop(mc_kb *kb)
{
    enum { N = STREAMS * LOADS };
    kb_kernel_begin(kb, "read_loop");
    LLVMValueRef memory = kb_arg_ptr(kb, 0), n = kb_arg_int(kb, 0), init[N], stream[STREAMS];
    int step = LOADS * kb->vl * 4;
    for (int i = 0; i < N; i++) init[i] = LLVMConstNull(kb->vi);
    for (int s = 0; s < STREAMS; s++) stream[s] = s ? kb_gep(kb, stream[s - 1], n) : memory;
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), n, kb_i64(kb, step), N, init);
    for (int s = 0; s < STREAMS; s++)
        for (int i = 0; i < LOADS; i++) {
            LLVMValueRef p = kb_gepi(kb, kb_gep(kb, stream[s], l.i), (int64_t)i * kb->vl * 4);
            LLVMValueRef *sum = &l.v[s * LOADS + i];
            *sum = kb_xor(kb, *sum, kb_load(kb, kb->vi, p, 4));
        }
    kb_loop_end(kb, &l);
    for (int i = 1; i < N; i++) l.v[0] = kb_xor(kb, l.v[0], l.v[i]);
    kb_store(kb, l.v[0], kb_arg_ptr(kb, 1), 4);
    kb_kernel_end(kb);
}

void
bench_add_limits(mc_kb *kb)
{
    add_fma_loop(kb);
    add_read_loop(kb);
}

moec_kernel_fn *
bench_kernel(mc_jit *jit, const char *name, mc_diags *diags)
{
    uintptr_t address = mc_jit_symbol(jit, name, diags);
    if (!address) exit(1);
    return (moec_kernel_fn *)address;
}

/* ---- measuring ------------------------------------------------------------------------------------------------ */

enum { FMA_TURNS = 8000 };
typedef struct line {
    _Alignas(64) float f[64];
} line;

static void
fma_job(void *context, int thread, int n_threads)
{
    static line lines[BENCH_MAX_THREADS];
    limits *l = context;
    (void)n_threads;
    for (int i = 0; i < 16; i++) lines[thread].f[i] = 0.5f;
    l->fma_loop(&(moec_kernel_args){.ptr = {lines[thread].f}, .i = {FMA_TURNS}});
}

double
limits_fma(limits *l)
{
    double seconds = team_run(l->team, fma_job, l);
    double rate = 2.0 * l->vl * CHAINS * REPEATS * FMA_TURNS * team_size(l->team) / seconds;
    double sample = rate;
    for (int i = 0; i < LIMITS_TOP; i++)
        if (sample > l->top[i]) {
            double lower = l->top[i];
            l->top[i] = sample;
            sample = lower;
        }
    l->best = l->top[LIMITS_TOP - 1];
    return rate;
}

bool
limits_quiet(limits *l)
{
    return limits_fma(l) > l->best * 0.993;
}

typedef struct reading {
    limits *limits;
    const char *memory;
    int64_t stream_bytes;
} reading;

static void
read_job(void *context, int thread, int n_threads)
{
    static line lines[BENCH_MAX_THREADS];
    reading *r = context;
    (void)n_threads;
    void *from = (void *)(uintptr_t)(r->memory + (int64_t)thread * STREAMS * r->stream_bytes);
    r->limits->read_loop(&(moec_kernel_args){.ptr = {from, lines[thread].f}, .i = {r->stream_bytes}});
}

double
limits_read(limits *l, const void *memory, size_t n_bytes)
{
    int n = team_size(l->team);
    reading r = {l, memory, (int64_t)(n_bytes / (size_t)(n * STREAMS) / 512 * 512)};
    return (double)(r.stream_bytes * STREAMS * n) / team_run(l->team, read_job, &r);
}
