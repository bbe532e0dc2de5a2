/* A thread of its own does the waiting and the writing: the steps of the compiler are few, long and know nothing of it.
 */
#define _POSIX_C_SOURCE 200809L
#include "driver/progress.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { FIRST_MS = 500, NEXT_MS = 200 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    pthread_t thread;
    const char *what;
    bool running, stop, shown;
} progress = {.lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};

static struct timespec
after_ms(struct timespec t, long ms)
{
    t.tv_nsec += ms * 1000000;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

static void *
show(void *unused)
{
    (void)unused;
    struct timespec begin, now, next;
    clock_gettime(CLOCK_REALTIME, &begin);
    next = after_ms(begin, FIRST_MS);
    pthread_mutex_lock(&progress.lock);
    while (!progress.stop) {
        if (pthread_cond_timedwait(&progress.ended, &progress.lock, &next) == 0 || progress.stop) continue;
        clock_gettime(CLOCK_REALTIME, &now);
        fprintf(stderr, "\r\033[Kmoec: %s, %ld s", progress.what, (long)(now.tv_sec - begin.tv_sec));
        fflush(stderr);
        progress.shown = true;
        next = after_ms(now, NEXT_MS);
    }
    pthread_mutex_unlock(&progress.lock);
    return NULL;
}

void
mc_progress_begin(void)
{
    if (progress.running || !isatty(STDERR_FILENO)) return;
    progress.what = "compiling";
    progress.stop = progress.shown = false;
    progress.running = pthread_create(&progress.thread, NULL, show, NULL) == 0;
}

void
mc_progress_step(const char *what)
{
    pthread_mutex_lock(&progress.lock);
    progress.what = what;
    pthread_mutex_unlock(&progress.lock);
}

void
mc_progress_end(void)
{
    if (!progress.running) return;
    pthread_mutex_lock(&progress.lock);
    progress.stop = true;
    pthread_cond_signal(&progress.ended);
    pthread_mutex_unlock(&progress.lock);
    pthread_join(progress.thread, NULL);
    progress.running = false;
    if (progress.shown) fputs("\r\033[K", stderr);
}
