/* train_params: see train_params.h. A weight table has an entry for each place where the plan reads a parameter or adds
 * to its gradient, so many entries share a path; sorting them by path finds the groups. */
#include "runtime/train_params.h"

#include <stdlib.h>
#include <string.h>

typedef struct entry {
    const char *path;
    uint32_t index;
} entry;

static int
by_path(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    int order = strcmp(x->path, y->path);
    return order ? order : (x->index > y->index) - (x->index < y->index);
}

/* leader[i]: the first entry with the path of entry i. */
static bool
find_leaders(const moec_abi_model *m, uint32_t *leader)
{
    entry *sorted = calloc((size_t)m->n_weights + 1, sizeof *sorted);
    if (!sorted) return false;
    for (uint32_t i = 0; i < m->n_weights; i++) sorted[i] = (entry){m->weights[i].path, i};
    qsort(sorted, m->n_weights, sizeof *sorted, by_path);
    for (uint32_t i = 0; i < m->n_weights; i++) {
        bool same = i && strcmp(sorted[i].path, sorted[i - 1].path) == 0;
        leader[sorted[i].index] = same ? leader[sorted[i - 1].index] : sorted[i].index;
    }
    free(sorted);
    return true;
}

static bool
same_shape(const moec_abi_weight *a, const moec_abi_weight *b)
{
    return a->rank == b->rank && memcmp(a->dims, b->dims, a->rank * sizeof *a->dims) == 0;
}

static moec_status
fill(moec_model *model, const uint32_t *leader, mc_fault *error)
{
    const moec_abi_model *m = model->abi;
    for (uint32_t i = 0; i < m->n_weights; i++) {
        const moec_abi_weight *w = &m->weights[i];
        if (leader[i] == i) {
            model->param_of[i] = model->n_params;
            model->params[model->n_params++].weight = w;
        }
        model->param_of[i] = model->param_of[leader[i]];
        mc_param *p = &model->params[model->param_of[i]];
        if (p->weight->layout != MOEC_ABI_ROWS || !same_shape(w, p->weight))
            return mc_fail(error, MOEC_ERR_INTERNAL, "the table of parameters is wrong at %s", w->path);
        p->has_gradient |= w->layout == MOEC_ABI_GRAD && w->nr == 0;
    }
    return MOEC_OK;
}

moec_status
mc_params_find(moec_model *model, mc_fault *error)
{
    size_t n = (size_t)model->abi->n_weights + 1;
    uint32_t *leader = calloc(n, sizeof *leader);
    model->params = calloc(n, sizeof *model->params);
    model->param_of = calloc(n, sizeof *model->param_of);
    moec_status s = MOEC_OK;
    if (!leader || !model->params || !model->param_of || !find_leaders(model->abi, leader))
        s = mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    if (s == MOEC_OK) s = fill(model, leader, error);
    free(leader);
    return s;
}

void
mc_params_free(moec_model *model)
{
    free(model->params);
    free(model->param_of);
}
