/* app: chooses what to do, opens model, weights and session, and sees to it that output arrives. */
#define _GNU_SOURCE
#include "runtime/app/app.h"

#include "moec/gpu.h"
#include "runtime/base/file.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void
say(const mc_app *app, const char *format, va_list args)
{
    fflush(stdout);
    fprintf(stderr, "%s: ", app->name);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
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
static const char *
default_weights(const mc_app *app, char *buffer, size_t n_bytes)
{
    const char *ending = app->abi->gpu ? "gpu-weights" : "weights";
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n > 0) {
        exe[n] = 0;
        snprintf(buffer, n_bytes, "%.4000s.%s", exe, ending);
        if (mc_file_exists(buffer)) return buffer;
    }
    snprintf(buffer, n_bytes, "%.4000s.%s", app->path, ending);
    return mc_file_exists(buffer) ? buffer : NULL;
}

static int
open_weights(mc_app *app, uint32_t n_threads)
{
    static char beside[PATH_MAX + 16];
    int last = -1;
    moec_error error;
    moec_weights_options options = {.packed_path = mc_app_value(app, MC_APP_PACKED),
                                    .in_memory = mc_app_has(app, MC_APP_IN_MEMORY),
                                    .allow_narrowing = mc_app_has(app, MC_APP_NARROW),
                                    .map = mc_app_value(app, MC_APP_MAP),
                                    .n_threads = n_threads};
    app->weights_path = mc_app_value(app, MC_APP_WEIGHTS);
    if (!app->weights_path) app->weights_path = default_weights(app, beside, sizeof beside);
    bool made_up = mc_app_has(app, MC_APP_BENCH);
    if (!app->weights_path && (made_up || app->abi->n_weights == 0)) {
        moec_status s = moec_weights_synthetic(app->model, &app->weights, &error);
        if (s != MOEC_OK) return mc_app_fail(app, "%s", error.text);
        if (made_up && app->abi->n_weights)
            fprintf(stderr, "%s: note: measuring with made-up weights; --weights PATH takes real ones\n", app->name);
        return MC_APP_OK;
    }
    if (!app->weights_path) return mc_app_usage(app, "where are the weights? Say --weights PATH");
    if (isatty(STDERR_FILENO)) {
        options.progress = mc_app_show_packing;
        options.progress_context = &last;
    }
    moec_status s = moec_weights_open(app->model, app->weights_path, &options, &app->weights, &error);
    if (last >= 0 && last < 100) fputc('\n', stderr);
    if (s != MOEC_OK) return mc_app_fail(app, "%s", error.text);
    const char *note = moec_weights_note(app->weights);
    if (note[0]) fprintf(stderr, "%s: note: %s\n", app->name, note);
    return MC_APP_OK;
}

static int
read_sizes(mc_app *app, moec_limit *limits, size_t *n_limits, char (*names)[64])
{
    for (int i = 0; i < app->n_values[MC_APP_SIZE]; i++) {
        const char *text = app->values[MC_APP_SIZE][i], *equals = strchr(text, '=');
        char *end = NULL;
        long long v = equals ? strtoll(equals + 1, &end, 10) : 0;
        if (!equals || equals == text || equals - text > 60 || end == equals + 1 || *end || v < 1)
            return mc_app_usage(app, "--size is DIM=N, not '%s'", text);
        snprintf(names[i], sizeof names[i], "%.*s", (int)(equals - text), text);
        limits[i] = (moec_limit){names[i], v};
    }
    *n_limits = (size_t)app->n_values[MC_APP_SIZE];
    return MC_APP_OK;
}

int
mc_app_open(mc_app *app, const moec_session_options *sizes)
{
    moec_error error;
    int64_t threads;
    char names[MC_APP_MAX_VALUES][64];
    moec_limit limits[MC_APP_MAX_VALUES];
    if (!mc_app_integer(app, MC_APP_THREADS, 1, 1024, 0, &threads)) return MC_APP_USAGE;
    moec_session_options options = *sizes;
    options.n_threads = (uint32_t)threads;
    options.gpu = app->gpu;
    options.limits = limits;
    int code = read_sizes(app, limits, &options.n_limits, names);
    if (code == MC_APP_OK) code = open_weights(app, options.n_threads);
    if (code != MC_APP_OK) return code;
    moec_status s = moec_session_create(app->model, app->weights, &options, &app->session, &error);
    return s == MOEC_OK ? MC_APP_OK : mc_app_fail(app, "%s", error.text);
}

static int
run(mc_app *app)
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
    if (mc_app_has(app, MC_APP_BENCH)) return mc_app_bench(app);
    if (mc_app_has(app, MC_APP_SCORE)) return mc_app_score(app);
    if (mc_app_has(app, MC_APP_INPUT)) return mc_app_tensors(app);
    if (mc_app_has(app, MC_APP_IDS) || mc_app_has(app, MC_APP_PROMPT)) return mc_app_generate(app);
    return mc_app_usage(app, moec_model_vocab(app->model)
                                 ? "what shall it continue? Say --ids 1,2,3 (--help says more)"
                                 : "which inputs? Say --input NAME=FILE.npy (--help says more)");
}

int
mc_app_main(const mc_app_code *code, int argc, char **argv)
{
    mc_app app = {.path = argc > 0 ? argv[0] : "model"};
    const char *slash = strrchr(app.path, '/');
    app.name = slash ? slash + 1 : app.path;
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is an error of write, like others */
    int result = mc_app_parse(&app, argc, argv) ? mc_app_choose(&app, code) : MC_APP_USAGE;
    if (result == MC_APP_OK) result = run(&app);
    moec_session_destroy(app.session);
    moec_weights_close(app.weights);
    moec_model_destroy(app.model);
    moec_gpu_close(app.gpu);
    int output = mc_app_finish_output(&app);
    return result != MC_APP_OK ? result : output;
}
