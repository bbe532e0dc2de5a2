/* step: one step of a session: from named tensors to symbol values and argument addresses, and the walk.
 * Nothing changes in the session until every check has passed. */
#include "runtime/session.h"

#include <string.h>

void
mc_session_begin(moec_session *s)
{
    for (uint32_t i = 0; i < s->model->abi->n_syms; i++) s->exec.syms[i] = -1;
}

moec_status
mc_session_set_sym(moec_session *s, uint32_t sym, int64_t value, mc_fault *error)
{
    const moec_abi_sym *d = &s->model->abi->syms[sym];
    if (value < d->lo || value < 0 || (d->hi > 0 && value > d->hi))
        return mc_fail(error, MOEC_ERR_RANGE, "%s = %lld: the model allows %lld..%lld", d->name, (long long)value,
                       (long long)d->lo, (long long)d->hi);
    if (value > s->sym_max[sym])
        return mc_fail(error, MOEC_ERR_RANGE, "%s = %lld: this session was made for at most %lld", d->name,
                       (long long)value, (long long)s->sym_max[sym]);
    s->exec.syms[sym] = value;
    return MOEC_OK;
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

moec_status
mc_session_step(moec_session *s, mc_fault *error)
{
    const moec_model *m = s->model;
    size_t slab;
    moec_status status = set_total(s, error);
    if (status == MOEC_OK) status = mc_exec_prepare(&s->exec, &slab, error);
    if (status != MOEC_OK) return status;
    if (slab > s->slab.n_bytes)
        return mc_fail(error, MOEC_ERR_INTERNAL, "the plan needs %zu bytes, more than the %zu at the greatest sizes",
                       slab, s->slab.n_bytes);
    s->exec.past = s->past;
    mc_exec_run(&s->exec, s->args);
    if (m->abi->n_states && m->sym_new != MC_NO_SYM) {
        s->past += s->exec.syms[m->sym_new];
        s->batch = m->sym_batch == MC_NO_SYM ? 1 : s->exec.syms[m->sym_batch];
    }
    return MOEC_OK;
}

/* ---- named tensors -------------------------------------------------------------------------------------------- */

/* Which tensor is table entry `index`: by name, or by order for those without one. n: not given. */
static size_t
find_tensor(const moec_tensor *tensors, size_t n, const char *name, size_t index)
{
    for (size_t i = 0; i < n; i++)
        if (tensors[i].name && strcmp(tensors[i].name, name) == 0) return i;
    return index < n && !tensors[index].name ? index : n;
}

static moec_status
check_names(const moec_tensor *tensors, size_t n, const moec_abi_tensor *table, uint32_t n_table, const char *kind,
            mc_fault *error)
{
    for (size_t i = 0; i < n; i++) {
        bool known = !tensors[i].name && i < n_table;
        for (uint32_t j = 0; j < n_table && tensors[i].name; j++)
            known = known || strcmp(tensors[i].name, table[j].name) == 0;
        if (!known)
            return mc_fail(error, MOEC_ERR_ARGUMENT, "the model has no %s named %s", kind,
                           tensors[i].name ? tensors[i].name : "(null)");
    }
    return MOEC_OK;
}

static bool
dense_bytes(const moec_tensor *t, size_t *out)
{
    size_t n = moec_dtype_bytes(t->dtype);
    for (uint32_t i = 0; i < t->rank; i++)
        if (t->dims[i] < 0 || __builtin_mul_overflow(n, (size_t)t->dims[i], &n)) return false;
    *out = n;
    return true;
}

static moec_status
check_input(const moec_tensor *t, const moec_abi_tensor *want, mc_fault *error)
{
    size_t n_bytes = 0;
    if (t->dtype != (moec_dtype)want->dtype)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "input %s is %s, not %s", want->name,
                       moec_dtype_name((moec_dtype)want->dtype), moec_dtype_name(t->dtype));
    if (t->rank != want->rank)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "input %s has %u dimensions, not %u", want->name, want->rank, t->rank);
    if (!dense_bytes(t, &n_bytes) || n_bytes > t->n_bytes || (!t->data && n_bytes))
        return mc_fail(error, MOEC_ERR_ARGUMENT, "input %s: %zu bytes are fewer than its dimensions need", want->name,
                       t->n_bytes);
    return MOEC_OK;
}

/* One equation, dim = mul * product + add: solves it when exactly one of its symbols has no value yet. */
static moec_status
solve_dim(moec_session *s, const moec_abi_tensor *want, const moec_abi_expr *e, int64_t dim, bool *progress,
          mc_fault *error)
{
    int unknown = -1, n_unknown = 0;
    int64_t factor = e->mul, rest;
    for (int i = 0; i < 8 && e->syms[i] != MC_NO_SYM; i++) {
        int64_t v = s->exec.syms[e->syms[i]];
        if (v < 0) {
            unknown = e->syms[i];
            n_unknown++;
        } else if (__builtin_mul_overflow(factor, v, &factor)) {
            factor = 0;
        }
    }
    if (n_unknown != 1 || factor == 0) return MOEC_OK;
    char text[64];
    mc_expr_text(s->model->abi, e, text, sizeof text);
    if (__builtin_sub_overflow(dim, e->add, &rest) || rest % factor != 0)
        return mc_fail(error, MOEC_ERR_MISMATCH, "input %s: %lld is no value of %s", want->name, (long long)dim, text);
    *progress = true;
    return mc_session_set_sym(s, (uint32_t)unknown, rest / factor, error);
}

