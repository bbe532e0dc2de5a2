/* train_args: from the named tensors and addresses of a call to the argument list of a function of the plan. Every
 * check of a call stands here or before it; nothing of the caller's is written but what describes
 * its tensors. On a GPU the values stay unseen: no check of ids, none of what is finite. */
#include "runtime/args.h"
#include "runtime/base/dtype.h"
#include "runtime/train.h"
#include "runtime/train_params.h"

#include <math.h>
#include <string.h>

typedef struct binding {
    const moec_model *model;
    const moec_train_call *call;
    const mc_exec *x;
    unsigned char *spare, *zeros;
    size_t zero_bytes;
    void **args;
    size_t n; /* args so far */
    mc_fault *error;
} binding;

/* A wanted result: the caller's buffer, or a spare one. */
static moec_status
bind_result(binding *b, moec_tensor *tensors, size_t n, const char *kind, const char *name, size_t index,
            const moec_abi_tensor *want)
{
    int64_t dims[MOEC_ABI_MAX_RANK];
    size_t need;
    if (!mc_args_shape(want, b->x->syms, dims, &need))
        return mc_fail(b->error, MOEC_ERR_INTERNAL, "the size of %s is not determined", name);
    size_t found = mc_args_find(tensors, n, name, index);
    bool wanted = found < n && tensors[found].data;
    b->args[b->n++] = wanted ? tensors[found].data : b->spare;
    if (!wanted) b->spare += mc_train_round(need);
    if (wanted && tensors[found].n_bytes < need)
        return mc_fail(b->error, MOEC_ERR_ARGUMENT, "%s %s needs %zu bytes, its buffer has %zu", kind, name, need,
                       tensors[found].n_bytes);
    return MOEC_OK;
}

/* dtype, rank and dims of a caller's tensor, when nothing can be refused any more. */
static void
describe(const binding *b, moec_tensor *tensors, size_t n, size_t index, const moec_abi_tensor *want)
{
    size_t found = mc_args_find(tensors, n, want->name, index), n_bytes;
    if (found == n) return;
    tensors[found].dtype = (moec_dtype)want->dtype;
    tensors[found].rank = want->rank;
    mc_args_shape(want, b->x->syms, tensors[found].dims, &n_bytes);
}

static bool
is_finite(const moec_tensor *t, size_t *at)
{
    const float *v = t->data;
    size_t n = 0;
    if (!mc_args_bytes(t, &n)) return true;
    n /= moec_dtype_bytes(t->dtype);
    for (*at = 0; *at < n; (*at)++)
        if (!isfinite(t->dtype == MOEC_F32 ? (double)v[*at] : mc_load_elem(t->dtype, t->data, *at))) return false;
    return true;
}

static moec_status
bind_cotangent(binding *b, uint32_t output)
{
    const moec_train_call *c = b->call;
    const moec_abi_tensor *want = &b->model->abi->outputs[output];
    int64_t dims[MOEC_ABI_MAX_RANK];
    size_t need, at;
    if (!mc_args_shape(want, b->x->syms, dims, &need))
        return mc_fail(b->error, MOEC_ERR_INTERNAL, "the size of %s is not determined", want->name);
    size_t found = mc_args_find(c->cotangents, c->n_cotangents, want->name, output);
    if (found == c->n_cotangents || !c->cotangents[found].data) {
        if (need > b->zero_bytes) b->zero_bytes = need;
        b->args[b->n++] = b->zeros;
        return MOEC_OK;
    }
    const moec_tensor *t = &c->cotangents[found];
    if (t->dtype != (moec_dtype)want->dtype)
        return mc_fail(b->error, MOEC_ERR_ARGUMENT, "the cotangent of %s is %s, not %s", want->name,
                       moec_dtype_name(t->dtype), moec_dtype_name((moec_dtype)want->dtype));
    if (t->rank != want->rank)
        return mc_fail(b->error, MOEC_ERR_ARGUMENT, "the cotangent of %s has %u dimensions, not %u", want->name,
                       t->rank, want->rank);
    for (uint32_t i = 0; i < t->rank; i++)
        if (t->dims[i] != dims[i])
            return mc_fail(b->error, MOEC_ERR_MISMATCH, "the cotangent of %s: dimension %u is %lld, the output's %lld",
                           want->name, i, (long long)t->dims[i], (long long)dims[i]);
    if (t->n_bytes < need)
        return mc_fail(b->error, MOEC_ERR_ARGUMENT, "the cotangent of %s needs %zu bytes, its buffer has %zu",
                       want->name, need, t->n_bytes);
    if (c->check_finite && !is_finite(t, &at))
        return mc_fail(b->error, MOEC_ERR_RANGE, "the cotangent of %s is %g at element %zu", want->name,
                       mc_load_elem(t->dtype, t->data, at), at);
    b->args[b->n++] = t->data;
    return MOEC_OK;
}

static moec_status
bind_inputs(binding *b)
{
    const moec_abi_model *m = b->model->abi;
    moec_status s = MOEC_OK;
    for (uint32_t i = 0; s == MOEC_OK && i < m->n_inputs; i++) {
        const moec_tensor *t = &b->call->inputs[mc_args_find(b->call->inputs, b->call->n_inputs, m->inputs[i].name, i)];
        b->args[b->n++] = t->data;
        if (!m->gpu) s = mc_args_ids(t, &m->inputs[i], b->error);
    }
    return s;
}

