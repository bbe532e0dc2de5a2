#include "driver/train/train_memory.h"

#include <stdio.h>

size_t
mc_train_rounded(size_t n_bytes)
{
    return (n_bytes + 63) / 64 * 64;
}

/* Of the text "[B, S, 32000]". */
void
mc_train_dim_name(const moec_model *model, int axis, char name[32])
{
    moec_tensor_info info = {0};
    name[0] = 0;
    if (moec_model_input(model, 0, &info) != MOEC_OK || axis >= (int)info.rank || info.dims[axis] >= 0) return;
    const char *p = info.shape + 1;
    for (int i = 0; i < axis && *p; p++) i += *p == ',';
    sscanf(p, " %31[^],]", name);
}

static moec_status
batch_bytes(const moec_model *model, const moec_limit *dims, size_t n_dims, uint64_t *out, mc_fault *fault)
{
    int64_t vocab = moec_model_vocab(model);
    size_t n_rows, n_values;
    *out = 0;
    if (vocab <= 0 || n_dims != 2) return MOEC_OK;
    if (__builtin_mul_overflow((size_t)dims[0].max, (size_t)dims[1].max, &n_rows) ||
        __builtin_mul_overflow(n_rows, (size_t)vocab + 4, &n_values) || n_values > SIZE_MAX / 64)
        return mc_fail(fault, MOEC_ERR_RANGE, "a batch of %lld x %lld is larger than memory", (long long)dims[0].max,
                       (long long)dims[1].max);
    *out = 2 * mc_train_rounded(n_rows * sizeof(int32_t)) + mc_train_rounded(n_rows * sizeof(double)) +
           mc_train_rounded(n_rows * (size_t)vocab * sizeof(float));
    return MOEC_OK;
}

moec_status
mc_train_memory_of(const moec_model *model, const mc_train_params *params, const moec_limit *dims, size_t n_dims,
                   uint32_t n_threads, mc_train_memory *out, mc_fault *fault)
{
    moec_train_sizes sizes;
    moec_error error = {0};
    *out = (mc_train_memory){0};
    moec_status s = batch_bytes(model, dims, n_dims, &out->batch, fault);
    if (s != MOEC_OK) return s;
    s = moec_train_query(model, dims, n_dims, n_threads, &sizes, &error);
    if (s != MOEC_OK) return mc_fail(fault, s, "%s", error.text);
    out->saved = sizes.saved_bytes;
    out->workspace = sizes.workspace_bytes;
    for (size_t i = 0; i < params->n; i++) {
        uint64_t n_bytes = mc_train_param_bytes(&params->items[i]);
        out->parameters += n_bytes;
        out->gradients += params->items[i].trained ? n_bytes : 0;
    }
    out->moments = 2 * out->gradients;
    return MOEC_OK;
}

uint64_t
mc_train_memory_total(const mc_train_memory *m)
{
    return m->saved + m->workspace + m->batch + m->parameters + m->gradients + m->moments;
}
