/* fake_nccl_impl: the parts of the fake NCCL among themselves. One lock over everything; the driver's lock is taken
 * before it (the driver asks for work), never after. */
#ifndef MC_TESTS_GPU_FAKE_NCCL_IMPL_H
#define MC_TESTS_GPU_FAKE_NCCL_IMPL_H

#include "runtime/comm/nccl_api.h"
#include "tests/gpu/fake.h"
#include "tests/gpu/fake_nccl.h"

enum { FAKE_MAX_RANKS = 64, FAKE_TEXT = 512 };

/* Prototypes of all entry points. */
#define MC_NCCL_FN(type, name, parameters) __attribute__((visibility("default"))) type name parameters;
#include "runtime/comm/nccl_api.def"
#undef MC_NCCL_FN

typedef struct fake_op {
    struct fake_op *next; /* in its group */
    struct fake_op *next_posted;
    struct fake_group *group;
    unsigned char *data;
    size_t n_bytes;
    int peer;
    bool receives;
} fake_op;

/* The calls between ncclGroupStart and ncclGroupEnd, for one stream. */
typedef struct fake_group {
    ncclComm comm;
    CUstream stream;
    fake_op *ops;
    unsigned n_left; /* not met yet */
    unsigned number; /* of the rank's groups, from 1 */
    bool posted;
    double since; /* when the stream reached it */
} fake_group;

/* The ranks that were given the same id. */
typedef struct fake_clique {
    struct fake_clique *next;
    ncclUniqueId id;
    int n_ranks, n_joined, n_alive;
    ncclComm ranks[FAKE_MAX_RANKS];
    fake_op *posted; /* that wait for their other half, in the order in which they were reached */
} fake_clique;

struct ncclComm_st {
    fake_clique *clique;
    int rank;
    ncclResult error; /* what ncclCommGetAsyncError says from now on */
    char text[FAKE_TEXT];
    int busy;           /* so often it still says ncclInProgress */
    fake_group *launch; /* goes to the stream when it is no longer busy */
    unsigned n_groups, n_alive;
    bool joined, finalized, gone; /* gone: aborted or destroyed; freed with its last group */
};

extern fake_nccl_numbers fake_nccl_now;

void fake_nccl_lock(void);
void fake_nccl_unlock(void);
int fake_nccl_number(const char *variable, int otherwise);
/* Sets the rank's error, once, with a text that goes to standard error too. */
void fake_nccl_break(ncclComm comm, ncclResult error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Whether the group is done; the driver asks when the stream has reached it. */
fake_done_fn fake_group_done;
void fake_group_free(fake_group *g);
/* Whether this rank's group of this number is the one that $variable names (rank:group or rank:group:value). */
bool fake_is_chosen(const char *variable, int rank, unsigned number, int *out_value);

#endif
