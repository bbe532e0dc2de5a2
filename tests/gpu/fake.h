/* fake: what a test can ask of the fake driver beside CUDA's functions. It finds them with dlsym in the library that
 * $MOEC_CUDA_DRIVER names:
 *
 *     fake_stats_fn *stats = (fake_stats_fn *)dlsym(dlopen(getenv("MOEC_CUDA_DRIVER"), RTLD_NOW), "fake_cuda_stats");
 */
#ifndef MC_TESTS_GPU_FAKE_H
#define MC_TESTS_GPU_FAKE_H

#include <stdint.h>

typedef struct fake_stats {
    uint64_t launches, graph_launches, copies, synchronizations, allocations; /* so far */
    uint64_t device_blocks, device_bytes, host_blocks;                        /* at this moment, like the rest */
    uint64_t contexts, streams, events, modules, graphs, graph_execs;
    uint64_t most_device_bytes;
} fake_stats;

typedef void fake_stats_fn(fake_stats *out);

#endif
