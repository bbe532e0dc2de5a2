/* feed: steps of a language model: ids in, logits out, at most max_new positions at a time. All ids and sizes are
 * checked before the first step, so a refused call leaves the history as it was. */
#include "runtime/gpu/gpu_session.h"
#include "runtime/session.h"

#include <stdlib.h>
#include <string.h>

static moec_status
check_feed(const moec_session *s, const int32_t *ids, size_t n_sequences, size_t n_tokens, mc_fault *error)
{
    const moec_model *m = s->model;
    int64_t limit = m->abi->n_inputs ? m->abi->inputs[0].limit : 0;
    if (!m->vocab)
        return mc_fail(error, MOEC_ERR_ARGUMENT,
                       "%s is not a language model (i32[B, S] -> f32[B, S, V]); use named tensors", m->abi->name);
    if (!ids || (n_sequences == 0 && !m->abi->ep) || n_tokens == 0) return mc_fail(error, MOEC_ERR_ARGUMENT, "no ids");
    if (s->gpu && s->gpu->device_pointers)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "this session takes device pointers: use moec_session_run");
    if (n_sequences > (size_t)s->max_batch)
        return mc_fail(error, MOEC_ERR_RANGE, "%zu sequences: this session was made for at most %lld", n_sequences,
                       (long long)s->max_batch);
    if (m->abi->n_states && s->past && (size_t)s->batch != n_sequences)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "the history has %lld sequences, this step %zu; reset first",
                       (long long)s->batch, n_sequences);
    int64_t room = m->abi->n_states ? s->max_positions - s->past : s->max_new;
    if (n_tokens > (size_t)room)
        return mc_fail(error, MOEC_ERR_RANGE, "%lld cached and %zu new positions: this session holds %lld",
                       (long long)s->past, n_tokens, (long long)(s->past + room));
    for (size_t i = 0; i < n_sequences * n_tokens; i++)
        if (limit && (ids[i] < 0 || ids[i] >= limit))
            return mc_fail(error, MOEC_ERR_RANGE,
                           "id %d at position %zu of sequence %zu is outside the vocabulary 0..%lld", ids[i],
                           i % n_tokens, i / n_tokens, (long long)limit - 1);
    return MOEC_OK;
}

static moec_status
set_sizes(moec_session *s, size_t n_sequences, size_t n_tokens, mc_fault *error)
{
    const moec_abi_tensor *in = &s->model->abi->inputs[0];
    size_t sizes[2] = {n_sequences, n_tokens};
    mc_session_begin(s);
    for (int d = 0; d < 2; d++) {
        int64_t value;
        if (!mc_expr_is_const(&in->dims[d])) {
            moec_status status = mc_session_set_sym(s, in->dims[d].syms[0], (int64_t)sizes[d], error);
            if (status != MOEC_OK) return status;
        }
        if (!mc_expr_eval(&in->dims[d], s->exec.syms, &value) || value != (int64_t)sizes[d])
            return mc_fail(error, MOEC_ERR_RANGE, "%s wants %lld, not %zu, in dimension %d", in->name, (long long)value,
                           sizes[d], d);
    }
    return MOEC_OK;
}

/* One step of `n` positions from column `at` of ids [n_sequences][n_tokens]. */
static moec_status
feed_chunk(moec_session *s, const int32_t *ids, size_t n_sequences, size_t n_tokens, size_t at, size_t n,
           int32_t *columns, mc_fault *error)
{
    moec_status status = set_sizes(s, n_sequences, n, error);
    if (status != MOEC_OK) return status;
    const int32_t *chunk = ids + at;
    if (columns) {
        for (size_t b = 0; b < n_sequences; b++) memcpy(columns + b * n, ids + b * n_tokens + at, n * sizeof *ids);
        chunk = columns;
    }
    const moec_abi_model *m = s->model->abi;
    s->args[0] = (void *)(uintptr_t)chunk;
    for (uint32_t i = 0; i < m->n_outputs; i++) s->args[1 + i] = s->outputs.data + s->output_offsets[i];
    status = mc_session_step(s, error);
    if (status != MOEC_OK) return status;
    s->logits = (const float *)(const void *)(s->outputs.data + s->output_offsets[0]);
    s->logits_batch = n_sequences;
    s->logits_rows = n;
    return MOEC_OK;
}

