/* clock: monotonic seconds. */
#ifndef MC_BASE_CLOCK_H
#define MC_BASE_CLOCK_H

double mc_seconds(void);        /* CLOCK_MONOTONIC */
double mc_thread_seconds(void); /* CPU time of the calling thread */

#endif
