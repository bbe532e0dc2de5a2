/* measure: how fast a model runs here, and how well it predicts a file. */
#include "runtime/app/app.h"
#include "runtime/base/clock.h"
#include "runtime/base/dtype.h"
#include "runtime/base/file.h"
#include "runtime/pages.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_LABELS = 12, REPEATS = 3 };

static void
print_profile(mc_app *app)
{
    moec_profile_entry e;
    double total = 0;
    for (size_t i = 0; moec_session_profile(app->session, i, &e); i++) total += e.seconds;
    printf("where the time goes (%.3f s in all):\n", total);
    for (size_t i = 0; i < N_LABELS && moec_session_profile(app->session, i, &e); i++)
        printf("  %5.1f %%  %9.1f us each  %s\n", 100 * e.seconds / total, 1e6 * e.seconds / (double)e.n_launches,
               e.label);
}

/* The beginning of a line: what the figures were measured on. */
static void
print_machine(const mc_app *app)
{
    if (app->gpu)
        mc_app_print_device(app);
    else
        printf("threads %u, ", moec_session_n_threads(app->session));
    if (app->size > 1) printf("ranks %u, ", app->size);
}

/* " on each of 4 ranks" */
static const char *
each_rank(const mc_app *app, char *text, size_t n_bytes)
{
    text[0] = 0;
    if (app->size > 1) snprintf(text, n_bytes, " on each of %u ranks", app->size);
    return text;
}

static void
report_tokens(mc_app *app, int64_t n_prompt, double prefill, int64_t n_new, double decode)
{
    char each[40];
    each_rank(app, each, sizeof each);
    print_machine(app);
    printf("weights %.1f MiB, session %.1f MiB\n", (double)moec_weights_bytes(app->weights) / (1 << 20),
           (double)moec_session_bytes(app->session) / (1 << 20));
    printf("prefill %lld tokens%s: %.1f tokens/s (%.3f ms)\n", (long long)n_prompt, each,
           (double)app->size * (double)n_prompt / prefill, 1e3 * prefill);
    if (decode > 0)
        printf("decode %lld tokens%s: %.1f tokens/s (%.3f ms each)\n", (long long)n_new, each,
               (double)app->size * (double)n_new / decode, 1e3 * decode / (double)n_new);
    print_profile(app);
}

/* Every rank has one sequence of its own. */
static int
bench_tokens(mc_app *app)
{
    int64_t n_new, n_prompt = 512;
    moec_error error;
    moec_tensor_info in;
    if (!mc_app_integer(app, MC_APP_MAX_NEW, 1, 1 << 20, 32, &n_new)) return MC_APP_USAGE;
    for (uint32_t i = 0; i < app->abi->n_syms; i++) /* leave room in short models */
        if (app->abi->syms[i].hi && i != app->abi->batch_sym && app->abi->syms[i].hi < 2 * (n_prompt + n_new)) {
            n_prompt = app->abi->syms[i].hi / 2 > 0 ? app->abi->syms[i].hi / 2 : 1;
            if (n_new > n_prompt) n_new = n_prompt;
        }
    moec_session_options options = {.max_positions = n_prompt + n_new, .profile = true};
    int code = mc_app_open(app, &options);
    if (code != MC_APP_OK || moec_model_input(app->model, 0, &in) != MOEC_OK) return code;
    int64_t vocab = in.limit ? in.limit : moec_model_vocab(app->model);
    int32_t *ids = malloc((size_t)(n_prompt + n_new) * sizeof *ids);
    if (!ids) return mc_app_fail(app, "out of memory");
    for (int64_t i = 0; i < n_prompt + n_new; i++) ids[i] = (int32_t)((uint64_t)(i * 2654435761) % (uint64_t)vocab);
    double best = INFINITY, decode = 0;
    moec_status s = MOEC_OK;
    for (int r = 0; r <= REPEATS && s == MOEC_OK; r++) { /* the first one touches the memory */
        moec_session_reset(app->session);
        double begin = mc_seconds();
        s = moec_session_feed(app->session, ids, 1, (size_t)n_prompt, NULL, &error);
        if (r && mc_seconds() - begin < best) best = mc_seconds() - begin;
    }
    if (moec_model_has_state(app->model)) {
        double begin = mc_seconds();
        for (int64_t i = 0; i < n_new && s == MOEC_OK; i++)
            s = moec_session_feed(app->session, ids + n_prompt + i, 1, 1, NULL, &error);
        decode = mc_seconds() - begin;
    }
    free(ids);
    if (s != MOEC_OK) return mc_app_fail(app, "%s", error.text);
    if (mc_app_speaks(app)) report_tokens(app, n_prompt, best, n_new, decode);
    return MC_APP_OK;
}

