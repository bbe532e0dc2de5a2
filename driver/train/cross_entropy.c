#include "driver/train/cross_entropy.h"

#include <math.h>

typedef struct job {
    float *logits;
    const int32_t *targets;
    size_t n_rows, vocab;
    double scale, *row_losses;
} job;

static float
greatest(const float *x, size_t n)
{
    float most = x[0];
    for (size_t i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* The greatest logit is taken off first, so nothing overflows; one that is not finite makes the loss so. */
static double
row_loss(float *x, size_t n, size_t target, double scale)
{
    float most = greatest(x, n), at_target = x[target];
    double sum = 0;
    if (scale == 0) {
        for (size_t i = 0; i < n; i++) sum += (double)expf(x[i] - most);
        return log(sum) + (double)most - (double)at_target;
    }
    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - most);
        sum += (double)x[i];
    }
    float factor = (float)(scale / sum);
    for (size_t i = 0; i < n; i++) x[i] *= factor;
    x[target] -= (float)scale;
    return log(sum) + (double)most - (double)at_target;
}

static void
rows(void *context, uint32_t thread, uint32_t n_threads)
{
    const job *j = context;
    size_t begin = j->n_rows * thread / n_threads, end = j->n_rows * (thread + 1) / n_threads;
    for (size_t r = begin; r < end; r++)
        j->row_losses[r] = row_loss(j->logits + r * j->vocab, j->vocab, (size_t)j->targets[r], j->scale);
}

double
mc_cross_entropy(mc_pool *pool, float *logits, const int32_t *targets, size_t n_rows, size_t vocab, double scale,
                 double *row_losses)
{
    job j = {logits, targets, n_rows, vocab, scale, row_losses};
    mc_pool_run(pool, rows, &j);
    double sum = 0;
    for (size_t r = 0; r < n_rows; r++) sum += row_losses[r];
    return sum;
}
