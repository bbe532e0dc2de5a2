/* step: one step of a session: from named tensors to symbol values and argument addresses, and the walk.
 * Nothing changes in the session until every check has passed. */
#include "runtime/args.h"
#include "runtime/gpu/gpu_session.h"
#include "runtime/session.h"

void
mc_session_begin(moec_session *s)
{
    for (uint32_t i = 0; i < s->model->abi->n_syms; i++) s->exec.syms[i] = -1;
}

static mc_sizes
sizes_of(const moec_session *s)
{
    return (mc_sizes){.abi = s->model->abi, .syms = s->exec.syms, .max = s->sym_max};
}

moec_status
mc_session_set_sym(moec_session *s, uint32_t sym, int64_t value, mc_fault *error)
{
    mc_sizes sizes = sizes_of(s);
    return mc_sizes_set(&sizes, sym, value, error);
}

/* Sizes that depend on history: C = past + S, and the number of sequences must stay. */
static moec_status
set_total(moec_session *s, mc_fault *error)
{
    const moec_model *m = s->model;
    int64_t fresh = m->sym_new == MC_NO_SYM ? 0 : s->exec.syms[m->sym_new];
    int64_t batch = m->sym_batch == MC_NO_SYM ? 1 : s->exec.syms[m->sym_batch];
    int64_t total;
    if (m->abi->n_states && s->past && batch != s->batch)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "the history has %lld sequences, this step %lld; reset first",
                       (long long)s->batch, (long long)batch);
    if (m->abi->n_states && (batch < 0 || batch > s->max_batch))
        return mc_fail(error, MOEC_ERR_RANGE, "%lld sequences: this session was made for at most %lld",
                       (long long)batch, (long long)s->max_batch);
    if (fresh < 0 || __builtin_add_overflow(s->past, fresh, &total)) total = INT64_MAX;
    if (m->abi->n_states && total > s->max_positions)
        return mc_fail(error, MOEC_ERR_RANGE, "%lld cached and %lld new positions: this session holds %lld",
                       (long long)s->past, (long long)fresh, (long long)s->max_positions);
    return m->sym_total == MC_NO_SYM ? MOEC_OK : mc_session_set_sym(s, m->sym_total, total, error);
}

static moec_status
step_on_cpu(moec_session *s, mc_fault *error)
{
    size_t slab;
    moec_status status = mc_exec_prepare(&s->exec, s->exec.abi->entry, &slab, error);
    if (status != MOEC_OK) return status;
    if (slab > s->slab.n_bytes)
        return mc_fail(error, MOEC_ERR_INTERNAL, "the plan needs %zu bytes, more than the %zu at the greatest sizes",
                       slab, s->slab.n_bytes);
    s->exec.past = s->past;
    return mc_exec_run(&s->exec, s->exec.abi->entry, 0, s->args, error);
}

moec_status
mc_session_step(moec_session *s, mc_fault *error)
{
    const moec_model *m = s->model;
    moec_status status = set_total(s, error);
    if (status == MOEC_OK) status = s->gpu ? mc_gpu_session_step(s, error) : step_on_cpu(s, error);
    if (status != MOEC_OK) return status;
    if (m->abi->n_states && m->sym_new != MC_NO_SYM) {
        s->past += s->exec.syms[m->sym_new];
        s->batch = m->sym_batch == MC_NO_SYM ? 1 : s->exec.syms[m->sym_batch];
    }
    return MOEC_OK;
}

/* ---- named tensors -------------------------------------------------------------------------------------------- */

static moec_status
bind_outputs(moec_session *s, moec_tensor *outputs, size_t n_outputs, mc_fault *error)
{
    const moec_abi_model *m = s->model->abi;
    for (uint32_t i = 0; i < m->n_outputs; i++) {
        const moec_abi_tensor *want = &m->outputs[i];
        size_t found = mc_args_find(outputs, n_outputs, want->name, i);
        s->args[m->n_inputs + i] = s->outputs.data + s->output_offsets[i];
        if (found == n_outputs) continue;
        moec_tensor *t = &outputs[found];
        t->dtype = (moec_dtype)want->dtype;
        t->rank = want->rank;
        size_t need = 0;
        for (uint32_t d = 0; d < want->rank; d++)
            if (!mc_expr_eval(&want->dims[d], s->exec.syms, &t->dims[d]))
                return mc_fail(error, MOEC_ERR_INTERNAL, "the size of output %s is not determined", want->name);
        if (!mc_args_bytes(t, &need) || need > t->n_bytes || (!t->data && need))
            return mc_fail(error, MOEC_ERR_ARGUMENT, "output %s needs %zu bytes, its buffer has %zu", want->name, need,
                           t->n_bytes);
        s->args[m->n_inputs + i] = t->data;
    }
    return MOEC_OK;
}

static moec_status
run(moec_session *s, const moec_tensor *inputs, size_t n_inputs, moec_tensor *outputs, size_t n_outputs,
    mc_fault *error)
{
    const moec_abi_model *m = s->model->abi;
    const moec_tensor *in[MC_MAX_CALL_ARGS];
    mc_sizes sizes = sizes_of(s);
    moec_status status = mc_args_names(outputs, n_outputs, m->outputs, m->n_outputs, "output", error);
    if (status == MOEC_OK) status = mc_args_inputs(&sizes, inputs, n_inputs, in, error);
    for (uint32_t i = 0; status == MOEC_OK && i < m->n_inputs; i++) {
        s->args[i] = in[i]->data;
        if (!s->gpu || !s->gpu->device_pointers) status = mc_args_ids(in[i], &m->inputs[i], error);
    }
    if (status == MOEC_OK && s->model->sym_total != MC_NO_SYM && s->model->sym_new != MC_NO_SYM)
        s->exec.syms[s->model->sym_total] = s->past + s->exec.syms[s->model->sym_new];
    if (status == MOEC_OK) status = bind_outputs(s, outputs, n_outputs, error);
    return status == MOEC_OK ? mc_session_step(s, error) : status;
}

moec_status
moec_session_run(moec_session *s, const moec_tensor *inputs, size_t n_inputs, moec_tensor *outputs, size_t n_outputs,
                 moec_error *error)
{
    mc_fault e = {{0}};
    s->logits = NULL;
    if (s->gpu) s->gpu->rows = MC_GPU_ROWS_NONE;
    return mc_give(error, &e, run(s, inputs, n_inputs, outputs, n_outputs, &e));
}