/* ---- models with plain tensors -------------------------------------------------------------------------------- */

static int64_t
bench_size(const mc_app *app, uint32_t sym)
{
    const moec_abi_sym *d = &app->abi->syms[sym];
    size_t len = strlen(d->name);
    for (int i = 0; i < app->n_values[MC_APP_SIZE]; i++) {
        const char *text = app->values[MC_APP_SIZE][i];
        if (strncmp(text, d->name, len) == 0 && text[len] == '=') return strtoll(text + len + 1, NULL, 10);
    }
    int64_t n = 512 < d->lo ? d->lo : 512;
    return d->hi && d->hi < n ? d->hi : n;
}

/* Inputs of plausible values: small numbers that repeat after a prime, ids inside their limit. */
static int
make_input(const mc_app *app, uint32_t index, mc_pages *pages, moec_tensor *out)
{
    const moec_abi_tensor *t = &app->abi->inputs[index];
    mc_fault e;
    *out = (moec_tensor){.name = t->name, .dtype = (moec_dtype)t->dtype, .rank = t->rank};
    size_t n = 1;
    for (uint32_t d = 0; d < t->rank; d++) {
        int64_t v = t->dims[d].mul;
        for (int i = 0; i < 8 && t->dims[d].syms[i] != 0xFF; i++) v *= bench_size(app, t->dims[d].syms[i]);
        out->dims[d] = v + t->dims[d].add;
        if (out->dims[d] < 0 || __builtin_mul_overflow(n, (size_t)out->dims[d], &n) || n > SIZE_MAX / 16)
            return mc_app_fail(app, "input %s is too large at these sizes", t->name);
    }
    out->n_bytes = n * moec_dtype_bytes(out->dtype);
    if (mc_pages_alloc(out->n_bytes, t->name, pages, &e) != MOEC_OK) return mc_app_fail(app, "%s", e.text);
    out->data = pages->data;
    for (size_t i = 0; i < n; i++) {
        double v = t->limit ? (double)(i * 7919 % (size_t)t->limit) : (double)(i % 251) / 125 - 1;
        mc_store_elem(out->dtype, out->data, i, v);
    }
    return MC_APP_OK;
}

static void
report_tensors(mc_app *app, double best)
{
    char each[40];
    print_machine(app);
    printf("weights %.1f MiB\n", (double)moec_weights_bytes(app->weights) / (1 << 20));
    for (uint32_t i = 0; i < app->abi->n_syms; i++)
        if (app->abi->syms[i].kind < 3) printf("%s = %lld, ", app->abi->syms[i].name, (long long)bench_size(app, i));
    printf("%.3f ms (best)%s\n", 1e3 * best, each_rank(app, each, sizeof each));
    print_profile(app);
}

static int
bench_tensors(mc_app *app)
{
    enum { MAX_INPUTS = 16 };
    mc_pages pages[MAX_INPUTS] = {{0}};
    moec_tensor inputs[MAX_INPUTS];
    moec_error error;
    moec_session_options options = {.profile = true};
    uint32_t n = app->abi->n_inputs;
    if (n > MAX_INPUTS) return mc_app_fail(app, "--bench: more than %d inputs", MAX_INPUTS);
    if (app->abi->ep)
        app->share = (moec_limit){app->abi->syms[app->abi->ep->rank_sym].name, bench_size(app, app->abi->ep->rank_sym)};
    int code = mc_app_open(app, &options);
    for (uint32_t i = 0; i < n && code == MC_APP_OK; i++) code = make_input(app, i, &pages[i], &inputs[i]);
    double best = INFINITY, total = 0;
    bool more = true;
    for (int r = 0; code == MC_APP_OK && more; r++) {
        moec_session_reset(app->session);
        if (r == 1) moec_session_profile_clear(app->session);
        double begin = mc_seconds();
        if (moec_session_run(app->session, inputs, n, NULL, 0, &error) != MOEC_OK)
            code = mc_app_fail(app, "%s", error.text);
        double took = mc_seconds() - begin;
        total += took;
        if (r && took < best) best = took;
        more = r < REPEATS || (total < 0.5 && r < 1000);
        if (code == MC_APP_OK) code = mc_app_decide(app, &more);
    }
    for (uint32_t i = 0; i < n; i++) mc_pages_free(&pages[i]);
    if (code == MC_APP_OK && mc_app_speaks(app)) report_tensors(app, best);
    return code;
}

