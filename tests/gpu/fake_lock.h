/* fake_lock: a lock that threads get in the order in which they asked. With an ordinary mutex two ranks that poll can
 * hand it to each other for seconds while a third one waits for it. */
#ifndef MC_TESTS_GPU_FAKE_LOCK_H
#define MC_TESTS_GPU_FAKE_LOCK_H

#include <pthread.h>

typedef struct fake_lock {
    pthread_mutex_t mutex;
    pthread_cond_t turn;
    unsigned next, serving; /* numbers of who asks and of whose turn it is; equal: free */
} fake_lock;

#define FAKE_LOCK                                                                                                      \
    {                                                                                                                  \
        .mutex = PTHREAD_MUTEX_INITIALIZER, .turn = PTHREAD_COND_INITIALIZER                                           \
    }

void fake_lock_take(fake_lock *lock);
void fake_lock_give(fake_lock *lock);

#endif
