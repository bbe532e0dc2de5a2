/* pool: threads that run one function together, with barriers inside. Between jobs and at barriers they spin briefly,
 * then sleep on a futex: regions of microseconds cost no system call, idle pools cost no processor time. */
#ifndef MC_RUNTIME_POOL_H
#define MC_RUNTIME_POOL_H

#include "moec/runtime.h"
#include "runtime/base/file.h"

typedef struct mc_pool mc_pool;
typedef void mc_pool_fn(void *context, uint32_t thread, uint32_t n_threads);

enum { MC_MAX_THREADS = 1024 };

/* n_threads 0: mc_host_cpus(). With `parallel` the host's threads are used and none is made. */
moec_status mc_pool_create(uint32_t n_threads, moec_parallel_fn *parallel, void *parallel_context, mc_pool **out,
                           mc_fault *error) MOEC_MUST_USE;
void mc_pool_destroy(mc_pool *pool); /* NULL is allowed */
uint32_t mc_pool_n_threads(const mc_pool *pool);
/* Runs fn on every thread, the caller's being thread 0, and returns when all have returned. One caller at a time. */
void mc_pool_run(mc_pool *pool, mc_pool_fn *fn, void *context);
/* Inside a run: nobody passes until everybody has come. What was written before it is seen by all after it. */
void mc_pool_barrier(mc_pool *pool);

#endif
