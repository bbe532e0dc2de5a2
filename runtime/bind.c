/* bind: see bind.h. For each path the first rule whose pattern matches and whose source exists; then both strict
 * checks: no weight without a tensor, no tensor without a use. Everything that can be refused is refused here, before a
 * byte is packed. */
#include "runtime/bind.h"

#include "runtime/ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const moec_abi_weight *
mc_scale_entry(const moec_abi_model *abi, const char *path)
{
    for (uint32_t i = 0; i < abi->n_weights; i++)
        if (abi->weights[i].scale_of && strcmp(abi->weights[i].scale_of, path) == 0) return &abi->weights[i];
    return NULL;
}

const mc_bound *
mc_bind_find(const mc_bind *b, const char *path)
{
    uint32_t i = mc_name_table_get(&b->by_path, mc_str_of(path));
    return i == MC_NO_INDEX ? NULL : &b->paths[i];
}

static moec_status
no_memory(mc_fault *error)
{
    return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
}

/* All experts, shapes and types only. */
static moec_status
open_whole(const mc_bind *b, const mc_bound *bound, mc_tensor *out, mc_fault *error)
{
    return mc_tensor_open(b->checkpoint, bound->rule, bound->target, bound->sources, bound->n_sources, true, out,
                          error);
}

/* Whether the sources are the experts, one each. */
static bool
source_per_expert(const mc_bound *bound)
{
    return bound->rule->stacked.len && bound->n_sources == (size_t)mc_weights_whole(bound->weight) &&
           mc_rule_keeps_parts(bound->rule);
}

/* picks[s]: the expert in slot s. */
static moec_status
open_picked(const mc_bind *b, const mc_bound *bound, const int64_t *picks, int64_t n, mc_tensor *out, mc_fault *error)
{
    if (!source_per_expert(bound)) {
        moec_status s = mc_tensor_open(b->checkpoint, bound->rule, bound->target, bound->sources, bound->n_sources,
                                       false, out, error);
        if (s != MOEC_OK) return s;
        s = mc_tensor_pick(out, picks, n, error);
        if (s != MOEC_OK) mc_tensor_close(out);
        return s;
    }
    uint32_t *own = malloc((size_t)n * sizeof *own);
    if (!own) return no_memory(error);
    for (int64_t i = 0; i < n; i++) own[i] = bound->sources[picks[i]];
    moec_status s = mc_tensor_open(b->checkpoint, bound->rule, bound->target, own, (size_t)n, false, out, error);
    free(own);
    return s;
}

moec_status
mc_bind_open(const mc_bind *b, const mc_bound *bound, mc_tensor *out, mc_fault *error)
{
    const moec_abi_weight *w = bound->weight;
    if (!w->experts)
        return mc_tensor_open(b->checkpoint, bound->rule, bound->target, bound->sources, bound->n_sources, false, out,
                              error);
    int64_t n = w->dims[0], *picks = malloc((size_t)n * sizeof *picks);
    if (!picks) return no_memory(error);
    for (int64_t i = 0; i < n; i++) {
        int64_t expert = mc_weights_expert(b->abi, w, b->number, i);
        picks[i] = expert < 0 ? 0 : expert; /* nothing comes to an empty slot: any numbers will do */
    }
    moec_status s = open_picked(b, bound, picks, n, out, error);
    free(picks);
    return s;
}

/* ---- the nearest name, for notes ------------------------------------------------------------------------------ */

/* How many parts two dotted names share at their ends. */
static int
shared_parts(mc_str a, mc_str b)
{
    int n = 0;
    size_t i = 0, most = a.len < b.len ? a.len : b.len;
    for (; i < most && a.data[i] == b.data[i]; i++) n += a.data[i] == '.';
    for (i = 1; i <= most && a.data[a.len - i] == b.data[b.len - i]; i++) n += a.data[a.len - i] == '.';
    return n;
}

