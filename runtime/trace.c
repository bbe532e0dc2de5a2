/* trace: the reading half of trace.h. A file is mapped, walked once from head to end with every size checked against
 * what is left, and its hash compared; only then does anybody get a record. Lines of JSON become the same bytes first.
 */
#include "runtime/trace_format.h"

#include "runtime/base/hash.h"

#include <stdlib.h>
#include <string.h>

struct mc_trace {
    mc_mapping map;        /* of the file, or */
    unsigned char *memory; /* bytes of our own */
    const unsigned char *data;
    size_t n_bytes, first, at; /* of records: the first, the next one */
    char *name;                /* of the file, for messages */
    char *texts;               /* the model's and the layers' names */
    mc_trace_info info;
    mc_trace_layer *layers;
    uint64_t *n_tokens; /* of each layer */
    uint64_t n_records;
    uint32_t id_bytes;
    int32_t *ids;     /* of the record that was read last */
    uint64_t *chosen; /* [experts of the largest layer] of mc_trace_loads: a float would stop at 2^24 */
};

void
mc_trace_close(mc_trace *trace)
{
    if (!trace) return;
    mc_file_unmap(&trace->map);
    free(trace->memory);
    free(trace->name);
    free(trace->texts);
    free(trace->layers);
    free(trace->n_tokens);
    free(trace->ids);
    free(trace->chosen);
    free(trace);
}

static moec_status
no_memory(const mc_trace *t, mc_fault *error)
{
    return mc_fail(error, MOEC_ERR_MEMORY, "%s: out of memory", t->name);
}

static moec_status
damaged(const mc_trace *t, const char *what, mc_fault *error)
{
    return mc_fail(error, MOEC_ERR_SYNTAX, "%s is not a complete trace: %s; record it again", t->name, what);
}

/* ---- head ------------------------------------------------------------------------------------------------------- */

/* Copies the names, each ended by a zero. */
static moec_status
read_names(mc_trace *t, const unsigned char *layers, const unsigned char *texts, size_t n_texts, mc_fault *error)
{
    uint32_t n_layers = t->info.n_layers;
    const unsigned char *end = memchr(texts, 0, n_texts);
    if (!end) return damaged(t, "the model's name does not end", error);
    size_t at = (size_t)(end - texts) + 1;
    t->texts = malloc(n_texts + n_layers + 1);
    if (!t->texts) return no_memory(t, error);
    memcpy(t->texts, texts, at);
    t->info.model = t->texts;
    char *to = t->texts + at;
    for (uint32_t i = 0; i < n_layers; i++) {
        size_t len = mc_trace_u32(layers + (size_t)MC_TRACE_LAYER_BYTES * i + 8);
        if (len > n_texts - at) return damaged(t, "the names of layers are longer than their place", error);
        if (memchr(texts + at, 0, len)) return damaged(t, "a layer's name has a zero in it", error);
        memcpy(to, texts + at, len);
        to[len] = 0;
        t->layers[i].name = to;
        to += len + 1;
        at += len;
    }
    return at == n_texts ? MOEC_OK : damaged(t, "the names of layers are shorter than their place", error);
}

static moec_status
read_layers(mc_trace *t, const unsigned char *p, mc_fault *error)
{
    for (uint32_t i = 0; i < t->info.n_layers; i++, p += MC_TRACE_LAYER_BYTES) {
        mc_trace_layer *l = &t->layers[i];
        l->n_experts = mc_trace_u32(p);
        l->top_k = mc_trace_u32(p + 4);
        l->guessed = mc_trace_u32(p + 12) & 1;
        if (!l->n_experts || l->n_experts > MC_TRACE_MAX_EXPERTS || !l->top_k || l->top_k > MC_TRACE_MAX_TOP_K)
            return damaged(t, "a layer has an impossible number of experts", error);
        if (t->id_bytes == 2 && l->n_experts > 0xFFFF) return damaged(t, "ids are too small for the experts", error);
        if (mc_trace_u32(p + 12) > 1) return damaged(t, "a layer has flags of another version", error);
    }
    return MOEC_OK;
}

