/* fake_nccl: what a test can ask of the fake NCCL beside NCCL's functions, found with dlsym as "fake_nccl_stats". */
#ifndef MC_TESTS_GPU_FAKE_NCCL_H
#define MC_TESTS_GPU_FAKE_NCCL_H

#include <stdint.h>

typedef struct fake_nccl_numbers {
    uint64_t groups, messages, bytes;      /* so far; messages and bytes: of sends that met their receive */
    uint64_t mismatches;                   /* sends and receives of different sizes that met */
    uint64_t comms, cliques, groups_alive; /* at this moment */
} fake_nccl_numbers;

typedef void fake_nccl_stats_fn(fake_nccl_numbers *out);

#endif
