/* fake: what a test can ask of the fake driver beside CUDA's functions. It finds them with dlsym in the library that
 * $MOEC_CUDA_DRIVER names:
 *
 *     fake_stats_fn *stats = (fake_stats_fn *)dlsym(dlopen(getenv("MOEC_CUDA_DRIVER"), RTLD_NOW), "fake_cuda_stats");
 */
#ifndef MC_TESTS_GPU_FAKE_H
#define MC_TESTS_GPU_FAKE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct fake_stats {
    uint64_t launches, graph_launches, copies, synchronizations, allocations; /* so far */
    uint64_t device_blocks, device_bytes, host_blocks;                        /* at this moment, like the rest */
    uint64_t contexts, streams, events, modules, graphs, graph_execs;
    uint64_t most_device_bytes;
} fake_stats;

typedef void fake_stats_fn(fake_stats *out);

/* Work of another library on a stream (CUstream), which gives a CUresult: found as "fake_cuda_enqueue". `done` is
 * asked, in whatever thread, until it says true; what follows on the stream waits for that. It may touch the device's
 * memory and must not call the driver. */
typedef bool fake_done_fn(void *argument);
typedef int fake_enqueue_fn(void *stream, fake_done_fn *done, void *argument);

#endif
