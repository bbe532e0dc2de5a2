/* train_ranks: see train_ranks.h. */
#define _POSIX_C_SOURCE 200809L
#include "driver/train/train_ranks.h"

#include "runtime/abi_model.h"
#include "runtime/comm/comm.h"
#include "runtime/ranks.h"
#include "runtime/train_params.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static moec_status
no_memory(mc_fault *fault)
{
    return mc_fail(fault, MOEC_ERR_MEMORY, "out of memory");
}

static moec_status
give(mc_fault *fault, const moec_error *error, moec_status s)
{
    return s == MOEC_OK ? s : mc_fail(fault, s, "%s", error->text);
}

moec_status
mc_train_ranks_open(const moec_model *model, moec_comm *comm, mc_train_ranks *out, mc_fault *fault)
{
    *out = (mc_train_ranks){.model = model, .size = 1};
    moec_status s = mc_ranks_check(model->abi, comm, &out->number, fault);
    if (s != MOEC_OK) return s;
    if (mc_ranks_needed(model->abi) == 1) return MOEC_OK;
    out->comm = comm;
    out->rank = moec_comm_rank(comm);
    out->size = moec_comm_size(comm);
    return MOEC_OK;
}

moec_status
mc_train_ranks_share(const mc_train_ranks *r, mc_train_params *params, mc_fault *fault)
{
    for (size_t i = 0; i < params->n && r->comm; i++) {
        const moec_abi_weight *w = r->model->params[i].weight;
        mc_train_param *p = &params->items[i];
        if (!w->experts) continue;
        p->experts = calloc((size_t)w->dims[0], sizeof *p->experts);
        if (!p->experts) return no_memory(fault);
        p->n_experts = w->experts;
        for (int64_t s = 0; s < w->dims[0]; s++) p->experts[s] = mc_weights_expert(r->model->abi, w, r->number, s);
    }
    return MOEC_OK;
}

/* ---- words between ranks ----------------------------------------------------------------------------------------- */

moec_status
mc_train_ranks_sum(const mc_train_ranks *r, const double *values, size_t n, double *out, mc_fault *fault)
{
    const double *all = values;
    double *room = NULL;
    moec_error error = {0};
    *out = 0;
    if (r->comm) {
        all = room = calloc(n * r->size + 1, sizeof *room);
        if (!room) return no_memory(fault);
        moec_status s = moec_comm_gather(r->comm, values, n * sizeof *values, room, &error);
        if (s != MOEC_OK) {
            free(room);
            return give(fault, &error, s);
        }
    }
    for (size_t i = 0; i < n * r->size; i++) *out += all[i];
    free(room);
    return MOEC_OK;
}

moec_status
mc_train_ranks_reduce(const mc_train_ranks *r, mc_train_params *params, mc_fault *fault)
{
    moec_error error = {0};
    if (!r->comm) return MOEC_OK;
    return give(fault, &error, moec_train_reduce(r->model, r->comm, params->grad_table, &error));
}

moec_status
mc_train_ranks_any(const mc_train_ranks *r, bool *said, mc_fault *fault)
{
    unsigned char own = *said, all[MC_COMM_MAX_RANKS];
    moec_error error = {0};
    if (!r->comm) return MOEC_OK;
    moec_status s = moec_comm_gather(r->comm, &own, 1, all, &error);
    for (uint32_t i = 0; i < r->size && s == MOEC_OK; i++) *said = *said || all[i];
    return give(fault, &error, s);
}

/* ---- what one rank does for all ---------------------------------------------------------------------------------- */

typedef struct errand {
    mc_train_task *task;
    void *context;
    moec_status status;
    mc_fault fault;
    atomic_bool done;
} errand;

static void *
run_errand(void *argument)
{
    errand *e = argument;
    e->status = e->task(e->context, &e->fault);
    atomic_store(&e->done, true);
    return NULL;
}

/* Rank 0 says so often that it is at it: less than any deadline. */
static const struct timespec beat = {.tv_nsec = 4000000};

moec_status
mc_train_ranks_first(const mc_train_ranks *r, mc_train_task *task, void *context, mc_fault *fault)
{
    unsigned char own, all[MC_COMM_MAX_RANKS] = {0};
    errand e = {.task = task, .context = context};
    moec_error error = {0};
    moec_status s = MOEC_OK;
    pthread_t thread;
    bool apart = r->rank == 0 && r->size > 1 && pthread_create(&thread, NULL, run_errand, &e) == 0;
    if (r->rank == 0 && !apart) run_errand(&e);
    while (r->comm && s == MOEC_OK && !all[0]) {
        if (apart && !atomic_load(&e.done)) nanosleep(&beat, NULL);
        own = r->rank == 0 && atomic_load(&e.done);
        s = moec_comm_gather(r->comm, &own, 1, all, &error);
    }
    if (apart) pthread_join(thread, NULL);
    if (e.status != MOEC_OK) return mc_fail(fault, e.status, "%s", e.fault.text);
    return give(fault, &error, s);
}

/* The chunks of a parameter lie one behind the other, and those of each of its experts too: `partial` of rank number g
 * are at all + g * n_chunks. */
static double
add_experts(const mc_train_ranks *r, const mc_train_params *p, const double *all, uint32_t param, size_t first,
            size_t n, double sum)
{
    const moec_abi_weight *w = r->model->params[param].weight;
    size_t each = n / (size_t)w->dims[0];
    for (int64_t e = 0; e < w->experts; e++)
        for (uint32_t g = 0; g < r->model->abi->ep->n_ranks; g++)
            for (int64_t s = 0; s < w->dims[0]; s++)
                for (size_t k = 0; k < each && mc_weights_expert(r->model->abi, w, g, s) == e; k++)
                    sum += all[g * p->n_chunks + first + (size_t)s * each + k];
    return sum;
}

