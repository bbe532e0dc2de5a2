/* Training calls on a GPU. The tables of a call lie in host memory that the GPU's handle keeps from call to call, so
 * that a step allocates nothing; everything else is the caller's, on the device. */
#include "runtime/gpu/gpu_train.h"

#include "runtime/train.h"

#include <stdio.h>

/* ---- what the call hands over ----------------------------------------------------------------------------------- */

static moec_status
check_tensors(const moec_gpu *gpu, const moec_tensor *tensors, size_t n, const char *kind, mc_fault *e)
{
    moec_status s = MOEC_OK;
    for (size_t i = 0; s == MOEC_OK && i < n; i++) {
        char name[96];
        if (tensors[i].name)
            snprintf(name, sizeof name, "%s %.80s", kind, tensors[i].name);
        else
            snprintf(name, sizeof name, "%s %zu", kind, i);
        s = mc_gpu_check_pointer(gpu, tensors[i].data, name, e);
    }
    return s;
}

/* Parameters are many: only their alignment is looked at. */
static moec_status
check_params(const moec_model *model, const moec_train_call *c, bool backward, mc_fault *e)
{
    size_t n = moec_train_n_params(model);
    for (size_t i = 0; i < n; i++) {
        const void *grad = backward && c->param_grads ? c->param_grads[i] : NULL;
        moec_param_info info = {0};
        bool good = c->params && !mc_gpu_is_misaligned(c->params[i]) && !mc_gpu_is_misaligned(grad);
        if (good || !c->params || moec_train_param(model, i, &info) != MOEC_OK) continue;
        return mc_fail(e, MOEC_ERR_ARGUMENT, "%s%s is at an address that is no multiple of %d bytes",
                       mc_gpu_is_misaligned(grad) ? "the gradient of " : "parameter ", info.path,
                       (int)MC_GPU_POINTER_ALIGN);
    }
    return MOEC_OK;
}

static moec_status
check_call(const moec_model *model, const moec_train_call *c, bool backward, mc_fault *e)
{
    const moec_gpu *gpu = c->gpu;
    if (c->check_finite)
        return mc_fail(e, MOEC_ERR_UNSUPPORTED,
                       "check_finite reads cotangents on the host, which memory of a GPU does not allow: check them on "
                       "the device, and clear the flag");
    moec_status s = mc_gpu_check_stream(gpu, c->stream, e);
    if (s == MOEC_OK) s = mc_gpu_check_pointer(gpu, c->workspace, "workspace", e);
    if (s == MOEC_OK) s = mc_gpu_check_pointer(gpu, c->saved, "saved", e);
    if (s == MOEC_OK) s = check_tensors(gpu, c->inputs, c->n_inputs, "input", e);
    if (s == MOEC_OK && !backward) s = check_tensors(gpu, c->outputs, c->n_outputs, "output", e);
    if (s == MOEC_OK && backward) s = check_tensors(gpu, c->cotangents, c->n_cotangents, "cotangent", e);
    if (s == MOEC_OK && backward) s = check_tensors(gpu, c->input_grads, c->n_input_grads, "input gradient", e);
    return s == MOEC_OK ? check_params(model, c, backward, e) : s;
}

/* ---- a call ----------------------------------------------------------------------------------------------------- */

static moec_status
queue(const moec_model *model, moec_train_call *c, bool backward, unsigned char *tables, mc_fault *e)
{
    const moec_abi_model *m = model->abi;
    const moec_abi_func *f = &m->funcs[backward ? m->backward : m->entry];
    void **args = (void **)(tables + mc_train_round(mc_exec_table_bytes(m)));
    void **weights = args + f->n_formals + f->n_results + 1;
    mc_train_layout l;
    mc_exec x;
    mc_gpu_walk w = {.gpu = c->gpu, .x = &x, .stream = c->stream, .error = e};
    moec_status s = check_call(model, c, backward, e);
    if (s == MOEC_OK) s = mc_gpu_code_get(c->gpu, model, &w.code, e);
    if (s == MOEC_OK) s = mc_train_arrange(model, c, backward, tables, &x, &l, e);
    if (s == MOEC_OK) s = mc_train_bind(model, c, backward, &x, &l, args, weights, e);
    if (s != MOEC_OK) return s;
    x.weights = weights;
    uint32_t func = backward ? m->backward : m->entry, weight_base = backward ? m->backward_weight_base : 0;
    s = mc_gpu_walk_check(&w, func, weight_base, args);
    if (s != MOEC_OK) return s;
    CUdeviceptr zeros = mc_gpu_address((unsigned char *)c->workspace + l.zeros);
    if (l.zero_bytes) s = MC_CUDA(c->gpu->cuda, e, cuMemsetD8Async, zeros, 0, l.zero_bytes, c->stream);
    if (s != MOEC_OK) return s;
    return mc_gpu_walk_run(&w, func, weight_base, args);
}

moec_status
mc_gpu_train(const moec_model *model, moec_train_call *c, bool backward, mc_fault *e)
{
    const moec_abi_model *m = model->abi;
    const moec_abi_func *f = &m->funcs[backward ? m->backward : m->entry];
    size_t n_addresses = (size_t)f->n_formals + f->n_results + m->n_weights + 2;
    size_t n_bytes = mc_train_round(mc_exec_table_bytes(m)) + n_addresses * sizeof(void *);
    void *tables = mc_gpu_block_take(c->gpu, n_bytes);
    if (!tables) return mc_fail(e, MOEC_ERR_MEMORY, "out of memory");
    moec_status s = mc_gpu_enter(c->gpu, e);
    if (s == MOEC_OK) {
        s = queue(model, c, backward, tables, e);
        mc_gpu_leave(c->gpu);
    }
    mc_gpu_block_give(c->gpu, tables);
    return s;
}
