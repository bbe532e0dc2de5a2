#include "driver/train/adamw.h"

#include <math.h>

mc_adamw
mc_adamw_default(void)
{
    return (mc_adamw){.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .decay = 0.01, .clip = 1};
}

void
mc_adamw_update(const mc_adamw *a, double lr, double decay, uint64_t t, double grad_scale, size_t n, float *restrict p,
                const float *restrict g, float *restrict m, float *restrict v)
{
    float scale = (float)grad_scale, keep = (float)(1 - lr * decay), w1 = (float)(1 - a->beta1);
    float beta2 = (float)a->beta2, w2 = (float)(1 - a->beta2), eps = (float)a->eps;
    float step = (float)(lr / (1 - pow(a->beta1, (double)t)));
    float root = (float)sqrt(1 - pow(a->beta2, (double)t));
    for (size_t i = 0; i < n; i++) {
        float gi = g[i] * scale, mi = m[i] + w1 * (gi - m[i]), vi = v[i] * beta2 + w2 * gi * gi;
        m[i] = mi;
        v[i] = vi;
        p[i] = p[i] * keep - step * (mi / (sqrtf(vi) / root + eps));
    }
}

double
mc_sum_of_squares(const float *g, size_t n)
{
    double sum[4] = {0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t k = 0; k < 4; k++) sum[k] += (double)g[i + k] * (double)g[i + k];
    for (; i < n; i++) sum[0] += (double)g[i] * (double)g[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

double
mc_clip_scale(const mc_adamw *a, double norm)
{
    double scale = a->clip / (norm + 1e-6);
    return a->clip > 0 && scale < 1 ? scale : 1;
}
