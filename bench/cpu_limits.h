/* cpu_limits: what this machine can do right now, in the same process and on the same threads as what is compared with
 * it: FMA rate of a register-only loop and read bandwidth of memory. */
#ifndef MC_BENCH_CPU_LIMITS_H
#define MC_BENCH_CPU_LIMITS_H

#include "codegen/cpu/kb.h"
#include "codegen/cpu/llvm_jit.h"

enum { BENCH_MAX_THREADS = 64, LIMITS_TOP = 6 };

/* A fixed team of threads that runs one job at a time. Jobs are timed in the CPU time of the slowest thread, so that
 * other processes of a shared machine do not count. */
typedef struct team team;
typedef void team_job(void *context, int thread, int n_threads);
team *team_create(int n_threads);
void team_destroy(team *t);
double team_run(team *t, team_job *job, void *context); /* seconds */
int team_size(const team *t);

/* Adds the two measuring kernels to a module:
 *   fma_loop   ptr 0: 64 bytes of f32 to start from and end in; i 0: turns. 8 * 12 vector FMAs a turn
 *   read_loop  ptr 0: memory, ptr 1: 64 bytes for the sum; i 0: bytes a stream, a multiple of 512; 4 streams end to end
 */
void bench_add_limits(mc_kb *kb);
/* A kernel of a loaded module; ends the program when it has none of this name. */
moec_kernel_fn *bench_kernel(mc_jit *jit, const char *name, mc_diags *diags);

typedef struct limits {
    team *team;
    moec_kernel_fn *fma_loop, *read_loop;
    int vl;
    double top[LIMITS_TOP], best; /* FLOP/s: the greatest seen, descending; best is the last, lest one odd reading of a
                                   * clock become the yardstick */
} limits;

double limits_fma(limits *l);                                      /* FLOP/s now, all threads */
bool limits_quiet(limits *l);                                      /* within 0.7 % of `best`? */
double limits_read(limits *l, const void *memory, size_t n_bytes); /* bytes/s */

#endif
