/* An image to a descriptor. The tables are copied once; then every offset in the copy becomes an address, after a check
 * that what it names lies inside. Records never contain themselves, so an image cannot make this recur deeper than the
 * layout does; and the hash has been checked, so what is malformed here was made so on purpose. */
#include "runtime/image.h"

#include "runtime/abi_model.h"
#include "runtime/base/hash.h"
#include "runtime/image_layout.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_SPANS = 32 }; /* more than a descriptor has tables */

typedef struct span {
    uint64_t begin, end;
} span;

typedef struct reader {
    const unsigned char *image;
    unsigned char *tables; /* the copy */
    mc_image_header head;
    span spans[MAX_SPANS]; /* of tables opened so far */
    int n_spans;
} reader;

static bool
inside(uint64_t offset, uint64_t n, uint64_t size, uint64_t end)
{
    uint64_t n_bytes;
    return offset >= sizeof(mc_image_header) && offset <= end && !__builtin_mul_overflow(n, size, &n_bytes) &&
           n_bytes <= end - offset;
}

/* Tables do not overlap: an address written into one would change what has been checked in another. */
static bool
claim(reader *r, uint64_t offset, uint64_t n_bytes)
{
    span s = {offset, offset + n_bytes};
    for (int i = 0; i < r->n_spans; i++)
        if (s.begin < r->spans[i].end && r->spans[i].begin < s.end) return false;
    if (r->n_spans == MAX_SPANS) return false;
    r->spans[r->n_spans++] = s;
    return true;
}

static void
set(unsigned char *at, const void *pointer)
{
    memcpy(at, &pointer, sizeof pointer);
}

static uint64_t
offset_at(const unsigned char *at)
{
    uint64_t offset;
    memcpy(&offset, at, sizeof offset);
    return offset;
}

static bool
open_text(reader *r, unsigned char *at)
{
    uint64_t offset = offset_at(at);
    if (!offset) return true;
    if (!inside(offset, 1, 1, r->head.table_bytes)) return false; /* a zero stands behind the tables */
    set(at, r->tables + offset);
    return true;
}

static bool
open_texts(reader *r, unsigned char *at, uint32_t n)
{
    uint64_t offset = offset_at(at);
    if (!n) return offset == 0;
    if (offset % MC_IMAGE_ALIGN || !inside(offset, n, sizeof(char *), r->head.table_bytes) ||
        !claim(r, offset, n * sizeof(char *)))
        return false;
    for (uint32_t i = 0; i < n; i++)
        if (!offset_at(r->tables + offset + 8 * i) || !open_text(r, r->tables + offset + 8 * i)) return false;
    set(at, r->tables + offset);
    return true;
}

/* The last byte ends the last label, so every label ends. */
static bool
open_labels(reader *r, unsigned char *at)
{
    uint64_t offset = offset_at(at), n = r->head.label_bytes;
    if (!n || !inside(offset, n, 1, r->head.table_bytes) || r->tables[offset + n - 1]) return false;
    set(at, r->tables + offset);
    return true;
}

static bool
open_cubin(reader *r, unsigned char *at, uint64_t n_bytes)
{
    uint64_t offset = offset_at(at);
    if (offset % MC_IMAGE_ALIGN || offset < r->head.table_bytes || !n_bytes ||
        !inside(offset, n_bytes, 1, r->head.n_bytes))
        return false;
    set(at, r->image + offset);
    return true;
}

static bool open_records(reader *r, const mc_image_record *of, unsigned char *at, uint32_t n);

static bool
open_field(reader *r, const mc_image_field *f, unsigned char *record)
{
    uint32_t n = 0;
    uint64_t n_bytes = 0;
    if (f->kind == MC_IMAGE_LIST || f->kind == MC_IMAGE_TEXTS) memcpy(&n, record + f->count, sizeof n);
    if (f->kind == MC_IMAGE_CUBIN) memcpy(&n_bytes, record + f->count, sizeof n_bytes);
    switch (f->kind) {
    case MC_IMAGE_TEXT: return open_text(r, record + f->at);
    case MC_IMAGE_LIST: return open_records(r, f->of, record + f->at, n);
    case MC_IMAGE_ONE: return open_records(r, f->of, record + f->at, offset_at(record + f->at) != 0);
    case MC_IMAGE_TEXTS: return open_texts(r, record + f->at, n);
    case MC_IMAGE_LABELS: return open_labels(r, record + f->at);
    case MC_IMAGE_CUBIN: return open_cubin(r, record + f->at, n_bytes);
    case MC_IMAGE_NOTHING: return offset_at(record + f->at) == 0;
    }
    return false;
}

