/* abi_model: handles for compiled models: reading the descriptor, and answering questions about it.
 * Its tables come from our own compiler, yet a wrong one would mean a wild pointer in a host process; checking every
 * index once costs microseconds. What the tables say wrongly is MOEC_ERR_INTERNAL: a fault of ours. */
#include "runtime/abi_model.h"

#include "runtime/train_params.h"

#include "runtime/host_cpu.h"
#include "runtime/pack.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool
mc_expr_eval(const moec_abi_expr *e, const int64_t *syms, int64_t *out)
{
    int64_t v = e->mul;
    for (int i = 0; i < 8 && e->syms[i] != MC_NO_SYM; i++) {
        if (syms[e->syms[i]] < 0) return false;
        if (__builtin_mul_overflow(v, syms[e->syms[i]], &v)) return false;
    }
    return !__builtin_add_overflow(v, e->add, out);
}

int64_t
mc_expr_const(const moec_abi_expr *e)
{
    return e->mul == 0 || e->syms[0] != MC_NO_SYM ? e->add : e->mul + e->add;
}

bool
mc_expr_is_const(const moec_abi_expr *e)
{
    return e->syms[0] == MC_NO_SYM || e->mul == 0;
}

void
mc_expr_text(const moec_abi_model *abi, const moec_abi_expr *e, char *out, size_t n_bytes)
{
    if (mc_expr_is_const(e)) {
        snprintf(out, n_bytes, "%lld", (long long)mc_expr_const(e));
        return;
    }
    size_t len = 0;
    out[0] = 0;
    if (e->mul != 1) len = (size_t)snprintf(out, n_bytes, "%lld*", (long long)e->mul);
    for (int i = 0; i < 8 && e->syms[i] != MC_NO_SYM && len < n_bytes; i++)
        len += (size_t)snprintf(out + len, n_bytes - len, "%s%s", i ? "*" : "", abi->syms[e->syms[i]].name);
    if (e->add && len < n_bytes) snprintf(out + len, n_bytes - len, "%+lld", (long long)e->add);
}

moec_status
mc_give(moec_error *out, const mc_fault *in, moec_status status)
{
    if (!out) return status;
    if (status == MOEC_OK)
        out->text[0] = 0;
    else
        snprintf(out->text, sizeof out->text, "%s", in->text[0] ? in->text : moec_status_name(status));
    return status;
}

static bool
expr_ok(const moec_abi_model *m, const moec_abi_expr *e)
{
    for (int i = 0; i < 8 && e->syms[i] != MC_NO_SYM; i++)
        if (e->syms[i] >= m->n_syms) return false;
    return true;
}

static bool
span_ok(uint32_t first, uint32_t n, uint32_t total)
{
    return first <= total && n <= total - first;
}

static bool
tensor_ok(const moec_abi_model *m, const moec_abi_tensor *t)
{
    if (!t->name || t->rank > MOEC_ABI_MAX_RANK || moec_dtype_bytes((moec_dtype)t->dtype) == 0) return false;
    for (uint32_t i = 0; i < t->rank; i++)
        if (!expr_ok(m, &t->dims[i])) return false;
    return true;
}

