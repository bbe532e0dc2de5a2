/* placement: see placement.h. Reading believes nothing: sizes first, then every slot, then that no expert is missing.
 */
#include "runtime/placement.h"

#include "runtime/json_text.h"

#include <stdlib.h>
#include <string.h>

typedef struct owned { /* what a placement that was read consists of */
    mc_placement placement;
    mc_placement_layer *layers;
    json_t *root; /* owns the names */
} owned;

void
mc_placement_close(mc_placement *placement)
{
    owned *o = (owned *)placement; /* its first member */
    if (!o) return;
    for (uint32_t i = 0; o->layers && i < placement->n_layers; i++) free((void *)(uintptr_t)o->layers[i].slots);
    free(o->layers);
    json_decref(o->root);
    free(o);
}

/* ---- checks ----------------------------------------------------------------------------------------------------- */

/* NULL: good. seen: [n_experts], zeros. */
static const char *
fault_of(const mc_placement_layer *l, uint32_t n_ranks, unsigned char *seen)
{
    if (l->n_slots % n_ranks) return "its slots are not as many for every rank";
    uint32_t found = 0;
    for (uint32_t s = 0; s < l->n_slots; s++) {
        if (l->slots[s] < -1 || l->slots[s] >= (int64_t)l->n_experts) return "a slot holds an expert that is none";
        if (l->slots[s] < 0 || seen[l->slots[s]]) continue;
        seen[l->slots[s]] = 1;
        found++;
    }
    return found == l->n_experts ? NULL : "an expert is in no slot";
}

static moec_status
check_layer(const char *name, moec_status status, const mc_placement_layer *l, uint32_t n_ranks, mc_fault *error)
{
    unsigned char *seen = calloc(l->n_experts, 1);
    if (!seen) return mc_fail(error, MOEC_ERR_MEMORY, "%s: out of memory", name);
    const char *fault = fault_of(l, n_ranks, seen);
    free(seen);
    if (!fault) return MOEC_OK;
    return mc_fail(error, status, "%s: layer %.200s: %s; make it again with moec plan --place", name, l->name, fault);
}

moec_status
mc_placement_check(const mc_placement *p, const char *model, uint64_t hash, uint32_t n_ranks, const uint32_t *experts,
                   uint32_t n_layers, mc_fault *error)
{
    static const char *const again = "make one with moec plan --place";
    if (strcmp(p->model, model) != 0)
        return mc_fail(error, MOEC_ERR_MISMATCH, "the placement is of the model %.200s, not of %.200s: %s", p->model,
                       model, again);
    if (p->n_ranks != n_ranks)
        return mc_fail(error, MOEC_ERR_MISMATCH, "the placement is for %u ranks, not for %u: %s", p->n_ranks, n_ranks,
                       again);
    if (p->n_layers != n_layers)
        return mc_fail(error, MOEC_ERR_MISMATCH, "the placement has %u layers of experts, %.200s has %u: %s",
                       p->n_layers, model, n_layers, again);
    for (uint32_t i = 0; i < n_layers; i++)
        if (p->layers[i].n_experts != experts[i])
            return mc_fail(error, MOEC_ERR_MISMATCH, "layer %.200s of the placement has %u experts, of %.200s %u: %s",
                           p->layers[i].name, p->layers[i].n_experts, model, experts[i], again);
    if (p->hash && hash && p->hash != hash)
        return mc_fail(error, MOEC_ERR_MISMATCH, "the placement was made for another version of %.200s: %s", model,
                       again);
    return MOEC_OK;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static moec_status
wrong(const char *name, const char *what, mc_fault *error)
{
    return mc_fail(error, MOEC_ERR_SYNTAX, "%s is not a placement: %s; make it again with moec plan --place", name,
                   what);
}

/* 1 .. MC_PLACEMENT_MOST */
static bool
read_count(const json_t *object, const char *key, uint32_t *out)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > MC_PLACEMENT_MOST) return false;
    *out = (uint32_t)json_integer_value(v);
    return true;
}

static bool
read_hash(const json_t *v, uint64_t *out)
{
    *out = 0;
    if (!json_is_string(v) || json_string_length(v) != 16) return false;
    for (const char *p = json_string_value(v); *p; p++) {
        int digit = *p >= '0' && *p <= '9' ? *p - '0' : *p >= 'a' && *p <= 'f' ? *p - 'a' + 10 : -1;
        if (digit < 0) return false;
        *out = *out << 4 | (uint64_t)digit;
    }
    return true;
}

static moec_status
read_layer(const char *name, const json_t *object, uint32_t n_ranks, mc_placement_layer *l, mc_fault *error)
{
    const json_t *slots = json_object_get(object, "slots");
    l->name = json_string_value(json_object_get(object, "name"));
    if (!l->name) return wrong(name, "a layer has no name", error);
    if (!read_count(object, "experts", &l->n_experts)) return wrong(name, "a layer has no number of experts", error);
    size_t n = json_array_size(slots); /* 0 when there is none */
    if (n < 1 || n > MC_PLACEMENT_MOST) return wrong(name, "a layer has no slots", error);
    int32_t *list = malloc(n * sizeof *list);
    if (!list) return mc_fail(error, MOEC_ERR_MEMORY, "%s: out of memory", name);
    l->slots = list;
    l->n_slots = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(slots, i);
        json_int_t expert = json_is_integer(v) ? json_integer_value(v) : -2;
        list[i] = expert < -1 || expert > MC_PLACEMENT_MOST ? -2 : (int32_t)expert;
    }
    return check_layer(name, MOEC_ERR_SYNTAX, l, n_ranks, error);
}

