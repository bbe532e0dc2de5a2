/* app: chooses what to do, opens model, weights and session, and sees to it that output arrives. */
#define _GNU_SOURCE
#include "runtime/app/app.h"

#include "moec/gpu.h"
#include "runtime/base/file.h"
#include "runtime/ranks.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One write, so that lines of several ranks stay whole. */
static void
say(const mc_app *app, const char *format, va_list args)
{
    char line[MOEC_ERROR_BYTES + PATH_MAX], rank[24] = "";
    moec_error text;
    vsnprintf(text.text, sizeof text.text, format, args);
    if (app->size > 1) snprintf(rank, sizeof rank, "rank %u: ", app->rank);
    snprintf(line, sizeof line, "%.*s: %s%s\n", PATH_MAX - 64, app->name, rank, text.text);
    fflush(stdout);
    fputs(line, stderr);
    if (app->said && !app->said->text[0]) *app->said = text;
}

int
mc_app_usage(const mc_app *app, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(app, format, args);
    va_end(args);
    return MC_APP_USAGE;
}

int
mc_app_fail(const mc_app *app, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(app, format, args);
    va_end(args);
    return MC_APP_FAILED;
}

int
mc_app_finish_output(const mc_app *app)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return MC_APP_OK;
    if (errno == EPIPE) return MC_APP_FAILED; /* the reader has seen enough */
    return mc_app_fail(app, "cannot write the output: %s", errno ? strerror(errno) : "an earlier write failed");
}

void
mc_app_show_packing(void *last_percent, uint64_t done, uint64_t total)
{
    int *last = last_percent;
    int percent = total ? (int)(done * 100 / total) : 100;
    if (percent == *last) return;
    *last = percent;
    fprintf(stderr, "\rpacking weights %d%%%s", percent, percent == 100 ? "\n" : "");
}

/* NAME.weights (for a GPU NAME.gpu-weights) beside the executable, where `moec compile --weights` puts it. */
static bool
is_there(const mc_app *app, const char *path)
{
    char *own = mc_weights_path(app->abi, 0, path);
    bool there = mc_file_exists(path) || (own && mc_file_exists(own));
    free(own);
    return there;
}

static const char *
default_weights(const mc_app *app, char *buffer, size_t n_bytes)
{
    const char *ending = app->abi->gpu ? "gpu-weights" : "weights";
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n > 0) {
        exe[n] = 0;
        snprintf(buffer, n_bytes, "%.4000s.%s", exe, ending);
        if (is_there(app, buffer)) return buffer;
    }
    snprintf(buffer, n_bytes, "%.4000s.%s", app->path, ending);
    return is_there(app, buffer) ? buffer : NULL;
}

typedef struct opening {
    mc_app *app;
    int percent;
    bool show;
} opening;

static void
open_progress(void *context, uint64_t done, uint64_t total)
{
    opening *o = context;
    if (o->show) mc_app_show_packing(&o->percent, done, total);
    mc_app_still_opening(o->app);
}

static int
open_weights(mc_app *app, uint32_t n_threads)
{
    opening o = {app, -1, mc_app_speaks(app) && isatty(STDERR_FILENO)};
    moec_error error;
    moec_weights_options options = {.packed_path = mc_app_value(app, MC_APP_PACKED),
                                    .in_memory = mc_app_has(app, MC_APP_IN_MEMORY),
                                    .allow_narrowing = mc_app_has(app, MC_APP_NARROW),
                                    .map = mc_app_value(app, MC_APP_MAP),
                                    .n_threads = n_threads,
                                    .progress = open_progress,
                                    .progress_context = &o,
                                    .comm = app->comm};
    app->weights_path = mc_app_value(app, MC_APP_WEIGHTS);
    if (!app->weights_path) app->weights_path = default_weights(app, app->beside, sizeof app->beside);
    bool made_up = mc_app_has(app, MC_APP_BENCH);
    if (!app->weights_path && (made_up || app->abi->n_weights == 0)) {
        moec_status s = moec_weights_synthetic(app->model, app->comm, &app->weights, &error);
        if (s != MOEC_OK) return mc_app_fail(app, "%s", error.text);
        if (made_up && app->abi->n_weights && mc_app_speaks(app))
            fprintf(stderr, "%s: note: measuring with made-up weights; --weights PATH takes real ones\n", app->name);
        return MC_APP_OK;
    }
    if (!app->weights_path) return mc_app_usage(app, "where are the weights? Say --weights PATH");
    moec_status s = moec_weights_open(app->model, app->weights_path, &options, &app->weights, &error);
    if (o.percent >= 0 && o.percent < 100) fputc('\n', stderr);
    if (s != MOEC_OK) return mc_app_fail(app, "%s", error.text);
    const char *note = moec_weights_note(app->weights);
    if (note[0] && mc_app_speaks(app)) fprintf(stderr, "%s: note: %s\n", app->name, note);
    return MC_APP_OK;
}

