/* Opening groups: which backend is chosen, files of backends (comm_plugin.c, beside this program), bad options. */
#define _POSIX_C_SOURCE 200809L
#include "runtime/comm/comm_impl.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static moec_status
open_one(const char *backend, moec_comm **out, moec_error *error)
{
    moec_comm_options options = {.backend = backend};
    *error = (moec_error){{0}};
    return moec_comm_open(&options, out, error);
}

static void
refused(const char *backend, moec_status want, const char *text)
{
    moec_comm *comm = (moec_comm *)1;
    moec_error error;
    moec_status s = open_one(backend, &comm, &error);
    ck_assert_msg(s == want, "%s: %s: %s", backend ? backend : "none", moec_status_name(s), error.text);
    ck_assert_msg(strstr(error.text, text), "%s\nwithout: %s", error.text, text);
    ck_assert_ptr_null(comm);
    ck_assert_int_eq(open_one(backend, &comm, &error), want); /* the same again */
}

static void
no_launcher(void)
{
    unsetenv("OMPI_COMM_WORLD_SIZE");
    unsetenv("PMI_SIZE");
    unsetenv("PMIX_RANK");
}

START_TEST(test_plugin)
{
    moec_comm *comm;
    moec_error error;
    ck_assert_msg(open_one("good", &comm, &error) == MOEC_OK, "%s", error.text);
    ck_assert_str_eq(error.text, "");
    ck_assert_str_eq(moec_comm_backend(comm), "plugin, 30.0 s");
    ck_assert_uint_eq(moec_comm_size(comm), 1);
    int32_t mine = 5, all = 0;
    ck_assert_int_eq(moec_comm_gather(comm, &mine, sizeof mine, &all, &error), MOEC_OK);
    ck_assert_int_eq(all, 5);
    moec_comm_close(comm);
    ck_assert_int_eq(open_one("good", &comm, &error), MOEC_OK);
    moec_comm_close(comm);
}
END_TEST

START_TEST(test_versions)
{
    refused("old", MOEC_ERR_MISMATCH, "libmoec_comm_old.so is of interface version 7, this program of version 1");
    refused("table", MOEC_ERR_MISMATCH, "libmoec_comm_table.so gives a table of ");
    refused("mute", MOEC_ERR_MISMATCH, "libmoec_comm_mute.so does not serve interface version 1 of this program");
    refused("foreign", MOEC_ERR_MISMATCH, "libmoec_comm_foreign.so has no moec_comm_backend_query");
}
END_TEST

START_TEST(test_missing)
{
    char path[] = "/tmp/moec-comm-XXXXXX";
    int file = mkstemp(path);
    ck_assert_int_ge(file, 0);
    ck_assert_int_eq(write(file, "no library", 10), 10);
    close(file);
    refused("absent", MOEC_ERR_NOT_FOUND, "no libmoec_comm_absent.so: looked for /");
    refused("absent", MOEC_ERR_NOT_FOUND, "/../lib/moec/libmoec_comm_absent.so, the linker's folders; ");
    setenv("MOEC_COMM_MPI", "/nowhere/mpi.so", 1);
    refused("mpi", MOEC_ERR_NOT_FOUND, "no libmoec_comm_mpi.so: looked for /nowhere/mpi.so as MOEC_COMM_MPI says; ");
    refused("mpi", MOEC_ERR_NOT_FOUND, "needs Open MPI (Debian: apt install openmpi-bin)");
    setenv("MOEC_COMM_MPI", path, 1);
    refused("mpi", MOEC_ERR_NOT_FOUND, "the backend mpi of comm cannot be loaded: ");
    setenv("MOEC_COMM_GOOD", "/nowhere/good.so", 1); /* what is said counts, also when it is wrong */
    refused("good", MOEC_ERR_NOT_FOUND, "/nowhere/good.so");
    setenv("MOEC_COMM_GOOD", "", 1);
    moec_comm *comm;
    moec_error error;
    ck_assert_int_eq(open_one("good", &comm, &error), MOEC_OK);
    moec_comm_close(comm);
    unlink(path);
}
END_TEST

