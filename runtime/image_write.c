/* A descriptor to an image: records are copied, and what their pointers reach is put behind them; the offset of that
 * goes where the pointer was. Cubins come last, so that the tables are one piece. */
#include "runtime/base/hash.h"
#include "runtime/base/vec.h"
#include "runtime/image.h"
#include "runtime/image_layout.h"

#include <string.h>

typedef struct cubin {
    size_t patch; /* where its offset belongs */
    const void *data;
    uint64_t n_bytes;
} cubin;

typedef struct writer {
    mc_buf *out;
    size_t begin;
    const moec_abi_model *abi;
    mc_buf cubins; /* of struct cubin */
    uint32_t label_bytes;
} writer;

static uint64_t
align(writer *w)
{
    while ((w->out->len - w->begin) % MC_IMAGE_ALIGN) mc_buf_putc(w->out, 0);
    return w->out->len - w->begin;
}

static void
patch(writer *w, size_t at, uint64_t offset)
{
    memcpy(w->out->data + w->begin + at, &offset, sizeof offset);
}

static uint64_t
put_text(writer *w, const char *text)
{
    if (!text) return 0;
    uint64_t offset = w->out->len - w->begin;
    mc_buf_write(w->out, text, strlen(text) + 1);
    return offset;
}

static uint64_t
put_texts(writer *w, const char *const *texts, uint32_t n)
{
    if (!n) return 0;
    uint64_t offset = align(w), zero = 0;
    for (uint32_t i = 0; i < n; i++) mc_buf_write(w->out, &zero, sizeof zero);
    for (uint32_t i = 0; i < n; i++) patch(w, offset + 8 * i, put_text(w, texts[i]));
    return offset;
}

static uint64_t
put_labels(writer *w)
{
    size_t n = 1;
    for (uint32_t i = 0; i < w->abi->n_launches; i++) {
        size_t end = w->abi->launches[i].label + strlen(w->abi->strings + w->abi->launches[i].label) + 1;
        if (end > n) n = end;
    }
    uint64_t offset = w->out->len - w->begin;
    mc_buf_write(w->out, w->abi->strings, n);
    w->label_bytes = (uint32_t)n;
    return offset;
}

static uint64_t put_records(writer *w, const mc_image_record *r, const void *items, uint32_t n);

static uint64_t
put_field(writer *w, const mc_image_field *f, const unsigned char *record, size_t patch_at)
{
    const void *p;
    uint32_t n = 0;
    memcpy(&p, record + f->at, sizeof p);
    if (f->kind == MC_IMAGE_LIST || f->kind == MC_IMAGE_TEXTS) memcpy(&n, record + f->count, sizeof n);
    switch (f->kind) {
    case MC_IMAGE_TEXT: return put_text(w, p);
    case MC_IMAGE_LIST: return put_records(w, f->of, p, n);
    case MC_IMAGE_ONE: return put_records(w, f->of, p, p != NULL);
    case MC_IMAGE_TEXTS: return put_texts(w, p, n);
    case MC_IMAGE_LABELS: return put_labels(w);
    case MC_IMAGE_CUBIN: {
        cubin c = {.patch = patch_at, .data = p};
        memcpy(&c.n_bytes, record + f->count, sizeof c.n_bytes);
        mc_buf_write(&w->cubins, &c, sizeof c);
        return 0;
    }
    case MC_IMAGE_NOTHING: break;
    }
    return 0;
}

static uint64_t
put_records(writer *w, const mc_image_record *r, const void *items, uint32_t n)
{
    if (!n) return 0;
    uint64_t offset = align(w);
    mc_buf_write(w->out, items, n * r->n_bytes);
    for (uint32_t i = 0; i < n; i++) {
        const unsigned char *record = (const unsigned char *)items + i * r->n_bytes;
        for (size_t j = 0; j < r->n_fields; j++) {
            size_t at = offset + i * r->n_bytes + r->fields[j].at;
            patch(w, at, put_field(w, &r->fields[j], record, at));
        }
    }
    return offset;
}

void
mc_image_write(const moec_abi_model *abi, mc_buf *out)
{
    writer w = {.out = out, .begin = out->len, .abi = abi};
    mc_image_header head = {.magic = MC_IMAGE_MAGIC, .version = MOEC_ABI_VERSION};
    mc_buf_write(out, &head, sizeof head);
    head.model = put_records(&w, &mc_image_model, abi, 1);
    head.table_bytes = align(&w);
    for (size_t i = 0; i < w.cubins.len; i += sizeof(cubin)) {
        cubin c;
        memcpy(&c, w.cubins.data + i, sizeof c);
        patch(&w, c.patch, align(&w));
        mc_buf_write(out, c.data, c.n_bytes);
    }
    mc_buf_fini(&w.cubins);
    head.n_bytes = align(&w);
    head.label_bytes = w.label_bytes;
    head.hash = mc_hash64(out->data + w.begin + sizeof head, head.n_bytes - sizeof head, 0);
    memcpy(out->data + w.begin, &head, sizeof head);
}