static void
bind_saved(binding *b)
{
    const moec_abi_model *m = b->model->abi;
    unsigned char *at = (unsigned char *)b->call->saved + sizeof(mc_saved_header);
    for (uint32_t i = 0; i < m->n_saved; i++) {
        int64_t dims[MOEC_ABI_MAX_RANK];
        size_t n_bytes = 0;
        b->args[b->n++] = at;
        if (mc_args_shape(&m->saved[i], b->x->syms, dims, &n_bytes)) at += mc_train_round(n_bytes);
    }
}

static moec_status
bind_weights(binding *b, bool backward, void **weights)
{
    const moec_abi_model *m = b->model->abi;
    const moec_train_call *c = b->call;
    if (b->model->n_params && !c->params)
        return mc_fail(b->error, MOEC_ERR_ARGUMENT, "params is null: the model has %u parameters", b->model->n_params);
    for (uint32_t i = 0; i < b->model->n_params; i++)
        if (!c->params[i])
            return mc_fail(b->error, MOEC_ERR_ARGUMENT, "parameter %s is null", b->model->params[i].weight->path);
    for (uint32_t i = 0; i < m->n_weights; i++) {
        uint32_t p = b->model->param_of[i];
        if (m->weights[i].layout == MOEC_ABI_GRAD)
            weights[i] = backward && c->param_grads && b->model->params[p].has_gradient ? c->param_grads[p] : NULL;
        else
            weights[i] = c->params[p];
    }
    return MOEC_OK;
}

static moec_status
check_names(binding *b, bool backward)
{
    const moec_abi_model *m = b->model->abi;
    const moec_train_call *c = b->call;
    if (!backward) return mc_args_names(c->outputs, c->n_outputs, m->outputs, m->n_outputs, "output", b->error);
    moec_status s = mc_args_names(c->cotangents, c->n_cotangents, m->outputs, m->n_outputs, "output", b->error);
    if (s == MOEC_OK) s = mc_args_names(c->input_grads, c->n_input_grads, m->inputs, m->n_inputs, "input", b->error);
    for (uint32_t i = 0; s == MOEC_OK && i < m->n_outputs; i++) {
        size_t found = mc_args_find(c->cotangents, c->n_cotangents, m->outputs[i].name, i);
        if (found < c->n_cotangents && c->cotangents[found].data && !moec_train_output_has_gradient(b->model, i))
            s = mc_fail(b->error, MOEC_ERR_ARGUMENT, "output %s takes no cotangent", m->outputs[i].name);
    }
    for (uint32_t i = 0; s == MOEC_OK && i < m->n_inputs; i++) {
        size_t found = mc_args_find(c->input_grads, c->n_input_grads, m->inputs[i].name, i);
        if (found < c->n_input_grads && c->input_grads[found].data && !moec_train_input_has_gradient(b->model, i))
            s = mc_fail(b->error, MOEC_ERR_ARGUMENT, "input %s has no gradient", m->inputs[i].name);
    }
    return s;
}

moec_status
mc_train_bind(const moec_model *model, const moec_train_call *call, bool backward, mc_exec *x, mc_train_layout *l,
              void **args, void **weights, mc_fault *error)
{
    const moec_abi_model *m = model->abi;
    unsigned char *base = call->workspace;
    binding b = {model, call, x, base + l->spare, base + l->zeros, 0, args, 0, error};
    moec_status s = check_names(&b, backward);
    if (s == MOEC_OK) s = bind_inputs(&b);
    if (s == MOEC_OK && backward) bind_saved(&b);
    for (uint32_t i = 0; s == MOEC_OK && backward && i < m->n_cotangents; i++) s = bind_cotangent(&b, m->cotangents[i]);
    for (uint32_t i = 0; s == MOEC_OK && backward && i < m->n_input_grads; i++) {
        uint32_t input = m->input_grads[i];
        s = bind_result(&b, call->input_grads, call->n_input_grads, "the gradient of", m->inputs[input].name, input,
                        &m->inputs[input]);
    }
    for (uint32_t i = 0; s == MOEC_OK && !backward && i < m->n_outputs; i++)
        s = bind_result(&b, call->outputs, call->n_outputs, "output", m->outputs[i].name, i, &m->outputs[i]);
    if (s == MOEC_OK && !backward) bind_saved(&b);
    if (s == MOEC_OK) s = bind_weights(&b, backward, weights);
    if (s != MOEC_OK) return s;
    l->zero_bytes = b.zero_bytes;
    for (uint32_t i = 0; !backward && i < m->n_outputs; i++)
        describe(&b, call->outputs, call->n_outputs, i, &m->outputs[i]);
    for (uint32_t i = 0; backward && i < m->n_input_grads; i++) {
        uint32_t input = m->input_grads[i];
        describe(&b, call->input_grads, call->n_input_grads, input, &m->inputs[input]);
    }
    return MOEC_OK;
}