static moec_status
read_head(mc_trace *t, mc_fault *error)
{
    const unsigned char *p = t->data;
    if (t->n_bytes < 12 || memcmp(p, MC_TRACE_MAGIC, 8) != 0)
        return mc_fail(error, MOEC_ERR_SYNTAX,
                       "%s is not a trace: neither what `moec route -o` writes nor lines of JSON with the fields step, "
                       "layer, rank, num_tokens, topk and top_indices",
                       t->name);
    if (mc_trace_u32(p + 8) != MC_TRACE_VERSION)
        return mc_fail(error, MOEC_ERR_MISMATCH,
                       "%s is a trace of version %u, this moec reads version %d; record it again with this moec",
                       t->name, mc_trace_u32(p + 8), MC_TRACE_VERSION);
    if (t->n_bytes < MC_TRACE_HEAD_BYTES) return damaged(t, "it ends within its head", error);
    t->id_bytes = mc_trace_u32(p + 12);
    t->info.hash = mc_trace_u64(p + 16);
    t->info.n_layers = mc_trace_u32(p + 24);
    uint64_t n_texts = mc_trace_u32(p + 28);
    if (t->id_bytes != 2 && t->id_bytes != 4) return damaged(t, "ids have neither 2 nor 4 bytes", error);
    if (!t->info.n_layers || t->info.n_layers > MC_TRACE_MAX_LAYERS || n_texts > MC_TRACE_MAX_TEXTS)
        return damaged(t, "its head is impossible", error);
    uint64_t layer_bytes = (uint64_t)MC_TRACE_LAYER_BYTES * t->info.n_layers;
    t->first = (size_t)(MC_TRACE_HEAD_BYTES + layer_bytes + mc_trace_padded(n_texts));
    if (t->n_bytes < t->first) return damaged(t, "it ends within its head", error);
    t->layers = calloc(t->info.n_layers, sizeof *t->layers);
    t->n_tokens = calloc(t->info.n_layers, sizeof *t->n_tokens);
    if (!t->layers || !t->n_tokens) return no_memory(t, error);
    t->info.layers = t->layers;
    moec_status s = read_layers(t, p + MC_TRACE_HEAD_BYTES, error);
    if (s != MOEC_OK) return s;
    return read_names(t, p + MC_TRACE_HEAD_BYTES, p + MC_TRACE_HEAD_BYTES + layer_bytes, (size_t)n_texts, error);
}

/* ---- records ---------------------------------------------------------------------------------------------------- */

/* The record at offset `at`: its head, and where its ids are. False: there is no whole record. */
static bool
record_at(const mc_trace *t, size_t at, mc_trace_record *out, const unsigned char **out_ids, size_t *out_next)
{
    if (t->n_bytes - at < MC_TRACE_RECORD_BYTES) return false;
    const unsigned char *p = t->data + at;
    uint32_t layer = mc_trace_u32(p + 4);
    if (mc_trace_u32(p) != MC_TRACE_RECORD || layer >= t->info.n_layers) return false;
    *out = (mc_trace_record){mc_trace_u64(p + 8), layer, mc_trace_u32(p + 16), mc_trace_u32(p + 20), NULL};
    uint64_t ids = mc_trace_padded((uint64_t)out->n_tokens * t->layers[layer].top_k * t->id_bytes);
    if (ids > t->n_bytes - at - MC_TRACE_RECORD_BYTES) return false;
    *out_ids = p + MC_TRACE_RECORD_BYTES;
    *out_next = at + MC_TRACE_RECORD_BYTES + (size_t)ids;
    return true;
}

/* -2: not an id of this layer. */
static int32_t
read_id(const mc_trace *t, const unsigned char *p, uint32_t n_experts)
{
    uint32_t id = t->id_bytes == 4 ? mc_trace_u32(p) : (uint32_t)(p[0] | p[1] << 8);
    if (id < n_experts) return (int32_t)id;
    return id == (t->id_bytes == 4 ? UINT32_MAX : 0xFFFF) ? -1 : -2;
}

