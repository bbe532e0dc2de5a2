/* comm_nccl_rig: ranks of an NCCL group as threads, on a fake NCCL and a fake driver; each test has a folder of its own
 * for them to meet in. */
#ifndef MC_TESTS_COMM_NCCL_RIG_H
#define MC_TESTS_COMM_NCCL_RIG_H

#include "moec/comm.h"
#include "moec/gpu.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/comm/comm_impl.h"
#include "runtime/gpu/gpu_device.h"
#include "tests/gpu/fake.h"
#include "tests/gpu/fake_nccl.h"

#include <check.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_RANKS = 8, MAX_BYTES = 4000, TEXT = 1024 };

/* ---- ranks as threads ------------------------------------------------------------------------------------------- */

typedef struct job {
    pthread_t thread;
    uint32_t rank, size;
    uint32_t told_size;       /* another one for this rank; 0: size */
    double deadline, joining; /* joining: 0: long */
    double late;              /* begins so much later than the others */
    int32_t device;
    moec_status (*play)(moec_comm *comm, struct job *j);
    moec_gpu *gpu;
    moec_status status;
    char text[TEXT];
    double seconds; /* that play took */
    uint32_t per_node;
    char backend[64];
    pthread_barrier_t *all; /* reached by everybody when play is over */
} job;

static char folder[64], meeting[80];

static inline void
env(const char *name, const char *value)
{
    ck_assert_int_eq(setenv(name, value, 1), 0);
}

static inline void *
run_rank(void *argument)
{
    job *j = argument;
    moec_error error = {0};
    moec_comm *comm = NULL;
    moec_comm_options o = {.backend = "nccl",
                           .rank = j->rank,
                           .size = j->told_size ? j->told_size : j->size,
                           .deadline_seconds = j->joining ? j->joining : 30,
                           .rendezvous = meeting};
    usleep((useconds_t)(1e6 * j->late));
    double begin = mc_seconds();
    j->status = moec_gpu_open(j->device, &j->gpu, &error);
    o.gpu = j->gpu;
    if (j->status == MOEC_OK) j->status = moec_comm_open(&o, &comm, &error);
    snprintf(j->text, sizeof j->text, "%s", error.text);
    if (comm) {
        comm->deadline = j->deadline;
        j->per_node = moec_comm_ranks_per_node(comm);
        snprintf(j->backend, sizeof j->backend, "%s", moec_comm_backend(comm));
        begin = mc_seconds();
        j->status = j->play(comm, j);
    }
    j->seconds = mc_seconds() - begin;
    if (j->all) pthread_barrier_wait(j->all);
    moec_comm_close(comm);
    moec_gpu_close(j->gpu);
    return NULL;
}

/* Says why in j->text. */
static inline moec_status
fault(job *j, moec_status s, const char *text)
{
    snprintf(j->text, sizeof j->text, "%s", text);
    return s;
}

static inline fake_nccl_numbers
nccl_now(void)
{
    fake_nccl_numbers n;
    fake_nccl_stats_fn *get = NULL;
    void *library = dlopen(FAKE_NCCL, RTLD_NOW);
    ck_assert_ptr_nonnull(library);
    void *address = dlsym(library, "fake_nccl_stats");
    memcpy(&get, &address, sizeof get);
    get(&n);
    return n;
}

static inline fake_stats
cuda_now(void)
{
    fake_stats s;
    fake_stats_fn *get = NULL;
    void *library = dlopen(FAKE_CUDA, RTLD_NOW);
    ck_assert_ptr_nonnull(library);
    void *address = dlsym(library, "fake_cuda_stats");
    memcpy(&get, &address, sizeof get);
    get(&s);
    return s;
}

static inline void
nothing_left(void)
{
    fake_nccl_numbers n = nccl_now();
    fake_stats s = cuda_now();
    char path[100];
    ck_assert_uint_eq(n.comms + n.cliques + n.groups_alive, 0);
    ck_assert_uint_eq(s.device_blocks + s.host_blocks + s.streams + s.events + s.contexts, 0);
    ck_assert_msg(!mc_file_exists(meeting), "the rendezvous file is left");
    for (int r = 0; r < MAX_RANKS; r++) {
        snprintf(path, sizeof path, "%s.%d", meeting, r);
        ck_assert_msg(!mc_file_exists(path), "%s is left", path);
    }
}

/* All ranks play; jobs[r] says how it went. Those with told_size or a play of their own keep it. */
static inline void
run(job *jobs, uint32_t n, double deadline, moec_status (*play)(moec_comm *, job *))
{
    pthread_barrier_t all;
    pthread_barrier_init(&all, NULL, n);
    for (uint32_t r = 0; r < n; r++) {
        jobs[r].rank = r;
        jobs[r].size = n;
        jobs[r].deadline = deadline;
        jobs[r].all = &all;
        if (!jobs[r].play) jobs[r].play = play;
        ck_assert_int_eq(pthread_create(&jobs[r].thread, NULL, run_rank, &jobs[r]), 0);
    }
    for (uint32_t r = 0; r < n; r++) pthread_join(jobs[r].thread, NULL);
    pthread_barrier_destroy(&all);
}

static inline void
all_well(const job *jobs, uint32_t n)
{
    for (uint32_t r = 0; r < n; r++)
        ck_assert_msg(jobs[r].status == MOEC_OK, "rank %u: %s: %s", r, moec_status_name(jobs[r].status), jobs[r].text);
    nothing_left();
}

static inline void
says(const job *j, moec_status status, const char *part)
{
    ck_assert_msg(j->status == status && strstr(j->text, part), "rank %u: %s: \"%s\" does not say \"%s\"", j->rank,
                  moec_status_name(j->status), j->text, part);
}

static inline moec_status
play_silent(moec_comm *comm, job *j)
{
    (void)comm;
    (void)j;
    return MOEC_OK;
}

static inline void
make_folder(void)
{
    snprintf(folder, sizeof folder, "%s/moec-nccl-XXXXXX", "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(meeting, sizeof meeting, "%s/meeting", folder);
}

static inline void
remove_folder(void)
{
    rmdir(folder);
}

static inline int
rig_main(const char *name, void (*add)(TCase *))
{
    setenv("MOEC_NCCL", FAKE_NCCL, 1);
    setenv("MOEC_CUDA_DRIVER", FAKE_CUDA, 1);
    Suite *s = suite_create(name);
    TCase *t = tcase_create(name);
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, make_folder, remove_folder);
    add(t);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
