/* safetensors: see safetensors.h. The layout of a file:
 *
 *     u64 little endian: n      bytes of JSON that follow
 *     n bytes                   {"name": {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, ..,
 *                                "__metadata__": {"key": "text", ..}}, may end in spaces
 *     data                      offsets count from here */
#include "runtime/safetensors.h"

#include "runtime/base/dtype.h"
#include "runtime/json_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Strides, and twice the bytes, still fit an int64. */
#define MAX_EXTENT (UINT64_C(1) << 60)

static moec_status
malformed(mc_fault *error, const char *path, const char *what)
{
    return mc_fail(error, MOEC_ERR_SYNTAX, "%s is not a valid safetensors file: %s", path, what);
}

static moec_status
bad_tensor(mc_fault *error, const char *path, mc_str name, const char *what)
{
    int n = name.len > 200 ? 200 : (int)name.len;
    return mc_fail(error, MOEC_ERR_SYNTAX, "%s is not a valid safetensors file: tensor %.*s: %s", path, n, name.data,
                   what);
}

static moec_status
read_dtype(const char *path, mc_st_tensor *t, const json_t *dtype, mc_fault *error)
{
    if (!json_is_string(dtype)) return bad_tensor(error, path, t->name, "dtype is not a string");
    mc_str text = {json_string_value(dtype), json_string_length(dtype)};
    t->dtype = mc_dtype_from_safetensors(text);
    if (t->dtype != MOEC_DTYPE_NONE) return MOEC_OK;
    return mc_fail(
        error, MOEC_ERR_UNSUPPORTED,
        "%s: tensor %.*s has element type %.*s, which moec does not read (it reads F32 F16 BF16 F8_E4M3 F8_E5M2 "
        "F64 I32 I64 I8 U8 BOOL)",
        path, MC_FMT(mc_str_slice(t->name, 0, t->name.len > 200 ? 200 : t->name.len)),
        MC_FMT(mc_str_slice(text, 0, text.len > 40 ? 40 : text.len)));
}

/* shape and data_offsets; the product of the shape must be exactly the bytes between the offsets. */
static moec_status
read_extent(const char *path, mc_st_tensor *t, const json_t *shape, const json_t *offsets, uint64_t data_bytes,
            mc_fault *error)
{
    if (!json_is_array(shape)) return bad_tensor(error, path, t->name, "shape is not a list");
    if (json_array_size(shape) > MC_ST_MAX_RANK) return bad_tensor(error, path, t->name, "more than 6 dimensions");
    t->rank = (uint32_t)json_array_size(shape);
    uint64_t n_bytes = moec_dtype_bytes(t->dtype), extent = n_bytes; /* extent: as if no dimension were 0 */
    for (uint32_t i = 0; i < t->rank; i++) {
        const json_t *d = json_array_get(shape, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return bad_tensor(error, path, t->name, "a dimension is not a natural number");
        t->dims[i] = json_integer_value(d);
        if (__builtin_mul_overflow(extent, (uint64_t)(t->dims[i] ? t->dims[i] : 1), &extent) || extent > MAX_EXTENT)
            return bad_tensor(error, path, t->name, "the shape is larger than memory");
        n_bytes *= (uint64_t)t->dims[i];
    }
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !json_is_integer(json_array_get(offsets, 0)) ||
        !json_is_integer(json_array_get(offsets, 1)))
        return bad_tensor(error, path, t->name, "data_offsets are not two numbers");
    int64_t begin = json_integer_value(json_array_get(offsets, 0)),
            end = json_integer_value(json_array_get(offsets, 1));
    if (begin < 0 || end < begin || (uint64_t)end > data_bytes)
        return bad_tensor(error, path, t->name, "data_offsets lie outside the file");
    if ((uint64_t)(end - begin) != n_bytes)
        return bad_tensor(error, path, t->name, "data_offsets and shape disagree about the number of bytes");
    t->begin = (uint64_t)begin;
    t->n_bytes = n_bytes;
    return MOEC_OK;
}

static moec_status
read_tensor(const char *path, mc_st_tensor *t, json_t *entry, uint64_t data_bytes, mc_fault *error)
{
    if (t->name.len == 0 || t->name.len > MC_ST_MAX_NAME)
        return bad_tensor(error, path, t->name, "a name of this length");
    if (!json_is_object(entry)) return bad_tensor(error, path, t->name, "not an object");
    if (json_object_size(entry) != 3)
        return bad_tensor(error, path, t->name, "it must have dtype, shape and data_offsets, and nothing else");
    moec_status s = read_dtype(path, t, json_object_get(entry, "dtype"), error);
    if (s != MOEC_OK) return s;
    return read_extent(path, t, json_object_get(entry, "shape"), json_object_get(entry, "data_offsets"), data_bytes,
                       error);
}

