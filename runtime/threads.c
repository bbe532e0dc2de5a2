/* threads: see threads.h. */
#include "runtime/threads.h"

#include "runtime/abi_model.h"

#include <stdlib.h>

moec_status
moec_threads_create(uint32_t n_threads, moec_threads **out_threads, moec_error *error)
{
    mc_fault e = {{0}};
    *out_threads = NULL;
    moec_threads *t = calloc(1, sizeof *t);
    moec_status s = t ? MOEC_OK : mc_fail(&e, MOEC_ERR_MEMORY, "out of memory");
    if (s == MOEC_OK && n_threads > MC_MAX_THREADS)
        s = mc_fail(&e, MOEC_ERR_ARGUMENT, "%u threads: at most %d are possible", n_threads, MC_MAX_THREADS);
    if (s == MOEC_OK) s = mc_pool_create(n_threads, NULL, NULL, &t->pool, &e);
    if (s == MOEC_OK && pthread_mutex_init(&t->busy, NULL) != 0) {
        mc_pool_destroy(t->pool);
        s = mc_fail(&e, MOEC_ERR_MEMORY, "out of memory");
    }
    if (s == MOEC_OK)
        *out_threads = t;
    else
        free(t);
    return mc_give(error, &e, s);
}

void
moec_threads_destroy(moec_threads *threads)
{
    if (!threads) return;
    mc_pool_destroy(threads->pool);
    pthread_mutex_destroy(&threads->busy);
    free(threads);
}

uint32_t
moec_threads_count(const moec_threads *threads)
{
    return threads ? mc_pool_n_threads(threads->pool) : 1;
}