static moec_status
check_tables(const moec_abi_model *m, mc_fault *error)
{
    if (!m->name || !m->rules || !m->meta || !m->strings || !m->features || !m->compiler || !m->cpu || !m->target)
        return mc_fail(error, MOEC_ERR_INTERNAL, "the artefact has a null text");
    if (m->n_syms >= MC_NO_SYM || m->entry >= m->n_funcs)
        return mc_fail(error, MOEC_ERR_INTERNAL, "the artefact's symbol or function table is wrong");
    for (uint32_t i = 0; i < m->n_inputs; i++)
        if (!tensor_ok(m, &m->inputs[i])) return mc_fail(error, MOEC_ERR_INTERNAL, "input %u is malformed", i);
    for (uint32_t i = 0; i < m->n_outputs; i++)
        if (!tensor_ok(m, &m->outputs[i])) return mc_fail(error, MOEC_ERR_INTERNAL, "output %u is malformed", i);
    for (uint32_t i = 0; i < m->n_exprs; i++)
        if (!expr_ok(m, &m->exprs[i])) return mc_fail(error, MOEC_ERR_INTERNAL, "expression %u is malformed", i);
    for (uint32_t i = 0; i < m->n_refs; i++)
        if (!expr_ok(m, &m->refs[i].offset) || m->refs[i].place > MOEC_ABI_STATE)
            return mc_fail(error, MOEC_ERR_INTERNAL, "reference %u is malformed", i);
    for (uint32_t i = 0; i < m->n_slots; i++)
        if (!span_ok(m->slots[i].first_expr, m->slots[i].n_exprs, m->n_exprs))
            return mc_fail(error, MOEC_ERR_INTERNAL, "slot %u is malformed", i);
    for (uint32_t i = 0; i < m->n_syms; i++)
        if (!m->syms[i].name || (m->syms[i].kind == 4 && (!m->ep || m->syms[i].bound >= m->n_exprs)))
            return mc_fail(error, MOEC_ERR_INTERNAL, "dimension %u is malformed", i);
    if (m->ep && (m->ep->rank_sym >= m->n_syms || !m->ep->n_ranks || !m->ep->n_replicas || !m->ep->plan))
        return mc_fail(error, MOEC_ERR_INTERNAL, "the artefact's table of ranks is wrong");
    for (uint32_t i = 0; i < m->n_weights; i++)
        if (!m->weights[i].path || !m->weights[i].role || m->weights[i].rank > 4 ||
            m->weights[i].layout > MOEC_ABI_GRAD)
            return mc_fail(error, MOEC_ERR_INTERNAL, "weight %u is malformed", i);
    for (uint32_t i = 0; i < m->n_states; i++)
        if (m->states[i].kind > 1 || m->states[i].bytes < 0 || !m->states[i].name)
            return mc_fail(error, MOEC_ERR_INTERNAL, "state %u is malformed", i);
    return MOEC_OK;
}

/* A step of a GPU is replayed for any number of cached positions. */
static bool
grows(const moec_abi_model *m, const moec_abi_expr *e)
{
    for (int i = 0; i < 8 && e->syms[i] != MC_NO_SYM; i++)
        if (m->syms[e->syms[i]].kind == 2) return true;
    return false;
}

/* What a GPU kernel's grid and tensor maps read of a launch is there. */
static bool
gpu_launch_ok(const moec_abi_model *m, const moec_abi_launch *l)
{
    bool found = false;
    if (!span_ok(l->first_int, l->n_ints, m->n_exprs) || !span_ok(l->first_ref, l->n_refs, m->n_refs)) return false;
    for (uint32_t i = 0; i < l->n_ints; i++)
        if (grows(m, &m->exprs[l->first_int + i])) return false;
    for (uint32_t i = 0; i < l->n_refs; i++)
        if (grows(m, &m->refs[l->first_ref + i].offset)) return false;
    for (uint32_t i = 0; i < m->gpu->n_codes; i++) {
        const moec_abi_gpu_code *c = &m->gpu->codes[i];
        if (c->kernel != l->target) continue;
        found = true;
        for (int axis = 0; axis < 3; axis++)
            if (c->grid[axis].from != MOEC_ABI_GRID_ONE && c->grid[axis].from >= l->n_ints) return false;
        for (uint32_t j = 0; j < c->n_maps; j++) {
            if (c->maps[j].ptr >= l->n_refs) return false;
            for (uint32_t d = 0; d < c->maps[j].rank; d++)
                if (c->maps[j].dims[d] >= l->n_ints) return false;
        }
    }
    return found;
}

