/* bias_rule: balancing without a loss: how a selection bias moves between steps. */
#include "moec/train.h"
#include "runtime/abi_model.h"

#include <math.h>

static moec_status
check(moec_bias_rule rule, double rate, double decay, size_t n, const float *counts, const float *ema,
      const float *bias, mc_fault *e)
{
    if (rule != MOEC_BIAS_SIGN && rule != MOEC_BIAS_EMA) return mc_fail(e, MOEC_ERR_ARGUMENT, "no such bias rule");
    if (!counts || !bias || n == 0 || (rule == MOEC_BIAS_EMA && !ema))
        return mc_fail(e, MOEC_ERR_ARGUMENT, "a bias update needs counts, a bias%s",
                       rule == MOEC_BIAS_EMA ? " and its moving average" : "");
    if (!(rate >= 0) || !isfinite(rate)) return mc_fail(e, MOEC_ERR_ARGUMENT, "rate = %g", rate);
    if (rule == MOEC_BIAS_EMA && !(decay >= 0 && decay <= 1)) return mc_fail(e, MOEC_ERR_ARGUMENT, "decay = %g", decay);
    for (size_t i = 0; i < n; i++)
        if (!(counts[i] >= 0) || !isfinite(counts[i]))
            return mc_fail(e, MOEC_ERR_RANGE, "counts[%zu] = %g is no count", i, (double)counts[i]);
    return MOEC_OK;
}

moec_status
moec_bias_update(moec_bias_rule rule, double rate, double decay, size_t n_experts, const float *counts, float *ema,
                 float *bias, moec_error *error)
{
    mc_fault e = {{0}};
    double sum = 0, n = (double)n_experts;
    moec_status s = check(rule, rate, decay, n_experts, counts, ema, bias, &e);
    for (size_t i = 0; s == MOEC_OK && i < n_experts; i++) sum += (double)counts[i];
    for (size_t i = 0; s == MOEC_OK && sum > 0 && i < n_experts; i++) {
        double c = (double)counts[i];
        if (rule == MOEC_BIAS_SIGN) {
            bias[i] = (float)((double)bias[i] + rate * ((sum > n * c) - (sum < n * c)));
        } else {
            ema[i] = (float)(decay * (double)ema[i] + (1 - decay) * c / sum);
            bias[i] = (float)((double)bias[i] + rate * (1 / n - (double)ema[i]));
        }
    }
    return mc_give(error, &e, s);
}
