// host_state: what a kernel that was compiled for the CPU and the program that runs it (tests/gpu/emulate.c) share.
// Plain C.
#pragma once

/* What the threads of a warp do together. */
enum mc_host_kind {
    MC_HOST_NOTHING,
    MC_HOST_SYNC_WARP,
    MC_HOST_SHFL,
    MC_HOST_SHFL_XOR,
    MC_HOST_SHFL_UP,
    MC_HOST_SHFL_DOWN,
    MC_HOST_BALLOT,
    MC_HOST_LDMATRIX,
    MC_HOST_LDMATRIX_TRANS,
    MC_HOST_MMA_BF16,
    MC_HOST_MMA_F16,
    MC_HOST_MMA_TF32,
    MC_HOST_SYNC_BLOCK
};

/* What one thread brings along, by kind. */
struct mc_host_shuffle { /* SHFL*: result = x of lane `from` */
    void *result;
    const void *x;
    int n_bytes, from;
};
struct mc_host_vote { /* BALLOT: result has the bits of all lanes */
    unsigned result, mine;
};
struct mc_host_matrices { /* LDMATRIX* */
    unsigned *r;
    const void *row;
};
struct mc_host_mma {
    float *d;
    const unsigned *a, *b;
};

struct mc_host_index {
    unsigned x, y, z;
};

struct mc_host_state {
    struct mc_host_index thread, block, block_dim, grid_dim; /* of the thread that runs */
    int lane;
    unsigned char *dynamic_shared;
    unsigned char *shared, *shared_end; /* all variables of the kernel in shared memory */
    /* Returns when all threads of the warp (SYNC_BLOCK: of the block) have come to it. */
    void (*together)(enum mc_host_kind kind, void *mine);
    void (*copy)(void *to, const void *from); /* 16 bytes, at the next wait; from NULL: zeros */
    void (*commit)(void);
    void (*wait)(int n);
    void (*fail)(const char *what); /* ends the launch; does not return */
};