static moec_status
check_gpu(const moec_abi_model *m, mc_fault *error)
{
    const moec_abi_gpu *g = m->gpu;
    if (!g) return MOEC_OK;
    if (!g->archs || (m->n_kernels && !m->kernel_names) || m->kernels ||
        !span_ok(g->first_scratch, g->n_scratch, m->n_exprs))
        return mc_fail(error, MOEC_ERR_INTERNAL, "the artefact's table of GPU code is wrong");
    for (uint32_t i = 0; i < g->n_codes; i++) {
        const moec_abi_gpu_code *c = &g->codes[i];
        bool good = c->kernel < m->n_kernels && c->cubin && c->threads >= 1 && c->threads <= 1024 && c->cluster >= 1 &&
                    c->cluster <= 16 && c->n_maps <= MOEC_ABI_MAX_MAPS && c->n_bytes;
        for (int axis = 0; axis < 3; axis++) good = good && c->grid[axis].div >= 1;
        for (uint32_t j = 0; good && j < c->n_maps; j++) good = c->maps[j].rank >= 1 && c->maps[j].rank <= 4;
        if (!good) return mc_fail(error, MOEC_ERR_INTERNAL, "GPU code %u is malformed", i);
    }
    for (uint32_t i = 0; i < m->n_launches; i++)
        if (m->launches[i].kind == MOEC_LAUNCH_KERNEL && !gpu_launch_ok(m, &m->launches[i]))
            return mc_fail(error, MOEC_ERR_INTERNAL, "launch %u does not fit its GPU code", i);
    return MOEC_OK;
}

/* A symbol that a comm launch sets, by its number in the launch's arguments. */
static bool
names_symbol(const moec_abi_model *m, const moec_abi_launch *l, uint32_t arg)
{
    const moec_abi_expr *e = &m->exprs[l->first_int + arg];
    if (!mc_expr_is_const(e)) return false;
    int64_t sym = mc_expr_const(e);
    return sym >= 0 && sym < m->n_syms && m->syms[sym].kind == 4;
}

static bool
comm_ok(const moec_abi_model *m, const moec_abi_launch *l)
{
    static const struct {
        uint8_t n_refs, n_ints;
        int8_t symbols[2]; /* which arguments name one; -1: none */
    } forms[MOEC_COMM_N_OPS] = {
        [MOEC_COMM_ROUTE] = {9, 7, {5, 6}},       [MOEC_COMM_SEND] = {8, 5, {-1, -1}},
        [MOEC_COMM_SEND_ROWS] = {8, 5, {-1, -1}}, [MOEC_COMM_RETURN_ROWS] = {8, 5, {-1, -1}},
        [MOEC_COMM_REDUCE] = {8, 5, {-1, -1}},    [MOEC_COMM_WAIT] = {0, 0, {-1, -1}},
        [MOEC_COMM_GATHER] = {3, 3, {2, -1}},     [MOEC_COMM_OWN] = {3, 2, {-1, -1}},
        [MOEC_COMM_MERGE] = {4, 3, {2, -1}},
    };
    if (!m->ep || m->gpu || l->target >= MOEC_COMM_N_OPS) return false;
    if (l->n_refs != forms[l->target].n_refs || l->n_ints != forms[l->target].n_ints) return false;
    if (!span_ok(l->first_int, l->n_ints, m->n_exprs)) return false;
    for (int i = 0; i < 2; i++)
        if (forms[l->target].symbols[i] >= 0 && !names_symbol(m, l, (uint32_t)forms[l->target].symbols[i]))
            return false;
    return true;
}

