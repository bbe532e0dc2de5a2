#include "driver/train/parameters.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 15, ALIGN = 64 };

static moec_status
no_memory(mc_fault *fault)
{
    return mc_fail(fault, MOEC_ERR_MEMORY, "out of memory for the parameters");
}

static bool
is_bias(const char *path)
{
    size_t n = strlen(path);
    return n >= 5 && strcmp(path + n - 5, ".bias") == 0;
}

static moec_status
describe(const moec_model *model, size_t i, mc_train_param *p, mc_fault *fault)
{
    moec_status s = moec_train_param(model, i, &p->info);
    if (s != MOEC_OK) return mc_fail(fault, s, "parameter %zu is not to be had", i);
    const moec_param_info *info = &p->info;
    p->n = 1;
    for (uint32_t k = 0; k < info->rank; k++)
        if (info->dims[k] < 0 || __builtin_mul_overflow(p->n, (size_t)info->dims[k], &p->n))
            return mc_fail(fault, MOEC_ERR_UNSUPPORTED, "%s is larger than memory", info->path);
    p->trained = info->has_gradient && info->dtype == MOEC_F32;
    p->decays =
        info->rank >= 2 && strcmp(info->role, "norm") != 0 && strcmp(info->role, "embed") != 0 && !is_bias(info->path);
    return MOEC_OK;
}

moec_status
mc_train_params_create(const moec_model *model, mc_train_params *out, mc_fault *fault)
{
    *out = (mc_train_params){.n = moec_train_n_params(model)};
    out->items = calloc(out->n + 1, sizeof *out->items);
    out->value_table = calloc(out->n + 1, sizeof *out->value_table);
    out->grad_table = calloc(out->n + 1, sizeof *out->grad_table);
    moec_status s = out->items && out->value_table && out->grad_table ? MOEC_OK : no_memory(fault);
    for (size_t i = 0; i < out->n && s == MOEC_OK; i++) s = describe(model, i, &out->items[i], fault);
    if (s != MOEC_OK) mc_train_params_destroy(out);
    return s;
}

/* How many parts of a parameter are cut into chunks by themselves: its experts. */
static size_t
n_parts(const mc_train_param *p)
{
    bool by_experts = p->experts || strcmp(p->info.role, "experts") == 0;
    return p->n && by_experts && p->info.rank > 0 ? (size_t)p->info.dims[0] : 1;
}

static bool
make_chunks(mc_train_params *p)
{
    for (size_t i = 0; i < p->n; i++) {
        size_t parts = n_parts(&p->items[i]);
        if (p->items[i].trained) p->n_chunks += parts * ((p->items[i].n / parts + CHUNK - 1) / CHUNK);
    }
    p->chunks = calloc(p->n_chunks + 1, sizeof *p->chunks);
    p->partial = calloc(p->n_chunks + 1, sizeof *p->partial);
    if (!p->chunks || !p->partial) return false;
    size_t k = 0;
    for (size_t i = 0; i < p->n; i++) {
        size_t each = p->items[i].n / n_parts(&p->items[i]), n = p->items[i].n;
        for (size_t begin = 0; p->items[i].trained && begin < n; begin += each)
            for (size_t at = begin, end = begin + each; at < end; at += CHUNK)
                p->chunks[k++] = (mc_train_chunk){(uint32_t)i, at, end - at < CHUNK ? end : at + CHUNK};
    }
    return true;
}

size_t
mc_train_param_bytes(const mc_train_param *p)
{
    return (p->n * moec_dtype_bytes(p->info.dtype) + ALIGN - 1) / ALIGN * ALIGN;
}

