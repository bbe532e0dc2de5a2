#define _GNU_SOURCE
#include "driver/train/trainer.h"

#include "driver/train/cross_entropy.h"
#include "driver/train/train_start.h"
#include "runtime/base/clock.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_STEPS = 1000, DEFAULT_BATCH = 8, DEFAULT_LENGTH = 256, MAX_COUNT = 1 << 24 };

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

/* ---- the model ---- */

static moec_status
read_settings(mc_trainer *t, mc_fault *fault)
{
    json_t *meta = json_loads(moec_model_meta(t->model), 0, NULL);
    const char *text = json_string_value(json_object_get(meta, "train"));
    moec_status s = mc_train_settings_parse(text ? text : "", &t->settings, fault);
    json_decref(meta);
    return s;
}

static moec_status
check_model(mc_trainer *t, mc_fault *fault)
{
    if (!moec_model_is_trainable(t->model))
        return mc_fail(fault, MOEC_ERR_UNSUPPORTED, "%s was not compiled for training", moec_model_name(t->model));
    t->vocab = moec_model_vocab(t->model);
    if (t->vocab > 0) return MOEC_OK;
    return mc_fail(
        fault, MOEC_ERR_UNSUPPORTED,
        "%s is no language model, which has one input of ids i32[B, S] and a result f32[B, S, V]: train it in "
        "a loop of your own (moec/train.h, or the Python package)",
        moec_model_name(t->model));
}

/* The name of a dimension of the ids, "[B, S]". */
static moec_limit
limit_of(const moec_model *model, int axis, int64_t value, char name[32])
{
    moec_tensor_info info = {0};
    moec_limit limit = {name, value};
    name[0] = 0;
    if (moec_model_input(model, 0, &info) != MOEC_OK) return limit;
    sscanf(info.shape, axis ? "[%*[^,], %31[^]]" : "[%31[^,]", name);
    return limit;
}

/* ---- options ---- */

/* The longest windows that the model allows, at most DEFAULT_LENGTH. */
static uint64_t
default_length(const moec_model *model, const moec_abi_model *abi)
{
    char name[32];
    uint64_t length = DEFAULT_LENGTH;
    limit_of(model, 1, 0, name);
    for (uint32_t i = 0; i < abi->n_syms; i++)
        if (strcmp(abi->syms[i].name, name) == 0 && abi->syms[i].hi > 0 && (uint64_t)abi->syms[i].hi < length)
            length = (uint64_t)abi->syms[i].hi;
    return length;
}

/* What was given must agree with the run that is continued; what was not is taken from there. */
static moec_status
agree(uint64_t given, uint64_t recorded, const char *name, mc_fault *fault)
{
    if (!given || given == recorded) return MOEC_OK;
    return mc_fail(fault, MOEC_ERR_MISMATCH,
                   "the run was begun with --%s %" PRIu64 ", not %" PRIu64 "; to go on in another way, begin a new run "
                   "with --weights",
                   name, recorded, given);
}

static moec_status
read_position(mc_trainer *t, mc_fault *fault)
{
    mc_train_options *o = &t->options;
    mc_train_position *at = &t->state.at;
    uint64_t step = mc_train_latest(o->out);
    if (!step) return mc_fail(fault, MOEC_ERR_NOT_FOUND, "%s holds no checkpoint to resume from", o->out);
    moec_status s = mc_train_peek(o->out, step, at, fault);
    if (s == MOEC_OK) s = agree(o->batch, at->batch, "batch", fault);
    if (s == MOEC_OK) s = agree(o->length, at->length, "length", fault);
    if (s == MOEC_OK) s = agree(o->accumulate, at->accumulate, "accumulate", fault);
    if (s == MOEC_OK && o->has_seed && o->seed != at->seed) s = agree(o->seed ? o->seed : 1, at->seed, "seed", fault);
    if (s == MOEC_OK && o->model_hash != at->model)
        s = mc_fail(
            fault, MOEC_ERR_MISMATCH,
            "the text of the model, or what overrides it, has changed since the run began: begin a new run with "
            "--weights %s/step-%06" PRIu64 " and another --out",
            o->out, step);
    if (s != MOEC_OK) return s;
    if (!o->n_steps) o->n_steps = at->n_steps;
    if (o->n_steps < step)
        return mc_fail(fault, MOEC_ERR_ARGUMENT, "the run is at step %" PRIu64 " already, beyond --steps %" PRIu64,
                       step, o->n_steps);
    at->n_steps = o->n_steps;
    return MOEC_OK;
}