static moec_status
check_ids(const mc_trace *t, const mc_trace_record *r, const unsigned char *ids, mc_fault *error)
{
    const mc_trace_layer *l = &t->layers[r->layer];
    uint64_t n = (uint64_t)r->n_tokens * l->top_k;
    for (uint64_t i = 0; i < n; i++)
        if (read_id(t, ids + i * t->id_bytes, l->n_experts) == -2)
            return damaged(t, "an id is not below the number of experts", error);
    return MOEC_OK;
}

/* Everything after the head; room for the ids of the largest record. */
static moec_status
check_records(mc_trace *t, mc_fault *error)
{
    uint64_t hash = mc_hash64(t->data, t->first, 0), most = 1;
    size_t at = t->first, next;
    mc_trace_record r;
    const unsigned char *ids;
    for (; record_at(t, at, &r, &ids, &next); at = next, t->n_records++) {
        moec_status s = check_ids(t, &r, ids, error);
        if (s != MOEC_OK) return s;
        uint64_t n = (uint64_t)r.n_tokens * t->layers[r.layer].top_k;
        if (n > most) most = n;
        t->n_tokens[r.layer] += r.n_tokens;
        hash = mc_hash64(t->data + at, next - at, hash);
    }
    const unsigned char *p = t->data + at;
    if (t->n_bytes - at < MC_TRACE_END_BYTES) return damaged(t, "it was cut, or its recording did not end", error);
    if (mc_trace_u32(p) != MC_TRACE_END)
        return damaged(t, mc_trace_u32(p) == MC_TRACE_RECORD ? "a record is cut or of no layer" : "a record is damaged",
                       error);
    if (t->n_bytes - at > MC_TRACE_END_BYTES) return damaged(t, "there are bytes after its end", error);
    if (mc_trace_u32(p + 4) || mc_trace_u64(p + 8) != t->n_records || mc_trace_u64(p + 16) != hash)
        return damaged(t, "its bytes are not those that were recorded (its hash differs)", error);
    if (most > SIZE_MAX / sizeof *t->ids || !(t->ids = malloc((size_t)most * sizeof *t->ids)))
        return no_memory(t, error);
    uint32_t n_experts = 0;
    for (uint32_t i = 0; i < t->info.n_layers; i++)
        if (t->layers[i].n_experts > n_experts) n_experts = t->layers[i].n_experts;
    t->chosen = calloc(n_experts, sizeof *t->chosen);
    return t->chosen ? MOEC_OK : no_memory(t, error);
}

static moec_status
check_all(mc_trace *t, mc_fault *error)
{
    size_t blank = 0; /* before lines of JSON */
    while (blank < t->n_bytes && strchr(" \t\r\n", t->data[blank]) && t->data[blank]) blank++;
    if (blank < t->n_bytes && t->data[blank] == '{') {
        unsigned char *made;
        size_t n_made;
        moec_status s = mc_trace_import(t->data, t->n_bytes, t->name, &made, &n_made, error);
        if (s != MOEC_OK) return s;
        mc_file_unmap(&t->map);
        free(t->memory);
        t->memory = made;
        t->data = made;
        t->n_bytes = n_made;
    }
    moec_status s = read_head(t, error);
    if (s == MOEC_OK) s = check_records(t, error);
    t->at = t->first;
    return s;
}

static moec_status
begin(const char *name, mc_trace **out, mc_fault *error)
{
    mc_trace *t = calloc(1, sizeof *t);
    if (t) t->name = malloc(strlen(name) + 1);
    if (!t || !t->name) {
        free(t);
        *out = NULL;
        return mc_fail(error, MOEC_ERR_MEMORY, "%s: out of memory", name);
    }
    memcpy(t->name, name, strlen(name) + 1);
    *out = t;
    return MOEC_OK;
}

static moec_status
end(mc_trace **out, moec_status s)
{
    if (s == MOEC_OK) return s;
    mc_trace_close(*out);
    *out = NULL;
    return s;
}

moec_status
mc_trace_open(const char *path, mc_trace **out, mc_fault *error)
{
    moec_status s = begin(path, out, error);
    if (s != MOEC_OK) return s;
    s = mc_file_map(path, &(*out)->map, error);
    if (s == MOEC_OK) {
        (*out)->data = (*out)->map.data;
        (*out)->n_bytes = (*out)->map.n_bytes;
        s = check_all(*out, error);
    }
    return end(out, s);
}

