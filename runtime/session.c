/* session: memory and threads for one stream of work, and one step of any model on named tensors.
 * Everything a step could need is reserved at creation, sized by evaluating the plan at the session's greatest sizes
 * (every size in a plan grows with every symbol); a step then only computes offsets and walks. */
#include "runtime/session.h"

#include "runtime/args.h"
#include "runtime/gpu/gpu_session.h"
#include "runtime/host_cpu.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_POSITIONS = 4096, DEFAULT_NEW = 512, DEFAULT_DIM = 65536, PAGE = 4096, STATE_ALIGN = 64 };

static int64_t
at_most(int64_t value, int64_t limit)
{
    return limit > 0 && limit < value ? limit : value;
}

static int64_t
sym_hi(const moec_model *model, uint8_t sym)
{
    return sym == MC_NO_SYM ? 0 : model->abi->syms[sym].hi;
}

/* ---- creation ------------------------------------------------------------------------------------------------- */

static moec_status
choose_sizes(moec_session *s, const moec_session_options *o, mc_fault *error)
{
    const moec_model *m = s->model;
    int64_t allowed = at_most(sym_hi(m, m->sym_new) ? sym_hi(m, m->sym_new) : INT64_MAX, sym_hi(m, m->sym_total));
    if (o->max_batch < 0 || o->max_positions < 0 || o->max_new < 0)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "a negative size");
    if (m->sym_new != MC_NO_SYM && o->max_positions > allowed)
        return mc_fail(error, MOEC_ERR_RANGE, "max_positions = %lld: the model allows at most %lld",
                       (long long)o->max_positions, (long long)allowed);
    s->max_batch = o->max_batch ? o->max_batch : 1;
    s->max_positions = o->max_positions ? o->max_positions : at_most(DEFAULT_POSITIONS, allowed);
    int64_t step = m->abi->n_states ? at_most(DEFAULT_NEW, s->max_positions) : s->max_positions;
    s->max_new = o->max_new ? at_most(o->max_new, s->max_positions) : step;
    for (uint32_t i = 0; i < m->abi->n_syms; i++) {
        const moec_abi_sym *sym = &m->abi->syms[i];
        int64_t max = at_most(DEFAULT_DIM, sym->hi);
        if (i == m->sym_new) max = s->max_new;
        if (i == m->sym_total) max = s->max_positions;
        if (i == m->sym_batch) max = s->max_batch;
        for (size_t j = 0; j < o->n_limits; j++)
            if (o->limits[j].name && strcmp(o->limits[j].name, sym->name) == 0) max = o->limits[j].max;
        if (max < sym->lo || max < 0 || (sym->hi > 0 && max > sym->hi))
            return mc_fail(error, MOEC_ERR_RANGE, "%s up to %lld: the model allows %lld..%lld", sym->name,
                           (long long)max, (long long)sym->lo, (long long)sym->hi);
        s->sym_max[i] = max;
    }
    for (size_t j = 0; j < o->n_limits; j++) {
        bool found = false;
        for (uint32_t i = 0; i < m->abi->n_syms && o->limits[j].name; i++)
            found = found || strcmp(o->limits[j].name, m->abi->syms[i].name) == 0;
        if (!found)
            return mc_fail(error, MOEC_ERR_ARGUMENT, "the model has no dimension named %s",
                           o->limits[j].name ? o->limits[j].name : "(null)");
    }
    return MOEC_OK;
}

static moec_status
reserve_outputs(moec_session *s, mc_fault *error)
{
    size_t total = 0;
    for (uint32_t i = 0; i < s->model->abi->n_outputs; i++) {
        int64_t dims[MOEC_ABI_MAX_RANK];
        size_t n_bytes;
        if (!mc_args_shape(&s->model->abi->outputs[i], s->sym_max, dims, &n_bytes) || total > SIZE_MAX / 4)
            return mc_fail(error, MOEC_ERR_MEMORY, "output %s is too large at the greatest sizes",
                           s->model->abi->outputs[i].name);
        s->output_offsets[i] = total;
        total += (n_bytes + PAGE - 1) / PAGE * PAGE;
    }
    return mc_pages_alloc(total, "outputs", &s->outputs, error);
}

