#include "driver/train/train_data.h"

#include "driver/train/train_random.h"
#include "runtime/base/hash.h"

#include <string.h>

static moec_status
open_ids(const char *path, mc_train_data *d, mc_fault *fault)
{
    moec_status s = mc_npy_read(path, &d->ids, fault);
    if (s != MOEC_OK) return s;
    if (d->ids.dtype != MOEC_I32 && d->ids.dtype != MOEC_I64)
        return mc_fail(fault, MOEC_ERR_UNSUPPORTED, "%s holds %s; ids are i32 or i64", path,
                       moec_dtype_name(d->ids.dtype));
    d->n_tokens = 1;
    for (uint32_t i = 0; i < d->ids.rank; i++) d->n_tokens *= (size_t)d->ids.dims[i]; /* checked by the reader */
    d->hash = mc_hash64(d->ids.data.data, d->n_tokens * moec_dtype_bytes(d->ids.dtype), 1);
    return MOEC_OK;
}

static moec_status
open_bytes(const char *path, mc_train_data *d, mc_fault *fault)
{
    moec_status s = mc_file_map(path, &d->bytes, fault);
    if (s != MOEC_OK) return s;
    d->n_tokens = d->bytes.n_bytes;
    d->hash = mc_hash64(d->bytes.data ? d->bytes.data : (const unsigned char *)"", d->n_tokens, 0);
    return MOEC_OK;
}

static int64_t
wide_id(const mc_train_data *d, size_t at)
{
    int64_t wide;
    int32_t narrow;
    if (d->bytes.data) return d->bytes.data[at];
    if (d->ids.dtype == MOEC_I64) {
        memcpy(&wide, d->ids.data.data + 8 * at, sizeof wide);
        return wide;
    }
    memcpy(&narrow, d->ids.data.data + 4 * at, sizeof narrow);
    return narrow;
}

static moec_status
check_ids(const char *path, const mc_train_data *d, int64_t vocab, mc_fault *fault)
{
    for (size_t i = 0; i < d->n_tokens; i++) {
        int64_t id = wide_id(d, i);
        if (id >= 0 && id < vocab) continue;
        return mc_fail(fault, MOEC_ERR_RANGE, "%s: %s %lld at position %zu is outside the vocabulary 0..%lld", path,
                       d->bytes.data ? "byte" : "id", (long long)id, i, (long long)vocab - 1);
    }
    return MOEC_OK;
}

moec_status
mc_train_data_open(const char *path, int64_t vocab, mc_train_data *out, mc_fault *fault)
{
    *out = (mc_train_data){0};
    moec_status s = mc_str_ends(mc_str_of(path), ".npy") ? open_ids(path, out, fault) : open_bytes(path, out, fault);
    if (s == MOEC_OK) s = check_ids(path, out, vocab, fault);
    if (s != MOEC_OK) mc_train_data_close(out);
    return s;
}

void
mc_train_data_close(mc_train_data *d)
{
    mc_file_unmap(&d->bytes);
    mc_npy_fini(&d->ids);
    *d = (mc_train_data){0};
}

int32_t
mc_train_data_id(const mc_train_data *d, size_t position)
{
    return (int32_t)wide_id(d, position);
}

void
mc_train_data_batch(const mc_train_data *d, uint64_t seed, uint64_t first, size_t n_sequences, size_t length,
                    int32_t *inputs, int32_t *targets)
{
    uint64_t stream = mc_train_stream("batches"), n_starts = d->n_tokens - length;
    for (size_t k = 0; k < n_sequences; k++) {
        size_t begin = (size_t)mc_train_below(seed, stream, first + k, n_starts);
        for (size_t i = 0; i < length; i++) {
            inputs[k * length + i] = mc_train_data_id(d, begin + i);
            targets[k * length + i] = mc_train_data_id(d, begin + i + 1);
        }
    }
}