static void
note_nearest(const mc_checkpoint *c, const char *wanted, char *out, size_t n_bytes)
{
    const mc_st_tensor *best = NULL;
    int best_shared = 0;
    mc_str want = mc_str_of(wanted);
    for (size_t i = 0; i < c->n_tensors; i++) {
        int shared = shared_parts(want, c->tensors[i]->name);
        if (!best || shared > best_shared) {
            best = c->tensors[i];
            best_shared = shared;
        }
    }
    out[0] = 0;
    if (!best || !best_shared) return;
    char dims[128];
    mc_dims_text(best->dims, (int)best->rank, dims, sizeof dims);
    snprintf(out, n_bytes, "; nearest tensor: %.*s %s", MC_FMT(best->name), dims);
}

/* ---- finding sources ------------------------------------------------------------------------------------------ */

static uint32_t
find_source(const mc_checkpoint *c, const mc_rule *rule, const char *name)
{
    char blocks[MC_PATH_BYTES + 8];
    uint32_t index = mc_name_table_get(&c->by_name, mc_str_of(name));
    bool mxfp4 = false;
    for (int i = 0; i < rule->n_stages; i++) mxfp4 = mxfp4 || rule->stages[i].kind == MC_STAGE_MXFP4;
    if (!mxfp4) return index;
    snprintf(blocks, sizeof blocks, "%s_blocks", name);
    return mc_name_table_get(&c->by_name, mc_str_of(blocks));
}

/* E0904: what was found of {name} and what is missing. present[0..n-1], some true. */
static moec_status
missing_index(const mc_bound *b, const mc_rule *rule, const bool *present, int64_t n, mc_fault *error)
{
    char found[160] = "";
    size_t len = 0;
    int64_t missing = -1;
    for (int64_t i = 0; i < n; i++) {
        if (!present[i] && missing < 0) missing = i;
        if (!present[i] || len > sizeof found - 48) continue;
        int64_t last = i;
        while (last + 1 < n && present[last + 1]) last++;
        len += (size_t)snprintf(found + len, sizeof found - len, last > i ? "%s%lld..%lld" : "%s%lld", len ? ", " : "",
                                (long long)i, (long long)last);
        i = last;
    }
    return mc_fail(error, MOEC_ERR_MISMATCH, "E0904: %.*s needs %.*s = 0..%lld of %.*s: found %s; %lld is missing",
                   MC_FMT(b->path), MC_FMT(rule->stacked), (long long)n - 1, MC_FMT(rule->source), found,
                   (long long)missing);
}

/* Stacked sources: indices 0..n-1, where n is the weight's axis 0, or as many as there are.
 * NOT_FOUND without text: none exists. */
static moec_status
find_stack(const mc_bind *b, mc_bound *bound, const mc_rule *rule, const mc_captures *captures, mc_fault *error)
{
    char name[MC_PATH_BYTES];
    bool any = !mc_rule_keeps_parts(rule);
    int64_t n = mc_weights_whole(bound->weight), most = (int64_t)b->checkpoint->n_tensors;
    if (n > most || any) n = most;
    int64_t n_found = 0, end = 0;
    bool *present = calloc((size_t)n + 2, sizeof *present);
    uint32_t *sources = calloc((size_t)n + 2, sizeof *sources);
    moec_status s = present && sources ? MOEC_OK : no_memory(error);
    for (int64_t i = 0; i <= n && s == MOEC_OK; i++) {
        if (!mc_rule_source(rule, captures, i, name))
            s = mc_fail(error, MOEC_ERR_SYNTAX, "a name of a tensor is too long");
        sources[i] = s == MOEC_OK ? find_source(b->checkpoint, rule, name) : MC_NO_INDEX;
        present[i] = sources[i] != MC_NO_INDEX;
        n_found += present[i];
        if (present[i]) end = i + 1;
        if (any && !present[i]) break;
    }
    int64_t want = any ? end : mc_weights_whole(bound->weight);
    if (s == MOEC_OK && n_found == 0) {
        s = MOEC_ERR_NOT_FOUND;
    } else if (s == MOEC_OK && end > want) {
        s = mc_fail(error, MOEC_ERR_MISMATCH, "E0904: %.*s has %lld along axis 0, but the checkpoint has %s too",
                    MC_FMT(bound->path), (long long)want, name);
    } else if (s == MOEC_OK && n_found < want) {
        s = missing_index(bound, rule, present, want > n + 1 ? n + 1 : want, error);
    }
    free(present);
    bound->sources = sources;
    bound->n_sources = (size_t)n_found;
    return s;
}

