#define _POSIX_C_SOURCE 200809L
/* The MPI backend: joining, leaving, and the table of its functions. Nothing here waits without a deadline: MPI's own
 * beginning and end run in threads that can be left behind, everything between is begun and then tested.
 *
 * After a failure MPI is not ended, because its end waits for every rank; the launcher cleans up when the process
 * exits. */
#include "runtime/comm/comm_mpi.h"

#include "runtime/base/clock.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { GREETING_TAG = 2 };

/* What ranks tell each other first. */
typedef struct greeting {
    char version[32];
    char node[MPI_MAX_PROCESSOR_NAME];
    mc_mpi_process process;
} greeting;

typedef struct beginning {
    int code, level;
} beginning;

static void
begin_mpi(void *opaque)
{
    beginning *b = opaque;
    b->code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &b->level);
}

static void
end_mpi(void *unused)
{
    (void)unused;
    MPI_Finalize();
}

/* A host program may have begun MPI: then it is used, and left to it. */
static moec_status
take_mpi(mc_mpi *m, mc_fault *error)
{
    int begun = 0, ended = 0, level = 0, is_main = 0;
    MPI_Initialized(&begun);
    MPI_Finalized(&ended);
    if (ended)
        return mc_fail(error, MOEC_ERR_UNSUPPORTED,
                       "MPI has been ended in this process, by moec_comm_close or the program, and cannot begin again: "
                       "keep one comm open");
    if (begun) {
        MPI_Query_thread(&level);
        MPI_Is_thread_main(&is_main);
        if (level < MPI_THREAD_SERIALIZED && !is_main)
            return mc_fail(error, MOEC_ERR_UNSUPPORTED,
                           "MPI was begun for its main thread only: open the comm there, or begin MPI with "
                           "MPI_THREAD_SERIALIZED");
        return MOEC_OK;
    }
    beginning *b = calloc(1, sizeof *b);
    if (!b) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    if (!mc_mpi_within(m->deadline, begin_mpi, b)) /* b stays with the thread */
        return mc_fail(error, MOEC_ERR_COMM, "not every rank has begun MPI within %g s", m->deadline);
    int code = b->code;
    level = b->level;
    free(b);
    if (code != MPI_SUCCESS) return mc_mpi_fail(error, code, "MPI could not begin");
    m->ours = true;
    if (level < MPI_THREAD_SERIALIZED)
        return mc_fail(error, MOEC_ERR_UNSUPPORTED, "this MPI was built without support for threads");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    return MOEC_OK;
}

/* "Open MPI 4.1.4" of "Open MPI v4.1.4, package: ..."; "MPICH 4.0.2" of "MPICH Version:\t4.0.2\n..." */
static void
name_mpi(char *out, size_t n_bytes)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    MPI_Get_library_version(text, &length);
    text[strcspn(text, ",\n")] = 0;
    char *number = text + strcspn(text, "0123456789"), *end = number;
    while (end > text && strchr(" \t:v", end[-1])) end--;
    if (end - text > 8 && strncmp(end - 8, " Version", 8) == 0) end -= 8;
    snprintf(out, n_bytes, "mpi (%.*s%s%.*s)", (int)(end - text), text, *number ? " " : "", (int)strcspn(number, " \t"),
             number);
}

/* Started by the launcher of another MPI, every process is a group of its own. */
static moec_status
check_launcher(const mc_mpi *m, const mc_comm_place *place, mc_fault *error)
{
    static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; m->size == 1 && i < sizeof variables / sizeof *variables; i++) {
        const char *value = getenv(variables[i]);
        if (value && strtol(value, NULL, 10) > 1)
            return mc_fail(error, MOEC_ERR_MISMATCH,
                           "%s says that %s processes were started, but %s knows of this one only: use the launcher of "
                           "that MPI, or set MOEC_COMM_MPI to a libmoec_comm_mpi.so made with the launcher's",
                           variables[i], value, place->name);
    }
    return MOEC_OK;
}