/* A launch of function f, reached with these bases: everything it refers to must exist. */
static bool
launch_ok(const moec_abi_model *m, const moec_abi_func *f, const moec_abi_launch *l, uint32_t weights, uint32_t states)
{
    bool call = l->kind == MOEC_LAUNCH_CALL, comm = l->kind == MOEC_LAUNCH_COMM;
    if (comm && !comm_ok(m, l)) return false;
    if (l->kind > MOEC_LAUNCH_COMM || (!comm && l->target >= (call ? m->n_funcs : m->n_kernels))) return false;
    if (!call && l->n_refs > MOEC_ABI_MAX_PTRS) return false;
    if (l->kind == MOEC_LAUNCH_KERNEL && !m->gpu && (!m->kernels || !m->kernels[l->target])) return false;
    if (call &&
        (l->n_refs > MC_MAX_CALL_ARGS || l->n_refs != m->funcs[l->target].n_formals + m->funcs[l->target].n_results))
        return false;
    if (l->n_ints > MOEC_ABI_MAX_INTS || l->n_floats > MOEC_ABI_MAX_FLOATS) return false;
    if (!span_ok(l->first_ref, l->n_refs, m->n_refs) || !span_ok(l->first_int, l->n_ints, m->n_exprs) ||
        !span_ok(l->first_float, l->n_floats, m->n_floats))
        return false;
    for (uint32_t i = 0; i < l->n_refs; i++) {
        const moec_abi_ref *r = &m->refs[l->first_ref + i];
        switch ((moec_abi_place)r->place) {
        case MOEC_ABI_NULL: break;
        case MOEC_ABI_SLOT:
            if (r->index >= f->n_slots) return false;
            break;
        case MOEC_ABI_ARG:
            if (r->index >= f->n_formals + f->n_results) return false;
            break;
        case MOEC_ABI_WEIGHT:
            if (r->index >= m->n_weights - weights) return false;
            break;
        case MOEC_ABI_STATE:
            if (r->index >= m->n_states - states) return false;
            break;
        }
    }
    return true;
}

/* A few functions that call each other many times can stand for more launches than anybody waits for. */
enum { MAX_STEPS = 1 << 24 };

static moec_status
check_func(const moec_abi_model *m, uint32_t index, uint32_t weights, uint32_t states, int depth, int64_t *steps,
           mc_fault *error)
{
    const moec_abi_func *f = &m->funcs[index];
    *steps += (int64_t)f->n_launches + 1;
    if (depth > MC_MAX_CALL_DEPTH || *steps > MAX_STEPS)
        return mc_fail(error, MOEC_ERR_INTERNAL, "functions call each other too deeply");
    if (!span_ok(f->first_launch, f->n_launches, m->n_launches) || !span_ok(f->first_slot, f->n_slots, m->n_slots) ||
        f->n_formals > MC_MAX_CALL_ARGS || f->n_results > MC_MAX_CALL_ARGS)
        return mc_fail(error, MOEC_ERR_INTERNAL, "function %u is malformed", index);
    for (uint32_t i = 0; i < f->n_launches; i++) {
        const moec_abi_launch *l = &m->launches[f->first_launch + i];
        if (!launch_ok(m, f, l, weights, states))
            return mc_fail(error, MOEC_ERR_INTERNAL, "launch %u of function %s is malformed", i,
                           f->name ? f->name : "?");
        if (l->kind != MOEC_LAUNCH_CALL) continue;
        if (l->weight_base > m->n_weights - weights || l->state_base > m->n_states - states)
            return mc_fail(error, MOEC_ERR_INTERNAL, "call %u of function %u leaves its tables", i, index);
        moec_status s =
            check_func(m, l->target, weights + l->weight_base, states + l->state_base, depth + 1, steps, error);
        if (s != MOEC_OK) return s;
    }
    return MOEC_OK;
}

static bool
indices_ok(const uint32_t *list, uint32_t n, const moec_abi_tensor *table, uint32_t n_table)
{
    for (uint32_t i = 0; i < n; i++)
        if (list[i] >= n_table || !mc_dtype_is_float((moec_dtype)table[list[i]].dtype)) return false;
    return true;
}