int
mc_app_bench(mc_app *app)
{
    return moec_model_vocab(app->model) ? bench_tokens(app) : bench_tensors(app);
}

/* ---- bits per byte -------------------------------------------------------------------------------------------- */

/* -log2 of the probability that row `logits` gives `id`. */
static double
surprise(const float *logits, size_t vocab, int32_t id)
{
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < vocab; i++)
        if (logits[i] > max) max = logits[i];
    for (size_t i = 0; i < vocab; i++) sum += exp((double)logits[i] - max);
    return (log(sum) + max - (double)logits[id]) / log(2);
}

/* Each rank takes one window at a time, or none when they run out; what they find is added window by window. */
static int
score_windows(mc_app *app, const unsigned char *bytes, size_t window, size_t n_windows, double *out_bits)
{
    size_t vocab = (size_t)mc_app_vocab(app);
    int32_t *ids = malloc(window * sizeof *ids);
    float *logits = malloc(window * vocab * sizeof *logits);
    double *bits = calloc(app->size, sizeof *bits);
    int code = ids && logits && bits ? MC_APP_OK : mc_app_fail(app, "out of memory");
    for (size_t w = 0; w < n_windows && code == MC_APP_OK; w += app->size) {
        bool mine = w + app->rank < n_windows;
        for (size_t i = 0; i < window && mine; i++) ids[i] = bytes[(w + app->rank) * window + i];
        moec_session_reset(app->session);
        code = mc_app_feed(app, ids, mine, window, logits);
        bits[app->rank] = 0;
        for (size_t i = 1; i < window && mine && code == MC_APP_OK; i++)
            bits[app->rank] += surprise(logits + (i - 1) * vocab, vocab, ids[i]);
        if (code == MC_APP_OK) code = mc_app_share(app, bits, app->size, sizeof *bits);
        for (uint32_t r = 0; r < app->size; r++) *out_bits += bits[r];
    }
    free(ids);
    free(logits);
    free(bits);
    return code;
}

int
mc_app_score(mc_app *app)
{
    int64_t window;
    mc_mapping m;
    mc_fault e;
    double bits = 0;
    if (mc_app_vocab(app) != 256)
        return mc_app_usage(app, "--score works for models whose tokens are bytes (256); this one has %lld",
                            (long long)mc_app_vocab(app));
    if (!mc_app_integer(app, MC_APP_WINDOW, 2, 1 << 20, 256, &window)) return MC_APP_USAGE;
    moec_session_options options = {.max_positions = window, .max_new = window};
    if (mc_file_map(mc_app_value(app, MC_APP_SCORE), &m, &e) != MOEC_OK) return mc_app_fail(app, "%s", e.text);
    size_t n_windows = m.n_bytes / (size_t)window;
    int code = n_windows ? mc_app_open(app, &options)
                         : mc_app_fail(app, "%s is shorter than one window of %lld bytes",
                                       mc_app_value(app, MC_APP_SCORE), (long long)window);
    if (code == MC_APP_OK) code = score_windows(app, m.data, (size_t)window, n_windows, &bits);
    mc_file_unmap(&m);
    if (code != MC_APP_OK) return code;
    size_t scored = n_windows * (size_t)(window - 1);
    if (isnan(bits)) return mc_app_fail(app, "a logit is not a number: the weights hold values that are not finite");
    if (!mc_app_speaks(app)) return MC_APP_OK;
    printf("%.6f bits per byte over %zu bytes in %zu windows of %lld\n", bits / (double)scored, scored, n_windows,
           (long long)window);
    return MC_APP_OK;
}
