/* comm_load: backends that are files of their own, so that nothing else links what they need (MPI). */
#define _GNU_SOURCE
#include "runtime/comm/comm.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, NAME_BYTES = 32, KNOWN_VERSIONS = 64 };

static const char query_name[] = "moec_comm_backend_query";

/* What a message says of where it was looked. */
typedef struct search {
    char file[NAME_BYTES + 32];
    char looked[512];
    char why[384]; /* a file that is there and cannot be used: what the linker says */
    void *library;
} search;

static const char *
advice(const char *name)
{
    if (strcmp(name, "mpi") == 0) return "it comes with moec and needs Open MPI (Debian: apt install openmpi-bin)";
    if (strcmp(name, "mpich") == 0) return "it comes with moec and needs MPICH (Debian: apt install mpich)";
    return "backends are local, mpi and nccl";
}

static void
try_file(search *s, const char *path, bool is_file)
{
    if (s->library) return;
    size_t used = strlen(s->looked);
    snprintf(s->looked + used, sizeof s->looked - used, "%s%.200s", used ? ", " : "",
             is_file ? path : "the linker's folders");
    if (is_file && access(path, F_OK) != 0) return;
    s->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const char *why = s->library ? NULL : dlerror();
    if (is_file && why) snprintf(s->why, sizeof s->why, "%s", why);
}

/* Beside `file`, and in ../lib/moec from there. */
static void
try_beside(search *s, const char *file)
{
    char path[PATH_BYTES];
    const char *slash = strrchr(file, '/');
    if (!slash || slash - file > PATH_BYTES / 2) return;
    int n = (int)(slash - file);
    snprintf(path, sizeof path, "%.*s/%s", n, file, s->file);
    try_file(s, path, true);
    snprintf(path, sizeof path, "%.*s/../lib/moec/%s", n, file, s->file);
    try_file(s, path, true);
}

static void
look(search *s)
{
    char program[PATH_BYTES];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = 0;
    if (n > 0) try_beside(s, program);
    Dl_info here;
    if (dladdr(query_name, &here) && here.dli_fname && strcmp(here.dli_fname, program) != 0)
        try_beside(s, here.dli_fname);
    try_file(s, s->file, false);
}

static moec_status
check_version(mc_comm_backend_query_fn *query, const char *file, const mc_comm_backend **out, mc_fault *error)
{
    const mc_comm_backend *b = query(MC_COMM_BACKEND_VERSION);
    uint32_t theirs = 0;
    for (uint32_t v = 1; !b && v <= KNOWN_VERSIONS && !theirs; v++)
        if (query(v)) theirs = v;
    if (b && b->version != MC_COMM_BACKEND_VERSION) theirs = b->version;
    if (theirs)
        return mc_fail(error, MOEC_ERR_MISMATCH,
                       "%.300s is of interface version %u, this program of version %u: use the file that came with it",
                       file, theirs, MC_COMM_BACKEND_VERSION);
    if (!b)
        return mc_fail(error, MOEC_ERR_MISMATCH,
                       "%.300s does not serve interface version %u of this program: use the file that came with it",
                       file, MC_COMM_BACKEND_VERSION);
    if (b->n_bytes != sizeof *b)
        return mc_fail(
            error, MOEC_ERR_MISMATCH,
            "%.300s gives a table of %u bytes, this program knows one of %zu: use the file that came with it", file,
            b->n_bytes, sizeof *b);
    *out = b;
    return MOEC_OK;
}

static moec_status
use(const search *s, const char *file, const mc_comm_backend **out, mc_fault *error)
{
    mc_comm_backend_query_fn *query = NULL;
    void *address = dlsym(s->library, query_name);
    memcpy(&query, &address, sizeof address); /* POSIX lets dlsym give functions; C does not say how to convert */
    moec_status status =
        query ? check_version(query, file, out, error)
              : mc_fail(error, MOEC_ERR_MISMATCH, "%.300s has no %s: it is no backend of moec's", file, query_name);
    if (status != MOEC_OK) dlclose(s->library); /* one that is used stays: MPI cannot be unloaded */
    return status;
}

moec_status
mc_comm_load(const char *name, const mc_comm_backend **out, mc_fault *error)
{
    search s = {.library = NULL};
    char variable[NAME_BYTES + 16] = "MOEC_COMM_";
    size_t n = strlen(name), prefix = strlen(variable);
    bool plain = n > 0 && n < NAME_BYTES;
    for (size_t i = 0; plain && i < n; i++) {
        plain = islower((unsigned char)name[i]) || isdigit((unsigned char)name[i]) || name[i] == '_';
        variable[prefix + i] = (char)toupper((unsigned char)name[i]);
    }
    *out = NULL;
    if (strcmp(name, "threads") == 0)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "ranks that are threads of one process: moec_comm_threads makes them");
    if (!plain) return mc_fail(error, MOEC_ERR_ARGUMENT, "no backend \"%.40s\" of comm: %s", name, advice(""));
    snprintf(s.file, sizeof s.file, "libmoec_comm_%s.so", name);
    const char *given = getenv(variable);
    if (given && *given)
        try_file(&s, given, true);
    else
        look(&s);
    if (s.library) return use(&s, given && *given ? given : s.file, out, error);
    if (s.why[0])
        return mc_fail(error, MOEC_ERR_NOT_FOUND, "the backend %s of comm cannot be loaded: %s; %s", name, s.why,
                       advice(name));
    if (given && *given)
        return mc_fail(error, MOEC_ERR_NOT_FOUND, "no %s: looked for %s as %s says; %s", s.file, s.looked, variable,
                       advice(name));
    return mc_fail(error, MOEC_ERR_NOT_FOUND, "no %s: looked for %s; %s", s.file, s.looked, advice(name));
}
