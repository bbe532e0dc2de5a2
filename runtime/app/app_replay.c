/* app_replay: a trace read whole and put in order: by step, then rank (whose tokens come after those of the ranks
 * before), then layer. */
#include "runtime/app/app_route.h"

#include <stdlib.h>
#include <string.h>

typedef struct entry {
    uint64_t step;
    uint32_t rank, layer, n_tokens;
    size_t at; /* in ids */
} entry;

struct mc_replay {
    const char *path;
    entry *entries;
    size_t n, next;
    int32_t *ids;
    uint64_t done, left; /* tokens */
};

static int
compare(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->step != y->step) return x->step < y->step ? -1 : 1;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    if (x->layer != y->layer) return x->layer < y->layer ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

/* Where experts choose tokens, -1 says that one did not; elsewhere it is a choice that was dropped. */
static int
check_whole(const mc_app *app, const mc_replay *r, const mc_trace_record *record, size_t n)
{
    const mc_route_layer *l = &app->route->layers[record->layer];
    if (l->input == UINT32_MAX || !app->abi->inputs[l->input].limit) return MC_APP_OK;
    for (size_t i = 0; i < n; i++)
        if (record->ids[i] < 0)
            return mc_app_fail(
                app,
                "step %llu of %s lacks a choice of token %zu in layer %s: replay a trace that was written "
                "before choices were dropped, as moec route does",
                (unsigned long long)record->step, r->path, i / app->route->info.layers[record->layer].top_k,
                app->route->info.layers[record->layer].name);
    return MC_APP_OK;
}

static int
load(const mc_app *app, mc_trace *trace, mc_replay *r)
{
    const mc_trace_info *info = mc_trace_about(trace);
    uint64_t n_records = mc_trace_n_records(trace), n_ids = 0;
    for (uint32_t l = 0; l < info->n_layers; l++) n_ids += mc_trace_n_tokens(trace, l) * info->layers[l].top_k;
    r->entries = calloc((size_t)n_records + 1, sizeof *r->entries);
    r->ids = calloc((size_t)n_ids + 1, sizeof *r->ids);
    if (!r->entries || !r->ids) return mc_app_fail(app, "out of memory for %s", r->path);
    mc_trace_record record;
    size_t at = 0;
    int code = MC_APP_OK;
    mc_trace_rewind(trace);
    while (code == MC_APP_OK && mc_trace_next(trace, &record)) {
        size_t n = (size_t)record.n_tokens * info->layers[record.layer].top_k;
        r->entries[r->n++] = (entry){record.step, record.rank, record.layer, record.n_tokens, at};
        if (n) memcpy(r->ids + at, record.ids, n * sizeof *r->ids);
        if (record.layer == 0) r->left += record.n_tokens;
        code = check_whole(app, r, &record, n);
        at += n;
    }
    qsort(r->entries, r->n, sizeof *r->entries, compare);
    return code;
}

int
mc_replay_open(mc_app *app, const char *path, mc_replay **out)
{
    mc_trace *trace;
    mc_fault e;
    if (mc_trace_open(path, &trace, &e) != MOEC_OK) return mc_app_fail(app, "%s", e.text);
    int code = mc_trace_check(trace, &app->route->info, &e) == MOEC_OK ? MC_APP_OK : mc_app_fail(app, "%s", e.text);
    mc_replay *r = *out = calloc(1, sizeof **out);
    if (code == MC_APP_OK && !r) code = mc_app_fail(app, "out of memory for %s", path);
    if (code == MC_APP_OK) {
        r->path = path;
        code = load(app, trace, r);
    }
    mc_trace_close(trace);
    return code;
}

void
mc_replay_close(mc_replay *r)
{
    if (!r) return;
    free(r->entries);
    free(r->ids);
    free(r);
}

static int
append(mc_app *app, const mc_replay *r, const entry *e)
{
    mc_route_layer *l = &app->route->layers[e->layer];
    size_t n = (size_t)e->n_tokens * app->route->info.layers[e->layer].top_k;
    if (l->n_given + n > l->cap_given) {
        size_t cap = l->n_given + n;
        int32_t *more = realloc(l->given, cap * sizeof *more);
        if (!more) return mc_app_fail(app, "out of memory for %s", r->path);
        l->given = more;
        l->cap_given = cap;
    }
    if (n) memcpy(l->given + l->n_given, r->ids + e->at, n * sizeof *l->given);
    l->n_given += n;
    return MC_APP_OK;
}

/* The number of tokens of the step whose choices are in `given`. */
static int
count_tokens(mc_app *app, uint64_t step, size_t *out)
{
    const mc_app_route *route = app->route;
    const mc_trace_info *info = &route->info;
    *out = route->layers[0].n_given / info->layers[0].top_k;
    for (uint32_t l = 1; l < info->n_layers; l++) {
        size_t n = route->layers[l].n_given / info->layers[l].top_k;
        if (n != *out)
            return mc_app_fail(app,
                               "step %llu of %s has %zu tokens in layer %s, but %zu in layer %s: record all layers of "
                               "every step",
                               (unsigned long long)step, route->replay->path, *out, info->layers[0].name, n,
                               info->layers[l].name);
    }
    return MC_APP_OK;
}

int
mc_replay_step(mc_app *app, size_t n_sequences, size_t most, size_t *out_each)
{
    mc_replay *r = app->route->replay;
    size_t n;
    if (r->next == r->n)
        return mc_app_fail(app, "%s ends after %llu tokens: replay it with the tokens it was recorded with, no more",
                           r->path, (unsigned long long)r->done);
    uint64_t step = r->entries[r->next].step;
    for (uint32_t l = 0; l < app->route->info.n_layers; l++) app->route->layers[l].n_given = 0;
    for (; r->next < r->n && r->entries[r->next].step == step; r->next++) {
        int code = append(app, r, &r->entries[r->next]);
        if (code != MC_APP_OK) return code;
    }
    int code = count_tokens(app, step, &n);
    if (code != MC_APP_OK) return code;
    *out_each = n / n_sequences;
    if (!n || n % n_sequences || *out_each > most)
        return mc_app_fail(app,
                           "step %llu of %s has %zu tokens, here come %zu x %zu: replay it with the tokens it was "
                           "recorded with",
                           (unsigned long long)step, r->path, n, n_sequences, most);
    r->done += n;
    r->left -= n;
    return MC_APP_OK;
}

int
mc_replay_finish(mc_app *app)
{
    const mc_replay *r = app->route->replay;
    if (r->next == r->n) return MC_APP_OK;
    return mc_app_fail(app, "%llu tokens of %s are left over: replay it with all the tokens it was recorded with",
                       (unsigned long long)r->left, r->path);
}