static int
read_sizes(mc_app *app, moec_limit *limits, size_t *n_limits, char (*names)[64])
{
    bool given = !app->share.name;
    for (int i = 0; i < app->n_values[MC_APP_SIZE]; i++) {
        const char *text = app->values[MC_APP_SIZE][i], *equals = strchr(text, '=');
        char *end = NULL;
        long long v = equals ? strtoll(equals + 1, &end, 10) : 0;
        if (!equals || equals == text || equals - text > 60 || end == equals + 1 || *end || v < 1)
            return mc_app_usage(app, "--size is DIM=N, not '%s'", text);
        snprintf(names[i], sizeof names[i], "%.*s", (int)(equals - text), text);
        limits[i] = (moec_limit){names[i], v};
        given = given || strcmp(names[i], app->share.name) == 0;
    }
    *n_limits = (size_t)app->n_values[MC_APP_SIZE];
    if (!given) limits[(*n_limits)++] = app->share;
    return MC_APP_OK;
}

int
mc_app_open(mc_app *app, const moec_session_options *sizes)
{
    moec_error error;
    int64_t threads;
    char names[MC_APP_MAX_VALUES][64];
    moec_limit limits[MC_APP_MAX_VALUES + 1];
    if (!mc_app_integer(app, MC_APP_THREADS, 1, 1024, app->default_threads, &threads)) return MC_APP_USAGE;
    moec_session_options options = *sizes;
    options.n_threads = (uint32_t)threads;
    options.gpu = app->gpu;
    options.comm = app->comm;
    options.limits = limits;
    int code = read_sizes(app, limits, &options.n_limits, names);
    if (code == MC_APP_OK) code = open_weights(app, options.n_threads);
    if (code == MC_APP_OK) code = mc_app_has_opened(app);
    if (code != MC_APP_OK) return code;
    moec_status s = moec_session_create(app->model, app->weights, &options, &app->session, &error);
    return s == MOEC_OK ? mc_app_route_open(app) : mc_app_fail(app, "%s", error.text);
}

static int
command(mc_app *app)
{
    if (mc_app_has(app, MC_APP_BENCH)) return mc_app_bench(app);
    if (mc_app_has(app, MC_APP_SCORE)) return mc_app_score(app);
    if (mc_app_has(app, MC_APP_INPUT)) return mc_app_tensors(app);
    if (mc_app_has(app, MC_APP_IDS) || mc_app_has(app, MC_APP_PROMPT)) return mc_app_generate(app);
    return mc_app_usage(app, mc_app_vocab(app) ? "what shall it continue? Say --ids 1,2,3 (--help says more)"
                                               : "which inputs? Say --input NAME=FILE.npy (--help says more)");
}

/* What a rank does. */
static int
run(mc_app *app)
{
    int code = mc_app_route_begin(app);
    if (code == MC_APP_OK) code = command(app);
    if (code == MC_APP_OK) code = mc_app_route_finish(app);
    mc_app_route_close(app);
    return code;
}

static int
begin(mc_app *app)
{
    if (mc_app_has(app, MC_APP_HELP)) {
        mc_app_help(app);
        return MC_APP_OK;
    }
    if (mc_app_has(app, MC_APP_VERSION)) {
        printf("%s, compiled by %s for %s\n", moec_model_name(app->model), moec_model_compiler(app->model),
               moec_model_cpu(app->model));
        return MC_APP_OK;
    }
    if (mc_app_has(app, MC_APP_INFO)) return mc_app_info(app);
    int device = mc_app_check_device(app);
    if (device != MC_APP_OK) return device;
    if (mc_app_is_played(app)) return mc_app_play(app, run);
    int joined = mc_app_join(app);
    return joined == MC_APP_OK ? run(app) : joined;
}

int
mc_app_main(const mc_app_code *code, int argc, char **argv)
{
    moec_error said = {{0}};
    mc_app app = {.path = argc > 0 ? argv[0] : "model", .size = 1, .said = &said};
    const char *slash = strrchr(app.path, '/');
    app.name = slash ? slash + 1 : app.path;
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is an error of write, like others */
    int result = mc_app_parse(&app, argc, argv) ? mc_app_choose(&app, code) : MC_APP_USAGE;
    if (result == MC_APP_OK) result = mc_app_leave(&app, begin(&app));
    moec_model_destroy(app.model);
    moec_gpu_close(app.gpu);
    int output = mc_app_finish_output(&app);
    return result != MC_APP_OK ? result : output;
}