static moec_status
try_rule(const mc_bind *b, mc_bound *bound, const mc_rule *rule, const mc_captures *captures, mc_fault *error)
{
    free(bound->sources);
    bound->sources = NULL;
    if (rule->stacked.len) return find_stack(b, bound, rule, captures, error);
    char name[MC_PATH_BYTES];
    if (!mc_rule_source(rule, captures, -1, name))
        return mc_fail(error, MOEC_ERR_SYNTAX, "a name of a tensor is too long");
    uint32_t source = find_source(b->checkpoint, rule, name);
    if (source == MC_NO_INDEX) return MOEC_ERR_NOT_FOUND;
    bound->sources = malloc(sizeof *bound->sources);
    if (!bound->sources) return no_memory(error);
    bound->sources[0] = source;
    bound->n_sources = 1;
    return MOEC_OK;
}

static moec_status
unbound(const mc_bind *b, const mc_bound *bound, const mc_rule *tried, const mc_captures *captures, mc_fault *error)
{
    char name[MC_PATH_BYTES], note[MC_ST_MAX_NAME + 192];
    if (!tried || !mc_rule_source(tried, captures, -1, name))
        return mc_fail(error, MOEC_ERR_NOT_FOUND, "E0901: %.*s is not bound: no rule of the weights block matches it",
                       MC_FMT(bound->path));
    note_nearest(b->checkpoint, name, note, sizeof note);
    return mc_fail(error, MOEC_ERR_NOT_FOUND,
                   "E0901: %.*s is not bound: rule \"%.*s\" <- \"%.*s\" looks for %s, which the checkpoint lacks%s",
                   MC_FMT(bound->path), MC_FMT(tried->targets[0]), MC_FMT(tried->source), name, note);
}

static moec_status
bind_path(mc_bind *b, mc_bound *bound, const mc_rule_map *map, mc_fault *error)
{
    const mc_rule *tried = NULL;
    mc_captures tried_captures = {0};
    for (size_t i = 0; i < map->n; i++) {
        const mc_rule *rule = &b->rules.rules[map->first + i];
        mc_captures captures;
        for (int t = 0; t < rule->n_targets && !rule->ignore; t++) {
            if (!mc_pattern_match(rule->targets[t], bound->path, &captures)) continue;
            moec_status s = try_rule(b, bound, rule, &captures, error);
            bound->rule = rule;
            bound->target = t;
            if (s != MOEC_ERR_NOT_FOUND) return s;
            tried = rule;
            tried_captures = captures;
            break;
        }
    }
    return unbound(b, bound, tried, &tried_captures, error);
}

/* ---- shapes and types ----------------------------------------------------------------------------------------- */

/* The parameter's, not only what this rank has of it. */
static void
whole_dims(const moec_abi_weight *w, int64_t *out)
{
    memcpy(out, w->dims, sizeof w->dims);
    if (w->rank) out[0] = mc_weights_whole(w);
}

