/* emulate: runs a kernel that was compiled for the CPU (fake_nvrtc.c) block by block. Every thread of a block is a
 * fiber on the thread that calls; see README.md. One launch runs at a time in a process.
 *
 *     emulate_kernel *k = emulate_load(cubin, "rmsnorm_64_0");
 *     if (!k || !emulate_run(k, &launch, params)) puts(emulate_error());
 */
#ifndef MC_TESTS_GPU_EMULATE_H
#define MC_TESTS_GPU_EMULATE_H

#include "codegen/gpu/kernels/host_state.cuh"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The code that fake_nvrtc.c makes: this, then a shared library. */
#define EMULATE_MAGIC "moec fake cubin"
typedef struct emulate_image {
    char magic[16];
    uint64_t n_bytes;   /* of the library; 0: the kernel uses the copy engine and does not run here */
    uint32_t arch;      /* 80, 89, ... */
    uint32_t n_threads; /* of a block at most: its launch bounds */
    char name[224];
} emulate_image;

typedef struct emulate_kernel {
    emulate_image image;
    void *library;
    void (*function)(void);
    struct mc_host_state *host;
} emulate_kernel;

typedef struct emulate_launch {
    uint32_t grid[3], block[3];
    uint32_t shared_bytes; /* dynamic */
    uint32_t order;        /* the threads of block b run in the order (b + order) mod 3: up, down, mixed */
} emulate_launch;

/* The function of this name in the code, whose length it says itself. NULL: emulate_error says why. */
emulate_kernel *emulate_load(const void *code, const char *name);
void emulate_unload(emulate_kernel *kernel); /* NULL is allowed */
/* params[0]: its mc_args. */
bool emulate_run(emulate_kernel *kernel, const emulate_launch *launch, void *const *params);
/* Why the last failed call of this thread failed. */
const char *emulate_error(void);
void emulate_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Switches from one thread of a kernel to another since the start. */
uint64_t emulate_switches(void);

/* emulate_warp.c: what `n` lanes bring along, done at once. */
void emulate_warp_work(enum mc_host_kind kind, void *const *lanes, int n);

/* emulate_switch.c: goes on at *to and leaves where to come back in *from. */
typedef struct emulate_context {
    void *sp; /* or a ucontext_t */
} emulate_context;
void emulate_switch(emulate_context *from, emulate_context *to);
/* A context that calls entry on this stack; entry does not return. */
void emulate_context_init(emulate_context *c, void *stack, size_t n_bytes, void (*entry)(void));

#endif