static int
by_begin(const void *a, const void *b)
{
    const mc_st_tensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->n_bytes != y->n_bytes) return x->n_bytes < y->n_bytes ? -1 : 1;
    return mc_str_cmp(x->name, y->name);
}

static moec_status
check_tiling(const char *path, const mc_st_file *f, uint64_t data_bytes, mc_fault *error)
{
    uint64_t end = 0;
    for (size_t i = 0; i < f->n_tensors; i++) {
        const mc_st_tensor *t = &f->tensors[i];
        if (t->begin < end) return bad_tensor(error, path, t->name, "its bytes overlap another tensor's");
        if (t->begin > end) return bad_tensor(error, path, t->name, "there is a hole before its bytes");
        end += t->n_bytes;
    }
    if (end != data_bytes) return malformed(error, path, "bytes after the last tensor");
    return MOEC_OK;
}

static moec_status
check_metadata(const char *path, json_t *metadata, mc_fault *error)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata)) return malformed(error, path, "__metadata__ is not an object");
    json_object_foreach(metadata, key, value) if (!json_is_string(value)) return malformed(
        error, path, "__metadata__ holds something else than strings");
    return MOEC_OK;
}

/* Copies a text, with a zero behind it, to *at. */
static mc_str
keep_text(char **at, const char *text)
{
    size_t len = strlen(text);
    mc_str kept = {memcpy(*at, text, len + 1), len};
    *at += len + 1;
    return kept;
}

static moec_status
read_header(json_t *root, const unsigned char *data, uint64_t data_bytes, const char *path, mc_st_file *out,
            mc_fault *error)
{
    json_t *metadata = json_object_get(root, "__metadata__");
    size_t name_bytes = 0, n = 0;
    const char *key;
    json_t *value;
    moec_status s = metadata ? check_metadata(path, metadata, error) : MOEC_OK;
    if (s != MOEC_OK) return s;
    json_object_foreach(root, key, value)
    {
        name_bytes += strlen(key) + 1;
        n++;
    }
    json_object_foreach(metadata, key, value) name_bytes += strlen(key) + json_string_length(value) + 2;
    out->tensors = calloc(n + 1, sizeof *out->tensors);
    out->notes = calloc(json_object_size(metadata) + 1, sizeof *out->notes);
    char *at = out->names = malloc(name_bytes + 1);
    if (!out->tensors || !out->notes || !out->names) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    json_object_foreach(metadata, key, value)
    {
        out->notes[out->n_notes].key = keep_text(&at, key);
        out->notes[out->n_notes++].value = keep_text(&at, json_string_value(value));
    }
    json_object_foreach(root, key, value)
    {
        if (strcmp(key, "__metadata__") != 0) {
            mc_st_tensor *t = &out->tensors[out->n_tensors++];
            t->name = keep_text(&at, key);
            s = read_tensor(path, t, value, data_bytes, error);
            if (s == MOEC_OK) t->data = data + t->begin;
        }
        if (s != MOEC_OK) return s;
    }
    qsort(out->tensors, out->n_tensors, sizeof *out->tensors, by_begin);
    return check_tiling(path, out, data_bytes, error);
}

moec_status
mc_st_parse(const unsigned char *bytes, size_t n_bytes, const char *path, mc_st_file *out, mc_fault *error)
{
    *out = (mc_st_file){0};
    if (n_bytes < 8) return malformed(error, path, "shorter than its length field");
    uint64_t header = 0;
    for (int i = 0; i < 8; i++) header |= (uint64_t)bytes[i] << 8 * i;
    if (header > MC_ST_MAX_HEADER) return malformed(error, path, "the header is longer than 100 MiB");
    if (header > n_bytes - 8) return malformed(error, path, "the header is longer than the file");
    char what[400];
    json_t *root;
    snprintf(what, sizeof what, "%.300s is not a valid safetensors file", path);
    moec_status s = mc_json_parse(bytes + 8, (size_t)header, what, &root, error);
    if (s != MOEC_OK) return s;
    if (!json_is_object(root)) s = malformed(error, path, "the header is not an object");
    if (s == MOEC_OK) s = read_header(root, bytes + 8 + header, n_bytes - 8 - header, path, out, error);
    json_decref(root);
    if (s != MOEC_OK) mc_st_fini(out);
    return s;
}

void
mc_st_fini(mc_st_file *file)
{
    free(file->tensors);
    free(file->notes);
    free(file->names);
    *file = (mc_st_file){0};
}

mc_str
mc_st_note_of(const mc_st_file *file, const char *key)
{
    for (size_t i = 0; i < file->n_notes; i++)
        if (mc_str_is(file->notes[i].key, key)) return file->notes[i].value;
    return (mc_str){0};
}