moec_status
mc_train_ranks_grad_norm(const mc_train_ranks *r, mc_train_params *p, mc_pool *pool, double *out, mc_fault *fault)
{
    moec_error error = {0};
    double sum = 0;
    mc_train_params_square_grads(p, pool);
    double *all = r->comm ? calloc(p->n_chunks * r->size + 1, sizeof *all) : p->partial;
    if (!all) return no_memory(fault);
    moec_status s = r->comm ? moec_comm_gather(r->comm, p->partial, p->n_chunks * sizeof *all, all, &error) : MOEC_OK;
    for (size_t i = 0, end; i < p->n_chunks && s == MOEC_OK; i = end) {
        uint32_t param = p->chunks[i].param;
        for (end = i; end < p->n_chunks && p->chunks[end].param == param;) end++;
        if (p->items[param].experts)
            sum = add_experts(r, p, all, param, i, end - i, sum);
        else
            for (size_t k = i; k < end; k++) sum += all[k];
    }
    if (r->comm) free(all);
    *out = sqrt(sum);
    return give(fault, &error, s);
}

/* ---- all experts in one place ------------------------------------------------------------------------------------ */

/* From the ranks of the first replica, each of which has `slots` experts of n_bytes. */
static moec_status
collect_array(const mc_train_ranks *r, const moec_abi_weight *w, void *own, size_t n_bytes, unsigned char *room,
              unsigned char *whole, mc_fault *fault)
{
    mc_comm_run send[MC_COMM_MAX_RANKS] = {{0}}, recv[MC_COMM_MAX_RANKS] = {{0}};
    uint32_t peers[MC_COMM_MAX_RANKS], n_ranks = r->model->abi->ep->n_ranks;
    size_t share = (size_t)w->dims[0] * n_bytes;
    for (uint32_t i = 0; i < r->size; i++) {
        peers[i] = i;
        if (r->rank == 0 && i < n_ranks) recv[i] = (mc_comm_run){room + i * share, share};
    }
    if (r->rank < n_ranks) send[0] = (mc_comm_run){own, share};
    mc_exchange x = {.what = "a checkpoint", .n_peers = r->size, .peers = peers, .send = send, .recv = recv};
    moec_status s = mc_comm_exchange(r->comm, &x, fault);
    for (uint32_t g = 0; g < n_ranks && s == MOEC_OK && r->rank == 0; g++)
        for (int64_t slot = 0; slot < w->dims[0]; slot++) {
            int64_t e = mc_weights_expert(r->model->abi, w, g, slot);
            if (e >= 0) memcpy(whole + (size_t)e * n_bytes, room + g * share + (size_t)slot * n_bytes, n_bytes);
        }
    return s;
}

/* Room for every array of all experts on rank 0, and behind it *out_room for one as it arrives. */
static moec_status
reserve(const mc_train_ranks *r, const mc_train_params *params, mc_pages *pages, size_t *out_room, mc_fault *fault)
{
    size_t total = 0, most = 0;
    for (size_t i = 0; i < params->n; i++) {
        const mc_train_param *p = &params->items[i];
        if (!p->experts) continue;
        size_t each = p->n / (size_t)p->info.dims[0] * moec_dtype_bytes(p->info.dtype);
        size_t sent = p->n * moec_dtype_bytes(p->info.dtype) * r->model->abi->ep->n_ranks;
        most = sent > most ? sent : most;
        total += each * (size_t)p->n_experts * (p->trained ? 3 : 1);
    }
    *out_room = total;
    return mc_pages_alloc(r->rank == 0 ? total + most : 0, "a checkpoint", pages, fault);
}

moec_status
mc_train_ranks_collect(const mc_train_ranks *r, const mc_train_params *params, mc_train_whole *out, mc_fault *fault)
{
    size_t room, at = 0;
    *out = (mc_train_whole){.params = *params};
    out->params.items = calloc(params->n + 1, sizeof *out->params.items);
    if (!out->params.items) return no_memory(fault);
    memcpy(out->params.items, params->items, params->n * sizeof *params->items);
    moec_status s = reserve(r, params, &out->pages, &room, fault);
    for (size_t i = 0; i < params->n && s == MOEC_OK; i++) {
        mc_train_param *p = &out->params.items[i];
        if (!p->experts) continue;
        size_t each = p->n / (size_t)p->info.dims[0];
        void *own[] = {p->value, p->m, p->v};
        unsigned char *arrays[3] = {0};
        for (int k = 0; k < (p->trained ? 3 : 1) && s == MOEC_OK; k++) {
            size_t n_bytes = each * moec_dtype_bytes(p->info.dtype);
            if (r->rank == 0) arrays[k] = out->pages.data + at;
            at += n_bytes * (size_t)p->n_experts;
            s = collect_array(r, r->model->params[i].weight, own[k], n_bytes, out->pages.data + room, arrays[k], fault);
        }
        p->value = arrays[0];
        p->m = (float *)(void *)arrays[1];
        p->v = (float *)(void *)arrays[2];
        p->info.dims[0] = p->n_experts;
        p->n = each * (size_t)p->n_experts;
    }
    if (s != MOEC_OK) mc_train_whole_destroy(out);
    if (r->rank != 0) out->params.n = 0;
    return s;
}

void
mc_train_whole_destroy(mc_train_whole *w)
{
    free(w->params.items);
    mc_pages_free(&w->pages);
    *w = (mc_train_whole){0};
}
