/* train: forward and backward of a model compiled for training. Both walk the plan as a session's step does, but in
 * memory of the caller's: the plan's integers, the activations, everything lies in the workspace. */
#include "runtime/train.h"

#include "runtime/args.h"
#include "runtime/base/hash.h"
#include "runtime/gpu/gpu_train.h"
#include "runtime/host_cpu.h"
#include "runtime/threads.h"
#include "runtime/train_params.h"

#include <stdlib.h>
#include <string.h>

#define SAVED_MAGIC 0x315644455641534DULL

size_t
mc_train_round(size_t n)
{
    return (n + MC_TRAIN_ALIGN - 1) / MC_TRAIN_ALIGN * MC_TRAIN_ALIGN;
}

/* Of the workspace: what the plan's tables need, before anything else is known. Those of a GPU lie in host memory. */
static size_t
plan_bytes(const moec_model *model)
{
    return model->abi->gpu ? 0 : mc_train_round(mc_exec_table_bytes(model->abi));
}

static moec_status
trainable(const moec_model *model, mc_fault *e)
{
    if (model->trainable && model->runs_here) return MOEC_OK;
    if (model->trainable) return mc_host_has(model->abi->features, model->abi->cpu, model->abi->name, e);
    return mc_fail(e, MOEC_ERR_UNSUPPORTED,
                   "%s was compiled for inference: compile it with `train` (moec compile --train) to train it",
                   model->abi->name);
}

/* ---- sizes ----------------------------------------------------------------------------------------------------- */

static bool
add(size_t *total, size_t n)
{
    return n <= SIZE_MAX / 4 - MC_TRAIN_ALIGN && !__builtin_add_overflow(*total, mc_train_round(n), total);
}

/* Of all tensors of a table one after another; with `greatest` the room of the largest. */
static bool
table_bytes(const moec_abi_tensor *table, const uint32_t *indices, uint32_t n, const int64_t *syms, bool greatest,
            size_t *out)
{
    size_t total = 0, most = 0;
    for (uint32_t i = 0; i < n; i++) {
        int64_t dims[MOEC_ABI_MAX_RANK];
        size_t n_bytes;
        if (!mc_args_shape(&table[indices ? indices[i] : i], syms, dims, &n_bytes) || !add(&total, n_bytes))
            return false;
        if (n_bytes > most) most = n_bytes;
    }
    *out = greatest ? mc_train_round(most) : total;
    return true;
}

/* The tables of addresses. */
static bool
lay_tables(const moec_model *model, bool backward, size_t *at, mc_train_layout *out)
{
    const moec_abi_model *m = model->abi;
    const moec_abi_func *f = &m->funcs[backward ? m->backward : m->entry];
    if (m->gpu) return true;
    out->weights = *at;
    bool ok = add(at, ((size_t)m->n_weights + 1) * sizeof(void *));
    out->args = *at;
    return ok && add(at, ((size_t)f->n_formals + f->n_results + 1) * sizeof(void *));
}

moec_status
mc_train_lay(const moec_model *model, mc_exec *x, bool backward, uint32_t n_threads, mc_train_layout *out,
             mc_fault *error)
{
    const moec_abi_model *m = model->abi;
    size_t at = plan_bytes(model), slab, spare, zeros = 0, saved, scratch = m->scratch_bytes;
    *out = (mc_train_layout){0};
    moec_status s = mc_exec_prepare(x, backward ? m->backward : m->entry, &slab, error);
    if (s == MOEC_OK && m->gpu) s = mc_gpu_scratch_bytes(x, &scratch, error);
    if (s != MOEC_OK) return s;
    bool ok = table_bytes(m->saved, NULL, m->n_saved, x->syms, false, &saved) && add(&saved, sizeof(mc_saved_header));
    ok = ok && (backward ? table_bytes(m->inputs, m->input_grads, m->n_input_grads, x->syms, false, &spare) &&
                               table_bytes(m->outputs, m->cotangents, m->n_cotangents, x->syms, true, &zeros)
                         : table_bytes(m->outputs, NULL, m->n_outputs, x->syms, false, &spare));
    ok = ok && scratch < SIZE_MAX / 4;
    out->scratch_stride = (scratch + MC_TRAIN_PAGE - 1) / MC_TRAIN_PAGE * MC_TRAIN_PAGE;
    ok = ok && !__builtin_mul_overflow(out->scratch_stride, (size_t)(m->gpu ? 1 : n_threads), &scratch);
    ok = ok && lay_tables(model, backward, &at, out);
    out->scratch = at;
    ok = ok && add(&at, scratch + MC_TRAIN_PAGE);
    out->slab = at;
    ok = ok && add(&at, slab);
    out->spare = at;
    ok = ok && add(&at, spare);
    out->zeros = at;
    ok = ok && add(&at, zeros);
    out->total = at;
    out->saved_bytes = saved;
    return ok ? MOEC_OK : mc_fail(error, MOEC_ERR_RANGE, "the buffers for these sizes are too large");
}