static moec_status
complete_options(mc_trainer *t, const moec_abi_model *abi, mc_fault *fault)
{
    mc_train_options *o = &t->options;
    mc_train_position *at = &t->state.at;
    if (o->resume) {
        moec_status s = read_position(t, fault);
        if (s != MOEC_OK) return s;
    } else {
        *at = (mc_train_position){.n_steps = o->n_steps ? o->n_steps : DEFAULT_STEPS,
                                  .batch = o->batch ? o->batch : DEFAULT_BATCH,
                                  .length = o->length ? o->length : default_length(t->model, abi),
                                  .accumulate = o->accumulate ? o->accumulate : 1,
                                  .seed = o->has_seed ? o->seed : t->settings.seed,
                                  .model = o->model_hash};
        if (o->out && mc_train_latest(o->out))
            return mc_fail(fault, MOEC_ERR_ARGUMENT,
                           "%s holds a run already (step-%06" PRIu64 "): --resume continues it, or name another --out",
                           o->out, mc_train_latest(o->out));
    }
    o->n_steps = at->n_steps;
    o->batch = at->batch;
    o->length = at->length;
    o->accumulate = at->accumulate;
    o->seed = at->seed;
    if (at->batch > MAX_COUNT || at->length > MAX_COUNT || at->accumulate > MAX_COUNT)
        return mc_fail(fault, MOEC_ERR_RANGE, "--batch, --length and --accumulate are at most %d", MAX_COUNT);
    return MOEC_OK;
}

static moec_status
open_data(mc_trainer *t, mc_fault *fault)
{
    mc_train_position *at = &t->state.at;
    const char *path = t->options.data;
    uint64_t recorded = at->data;
    moec_status s = mc_train_data_open(path, t->vocab, &t->data, fault);
    if (s != MOEC_OK) return s;
    if (t->data.n_tokens <= at->length)
        return mc_fail(fault, MOEC_ERR_RANGE,
                       "%s has %zu ids; windows of --length %" PRIu64 " and the id after them need at least %" PRIu64,
                       path, t->data.n_tokens, at->length, at->length + 1);
    at->data = t->data.hash;
    if (t->options.resume && recorded != at->data)
        return mc_fail(fault, MOEC_ERR_MISMATCH, "%s is not the text that the run was begun with", path);
    return MOEC_OK;
}

/* ---- loads and biases ---- */

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
find_loads(mc_trainer *t, mc_fault *fault)
{
    size_t n = moec_model_n_outputs(t->model), len;
    t->loads = calloc(n + 1, sizeof *t->loads);
    if (!t->loads) return no_memory(fault);
    for (size_t i = 0; i < n; i++) {
        moec_tensor_info info;
        if (moec_model_output(t->model, i, &info) != MOEC_OK || info.rank != 2 || info.dims[0] != 2 ||
            info.dims[1] <= 0 || moec_train_output_has_gradient(t->model, i) || !load_scope(info.name, &len))
            continue;
        mc_train_load_output *load = &t->loads[t->n_loads++];
        load->output = i;
        load->n_experts = (size_t)info.dims[1];
        load->scope = strndup(info.name, len);
        load->now = calloc(4 * load->n_experts, sizeof *load->now);
        load->sum = load->now ? load->now + 2 * load->n_experts : NULL;
        if (!load->scope || !load->now) return no_memory(fault);
    }
    return MOEC_OK;
}

/* select_bias and logit_bias are vectors of the router, right under the scope of the moe. One without gradient is a
 * selection bias; of those with one, expert_scale is no bias. */
