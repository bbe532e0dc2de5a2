/* adamw: the optimizer, on contiguous f32 arrays. Update number t (from 1) with gradient g' = g * grad_scale:
 *
 *     p -= lr * decay * p
 *     m += (1 - beta1) * (g' - m);   v = beta2 * v + (1 - beta2) * g' * g'
 *     p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
 *
 * as PyTorch's AdamW computes it in f32. */
#ifndef MC_DRIVER_ADAMW_H
#define MC_DRIVER_ADAMW_H

#include <stddef.h>
#include <stdint.h>

typedef struct mc_adamw {
    double lr, beta1, beta2, eps, decay;
    double clip; /* greatest norm of all gradients together; 0: no limit */
} mc_adamw;

/* PyTorch's defaults, and clip 1. */
mc_adamw mc_adamw_default(void);
/* One update of n elements with the learning rate and decay of this step and parameter. */
void mc_adamw_update(const mc_adamw *a, double lr, double decay, uint64_t t, double grad_scale, size_t n, float *p,
                     const float *g, float *m, float *v);
/* Of the squares of n values, in f64: four sums side by side, then together. */
double mc_sum_of_squares(const float *g, size_t n);
/* What gradients of this norm are multiplied by: min(1, clip / (norm + 1e-6)), as PyTorch's clip_grad_norm_. */
double mc_clip_scale(const mc_adamw *a, double norm);

#endif