START_TEST(test_names)
{
    refused("", MOEC_ERR_ARGUMENT, "backends are local, mpi and nccl");
    refused("../x", MOEC_ERR_ARGUMENT, "no backend \"../x\"");
    refused("MPI", MOEC_ERR_ARGUMENT, "no backend \"MPI\"");
    refused("a_name_that_is_longer_than_any_of_them_could_be", MOEC_ERR_ARGUMENT, "no backend \"a_name_that");
    refused("threads", MOEC_ERR_ARGUMENT, "moec_comm_threads");
}
END_TEST

/* Without a name: one rank, or what a launcher says. */
START_TEST(test_default)
{
    static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"};
    moec_comm *comm;
    moec_error error;
    no_launcher();
    ck_assert_int_eq(moec_comm_open(NULL, &comm, NULL), MOEC_OK);
    ck_assert_str_eq(moec_comm_backend(comm), "local");
    moec_comm_close(comm);
    setenv("MOEC_COMM_MPI", "/nowhere/mpi.so", 1);
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        setenv(variables[i], "1", 1);
        refused(NULL, MOEC_ERR_NOT_FOUND, "/nowhere/mpi.so");
        ck_assert_int_eq(open_one("local", &comm, &error), MOEC_OK); /* a name is a name */
        moec_comm_close(comm);
        no_launcher();
    }
}
END_TEST

START_TEST(test_options)
{
    static const double deadlines[] = {-1, NAN, INFINITY, 1e10};
    moec_comm *comm = NULL, *comms[4];
    moec_error error;
    for (size_t i = 0; i < sizeof deadlines / sizeof *deadlines; i++) {
        moec_comm_options o = {.backend = "local", .deadline_seconds = deadlines[i]};
        ck_assert_int_eq(moec_comm_open(&o, &comm, &error), MOEC_ERR_ARGUMENT);
        ck_assert(strstr(error.text, "deadline"));
        ck_assert_int_eq(moec_comm_threads(4, &o, comms, &error), MOEC_ERR_ARGUMENT);
    }
    moec_comm_options nodes = {.backend = "local", .ranks_per_node = 3};
    ck_assert_int_eq(moec_comm_open(&nodes, &comm, &error), MOEC_ERR_ARGUMENT);
    ck_assert_str_eq(error.text, "3 ranks for each node do not divide the 1 ranks of the group");
    ck_assert_int_eq(moec_comm_threads(4, &nodes, comms, &error), MOEC_ERR_ARGUMENT);
    ck_assert_ptr_null(comm);
    ck_assert_ptr_null(comms[0]);
    nodes.ranks_per_node = 2;
    ck_assert_int_eq(moec_comm_threads(4, &nodes, comms, &error), MOEC_OK);
    ck_assert_uint_eq(moec_comm_ranks_per_node(comms[3]), 2);
    for (int i = 0; i < 4; i++) moec_comm_close(comms[i]);
    ck_assert_int_eq(moec_comm_threads(0, NULL, comms, &error), MOEC_ERR_ARGUMENT);
    ck_assert_int_eq(moec_comm_threads(MC_COMM_MAX_RANKS + 1, NULL, comms, &error), MOEC_ERR_ARGUMENT);
    ck_assert_str_eq(error.text, "1025 ranks: from 1 to 1024 are possible");
}
END_TEST

/* A thousand ranks can be made and go away, played or not. */
START_TEST(test_many)
{
    moec_comm **comms = calloc(MC_COMM_MAX_RANKS, sizeof(moec_comm *));
    moec_error error;
    ck_assert_int_eq(moec_comm_threads(MC_COMM_MAX_RANKS, NULL, comms, &error), MOEC_OK);
    ck_assert_uint_eq(moec_comm_rank(comms[1000]), 1000);
    ck_assert_uint_eq(moec_comm_ranks_per_node(comms[0]), MC_COMM_MAX_RANKS);
    for (int i = 0; i < MC_COMM_MAX_RANKS; i++) moec_comm_close(comms[i]);
    free(comms);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("comm load");
    TCase *t = tcase_create("comm load");
    tcase_add_test(t, test_plugin);
    tcase_add_test(t, test_versions);
    tcase_add_test(t, test_missing);
    tcase_add_test(t, test_names);
    tcase_add_test(t, test_default);
    tcase_add_test(t, test_options);
    tcase_add_test(t, test_many);
    suite_add_tcase(suite, t);
    SRunner *r = srunner_create(suite);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
