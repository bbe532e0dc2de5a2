/* pool: see pool.h. The one idea is wait_while(): spin on a counter, then sleep on it. Both "is there a job?" and "has
 * everybody come?" are such counters. The barrier's counter is a phase that only grows (sense reversal with more than
 * two senses), so a late riser can never take the next barrier for this one.
 *
 * How long to spin is learnt: a wait that ends while spinning doubles the limit, one that does not halves it. On a
 * quiet machine that means no system calls, on one whose processors others want too, threads give way at once.
 *
 * Sleeping: a waiter first counts itself in `sleepers`, then looks at the counter again; a waker first changes the
 * counter, then looks at `sleepers`. Both steps are sequentially consistent, so one of the two sees the other. */
#define _GNU_SOURCE
#include "runtime/pool.h"

#include "runtime/host_cpu.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MIN_SPINS = 32, MAX_SPINS = 4096 };

typedef struct counter {
    _Alignas(64) atomic_uint value;
    atomic_uint sleepers;
} counter;

struct mc_pool {
    counter job, phase;
    _Alignas(64) atomic_uint arrived;
    _Alignas(64) uint32_t n_threads;
    _Atomic uint32_t spins;
    mc_pool_fn *fn; /* NULL: stop */
    void *context;
    moec_parallel_fn *parallel;
    void *parallel_context;
    pthread_t *threads; /* n_threads - 1 */
    uint32_t n_started;
    atomic_uint next_index;
};

static void
relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void
wait_while(mc_pool *pool, counter *c, unsigned old)
{
    uint32_t spins = atomic_load_explicit(&pool->spins, memory_order_relaxed);
    for (uint32_t i = 0; i < spins; i++) {
        if (atomic_load_explicit(&c->value, memory_order_acquire) != old) {
            if (spins < MAX_SPINS) atomic_store_explicit(&pool->spins, 2 * spins, memory_order_relaxed);
            return;
        }
        relax();
    }
    if (spins > MIN_SPINS) atomic_store_explicit(&pool->spins, spins / 2, memory_order_relaxed);
    atomic_fetch_add(&c->sleepers, 1);
    while (atomic_load(&c->value) == old) syscall(SYS_futex, &c->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&c->sleepers, 1);
}

static void
advance(counter *c)
{
    atomic_fetch_add(&c->value, 1);
    if (atomic_load(&c->sleepers)) syscall(SYS_futex, &c->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void
mc_pool_barrier(mc_pool *pool)
{
    if (pool->n_threads == 1) return;
    unsigned phase = atomic_load_explicit(&pool->phase.value, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->n_threads - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        advance(&pool->phase);
    } else {
        wait_while(pool, &pool->phase, phase);
    }
}

static void *
worker(void *argument)
{
    mc_pool *pool = argument;
    uint32_t thread = atomic_fetch_add(&pool->next_index, 1);
    for (unsigned seen = 0;; seen++) {
        wait_while(pool, &pool->job, seen);
        if (!pool->fn) return NULL;
        pool->fn(pool->context, thread, pool->n_threads);
        mc_pool_barrier(pool);
    }
}

uint32_t
mc_pool_n_threads(const mc_pool *pool)
{
    return pool->n_threads;
}

moec_status
mc_pool_create(uint32_t n_threads, moec_parallel_fn *parallel, void *parallel_context, mc_pool **out, mc_fault *error)
{
    *out = NULL;
    uint32_t cpus = mc_host_cpus();
    if (n_threads == 0) n_threads = cpus;
    if (n_threads > MC_MAX_THREADS)
        return mc_fail(error, MOEC_ERR_RANGE, "%u threads: at most %d are possible", n_threads, MC_MAX_THREADS);
    mc_pool *pool = aligned_alloc(64, sizeof *pool);
    if (!pool) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    memset(pool, 0, sizeof *pool);
    pool->n_threads = n_threads;
    /* More threads than processors: spinning would only delay the one that is awaited. */
    atomic_store(&pool->spins, n_threads > cpus ? 0 : MAX_SPINS);
    pool->parallel = parallel;
    pool->parallel_context = parallel_context;
    atomic_store(&pool->next_index, 1);
    if (n_threads > 1 && !parallel) {
        pool->threads = calloc(n_threads - 1, sizeof *pool->threads);
        while (pool->threads && pool->n_started < n_threads - 1 &&
               pthread_create(&pool->threads[pool->n_started], NULL, worker, pool) == 0)
            pool->n_started++;
        if (pool->n_started < n_threads - 1) {
            mc_pool_destroy(pool);
            return mc_fail(error, MOEC_ERR_MEMORY, "cannot start %u threads", n_threads);
        }
    }
    *out = pool;
    return MOEC_OK;
}

void
mc_pool_destroy(mc_pool *pool)
{
    if (!pool) return;
    if (pool->n_started) {
        pool->fn = NULL;
        advance(&pool->job);
        for (uint32_t i = 0; i < pool->n_started; i++) pthread_join(pool->threads[i], NULL);
    }
    free(pool->threads);
    free(pool);
}

static void
host_body(void *argument, uint32_t thread)
{
    mc_pool *pool = argument;
    pool->fn(pool->context, thread, pool->n_threads);
}

void
mc_pool_run(mc_pool *pool, mc_pool_fn *fn, void *context)
{
    pool->fn = fn;
    pool->context = context;
    if (pool->n_threads == 1) {
        fn(context, 0, 1);
    } else if (pool->parallel) {
        pool->parallel(pool->parallel_context, pool->n_threads, host_body, pool);
    } else {
        advance(&pool->job);
        fn(context, 0, pool->n_threads);
        mc_pool_barrier(pool);
    }
}
