#define _GNU_SOURCE
#include "driver/train/trainer.h"

#include "driver/train/train_memory.h"
#include "driver/train/train_start.h"

#include <assert.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

moec_status
mc_train_settings_of(const moec_model *model, mc_train_settings *out, mc_fault *fault)
{
    json_t *meta = json_loads(moec_model_meta(model), 0, NULL);
    const char *text = json_string_value(json_object_get(meta, "train"));
    moec_status s = mc_train_settings_parse(text ? text : "", out, fault);
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

/* ---- options ---- */

/* The longest windows that the model allows, at most DEFAULT_LENGTH. */
static uint64_t
default_length(const moec_model *model, const moec_abi_model *abi)
{
    char name[32];
    uint64_t length = DEFAULT_LENGTH;
    mc_train_dim_name(model, 1, name);
    for (uint32_t i = 0; abi && i < abi->n_syms; i++)
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
    moec_status s = mc_train_checkpoint_peek(o->out, step, at, fault);
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

/* Every rank takes equally many sequences, in rank order. */
static moec_status
share_batch(mc_trainer *t, mc_fault *fault)
{
    uint64_t batch = t->options.batch;
    t->share = batch / t->ranks.size;
    t->first = t->share * t->ranks.rank;
    if (batch % t->ranks.size == 0) return MOEC_OK;
    return mc_fail(fault, MOEC_ERR_ARGUMENT,
                   "--batch %" PRIu64 " does not divide among %u ranks: make it a multiple of them", batch,
                   t->ranks.size);
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

/* ---- memory ---- */

/* The next array of the batch. */
static void *
carve(mc_trainer *t, size_t *at, size_t n_bytes)
{
    void *address = t->buffers.data + *at;
    *at += mc_train_rounded(n_bytes);
    return address;
}

static void
lay_out(mc_trainer *t)
{
    size_t n_rows = (size_t)(t->share * t->options.length), at = 0;
    t->ids = carve(t, &at, n_rows * sizeof *t->ids);
    t->targets = carve(t, &at, n_rows * sizeof *t->targets);
    t->row_losses = carve(t, &at, n_rows * sizeof *t->row_losses);
    t->logits = carve(t, &at, n_rows * (size_t)t->vocab * sizeof *t->logits);
    assert(at == t->buffers.n_bytes);
}

/* Memory is reserved but not filled, so that too much of it would only be noticed in the middle of the first step. */
static moec_status
check_memory(const mc_train_memory *memory, mc_fault *fault)
{
    long n_pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t total = mc_train_memory_total(memory);
    if (n_pages <= 0 || page <= 0 || total / (uint64_t)page <= (uint64_t)n_pages) return MOEC_OK;
    return mc_fail(fault, MOEC_ERR_MEMORY,
                   "a step takes %.1f GB, and this machine has %.1f GB: make --batch or --length smaller, or try "
                   "--recompute (moec mem says what takes how much)",
                   (double)total / 1e9, (double)n_pages * (double)page / 1e9);
}

static moec_status
reserve(mc_trainer *t, mc_fault *fault)
{
    char names[2][32];
    mc_train_memory memory;
    const moec_limit dims[2] = {{names[0], (int64_t)t->share}, {names[1], (int64_t)t->options.length}};
    for (int i = 0; i < 2; i++) mc_train_dim_name(t->model, i, names[i]);
    moec_status s =
        mc_train_memory_of(t->model, &t->state.params, dims, 2, moec_threads_count(t->threads), &memory, fault);
    if (s == MOEC_OK) s = check_memory(&memory, fault);
    if (s != MOEC_OK) return s;
    s = mc_pages_alloc(memory.batch, "a batch", &t->buffers, fault);
    if (s == MOEC_OK) s = mc_pages_alloc(memory.saved, "what forward saves", &t->saved, fault);
    if (s == MOEC_OK) s = mc_pages_alloc(memory.workspace, "the workspace", &t->workspace, fault);
    if (s == MOEC_OK) lay_out(t);
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
    size_t n = moec_model_n_outputs(t->model), batch = t->share, length = t->options.length;
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
    for (size_t i = 0; i < t->state.routes.n_loads; i++) {
        const mc_train_load *load = &t->state.routes.loads[i];
        add_tensor(t->outputs, &t->n_outputs, t->model, load->output, load->now, 2 * load->n_experts * sizeof(float));
    }
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
    if (o->resume) {
        moec_status s = mc_train_checkpoint_read(o->out, t->state.at.step, &t->state, fault);
        t->state.at.n_steps = o->n_steps; /* the one thing that may be another than before */
        return s;
    }
    if (o->weights) return mc_train_start_from(&t->state.params, abi, o->weights, o->map, t->ranks.number, fault);
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
    if (s == MOEC_OK) s = mc_train_settings_of(model, &out->settings, fault);
    if (s == MOEC_OK) s = mc_train_ranks_open(model, options->comm, &out->ranks, fault);
    if (s == MOEC_OK) s = complete_options(out, abi, fault);
    if (s == MOEC_OK) s = share_batch(out, fault);
    if (s == MOEC_OK) s = open_data(out, fault);
    if (s == MOEC_OK) s = start_threads(out, fault);
    if (s == MOEC_OK) s = mc_train_params_create(model, &out->state.params, fault);
    if (s == MOEC_OK) s = mc_train_ranks_share(&out->ranks, &out->state.params, fault);
    if (s == MOEC_OK)
        s = mc_train_routes_find(model, &out->state.params, out->settings.has_bias, &out->state.routes, fault);
    if (s == MOEC_OK) s = reserve(out, fault);
    if (s == MOEC_OK) s = connect(out, fault);
    if (s == MOEC_OK) s = mc_train_params_reserve(&out->state.params, fault);
    if (s == MOEC_OK) s = start(out, abi, fault);
    if (s != MOEC_OK) mc_trainer_close(out);
    return s;
}

typedef struct checkpoint {
    const char *out, *name;
    const mc_train_state *state;
} checkpoint;

static moec_status
write_checkpoint(void *context, mc_fault *fault)
{
    const checkpoint *c = context;
    return mc_train_checkpoint_write(c->out, c->name, c->state, fault);
}

moec_status
mc_trainer_save(mc_trainer *t, mc_fault *fault)
{
    const mc_train_param *bad = mc_train_params_not_finite(&t->state.params, false);
    const char *name = moec_model_name(t->model);
    if (bad)
        return mc_fail(fault, MOEC_ERR_RANGE,
                       "step %" PRIu64 ": the parameter %s holds a value that is not finite; no checkpoint is written",
                       t->state.at.step, bad->info.path);
    if (!t->ranks.comm) return mc_train_checkpoint_write(t->options.out, name, &t->state, fault);
    mc_train_whole whole;
    moec_status s = mc_train_ranks_collect(&t->ranks, &t->state.params, &whole, fault);
    if (s != MOEC_OK) return s;
    mc_train_state state = t->state;
    state.params = whole.params;
    checkpoint c = {t->options.out, name, &state};
    s = mc_train_ranks_first(&t->ranks, write_checkpoint, &c, fault);
    mc_train_whole_destroy(&whole);
    return s;
}

void
mc_trainer_close(mc_trainer *t)
{
    mc_train_routes_destroy(&t->state.routes);
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