static int
bias_score(const mc_train_load_output *load, const mc_train_param *p)
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
find_biases(mc_trainer *t, mc_fault *fault)
{
    if (!t->settings.has_bias) return MOEC_OK;
    t->state.biases = calloc(t->n_loads + 1, sizeof *t->state.biases);
    if (!t->state.biases) return no_memory(fault);
    for (size_t i = 0; i < t->n_loads; i++) {
        mc_train_param *best = NULL;
        for (size_t k = 0; k < t->state.params.n; k++) {
            mc_train_param *p = &t->state.params.items[k];
            if (bias_score(&t->loads[i], p) > (best ? bias_score(&t->loads[i], best) : 0)) best = p;
        }
        if (!best) continue;
        mc_train_bias *bias = &t->state.biases[t->state.n_biases++];
        *bias = (mc_train_bias){best, i, t->loads[i].n_experts, calloc(best->n + 1, sizeof(float))};
        if (!bias->ema) return no_memory(fault);
        for (size_t e = 0; e < best->n; e++) bias->ema[e] = 1 / (float)best->n;
        best->trained = false; /* the rule alone moves it */
    }
    if (t->state.n_biases) return MOEC_OK;
    return mc_fail(fault, MOEC_ERR_UNSUPPORTED, "train: bias: no route of the model has a bias to move");
}

/* ---- memory ---- */

/* Takes n_bytes from a buffer that is laid out as it is counted: without data only *at moves. */
static void *
carve(mc_trainer *t, size_t *at, size_t n_bytes)
{
    void *address = t->buffers.data ? t->buffers.data + *at : NULL;
    *at += (n_bytes + 63) / 64 * 64;
    return address;
}

static void
lay_out(mc_trainer *t, size_t *at)
{
    size_t n_rows = (size_t)(t->options.batch * t->options.length);
    t->ids = carve(t, at, n_rows * sizeof *t->ids);
    t->targets = carve(t, at, n_rows * sizeof *t->targets);
    t->row_losses = carve(t, at, n_rows * sizeof *t->row_losses);
    t->logits = carve(t, at, n_rows * (size_t)t->vocab * sizeof *t->logits);
}

static moec_status
reserve(mc_trainer *t, mc_fault *fault)
{
    char names[2][32];
    moec_limit dims[2] = {limit_of(t->model, 0, (int64_t)t->options.batch, names[0]),
                          limit_of(t->model, 1, (int64_t)t->options.length, names[1])};
    moec_train_sizes sizes;
    moec_error error = {0};
    size_t n_bytes = 0, n_values;
    if (__builtin_mul_overflow(t->options.batch * t->options.length, (uint64_t)t->vocab, &n_values) ||
        n_values > SIZE_MAX / 64)
        return mc_fail(fault, MOEC_ERR_RANGE, "--batch %" PRIu64 " --length %" PRIu64 " is larger than memory",
                       t->options.batch, t->options.length);
    moec_status s = moec_train_query(t->model, dims, 2, moec_threads_count(t->threads), &sizes, &error);
    if (s != MOEC_OK) return give(fault, &error, s);
    lay_out(t, &n_bytes);
    s = mc_pages_alloc(n_bytes, "a batch", &t->buffers, fault);
    if (s == MOEC_OK) s = mc_pages_alloc(sizes.saved_bytes, "what forward saves", &t->saved, fault);
    if (s == MOEC_OK) s = mc_pages_alloc(sizes.workspace_bytes, "the workspace", &t->workspace, fault);
    n_bytes = 0;
    if (s == MOEC_OK) lay_out(t, &n_bytes);
    return s;
}

static void
add_tensor(moec_tensor *list, size_t *n, const moec_model *model, size_t output, void *data, size_t n_bytes)
{
    moec_tensor_info info;
    if (moec_model_output(model, output, &info) != MOEC_OK) return;
    moec_tensor *t = &list[(*n)++];
    *t = (moec_tensor){.name = info.name, .dtype = info.dtype, .rank = info.rank, .data = data, .n_bytes = n_bytes};
    memcpy(t->dims, info.dims, sizeof t->dims);
}