static moec_status
wrong_shape(const mc_bind *b, const mc_bound *bound, const mc_tensor *t, mc_fault *error)
{
    const moec_abi_weight *w = bound->weight;
    const mc_view *part = &t->parts[0];
    int64_t dims[4];
    whole_dims(w, dims);
    char want[128], have[128], hint[64] = "";
    mc_dims_text(dims, (int)w->rank, want, sizeof want);
    mc_dims_text(part->dims, part->rank, have, sizeof have);
    int shift = t->stacked ? 1 : 0;
    for (int i = 0; i < part->rank && (int)w->rank == t->rank; i++)
        for (int j = i + 1; j < part->rank; j++) {
            bool fits = dims[i + shift] == part->dims[j] && dims[j + shift] == part->dims[i];
            for (int k = 0; k < part->rank && fits; k++) fits = k == i || k == j || dims[k + shift] == part->dims[k];
            if (fits && !hint[0]) snprintf(hint, sizeof hint, "; a transpose would fit: | transpose(%d, %d)", i, j);
        }
    const mc_st_tensor *source = b->checkpoint->tensors[bound->sources[0]];
    return mc_fail(error, MOEC_ERR_MISMATCH, "E0903: %.*s is %s; tensor %.*s%s is %s%s", MC_FMT(bound->path), want,
                   MC_FMT(source->name), bound->rule->n_stages ? " after its stages" : "", have, hint);
}

/* Digits that a type keeps: converting to one with fewer loses some. */
static int
width(moec_dtype t)
{
    switch (t) {
    case MOEC_F64: return 64;
    case MOEC_F32: return 32;
    case MOEC_BF16:
    case MOEC_F16: return 16;
    case MOEC_F8E4M3:
    case MOEC_F8E5M2: return 8;
    case MOEC_I32:
    case MOEC_I64:
    case MOEC_I8:
    case MOEC_U8:
    case MOEC_BOOL:
    case MOEC_DTYPE_NONE: break;
    }
    return 0;
}

static moec_status
check_fp8(const mc_bind *b, const mc_bound *bound, const mc_tensor *t, mc_fault *error)
{
    char path[MC_PATH_BYTES];
    snprintf(path, sizeof path, "%.*s", MC_FMT(bound->path));
    const moec_abi_weight *scale = mc_scale_entry(b->abi, path);
    const mc_view *v = &t->parts[0];
    if (!scale || scale->block[0] <= 0 || scale->block[1] <= 0 || bound->weight->rank < 2)
        return mc_fail(error, MOEC_ERR_INTERNAL, "the artefact has no scales for FP8 weight %s", path);
    if (v->kind != MC_VIEW_FP8) return MOEC_OK; /* quantised when packing */
    if (v->dtype != MOEC_F8E4M3 || v->affine || v->block[0] != scale->block[0] || v->block[1] != scale->block[1])
        return mc_fail(error, MOEC_ERR_MISMATCH,
                       "E0903: %s is f8e4m3 in blocks of %lld x %lld, the checkpoint has %s in blocks of %lld x %lld",
                       path, (long long)scale->block[0], (long long)scale->block[1], moec_dtype_name(v->dtype),
                       (long long)v->block[0], (long long)v->block[1]);
    return MOEC_OK;
}

static moec_status
check_dtype(const mc_bind *b, const mc_bound *bound, const mc_tensor *t, mc_fault *error)
{
    moec_dtype have = mc_tensor_dtype(t), want = (moec_dtype)bound->weight->dtype;
    if (want == MOEC_F8E4M3 && mc_dtype_is_float(have)) return check_fp8(b, bound, t, error);
    if (have == want && t->parts[0].kind == MC_VIEW_PLAIN) return MOEC_OK;
    if (!mc_dtype_is_float(have) || !mc_dtype_is_float(want)) {
        if (want == MOEC_I32 && !mc_dtype_is_float(have) && !t->parts[0].affine)
            return MOEC_OK; /* range checked later */
        return mc_fail(error, MOEC_ERR_MISMATCH, "E0903: %.*s is %s, its tensor is %s", MC_FMT(bound->path),
                       moec_dtype_name(want), moec_dtype_name(have));
    }
    bool exact = width(want) > width(have) || want == have;
    if (t->parts[0].kind == MC_VIEW_FP8)
        exact = width(want) >= 16; /* value * scale: storing it is what the format is for */
    if (t->parts[0].kind == MC_VIEW_MXFP4) exact = width(want) >= 16;
    if (exact || t->cast || b->allow_narrowing) return MOEC_OK;
    return mc_fail(
        error, MOEC_ERR_MISMATCH,
        "%.*s is stored as %s, its tensor is %s: storing it would lose digits. Allow it (--narrow, or | cast in the "
        "rule), or compile the model with storage %s",
        MC_FMT(bound->path), moec_dtype_name(want), moec_dtype_name(have), moec_dtype_name(have));
}

