/* weights: from a path to the addresses that kernels read. A checkpoint is bound and packed once into a file that is
 * found again by the model's weights_hash and the checkpoint's identity; later opens only map it. */
#define _GNU_SOURCE
#include "runtime/gpu/gpu_session.h"
#include "runtime/gpu/gpu_weights.h"
#include "runtime/packed.h"
#include "runtime/pages.h"
#include "runtime/ranks.h"
#include "runtime/session.h"

#include "runtime/base/cache_dir.h"
#include "runtime/base/dtype.h"
#include "runtime/base/hash.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct moec_weights {
    const moec_model *model;
    uint32_t number; /* of the rank whose experts they are (runtime/ranks.h) */
    mc_packed_layout layout;
    mc_mapping mapping; /* of the packed file, or ... */
    mc_pages pages;     /* ... the same bytes in memory */
    void **addresses;
    char *file;
    char note[512];
    mc_gpu_weights *copies; /* one for each GPU */
    pthread_mutex_t lock;   /* of them */
};

void *const *
mc_weights_addresses(const moec_weights *weights)
{
    return weights->addresses;
}

const moec_model *
mc_weights_model(const moec_weights *weights)
{
    return weights->model;
}

moec_status
mc_weights_on_gpu(const moec_weights *weights, moec_gpu *gpu, void *const **out, mc_fault *error)
{
    moec_weights *w = (moec_weights *)(uintptr_t)weights; /* what they say stays the same */
    const unsigned char *base = w->mapping.data ? w->mapping.data : w->pages.data;
    mc_gpu_weights_source from = {base + w->layout.data_offset, w->layout.file_bytes - w->layout.data_offset,
                                  w->addresses, w->layout.n_weights};
    moec_status s = MOEC_OK;
    pthread_mutex_lock(&w->lock);
    mc_gpu_weights *copy = w->copies;
    while (copy && copy->gpu != gpu) copy = copy->next;
    if (!copy) {
        s = mc_gpu_weights_make(gpu, &from, &copy, error);
        if (s == MOEC_OK) {
            copy->next = w->copies;
            w->copies = copy;
        }
    }
    pthread_mutex_unlock(&w->lock);
    *out = copy ? copy->addresses : NULL;
    return s;
}

static moec_status
no_memory(mc_fault *error)
{
    return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
}

/* Parameters in training belong to the caller. */
static moec_status
not_for_training(const moec_model *model, mc_fault *e)
{
    if (!model->trainable) return MOEC_OK;
    return mc_fail(e, MOEC_ERR_UNSUPPORTED,
                   "%s was compiled for training, where parameters are the caller's (moec/train.h)", model->abi->name);
}

/* Without numbers yet. *out may be something to close even on an error. */
static moec_status
create(const moec_model *model, const moec_comm *comm, moec_weights **out, mc_fault *e)
{
    moec_weights *w = *out = calloc(1, sizeof *w);
    if (!w) return no_memory(e);
    if (pthread_mutex_init(&w->lock, NULL) != 0) {
        free(w);
        *out = NULL;
        return no_memory(e);
    }
    w->model = model;
    w->addresses = calloc((size_t)model->abi->n_weights + 1, sizeof *w->addresses);
    moec_status s = w->addresses ? not_for_training(model, e) : no_memory(e);
    if (s == MOEC_OK) s = mc_ranks_check(model->abi, comm, &w->number, e);
    return s == MOEC_OK ? mc_packed_layout_make(model->abi, &w->layout, e) : s;
}

static void
set_addresses(moec_weights *w)
{
    const unsigned char *base = w->mapping.data ? w->mapping.data : w->pages.data;
    for (uint32_t i = 0; i < w->layout.n_weights; i++)
        w->addresses[i] = (void *)(uintptr_t)(base + w->layout.entries[i].offset);
}

/* Maps a packed file if it is this model's. source 0: from any checkpoint. */
static moec_status
map_packed(moec_weights *w, const char *path, uint64_t source, mc_fault *error)
{
    mc_mapping m;
    moec_status s = mc_file_map(path, &m, error);
    if (s != MOEC_OK) return s;
    mc_packed_want want = {w->model->abi, &w->layout, source, w->number};
    s = mc_packed_check(&want, m.data, m.n_bytes, path, error);
    if (s == MOEC_OK && !(w->file = strdup(path))) s = no_memory(error);
    if (s != MOEC_OK) {
        mc_file_unmap(&m);
        return s;
    }
    w->mapping = m;
    set_addresses(w);
    return MOEC_OK;
}

/* ---- the cache ------------------------------------------------------------------------------------------------ */

/* Weights decide what a model says, so a file that others could have written is not trusted. */
static bool
is_ours(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() && !(st.st_mode & 022);
}

static void
safe_name(const char *name, char *out, size_t n_bytes)
{
    size_t n = 0;
    for (; name[n] && n + 1 < n_bytes; n++) {
        char c = name[n];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
        out[n] = plain ? c : '_';
    }
    out[n] = 0;
}

