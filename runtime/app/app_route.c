/* A model compiled by @trace has its layers' choices as outputs behind its own; after a step they lie in the session's
 * memory, since nobody asks for them, and are written from there. One compiled by @replay has inputs for them, too. */
#define _GNU_SOURCE
#include "runtime/app/app_route.h"

#include "runtime/args.h"
#include "runtime/base/hash.h"
#include "runtime/session.h"

#include <stdlib.h>
#include <string.h>

/* ---- layers ----------------------------------------------------------------------------------------------------- */

static bool
is_choice(const moec_abi_tensor *t)
{
    bool fits = t->dtype == MOEC_I32 && t->rank > 0 && t->limit > 0 && t->limit <= MC_TRACE_MAX_EXPERTS;
    const moec_abi_expr *k = &t->dims[fits ? t->rank - 1 : 0];
    return fits && mc_expr_is_const(k) && mc_expr_const(k) > 0 && mc_expr_const(k) <= MC_TRACE_MAX_TOP_K;
}

static uint32_t
input_of(const moec_abi_model *m, const char *output)
{
    size_t n = strlen(output);
    for (uint32_t i = 0; i < m->n_inputs; i++)
        if (strncmp(m->inputs[i].name, output, n) == 0 && strcmp(m->inputs[i].name + n, ".replay") == 0) return i;
    return UINT32_MAX;
}

/* "layers.3.mlp.experts" is of "layers.3.mlp"; a second route of it, "layers.3.mlp.experts.2", of "layers.3.mlp.2". */
static char *
layer_name(const char *output)
{
    static const char word[] = ".experts";
    char *name = strdup(output), *end = NULL;
    for (char *p = name; p && (p = strstr(p, word)); p += sizeof word - 1)
        if (!p[sizeof word - 1] || p[sizeof word - 1] == '.') end = p;
    if (end) memmove(end, end + sizeof word - 1, strlen(end + sizeof word - 1) + 1);
    return name;
}

