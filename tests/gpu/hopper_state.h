/* hopper_state: what the files of the machine (hopper_machine.h) share. */
#ifndef MC_TESTS_GPU_HOPPER_STATE_H
#define MC_TESTS_GPU_HOPPER_STATE_H

#include "tests/gpu/emulate.h"
#include "tests/gpu/hopper_machine.h"

enum {
    MAX_THREADS = 384,
    LANES = 32,
    WARPGROUP = 128,
    STACK_BYTES = 256 << 10,
    SHARED_BYTES = 227 << 10,
    SHARED_BEGIN = 0x3080,
    MAX_BARRIERS = 32,
    MAX_PRODUCTS = 32,
    MAX_BOXES = 512,
    LINE = 128,
    ROOM_OF_FIFO = 4096,
    REGISTERS = 65536,
    REGISTERS_AT_ENTRY = 168 /* 65536 / 384, in eights */
};

typedef struct barrier {
    unsigned address, count, pending;
    int bytes; /* announced and not yet there */
    unsigned phase;
} barrier;

typedef struct operation { /* of a thread's copies, in order: a copy, or an arrival after the copies before it */
    unsigned to;           /* shared address, or barrier */
    const void *from;
    bool arrival;
} operation;

typedef struct box {
    unsigned to, barrier;
    struct hopper_tensor tensor;
    int at[3];
} box;

typedef struct product {
    float *d;
    int n, accumulate, is_f16, batch;
    uint64_t a, b;
} product;

enum { RUNS, AT_BARRIER, TOGETHER, ENDED };

typedef struct thread {
    emulate_context context;
    void *fake_stack;
    struct mc_host_index index;
    int lane, state;
    unsigned barrier, parity; /* AT_BARRIER */
    operation *fifo;
    int fifo_from, fifo_to;
    product products[MAX_PRODUCTS];
    int n_products, batch, registers;
    bool fenced, begun;
} thread;

typedef struct warp {
    int n_here;
    enum mc_host_kind kind;
    void *lanes[LANES];
} warp;

extern struct machine {
    const struct hopper_launch *launch;
    struct mc_host_state *host;
    void (*body)(void *);
    void *call;
    emulate_context main;
    void *main_fake_stack;
    const void *main_stack;
    size_t main_bytes;
    unsigned char *stacks, *shared;
    thread threads[MAX_THREADS];
    warp warps[MAX_THREADS / LANES];
    int n_at_block, n_ended;
    barrier barriers[MAX_BARRIERS];
    int n_barriers;
    box boxes[MAX_BOXES];
    int n_boxes, n_copies;
    bool copied; /* somebody writes shared memory by copies of threads */
    thread *current;
    uint64_t seed;
    long long counts[3];
    bool failed;
} machine;

/* Ends the launch; does not return. */
void machine_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
unsigned machine_random_below(unsigned n);
/* Leaves the thread that runs. */
void machine_leave(void);
void machine_together(enum mc_host_kind kind, void *mine);
unsigned char *machine_shared_at(unsigned address, unsigned n_bytes);
unsigned machine_swizzled(unsigned address);
barrier *machine_find_barrier(unsigned address);
/* Something that is under way may be done. */
void machine_finish_something(void);

#endif