static moec_status
check_training(moec_model *model, mc_fault *error)
{
    const moec_abi_model *m = model->abi;
    if (m->backward == UINT32_MAX) {
        bool none = !m->n_saved && !m->n_cotangents && !m->n_input_grads;
        return none ? MOEC_OK : mc_fail(error, MOEC_ERR_INTERNAL, "saved values without a backward function");
    }
    for (uint32_t i = 0; i < m->n_saved; i++)
        if (!tensor_ok(m, &m->saved[i])) return mc_fail(error, MOEC_ERR_INTERNAL, "saved value %u is malformed", i);
    if (m->backward >= m->n_funcs || m->backward_weight_base > m->n_weights || m->n_states ||
        !indices_ok(m->cotangents, m->n_cotangents, m->outputs, m->n_outputs) ||
        !indices_ok(m->input_grads, m->n_input_grads, m->inputs, m->n_inputs))
        return mc_fail(error, MOEC_ERR_INTERNAL, "the tables of the backward function are wrong");
    const moec_abi_func *f = &m->funcs[m->backward];
    uint64_t n_formals = (uint64_t)m->n_inputs + m->n_saved + m->n_cotangents;
    if (f->n_formals != n_formals || f->n_results != m->n_input_grads)
        return mc_fail(error, MOEC_ERR_INTERNAL, "the backward function does not fit its tables");
    model->trainable = true;
    mc_fault ignored; /* each call says it again; asking the processor takes longer than a small step */
    model->runs_here = mc_host_has(m->features, m->cpu, m->name, &ignored) == MOEC_OK;
    int64_t steps = 0;
    moec_status s = check_func(m, m->backward, m->backward_weight_base, 0, 0, &steps, error);
    return s == MOEC_OK ? mc_params_find(model, error) : s;
}

static int64_t
language_model_vocab(const moec_abi_model *m)
{
    if (m->n_inputs != 1 || m->n_outputs < 1) return 0;
    const moec_abi_tensor *in = &m->inputs[0], *out = &m->outputs[0];
    if (in->dtype != MOEC_I32 || in->rank != 2 || out->dtype != MOEC_F32 || out->rank != 3) return 0;
    if (!mc_expr_is_const(&out->dims[2])) return 0;
    return mc_expr_const(&out->dims[2]);
}

moec_status
mc_model_check(moec_model *model, mc_fault *error)
{
    const moec_abi_model *m = model->abi;
    moec_status s = check_tables(m, error);
    if (s != MOEC_OK) return s;
    const moec_abi_func *entry = &m->funcs[m->entry];
    if (entry->n_formals != m->n_inputs || entry->n_results - m->n_outputs != m->n_saved)
        return mc_fail(error, MOEC_ERR_INTERNAL, "the model function and the tables of inputs and outputs disagree");
    int64_t steps = 0;
    s = check_func(m, m->entry, 0, 0, 0, &steps, error);
    if (s == MOEC_OK) s = check_gpu(m, error);
    if (s == MOEC_OK) s = check_training(model, error);
    if (s != MOEC_OK) return s;
    model->sym_new = model->sym_total = MC_NO_SYM;
    model->sym_batch = m->batch_sym < m->n_syms ? (uint8_t)m->batch_sym : MC_NO_SYM;
    for (uint32_t i = 0; i < m->n_syms; i++) {
        if (m->syms[i].kind == 1) model->sym_new = (uint8_t)i;
        if (m->syms[i].kind == 2) model->sym_total = (uint8_t)i;
    }
    for (uint32_t i = 0; i < m->n_weights; i++) {
        uint64_t n_bytes = 0;
        if (m->weights[i].layout != MOEC_ABI_GRAD && !mc_packed_bytes(&m->weights[i], &n_bytes))
            return mc_fail(error, MOEC_ERR_INTERNAL, "weight %u has a malformed layout", i);
        if (!model->trainable || model->params[model->param_of[i]].weight == &m->weights[i])
            model->weights_bytes += n_bytes;
    }
    model->vocab = language_model_vocab(m);
    if (model->vocab) { /* a model without a cache does not say which of its dimensions are sequences and positions */
        if (model->sym_batch == MC_NO_SYM) model->sym_batch = m->inputs[0].dims[0].syms[0];
        if (model->sym_new == MC_NO_SYM) model->sym_new = m->inputs[0].dims[1].syms[0];
    }
    return MOEC_OK;
}

