/* trace_write: the writing half of trace.h. Every part is made in memory, added to one running hash and written, so
 * that a recording of any length needs no more than one record at a time. */
#include "runtime/trace_format.h"

#include "runtime/base/hash.h"

#include <stdlib.h>
#include <string.h>

struct mc_trace_writer {
    mc_writer *file; /* NULL: into memory */
    unsigned char *memory;
    size_t n_memory, cap_memory;
    unsigned char *part; /* the part being made */
    size_t cap_part;
    uint32_t *experts, *top_k; /* of each layer */
    uint32_t n_layers, id_bytes;
    uint64_t n_records, hash;
};

static void
destroy(mc_trace_writer *w)
{
    if (!w) return;
    if (w->file) mc_writer_abandon(w->file);
    free(w->memory);
    free(w->part);
    free(w->experts);
    free(w->top_k);
    free(w);
}

static bool
reserve(unsigned char **p, size_t *cap, size_t n)
{
    if (n <= *cap) return true;
    size_t wanted = n + n / 2;
    unsigned char *q = realloc(*p, wanted);
    if (!q) return false;
    *p = q;
    *cap = wanted;
    return true;
}

/* Room for a part of n bytes, all zero; NULL: no memory. */
static unsigned char *
begin_part(mc_trace_writer *w, size_t n)
{
    if (!reserve(&w->part, &w->cap_part, n)) return NULL;
    memset(w->part, 0, n);
    return w->part;
}

static moec_status
put_part(mc_trace_writer *w, size_t n, mc_fault *error)
{
    w->hash = mc_hash64(w->part, n, w->hash);
    if (w->file) return mc_writer_write(w->file, w->part, n, error);
    if (!reserve(&w->memory, &w->cap_memory, w->n_memory + n))
        return mc_fail(error, MOEC_ERR_MEMORY, "out of memory for a trace");
    memcpy(w->memory + w->n_memory, w->part, n);
    w->n_memory += n;
    return MOEC_OK;
}

static moec_status
check_info(const mc_trace_info *info, uint64_t *out_texts, mc_fault *error)
{
    if (!info->n_layers || info->n_layers > MC_TRACE_MAX_LAYERS)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "a trace holds 1 to %d layers with experts, not %u",
                       MC_TRACE_MAX_LAYERS, info->n_layers);
    uint64_t texts = strlen(info->model) + 1;
    for (uint32_t i = 0; i < info->n_layers; i++) {
        const mc_trace_layer *l = &info->layers[i];
        if (!l->n_experts || l->n_experts > MC_TRACE_MAX_EXPERTS || !l->top_k || l->top_k > MC_TRACE_MAX_TOP_K)
            return mc_fail(error, MOEC_ERR_ARGUMENT,
                           "%s: a trace holds layers of 1 to %d experts, 1 to %d of them for a token, not %u and %u",
                           l->name, MC_TRACE_MAX_EXPERTS, MC_TRACE_MAX_TOP_K, l->n_experts, l->top_k);
        texts += strlen(l->name);
        if (texts > MC_TRACE_MAX_TEXTS)
            return mc_fail(error, MOEC_ERR_ARGUMENT, "the names of a trace's layers are longer than %d bytes",
                           MC_TRACE_MAX_TEXTS);
    }
    *out_texts = texts;
    return MOEC_OK;
}

static moec_status
write_head(mc_trace_writer *w, const mc_trace_info *info, uint64_t texts, mc_fault *error)
{
    size_t n = MC_TRACE_HEAD_BYTES + (size_t)MC_TRACE_LAYER_BYTES * info->n_layers + mc_trace_padded(texts);
    unsigned char *p = begin_part(w, n);
    if (!p) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory for a trace");
    memcpy(p, MC_TRACE_MAGIC, 8);
    mc_trace_put32(p + 8, MC_TRACE_VERSION);
    mc_trace_put32(p + 12, w->id_bytes);
    mc_trace_put64(p + 16, info->hash);
    mc_trace_put32(p + 24, info->n_layers);
    mc_trace_put32(p + 28, (uint32_t)texts);
    unsigned char *layer = p + MC_TRACE_HEAD_BYTES;
    unsigned char *text = layer + (size_t)MC_TRACE_LAYER_BYTES * info->n_layers;
    memcpy(text, info->model, strlen(info->model) + 1);
    text += strlen(info->model) + 1;
    for (uint32_t i = 0; i < info->n_layers; i++, layer += MC_TRACE_LAYER_BYTES) {
        const mc_trace_layer *l = &info->layers[i];
        size_t len = strlen(l->name);
        mc_trace_put32(layer, l->n_experts);
        mc_trace_put32(layer + 4, l->top_k);
        mc_trace_put32(layer + 8, (uint32_t)len);
        mc_trace_put32(layer + 12, l->guessed);
        memcpy(text, l->name, len);
        text += len;
    }
    return put_part(w, n, error);
}