/* What names a file in the cache: the model, the checkpoint, and whose experts they are. Replicas share it. */
static uint64_t
cache_key(const moec_weights *w, uint64_t source)
{
    const struct moec_abi_ep *ep = w->model->abi->ep;
    uint64_t key = mc_hash64(&source, sizeof source, w->model->abi->weights_hash);
    if (!ep) return key;
    uint32_t whose[] = {w->number, ep->n_ranks, ep->round_robin};
    return mc_hash64(whose, sizeof whose, key);
}

/* The file in the cache for this model and checkpoint, or NULL with a note that says why there is none. */
static char *
cache_file(moec_weights *w, uint64_t source)
{
    char *path = NULL, name[64];
    mc_buf directory = {0};
    mc_fault why = {{0}};
    safe_name(w->model->abi->name, name, sizeof name);
    if (mc_cache_directory(NULL, "weights", &directory, &why) != MOEC_OK)
        snprintf(w->note, sizeof w->note, "the weights are packed in memory each time: %.400s", why.text);
    else if (asprintf(&path, "%s/%s-%016llx.moecw", directory.data, name, (unsigned long long)cache_key(w, source)) < 0)
        path = NULL;
    mc_buf_fini(&directory);
    return path;
}

/* ---- a checkpoint --------------------------------------------------------------------------------------------- */

typedef struct opening {
    moec_weights *weights;
    const moec_weights_options *options;
    mc_checkpoint checkpoint;
    uint64_t source;
} opening;

static moec_status
pack_in_memory(moec_weights *w, const mc_packing *packing, mc_fault *error)
{
    moec_status s = mc_pages_alloc(w->layout.file_bytes, "weights", &w->pages, error);
    if (s == MOEC_OK) s = mc_packed_fill(packing, w->pages.data, error);
    if (s != MOEC_OK) return s;
    mc_pages_read_only(&w->pages);
    set_addresses(w);
    return MOEC_OK;
}

/* Packs into `file` (NULL: memory). A cache that turns out to be unwritable is no error; a path the user gave is. */
static moec_status
pack(opening *o, const char *file, mc_fault *error)
{
    moec_weights *w = o->weights;
    mc_bind bind;
    mc_pool *pool = NULL;
    moec_status s = mc_checkpoint_load(&o->checkpoint, error);
    if (s != MOEC_OK) return s;
    s = mc_bind_create(w->model->abi, &o->checkpoint, o->options->map, o->options->allow_narrowing, w->number, &bind,
                       error);
    if (s != MOEC_OK) return s;
    s = mc_pool_create(o->options->n_threads, NULL, NULL, &pool, error);
    mc_packing packing = {&bind, &w->layout, pool, o->source, o->options->progress, o->options->progress_context};
    if (s == MOEC_OK && file) {
        s = mc_packed_write(&packing, file, error);
        if (s == MOEC_OK) s = map_packed(w, file, o->source, error);
        if ((s == MOEC_ERR_IO || s == MOEC_ERR_NOT_FOUND) && !o->options->packed_path) {
            snprintf(w->note, sizeof w->note, "the weights are packed in memory each time: %.400s", error->text);
            error->text[0] = 0;
            file = NULL;
            s = MOEC_OK;
        }
    }
    if (s == MOEC_OK && !file) s = pack_in_memory(w, &packing, error);
    mc_pool_destroy(pool);
    mc_bind_fini(&bind);
    return s;
}

static bool
is_packed_file(const char *path)
{
    mc_mapping m;
    mc_fault ignored;
    if (mc_file_is_directory(path) || mc_file_map(path, &m, &ignored) != MOEC_OK) return false;
    bool packed = mc_packed_is(m.data, m.n_bytes);
    mc_file_unmap(&m);
    return packed;
}

static moec_status
open_checkpoint(opening *o, const char *path, mc_fault *error)
{
    moec_weights *w = o->weights;
    const char *map = o->options->map ? o->options->map : "";
    moec_status s = mc_checkpoint_find(path, &o->checkpoint, error);
    if (s != MOEC_OK) return s;
    char *real = realpath(path, NULL);
    o->source = mc_hash64(map, strlen(map), o->checkpoint.identity + (o->options->allow_narrowing ? 1 : 0));
    if (real) o->source = mc_hash64(real, strlen(real), o->source);
    o->source |= 1; /* 0 means any */
    free(real);
    char *file = NULL;
    if (o->options->packed_path) {
        file = mc_weights_path(w->model->abi, w->number, o->options->packed_path);
        if (!file) return no_memory(error);
        if (mc_file_exists(file) && !is_packed_file(file)) {
            s = mc_fail(error, MOEC_ERR_ARGUMENT, "%s is no packed weight file: it is not written over", file);
            free(file);
            return s;
        }
    } else if (!o->options->in_memory) {
        file = cache_file(w, o->source);
    }
    mc_fault stale = {{0}};
    bool trusted = file && !o->options->in_memory && (o->options->packed_path || is_ours(file));
    if (!trusted || !mc_file_exists(file) || map_packed(w, file, o->source, &stale) != MOEC_OK)
        s = pack(o, o->options->in_memory ? NULL : file, error);
    free(file);
    return s;
}

