/* How an NCCL group is opened: ranks that do not come, files that earlier runs left, libraries and options that will
 * not do. */
#define _GNU_SOURCE
#include "tests/unit/comm_nccl_rig.h"

#include <signal.h>
#include <sys/wait.h>

static moec_status
play_roll_call(moec_comm *comm, job *j)
{
    uint32_t here[MAX_RANKS];
    moec_error error = {0};
    moec_status s = moec_comm_gather(comm, &j->rank, sizeof j->rank, here, &error);
    for (uint32_t r = 0; r < j->size && s == MOEC_OK; r++)
        if (here[r] != r) s = MOEC_ERR_INTERNAL;
    return s == MOEC_OK ? s : fault(j, s, error.text);
}

/* ---- meeting ---------------------------------------------------------------------------------------------------- */

START_TEST(somebody_does_not_come)
{
    job j[1] = {{.rank = (uint32_t)_i, .size = 2, .joining = 0.2, .play = play_silent}};
    run_rank(&j[0]);
    says(&j[0], MOEC_ERR_COMM, _i == 0 ? "rank 1 did not join the group in time" : "rank 0 did not open the group");
    ck_assert_double_lt(j[0].seconds, 1.2);
    nothing_left();
}
END_TEST

START_TEST(other_sizes)
{
    job jobs[2] = {{.joining = 0.3}, {.joining = 0.3, .told_size = 3}};
    run(jobs, 2, 1, play_silent);
    says(&jobs[0], MOEC_ERR_COMM, "same size 2");
    says(&jobs[1], MOEC_ERR_COMM, "same size 3");
    nothing_left();
}
END_TEST

/* Ends a rank like an accident, as soon as it has written its file. */
static void
accident(uint32_t rank, const char *file)
{
    pid_t child = fork();
    if (child == 0) {
        job j = {.rank = rank, .size = 2, .deadline = 30, .play = play_silent};
        run_rank(&j);
        _exit(0);
    }
    double end = mc_seconds() + 20;
    while (!mc_file_exists(file) && mc_seconds() < end) usleep(1000);
    ck_assert(mc_file_exists(file));
    kill(child, SIGKILL);
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
}

/* Both files of an earlier run lie there, the one of rank 0 with an answer to the one of rank 1. */
START_TEST(files_of_an_earlier_run)
{
    char joins[100];
    job jobs[2] = {0};
    jobs[_i].late = 0.2;
    snprintf(joins, sizeof joins, "%s.1", meeting);
    accident(1, joins);
    accident(0, meeting);
    ck_assert(mc_file_exists(joins));
    run(jobs, 2, 10, play_roll_call);
    all_well(jobs, 2);
}
END_TEST

START_TEST(files_that_are_something_else)
{
    char joins[100];
    job jobs[2] = {0};
    mc_fault e;
    snprintf(joins, sizeof joins, "%s.1", meeting);
    ck_assert_int_eq(mc_file_write(meeting, joins, sizeof joins, 0600, &e), MOEC_OK);
    ck_assert_int_eq(mc_file_write(joins, meeting, 40, 0600, &e), MOEC_OK);
    run(jobs, 2, 10, play_roll_call);
    all_well(jobs, 2);
}
END_TEST

START_TEST(folders_that_are_not_there)
{
    job jobs[2] = {{.joining = 0.3}, {.joining = 0.3}};
    snprintf(meeting, sizeof meeting, "%s/none/meeting", folder);
    run(jobs, 2, 1, play_silent);
    says(&jobs[1], MOEC_ERR_NOT_FOUND, "none/meeting.1");
    says(&jobs[0], MOEC_ERR_COMM, "rank 1 did not join");
    nothing_left();
}
END_TEST

/* ---- options and libraries -------------------------------------------------------------------------------------- */

static void
refused(moec_comm_options o, moec_status status, const char *part)
{
    moec_comm *comm;
    moec_error error = {0};
    o.backend = "nccl";
    ck_assert_int_eq(moec_comm_open(&o, &comm, &error), status);
    ck_assert_ptr_null(comm);
    ck_assert_msg(strstr(error.text, part) != NULL, "\"%s\" does not say \"%s\"", error.text, part);
}

START_TEST(options)
{
    moec_gpu *gpu;
    moec_error error;
    ck_assert_int_eq(moec_gpu_open(0, &gpu, &error), MOEC_OK);
    refused((moec_comm_options){.size = 1}, MOEC_ERR_ARGUMENT, "needs a GPU");
    refused((moec_comm_options){.gpu = gpu}, MOEC_ERR_ARGUMENT, "a group of 0 ranks");
    refused((moec_comm_options){.gpu = gpu, .size = 1025}, MOEC_ERR_ARGUMENT, "a group of 1025 ranks");
    refused((moec_comm_options){.gpu = gpu, .size = 2, .rank = 2}, MOEC_ERR_ARGUMENT, "rank 2 of 2");
    refused((moec_comm_options){.gpu = gpu, .size = 2}, MOEC_ERR_ARGUMENT, "needs a rendezvous");
    moec_gpu_close(gpu);
    nothing_left();
}
END_TEST

static const struct {
    const char *variable, *value;
    moec_status status;
    const char *part;
} libraries[] = {{"MOEC_NCCL", "/nowhere/libnccl.so.2", MOEC_ERR_NOT_FOUND, "/nowhere/libnccl.so.2"},
                 {"MOEC_NCCL", FAKE_CUDA, MOEC_ERR_MISMATCH, "it has no ncclGetVersion"},
                 {"MOEC_FAKE_NCCL_VERSION", "21703", MOEC_ERR_MISMATCH, "is NCCL 2.17.3, moec needs 2.18"},
                 {"MOEC_FAKE_NCCL_VERSION", "2708", MOEC_ERR_MISMATCH, "is NCCL 2.7.8, moec needs 2.18"}};

START_TEST(bad_libraries)
{
    moec_gpu *gpu;
    moec_error error;
    moec_comm *comm;
    ck_assert_int_eq(moec_gpu_open(0, &gpu, &error), MOEC_OK);
    moec_comm_options o = {.backend = "nccl", .gpu = gpu, .size = 1};
    const char *before = strcmp(libraries[_i].variable, "MOEC_NCCL") == 0 ? FAKE_NCCL : "22809";
    env(libraries[_i].variable, libraries[_i].value);
    refused(o, libraries[_i].status, libraries[_i].part);
    env(libraries[_i].variable, before); /* a failure is not remembered */
    ck_assert_int_eq(moec_comm_open(&o, &comm, &error), MOEC_OK);
    moec_comm_close(comm);
    moec_gpu_close(gpu);
    nothing_left();
}
END_TEST

/* ---- all of it -------------------------------------------------------------------------------------------------- */

static void
add_tests(TCase *t)
{
    tcase_add_loop_test(t, somebody_does_not_come, 0, 2);
    tcase_add_test(t, other_sizes);
    tcase_add_loop_test(t, files_of_an_earlier_run, 0, 2);
    tcase_add_test(t, files_that_are_something_else);
    tcase_add_test(t, folders_that_are_not_there);
    tcase_add_test(t, options);
    tcase_add_loop_test(t, bad_libraries, 0, (int)(sizeof libraries / sizeof *libraries));
}

int
main(void)
{
    return rig_main("comm_nccl_open", add_tests);
}