moec_status
moec_model_from_abi(const struct moec_abi_model *abi, moec_model **out_model, moec_error *error)
{
    mc_fault e = {{0}};
    *out_model = NULL;
    if (!abi) {
        mc_fail(&e, MOEC_ERR_MISMATCH, "the artefact does not serve version %u of the runtime interface",
                MOEC_ABI_VERSION);
        return mc_give(error, &e, MOEC_ERR_MISMATCH);
    }
    if (abi->magic != MOEC_ABI_MAGIC || abi->version != MOEC_ABI_VERSION) {
        mc_fail(&e, MOEC_ERR_MISMATCH,
                "the artefact speaks version %u of the runtime interface, this runtime %u; compile it again",
                abi->magic == MOEC_ABI_MAGIC ? abi->version : 0, MOEC_ABI_VERSION);
        return mc_give(error, &e, MOEC_ERR_MISMATCH);
    }
    moec_model *model = calloc(1, sizeof *model);
    if (!model) {
        mc_fail(&e, MOEC_ERR_MEMORY, "out of memory");
        return mc_give(error, &e, MOEC_ERR_MEMORY);
    }
    model->abi = abi;
    model->image_hash = abi->hash;
    moec_status status = mc_model_check(model, &e);
    if (status != MOEC_OK)
        moec_model_destroy(model);
    else
        *out_model = model;
    return mc_give(error, &e, status);
}

void
moec_model_destroy(moec_model *model)
{
    if (!model) return;
    mc_params_free(model);
    free(model->memory);
    free(model);
}

moec_status
moec_model_check_cpu(const moec_model *model, moec_error *error)
{
    mc_fault e = {{0}};
    return mc_give(error, &e, mc_host_has(model->abi->features, model->abi->cpu, model->abi->name, &e));
}

const char *
moec_model_name(const moec_model *model)
{
    return model->abi->name;
}

const char *
moec_model_compiler(const moec_model *model)
{
    return model->abi->compiler;
}

const char *
moec_model_target(const moec_model *model)
{
    return model->abi->target;
}

const char *
moec_model_cpu(const moec_model *model)
{
    return model->abi->cpu;
}

const char *
moec_model_features(const moec_model *model)
{
    return model->abi->features;
}

const char *
moec_model_meta(const moec_model *model)
{
    return model->abi->meta;
}

uint64_t
moec_model_weights_bytes(const moec_model *model)
{
    return model->weights_bytes;
}

size_t
moec_model_n_inputs(const moec_model *model)
{
    return model->abi->n_inputs;
}

size_t
moec_model_n_outputs(const moec_model *model)
{
    return model->abi->n_outputs;
}

void
mc_tensor_describe(const moec_abi_model *m, const moec_abi_tensor *t, moec_tensor_info *out)
{
    *out = (moec_tensor_info){.name = t->name, .dtype = (moec_dtype)t->dtype, .rank = t->rank, .limit = t->limit};
    size_t len = 0, cap = sizeof out->shape;
    out->shape[len++] = '[';
    for (uint32_t i = 0; i < t->rank; i++) {
        char dim[64];
        mc_expr_text(m, &t->dims[i], dim, sizeof dim);
        out->dims[i] = mc_expr_is_const(&t->dims[i]) ? mc_expr_const(&t->dims[i]) : -1;
        len += (size_t)snprintf(out->shape + len, cap - len, "%s%s", i ? ", " : "", dim);
        if (len + 2 >= cap) len = cap - 2;
    }
    out->shape[len] = ']';
    out->shape[len + 1] = 0;
}

moec_status
moec_model_input(const moec_model *model, size_t index, moec_tensor_info *out_info)
{
    if (index >= model->abi->n_inputs) return MOEC_ERR_ARGUMENT;
    mc_tensor_describe(model->abi, &model->abi->inputs[index], out_info);
    return MOEC_OK;
}

moec_status
moec_model_output(const moec_model *model, size_t index, moec_tensor_info *out_info)
{
    if (index >= model->abi->n_outputs) return MOEC_ERR_ARGUMENT;
    mc_tensor_describe(model->abi, &model->abi->outputs[index], out_info);
    return MOEC_OK;
}

int64_t
moec_model_vocab(const moec_model *model)
{
    return model->vocab;
}

bool
moec_model_has_state(const moec_model *model)
{
    return model->abi->n_states > 0;
}
