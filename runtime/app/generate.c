/* generate: continues sequences of tokens. A model without state is fed the whole sequence again for each token. */
#include "runtime/app/app.h"
#include "runtime/npy.h"

#include <stdlib.h>
#include <string.h>

/* What moec_sample adds to the seed for each sequence. */
#define DRAWS_OF_A_SEQUENCE UINT64_C(0xD1B54A32D192ED03)

typedef struct generation {
    mc_app *app;
    mc_app_ids prompt;
    size_t first, count; /* of the sequences those of this rank */
    moec_sampling sampling;
    int64_t max_new;
    int32_t eos[MC_APP_MAX_EOS];
    size_t n_eos;
    int32_t *all;  /* [n_sequences][n_tokens + max_new] */
    int32_t *next; /* [n_sequences] */
    bool *ended;
    bool text;
} generation;

/* ids: of this rank's sequences. */
static int
feed(generation *g, const int32_t *ids, size_t n_tokens, float *logits)
{
    return mc_app_feed(g->app, ids, g->count, n_tokens, logits);
}

static int
feed_prompt(generation *g)
{
    const char *path = mc_app_value(g->app, MC_APP_LOGITS);
    size_t n_sequences = g->prompt.n_sequences, n_tokens = g->prompt.n_tokens, n_bytes;
    size_t vocab = (size_t)mc_app_vocab(g->app);
    const int32_t *own = g->prompt.ids + g->first * n_tokens;
    if (!path) return feed(g, own, n_tokens, NULL);
    mc_pages pages;
    mc_fault e;
    int64_t dims[3] = {(int64_t)n_sequences, (int64_t)n_tokens, (int64_t)vocab};
    if (__builtin_mul_overflow(g->count * n_tokens, vocab * sizeof(float), &n_bytes) ||
        mc_pages_alloc(n_bytes, "logits", &pages, &e) != MOEC_OK)
        return mc_app_fail(g->app, "no memory for the logits of %zu tokens", g->count * n_tokens);
    int code = feed(g, own, n_tokens, (float *)(void *)pages.data);
    if (code == MC_APP_OK) code = mc_app_collect(g->app, n_sequences, n_tokens * vocab * sizeof(float), &pages);
    if (code == MC_APP_OK && mc_app_speaks(g->app) && mc_npy_write(path, MOEC_F32, 3, dims, pages.data, &e) != MOEC_OK)
        code = mc_app_fail(g->app, "%s", e.text);
    mc_pages_free(&pages);
    return code;
}

static bool
is_eos(const generation *g, int32_t id)
{
    for (size_t i = 0; i < g->n_eos; i++)
        if (g->eos[i] == id) return true;
    return false;
}

/* Each rank draws for its own sequences; then all ranks know all ids, and so when to stop. */
static int
draw_own(generation *g, int64_t step)
{
    moec_error error;
    for (size_t b = 0; b < g->count; b++)
        if (moec_sample(g->app->session, b, &g->sampling, (uint64_t)step, &g->next[g->first + b], &error) != MOEC_OK)
            return mc_app_fail(g->app, "%s", error.text);
    return mc_app_share(g->app, g->next, g->prompt.n_sequences, sizeof *g->next);
}

/* Draws the next id of every sequence; *all_ended: none is left. Text appears as it is made. */
static int
draw(generation *g, int64_t step, bool *all_ended)
{
    int code = draw_own(g, step);
    if (code != MC_APP_OK) return code;
    size_t row = g->prompt.n_tokens + (size_t)g->max_new;
    *all_ended = true;
    for (size_t b = 0; b < g->prompt.n_sequences; b++) {
        g->ended[b] = g->ended[b] || is_eos(g, g->next[b]);
        g->all[b * row + g->prompt.n_tokens + (size_t)step] = g->ended[b] ? -1 : g->next[b];
        *all_ended = *all_ended && g->ended[b];
        if (!g->text || g->ended[b] || !mc_app_speaks(g->app)) continue;
        putchar(g->next[b]);
        if (fflush(stdout) != 0) return MC_APP_FAILED;
    }
    return MC_APP_OK;
}

static int
feed_next(generation *g, int64_t step)
{
    if (moec_model_has_state(g->app->model)) return feed(g, g->next + g->first, 1, NULL);
    size_t row = g->prompt.n_tokens + (size_t)g->max_new, n = g->prompt.n_tokens + (size_t)step + 1;
    int32_t *dense = malloc(g->count * n * sizeof *dense + 1);
    if (!dense) return mc_app_fail(g->app, "out of memory");
    for (size_t b = 0; b < g->count; b++)
        for (size_t t = 0; t < n; t++) {
            int32_t id = g->all[(g->first + b) * row + t];
            dense[b * n + t] = id < 0 ? g->next[g->first + b] : id; /* ended sequences go on unseen */
        }
    int code = feed(g, dense, n, NULL);
    free(dense);
    return code;
}

