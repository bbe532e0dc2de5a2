/* safetensors_write: the writing half of safetensors.h, so that what moec trains can be read by everybody. */
#include "runtime/safetensors.h"

#include "runtime/base/dtype.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };

static json_t *
describe(const mc_st_tensor *t, uint64_t *end)
{
    json_t *entry = json_object(), *shape = json_array(), *offsets = json_array();
    uint64_t begin = *end, n_bytes = moec_dtype_bytes(t->dtype);
    bool good = entry && shape && offsets;
    for (uint32_t i = 0; i < t->rank; i++) {
        n_bytes *= (uint64_t)t->dims[i];
        good = good && json_array_append_new(shape, json_integer(t->dims[i])) == 0;
    }
    *end += n_bytes;
    good = good && json_array_append_new(offsets, json_integer((json_int_t)begin)) == 0 &&
           json_array_append_new(offsets, json_integer((json_int_t)*end)) == 0;
    good = good && json_object_set_new(entry, "dtype", json_string(mc_dtype_safetensors_name(t->dtype))) == 0 &&
           json_object_set(entry, "shape", shape) == 0 && json_object_set(entry, "data_offsets", offsets) == 0;
    json_decref(shape);
    json_decref(offsets);
    if (good) return entry;
    json_decref(entry);
    return NULL;
}

/* The header as text; caller frees. NULL: no memory, or names that JSON cannot hold. */
static char *
header_text(const mc_st_tensor *tensors, size_t n_tensors, const mc_st_note *notes, size_t n_notes)
{
    json_t *root = json_object(), *metadata = json_object();
    uint64_t end = 0;
    bool good = root && metadata;
    for (size_t i = 0; i < n_notes && good; i++)
        good = json_object_set_new(metadata, notes[i].key.data, json_string(notes[i].value.data)) == 0;
    good = good && json_object_set(root, "__metadata__", metadata) == 0;
    for (size_t i = 0; i < n_tensors && good; i++)
        good = json_object_set_new(root, tensors[i].name.data, describe(&tensors[i], &end)) == 0;
    char *text = good ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(metadata);
    json_decref(root);
    return text;
}

static moec_status
write_all(mc_writer *w, const char *header, const mc_st_tensor *tensors, size_t n_tensors, mc_fault *error)
{
    static const char spaces[ALIGNMENT] = "                                                               ";
    size_t len = strlen(header), padding = (ALIGNMENT - (8 + len) % ALIGNMENT) % ALIGNMENT;
    unsigned char size[8];
    for (int i = 0; i < 8; i++) size[i] = (unsigned char)((uint64_t)(len + padding) >> 8 * i);
    moec_status s = mc_writer_write(w, size, sizeof size, error);
    if (s == MOEC_OK) s = mc_writer_write(w, header, len, error);
    if (s == MOEC_OK) s = mc_writer_write(w, spaces, padding, error);
    for (size_t i = 0; i < n_tensors && s == MOEC_OK; i++) {
        uint64_t n_bytes = moec_dtype_bytes(tensors[i].dtype);
        for (uint32_t k = 0; k < tensors[i].rank; k++) n_bytes *= (uint64_t)tensors[i].dims[k];
        s = mc_writer_write(w, tensors[i].data, n_bytes, error);
    }
    return s;
}

moec_status
mc_st_write(const char *path, const mc_st_tensor *tensors, size_t n_tensors, const mc_st_note *notes, size_t n_notes,
            mc_fault *error)
{
    for (size_t i = 0; i < n_tensors; i++)
        if (!mc_dtype_safetensors_name(tensors[i].dtype)[0])
            return mc_fail(error, MOEC_ERR_ARGUMENT, "%s: %.*s has no element type of safetensors", path,
                           MC_FMT(tensors[i].name));
    char *header = header_text(tensors, n_tensors, notes, n_notes);
    if (!header) return mc_fail(error, MOEC_ERR_MEMORY, "%s: out of memory", path);
    mc_writer *w;
    moec_status s = mc_writer_open(path, &w, error);
    if (s == MOEC_OK) {
        s = write_all(w, header, tensors, n_tensors, error);
        if (s == MOEC_OK)
            s = mc_writer_commit(w, 0644, error);
        else
            mc_writer_abandon(w);
    }
    free(header);
    return s;
}