static moec_status
reserve_states(moec_session *s, mc_fault *error)
{
    const moec_abi_model *m = s->model->abi;
    size_t total = 0;
    for (int fill = 0; fill < 2; fill++) {
        total = 0;
        for (uint32_t i = 0; i < m->n_states; i++) {
            size_t n = (size_t)m->states[i].bytes;
            if (__builtin_mul_overflow(n, (size_t)s->max_batch, &n) ||
                (m->states[i].kind == 0 && __builtin_mul_overflow(n, (size_t)s->max_positions, &n)) ||
                n > SIZE_MAX / 4 - total)
                return mc_fail(error, MOEC_ERR_MEMORY,
                               "the caches are too large: ask for fewer positions or sequences");
            if (fill) s->exec.states[i] = s->states.data + total;
            total += (n + STATE_ALIGN - 1) / STATE_ALIGN * STATE_ALIGN;
        }
        if (fill) break;
        moec_status status = mc_pages_alloc(total, "caches", &s->states, error);
        if (status != MOEC_OK) return status;
    }
    return MOEC_OK;
}

static moec_status
reserve(moec_session *s, const moec_session_options *o, mc_fault *error)
{
    const moec_abi_model *m = s->model->abi;
    size_t slab;
    moec_status status = mc_pool_create(o->n_threads, o->parallel, o->parallel_context, &s->pool, error);
    if (status == MOEC_OK) status = mc_exec_init(&s->exec, m, s->pool, o->profile, error);
    if (status != MOEC_OK) return status;
    memcpy(s->exec.syms, s->sym_max, m->n_syms * sizeof *s->sym_max);
    status = mc_exec_prepare(&s->exec, s->exec.abi->entry, &slab, error);
    if (status == MOEC_OK) status = mc_pages_alloc(slab, "activations", &s->slab, error);
    if (status == MOEC_OK) status = reserve_outputs(s, error);
    if (status == MOEC_OK) status = reserve_states(s, error);
    size_t n = mc_pool_n_threads(s->pool), stride = 0, total = 0;
    if (status == MOEC_OK && (m->scratch_bytes > SIZE_MAX / 4 ||
                              __builtin_mul_overflow(stride = (m->scratch_bytes + PAGE - 1) / PAGE * PAGE, n, &total)))
        status = mc_fail(error, MOEC_ERR_MEMORY, "the scratch memory of %zu threads is too large", n);
    if (status == MOEC_OK) status = mc_pages_alloc(total, "scratch", &s->scratch, error);
    if (status != MOEC_OK) return status;
    s->exec.slab = s->slab.data;
    s->exec.slab_bytes = s->slab.n_bytes;
    s->exec.scratch = s->scratch.data;
    s->exec.scratch_stride = stride;
    s->exec.cache_cap = s->max_positions;
    s->exec.bounds_are_fixed = true;
    return m->ep ? mc_comm_walk_create(m, o->comm, s->exec.expr_values, &s->exec.comm, error) : MOEC_OK;
}

static moec_status
check_device(const moec_model *model, const moec_session_options *o, mc_fault *error)
{
    const char *name = model->abi->name;
    if (model->abi->gpu && !o->gpu)
        return mc_fail(error, MOEC_ERR_UNSUPPORTED,
                       "%s is compiled for GPUs: open one (moec_gpu_open) and give it in the options, or compile the "
                       "model for this processor",
                       name);
    if (!model->abi->gpu && o->gpu)
        return mc_fail(error, MOEC_ERR_UNSUPPORTED,
                       "%s is compiled for a processor, not for GPUs: compile it with --gpu", name);
    if (!o->gpu && (o->stream || o->device_pointers))
        return mc_fail(error, MOEC_ERR_ARGUMENT, "a stream or device pointers without a GPU");
    return o->gpu ? MOEC_OK : mc_host_has(model->abi->features, model->abi->cpu, name, error);
}

