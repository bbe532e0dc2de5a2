/* toolchain: kernel texts to cubins, through NVRTC, which is found at run time. Compiles in parallel; each cubin is
 * kept in a cache under the hash of everything that decides it, so that a model compiled before needs no NVRTC. */
#ifndef MC_CODEGEN_GPU_TOOLCHAIN_H
#define MC_CODEGEN_GPU_TOOLCHAIN_H

#include "ir/diag.h"

typedef struct mc_gpu_source {
    const char *name; /* of the kernel and its function */
    mc_str text;
    uint32_t arch; /* 80, 89, 90, 100 */
    bool spills_allowed;
} mc_gpu_source;

typedef struct mc_gpu_toolchain {
    const char *cache;    /* directory; NULL: none */
    const char *dump_dir; /* gets NAME.ARCH.cu, .ptx, .cubin and .txt (resources, log), all made anew; NULL: nothing */
    unsigned n_threads;   /* 0: the processors this process may use */
} mc_gpu_toolchain;

/* out_cubins[i] is the code of sources[i], in the arena. False: E0702 (no NVRTC: where it was looked for, how to
 * install it), E0703 (a kernel does not compile: its name and NVRTC's log), E0704 (this NVRTC does not know the
 * architecture), E0910 (dump_dir). Remarks R0701: kernels that are slower than they were meant to be. */
bool mc_gpu_toolchain_compile(const mc_gpu_toolchain *t, const mc_gpu_source *sources, size_t n, mc_arena *arena,
                              mc_diags *d, mc_str *out_cubins);

/* The same, with what the compiler said. */
typedef struct mc_gpu_built {
    mc_str cubin, log;
    bool cached; /* it was in the cache */
} mc_gpu_built;
bool mc_gpu_toolchain_build(const mc_gpu_toolchain *t, const mc_gpu_source *sources, size_t n, mc_arena *arena,
                            mc_diags *d, mc_gpu_built *out);

/* "NVRTC 13.0", or "" when there is none: the one of the last compile, else the one that would be used. Says nothing.
 */
const char *mc_gpu_toolchain_name(void);

#endif