static moec_status
check_path(const mc_bind *b, const mc_bound *bound, mc_fault *error)
{
    mc_tensor t;
    mc_fault why = {{0}};
    moec_status s = open_whole(b, bound, &t, &why);
    if (s != MOEC_OK) {
        if (strncmp(why.text, "E09", 3) == 0) return mc_fail(error, s, "%s", why.text);
        return mc_fail(error, s, "E0903: %.*s: %s", MC_FMT(bound->path), why.text);
    }
    const moec_abi_weight *w = bound->weight;
    int64_t dims[4];
    whole_dims(w, dims);
    bool fits = (int)w->rank == t.rank;
    for (uint32_t i = 0; i < w->rank && fits; i++) fits = dims[i] == t.dims[i];
    s = fits ? check_dtype(b, bound, &t, error) : wrong_shape(b, bound, &t, error);
    mc_tensor_close(&t);
    return s;
}

/* ---- left over ------------------------------------------------------------------------------------------------ */

static bool
is_ignored(const mc_bind *b, const mc_rule_map *map, mc_str name)
{
    mc_captures captures;
    for (size_t i = 0; i < map->n; i++) {
        const mc_rule *rule = &b->rules.rules[map->first + i];
        for (int t = 0; t < rule->n_targets && rule->ignore; t++)
            if (mc_pattern_match(rule->targets[t], name, &captures)) return true;
    }
    return false;
}

static moec_status
check_left_over(const mc_bind *b, const mc_rule_map *map, mc_fault *error)
{
    const mc_checkpoint *c = b->checkpoint;
    mc_str first = {0}, shared = {0};
    size_t n = 0;
    for (size_t i = 0; i < c->n_tensors; i++) {
        mc_str name = c->tensors[i]->name;
        if (c->used[i] || is_ignored(b, map, name)) continue;
        if (n++ == 0) first = shared = name;
        size_t k = 0;
        while (k < shared.len && k < name.len && shared.data[k] == name.data[k]) k++;
        shared.len = k;
    }
    if (n == 0) return MOEC_OK;
    if (n > 1) {
        while (shared.len && shared.data[shared.len - 1] != '.') shared.len--;
    }
    return mc_fail(error, MOEC_ERR_MISMATCH,
                   "E0902: %zu tensor%s of the checkpoint %s not used, first %.*s; add a rule or: ignore \"%.*s%s\"", n,
                   n > 1 ? "s" : "", n > 1 ? "are" : "is", MC_FMT(first), MC_FMT(shared), n > 1 ? "**" : "");
}

/* ---- all of it ------------------------------------------------------------------------------------------------ */

static moec_status
bind_map(mc_bind *b, const mc_rule_map *map, mc_fault *error)
{
    size_t n_more = 0;
    moec_status first = MOEC_OK;
    memset(b->checkpoint->used, 0, b->checkpoint->n_tensors * sizeof *b->checkpoint->used);
    for (size_t i = 0; i < b->n_paths; i++) {
        mc_fault e = {{0}};
        moec_status s = bind_path(b, &b->paths[i], map, &e);
        if (s == MOEC_OK) s = check_path(b, &b->paths[i], &e);
        if (s == MOEC_ERR_MEMORY) return mc_fail(error, s, "%s", e.text);
        if (s != MOEC_OK && first == MOEC_OK) {
            first = s;
            mc_fail(error, s, "%s", e.text);
        } else if (s != MOEC_OK) {
            n_more++;
        }
    }
    if (first != MOEC_OK && n_more && error) {
        size_t len = strlen(error->text);
        snprintf(error->text + len, sizeof error->text - len, " (and %zu more weights)", n_more);
    }
    return first != MOEC_OK ? first : check_left_over(b, map, error);
}

