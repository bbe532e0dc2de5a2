/* plan_traffic: what a plan would meet: recorded or made-up tokens on so many ranks, and places balanced for a trace.
 */
#ifndef MC_DRIVER_PLAN_TRAFFIC_H
#define MC_DRIVER_PLAN_TRAFFIC_H

#include "driver/cli.h"
#include "passes/ep/plan.h"
#include "passes/ep/simulate.h"
#include "runtime/trace.h"

typedef struct mc_plan_traffic {
    int64_t ranks; /* --simulate; 0: no simulation */
    mc_skew law;   /* --skew */
    uint64_t seed;
    bool has_layout; /* --placement */
    mc_sim_layout layout;
    const char *place, *trace_path;
    mc_trace *trace;
} mc_plan_traffic;

/* Reads the options and opens the trace: an exit code, after saying what is wrong. */
int mc_plan_traffic_begin(const mc_cli *cli, mc_plan_traffic *t);
/* Simulates every kind of layer (of a trace: its most uneven layer), and writes places; appends what is to be printed:
 * text, or members of a JSON object, each with a comma before it. An exit code. */
int mc_plan_traffic_run(mc_plan_traffic *t, const mc_ep_plan *plan, mc_arena *arena, bool json, mc_buf *out);
void mc_plan_traffic_end(mc_plan_traffic *t);

#endif