/* A packed file, this rank's of several packed files, or a checkpoint. */
static moec_status
open_path(opening *o, const char *path, mc_fault *error)
{
    moec_weights *w = o->weights;
    if (is_packed_file(path)) return map_packed(w, path, 0, error);
    char *own = mc_weights_path(w->model->abi, w->number, path);
    if (!own) return no_memory(error);
    moec_status s = is_packed_file(own) ? map_packed(w, own, 0, error) : open_checkpoint(o, path, error);
    free(own);
    return s;
}

moec_status
moec_weights_open(const moec_model *model, const char *path, const moec_weights_options *options,
                  moec_weights **out_weights, moec_error *error)
{
    static const moec_weights_options defaults = {0};
    mc_fault e = {{0}};
    *out_weights = NULL;
    moec_weights *w;
    moec_status s = create(model, options ? options->comm : NULL, &w, &e);
    opening o = {.weights = w, .options = options ? options : &defaults};
    if (s == MOEC_OK) s = open_path(&o, path, &e);
    mc_checkpoint_fini(&o.checkpoint);
    if (s != MOEC_OK) {
        moec_weights_close(w);
        return mc_give(error, &e, s);
    }
    *out_weights = w;
    return mc_give(error, &e, MOEC_OK);
}

/* ---- made-up numbers ------------------------------------------------------------------------------------------ */

enum { PERIOD = 4093 }; /* a prime, so that no row or panel repeats another */

/* Small numbers of both signs in no pattern that arithmetic would notice; norm weights and scales near one. */
static void
make_period(const moec_abi_weight *entry, unsigned char *out)
{
    bool plain = strcmp(entry->role, "norm") == 0 || entry->scale_of;
    for (uint64_t i = 0; i < PERIOD; i++) {
        double x = (double)(int64_t)(mc_hash64(&i, sizeof i, 0) >> 40) / (double)(1 << 24) - 0.5;
        mc_store_elem((moec_dtype)entry->dtype, out, i, plain ? 1 + x / 16 : x / 16);
    }
}

/* The bytes that stand at `from` when the period is repeated without end. */
static void
repeat(const unsigned char *period, uint64_t period_bytes, uint64_t from, unsigned char *out, uint64_t n_bytes)
{
    for (uint64_t at = 0, begin = from % period_bytes; at < n_bytes; begin = 0) {
        uint64_t n = period_bytes - begin;
        if (n > n_bytes - at) n = n_bytes - at;
        memcpy(out + at, period + begin, n);
        at += n;
    }
}

/* An expert's numbers do not depend on who holds it: they follow from where it lies among all experts. */
static void
make_up(const moec_weights *w, const moec_abi_weight *entry, unsigned char *out, uint64_t n_bytes)
{
    unsigned char period[PERIOD * sizeof(double)];
    uint64_t period_bytes = PERIOD * moec_dtype_bytes((moec_dtype)entry->dtype);
    make_period(entry, period);
    if (!entry->experts) {
        repeat(period, period_bytes, 0, out, n_bytes);
        return;
    }
    uint64_t each = n_bytes / (uint64_t)entry->dims[0];
    for (int64_t i = 0; i < entry->dims[0]; i++) {
        int64_t expert = mc_weights_expert(w->model->abi, entry, w->number, i);
        repeat(period, period_bytes, (uint64_t)(expert < 0 ? 0 : expert) * each, out + (uint64_t)i * each, each);
    }
}

moec_status
moec_weights_synthetic(const moec_model *model, const moec_comm *comm, moec_weights **out_weights, moec_error *error)
{
    mc_fault e = {{0}};
    *out_weights = NULL;
    moec_weights *w;
    moec_status s = create(model, comm, &w, &e);
    if (s == MOEC_OK) s = mc_pages_alloc(w->layout.file_bytes, "weights", &w->pages, &e);
    if (s != MOEC_OK) {
        moec_weights_close(w);
        return mc_give(error, &e, s);
    }
    for (uint32_t i = 0; i < w->layout.n_weights; i++) {
        mc_packed_entry at = w->layout.entries[i];
        if (w->layout.first[i]) make_up(w, &model->abi->weights[i], w->pages.data + at.offset, at.n_bytes);
    }
    mc_pages_read_only(&w->pages);
    set_addresses(w);
    *out_weights = w;
    return mc_give(error, &e, MOEC_OK);
}

void
moec_weights_close(moec_weights *w)
{
    if (!w) return;
    while (w->copies) {
        mc_gpu_weights *copy = w->copies;
        w->copies = copy->next;
        mc_gpu_weights_free(copy);
    }
    pthread_mutex_destroy(&w->lock);
    mc_file_unmap(&w->mapping);
    mc_pages_free(&w->pages);
    mc_packed_layout_fini(&w->layout);
    free(w->addresses);
    free(w->file);
    free(w);
}

const char *
moec_weights_note(const moec_weights *weights)
{
    return weights->note;
}

const char *
moec_weights_file(const moec_weights *weights)
{
    return weights->file ? weights->file : "";
}

uint64_t
moec_weights_bytes(const moec_weights *weights)
{
    return weights->layout.file_bytes - weights->layout.data_offset;
}
