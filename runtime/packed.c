/* packed: see packed.h. */
#include "runtime/packed.h"

#include "runtime/base/hash.h"

#include <stdlib.h>
#include <string.h>

enum { PACKED_VERSION = 1, SMALL_ALIGN = 64, LARGE_ALIGN = 4096, LARGE = 1 << 20, CHUNK = 8 << 20 };
static const char MAGIC[8] = {'M', 'O', 'E', 'C', 'W', 'T', 'S', 0};

typedef struct header {
    char magic[8];
    uint32_t version, n_weights;
    uint64_t weights_hash, source, file_bytes, table_hash;
    uint64_t byte_order; /* 1, as this machine writes it */
    uint32_t number;     /* of the rank whose experts these are, among ... */
    uint16_t n_ranks;    /* ... so many; 0: a model for one rank */
    uint16_t round_robin;
} header;

_Static_assert(sizeof(header) == 64, "the header is 64 bytes on every machine");

/* ---- layout --------------------------------------------------------------------------------------------------- */

static bool
same_text(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

static int
compare_text(const char *a, const char *b)
{
    return strcmp(a ? a : "", b ? b : "");
}

static bool
same_weight(const moec_abi_weight *a, const moec_abi_weight *b)
{
    return same_text(a->path, b->path) && same_text(a->path2, b->path2) && same_text(a->scale_of, b->scale_of) &&
           a->dtype == b->dtype && a->layout == b->layout && a->nr == b->nr && a->rank == b->rank &&
           memcmp(a->dims, b->dims, sizeof a->dims) == 0;
}

typedef struct by_path {
    const moec_abi_weight *weight;
    uint32_t index;
} by_path;

static int
compare_weights(const void *a, const void *b)
{
    const by_path *x = a, *y = b;
    int c = compare_text(x->weight->path, y->weight->path);
    if (!c) c = compare_text(x->weight->path2, y->weight->path2);
    if (!c) c = (x->weight->dtype > y->weight->dtype) - (x->weight->dtype < y->weight->dtype);
    if (!c) c = (x->weight->layout > y->weight->layout) - (x->weight->layout < y->weight->layout);
    if (!c) c = (x->weight->nr > y->weight->nr) - (x->weight->nr < y->weight->nr);
    return c ? c : (x->index > y->index) - (x->index < y->index);
}

/* twin[i]: the least index of an entry equal to entry i. */
static void
find_twins(const moec_abi_model *abi, by_path *sorted, uint32_t *twin)
{
    for (uint32_t i = 0; i < abi->n_weights; i++) sorted[i] = (by_path){&abi->weights[i], i};
    qsort(sorted, abi->n_weights, sizeof *sorted, compare_weights);
    for (uint32_t i = 0; i < abi->n_weights; i++) {
        bool same = i > 0 && same_weight(sorted[i].weight, sorted[i - 1].weight);
        twin[sorted[i].index] = same ? twin[sorted[i - 1].index] : sorted[i].index;
    }
}

static bool
align_up(uint64_t *offset, uint64_t n_bytes)
{
    uint64_t align = n_bytes >= LARGE ? LARGE_ALIGN : SMALL_ALIGN;
    if (__builtin_add_overflow(*offset, align - 1, offset)) return false;
    *offset = *offset / align * align;
    return true;
}

static moec_status
place(const moec_abi_model *abi, const uint32_t *twin, mc_packed_layout *out, mc_fault *error)
{
    uint64_t at = sizeof(header) + (uint64_t)abi->n_weights * sizeof *out->entries;
    at = (at + LARGE_ALIGN - 1) / LARGE_ALIGN * LARGE_ALIGN;
    out->data_offset = at;
    for (uint32_t i = 0; i < abi->n_weights; i++) {
        uint64_t n_bytes;
        if (!mc_packed_bytes(&abi->weights[i], &n_bytes))
            return mc_fail(error, MOEC_ERR_INTERNAL, "weight %u has a malformed layout", i);
        out->first[i] = twin[i] == i;
        if (!out->first[i]) {
            out->entries[i] = out->entries[twin[i]];
            continue;
        }
        if (!align_up(&at, n_bytes) || n_bytes > INT64_MAX - at)
            return mc_fail(error, MOEC_ERR_MEMORY, "the weights are larger than a file can be");
        out->entries[i] = (mc_packed_entry){at, n_bytes};
        at += n_bytes;
    }
    out->file_bytes = at;
    return MOEC_OK;
}

moec_status
mc_packed_layout_make(const moec_abi_model *abi, mc_packed_layout *out, mc_fault *error)
{
    size_t n = abi->n_weights ? abi->n_weights : 1;
    *out = (mc_packed_layout){.entries = calloc(n, sizeof *out->entries),
                              .first = calloc(n, sizeof *out->first),
                              .n_weights = abi->n_weights};
    by_path *sorted = calloc(n, sizeof *sorted);
    uint32_t *twin = calloc(n, sizeof *twin);
    moec_status s = MOEC_OK;
    if (!out->entries || !out->first || !sorted || !twin) {
        s = mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    } else {
        find_twins(abi, sorted, twin);
        s = place(abi, twin, out, error);
    }
    free(sorted);
    free(twin);
    if (s != MOEC_OK) mc_packed_layout_fini(out);
    return s;
}

void
mc_packed_layout_fini(mc_packed_layout *l)
{
    free(l->entries);
    free(l->first);
    *l = (mc_packed_layout){0};
}

/* ---- packing -------------------------------------------------------------------------------------------------- */

/* Where the bytes go: straight into memory, or through a buffer into a file. */
typedef struct sink {
    const mc_packing *packing;
    unsigned char *memory;
    mc_writer *writer;
    unsigned char *buffer;
    size_t buffer_bytes;
    uint64_t done;
} sink;

static moec_status
write_zeros(mc_writer *w, uint64_t until, mc_fault *error)
{
    static const unsigned char zeros[LARGE_ALIGN];
    moec_status s = MOEC_OK;
    while (s == MOEC_OK && mc_writer_offset(w) < until) {
        uint64_t n = until - mc_writer_offset(w);
        s = mc_writer_write(w, zeros, n < sizeof zeros ? (size_t)n : sizeof zeros, error);
    }
    return s;
}

static moec_status
pack_chunks(sink *k, mc_packer *p, uint64_t offset, mc_fault *error)
{
    uint64_t step = CHUNK / p->unit_bytes;
    if (step == 0) step = 1;
    if (k->writer && step * p->unit_bytes > k->buffer_bytes) {
        unsigned char *buffer = realloc(k->buffer, step * p->unit_bytes);
        if (!buffer) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory (to pack %s)", p->weight->path);
        k->buffer = buffer;
        k->buffer_bytes = step * p->unit_bytes;
    }
    for (uint64_t unit = 0; unit < p->n_units; unit += step) {
        uint64_t n = p->n_units - unit < step ? p->n_units - unit : step;
        unsigned char *out = k->writer ? k->buffer : k->memory + offset + unit * p->unit_bytes;
        moec_status s = mc_packer_fill(p, k->packing->pool, unit, n, out, error);
        if (s == MOEC_OK && k->writer) s = mc_writer_write(k->writer, out, n * p->unit_bytes, error);
        if (s != MOEC_OK) return s;
        k->done += n * p->unit_bytes;
        if (k->packing->progress)
            k->packing->progress(k->packing->progress_context, k->done,
                                 k->packing->layout->file_bytes - k->packing->layout->data_offset);
    }
    return MOEC_OK;
}

static moec_status
pack_all(sink *k, mc_fault *error)
{
    const mc_packed_layout *l = k->packing->layout;
    moec_status s = MOEC_OK;
    for (uint32_t i = 0; i < l->n_weights && s == MOEC_OK; i++) {
        mc_packer p;
        if (!l->first[i]) continue;
        if (k->writer) s = write_zeros(k->writer, l->entries[i].offset, error);
        if (s == MOEC_OK) s = mc_packer_open(&p, k->packing->bind, i, error);
        if (s != MOEC_OK) return s;
        s = pack_chunks(k, &p, l->entries[i].offset, error);
        mc_packer_close(&p);
    }
    return s;
}

moec_status
mc_packed_fill(const mc_packing *packing, unsigned char *data, mc_fault *error)
{
    sink k = {.packing = packing, .memory = data};
    return pack_all(&k, error);
}

static void
say_whose(header *h, const moec_abi_model *abi, uint32_t number)
{
    if (!abi->ep) return;
    h->number = number;
    h->n_ranks = (uint16_t)abi->ep->n_ranks;
    h->round_robin = abi->ep->round_robin != 0;
}

static uint64_t
table_hash(const mc_packed_layout *l)
{
    return mc_hash64(l->entries, l->n_weights * sizeof *l->entries, PACKED_VERSION);
}

moec_status
mc_packed_write(const mc_packing *packing, const char *path, mc_fault *error)
{
    const mc_packed_layout *l = packing->layout;
    sink k = {.packing = packing};
    header h = {.version = PACKED_VERSION,
                .n_weights = l->n_weights,
                .weights_hash = packing->bind->abi->weights_hash,
                .source = packing->source,
                .file_bytes = l->file_bytes,
                .table_hash = table_hash(l),
                .byte_order = 1};
    memcpy(h.magic, MAGIC, sizeof MAGIC);
    say_whose(&h, packing->bind->abi, packing->bind->number);
    moec_status s = mc_writer_open(path, &k.writer, error);
    if (s != MOEC_OK) return s;
    s = mc_writer_write(k.writer, &h, sizeof h, error);
    if (s == MOEC_OK) s = mc_writer_write(k.writer, l->entries, l->n_weights * sizeof *l->entries, error);
    if (s == MOEC_OK) s = write_zeros(k.writer, l->data_offset, error);
    if (s == MOEC_OK) s = pack_all(&k, error);
    free(k.buffer);
    if (s == MOEC_OK) return mc_writer_commit(k.writer, 0644, error);
    mc_writer_abandon(k.writer);
    return s;
}

/* ---- checking ------------------------------------------------------------------------------------------------- */

bool
mc_packed_is(const unsigned char *bytes, size_t n_bytes)
{
    return n_bytes >= sizeof MAGIC && memcmp(bytes, MAGIC, sizeof MAGIC) == 0;
}

static moec_status
check_whose(const header *h, const mc_packed_want *want, const char *path, mc_fault *error)
{
    header mine = {.number = 0};
    say_whose(&mine, want->abi, want->number);
    if (h->n_ranks == mine.n_ranks && h->number == mine.number && h->round_robin == mine.round_robin) return MOEC_OK;
    if (h->n_ranks != mine.n_ranks || h->round_robin != mine.round_robin)
        return mc_fail(error, MOEC_ERR_MISMATCH, "%s holds experts as they are shared out in another way", path);
    return mc_fail(error, MOEC_ERR_MISMATCH, "%s holds the experts of number %u of %u, this rank is number %u", path,
                   h->number, h->n_ranks, mine.number);
}

moec_status
mc_packed_check(const mc_packed_want *want, const unsigned char *bytes, size_t n_bytes, const char *path,
                mc_fault *error)
{
    const moec_abi_model *abi = want->abi;
    const mc_packed_layout *l = want->layout;
    header h;
    if (n_bytes < sizeof h || !mc_packed_is(bytes, n_bytes))
        return mc_fail(error, MOEC_ERR_SYNTAX, "%s is not a packed weight file", path);
    memcpy(&h, bytes, sizeof h);
    if (h.version != PACKED_VERSION || h.byte_order != 1)
        return mc_fail(error, MOEC_ERR_MISMATCH,
                       "%s was packed by another version of moec or for another kind of machine", path);
    if (h.weights_hash != abi->weights_hash || h.n_weights != abi->n_weights)
        return mc_fail(error, MOEC_ERR_MISMATCH,
                       "%s was packed for another model, or for %s compiled for another target", path, abi->name);
    moec_status s = check_whose(&h, want, path, error);
    if (s != MOEC_OK) return s;
    if (want->source && h.source != want->source)
        return mc_fail(error, MOEC_ERR_MISMATCH, "%s was packed from another checkpoint, or it has changed since",
                       path);
    if (h.file_bytes != n_bytes || n_bytes != l->file_bytes)
        return mc_fail(error, MOEC_ERR_SYNTAX, "%s is damaged: %zu bytes instead of %llu", path, n_bytes,
                       (unsigned long long)l->file_bytes);
    size_t table = l->n_weights * sizeof *l->entries;
    if (h.table_hash != table_hash(l) || (table && memcmp(bytes + sizeof h, l->entries, table) != 0))
        return mc_fail(error, MOEC_ERR_SYNTAX, "%s is damaged: its table is not that of the model", path);
    return MOEC_OK;
}
