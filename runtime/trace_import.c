/* trace_import: lines of JSON, one record each, as Megatron's recorder of routers writes them, as a trace in memory.
 * The layers and the number of experts are known only after the last line, so all lines are kept until then. */
#include "runtime/trace_format.h"

#include "runtime/json_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct line {
    uint64_t step, layer;
    uint32_t rank, n_tokens, top_k, max_id;
    int32_t *ids;
} line;

typedef struct import {
    const char *name;
    line *lines;
    size_t n, cap;
    size_t number; /* of the line being read, from 1 */
    mc_fault *error;
} import;

static moec_status
wrong(const import *im, const char *what)
{
    return mc_fail(im->error, MOEC_ERR_SYNTAX, "%s: line %zu: %s", im->name, im->number, what);
}

static moec_status
no_memory(const import *im)
{
    return mc_fail(im->error, MOEC_ERR_MEMORY, "%s: out of memory", im->name);
}

static bool
natural(const json_t *object, const char *key, uint64_t limit, uint64_t *out)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) > limit) return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

/* Experts of one token, or of all when the list is flat. */
static moec_status
read_ids(const import *im, line *l, const json_t *list, size_t *at)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -2;
        if (id < -1 || id >= MC_TRACE_MAX_EXPERTS)
            return wrong(im, "top_indices has something that is not the number of an expert");
        if (id > (json_int_t)l->max_id) l->max_id = (uint32_t)id;
        l->ids[(*at)++] = (int32_t)id;
    }
    return MOEC_OK;
}

static moec_status
read_indices(const import *im, line *l, const json_t *indices)
{
    size_t n = (size_t)l->n_tokens * l->top_k, rows = json_array_size(indices), at = 0;
    bool flat = rows && !json_is_array(json_array_get(indices, 0));
    if (!json_is_array(indices) || rows != (flat ? n : l->n_tokens))
        return wrong(im, "top_indices does not have num_tokens lists");
    for (size_t i = 0; i < rows && !flat; i++) /* sizes before memory: they bound it by the file's */
        if (json_array_size(json_array_get(indices, i)) != l->top_k)
            return wrong(im, "a list of top_indices does not have topk numbers");
    l->ids = malloc((n ? n : 1) * sizeof *l->ids);
    if (!l->ids) return no_memory(im);
    if (flat) return read_ids(im, l, indices, &at);
    for (size_t i = 0; i < rows; i++) {
        moec_status s = read_ids(im, l, json_array_get(indices, i), &at);
        if (s != MOEC_OK) return s;
    }
    return MOEC_OK;
}

static moec_status
read_object(const import *im, line *l, const json_t *object)
{
    uint64_t rank = 0, n_tokens, top_k;
    if (!json_is_object(object)) return wrong(im, "not a JSON object");
    if (!natural(object, "step", UINT64_MAX, &l->step)) return wrong(im, "step is missing or not a natural number");
    if (!natural(object, "layer", UINT64_MAX, &l->layer)) return wrong(im, "layer is missing or not a natural number");
    if (json_object_get(object, "rank") && !natural(object, "rank", UINT32_MAX, &rank))
        return wrong(im, "rank is not a natural number");
    if (!natural(object, "num_tokens", INT32_MAX, &n_tokens))
        return wrong(im, "num_tokens is missing or not a natural number");
    if (!natural(object, "topk", MC_TRACE_MAX_TOP_K, &top_k) || !top_k)
        return wrong(im, "topk is missing or not a number of experts");
    l->rank = (uint32_t)rank;
    l->n_tokens = (uint32_t)n_tokens;
    l->top_k = (uint32_t)top_k;
    return read_indices(im, l, json_object_get(object, "top_indices"));
}

static moec_status
read_line(import *im, const unsigned char *text, size_t n)
{
    if (im->n == im->cap) {
        size_t cap = im->cap ? im->cap * 2 : 64;
        line *more = realloc(im->lines, cap * sizeof *more);
        if (!more) return no_memory(im);
        im->lines = more;
        im->cap = cap;
    }
    char what[256];
    snprintf(what, sizeof what, "%.200s: line %zu", im->name, im->number);
    json_t *object;
    moec_status s = mc_json_parse(text, n, what, &object, im->error);
    if (s != MOEC_OK) return s;
    line *l = &im->lines[im->n++];
    *l = (line){0};
    s = read_object(im, l, object);
    json_decref(object);
    return s;
}