static moec_status
set_dims(const moec_model *model, mc_exec *x, const moec_limit *dims, size_t n_dims, mc_fault *e)
{
    const moec_abi_model *m = model->abi;
    mc_sizes sizes = {.abi = m, .syms = x->syms};
    moec_status s = MOEC_OK;
    for (uint32_t i = 0; i < m->n_syms; i++) x->syms[i] = -1;
    for (size_t i = 0; s == MOEC_OK && i < n_dims; i++) {
        uint32_t at = 0;
        while (at < m->n_syms && !(dims[i].name && strcmp(m->syms[at].name, dims[i].name) == 0)) at++;
        s = at < m->n_syms ? mc_sizes_set(&sizes, at, dims[i].max, e)
                           : mc_fail(e, MOEC_ERR_ARGUMENT, "the model has no dimension named %s",
                                     dims[i].name ? dims[i].name : "(null)");
    }
    for (uint32_t i = 0; s == MOEC_OK && i < m->n_syms; i++)
        if (x->syms[i] < 0 && m->syms[i].kind < 3)
            s = mc_fail(e, MOEC_ERR_ARGUMENT, "dimension %s has no value", m->syms[i].name);
    return s;
}

static moec_status
query(const moec_model *model, const moec_limit *dims, size_t n_dims, uint32_t n_threads, mc_exec *x,
      moec_train_sizes *out, mc_fault *e)
{
    moec_status s = set_dims(model, x, dims, n_dims, e);
    for (int backward = 0; s == MOEC_OK && backward < 2; backward++) {
        mc_train_layout l;
        s = mc_train_lay(model, x, backward, n_threads ? n_threads : 1, &l, e);
        if (s != MOEC_OK) break;
        out->saved_bytes = l.saved_bytes;
        if (l.total > out->workspace_bytes) out->workspace_bytes = l.total;
    }
    return s;
}

moec_status
moec_train_query(const moec_model *model, const moec_limit *dims, size_t n_dims, uint32_t n_threads,
                 moec_train_sizes *out_sizes, moec_error *error)
{
    mc_fault e = {{0}};
    *out_sizes = (moec_train_sizes){0};
    moec_status s = trainable(model, &e);
    void *tables = s == MOEC_OK ? malloc(mc_exec_table_bytes(model->abi)) : NULL;
    if (s == MOEC_OK && !tables) s = mc_fail(&e, MOEC_ERR_MEMORY, "out of memory");
    if (s == MOEC_OK) {
        mc_exec x;
        mc_exec_place(&x, model->abi, NULL, tables);
        s = query(model, dims, n_dims, n_threads, &x, out_sizes, &e);
    }
    free(tables);
    return mc_give(error, &e, s);
}

/* ---- a step ---------------------------------------------------------------------------------------------------- */

static mc_saved_header
saved_header_of(const moec_model *model, const mc_exec *x, size_t n_bytes)
{
    return (mc_saved_header){.magic = SAVED_MAGIC,
                             .plan = model->abi->hash,
                             .sizes = mc_hash64(x->syms, model->abi->n_syms * sizeof *x->syms, 0),
                             .n_bytes = n_bytes};
}

