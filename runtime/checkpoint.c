/* checkpoint: see checkpoint.h. The index of a sharded checkpoint is untrusted like the rest: it may only name plain
 * files of the same directory. Which tensor is where, the shards themselves say; no name may come twice. */
#define _GNU_SOURCE
#include "runtime/checkpoint.h"

#include "runtime/base/hash.h"
#include "runtime/json_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char INDEX[] = "model.safetensors.index.json";
enum { MAX_INDEX_BYTES = 256 << 20 };

static moec_status
no_memory(mc_fault *error)
{
    return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
}

static char *
join(const char *directory, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", directory, name) < 0 ? NULL : path;
}

static bool
is_plain_name(const char *name)
{
    return name[0] && name[0] != '.' && !strchr(name, '/') && !strchr(name, '\\') && strlen(name) < 256;
}

static int
by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct file names of an index, sorted. The strings belong to `map`. */
static moec_status
shard_names(json_t *map, const char *path, const char ***out, size_t *out_n, mc_fault *error)
{
    const char *key;
    json_t *value;
    size_t n = json_object_size(map), kept = 0;
    const char **names = calloc(n ? n : 1, sizeof *names);
    if (!names) return no_memory(error);
    n = 0;
    json_object_foreach(map, key, value)
    {
        const char *name = json_string_value(value);
        if (!name || !is_plain_name(name)) {
            free(names);
            return mc_fail(error, MOEC_ERR_SYNTAX, "%s: \"%.200s\" is no name of a file beside the index", path,
                           name ? name : "(not a string)");
        }
        names[n++] = name;
    }
    qsort(names, n, sizeof *names, by_text);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(names[i], names[kept - 1]) != 0) names[kept++] = names[i];
    *out = names;
    *out_n = kept;
    return MOEC_OK;
}

static moec_status
read_index(mc_checkpoint *c, const char *path, mc_fault *error)
{
    mc_mapping m;
    moec_status s = mc_file_map(path, &m, error);
    if (s != MOEC_OK) return s;
    json_t *root = NULL;
    if (m.n_bytes > MAX_INDEX_BYTES)
        s = mc_fail(error, MOEC_ERR_SYNTAX, "%s is too large for an index", path);
    else
        s = mc_json_parse(m.data, m.n_bytes, path, &root, error);
    json_t *map = json_object_get(root, "weight_map");
    const char **names = NULL;
    size_t n = 0;
    if (s == MOEC_OK && (!json_is_object(map) || json_object_size(map) == 0))
        s = mc_fail(error, MOEC_ERR_SYNTAX, "%s has no weight_map", path);
    if (s == MOEC_OK) s = shard_names(map, path, &names, &n, error);
    if (s == MOEC_OK) {
        c->shards = calloc(n, sizeof *c->shards);
        if (!c->shards) s = no_memory(error);
    }
    for (size_t i = 0; s == MOEC_OK && i < n; i++) {
        c->shards[i].path = join(c->path, names[i]);
        c->n_shards = i + 1;
        if (!c->shards[i].path)
            s = no_memory(error);
        else if (!mc_file_exists(c->shards[i].path))
            s = mc_fail(error, MOEC_ERR_NOT_FOUND, "%s names the file %s, which is missing", path, names[i]);
    }
    free(names);
    json_decref(root);
    mc_file_unmap(&m);
    return s;
}

static moec_status
one_file(mc_checkpoint *c, char *path, mc_fault *error)
{
    c->shards = calloc(1, sizeof *c->shards);
    if (!c->shards || !path) {
        free(path);
        return no_memory(error);
    }
    c->shards[0].path = path;
    c->n_shards = 1;
    return MOEC_OK;
}

static moec_status
find_files(mc_checkpoint *c, mc_fault *error)
{
    if (!mc_file_exists(c->path)) return mc_fail(error, MOEC_ERR_NOT_FOUND, "there is no %s", c->path);
    if (!mc_file_is_directory(c->path)) return one_file(c, strdup(c->path), error);
    char *index = join(c->path, INDEX), *single = join(c->path, "model.safetensors");
    moec_status s = MOEC_OK;
    if (!index || !single) {
        s = no_memory(error);
    } else if (mc_file_exists(index)) {
        s = read_index(c, index, error);
    } else if (mc_file_exists(single)) {
        s = one_file(c, single, error);
        single = NULL;
    } else {
        s = mc_fail(error, MOEC_ERR_NOT_FOUND, "%s holds neither model.safetensors nor %s", c->path, INDEX);
    }
    free(index);
    free(single);
    return s;
}