moec_status
mc_train_params_reserve(mc_train_params *p, mc_fault *fault)
{
    size_t value_bytes = 0, grad_bytes = 0, at = 0, grad_at = 0;
    for (size_t i = 0; i < p->n; i++) {
        const mc_train_param *item = &p->items[i];
        size_t n_bytes = mc_train_param_bytes(item);
        if (__builtin_add_overflow(value_bytes, n_bytes, &value_bytes) || value_bytes > SIZE_MAX / 4)
            return no_memory(fault);
        if (item->trained) grad_bytes += n_bytes;
        p->n_values += item->n;
        p->n_trained += item->trained ? item->n : 0;
    }
    moec_status s = make_chunks(p) ? MOEC_OK : no_memory(fault);
    if (s == MOEC_OK) s = mc_pages_alloc(value_bytes, "the parameters", &p->values, fault);
    if (s == MOEC_OK) s = mc_pages_alloc(grad_bytes, "the gradients", &p->grads, fault);
    if (s == MOEC_OK) s = mc_pages_alloc(2 * grad_bytes, "the optimizer", &p->moments, fault);
    for (size_t i = 0; i < p->n && s == MOEC_OK; i++) {
        mc_train_param *item = &p->items[i];
        size_t n_bytes = mc_train_param_bytes(item);
        p->value_table[i] = item->value = p->values.data + at;
        at += n_bytes;
        if (!item->trained) continue;
        p->grad_table[i] = item->grad = (float *)(void *)(p->grads.data + grad_at);
        item->m = (float *)(void *)(p->moments.data + 2 * grad_at);
        item->v = (float *)(void *)(p->moments.data + 2 * grad_at + n_bytes);
        grad_at += n_bytes;
    }
    return s;
}

void
mc_train_params_destroy(mc_train_params *p)
{
    mc_pages_free(&p->values);
    mc_pages_free(&p->grads);
    mc_pages_free(&p->moments);
    for (size_t i = 0; p->items && i < p->n; i++) free(p->items[i].experts);
    free(p->items);
    free(p->value_table);
    free(p->grad_table);
    free(p->chunks);
    free(p->partial);
    *p = (mc_train_params){0};
}

mc_train_param *
mc_train_params_find(const mc_train_params *p, const char *path)
{
    for (size_t i = 0; i < p->n; i++)
        if (strcmp(p->items[i].info.path, path) == 0) return &p->items[i];
    return NULL;
}

/* ---- what a step does, chunk by chunk ---- */

typedef struct job {
    mc_train_params *params;
    const mc_adamw *adamw;
    double lr, grad_scale;
    uint64_t t;
} job;

static void
zero_chunks(void *context, uint32_t thread, uint32_t n_threads)
{
    mc_train_params *p = ((const job *)context)->params;
    for (size_t i = thread; i < p->n_chunks; i += n_threads) {
        mc_train_chunk c = p->chunks[i];
        memset(p->items[c.param].grad + c.begin, 0, (c.end - c.begin) * sizeof(float));
    }
}

static void
square_chunks(void *context, uint32_t thread, uint32_t n_threads)
{
    mc_train_params *p = ((const job *)context)->params;
    for (size_t i = thread; i < p->n_chunks; i += n_threads) {
        mc_train_chunk c = p->chunks[i];
        p->partial[i] = mc_sum_of_squares(p->items[c.param].grad + c.begin, c.end - c.begin);
    }
}

static void
update_chunks(void *context, uint32_t thread, uint32_t n_threads)
{
    const job *j = context;
    for (size_t i = thread; i < j->params->n_chunks; i += n_threads) {
        mc_train_chunk c = j->params->chunks[i];
        mc_train_param *p = &j->params->items[c.param];
        mc_adamw_update(j->adamw, j->lr, p->decays ? j->adamw->decay : 0, j->t, j->grad_scale, c.end - c.begin,
                        (float *)p->value + c.begin, p->grad + c.begin, p->m + c.begin, p->v + c.begin);
    }
}

void
mc_train_params_zero_grads(mc_train_params *p, mc_pool *pool)
{
    job j = {.params = p};
    mc_pool_run(pool, zero_chunks, &j);
}

void
mc_train_params_square_grads(mc_train_params *p, mc_pool *pool)
{
    job j = {.params = p};
    mc_pool_run(pool, square_chunks, &j);
}

void
mc_train_params_update(mc_train_params *p, mc_pool *pool, const mc_adamw *a, double lr, uint64_t t, double grad_scale)
{
    job j = {p, a, lr, grad_scale, t};
    mc_pool_run(pool, update_chunks, &j);
}

const mc_train_param *
mc_train_params_not_finite(const mc_train_params *p, bool grads)
{
    for (size_t i = 0; i < p->n; i++) {
        const mc_train_param *item = &p->items[i];
        const float *x = grads ? item->grad : item->info.dtype == MOEC_F32 ? item->value : NULL;
        for (size_t k = 0; x && k < item->n; k++)
            if (!isfinite(x[k])) return item;
    }
    return NULL;
}
