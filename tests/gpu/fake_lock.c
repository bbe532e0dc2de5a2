/* A lock in the order of asking: everybody draws a number, and the one who is done calls the next. */
#include "tests/gpu/fake_lock.h"

void
fake_lock_take(fake_lock *lock)
{
    pthread_mutex_lock(&lock->mutex);
    unsigned mine = lock->next++;
    while (lock->serving != mine) pthread_cond_wait(&lock->turn, &lock->mutex);
    pthread_mutex_unlock(&lock->mutex);
}

void
fake_lock_give(fake_lock *lock)
{
    pthread_mutex_lock(&lock->mutex);
    if (++lock->serving != lock->next) pthread_cond_broadcast(&lock->turn);
    pthread_mutex_unlock(&lock->mutex);
}