moec_status
mc_trace_read(const void *bytes, size_t n_bytes, const char *name, mc_trace **out, mc_fault *error)
{
    moec_status s = begin(name, out, error);
    if (s != MOEC_OK) return s;
    (*out)->memory = malloc(n_bytes ? n_bytes : 1);
    if (!(*out)->memory) return end(out, no_memory(*out, error));
    if (n_bytes) memcpy((*out)->memory, bytes, n_bytes);
    (*out)->data = (*out)->memory;
    (*out)->n_bytes = n_bytes;
    return end(out, check_all(*out, error));
}

/* ---- walking ---------------------------------------------------------------------------------------------------- */

const mc_trace_info *
mc_trace_about(const mc_trace *trace)
{
    return &trace->info;
}

uint64_t
mc_trace_n_records(const mc_trace *trace)
{
    return trace->n_records;
}

uint64_t
mc_trace_n_tokens(const mc_trace *trace, uint32_t layer)
{
    return layer < trace->info.n_layers ? trace->n_tokens[layer] : 0;
}

bool
mc_trace_next(mc_trace *trace, mc_trace_record *out)
{
    const unsigned char *ids;
    size_t next;
    if (!record_at(trace, trace->at, out, &ids, &next)) return false;
    const mc_trace_layer *l = &trace->layers[out->layer];
    uint64_t n = (uint64_t)out->n_tokens * l->top_k;
    for (uint64_t i = 0; i < n; i++) {
        int32_t id = read_id(trace, ids + i * trace->id_bytes, l->n_experts);
        trace->ids[i] = id < 0 ? -1 : id;
    }
    out->ids = trace->ids;
    trace->at = next;
    return true;
}

void
mc_trace_rewind(mc_trace *trace)
{
    trace->at = trace->first;
}

void
mc_trace_loads(const mc_trace *trace, uint32_t layer, float *loads)
{
    mc_trace_record r;
    const unsigned char *ids;
    const mc_trace_layer *l = &trace->layers[layer];
    memset(trace->chosen, 0, sizeof *trace->chosen * l->n_experts);
    for (size_t at = trace->first, next; record_at(trace, at, &r, &ids, &next); at = next) {
        if (r.layer != layer) continue;
        uint64_t n = (uint64_t)r.n_tokens * l->top_k;
        for (uint64_t i = 0; i < n; i++) {
            int32_t id = read_id(trace, ids + i * trace->id_bytes, l->n_experts);
            if (id >= 0) trace->chosen[id]++;
        }
    }
    for (uint32_t e = 0; e < l->n_experts; e++) loads[e] += (float)trace->chosen[e];
}

moec_status
mc_trace_check(const mc_trace *trace, const mc_trace_info *model, mc_fault *error)
{
    const mc_trace_info *of = &trace->info;
    static const char *const again = "record one of this model with moec route";
    if (of->n_layers != model->n_layers)
        return mc_fail(error, MOEC_ERR_MISMATCH, "%s is a trace of %s, with %u layers of experts; %s has %u: %s",
                       trace->name, of->model, of->n_layers, model->model, model->n_layers, again);
    for (uint32_t i = 0; i < of->n_layers; i++) {
        const mc_trace_layer *a = &of->layers[i], *b = &model->layers[i];
        bool fits = a->guessed ? a->n_experts <= b->n_experts : a->n_experts == b->n_experts;
        if (!fits || a->top_k != b->top_k)
            return mc_fail(
                error, MOEC_ERR_MISMATCH,
                "%s is a trace of %s: its layer %s has %u experts, %u for a token; %s of %s has %u, %u for a "
                "token: %s",
                trace->name, of->model, a->name, a->n_experts, a->top_k, b->name, model->model, b->n_experts, b->top_k,
                again);
    }
    if (of->hash && model->hash && of->hash != model->hash)
        return mc_fail(error, MOEC_ERR_MISMATCH, "%s was recorded with another version of %s: %s", trace->name,
                       model->model, again);
    return MOEC_OK;
}
