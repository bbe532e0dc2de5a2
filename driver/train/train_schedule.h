/* train_schedule: how the learning rate and the rate of a balancing bias change over a run. */
#ifndef MC_DRIVER_TRAIN_SCHEDULE_H
#define MC_DRIVER_TRAIN_SCHEDULE_H

#include <stdint.h>

typedef enum mc_schedule_kind { MC_SCHEDULE_CONSTANT, MC_SCHEDULE_COSINE, MC_SCHEDULE_LINEAR } mc_schedule_kind;

/* Over the first `warmup` updates the rate rises in a line to its full value. From there to update `steps` it falls to
 * `floor` times that, by half a cosine or in a line, and stays there. */
typedef struct mc_schedule {
    mc_schedule_kind kind;
    double warmup, floor;
    double steps; /* 0: those of the run */
} mc_schedule;

/* The share of the full rate at update t of n_steps, both from 1. */
double mc_schedule_at(const mc_schedule *s, uint64_t t, uint64_t n_steps);

typedef enum mc_bias_schedule { MC_BIAS_CONSTANT, MC_BIAS_COSINE, MC_BIAS_WARMUP } mc_bias_schedule;

/* The same for a bias after update t, with done = t / n_steps: 1, (1 + cos(pi done)) / 2, min(1, 10 done); 0 from
 * done >= until. */
double mc_bias_schedule_at(mc_bias_schedule s, double until, uint64_t t, uint64_t n_steps);

#endif