static moec_status
read_lines(import *im, const unsigned char *bytes, size_t n_bytes)
{
    for (size_t at = 0; at < n_bytes;) {
        const unsigned char *nl = memchr(bytes + at, '\n', n_bytes - at);
        size_t end = nl ? (size_t)(nl - bytes) : n_bytes, from = at;
        im->number++;
        at = end + 1;
        while (from < end && (bytes[from] == ' ' || bytes[from] == '\t' || bytes[from] == '\r')) from++;
        if (from == end) continue;
        moec_status s = read_line(im, bytes + from, end - from);
        if (s != MOEC_OK) return s;
    }
    return im->n ? MOEC_OK : mc_fail(im->error, MOEC_ERR_SYNTAX, "%s: no records", im->name);
}

static int
by_layer(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Distinct numbers, ascending; how many there are. */
static size_t
distinct(uint64_t *numbers, size_t n)
{
    qsort(numbers, n, sizeof *numbers, by_layer);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (!kept || numbers[kept - 1] != numbers[i]) numbers[kept++] = numbers[i];
    return kept;
}

static uint32_t
index_of(const uint64_t *numbers, size_t n, uint64_t wanted)
{
    return (uint32_t)((const uint64_t *)bsearch(&wanted, numbers, n, sizeof *numbers, by_layer) - numbers);
}

static moec_status
write_trace(const import *im, const uint64_t *numbers, size_t n_layers, mc_trace_layer *layers, char (*names)[32],
            unsigned char **out_bytes, size_t *out_n)
{
    for (size_t i = 0; i < im->n; i++) {
        const line *l = &im->lines[i];
        mc_trace_layer *to = &layers[index_of(numbers, n_layers, l->layer)];
        if (to->top_k && to->top_k != l->top_k)
            return mc_fail(im->error, MOEC_ERR_SYNTAX, "%s: topk of layer %llu is %u in one record and %u in another",
                           im->name, (unsigned long long)l->layer, to->top_k, l->top_k);
        to->top_k = l->top_k;
        if (l->max_id >= to->n_experts) to->n_experts = l->max_id + 1;
    }
    for (size_t i = 0; i < n_layers; i++) {
        snprintf(names[i], sizeof names[i], "%llu", (unsigned long long)numbers[i]);
        layers[i].name = names[i];
        layers[i].guessed = true;
    }
    mc_trace_info info = {"the model of these lines", 0, layers, (uint32_t)n_layers};
    mc_trace_writer *w;
    moec_status s = mc_trace_create_memory(&info, &w, im->error);
    for (size_t i = 0; i < im->n && s == MOEC_OK; i++) {
        const line *l = &im->lines[i];
        mc_trace_record r = {l->step, index_of(numbers, n_layers, l->layer), l->rank, l->n_tokens, l->ids};
        s = mc_trace_add(w, &r, im->error);
        if (s != MOEC_OK) mc_trace_abandon(w);
    }
    return s == MOEC_OK ? mc_trace_take(w, out_bytes, out_n, im->error) : s;
}

moec_status
mc_trace_import(const unsigned char *bytes, size_t n_bytes, const char *name, unsigned char **out_bytes, size_t *out_n,
                mc_fault *error)
{
import im = {.name = name, .error = error };
    moec_status s = read_lines(&im, bytes, n_bytes);
    uint64_t *numbers = s == MOEC_OK ? malloc(im.n * sizeof *numbers) : NULL;
    if (s == MOEC_OK && !numbers) s = no_memory(&im);
    if (s == MOEC_OK) {
        for (size_t i = 0; i < im.n; i++) numbers[i] = im.lines[i].layer;
        size_t n_layers = distinct(numbers, im.n);
        mc_trace_layer *layers = calloc(n_layers, sizeof *layers);
        char(*names)[32] = calloc(n_layers, sizeof *names);
        s = layers && names ? write_trace(&im, numbers, n_layers, layers, names, out_bytes, out_n) : no_memory(&im);
        free(layers);
        free(names);
    }
    free(numbers);
    for (size_t i = 0; i < im.n; i++) free(im.lines[i].ids);
    free(im.lines);
    return s;
}