moec_status
moec_session_create(const moec_model *model, const moec_weights *weights, const moec_session_options *options,
                    moec_session **out_session, moec_error *error)
{
    static const moec_session_options defaults = {0};
    const moec_session_options *o = options ? options : &defaults;
    mc_fault e = {{0}};
    *out_session = NULL;
    if (model->trainable) {
        mc_fail(&e, MOEC_ERR_UNSUPPORTED,
                "%s was compiled for training: call moec_train_forward, or compile it without `train`",
                model->abi->name);
        return mc_give(error, &e, MOEC_ERR_UNSUPPORTED);
    }
    if (!weights || mc_weights_model(weights) != model) {
        mc_fail(&e, MOEC_ERR_ARGUMENT, "these weights were opened for another model handle");
        return mc_give(error, &e, MOEC_ERR_ARGUMENT);
    }
    moec_status status = check_device(model, o, &e);
    if (status != MOEC_OK) return mc_give(error, &e, status);
    moec_session *s = calloc(1, sizeof *s);
    if (s) {
        s->model = model;
        s->sym_max = calloc(model->abi->n_syms + 1, sizeof *s->sym_max);
        s->output_offsets = calloc(model->abi->n_outputs + 1, sizeof *s->output_offsets);
        s->args = calloc(model->abi->n_inputs + model->abi->n_outputs + 1, sizeof *s->args);
    }
    if (!s || !s->sym_max || !s->output_offsets || !s->args) status = mc_fail(&e, MOEC_ERR_MEMORY, "out of memory");
    if (status == MOEC_OK) status = choose_sizes(s, o, &e);
    if (status == MOEC_OK && o->gpu) {
        status = reserve_outputs(s, &e);
        if (status == MOEC_OK) status = mc_gpu_session_create(s, weights, o, &e);
    } else if (status == MOEC_OK) {
        status = reserve(s, o, &e);
        s->exec.weights = mc_weights_addresses(weights);
    }
    if (status != MOEC_OK) {
        moec_session_destroy(s);
        return mc_give(error, &e, status);
    }
    *out_session = s;
    return mc_give(error, &e, MOEC_OK);
}

void
moec_session_destroy(moec_session *s)
{
    if (!s) return;
    mc_gpu_session_destroy(s);
    mc_pool_destroy(s->pool);
    mc_comm_walk_destroy(s->exec.comm);
    mc_exec_fini(&s->exec);
    mc_pages_free(&s->slab);
    mc_pages_free(&s->states);
    mc_pages_free(&s->outputs);
    mc_pages_free(&s->scratch);
    free(s->sym_max);
    free(s->output_offsets);
    free(s->args);
    free(s->sample_scratch);
    free(s);
}

void
moec_session_reset(moec_session *s)
{
    s->past = 0;
    s->batch = 0;
    s->logits = NULL;
    if (s->gpu)
        mc_gpu_session_reset(s);
    else
        mc_pages_zero(&s->states);
}

int64_t
moec_session_past(const moec_session *s)
{
    return s->past;
}

moec_status
moec_session_truncate(moec_session *s, int64_t n_positions, moec_error *error)
{
    mc_fault e = {{0}};
    moec_status status = MOEC_OK;
    if (n_positions < 0 || n_positions > s->past)
        status = mc_fail(&e, MOEC_ERR_RANGE, "cannot keep %lld positions of %lld", (long long)n_positions,
                         (long long)s->past);
    for (uint32_t i = 0; status == MOEC_OK && n_positions && n_positions != s->past && i < s->model->abi->n_states; i++)
        if (s->model->abi->states[i].kind == 1)
            status = mc_fail(&e, MOEC_ERR_UNSUPPORTED,
                             "%s holds a running state, which cannot go back; reset and feed again",
                             s->model->abi->states[i].name);
    if (status == MOEC_OK && n_positions == 0)
        moec_session_reset(s);
    else if (status == MOEC_OK && n_positions != s->past) {
        s->past = n_positions;
        s->logits = NULL;
    }
    return mc_give(error, &e, status);
}

uint32_t
moec_session_n_threads(const moec_session *s)
{
    return s->gpu ? 1 : mc_pool_n_threads(s->pool);
}

uint64_t
moec_session_bytes(const moec_session *s)
{
    if (s->gpu) return mc_gpu_session_bytes(s);
    size_t comm = s->exec.comm ? mc_comm_walk_bytes(s->exec.comm) : 0;
    return s->slab.n_bytes + s->states.n_bytes + s->outputs.n_bytes + s->scratch.n_bytes + comm;
}

int64_t
moec_session_max_positions(const moec_session *s)
{
    return s->max_positions;
}

int64_t
moec_session_max_batch(const moec_session *s)
{
    return s->max_batch;
}