static moec_status
check_saved(const moec_model *model, const moec_train_call *c, bool backward, const mc_exec *x,
            const mc_train_layout *l, mc_fault *e)
{
    if (!c->saved && !backward) return MOEC_OK;
    if (!c->saved) return mc_fail(e, MOEC_ERR_ARGUMENT, "backward needs the saved buffer of a forward");
    if ((uintptr_t)c->saved % MC_TRAIN_ALIGN)
        return mc_fail(e, MOEC_ERR_ARGUMENT, "saved is not at a multiple of %d bytes", (int)MC_TRAIN_ALIGN);
    if (c->saved_bytes < l->saved_bytes)
        return mc_fail(e, MOEC_ERR_ARGUMENT, "saved has %zu bytes, these sizes need %zu (moec_train_query)",
                       c->saved_bytes, l->saved_bytes);
    if (!backward || c->gpu) return MOEC_OK; /* what lies on a device is not looked at */
    const mc_saved_header *have = c->saved;
    mc_saved_header want = saved_header_of(model, x, l->saved_bytes);
    if (have->magic != want.magic)
        return mc_fail(e, MOEC_ERR_MISMATCH, "saved was not written by a forward (or has been overwritten)");
    if (have->plan != want.plan)
        return mc_fail(e, MOEC_ERR_MISMATCH,
                       "saved is of another plan: forward and backward must be of one compilation");
    if (have->sizes != want.sizes || have->n_bytes != want.n_bytes)
        return mc_fail(e, MOEC_ERR_MISMATCH, "saved is of other sizes: give backward the inputs of its forward");
    return MOEC_OK;
}

static moec_status
check_workspace(const moec_model *model, const moec_train_call *c, mc_fault *e)
{
    if (!c->workspace || (uintptr_t)c->workspace % MC_TRAIN_ALIGN)
        return mc_fail(e, MOEC_ERR_ARGUMENT, "workspace is missing or not at a multiple of %d bytes",
                       (int)MC_TRAIN_ALIGN);
    if (c->workspace_bytes < plan_bytes(model))
        return mc_fail(e, MOEC_ERR_ARGUMENT, "workspace has %zu bytes, too few (moec_train_query)", c->workspace_bytes);
    for (size_t i = 0; i < sizeof c->reserved / sizeof *c->reserved; i++)
        if (c->reserved[i]) return mc_fail(e, MOEC_ERR_ARGUMENT, "reserved fields of the call are not zero");
    return MOEC_OK;
}

moec_status
mc_train_arrange(const moec_model *model, moec_train_call *c, bool backward, void *tables, mc_exec *x,
                 mc_train_layout *l, mc_fault *e)
{
    const moec_tensor *in[MC_MAX_CALL_ARGS];
    mc_exec_place(x, model->abi, c->threads && !c->gpu ? c->threads->pool : NULL, tables);
    mc_sizes sizes = {.abi = model->abi, .syms = x->syms};
    moec_status s = mc_args_inputs(&sizes, c->inputs, c->n_inputs, in, e);
    if (s == MOEC_OK) s = mc_train_lay(model, x, backward, c->threads ? moec_threads_count(c->threads) : 1, l, e);
    if (s == MOEC_OK) s = check_saved(model, c, backward, x, l, e);
    if (s != MOEC_OK) return s;
    size_t need = l->total + (c->saved ? 0 : l->saved_bytes);
    if (c->workspace_bytes < need)
        return mc_fail(e, MOEC_ERR_ARGUMENT, "workspace has %zu bytes, these sizes need %zu (moec_train_query%s)",
                       c->workspace_bytes, need, c->saved ? "" : ", and room for what is not saved");
    unsigned char *base = c->workspace;
    if (!c->saved) c->saved = base + l->total;
    uintptr_t scratch = ((uintptr_t)(base + l->scratch) + MC_TRAIN_PAGE - 1) / MC_TRAIN_PAGE * MC_TRAIN_PAGE;
    x->scratch = base + (scratch - (uintptr_t)base);
    x->scratch_stride = l->scratch_stride;
    x->slab = base + l->slab;
    return MOEC_OK;
}

