/* app_options: one table of options drives parsing and help. `--name VALUE` or `--name=VALUE`, in any order. */
#include "runtime/app/app.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct option_info {
    const char *name, *value, *help;
} option_info;

static const option_info infos[MC_APP_N_OPTIONS] = {
#define MC_APP_OPTION(ID, name, value, help) [MC_APP_##ID] = {name, value, help},
#include "runtime/app/app_options.def"
#undef MC_APP_OPTION
};

static bool
is_repeatable(int option)
{
    return option == MC_APP_INPUT || option == MC_APP_OUTPUT || option == MC_APP_SIZE;
}

static int
find_option(mc_str name)
{
    for (int i = 0; i < MC_APP_N_OPTIONS; i++)
        if (mc_str_is(name, infos[i].name)) return i;
    return -1;
}

static bool
unknown(const mc_app *app, const char *argument, mc_str name)
{
    mc_str names[MC_APP_N_OPTIONS];
    for (int i = 0; i < MC_APP_N_OPTIONS; i++) names[i] = mc_str_of(infos[i].name);
    mc_str near = mc_str_nearest(name, names, MC_APP_N_OPTIONS);
    if (near.len)
        mc_app_usage(app, "no option %s; did you mean --%.*s?", argument, MC_FMT(near));
    else
        mc_app_usage(app, "no option %s (--help lists them)", argument);
    return false;
}

bool
mc_app_parse(mc_app *app, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        if (strcmp(argument, "-h") == 0) argument = "--help";
        if (strncmp(argument, "--", 2) != 0) {
            mc_app_usage(app, "what is '%s'? Options begin with -- (--help lists them)", argument);
            return false;
        }
        const char *equals = strchr(argument, '=');
        mc_str name = {argument + 2, equals ? (size_t)(equals - argument) - 2 : strlen(argument) - 2};
        int option = find_option(name);
        if (option < 0) return unknown(app, argument, name);
        const char *value = equals ? equals + 1 : NULL;
        if (!infos[option].value && value) {
            mc_app_usage(app, "--%s takes no value", infos[option].name);
            return false;
        }
        if (infos[option].value && !value && ++i < argc) value = argv[i];
        if (infos[option].value && !value) {
            mc_app_usage(app, "--%s needs %s", infos[option].name, infos[option].value);
            return false;
        }
        int n = app->n_values[option];
        if (n >= (is_repeatable(option) ? MC_APP_MAX_VALUES : 1)) {
            mc_app_usage(app, "--%s is given too often", infos[option].name);
            return false;
        }
        app->values[option][n] = value;
        app->n_values[option] = n + 1;
    }
    return true;
}

void
mc_app_help(const mc_app *app)
{
    const char *name = app->name;
    if (app->model && moec_model_vocab(app->model) > 0) {
        printf("  %s --weights DIR --ids 1,2,3 --max-new 20\n", name);
        if (moec_model_vocab(app->model) == 256) {
            printf("  %s --weights DIR --prompt 'In the beginning' --temperature 0.8 --top-p 0.95 --seed 7\n", name);
            printf("  %s --weights DIR --score FILE\n", name);
        }
        printf("  %s --weights DIR --ids 1,2,3 --logits out.npy\n", name);
    } else {
        printf("  %s --weights DIR --input x=in.npy --output y=out.npy\n", name);
    }
    printf("  %s --weights DIR --bench\n\n", name);
    for (int i = 0; i < MC_APP_N_OPTIONS; i++) {
        char left[40];
        snprintf(left, sizeof left, "--%s%s%s", infos[i].name, infos[i].value ? " " : "",
                 infos[i].value ? infos[i].value : "");
        printf("  %-24s %s\n", left, infos[i].help);
    }
    printf(
        "\nExit codes: 0 done, 1 something failed, 2 wrong command line, 3 nothing here can run the model, 75 a rank "
        "of\nthe group failed, and all have stopped.\n");
}

const char *
mc_app_value(const mc_app *app, mc_app_option option)
{
    return app->n_values[option] ? app->values[option][0] : NULL;
}

bool
mc_app_integer(const mc_app *app, mc_app_option option, int64_t lo, int64_t hi, int64_t otherwise, int64_t *out)
{
    const char *text = mc_app_value(app, option);
    *out = otherwise;
    if (!text) return true;
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end != text && !*end && !errno && v >= lo && v <= hi) {
        *out = v;
        return true;
    }
    mc_app_usage(app, "--%s is a number from %lld to %lld, not '%s'", infos[option].name, (long long)lo, (long long)hi,
                 text);
    return false;
}

bool
mc_app_real(const mc_app *app, mc_app_option option, double lo, double hi, double otherwise, double *out)
{
    const char *text = mc_app_value(app, option);
    *out = otherwise;
    if (!text) return true;
    char *end;
    double v = strtod(text, &end);
    if (end != text && !*end && v >= lo && v <= hi) {
        *out = v;
        return true;
    }
    mc_app_usage(app, "--%s is a number from %g to %g, not '%s'", infos[option].name, lo, hi, text);
    return false;
}
