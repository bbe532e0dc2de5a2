#include "driver/train/train_schedule.h"

#include <math.h>

static const double pi = 3.141592653589793;

double
mc_schedule_at(const mc_schedule *s, uint64_t t, uint64_t n_steps)
{
    double at = (double)t, end = s->steps > 0 ? s->steps : (double)n_steps;
    if (at < s->warmup) return at / s->warmup;
    if (s->kind == MC_SCHEDULE_CONSTANT) return 1;
    double done = end > s->warmup ? (at - s->warmup) / (end - s->warmup) : 1;
    if (done > 1) done = 1;
    double left = s->kind == MC_SCHEDULE_COSINE ? (1 + cos(pi * done)) / 2 : 1 - done;
    return s->floor + (1 - s->floor) * left;
}

double
mc_bias_schedule_at(mc_bias_schedule s, double until, uint64_t t, uint64_t n_steps)
{
    double done = (double)t / (double)(n_steps ? n_steps : 1);
    if (done >= until) return 0;
    switch (s) {
    case MC_BIAS_CONSTANT: break;
    case MC_BIAS_COSINE: return (1 + cos(pi * done)) / 2;
    case MC_BIAS_WARMUP: return done < 0.1 ? 10 * done : 1;
    }
    return 1;
}
