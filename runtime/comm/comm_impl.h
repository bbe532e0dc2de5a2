/* comm_impl: what a moec_comm is made of: for the files of this folder, and for tests that put faults under it. */
#ifndef MC_RUNTIME_COMM_COMM_IMPL_H
#define MC_RUNTIME_COMM_COMM_IMPL_H

#include "runtime/comm/comm.h"

/* The first message of a record: a header and as much of the bytes as fit. Always as long, so that headers arrive whole
 * whatever else the two sides disagree about. */
enum { MC_RECORD_FIRST_BYTES = 512, MC_RECORD_MAX_BYTES = 65536 };

typedef struct mc_record_header {
    uint32_t magic, from;
    uint64_t hash, step;
    uint32_t epoch, call;
    uint64_t n_bytes;
} mc_record_header;

enum { MC_RECORD_INLINE_BYTES = MC_RECORD_FIRST_BYTES - sizeof(mc_record_header) };

struct mc_comm_request {
    bool busy, done;
    const char *what;
};

struct moec_comm {
    const mc_comm_backend *backend;
    void *state;
    mc_comm_place place;
    double deadline;
    uint64_t hash, step;
    uint32_t epoch, calls; /* calls: of records, in this step */
    bool at_step;          /* somebody said which step it is */
    moec_status status;    /* MOEC_OK, or what broke it, in fault */
    mc_fault fault;
    mc_comm_request requests[MC_COMM_REQUESTS];
    void *attached;
    void (*end_attached)(void *thing);
    uint32_t *everyone; /* [size] 0, 1, 2, .. */
    /* Of one record at a time; [size] each. */
    mc_comm_run *send, *recv;
    unsigned char *first_out, *first_in; /* MC_RECORD_FIRST_BYTES each */
};

/* Takes the state: it is closed when memory runs out. */
moec_status mc_comm_make(const mc_comm_backend *backend, void *state, const mc_comm_place *place, double deadline,
                         moec_comm **out, mc_fault *error);
/* The deadline of the options, and the ranks of a node put into the place. */
moec_status mc_comm_settle(const moec_comm_options *options, double *out_deadline, mc_fault *error);
moec_status mc_comm_settle_nodes(const moec_comm_options *options, mc_comm_place *place, mc_fault *error);

/* Breaks the comm with this message, tells the others, and gives the status. The first one stays. */
moec_status mc_comm_break(moec_comm *c, moec_status status, const char *format, ...) MOEC_PRINTF(3, 4);
/* The error that broke it. */
moec_status mc_comm_broken(const moec_comm *c, mc_fault *error);
/* " in step 7", or nothing: for the end of a message. */
const char *mc_comm_in_step(const moec_comm *c, char *text, size_t n_bytes);

#endif
