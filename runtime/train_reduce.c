/* Gradients of a step, added up over the ranks that hold the same parameter. */
#include "moec/train.h"
#include "runtime/ep/ep.h"
#include "runtime/ranks.h"
#include "runtime/train_params.h"

#include <stdlib.h>

static int64_t
count_of(const moec_abi_weight *w)
{
    int64_t n = 1;
    for (uint32_t d = 0; d < w->rank; d++) n *= w->dims[d];
    return n;
}

/* The ranks that hold this parameter: all, or of an expert its replicas. list: room for all. */
static mc_ep_group
holders(const moec_abi_ep *ep, const moec_abi_weight *w, uint32_t rank, uint32_t *list)
{
    mc_ep_group g = {.ranks = list};
    uint32_t step = w->experts ? ep->n_ranks : 1;
    for (uint32_t r = w->experts ? rank % ep->n_ranks : 0; r < ep->n_ranks * ep->n_replicas; r += step) {
        if (r == rank) g.me = g.n_ranks;
        list[g.n_ranks++] = r;
    }
    return g;
}

static moec_status
reduce(const moec_model *model, moec_comm *comm, float *const *grads, mc_fault *error)
{
    const moec_abi_model *m = model->abi;
    uint32_t number;
    int64_t most = 0;
    if (!model->trainable)
        return mc_fail(error, MOEC_ERR_UNSUPPORTED, "%s was not compiled for training (compile it with `train`)",
                       m->name);
    moec_status s = mc_ranks_check(m, comm, &number, error);
    if (s != MOEC_OK || !m->ep || !m->ep->reduced) return s;
    if (!grads) return mc_fail(error, MOEC_ERR_ARGUMENT, "there are no gradients to add up");
    for (size_t i = 0; i < model->n_params; i++)
        if (grads[i] && count_of(model->params[i].weight) > most) most = count_of(model->params[i].weight);
    uint32_t *list = malloc(mc_ranks_needed(m) * sizeof *list);
    float *scratch = malloc((size_t)(most ? most : 1) * sizeof *scratch);
    if (!list || !scratch) s = mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    for (size_t i = 0; s == MOEC_OK && i < model->n_params; i++) {
        const mc_param *p = &model->params[i];
        if (!grads[i] || !p->has_gradient) continue;
        mc_ep_group g = holders(m->ep, p->weight, moec_comm_rank(comm), list);
        if (g.n_ranks > 1) s = mc_ep_all_reduce(comm, &g, grads[i], count_of(p->weight), scratch, error);
    }
    free(list);
    free(scratch);
    return s;
}

moec_status
moec_train_reduce(const moec_model *model, moec_comm *comm, float *const *param_grads, moec_error *error)
{
    mc_fault e = {{0}};
    return mc_give(error, &e, reduce(model, comm, param_grads, &e));
}
