#define _GNU_SOURCE
#include "driver/train/train_routes.h"

#include <stdlib.h>
#include <string.h>

static moec_status
no_memory(mc_fault *fault)
{
    return mc_fail(fault, MOEC_ERR_MEMORY, "out of memory");
}

/* "layers.3.mlp.load", "load", or with a number behind it. False: another output. */
static bool
load_scope(const char *name, size_t *out_len)
{
    const char *last = NULL;
    for (const char *p = name; (p = strstr(p, "load")) != NULL; p++)
        if ((p == name || p[-1] == '.') && (p[4] == 0 || (p[4] == '.' && strspn(p + 5, "0123456789") == strlen(p + 5))))
            last = p;
    if (!last) return false;
    *out_len = last == name ? 0 : (size_t)(last - name) - 1;
    return true;
}

static moec_status
find_loads(const moec_model *model, mc_train_routes *r, mc_fault *fault)
{
    size_t n = moec_model_n_outputs(model), len;
    r->loads = calloc(n + 1, sizeof *r->loads);
    if (!r->loads) return no_memory(fault);
    for (size_t i = 0; i < n; i++) {
        moec_tensor_info info;
        if (moec_model_output(model, i, &info) != MOEC_OK || info.rank != 2 || info.dims[0] != 2 || info.dims[1] <= 0 ||
            moec_train_output_has_gradient(model, i) || !load_scope(info.name, &len))
            continue;
        mc_train_load *load = &r->loads[r->n_loads++];
        load->output = i;
        load->n_experts = (size_t)info.dims[1];
        load->scope = strndup(info.name, len);
        load->now = calloc(4 * load->n_experts, sizeof *load->now);
        if (!load->scope || !load->now) return no_memory(fault);
        load->sum = load->now + 2 * load->n_experts;
    }
    return MOEC_OK;
}

/* select_bias and logit_bias are vectors of the router, right under the scope of the moe. One without gradient is a
 * selection bias; of those with one, expert_scale is no bias. 0: none at all. */
static int
bias_score(const mc_train_load *load, const mc_train_param *p)
{
    size_t len = strlen(load->scope);
    const char *path = p->info.path, *name = len ? path + len + 1 : path;
    if (strcmp(p->info.role, "router") != 0 || p->info.dtype != MOEC_F32 || p->info.rank != 1 ||
        p->n != load->n_experts)
        return 0;
    if (len && (strncmp(path, load->scope, len) != 0 || path[len] != '.')) return 0;
    if (strchr(name, '.')) return 0;
    return !p->info.has_gradient ? 3 : strstr(name, "logit_bias") ? 2 : strcmp(name, "expert_scale") != 0;
}

static moec_status
find_biases(mc_train_params *params, mc_train_routes *r, mc_fault *fault)
{
    r->biases = calloc(r->n_loads + 1, sizeof *r->biases);
    if (!r->biases) return no_memory(fault);
    for (size_t i = 0; i < r->n_loads; i++) {
        mc_train_param *best = NULL;
        int score = 0;
        for (size_t k = 0; k < params->n; k++) {
            int this_score = bias_score(&r->loads[i], &params->items[k]);
            if (this_score <= score) continue;
            score = this_score;
            best = &params->items[k];
        }
        if (!best) continue;
        mc_train_bias *bias = &r->biases[r->n_biases++];
        *bias = (mc_train_bias){best, i, best->n, calloc(best->n, sizeof(float))};
        if (!bias->ema) return no_memory(fault);
        for (size_t e = 0; e < best->n; e++) bias->ema[e] = 1 / (float)best->n;
        best->trained = false; /* the rule alone moves it */
    }
    if (r->n_biases) return MOEC_OK;
    return mc_fail(fault, MOEC_ERR_UNSUPPORTED, "train: bias: no route of the model has a bias to move");
}

moec_status
mc_train_routes_find(const moec_model *model, mc_train_params *params, bool with_biases, mc_train_routes *out,
                     mc_fault *fault)
{
    *out = (mc_train_routes){0};
    moec_status s = find_loads(model, out, fault);
    if (s == MOEC_OK && with_biases) s = find_biases(params, out, fault);
    if (s != MOEC_OK) mc_train_routes_destroy(out);
    return s;
}

void
mc_train_routes_destroy(mc_train_routes *r)
{
    for (size_t i = 0; i < r->n_loads; i++) {
        free(r->loads[i].scope);
        free(r->loads[i].now);
    }
    for (size_t i = 0; i < r->n_biases; i++) free(r->biases[i].ema);
    free(r->loads);
    free(r->biases);
    *r = (mc_train_routes){0};
}
