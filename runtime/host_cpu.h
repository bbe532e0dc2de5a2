/* host_cpu: how many processors this process may use, and whether they can run a given artefact. */
#ifndef MC_RUNTIME_HOST_CPU_H
#define MC_RUNTIME_HOST_CPU_H

#include "runtime/base/file.h"

/* Processors of the affinity mask, limited by the cgroup's CPU quota; at least 1. */
uint32_t mc_host_cpus(void);

/* features: comma-separated names as LLVM writes them, e.g. "avx2,fma". cpu and model are for the message.
 * Errors: UNSUPPORTED. */
moec_status mc_host_has(const char *features, const char *cpu, const char *model, mc_fault *error) MOEC_MUST_USE;

#endif