static bool
open_records(reader *r, const mc_image_record *of, unsigned char *at, uint32_t n)
{
    uint64_t offset = offset_at(at);
    if (!n) return offset == 0;
    if (offset % MC_IMAGE_ALIGN || !inside(offset, n, of->n_bytes, r->head.table_bytes) ||
        !claim(r, offset, n * of->n_bytes))
        return false;
    for (uint32_t i = 0; i < n; i++)
        for (size_t j = 0; j < of->n_fields; j++)
            if (!open_field(r, &of->fields[j], r->tables + offset + i * of->n_bytes)) return false;
    set(at, r->tables + offset);
    return true;
}

static moec_status
check_header(const unsigned char *image, size_t n_bytes, mc_image_header *head, mc_fault *error)
{
    if (!image || n_bytes < sizeof *head)
        return mc_fail(error, MOEC_ERR_SYNTAX, "this is no image of a model: it is too short");
    memcpy(head, image, sizeof *head);
    if (memcmp(head->magic, MC_IMAGE_MAGIC, sizeof head->magic) != 0)
        return mc_fail(error, MOEC_ERR_SYNTAX, "this is no image of a model");
    if (head->version != MOEC_ABI_VERSION)
        return mc_fail(error, MOEC_ERR_MISMATCH,
                       "the image speaks version %u of the runtime interface, this runtime %u; compile it again",
                       head->version, MOEC_ABI_VERSION);
    if ((uintptr_t)image % MC_IMAGE_ALIGN)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "an image must lie at a multiple of %d bytes", (int)MC_IMAGE_ALIGN);
    if (head->n_bytes > n_bytes || head->n_bytes < sizeof *head || head->table_bytes > head->n_bytes ||
        head->table_bytes < sizeof *head ||
        mc_hash64(image + sizeof *head, head->n_bytes - sizeof *head, 0) != head->hash)
        return mc_fail(error, MOEC_ERR_SYNTAX, "the image of the model is cut off or damaged");
    return MOEC_OK;
}

/* The root is at an offset of the header, which stands in for the field that would name it. */
static bool
open_model(reader *r)
{
    unsigned char *root = r->tables + offsetof(mc_image_header, model);
    return open_records(r, &mc_image_model, root, 1);
}

moec_status
mc_image_open(const void *image, size_t n_bytes, const moec_abi_model **out_abi, void **out_memory, mc_fault *error)
{
    reader r = {.image = image};
    *out_abi = NULL;
    *out_memory = NULL;
    moec_status status = check_header(image, n_bytes, &r.head, error);
    if (status != MOEC_OK) return status;
    r.tables = malloc(r.head.table_bytes + 1);
    if (!r.tables) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    memcpy(r.tables, image, r.head.table_bytes);
    r.tables[r.head.table_bytes] = 0; /* every text ends */
    if (!open_model(&r)) {
        free(r.tables);
        return mc_fail(error, MOEC_ERR_SYNTAX, "the image of the model is malformed");
    }
    const moec_abi_model *abi = (const void *)(r.tables + r.head.model);
    for (uint32_t i = 0; i < abi->n_launches; i++) {
        if (abi->launches[i].label < r.head.label_bytes) continue;
        free(r.tables);
        return mc_fail(error, MOEC_ERR_SYNTAX, "a label lies outside the image of the model");
    }
    *out_abi = abi;
    *out_memory = r.tables;
    return MOEC_OK;
}

moec_status
moec_model_from_image(const void *image, size_t n_bytes, moec_model **out_model, moec_error *error)
{
    mc_fault e = {{0}};
    const moec_abi_model *abi;
    void *memory;
    *out_model = NULL;
    moec_status status = mc_image_open(image, n_bytes, &abi, &memory, &e);
    if (status != MOEC_OK) return mc_give(error, &e, status);
    status = moec_model_from_abi(abi, out_model, error);
    if (status != MOEC_OK) {
        free(memory);
        return status;
    }
    (*out_model)->memory = memory;
    (*out_model)->image_hash = ((const mc_image_header *)image)->hash;
    return status;
}
