/* hopper_machine: what of sm_90a codegen/gpu/kernels/hopper.cuh is made of, for a CPU: barriers of shared memory,
 * copies that finish later, wgmma that read shared memory later. Written from the PTX ISA and not from the kernel, so
 * that the two can disagree. A block's threads are fibers, and which one goes on, and when a copy is done, is a matter
 * of a seed: whatever order the kernel leaves open will occur.
 *
 * What it finds: barriers that nobody completes, arrivals too many, a stage that is written before it has been read or
 * read before it is full (bytes under way are NaN), wrong layouts of shared memory, a missing fence. What it cannot:
 * what the assembler makes of the kernel, and how fast it is. */
#ifndef MC_TESTS_GPU_HOPPER_MACHINE_H
#define MC_TESTS_GPU_HOPPER_MACHINE_H

#include "codegen/gpu/kernels/host_state.cuh"

#ifdef __cplusplus
extern "C" {
#endif

/* What a tensor map holds here instead of the driver's encoding. Elements of 16 bits, 128-byte swizzle. */
struct hopper_tensor {
    const void *base;
    int rank;
    int dims[3], box[3]; /* innermost first */
};

struct hopper_launch {
    int grid, threads;
    unsigned seed;
    int late; /* wgmma read their operands when they are waited for; otherwise when they are started */
};

/* Runs body(call) in every thread of every block; false: hopper_machine_error says why. */
int hopper_machine_run(const struct hopper_launch *launch, struct mc_host_state *host, void (*body)(void *),
                       void *call);
const char *hopper_machine_error(void);
/* Since the start: wgmma of threads, copies of 16 bytes, boxes. */
void hopper_machine_counts(long long counts[3]);

/* The instructions; hopper_host.cuh gives them the names that the kernel knows. */
unsigned hopper_machine_address(const void *shared);
void hopper_machine_barrier_init(unsigned barrier, unsigned arrivals);
void hopper_machine_arrive(unsigned barrier, unsigned bytes);
void hopper_machine_arrive_copies(unsigned barrier);
void hopper_machine_wait(unsigned barrier, unsigned parity);
void hopper_machine_copy(unsigned shared, const void *global, int valid);
void hopper_machine_copies_wait(void);
void hopper_machine_tensor(unsigned shared, const void *map, int x, int y, int z, unsigned barrier);
void hopper_machine_fence_async(void);
void hopper_machine_registers(int n, int more);
void hopper_machine_wgmma_begin(void);
void hopper_machine_wgmma(float *d, int n, unsigned long long a, unsigned long long b, int accumulate, int is_f16);
void hopper_machine_wgmma_commit(void);
void hopper_machine_wgmma_wait(int n);

#ifdef __cplusplus
}
#endif

#endif
