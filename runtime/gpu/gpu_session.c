/* Sessions on a GPU. All device memory is reserved at creation, at the greatest sizes; slots are laid out as if the
 * history were as long as it may become, so addresses do not move from step to step and a step can be replayed. */
#include "runtime/gpu/gpu_session.h"

#include "runtime/args.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 256 };

static size_t
aligned(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

/* ---- creation
 * --------------------------------------------------------------------------------------------------------- */

/* Offsets of the tensors of a table one after another, at the greatest sizes. */
static moec_status
lay(const moec_session *s, const moec_abi_tensor *table, uint32_t n, size_t *offsets, size_t *total, mc_fault *error)
{
    *total = 0;
    for (uint32_t i = 0; i < n; i++) {
        int64_t dims[MOEC_ABI_MAX_RANK];
        size_t n_bytes;
        if (!mc_args_shape(&table[i], s->sym_max, dims, &n_bytes) || *total > SIZE_MAX / 4 || n_bytes > SIZE_MAX / 4)
            return mc_fail(error, MOEC_ERR_MEMORY, "%s is too large at the greatest sizes", table[i].name);
        offsets[i] = *total;
        *total += aligned(n_bytes);
    }
    return MOEC_OK;
}

static moec_status
place_states(moec_session *s, size_t *total, mc_fault *error)
{
    const moec_abi_model *m = s->model->abi;
    *total = 0;
    for (uint32_t i = 0; i < m->n_states; i++) {
        size_t n = (size_t)m->states[i].bytes;
        if (__builtin_mul_overflow(n, (size_t)s->max_batch, &n) ||
            (m->states[i].kind == 0 && __builtin_mul_overflow(n, (size_t)s->max_positions, &n)) ||
            n > SIZE_MAX / 4 - *total)
            return mc_fail(error, MOEC_ERR_MEMORY, "the caches are too large: ask for fewer positions or sequences");
        s->exec.states[i] = mc_gpu_pointer(s->gpu->states + *total);
        *total += aligned(n);
    }
    return MOEC_OK;
}

static moec_status
alloc_all(moec_session *s, mc_fault *error)
{
    struct mc_gpu_session *g = s->gpu;
    moec_status status = place_states(s, &g->state_bytes, error);
    if (status == MOEC_OK) status = mc_gpu_alloc(g->gpu, g->slab_bytes, "activations", &g->slab, error);
    if (status == MOEC_OK) status = mc_gpu_alloc(g->gpu, g->state_bytes, "caches", &g->states, error);
    if (status == MOEC_OK) status = mc_gpu_alloc(g->gpu, g->scratch_bytes, "scratch", &g->scratch, error);
    if (status == MOEC_OK) status = mc_gpu_alloc(g->gpu, g->input_bytes, "inputs", &g->inputs, error);
    if (status == MOEC_OK) status = mc_gpu_alloc(g->gpu, g->output_bytes, "outputs", &g->outputs, error);
    if (status == MOEC_OK) status = mc_gpu_alloc(g->gpu, sizeof(int64_t), "a counter", &g->past, error);
    if (status == MOEC_OK) status = place_states(s, &g->state_bytes, error); /* now that they have an address */
    return status;
}

static moec_status
reserve(moec_session *s, const moec_session_options *o, mc_fault *error)
{
    struct mc_gpu_session *g = s->gpu;
    const moec_abi_model *m = s->model->abi;
    moec_status status = mc_exec_init(&s->exec, m, NULL, o->profile, error);
    if (status != MOEC_OK) return status;
    memcpy(s->exec.syms, s->sym_max, m->n_syms * sizeof *s->sym_max);
    status = mc_exec_prepare(&s->exec, m->entry, &g->slab_bytes, error);
    if (status == MOEC_OK) status = mc_gpu_scratch_bytes(&s->exec, &g->scratch_bytes, error);
    if (status == MOEC_OK && !g->device_pointers)
        status = lay(s, m->inputs, m->n_inputs, g->input_offsets, &g->input_bytes, error);
    if (status == MOEC_OK) status = lay(s, m->outputs, m->n_outputs, g->output_offsets, &g->output_bytes, error);
    if (status == MOEC_OK) status = alloc_all(s, error);
    if (status != MOEC_OK) return status;
    s->exec.slab = mc_gpu_pointer(g->slab);
    s->exec.slab_bytes = g->slab_bytes;
    s->exec.scratch = mc_gpu_pointer(g->scratch);
    s->exec.cache_cap = s->max_positions;
    return MOEC_OK;
}

static moec_status
begin(moec_session *s, const moec_weights *weights, const moec_session_options *o, mc_fault *error)
{
    struct mc_gpu_session *g = s->gpu;
    const mc_cuda *cuda = g->gpu->cuda;
    moec_status status = mc_gpu_check_stream(g->gpu, o->stream, error);
    if (status == MOEC_OK) status = mc_gpu_code_get(g->gpu, s->model, &g->walk.code, error);
    if (status == MOEC_OK) status = reserve(s, o, error);
    if (status == MOEC_OK) status = mc_weights_on_gpu(weights, g->gpu, &s->exec.weights, error);
    g->walk.stream = o->stream;
    g->own_stream = !o->stream;
    if (status == MOEC_OK && g->own_stream)
        status = MC_CUDA(cuda, error, cuStreamCreate, &g->walk.stream, CU_STREAM_NON_BLOCKING);
    if (status == MOEC_OK) status = MC_CUDA(cuda, error, cuMemsetD8Async, g->past, 0, sizeof(int64_t), g->walk.stream);
    if (status == MOEC_OK && g->state_bytes)
        status = MC_CUDA(cuda, error, cuMemsetD8Async, g->states, 0, g->state_bytes, g->walk.stream);
    return status;
}

moec_status
mc_gpu_session_create(moec_session *s, const moec_weights *weights, const moec_session_options *o, mc_fault *error)
{
    const moec_abi_model *m = s->model->abi;
    struct mc_gpu_session *g = calloc(1, sizeof *g);
    s->gpu = g;
    if (!g) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    g->gpu = o->gpu;
    g->device_pointers = o->device_pointers;
    g->use_graphs = !o->no_graph && !o->profile;
    g->samples = !o->device_pointers && s->model->vocab && mc_gpu_find_sampling(m, g->sample_kernels);
    g->input_offsets = calloc(m->n_inputs + 1, sizeof *g->input_offsets);
    g->output_offsets = calloc(m->n_outputs + 1, sizeof *g->output_offsets);
    g->args = calloc(m->n_inputs + m->n_outputs + 1, sizeof *g->args);
    g->prepared = calloc(m->n_syms + 1, sizeof *g->prepared);
    if (!g->input_offsets || !g->output_offsets || !g->args || !g->prepared)
        return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    g->walk.gpu = o->gpu;
    g->walk.x = &s->exec;
    moec_status status = mc_gpu_enter(g->gpu, error);
    if (status != MOEC_OK) return status;
    status = begin(s, weights, o, error);
    g->walk.past = g->past;
    mc_gpu_leave(g->gpu);
    return status;
}

void
mc_gpu_session_destroy(moec_session *s)
{
    struct mc_gpu_session *g = s->gpu;
    mc_fault ignored;
    if (!g) return;
    if (g->gpu && mc_gpu_enter(g->gpu, &ignored) == MOEC_OK) {
        const mc_cuda *cuda = g->gpu->cuda;
        if (g->walk.stream) cuda->cuStreamSynchronize(g->walk.stream);
        mc_gpu_graphs_free(&g->graphs, cuda);
        const CUdeviceptr all[] = {g->slab, g->states, g->inputs, g->outputs, g->scratch, g->past};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            if (all[i]) cuda->cuMemFree(all[i]);
        if (g->own_stream && g->walk.stream) cuda->cuStreamDestroy(g->walk.stream);
        mc_gpu_leave(g->gpu);
    }
    free(g->input_offsets);
    free(g->output_offsets);
    free(g->args);
    free(g->prepared);
    free(g);
    s->gpu = NULL;
}

/* A failure shows in the next step, which the same context refuses. */
void
mc_gpu_session_reset(moec_session *s)
{
    struct mc_gpu_session *g = s->gpu;
    mc_fault ignored;
    if (!g->state_bytes || mc_gpu_enter(g->gpu, &ignored) != MOEC_OK) return;
    g->gpu->cuda->cuMemsetD8Async(g->states, 0, g->state_bytes, g->walk.stream);
    mc_gpu_leave(g->gpu);
}

uint64_t
mc_gpu_session_bytes(const moec_session *s)
{
    const struct mc_gpu_session *g = s->gpu;
    return g->slab_bytes + g->state_bytes + g->input_bytes + g->output_bytes + g->scratch_bytes;
}

/* ---- a step
 * ----------------------------------------------------------------------------------------------------------- */

static size_t
bytes_of(const moec_session *s, const moec_abi_tensor *t)
{
    int64_t dims[MOEC_ABI_MAX_RANK];
    size_t n_bytes = 0;
    return mc_args_shape(t, s->exec.syms, dims, &n_bytes) ? n_bytes : 0;
}

static moec_status
check_address(const moec_session *s, uint32_t i, const char *kind, const moec_abi_tensor *t, mc_fault *error)
{
    char what[96];
    snprintf(what, sizeof what, "%s %.80s", kind, t->name);
    return mc_gpu_check_pointer(s->gpu->gpu, s->args[i], what, error);
}

/* Outputs that nobody wants go to the session's own memory on the device; s->args has an address of s->outputs then. */
static bool
is_ours(const moec_session *s, const void *p)
{
    const unsigned char *at = p;
    return s->outputs.data && at >= s->outputs.data && at < s->outputs.data + s->outputs.n_bytes;
}

static moec_status
bring_in(moec_session *s, mc_fault *error)
{
    struct mc_gpu_session *g = s->gpu;
    const moec_abi_model *m = s->model->abi;
    moec_status status = MOEC_OK;
    for (uint32_t i = 0; status == MOEC_OK && i < m->n_inputs; i++) {
        g->args[i] = g->device_pointers ? s->args[i] : mc_gpu_pointer(g->inputs + g->input_offsets[i]);
        size_t n_bytes = bytes_of(s, &m->inputs[i]);
        if (g->device_pointers)
            status = check_address(s, i, "input", &m->inputs[i], error);
        else if (n_bytes)
            status = MC_CUDA(g->gpu->cuda, error, cuMemcpyHtoDAsync, g->inputs + g->input_offsets[i], s->args[i],
                             n_bytes, g->walk.stream);
    }
    for (uint32_t i = 0; status == MOEC_OK && i < m->n_outputs; i++) {
        uint32_t at = m->n_inputs + i;
        bool theirs = g->device_pointers && !is_ours(s, s->args[at]);
        g->args[at] = theirs ? s->args[at] : mc_gpu_pointer(g->outputs + g->output_offsets[i]);
        if (theirs) status = check_address(s, at, "output", &m->outputs[i], error);
    }
    return status;
}

/* The logits after the last position of each sequence, or of all. */
static moec_status
bring_logits(const moec_session *s, mc_fault *error)
{
    const struct mc_gpu_session *g = s->gpu;
    const moec_abi_tensor *t = &s->model->abi->outputs[0];
    int64_t dims[MOEC_ABI_MAX_RANK];
    size_t n_bytes = 0;
    if (!mc_args_shape(t, s->exec.syms, dims, &n_bytes) || !n_bytes) return MOEC_OK;
    size_t row = (size_t)dims[2] * sizeof(float), sequence = (size_t)dims[1] * row;
    unsigned char *to = s->outputs.data + s->output_offsets[0];
    CUdeviceptr from = g->outputs + g->output_offsets[0];
    if (g->rows == MC_GPU_ROWS_ALL)
        return MC_CUDA(g->gpu->cuda, error, cuMemcpyDtoHAsync, to, from, n_bytes, g->walk.stream);
    moec_status status = MOEC_OK;
    for (int64_t b = 0; status == MOEC_OK && b < dims[0]; b++) {
        size_t last = (size_t)b * sequence + sequence - row;
        status = MC_CUDA(g->gpu->cuda, error, cuMemcpyDtoHAsync, to + last, from + last, row, g->walk.stream);
    }
    return status;
}

moec_status
mc_gpu_session_bring_logits(const moec_session *s, mc_fault *error)
{
    struct mc_gpu_session *g = s->gpu;
    if (g->rows != MC_GPU_ROWS_NONE) return MOEC_OK;
    moec_status status = mc_gpu_enter(g->gpu, error);
    if (status != MOEC_OK) return status;
    g->rows = MC_GPU_ROWS_LAST;
    status = bring_logits(s, error);
    if (status == MOEC_OK) status = MC_CUDA(g->gpu->cuda, error, cuStreamSynchronize, g->walk.stream);
    if (status != MOEC_OK) g->rows = MC_GPU_ROWS_NONE;
    mc_gpu_leave(g->gpu);
    return status;
}

static moec_status
bring_out(const moec_session *s, mc_fault *error)
{
    const struct mc_gpu_session *g = s->gpu;
    const moec_abi_model *m = s->model->abi;
    moec_status status = g->rows == MC_GPU_ROWS_NONE ? MOEC_OK : bring_logits(s, error);
    for (uint32_t i = 0; status == MOEC_OK && !g->device_pointers && i < m->n_outputs; i++) {
        void *to = s->args[m->n_inputs + i];
        size_t n_bytes = bytes_of(s, &m->outputs[i]);
        if (!is_ours(s, to) && n_bytes)
            status = MC_CUDA(g->gpu->cuda, error, cuMemcpyDtoHAsync, to, g->outputs + g->output_offsets[i], n_bytes,
                             g->walk.stream);
    }
    bool waits = !g->device_pointers || g->rows != MC_GPU_ROWS_NONE;
    if (status == MOEC_OK && waits) status = MC_CUDA(g->gpu->cuda, error, cuStreamSynchronize, g->walk.stream);
    return status;
}

static moec_status
queue_step(moec_session *s, mc_fault *error)
{
    struct mc_gpu_session *g = s->gpu;
    const moec_abi_model *m = s->model->abi;
    moec_status status = MOEC_OK;
    if (m->n_states) /* the upper half is 0 since creation */
        status = MC_CUDA(g->gpu->cuda, error, cuMemsetD32Async, g->past, (unsigned)s->past, 1, g->walk.stream);
    if (status == MOEC_OK) status = bring_in(s, error);
    if (status != MOEC_OK) return status;
    g->walk.error = error;
    status = g->use_graphs ? mc_gpu_graph_run(&g->graphs, &g->walk, m->n_inputs + m->n_outputs, g->args)
                           : mc_gpu_walk_run(&g->walk, m->entry, 0, g->args);
    return status == MOEC_OK ? bring_out(s, error) : status;
}

/* The plan's tables at this step's sizes; a step like the last one finds them as they are. */
static moec_status
prepare(moec_session *s, mc_fault *error)
{
    struct mc_gpu_session *g = s->gpu;
    const moec_model *m = s->model;
    size_t slab, scratch, n_bytes = m->abi->n_syms * sizeof *g->prepared;
    if (m->sym_total != MC_NO_SYM) s->exec.syms[m->sym_total] = s->max_positions;
    if (g->is_prepared && memcmp(g->prepared, s->exec.syms, n_bytes) == 0) return MOEC_OK;
    g->is_prepared = false;
    g->walk.error = error;
    moec_status status = mc_exec_prepare(&s->exec, m->abi->entry, &slab, error);
    if (status == MOEC_OK) status = mc_gpu_scratch_bytes(&s->exec, &scratch, error);
    if (status == MOEC_OK) status = mc_gpu_walk_check(&g->walk, m->abi->entry, 0, g->args);
    if (status != MOEC_OK) return status;
    if (slab > g->slab_bytes || scratch > g->scratch_bytes)
        return mc_fail(error, MOEC_ERR_INTERNAL, "the plan needs more memory than at the greatest sizes");
    memcpy(g->prepared, s->exec.syms, n_bytes);
    g->is_prepared = true;
    return MOEC_OK;
}

moec_status
mc_gpu_session_step(moec_session *s, mc_fault *error)
{
    struct mc_gpu_session *g = s->gpu;
    moec_status status = prepare(s, error);
    if (status == MOEC_OK) status = mc_gpu_enter(g->gpu, error);
    if (status != MOEC_OK) return status;
    status = queue_step(s, error);
    mc_gpu_leave(g->gpu);
    return status;
}
