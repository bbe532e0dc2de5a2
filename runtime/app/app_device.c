/* app_device: which code of the program runs, and where. One that was asked for is used or refused, never replaced;
 * with `auto` a GPU comes first, and --info says why it is not used. */
#include "moec/gpu.h"
#include "runtime/abi_model.h"
#include "runtime/app/app.h"

#include <stdlib.h>
#include <string.h>

typedef enum choice { CHOICE_AUTO, CHOICE_CPU, CHOICE_CUDA } choice;

/* "auto", "cpu", "cuda" or "cuda:N"; *out_ordinal is -1 for any. */
static bool
read_choice(const mc_app *app, choice *out, int32_t *out_ordinal)
{
    const char *text = mc_app_value(app, MC_APP_DEVICE);
    char *end;
    *out_ordinal = -1;
    *out = CHOICE_AUTO;
    if (!text || strcmp(text, "auto") == 0) return true;
    *out = CHOICE_CPU;
    if (strcmp(text, "cpu") == 0) return true;
    *out = CHOICE_CUDA;
    if (strcmp(text, "cuda") == 0) return true;
    if (strncmp(text, "cuda:", 5) == 0 && text[5] >= '0' && text[5] <= '9') {
        unsigned long n = strtoul(text + 5, &end, 10);
        *out_ordinal = (int32_t)n;
        if (!*end && n < 1024) return true;
    }
    mc_app_usage(app, "--device is auto, cpu, cuda or cuda:N, not '%s'", text);
    return false;
}

static moec_status
try_gpu(mc_app *app, int32_t ordinal, moec_error *error)
{
    moec_status s = moec_gpu_open(ordinal, &app->gpu, error);
    if (s == MOEC_OK) s = moec_model_check_gpu(app->model, app->gpu, error);
    if (s == MOEC_OK) return s;
    moec_gpu_close(app->gpu);
    app->gpu = NULL;
    return s;
}

/* The GPU of that number, or the first that runs the model; app->why says why there is none. */
static void
find_gpu(mc_app *app, int32_t ordinal)
{
    moec_status s = try_gpu(app, ordinal < 0 ? 0 : ordinal, &app->why);
    uint32_t n = ordinal < 0 && s == MOEC_ERR_UNSUPPORTED ? moec_gpu_count() : 0;
    for (uint32_t i = 1; s != MOEC_OK && i < n; i++) {
        moec_error ignored; /* the first one's reason is as good */
        s = try_gpu(app, (int32_t)i, &ignored);
    }
    if (s == MOEC_OK) app->why.text[0] = 0;
}

static int
open_gpu_model(mc_app *app, const mc_app_code *code, int32_t ordinal)
{
    moec_error error;
    if (moec_model_from_image(code->image, code->image_bytes, &app->model, &error) != MOEC_OK)
        return mc_app_fail(app, "%s", error.text);
    app->abi = app->model->abi;
    find_gpu(app, ordinal);
    return MC_APP_OK;
}

int
mc_app_choose(mc_app *app, const mc_app_code *code)
{
    choice wanted;
    int32_t ordinal;
    moec_error error;
    if (!read_choice(app, &wanted, &ordinal)) return MC_APP_USAGE;
    if (wanted == CHOICE_CPU && !code->has_cpu) {
        mc_app_fail(app, "there is no code for a CPU in this program: compile the model with --target native");
        return MC_APP_CPU;
    }
    if (wanted == CHOICE_CUDA && !code->image) {
        mc_app_fail(app, "there is no code for a GPU in this program: compile the model with --gpu");
        return MC_APP_CPU;
    }
    if (code->image && wanted != CHOICE_CPU) {
        int status = open_gpu_model(app, code, ordinal);
        bool good = app->gpu || wanted == CHOICE_CUDA || !code->has_cpu;
        if (status != MC_APP_OK || good) return status;
        moec_model_destroy(app->model);
        app->model = NULL;
        if (!mc_app_has(app, MC_APP_INFO)) fprintf(stderr, "%s: on the processor: %s\n", app->name, app->why.text);
    }
    app->abi = code->cpu;
    return moec_model_from_abi(code->cpu, &app->model, &error) == MOEC_OK ? MC_APP_OK
                                                                          : mc_app_fail(app, "%s", error.text);
}

int
mc_app_check_device(const mc_app *app)
{
    moec_error error = {0};
    if (app->gpu) return MC_APP_OK;
    if (!app->abi->gpu && moec_model_check_cpu(app->model, &error) == MOEC_OK) return MC_APP_OK;
    mc_app_fail(app, "%s", app->abi->gpu ? app->why.text : error.text);
    return MC_APP_CPU;
}

void
mc_app_print_device(const mc_app *app)
{
    moec_gpu_info info;
    moec_error error;
    if (app->gpu) {
        moec_gpu_describe(app->gpu, &info);
        printf("cuda:%d, %s, compute capability %u.%u, %u multiprocessors, %.1f GB\n", (int)info.ordinal, info.name,
               info.arch / 10, info.arch % 10, info.n_multiprocessors, (double)info.memory_bytes / 1e9);
    } else if (app->abi->gpu) {
        printf("none: %s\n", app->why.text);
    } else {
        bool runs = moec_model_check_cpu(app->model, &error) == MOEC_OK;
        printf("cpu: %s\n", runs ? "this processor can run it" : error.text);
        if (app->why.text[0]) printf("no gpu  %s\n", app->why.text);
    }
}