static moec_status
read_root(const char *name, owned *o, mc_fault *error)
{
    mc_placement *p = &o->placement;
    const json_t *root = o->root, *version = json_object_get(root, "version"),
                 *layers = json_object_get(root, "layers");
    const char *format = json_string_value(json_object_get(root, "format"));
    if (!format || strcmp(format, "moec placement") != 0) return wrong(name, "its format is another", error);
    if (!json_is_integer(version) || json_integer_value(version) != MC_PLACEMENT_VERSION)
        return mc_fail(error, MOEC_ERR_MISMATCH,
                       "%s is a placement of another version, this moec reads version %d; make it again with moec plan "
                       "--place",
                       name, MC_PLACEMENT_VERSION);
    p->model = json_string_value(json_object_get(root, "model"));
    if (!p->model) return wrong(name, "it names no model", error);
    if (!read_hash(json_object_get(root, "hash"), &p->hash)) return wrong(name, "its hash is not 16 digits", error);
    if (!read_count(root, "ranks", &p->n_ranks)) return wrong(name, "it has no number of ranks", error);
    if (!read_count(root, "nodes", &p->n_nodes) || p->n_ranks % p->n_nodes)
        return wrong(name, "its nodes do not divide its ranks", error);
    size_t n = json_array_size(layers);
    if (n < 1 || n > MC_PLACEMENT_MOST) return wrong(name, "it has no layers", error);
    o->layers = calloc(n, sizeof *o->layers);
    if (!o->layers) return mc_fail(error, MOEC_ERR_MEMORY, "%s: out of memory", name);
    p->layers = o->layers;
    p->n_layers = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        moec_status s = read_layer(name, json_array_get(layers, i), p->n_ranks, &o->layers[i], error);
        if (s != MOEC_OK) return s;
    }
    return MOEC_OK;
}

moec_status
mc_placement_read(const void *bytes, size_t n_bytes, const char *name, mc_placement **out, mc_fault *error)
{
    *out = NULL;
    owned *o = calloc(1, sizeof *o);
    if (!o) return mc_fail(error, MOEC_ERR_MEMORY, "%s: out of memory", name);
    moec_status s = mc_json_parse(bytes, n_bytes, name, &o->root, error);
    if (s == MOEC_OK) s = read_root(name, o, error);
    if (s == MOEC_OK)
        *out = &o->placement;
    else
        mc_placement_close(&o->placement);
    return s;
}

moec_status
mc_placement_open(const char *path, mc_placement **out, mc_fault *error)
{
    mc_mapping map;
    *out = NULL;
    moec_status s = mc_file_map(path, &map, error);
    if (s != MOEC_OK) return s;
    s = mc_placement_read(map.data ? (const void *)map.data : "", map.n_bytes, path, out, error);
    mc_file_unmap(&map);
    return s;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static json_t *
describe(const mc_placement_layer *l)
{
    json_t *object = json_object(), *slots = json_array();
    bool good = object && slots;
    for (uint32_t i = 0; i < l->n_slots && good; i++)
        good = json_array_append_new(slots, json_integer(l->slots[i])) == 0;
    good = good && json_object_set_new(object, "name", json_string(l->name)) == 0 &&
           json_object_set_new(object, "experts", json_integer(l->n_experts)) == 0 &&
           json_object_set(object, "slots", slots) == 0;
    json_decref(slots);
    if (good) return object;
    json_decref(object);
    return NULL;
}

static char *
text_of(const mc_placement *p)
{
    char hash[17];
    for (int i = 0; i < 16; i++) hash[i] = "0123456789abcdef"[p->hash >> (60 - 4 * i) & 15];
    hash[16] = 0;
    json_t *root = json_object(), *layers = json_array();
    bool good = root && layers && json_object_set_new(root, "format", json_string("moec placement")) == 0 &&
                json_object_set_new(root, "version", json_integer(MC_PLACEMENT_VERSION)) == 0 &&
                json_object_set_new(root, "model", json_string(p->model)) == 0 &&
                json_object_set_new(root, "hash", json_string(hash)) == 0 &&
                json_object_set_new(root, "ranks", json_integer(p->n_ranks)) == 0 &&
                json_object_set_new(root, "nodes", json_integer(p->n_nodes)) == 0;
    for (uint32_t i = 0; i < p->n_layers && good; i++)
        good = json_array_append_new(layers, describe(&p->layers[i])) == 0;
    good = good && json_object_set(root, "layers", layers) == 0;
    char *text = good ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(layers);
    json_decref(root);
    return text;
}

moec_status
mc_placement_write(const char *path, const mc_placement *p, mc_fault *error)
{
    if (!p->n_ranks || !p->n_nodes || p->n_ranks % p->n_nodes || !p->n_layers)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "%s: %u ranks on %u nodes and %u layers are no placement", path,
                       p->n_ranks, p->n_nodes, p->n_layers);
    for (uint32_t i = 0; i < p->n_layers; i++) {
        if (!p->layers[i].n_experts || p->layers[i].n_experts > MC_PLACEMENT_MOST || !p->layers[i].n_slots ||
            p->layers[i].n_slots > MC_PLACEMENT_MOST)
            return mc_fail(error, MOEC_ERR_ARGUMENT, "%s: layer %.200s has %u experts in %u slots", path,
                           p->layers[i].name, p->layers[i].n_experts, p->layers[i].n_slots);
        moec_status s = check_layer(path, MOEC_ERR_ARGUMENT, &p->layers[i], p->n_ranks, error);
        if (s != MOEC_OK) return s;
    }
    char *text = text_of(p);
    if (!text) return mc_fail(error, MOEC_ERR_MEMORY, "%s: out of memory, or a name that JSON cannot hold", path);
    moec_status s = mc_file_write(path, text, strlen(text), 0644, error);
    free(text);
    return s;
}