static moec_status
make_room(mc_mpi *m, mc_fault *error)
{
    size_t n = m->size, most = 2 * n;
    m->statuses = calloc(most, sizeof *m->statuses);
    m->indices = calloc(most, sizeof *m->indices);
    m->turns = calloc(n, sizeof *m->turns);
    m->said_word = calloc(n, sizeof(MPI_Request));
    m->left = calloc(n, sizeof *m->left);
    m->processes = calloc(n, sizeof *m->processes);
    bool good = m->statuses && m->indices && m->turns && m->said_word && m->left && m->processes;
    for (int i = 0; i < MC_COMM_REQUESTS; i++) {
        m->slots[i].requests = calloc(most, sizeof(MPI_Request));
        m->slots[i].parts = calloc(most, sizeof(mc_mpi_part));
        good = good && m->slots[i].requests && m->slots[i].parts;
    }
    return good ? MOEC_OK : mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
}

static void
free_room(mc_mpi *m)
{
    for (int i = 0; i < MC_COMM_REQUESTS; i++) {
        free(m->slots[i].requests);
        free(m->slots[i].parts);
    }
    free(m->statuses);
    free(m->indices);
    free(m->turns);
    free(m->said_word);
    free(m->left);
    free(m->processes);
    free(m);
}

static moec_status
make_communicator(const mc_mpi *m, MPI_Comm *out, mc_fault *error)
{
    MPI_Request request;
    int code = MPI_Comm_idup(MPI_COMM_WORLD, out, &request);
    if (code != MPI_SUCCESS) return mc_mpi_fail(error, code, "no communicator could be made");
    if (!mc_mpi_finish(&request, m->deadline))
        return mc_fail(error, MOEC_ERR_COMM, "not every rank has joined within %g s", m->deadline);
    MPI_Comm_set_errhandler(*out, MPI_ERRORS_RETURN);
    return MOEC_OK;
}

/* Everybody to everybody: who is there, of what version, on which node. It also makes all connections. */
static moec_status
greet(mc_mpi *m, greeting *all, mc_fault *error)
{
    mc_mpi_slot *slot = &m->slots[0];
    int n = 0, done = 0, length = 0, code = MPI_SUCCESS;
    greeting *own = &all[m->rank];
    strncpy(own->version, MOEC_VERSION_STRING, sizeof own->version - 1);
    MPI_Get_processor_name(own->node, &length);
    own->process = mc_mpi_this_process();
    for (uint32_t r = 0; r < m->size && code == MPI_SUCCESS; r++)
        if (r != m->rank)
            code =
                MPI_Irecv(&all[r], (int)sizeof *all, MPI_BYTE, (int)r, GREETING_TAG, m->control, &slot->requests[n++]);
    for (uint32_t r = 0; r < m->size && code == MPI_SUCCESS; r++)
        if (r != m->rank)
            code = MPI_Isend(own, (int)sizeof *own, MPI_BYTE, (int)r, GREETING_TAG, m->control, &slot->requests[n++]);
    double until = mc_seconds() + m->deadline;
    while (code == MPI_SUCCESS && !done && mc_seconds() < until) {
        code = MPI_Testall(n, slot->requests, &done, m->statuses);
        if (!done) sched_yield();
    }
    if (code != MPI_SUCCESS) return mc_mpi_fail(error, code, "ranks could not greet each other");
    for (uint32_t r = 0; r < m->size; r++) {
        if (!all[r].version[0])
            return mc_fail(error, MOEC_ERR_COMM, "rank %u has not joined within %g s", r, m->deadline);
        if (strncmp(all[r].version, own->version, sizeof own->version) != 0)
            return mc_fail(error, MOEC_ERR_MISMATCH, "rank %u has moec %.31s, rank %u has moec %s: use one version", r,
                           all[r].version, m->rank, own->version);
    }
    return done ? MOEC_OK : mc_fail(error, MOEC_ERR_COMM, "not every rank has joined within %g s", m->deadline);
}

/* Neighbours: when every node has the same number of consecutive ranks, that number, otherwise 1. */
static uint32_t
count_neighbours(const greeting *all, uint32_t size)
{
    uint32_t n = 1;
    while (n < size && strcmp(all[n].node, all[0].node) == 0) n++;
    for (uint32_t r = 0; size % n == 0 && r < size; r++) {
        bool begins = r % n == 0;
        if (begins && r && strcmp(all[r].node, all[r - 1].node) == 0) return 1;
        if (!begins && strcmp(all[r].node, all[r - 1].node) != 0) return 1;
    }
    return size % n == 0 ? n : 1;
}