static moec_status
feed(moec_session *s, const int32_t *ids, size_t n_sequences, size_t n_tokens, float *out_logits, mc_fault *error)
{
    moec_status status = check_feed(s, ids, n_sequences, n_tokens, error);
    if (status != MOEC_OK) return status;
    if (s->gpu) s->gpu->rows = out_logits ? MC_GPU_ROWS_ALL : mc_gpu_samples(s) ? MC_GPU_ROWS_NONE : MC_GPU_ROWS_LAST;
    size_t most = (size_t)s->max_new, vocab = (size_t)s->model->vocab;
    int32_t *columns = NULL;
    if (n_sequences > 1 && n_tokens > most) {
        columns = malloc(n_sequences * most * sizeof *columns);
        if (!columns) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    }
    for (size_t at = 0; at < n_tokens && status == MOEC_OK;) {
        size_t n = n_tokens - at < most ? n_tokens - at : most;
        status = feed_chunk(s, ids, n_sequences, n_tokens, at, n, columns, error);
        for (size_t b = 0; b < n_sequences && status == MOEC_OK && out_logits; b++)
            memcpy(out_logits + (b * n_tokens + at) * vocab, s->logits + b * n * vocab, n * vocab * sizeof *out_logits);
        at += n;
    }
    free(columns);
    return status;
}

moec_status
moec_session_feed(moec_session *s, const int32_t *ids, size_t n_sequences, size_t n_tokens, float *out_logits,
                  moec_error *error)
{
    mc_fault e = {{0}};
    return mc_give(error, &e, feed(s, ids, n_sequences, n_tokens, out_logits, &e));
}

const float *
moec_session_logits(const moec_session *s, size_t sequence)
{
    mc_fault ignored; /* the next step says it */
    if (!s->logits || sequence >= s->logits_batch) return NULL;
    if (s->gpu && mc_gpu_session_bring_logits(s, &ignored) != MOEC_OK) return NULL;
    return s->logits + ((sequence + 1) * s->logits_rows - 1) * (size_t)s->model->vocab;
}

/* ---- profile -------------------------------------------------------------------------------------------------- */

void
moec_session_profile_clear(moec_session *s)
{
    if (!s->exec.launch_seconds) return;
    memset(s->exec.launch_seconds, 0, s->model->abi->n_launches * sizeof *s->exec.launch_seconds);
    memset(s->exec.launch_counts, 0, s->model->abi->n_launches * sizeof *s->exec.launch_counts);
}

/* Sums the launches whose label is that of launch `index`; false when an earlier launch has the same label. */
static bool
sum_label(const moec_session *s, uint32_t index, moec_profile_entry *out)
{
    const moec_abi_model *m = s->model->abi;
    const char *label = m->strings + m->launches[index].label;
    *out = (moec_profile_entry){.label = label};
    for (uint32_t i = 0; i < m->n_launches; i++) {
        if (strcmp(m->strings + m->launches[i].label, label) != 0) continue;
        if (i < index) return false;
        out->seconds += s->exec.launch_seconds[i];
        out->n_launches += s->exec.launch_counts[i];
    }
    return out->n_launches > 0;
}

static bool
before(const moec_profile_entry *a, const moec_profile_entry *b)
{
    return a->seconds != b->seconds ? a->seconds > b->seconds : strcmp(a->label, b->label) < 0;
}

bool
moec_session_profile(moec_session *s, size_t index, moec_profile_entry *out_entry)
{
    moec_profile_entry last = {0}, best = {0}, entry;
    if (!s->exec.launch_seconds) return false;
    for (size_t n = 0; n <= index; n++) {
        bool found = false;
        for (uint32_t i = 0; i < s->model->abi->n_launches; i++) {
            if (!sum_label(s, i, &entry)) continue;
            if (n > 0 && !before(&last, &entry)) continue;
            if (!found || before(&entry, &best)) best = entry;
            found = true;
        }
        if (!found) return false;
        last = best;
    }
    *out_entry = last;
    return true;
}