static moec_status
add_path(mc_bind *b, const char *path, const moec_abi_weight *w, mc_fault *error)
{
    mc_str key = mc_str_of(path);
    if (key.len >= MC_PATH_BYTES) return mc_fail(error, MOEC_ERR_INTERNAL, "a path of a weight is too long");
    if (!mc_name_table_add(&b->by_path, key, (uint32_t)b->n_paths)) {
        /* Known already. A matrix entry says more about the stored type than one widened to f32. */
        mc_bound *known = &b->paths[mc_name_table_get(&b->by_path, key)];
        if (width((moec_dtype)w->dtype) && width((moec_dtype)w->dtype) < width((moec_dtype)known->weight->dtype))
            known->weight = w;
        return MOEC_OK;
    }
    b->paths[b->n_paths++] = (mc_bound){.path = key, .weight = w};
    return MOEC_OK;
}

static moec_status
collect_paths(mc_bind *b, mc_fault *error)
{
    b->paths = calloc(2 * (size_t)b->abi->n_weights + 1, sizeof *b->paths);
    if (!b->paths || !mc_name_table_init(&b->by_path, 2 * (size_t)b->abi->n_weights)) return no_memory(error);
    moec_status s = MOEC_OK;
    for (uint32_t i = 0; i < b->abi->n_weights && s == MOEC_OK; i++) {
        const moec_abi_weight *w = &b->abi->weights[i];
        if (w->scale_of) continue;
        s = add_path(b, w->path, w, error);
        if (s == MOEC_OK && w->path2) s = add_path(b, w->path2, w, error);
    }
    for (uint32_t i = 0; i < b->abi->n_weights && s == MOEC_OK; i++)
        if (b->abi->weights[i].scale_of && !mc_bind_find(b, b->abi->weights[i].scale_of))
            s = mc_fail(error, MOEC_ERR_INTERNAL, "scales of %s, which is no weight", b->abi->weights[i].scale_of);
    return s;
}

static moec_status
try_maps(mc_bind *b, const char *name, mc_fault *error)
{
    moec_status first = MOEC_OK;
    bool found = false;
    for (size_t i = 0; i < b->rules.n_maps; i++) {
        if (name && !mc_str_is(b->rules.maps[i].name, name)) continue;
        mc_fault e = {{0}};
        moec_status s = bind_map(b, &b->rules.maps[i], &e);
        if (s == MOEC_OK) return MOEC_OK;
        if (!found) first = mc_fail(error, s, "%s", e.text);
        found = true;
        if (s == MOEC_ERR_MEMORY) return mc_fail(error, s, "%s", e.text);
    }
    if (!found) return mc_fail(error, MOEC_ERR_ARGUMENT, "the model has no weights block named %s", name ? name : "");
    return first;
}

/* Checkpoints of moec train have the model's own names, and f32 whatever the model stores: narrowing them is what the
 * text asks for. A map that was named is used all the same. */
moec_status
mc_bind_create(const moec_abi_model *abi, mc_checkpoint *checkpoint, const char *map, bool allow_narrowing,
               uint32_t number, mc_bind *out, mc_fault *error)
{
    bool own_names = !map && mc_checkpoint_is_own(checkpoint);
    *out = (mc_bind){
        .abi = abi, .checkpoint = checkpoint, .allow_narrowing = allow_narrowing || own_names, .number = number};
    moec_status s = mc_rules_parse(own_names ? "" : abi->rules, &out->rules, error);
    if (s == MOEC_OK) s = collect_paths(out, error);
    if (s == MOEC_OK) s = try_maps(out, map, error);
    if (s != MOEC_OK) mc_bind_fini(out);
    return s;
}

void
mc_bind_fini(mc_bind *b)
{
    for (size_t i = 0; i < b->n_paths; i++) free(b->paths[i].sources);
    free(b->paths);
    mc_name_table_fini(&b->by_path);
    mc_rules_fini(&b->rules);
    *b = (mc_bind){0};
}