static moec_status
choose_neighbours(const mc_mpi *m, const greeting *all, uint32_t *out, mc_fault *error)
{
    const char *text = getenv("MOEC_RANKS_PER_NODE");
    *out = count_neighbours(all, m->size);
    if (!text || !*text) return MOEC_OK;
    char *end;
    unsigned long n = strtoul(text, &end, 10);
    if (*end || n == 0 || n > m->size || m->size % n)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "MOEC_RANKS_PER_NODE is '%s': give a divisor of the %u ranks", text,
                       m->size);
    *out = (uint32_t)n;
    return MOEC_OK;
}

/* What is known of the ranks of this node: which processes they are, and whether they outnumber the processors (then an
 * MPI that never yields would leave them none). */
static void
know_neighbours(mc_mpi *m, const greeting *all)
{
    long n = 0;
    bool yields = false;
    for (uint32_t r = 0; r < m->size; r++) {
        if (strcmp(all[r].node, all[m->rank].node) != 0) continue;
        m->processes[r] = all[r].process;
        n++;
    }
#ifdef OPEN_MPI
    yields = true;
#endif
    m->until_yields = yields || n <= sysconf(_SC_NPROCESSORS_ONLN) ? 0.01 : 0;
}

static moec_status
join(mc_mpi *m, mc_comm_place *place, mc_fault *error)
{
    int rank = 0, size = 0;
    moec_status s = take_mpi(m, error);
    if (s != MOEC_OK) return s;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    place->rank = m->rank = (uint32_t)rank;
    place->size = m->size = (uint32_t)size;
    name_mpi(place->name, sizeof place->name);
    s = check_launcher(m, place, error);
    if (s == MOEC_OK && size > MC_COMM_MAX_RANKS)
        s = mc_fail(error, MOEC_ERR_UNSUPPORTED, "%d ranks: at most %d are possible", size, MC_COMM_MAX_RANKS);
    if (s == MOEC_OK) s = make_room(m, error);
    if (s == MOEC_OK) s = make_communicator(m, &m->rows, error);
    if (s == MOEC_OK) s = make_communicator(m, &m->control, error);
    if (s == MOEC_OK) s = mc_mpi_listen(m, error);
    if (s != MOEC_OK) return s;
    greeting *all = calloc(m->size, sizeof *all);
    if (!all) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    s = greet(m, all, error);
    if (s != MOEC_OK) return s; /* messages may still arrive in it: never freed */
    know_neighbours(m, all);
    s = choose_neighbours(m, all, &place->ranks_per_node, error);
    free(all);
    return s;
}

static moec_status
open_mpi(const moec_comm_options *options, double deadline, void **out_state, mc_comm_place *out, mc_fault *error)
{
    (void)options; /* what they say is for every backend, or for another one */
    mc_mpi *m = calloc(1, sizeof *m);
    if (!m) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    m->deadline = deadline;
    m->rows = m->control = MPI_COMM_NULL;
    m->word = MPI_REQUEST_NULL;
    m->is_quiet = true;
    /* After a failure MPI may still write into it: it stays until the process ends. */
    moec_status s = join(m, out, error);
    if (s == MOEC_OK) *out_state = m;
    return s;
}

static void
close_mpi(void *state, bool clean)
{
    mc_mpi *m = state;
    if (clean && mc_mpi_leave(m)) {
        MPI_Cancel(&m->word);
        MPI_Wait(&m->word, MPI_STATUS_IGNORE);
        MPI_Comm_free(&m->rows);
        MPI_Comm_free(&m->control);
        if (m->ours) mc_mpi_within(m->deadline, end_mpi, NULL);
        free_room(m);
        return;
    }
    mc_mpi_abort(m, "it left the group"); /* the state stays until the process ends: MPI knows its buffers */
    mc_mpi_linger(m);
}

static const mc_comm_backend backend = {
    .n_bytes = sizeof(mc_comm_backend),
    .version = MC_COMM_BACKEND_VERSION,
    .open = open_mpi,
    .close = close_mpi,
    .begin = mc_mpi_begin,
    .test = mc_mpi_test,
    .late = mc_mpi_late,
    .rest = mc_mpi_rest,
    .abort = mc_mpi_abort,
    .aborted = mc_mpi_aborted,
};

MOEC_API mc_comm_backend_query_fn moec_comm_backend_query;

const mc_comm_backend *
moec_comm_backend_query(uint32_t version)
{
    return version == MC_COMM_BACKEND_VERSION ? &backend : NULL;
}
