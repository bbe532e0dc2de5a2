/* train_step: one update of a run (trainer.h). */
#include "driver/train/cross_entropy.h"
#include "driver/train/trainer.h"
#include "runtime/base/clock.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Forward, loss and backward of one batch; gradients and loads are added up. */
static moec_status
micro_batch(mc_trainer *t, uint64_t number, mc_train_report *r, mc_fault *fault)
{
    const mc_train_options *o = &t->options;
    size_t n_rows = (size_t)(t->share * o->length);
    double share = 1 / (double)o->accumulate, scale = share / (double)(o->batch * o->length);
    moec_error error = {0};
    mc_train_data_batch(&t->data, o->seed, number * o->batch + t->first, (size_t)t->share, (size_t)o->length, t->ids,
                        t->targets);
    moec_tensor input = {.dtype = MOEC_I32,
                         .rank = 2,
                         .dims = {(int64_t)t->share, (int64_t)o->length},
                         .data = t->ids,
                         .n_bytes = n_rows * sizeof *t->ids};
    moec_train_call call = {.threads = t->threads,
                            .inputs = &input,
                            .n_inputs = 1,
                            .params = t->state.params.value_table,
                            .saved = t->saved.data,
                            .saved_bytes = t->saved.n_bytes,
                            .workspace = t->workspace.data,
                            .workspace_bytes = t->workspace.n_bytes,
                            .outputs = t->outputs,
                            .n_outputs = t->n_outputs,
                            .cotangents = t->cotangents,
                            .n_cotangents = t->n_cotangents,
                            .param_grads = t->state.params.grad_table,
                            .comm = t->ranks.comm};
    moec_status s = moec_train_forward(t->model, &call, &error);
    if (s == MOEC_OK) {
        double sum;
        mc_cross_entropy(t->pool, t->logits, t->targets, n_rows, (size_t)t->vocab, scale, t->row_losses);
        moec_status told = mc_train_ranks_sum(&t->ranks, t->row_losses, n_rows, &sum, fault);
        if (told != MOEC_OK) return told;
        r->cross_entropy += sum * scale;
        r->aux += (double)t->aux * share;
        r->z += (double)t->z * share;
        s = moec_train_backward(t->model, &call, &error);
    }
    if (s != MOEC_OK) return mc_fail(fault, s, "step %" PRIu64 ": %s", r->step, error.text);
    for (size_t i = 0; i < t->state.routes.n_loads; i++)
        for (size_t k = 0; k < 2 * t->state.routes.loads[i].n_experts; k++)
            t->state.routes.loads[i].sum[k] += t->state.routes.loads[i].now[k];
    return MOEC_OK;
}

static moec_status
not_finite(const mc_trainer *t, const mc_train_report *r, mc_fault *fault)
{
    const mc_train_param *value = mc_train_params_not_finite(&t->state.params, false);
    const mc_train_param *grad = value ? NULL : mc_train_params_not_finite(&t->state.params, true);
    const char *what = value ? "the parameter " : grad ? "the gradient of " : "the loss, but no gradient";
    return mc_fail(fault, MOEC_ERR_RANGE,
                   "step %" PRIu64 ": a value is not finite (loss %g, gradient norm %g): %s%s. The parameters are as "
                   "after step %" PRIu64 "; a lower lr, a longer warmup or clip may help",
                   r->step, r->loss, r->grad_norm, what,
                   value  ? value->info.path
                   : grad ? grad->info.path
                          : "",
                   r->step - 1);
}

static moec_status
move_biases(mc_trainer *t, uint64_t step, mc_fault *fault)
{
    const mc_train_settings *set = &t->settings;
    double rate = set->bias_rate * mc_bias_schedule_at(set->bias_schedule, set->bias_until, step, t->options.n_steps);
    moec_error error = {0};
    for (size_t i = 0; i < t->state.routes.n_biases; i++) {
        const mc_train_bias *b = &t->state.routes.biases[i];
        bool ema = set->bias_rule == MOEC_BIAS_EMA;
        moec_status s =
            moec_bias_update(set->bias_rule, rate, set->bias_decay, b->n_experts, t->state.routes.loads[b->load].sum,
                             ema ? b->ema : NULL, b->param->value, &error);
        if (s != MOEC_OK) return mc_fail(fault, s, "step %" PRIu64 ": %s: %s", step, b->param->info.path, error.text);
    }
    return MOEC_OK;
}

moec_status
mc_trainer_step(mc_trainer *t, mc_train_report *out, mc_fault *fault)
{
    double begin = mc_seconds();
    mc_train_position *at = &t->state.at;
    mc_train_params *params = &t->state.params;
    mc_train_report r = {.step = at->step + 1};
    mc_train_params_zero_grads(params, t->pool);
    for (size_t i = 0; i < t->state.routes.n_loads; i++)
        memset(t->state.routes.loads[i].sum, 0, 2 * t->state.routes.loads[i].n_experts * sizeof(float));
    for (uint64_t m = 0; m < t->options.accumulate; m++) {
        moec_status done = micro_batch(t, at->step * t->options.accumulate + m, &r, fault);
        if (done != MOEC_OK) return done;
    }
    r.loss = r.cross_entropy + t->settings.aux_weight * r.aux + t->settings.z_weight * r.z;
    moec_status s = mc_train_ranks_reduce(&t->ranks, params, fault);
    if (s == MOEC_OK) s = mc_train_ranks_grad_norm(&t->ranks, params, t->pool, &r.grad_norm, fault);
    if (s != MOEC_OK) return s;
    if (!isfinite(r.loss) || !isfinite(r.grad_norm)) return not_finite(t, &r, fault);
    r.lr = t->settings.optimizer.lr * mc_schedule_at(&t->settings.schedule, r.step, t->options.n_steps);
    mc_train_params_update(params, t->pool, &t->settings.optimizer, r.lr, r.step,
                           mc_clip_scale(&t->settings.optimizer, r.grad_norm));
    at->step = r.step;
    s = move_biases(t, r.step, fault);
    r.seconds = mc_seconds() - begin;
    *out = r;
    return s;
}
