/* ranks: see ranks.h. Replicas of a number hold the same experts, so weights know numbers only. */
#define _GNU_SOURCE
#include "runtime/ranks.h"

#include "runtime/host_cpu.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_RANKS = 1024 };

/* Every expert of every parameter has a slot, and every number of ranks means one. */
static bool
tables_agree(const moec_abi_model *abi)
{
    int64_t n = abi->ep ? abi->ep->n_ranks : 1;
    if (abi->ep && (!n || n > MAX_RANKS || !abi->ep->n_replicas || abi->ep->n_replicas > MAX_RANKS / n)) return false;
    for (uint32_t i = 0; i < abi->n_weights; i++) {
        const moec_abi_weight *w = &abi->weights[i];
        if (w->experts && (w->experts < 0 || !w->rank || w->dims[0] < w->experts / n + (w->experts % n != 0)))
            return false;
    }
    return true;
}

uint32_t
mc_ranks_needed(const moec_abi_model *abi)
{
    return abi->ep ? abi->ep->n_ranks * abi->ep->n_replicas : 1;
}

moec_status
mc_ranks_check(const moec_abi_model *abi, const moec_comm *comm, uint32_t *out_number, mc_fault *error)
{
    if (!tables_agree(abi))
        return mc_fail(error, MOEC_ERR_INTERNAL, "the experts of %s do not fit its ranks", abi->name);
    uint32_t size = comm ? moec_comm_size(comm) : 1, need = mc_ranks_needed(abi);
    *out_number = abi->ep && comm ? moec_comm_rank(comm) % abi->ep->n_ranks : 0;
    if (size == need) return MOEC_OK;
    if (need == 1)
        return mc_fail(error, MOEC_ERR_MISMATCH,
                       "%s is planned for one rank, the group has %u: compile it with --mesh ep=%u", abi->name, size,
                       size);
    if (size == 1)
        return mc_fail(error, MOEC_ERR_MISMATCH,
                       "%s is planned for %u ranks (ep = %u, dp = %u): start it with mpirun -np %u, or compile it with "
                       "--mesh ep=1,dp=1",
                       abi->name, need, abi->ep->n_ranks, abi->ep->n_replicas, need);
    return mc_fail(error, MOEC_ERR_MISMATCH,
                   "%s is planned for %u ranks (ep = %u, dp = %u), the group has %u: start it with mpirun -np %u, or "
                   "compile it for a mesh of %u",
                   abi->name, need, abi->ep->n_ranks, abi->ep->n_replicas, size, need, size);
}

uint32_t
mc_ranks_threads(const moec_comm *comm)
{
    cpu_set_t mine;
    if (!comm || moec_comm_size(comm) == 1) return 0;
    bool threads = strncmp(moec_comm_backend(comm), "threads", 7) == 0;
    uint32_t n = mc_host_cpus(), ranks = threads ? moec_comm_size(comm) : moec_comm_ranks_per_node(comm);
    bool bound = sched_getaffinity(0, sizeof mine, &mine) == 0 && CPU_COUNT(&mine) < sysconf(_SC_NPROCESSORS_ONLN);
    return bound && !threads ? n : n > ranks ? n / ranks : 1;
}

int64_t
mc_weights_whole(const moec_abi_weight *w)
{
    return w->experts ? w->experts : w->dims[0];
}

int64_t
mc_weights_expert(const moec_abi_model *abi, const moec_abi_weight *w, uint32_t number, int64_t slot)
{
    int64_t expert = slot;
    if (abi->ep && abi->ep->round_robin)
        expert = slot * abi->ep->n_ranks + number;
    else if (abi->ep)
        expert = number * w->dims[0] + slot;
    return expert < mc_weights_whole(w) ? expert : -1;
}

char *
mc_weights_path(const moec_abi_model *abi, uint32_t number, const char *path)
{
    char *own = NULL;
    if (!abi->ep || abi->ep->n_ranks == 1) return strdup(path);
    return asprintf(&own, "%s.%u-of-%u", path, number, abi->ep->n_ranks) < 0 ? NULL : own;
}