static moec_status
connect(mc_trainer *t, mc_fault *fault)
{
    size_t n = moec_model_n_outputs(t->model), batch = t->options.batch, length = t->options.length;
    t->outputs = calloc(n + 1, sizeof *t->outputs);
    t->cotangents = calloc(n + 1, sizeof *t->cotangents);
    if (!t->outputs || !t->cotangents) return no_memory(fault);
    add_tensor(t->outputs, &t->n_outputs, t->model, 0, t->logits,
               batch * length * (size_t)t->vocab * sizeof *t->logits);
    t->outputs[0].dims[0] = (int64_t)batch;
    t->outputs[0].dims[1] = (int64_t)length;
    t->cotangents[t->n_cotangents++] = t->outputs[0];
    t->aux_factor = (float)(t->settings.aux_weight / (double)t->options.accumulate);
    t->z_factor = (float)(t->settings.z_weight / (double)t->options.accumulate);
    for (size_t i = 1; i < n; i++) {
        moec_tensor_info info;
        if (moec_model_output(t->model, i, &info) != MOEC_OK || !moec_train_output_has_gradient(t->model, i)) continue;
        bool is_aux = strcmp(info.name, "aux") == 0;
        if (info.rank != 0 || (!is_aux && strcmp(info.name, "z") != 0)) continue;
        add_tensor(t->outputs, &t->n_outputs, t->model, i, is_aux ? &t->aux : &t->z, sizeof t->aux);
        add_tensor(t->cotangents, &t->n_cotangents, t->model, i, is_aux ? &t->aux_factor : &t->z_factor,
                   sizeof t->aux_factor);
    }
    for (size_t i = 0; i < t->n_loads; i++)
        add_tensor(t->outputs, &t->n_outputs, t->model, t->loads[i].output, t->loads[i].now,
                   2 * t->loads[i].n_experts * sizeof(float));
    return MOEC_OK;
}

uint64_t
mc_trainer_bytes(const mc_trainer *t)
{
    const mc_train_params *p = &t->state.params;
    return p->values.n_bytes + p->grads.n_bytes + p->moments.n_bytes + t->buffers.n_bytes + t->saved.n_bytes +
           t->workspace.n_bytes;
}

/* ---- open, close ---- */

static moec_status
start(mc_trainer *t, const moec_abi_model *abi, mc_fault *fault)
{
    const mc_train_options *o = &t->options;
    if (o->resume) return mc_train_load(o->out, t->state.at.step, &t->state, fault);
    if (o->weights) return mc_train_start_from(&t->state.params, abi, o->weights, o->map, fault);
    return mc_train_start_fresh(&t->state.params, o->seed, fault);
}

static moec_status
start_threads(mc_trainer *t, mc_fault *fault)
{
    moec_error error = {0};
    moec_status s = moec_threads_create(t->options.n_threads, &t->threads, &error);
    if (s != MOEC_OK) return give(fault, &error, s);
    return mc_pool_create(moec_threads_count(t->threads), NULL, NULL, &t->pool, fault);
}

moec_status
mc_trainer_open(const moec_model *model, const moec_abi_model *abi, const mc_train_options *options, mc_trainer *out,
                mc_fault *fault)
{
    *out = (mc_trainer){.model = model, .options = *options};
    moec_status s = check_model(out, fault);
    if (s == MOEC_OK) s = read_settings(out, fault);
    if (s == MOEC_OK) s = complete_options(out, abi, fault);
    if (s == MOEC_OK) s = open_data(out, fault);
    if (s == MOEC_OK) s = start_threads(out, fault);
    if (s == MOEC_OK) s = mc_train_params_create(model, &out->state.params, fault);
    if (s == MOEC_OK) s = find_loads(out, fault);
    if (s == MOEC_OK) s = find_biases(out, fault);
    if (s == MOEC_OK) s = reserve(out, fault);
    if (s == MOEC_OK) s = connect(out, fault);
    if (s == MOEC_OK) s = mc_train_params_reserve(&out->state.params, fault);
    if (s == MOEC_OK) s = start(out, abi, fault);
    if (s != MOEC_OK) mc_trainer_close(out);
    return s;
}

void
mc_trainer_close(mc_trainer *t)
{
    for (size_t i = 0; i < t->n_loads; i++) {
        free(t->loads[i].scope);
        free(t->loads[i].now);
    }
    for (size_t i = 0; i < t->state.n_biases; i++) free(t->state.biases[i].ema);
    free(t->loads);
    free(t->state.biases);
    free(t->outputs);
    free(t->cotangents);
    mc_train_params_destroy(&t->state.params);
    mc_train_data_close(&t->data);
    mc_pages_free(&t->buffers);
    mc_pages_free(&t->saved);
    mc_pages_free(&t->workspace);
    mc_pool_destroy(t->pool);
    moec_threads_destroy(t->threads);
    *t = (mc_trainer){0};
}
