/* traffic: how many groups of ranks a token reaches when its experts are drawn evenly: what every byte count is made
 * of. Counted without simulation, so that a plan is exact in what it assumes. */
#ifndef MC_PASSES_EP_TRAFFIC_H
#define MC_PASSES_EP_TRAFFIC_H

#include <stdbool.h>
#include <stdint.h>

/* What a router chooses: k different experts of `experts`; with groups > 1 only of the `keep` best of so many equal
 * runs. */
typedef struct mc_ep_choice {
    int64_t experts, k;
    int64_t groups, keep; /* 0 or 1 groups: no limit */
} mc_ep_choice;

/* The expected number of units (ranks, or nodes) that hold at least one of a token's experts. Each holds an equal run
 * of experts or, when spread, every units-th. A limit whose groups and units do not nest is left out: more units. */
double mc_ep_hits(const mc_ep_choice *choice, int64_t units, bool spread);
/* The most units that a token can reach. */
int64_t mc_ep_reach(const mc_ep_choice *choice, int64_t units, bool spread);

#endif