static moec_status
run_on_cpu(const moec_model *model, moec_train_call *c, bool backward, mc_fault *e)
{
    const moec_abi_model *m = model->abi;
    mc_train_layout l;
    mc_exec x;
    unsigned char *base = c->workspace;
    moec_status s = mc_train_arrange(model, c, backward, base, &x, &l, e);
    if (s != MOEC_OK) return s;
    void **args = (void **)(base + l.args), **weights = (void **)(base + l.weights);
    s = mc_train_bind(model, c, backward, &x, &l, args, weights, e);
    if (s != MOEC_OK) return s;
    x.weights = weights;
    if (m->ep) s = mc_comm_walk_attached(m, c->comm, x.expr_values, &x.comm, e);
    if (s != MOEC_OK) return s;
    memset(base + l.zeros, 0, l.zero_bytes);
    if (!backward) *(mc_saved_header *)c->saved = saved_header_of(model, &x, l.saved_bytes);
    if (c->threads) pthread_mutex_lock(&c->threads->busy);
    s = mc_exec_run(&x, backward ? m->backward : m->entry, backward ? m->backward_weight_base : 0, args, e);
    if (c->threads) pthread_mutex_unlock(&c->threads->busy);
    return s;
}

static moec_status
run(const moec_model *model, const moec_train_call *given, bool backward, mc_fault *e)
{
    const char *name = model->abi->name;
    moec_train_call c = *given;
    moec_status s = trainable(model, e);
    if (s == MOEC_OK && model->abi->gpu && !c.gpu)
        s = mc_fail(e, MOEC_ERR_ARGUMENT, "%s was compiled for GPUs: open one (moec_gpu_open) and give it in call.gpu",
                    name);
    if (s == MOEC_OK && !model->abi->gpu && (c.gpu || c.stream))
        s = mc_fail(e, MOEC_ERR_ARGUMENT, "%s was compiled for a processor, call.gpu and call.stream must be null",
                    name);
    if (s == MOEC_OK) s = check_workspace(model, &c, e);
    if (s != MOEC_OK) return s;
    return c.gpu ? mc_gpu_train(model, &c, backward, e) : run_on_cpu(model, &c, backward, e);
}

moec_status
moec_train_forward(const moec_model *model, const moec_train_call *call, moec_error *error)
{
    mc_fault e = {{0}};
    return mc_give(error, &e, run(model, call, false, &e));
}

moec_status
moec_train_backward(const moec_model *model, const moec_train_call *call, moec_error *error)
{
    mc_fault e = {{0}};
    return mc_give(error, &e, run(model, call, true, &e));
}

/* ---- what a model has ------------------------------------------------------------------------------------------ */

bool
moec_model_is_trainable(const moec_model *model)
{
    return model->trainable;
}

size_t
moec_train_n_params(const moec_model *model)
{
    return model->n_params;
}

moec_status
moec_train_param(const moec_model *model, size_t index, moec_param_info *out_info)
{
    if (!model->trainable) return MOEC_ERR_UNSUPPORTED;
    if (index >= model->n_params) return MOEC_ERR_ARGUMENT;
    const mc_param *p = &model->params[index];
    *out_info = (moec_param_info){.path = p->weight->path,
                                  .role = p->weight->role,
                                  .init = p->weight->init ? p->weight->init : "",
                                  .dtype = (moec_dtype)p->weight->dtype,
                                  .rank = p->weight->rank,
                                  .has_gradient = p->has_gradient};
    memcpy(out_info->dims, p->weight->dims, p->weight->rank * sizeof *out_info->dims);
    return MOEC_OK;
}

static bool
listed(const uint32_t *list, uint32_t n, size_t index)
{
    for (uint32_t i = 0; i < n; i++)
        if (list[i] == index) return true;
    return false;
}

bool
moec_train_output_has_gradient(const moec_model *model, size_t output)
{
    return model->trainable && listed(model->abi->cotangents, model->abi->n_cotangents, output);
}

bool
moec_train_input_has_gradient(const moec_model *model, size_t input)
{
    return model->trainable && listed(model->abi->input_grads, model->abi->n_input_grads, input);
}

size_t
moec_train_n_saved(const moec_model *model)
{
    return model->trainable ? model->abi->n_saved : 0;
}

moec_status
moec_train_saved(const moec_model *model, size_t index, moec_saved_info *out_info)
{
    if (!model->trainable) return MOEC_ERR_UNSUPPORTED;
    if (index >= model->abi->n_saved) return MOEC_ERR_ARGUMENT;
    moec_tensor_info info;
    mc_tensor_describe(model->abi, &model->abi->saved[index], &info);
    *out_info = (moec_saved_info){.name = info.name, .dtype = info.dtype, .rank = info.rank};
    memcpy(out_info->shape, info.shape, sizeof info.shape);
    return MOEC_OK;
}