static int
print_ids(const generation *g)
{
    size_t row = g->prompt.n_tokens + (size_t)g->max_new;
    for (size_t b = 0; b < g->prompt.n_sequences; b++) {
        const int32_t *ids = g->all + b * row + g->prompt.n_tokens;
        for (int64_t t = 0; t < g->max_new && ids[t] >= 0; t++) printf(t ? ",%d" : "%d", ids[t]);
        putchar('\n');
    }
    return MC_APP_OK;
}

static int
continue_all(generation *g)
{
    size_t row = g->prompt.n_tokens + (size_t)g->max_new, n = g->prompt.n_sequences;
    g->all = malloc(n * row * sizeof *g->all);
    g->next = calloc(n, sizeof *g->next);
    g->ended = calloc(n, sizeof *g->ended);
    if (!g->all || !g->next || !g->ended) return mc_app_fail(g->app, "out of memory");
    memset(g->all, 0xFF, n * row * sizeof *g->all); /* -1: nothing there */
    for (size_t b = 0; b < n; b++)
        memcpy(g->all + b * row, g->prompt.ids + b * g->prompt.n_tokens, g->prompt.n_tokens * sizeof *g->all);
    for (int64_t step = 0; step < g->max_new; step++) {
        bool all_ended;
        int code = draw(g, step, &all_ended);
        if (code == MC_APP_OK && !all_ended && step + 1 < g->max_new) code = feed_next(g, step);
        if (code != MC_APP_OK) return code;
        if (all_ended) break;
    }
    if (!mc_app_speaks(g->app)) return MC_APP_OK;
    if (!g->text) return print_ids(g);
    putchar('\n');
    return MC_APP_OK;
}

static int
generate(generation *g)
{
    mc_app *app = g->app;
    int64_t seed;
    bool replay = mc_app_has(app, MC_APP_REPLAY), trace = replay || mc_app_has(app, MC_APP_TRACE);
    bool logits = trace || mc_app_has(app, MC_APP_LOGITS);
    if (!mc_app_integer(app, MC_APP_MAX_NEW, 0, 1 << 30, logits ? 0 : 32, &g->max_new) ||
        !mc_app_real(app, MC_APP_TEMPERATURE, 0, 1e6, 0, &g->sampling.temperature) ||
        !mc_app_real(app, MC_APP_TOP_P, 0, 1, 1, &g->sampling.top_p) ||
        !mc_app_integer(app, MC_APP_SEED, INT64_MIN, INT64_MAX, 0, &seed))
        return MC_APP_USAGE;
    g->sampling.seed = (uint64_t)seed;
    g->text = mc_app_has(app, MC_APP_PROMPT);
    if (g->text && !g->max_new && !logits) return mc_app_usage(app, "--max-new 0 leaves nothing to do");
    if (replay && g->max_new)
        return mc_app_usage(app, "--replay adds no tokens: give all of the trace's with --ids, and no --max-new");
    int code = mc_app_read_ids(app, &g->prompt);
    if (code != MC_APP_OK) return code;
    g->first = mc_app_first(app, g->prompt.n_sequences, app->rank);
    g->count = mc_app_count(app, g->prompt.n_sequences);
    g->sampling.seed += DRAWS_OF_A_SEQUENCE * g->first; /* the session counts sequences from 0 */
    moec_session_options options = {.max_batch = (int64_t)mc_app_most(app, g->prompt.n_sequences),
                                    .max_positions = (int64_t)g->prompt.n_tokens + (g->max_new ? g->max_new - 1 : 0)};
    if (trace) options.max_new = (int64_t)g->prompt.n_tokens; /* what is fed at once is one step */
    code = mc_app_open(app, &options);
    g->n_eos = mc_app_eos(app, g->eos);
    if (code == MC_APP_OK) code = feed_prompt(g);
    return code == MC_APP_OK && g->max_new ? continue_all(g) : code;
}

int
mc_app_generate(mc_app *app)
{
    generation g = {.app = app};
    int code = generate(&g);
    free(g.prompt.ids);
    free(g.all);
    free(g.next);
    free(g.ended);
    return code;
}
