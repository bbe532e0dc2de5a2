/* comm_faults: a backend of comm that wraps another's and lets things go wrong: slow ranks, stopped and dying ones,
 * wrong sizes and bytes. For one rank's comm, right after it was made:
 *
 *     mc_comm_faults f = {.kind = MC_COMM_DIES, .at = 3};     at its third exchange
 *     mc_comm_inject(comm, &f);
 */
#ifndef MC_SUPPORT_COMM_FAULTS_H
#define MC_SUPPORT_COMM_FAULTS_H

#include "runtime/comm/comm.h"

typedef enum mc_comm_fault_kind {
    MC_COMM_NO_FAULT = 0,
    MC_COMM_DIES,   /* leaves the group without a word; its own calls fail */
    MC_COMM_STOPS,  /* does nothing for `seconds`, then goes on */
    MC_COMM_SHORT,  /* sends a byte less than it should, to everybody */
    MC_COMM_SPOILS, /* byte `offset` of whatever it sends is another (in its buffers too) */
    MC_COMM_FAILS   /* the backend reports an error */
} mc_comm_fault_kind;

typedef struct mc_comm_faults {
    mc_comm_fault_kind kind;
    uint32_t at; /* the exchange at which it happens: 1, 2, .. (a record above 472 bytes takes two) */
    double seconds;
    size_t offset;
    /* Every exchange begins, and ends, up to so much later: other orders of arrival for other seeds. 0: no delays. */
    double longest_delay;
    uint64_t seed;
} mc_comm_faults;

/* Wraps the comm's backend until it is closed. False: no memory. */
bool mc_comm_inject(moec_comm *comm, const mc_comm_faults *faults);
/* Exchanges that this rank has begun since: at most this many values of `at` make a difference. */
uint32_t mc_comm_begun(const moec_comm *comm);

#endif