static int
compare_hashes(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Of the parameters' names and sizes, however they are packed; 0: out of memory. */
static uint64_t
identity(const moec_abi_model *m)
{
    uint64_t *all = calloc((size_t)m->n_weights * 2 + 1, sizeof *all), hash = 0;
    size_t n = 0, kept = 0;
    for (uint32_t i = 0; all && i < m->n_weights; i++) {
        const moec_abi_weight *w = &m->weights[i];
        uint64_t sizes = w->scale_of ? 0 : mc_hash64(w->dims, w->rank * sizeof *w->dims, w->rank);
        if (!w->scale_of) all[n++] = mc_hash64(w->path, strlen(w->path), sizes);
        if (!w->scale_of && w->path2) all[n++] = mc_hash64(w->path2, strlen(w->path2), sizes);
    }
    if (n) qsort(all, n, sizeof *all, compare_hashes);
    for (size_t i = 0; i < n; i++) /* one that is packed twice counts once */
        if (!kept || all[kept - 1] != all[i]) all[kept++] = all[i];
    if (n) hash = mc_hash64(all, kept * sizeof *all, 0);
    free(all);
    return hash;
}

static int
find_layers(const mc_app *app, mc_app_route *r)
{
    const moec_abi_model *m = app->abi;
    r->named = calloc((size_t)m->n_outputs + 1, sizeof *r->named);
    r->layers = calloc((size_t)m->n_outputs + 1, sizeof *r->layers);
    if (!r->named || !r->layers) return mc_app_fail(app, "out of memory");
    for (uint32_t i = 0; i < m->n_outputs; i++) {
        const moec_abi_tensor *t = &m->outputs[i];
        if (!is_choice(t)) continue;
        uint32_t k = (uint32_t)mc_expr_const(&t->dims[t->rank - 1]);
        mc_route_layer *l = &r->layers[r->info.n_layers];
        *l = (mc_route_layer){.name = layer_name(t->name), .output = i, .input = input_of(m, t->name)};
        r->named[r->info.n_layers++] = (mc_trace_layer){.name = l->name, .n_experts = (uint32_t)t->limit, .top_k = k};
        l->loads = calloc((size_t)t->limit, sizeof *l->loads);
        if (!l->name || !l->loads) return mc_app_fail(app, "out of memory");
    }
    r->info.model = m->name;
    r->info.layers = r->named;
    r->info.hash = identity(m);
    return MC_APP_OK;
}

static bool
wants_choices(const moec_abi_model *m)
{
    for (uint32_t i = 0; i < m->n_outputs; i++)
        if (is_choice(&m->outputs[i]) && input_of(m, m->outputs[i].name) != UINT32_MAX) return true;
    return false;
}

static int
check(const mc_app *app, const mc_app_route *r)
{
    bool replay = mc_app_has(app, MC_APP_REPLAY), wants = wants_choices(app->abi);
    if (replay && !wants)
        return mc_app_usage(app,
                            "its program takes no choices of experts: compile it with --passes=@replay, or say moec "
                            "route --replay");
    if (!r->info.n_layers)
        return mc_app_usage(app, "its program tells no choices of experts: it has no layers of experts, or was not "
                                 "compiled to tell (moec route, or --passes=@trace)");
    if (wants && !replay) return mc_app_usage(app, "its program takes choices of experts: say --replay TRACE");
    if (app->size > 1)
        return mc_app_usage(app, "choices are recorded and replayed on one rank, not by a group of %u", app->size);
    if (mc_app_has(app, MC_APP_BENCH))
        return mc_app_usage(app, "--bench makes up its tokens: leave out --trace and --replay");
    if (app->gpu) return mc_app_usage(app, "choices are recorded and replayed on the processor: say --device cpu");
    return MC_APP_OK;
}

int
mc_app_route_begin(mc_app *app)
{
    bool asked = mc_app_has(app, MC_APP_TRACE) || mc_app_has(app, MC_APP_REPLAY);
    if (!asked && !wants_choices(app->abi)) return MC_APP_OK;
    mc_app_route *r = app->route = calloc(1, sizeof *r);
    int code = r ? find_layers(app, r) : mc_app_fail(app, "out of memory");
    return code == MC_APP_OK ? check(app, r) : code;
}

int
mc_app_route_open(mc_app *app)
{
    const char *trace = mc_app_value(app, MC_APP_TRACE), *replay = mc_app_value(app, MC_APP_REPLAY);
    mc_app_route *r = app->route;
    mc_fault e;
    int code = r && replay ? mc_replay_open(app, replay, &r->replay) : MC_APP_OK;
    if (code == MC_APP_OK && r && trace && mc_trace_create(trace, &r->info, &r->writer, &e) != MOEC_OK)
        code = mc_app_fail(app, "%s", e.text);
    return code;
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* What the layer chose in the session's last step. */
static const int32_t *
chosen(const mc_app *app, const mc_route_layer *l, uint32_t top_k, size_t *out_tokens)
{
    const moec_session *s = app->session;
    int64_t dims[MOEC_ABI_MAX_RANK];
    size_t n_bytes = 0;
    if (!mc_args_shape(&app->abi->outputs[l->output], s->exec.syms, dims, &n_bytes)) return NULL;
    *out_tokens = n_bytes / sizeof(int32_t) / top_k;
    return (const int32_t *)(const void *)(s->outputs.data + s->output_offsets[l->output]);
}

static int
compare_choices(const mc_app *app, uint32_t layer, const int32_t *ids, size_t n)
{
    mc_app_route *r = app->route;
    const mc_route_layer *l = &r->layers[layer];
    uint64_t other = 0;
    for (size_t i = 0; i < n && i < l->n_given; i++) other += ids[i] != l->given[i];
    r->n_choices += n;
    r->n_other += other;
    if (l->input != UINT32_MAX || !other) return MC_APP_OK;
    return mc_app_fail(app,
                       "%s looks its experts up by token, and the trace has others: replay it with the tokens it was "
                       "recorded with",
                       r->info.layers[layer].name);
}

/* After a step. */
static int
record(mc_app *app)
{
    mc_app_route *r = app->route;
    mc_fault e;
    for (uint32_t i = 0; i < r->info.n_layers; i++) {
        uint32_t k = r->named[i].top_k;
        size_t n_tokens = 0;
        const int32_t *ids = chosen(app, &r->layers[i], k, &n_tokens);
        if (!ids || n_tokens > UINT32_MAX) return mc_app_fail(app, "a step of %zu tokens is too large", n_tokens);
        for (size_t j = 0; j < n_tokens * k; j++)
            if (ids[j] >= 0 && (uint32_t)ids[j] < r->named[i].n_experts) r->layers[i].loads[ids[j]]++;
        const mc_trace_record rec = {.step = r->n_steps, .layer = i, .n_tokens = (uint32_t)n_tokens, .ids = ids};
        if (r->writer && mc_trace_add(r->writer, &rec, &e) != MOEC_OK) return mc_app_fail(app, "%s", e.text);
        int code = r->replay ? compare_choices(app, i, ids, n_tokens * k) : MC_APP_OK;
        if (code != MC_APP_OK) return code;
        if (i == 0) r->n_tokens += n_tokens;
    }
    r->n_steps++;
    return MC_APP_OK;
}

/* A step of a model that is told what to choose: the caller's inputs, whose leading dimensions are `lead`, and the
 * layers' choices. */
static int
run_told(mc_app *app, const moec_tensor *inputs, size_t n_inputs, const int64_t *lead, uint32_t n_lead, size_t n_tokens,
         moec_tensor *outputs, size_t n_outputs)
{
    const mc_app_route *r = app->route;
    moec_error error;
    moec_tensor *all = calloc(n_inputs + r->info.n_layers, sizeof *all);
    if (!all) return mc_app_fail(app, "out of memory");
    size_t n = n_inputs;
    memcpy(all, inputs, n_inputs * sizeof *all);
    for (uint32_t i = 0; i < r->info.n_layers; i++) {
        const mc_route_layer *l = &r->layers[i];
        if (l->input == UINT32_MAX) continue;
        const moec_abi_tensor *want = &app->abi->inputs[l->input];
        moec_tensor *t = &all[n++];
        *t = (moec_tensor){.name = want->name, .dtype = MOEC_I32, .rank = want->rank, .data = l->given};
        t->n_bytes = l->n_given * sizeof *l->given;
        bool flat = want->rank != n_lead + 1;
        for (uint32_t d = 0; d + 1 < want->rank; d++) t->dims[d] = !flat ? lead[d] : d ? 1 : (int64_t)n_tokens;
        t->dims[want->rank - 1] = r->named[i].top_k;
    }
    int code = moec_session_run(app->session, all, n, outputs, n_outputs, &error) == MOEC_OK
                   ? MC_APP_OK
                   : mc_app_fail(app, "%s", error.text);
    free(all);
    return code == MC_APP_OK ? record(app) : code;
}

int
mc_app_run(mc_app *app, const moec_tensor *inputs, size_t n_inputs, moec_tensor *outputs, size_t n_outputs)
{
    moec_error error;
    size_t n_tokens = 1, each;
    if (!app->route || !app->route->replay) {
        if (moec_session_run(app->session, inputs, n_inputs, outputs, n_outputs, &error) != MOEC_OK)
            return mc_app_fail(app, "%s", error.text);
        return app->route ? record(app) : MC_APP_OK;
    }
    uint32_t n_lead = n_inputs && inputs[0].rank ? inputs[0].rank - 1 : 0;
    for (uint32_t d = 0; d < n_lead; d++) n_tokens *= (size_t)inputs[0].dims[d];
    int code = mc_replay_step(app, 1, n_tokens, &each);
    if (code != MC_APP_OK) return code;
    return run_told(app, inputs, n_inputs, inputs[0].dims, n_lead, n_tokens, outputs, n_outputs);
}

/* One step of the trace: `each` of n_tokens ids of every sequence, from column `at` on. */
static int
feed_told(mc_app *app, const int32_t *ids, size_t n_sequences, size_t n_tokens, size_t at, size_t each, float *logits)
{
    size_t vocab = (size_t)mc_app_vocab(app), n = n_sequences * each;
    int64_t lead[2] = {(int64_t)n_sequences, (int64_t)each};
    int32_t *columns = calloc(n, sizeof *columns);
    float *rows = logits ? calloc(n * vocab, sizeof *rows) : NULL;
    int code = columns && (rows || !logits) ? MC_APP_OK : mc_app_fail(app, "out of memory");
    for (size_t b = 0; code == MC_APP_OK && b < n_sequences; b++)
        memcpy(columns + b * each, ids + b * n_tokens + at, each * sizeof *ids);
    const moec_tensor in = {.name = app->abi->inputs[0].name,
                            .dtype = MOEC_I32,
                            .rank = 2,
                            .dims = {lead[0], lead[1]},
                            .data = columns,
                            .n_bytes = n * sizeof *columns};
    moec_tensor out = {.name = app->abi->outputs[0].name, .data = rows, .n_bytes = n * vocab * sizeof *rows};
    if (code == MC_APP_OK) code = run_told(app, &in, 1, lead, 2, n, &out, logits ? 1 : 0);
    for (size_t b = 0; code == MC_APP_OK && logits && b < n_sequences; b++)
        memcpy(logits + (b * n_tokens + at) * vocab, rows + b * each * vocab, each * vocab * sizeof *logits);
    free(columns);
    free(rows);
    return code;
}

int
mc_app_feed(mc_app *app, const int32_t *ids, size_t n_sequences, size_t n_tokens, float *logits)
{
    moec_error error;
    if (app->route && app->route->replay) {
        int code = MC_APP_OK;
        for (size_t at = 0, each = 0; code == MC_APP_OK && at < n_tokens; at += each) {
            code = mc_replay_step(app, n_sequences, n_tokens - at, &each);
            if (code == MC_APP_OK) code = feed_told(app, ids, n_sequences, n_tokens, at, each, logits);
        }
        return code;
    }
    if (moec_session_feed(app->session, ids, n_sequences, n_tokens, logits, &error) != MOEC_OK)
        return mc_app_fail(app, "%s", error.text);
    return app->route ? record(app) : MC_APP_OK;
}

int64_t
mc_app_vocab(const mc_app *app)
{
    int64_t vocab = moec_model_vocab(app->model);
    const moec_abi_model *m = app->abi;
    if (vocab || !mc_app_has(app, MC_APP_REPLAY) || !m->n_inputs || !m->n_outputs) return vocab;
    const moec_abi_tensor *in = &m->inputs[0], *out = &m->outputs[0];
    bool language = in->dtype == MOEC_I32 && in->rank == 2 && out->dtype == MOEC_F32 && out->rank == 3;
    return language && mc_expr_is_const(&out->dims[2]) ? mc_expr_const(&out->dims[2]) : 0;
}

/* ---- the end ---------------------------------------------------------------------------------------------------- */

static void
print_layer(const mc_app_route *r, uint32_t layer)
{
    const mc_trace_layer *l = &r->named[layer];
    const uint64_t *loads = r->layers[layer].loads;
    uint64_t total = 0, idle = 0;
    uint32_t busiest = 0;
    for (uint32_t e = 0; e < l->n_experts; e++) {
        total += loads[e];
        idle += !loads[e];
        if (loads[e] > loads[busiest]) busiest = e;
    }
    double mean = (double)total / l->n_experts;
    printf("%s: %u of %u experts a token; the busiest, %u, has %.2f times the mean load, idle: %llu\n", l->name,
           l->top_k, l->n_experts, busiest, mean > 0 ? (double)loads[busiest] / mean : 0, (unsigned long long)idle);
}

int
mc_app_route_finish(mc_app *app)
{
    mc_app_route *r = app->route;
    mc_fault e;
    if (!r) return MC_APP_OK;
    int code = r->replay ? mc_replay_finish(app) : MC_APP_OK;
    if (code != MC_APP_OK) return code;
    if (r->writer) {
        moec_status s = mc_trace_commit(r->writer, &e);
        r->writer = NULL;
        if (s != MOEC_OK) return mc_app_fail(app, "%s", e.text);
    }
    for (uint32_t i = 0; i < r->info.n_layers; i++) print_layer(r, i);
    if (r->replay)
        printf("replayed: tokens %llu, steps %llu; of %llu choices the model itself would have made %llu otherwise\n",
               (unsigned long long)r->n_tokens, (unsigned long long)r->n_steps, (unsigned long long)r->n_choices,
               (unsigned long long)r->n_other);
    else
        printf("recorded: tokens %llu, steps %llu\n", (unsigned long long)r->n_tokens, (unsigned long long)r->n_steps);
    return MC_APP_OK;
}

void
mc_app_route_close(mc_app *app)
{
    mc_app_route *r = app->route;
    if (!r) return;
    mc_trace_abandon(r->writer);
    mc_replay_close(r->replay);
    for (uint32_t i = 0; r->layers && i < r->info.n_layers; i++) {
        free(r->layers[i].name);
        free(r->layers[i].loads);
        free(r->layers[i].given);
    }
    free(r->layers);
    free(r->named);
    free(r);
    app->route = NULL;
}