moec_status
mc_checkpoint_find(const char *path, mc_checkpoint *out, mc_fault *error)
{
    *out = (mc_checkpoint){.path = strdup(path)};
    moec_status s = out->path ? find_files(out, error) : no_memory(error);
    for (size_t i = 0; s == MOEC_OK && i < out->n_shards; i++) {
        struct stat st;
        const char *file = out->shards[i].path, *name = strrchr(file, '/') ? strrchr(file, '/') + 1 : file;
        if (stat(file, &st) != 0) {
            s = mc_fail(error, MOEC_ERR_IO, "cannot look at %s", file);
            break;
        }
        int64_t facts[3] = {st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec};
        out->identity = mc_hash64(name, strlen(name), out->identity);
        out->identity = mc_hash64(facts, sizeof facts, out->identity);
    }
    if (s != MOEC_OK) mc_checkpoint_fini(out);
    return s;
}

static moec_status
collect(mc_checkpoint *c, mc_fault *error)
{
    size_t n = 0;
    for (size_t i = 0; i < c->n_shards; i++) n += c->shards[i].file.n_tensors;
    if (n >= MC_NO_INDEX) return mc_fail(error, MOEC_ERR_UNSUPPORTED, "%s has too many tensors", c->path);
    c->tensors = calloc(n ? n : 1, sizeof *c->tensors);
    c->used = calloc(n ? n : 1, sizeof *c->used);
    if (!c->tensors || !c->used || !mc_name_table_init(&c->by_name, n)) return no_memory(error);
    for (size_t i = 0; i < c->n_shards; i++)
        for (size_t j = 0; j < c->shards[i].file.n_tensors; j++) {
            const mc_st_tensor *t = &c->shards[i].file.tensors[j];
            if (!mc_name_table_add(&c->by_name, t->name, (uint32_t)c->n_tensors))
                return mc_fail(error, MOEC_ERR_SYNTAX, "%s: tensor %.*s is in another shard too", c->shards[i].path,
                               MC_FMT(t->name));
            c->tensors[c->n_tensors++] = t;
        }
    return MOEC_OK;
}

moec_status
mc_checkpoint_load(mc_checkpoint *c, mc_fault *error)
{
    for (size_t i = 0; i < c->n_shards; i++) {
        mc_shard *shard = &c->shards[i];
        moec_status s = mc_file_map(shard->path, &shard->mapping, error);
        if (s == MOEC_OK)
            s = mc_st_parse(shard->mapping.data, shard->mapping.n_bytes, shard->path, &shard->file, error);
        if (s != MOEC_OK) return s;
    }
    return collect(c, error);
}

bool
mc_checkpoint_is_own(const mc_checkpoint *c)
{
    for (size_t i = 0; i < c->n_shards; i++)
        if (!mc_str_is(mc_st_note_of(&c->shards[i].file, "format"), "moec")) return false;
    return c->n_shards > 0;
}

void
mc_checkpoint_fini(mc_checkpoint *c)
{
    for (size_t i = 0; i < c->n_shards; i++) {
        mc_st_fini(&c->shards[i].file);
        mc_file_unmap(&c->shards[i].mapping);
        free(c->shards[i].path);
    }
    free(c->shards);
    free((void *)c->tensors);
    free(c->used);
    mc_name_table_fini(&c->by_name);
    free(c->path);
    *c = (mc_checkpoint){0};
}

const mc_st_tensor *
mc_checkpoint_get(const mc_checkpoint *c, mc_str name, uint32_t *out_index)
{
    uint32_t i = mc_name_table_get(&c->by_name, name);
    if (i == MC_NO_INDEX) return NULL;
    if (out_index) *out_index = i;
    return c->tensors[i];
}
