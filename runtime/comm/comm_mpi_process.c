/* Processes of this machine: a stopped rank never ends by itself, and a launcher that is told to let survivors live
 * waits for it for ever. It is only woken: it finds that the group is broken, and reports that itself. A number alone
 * is not enough to know a process by: with the time of its start, and the space that the number is of, it is. */
#define _DEFAULT_SOURCE
#include "runtime/comm/comm_mpi.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* State and start of a process; false when there is none, or the system does not say. */
static bool
look_up(long long pid, char *out_state, long long *out_started)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%lld/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return false;
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = 0;
    const char *at = strrchr(text, ')'); /* names may hold anything */
    if (!at || at[1] != ' ') return false;
    *out_state = at[2];
    at += 2;
    for (int field = 3; field < 22; field++) {
        at = strchr(at, ' ');
        if (!at) return false;
        at++;
    }
    *out_started = strtoll(at, NULL, 10);
    return true;
}

mc_mpi_process
mc_mpi_this_process(void)
{
    mc_mpi_process p = {0};
    struct stat space;
    char state;
    if (stat("/proc/self/ns/pid", &space) != 0 || !look_up((long long)getpid(), &state, &p.started)) return p;
    p.pid = (long long)getpid();
    p.space = (long long)space.st_ino;
    return p;
}

void
mc_mpi_wake(const mc_mpi_process *process)
{
    mc_mpi_process own = mc_mpi_this_process();
    char state;
    long long started;
    if (!process->pid || process->space != own.space || !look_up(process->pid, &state, &started)) return;
    if (state == 'T' && started == process->started) kill((pid_t)process->pid, SIGCONT);
}
