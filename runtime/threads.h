/* threads: a pool that several callers share, one at a time. */
#ifndef MC_RUNTIME_THREADS_H
#define MC_RUNTIME_THREADS_H

#include "moec/train.h"
#include "runtime/pool.h"

#include <pthread.h>

struct moec_threads {
    mc_pool *pool;
    pthread_mutex_t busy;
};

#endif