static moec_status
create(const mc_trace_info *info, const char *path, mc_trace_writer **out, mc_fault *error)
{
    *out = NULL;
    uint64_t texts = 0;
    moec_status s = check_info(info, &texts, error);
    if (s != MOEC_OK) return s;
    mc_trace_writer *w = calloc(1, sizeof *w);
    if (!w) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory for a trace");
    w->n_layers = info->n_layers;
    w->experts = calloc(w->n_layers, sizeof *w->experts);
    w->top_k = calloc(w->n_layers, sizeof *w->top_k);
    w->id_bytes = 2;
    if (!w->experts || !w->top_k) s = mc_fail(error, MOEC_ERR_MEMORY, "out of memory for a trace");
    for (uint32_t i = 0; i < w->n_layers && s == MOEC_OK; i++) {
        w->experts[i] = info->layers[i].n_experts;
        w->top_k[i] = info->layers[i].top_k;
        if (w->experts[i] > 0xFFFF) w->id_bytes = 4;
    }
    if (s == MOEC_OK && path) s = mc_writer_open(path, &w->file, error);
    if (s == MOEC_OK) s = write_head(w, info, texts, error);
    if (s != MOEC_OK) {
        destroy(w);
        return s;
    }
    *out = w;
    return MOEC_OK;
}

moec_status
mc_trace_create(const char *path, const mc_trace_info *info, mc_trace_writer **out, mc_fault *error)
{
    return create(info, path, out, error);
}

moec_status
mc_trace_create_memory(const mc_trace_info *info, mc_trace_writer **out, mc_fault *error)
{
    return create(info, NULL, out, error);
}

moec_status
mc_trace_add(mc_trace_writer *w, const mc_trace_record *record, mc_fault *error)
{
    if (record->layer >= w->n_layers)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "a record is of layer %u, but the trace has %u", record->layer,
                       w->n_layers);
    uint64_t n_ids = (uint64_t)record->n_tokens * w->top_k[record->layer];
    uint64_t n_bytes = MC_TRACE_RECORD_BYTES + mc_trace_padded(n_ids * w->id_bytes);
    unsigned char *p = begin_part(w, n_bytes);
    if (!p) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory for a record of %u tokens", record->n_tokens);
    mc_trace_put32(p, MC_TRACE_RECORD);
    mc_trace_put32(p + 4, record->layer);
    mc_trace_put64(p + 8, record->step);
    mc_trace_put32(p + 16, record->rank);
    mc_trace_put32(p + 20, record->n_tokens);
    p += MC_TRACE_RECORD_BYTES;
    for (uint64_t i = 0; i < n_ids; i++, p += w->id_bytes) {
        int32_t id = record->ids[i];
        if (id < -1 || (id >= 0 && (uint32_t)id >= w->experts[record->layer]))
            return mc_fail(error, MOEC_ERR_RANGE, "step %llu, layer %u: expert %d of %u cannot be recorded",
                           (unsigned long long)record->step, record->layer, id, w->experts[record->layer]);
        p[0] = (unsigned char)id;
        p[1] = (unsigned char)((uint32_t)id >> 8);
        if (w->id_bytes == 4) mc_trace_put32(p, (uint32_t)id);
    }
    moec_status s = put_part(w, n_bytes, error);
    if (s == MOEC_OK) w->n_records++;
    return s;
}

static moec_status
write_end(mc_trace_writer *w, mc_fault *error)
{
    uint64_t hash = w->hash;
    unsigned char *p = begin_part(w, MC_TRACE_END_BYTES);
    if (!p) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory for a trace");
    mc_trace_put32(p, MC_TRACE_END);
    mc_trace_put64(p + 8, w->n_records);
    mc_trace_put64(p + 16, hash);
    return put_part(w, MC_TRACE_END_BYTES, error);
}

moec_status
mc_trace_commit(mc_trace_writer *w, mc_fault *error)
{
    moec_status s = write_end(w, error);
    if (s == MOEC_OK) {
        mc_writer *file = w->file;
        w->file = NULL;
        s = mc_writer_commit(file, 0644, error);
    }
    destroy(w);
    return s;
}

moec_status
mc_trace_take(mc_trace_writer *w, unsigned char **out_bytes, size_t *out_n, mc_fault *error)
{
    moec_status s = write_end(w, error);
    if (s == MOEC_OK) {
        *out_bytes = w->memory;
        *out_n = w->n_memory;
        w->memory = NULL;
    }
    destroy(w);
    return s;
}

void
mc_trace_abandon(mc_trace_writer *w)
{
    destroy(w);
}
