#define _POSIX_C_SOURCE 200809L
/* What a rank says when it leaves, and waiting for what MPI cannot be asked to give up.
 *
 * A word is one small message to everybody, sent at once and never waited for: connections were made by the first
 * greeting, so it leaves without help. Everybody keeps one receive open for such words. */
#include "runtime/base/clock.h"
#include "runtime/comm/comm_mpi.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WORD_TAG = 1 };
static const double between_hearings = 0.001, linger_seconds = 0.3, until_naps = 0.1, nap = 0.0002;

typedef struct mc_mpi_job {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done, forgotten;
    void (*work)(void *);
    void *argument;
} mc_mpi_job;

static void
free_job(mc_mpi_job *job)
{
    pthread_cond_destroy(&job->changed);
    pthread_mutex_destroy(&job->lock);
    free(job);
}

static void *
run_job(void *opaque)
{
    mc_mpi_job *job = opaque;
    job->work(job->argument);
    pthread_mutex_lock(&job->lock);
    job->done = true;
    bool forgotten = job->forgotten;
    pthread_cond_signal(&job->changed);
    pthread_mutex_unlock(&job->lock);
    if (forgotten) free_job(job);
    return NULL;
}

static mc_mpi_job *
new_job(void (*work)(void *), void *argument)
{
    mc_mpi_job *job = calloc(1, sizeof *job);
    if (!job) return NULL;
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&job->lock, NULL);
    pthread_cond_init(&job->changed, &clock);
    pthread_condattr_destroy(&clock);
    job->work = work;
    job->argument = argument;
    return job;
}

bool
mc_mpi_within(double seconds, void (*work)(void *), void *argument)
{
    mc_mpi_job *job = new_job(work, argument);
    pthread_t thread;
    if (!job) return false;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    double whole = (double)until.tv_sec + (double)until.tv_nsec * 1e-9 + seconds;
    until.tv_sec = (time_t)whole;
    until.tv_nsec = (long)((whole - (double)until.tv_sec) * 1e9);
    if (pthread_create(&thread, NULL, run_job, job) != 0) {
        free_job(job);
        return false;
    }
    pthread_mutex_lock(&job->lock);
    while (!job->done && pthread_cond_timedwait(&job->changed, &job->lock, &until) == 0) {}
    bool done = job->done;
    job->forgotten = !done;
    pthread_mutex_unlock(&job->lock);
    if (!done) {
        pthread_detach(thread);
        return false;
    }
    pthread_join(thread, NULL);
    free_job(job);
    return true;
}

moec_status
mc_mpi_fail(mc_fault *error, int code, const char *what)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    return mc_fail(error, MOEC_ERR_COMM, "%s: %s", what, text);
}

bool
mc_mpi_finish(MPI_Request *request, double seconds)
{
    double until = mc_seconds() + seconds;
    for (;;) {
        int done = 0;
        if (MPI_Test(request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return false;
        if (done) return true;
        if (mc_seconds() > until) return false;
        sched_yield();
    }
}

/* ---- words ------------------------------------------------------------------------------------------------------ */

moec_status
mc_mpi_listen(mc_mpi *m, mc_fault *error)
{
    int code = MPI_Irecv(&m->heard, (int)sizeof m->heard, MPI_BYTE, MPI_ANY_SOURCE, WORD_TAG, m->control, &m->word);
    return code == MPI_SUCCESS ? MOEC_OK : mc_mpi_fail(error, code, "no receive could be opened");
}

static void
say(mc_mpi *m, bool gives_up, uint32_t rank, const char *why)
{
    if (m->has_said) return;
    m->has_said = true;
    m->said.gives_up = gives_up;
    m->said.rank = rank;
    strncpy(m->said.why, why, sizeof m->said.why - 1);
    for (uint32_t peer = 0; peer < m->size; peer++) {
        m->said_word[peer] = MPI_REQUEST_NULL;
        if (peer != m->rank)
            MPI_Isend(&m->said, (int)sizeof m->said, MPI_BYTE, (int)peer, WORD_TAG, m->control, &m->said_word[peer]);
    }
}

void
mc_mpi_hear(mc_mpi *m, double now)
{
    if (now < m->next_hearing) return;
    m->next_hearing = now + between_hearings;
    for (;;) {
        int done = 0;
        MPI_Status status;
        mc_fault ignored;
        if (m->word == MPI_REQUEST_NULL || MPI_Test(&m->word, &done, &status) != MPI_SUCCESS || !done) return;
        uint32_t from = (uint32_t)status.MPI_SOURCE;
        if (m->left[from] == 0) m->n_left++;
        m->left[from] = now;
        if (m->heard.gives_up && !m->has_failed) {
            m->has_failed = true;
            m->failed_rank = m->heard.rank < m->size ? m->heard.rank : from;
            m->heard.why[sizeof m->heard.why - 1] = 0;
            memcpy(m->failure, m->heard.why, sizeof m->failure);
        }
        if (mc_mpi_listen(m, &ignored) != MOEC_OK) m->word = MPI_REQUEST_NULL;
    }
}

bool
mc_mpi_leave(mc_mpi *m)
{
    double until = mc_seconds() + m->deadline;
    say(m, false, m->rank, "");
    while (m->n_left + 1 < m->size && !m->has_failed && mc_seconds() < until) {
        mc_mpi_hear(m, mc_seconds());
        sched_yield();
    }
    return m->n_left + 1 == m->size && !m->has_failed;
}

void
mc_mpi_abort(void *state, const char *why)
{
    mc_mpi *m = state;
    m->is_quiet = mc_mpi_take_back(m) && m->is_quiet;
    if (m->has_failed)
        say(m, true, m->failed_rank, m->failure); /* for those whom the first word has not reached yet */
    else
        say(m, true, m->rank, why);
}

bool
mc_mpi_aborted(void *state, uint32_t *out_rank, char *out_why, size_t n_bytes)
{
    mc_mpi *m = state;
    if (!m->has_failed) mc_mpi_hear(m, mc_seconds());
    if (!m->has_failed) return false;
    *out_rank = m->failed_rank;
    snprintf(out_why, n_bytes, "%s", m->failure);
    return true;
}

/* Transfers need us, so only what has taken long by any measure is a rank that computes, and may want this processor.
 * Until then MPI decides: Open MPI yields in every look when ranks outnumber processors, and a second yield costs four
 * ranks on two processors as much as a small exchange. */
void
mc_mpi_rest(void *state, double seconds)
{
    const mc_mpi *m = state;
    double waited = mc_seconds() - m->last_news;
    if (waited >= until_naps)
        nanosleep(&(struct timespec){.tv_nsec = (long)((seconds < nap ? seconds : nap) * 1e9)}, NULL);
    else if (waited >= m->until_yields)
        sched_yield();
}

void
mc_mpi_linger(mc_mpi *m)
{
    double until = mc_seconds() + linger_seconds;
    while (m->n_left + 1 < m->size && mc_seconds() < until) {
        if (m->is_quiet) mc_mpi_hear(m, mc_seconds());
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    for (uint32_t r = 0; r < m->size; r++)
        if (r != m->rank && m->left[r] == 0) mc_mpi_wake(&m->processes[r]);
}