static moec_status
solve_symbols(moec_session *s, const moec_tensor *const *inputs, mc_fault *error)
{
    const moec_abi_model *m = s->model->abi;
    mc_session_begin(s);
    for (bool progress = true; progress;) {
        progress = false;
        for (uint32_t i = 0; i < m->n_inputs; i++)
            for (uint32_t d = 0; d < m->inputs[i].rank; d++) {
                moec_status st =
                    solve_dim(s, &m->inputs[i], &m->inputs[i].dims[d], inputs[i]->dims[d], &progress, error);
                if (st != MOEC_OK) return st;
            }
    }
    for (uint32_t i = 0; i < m->n_inputs; i++)
        for (uint32_t d = 0; d < m->inputs[i].rank; d++) {
            int64_t want;
            char text[64];
            mc_expr_text(m, &m->inputs[i].dims[d], text, sizeof text);
            if (!mc_expr_eval(&m->inputs[i].dims[d], s->exec.syms, &want))
                return mc_fail(error, MOEC_ERR_MISMATCH, "input %s: %s is not determined", m->inputs[i].name, text);
            bool fixed = m->inputs[i].dims[d].syms[0] == 0xFF;
            if (want != inputs[i]->dims[d] && fixed)
                return mc_fail(error, MOEC_ERR_MISMATCH, "input %s: dimension %u is %lld and must be %lld",
                               m->inputs[i].name, d, (long long)inputs[i]->dims[d], (long long)want);
            if (want != inputs[i]->dims[d])
                return mc_fail(error, MOEC_ERR_MISMATCH, "input %s: dimension %u is %lld, but %s is %lld",
                               m->inputs[i].name, d, (long long)inputs[i]->dims[d], text, (long long)want);
        }
    return MOEC_OK;
}

static moec_status
check_ids(const moec_tensor *t, const moec_abi_tensor *want, mc_fault *error)
{
    size_t n = 0;
    if (!want->limit || !dense_bytes(t, &n)) return MOEC_OK;
    n /= moec_dtype_bytes(t->dtype);
    for (size_t i = 0; i < n; i++) {
        int64_t v;
        if (t->dtype == MOEC_I32)
            v = ((const int32_t *)t->data)[i];
        else if (t->dtype == MOEC_I64)
            v = ((const int64_t *)t->data)[i];
        else
            return MOEC_OK;
        if (v >= 0 && v < want->limit) continue;
        int64_t row = t->rank ? t->dims[t->rank - 1] : 1;
        return mc_fail(error, MOEC_ERR_RANGE, "id %lld at position %lld of row %lld of %s is outside 0..%lld",
                       (long long)v, (long long)(i % (size_t)row), (long long)(i / (size_t)row), want->name,
                       (long long)want->limit - 1);
    }
    return MOEC_OK;
}

static moec_status
bind_outputs(moec_session *s, moec_tensor *outputs, size_t n_outputs, mc_fault *error)
{
    const moec_abi_model *m = s->model->abi;
    for (uint32_t i = 0; i < m->n_outputs; i++) {
        const moec_abi_tensor *want = &m->outputs[i];
        size_t found = find_tensor(outputs, n_outputs, want->name, i);
        s->args[m->n_inputs + i] = s->outputs.data + s->output_offsets[i];
        if (found == n_outputs) continue;
        moec_tensor *t = &outputs[found];
        t->dtype = (moec_dtype)want->dtype;
        t->rank = want->rank;
        size_t need = 0;
        for (uint32_t d = 0; d < want->rank; d++)
            if (!mc_expr_eval(&want->dims[d], s->exec.syms, &t->dims[d]))
                return mc_fail(error, MOEC_ERR_INTERNAL, "the size of output %s is not determined", want->name);
        if (!dense_bytes(t, &need) || need > t->n_bytes || (!t->data && need))
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
    moec_status status = check_names(inputs, n_inputs, m->inputs, m->n_inputs, "input", error);
    if (status == MOEC_OK) status = check_names(outputs, n_outputs, m->outputs, m->n_outputs, "output", error);
    for (uint32_t i = 0; status == MOEC_OK && i < m->n_inputs; i++) {
        size_t found = find_tensor(inputs, n_inputs, m->inputs[i].name, i);
        if (found == n_inputs) return mc_fail(error, MOEC_ERR_ARGUMENT, "input %s is missing", m->inputs[i].name);
        in[i] = &inputs[found];
        status = check_input(in[i], &m->inputs[i], error);
        s->args[i] = in[i]->data;
    }
    if (status == MOEC_OK) status = solve_symbols(s, in, error);
    for (uint32_t i = 0; status == MOEC_OK && i < m->n_inputs; i++) status = check_ids(in[i], &m->inputs[i], error);
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
    return mc_give(error, &e, run(s, inputs, n_inputs, outputs, n_outputs, &e));
}
