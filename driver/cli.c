#define _POSIX_C_SOURCE 200809L
/* Options may stand anywhere after the command, `--name VALUE` or `--name=VALUE`; `--` ends them. Written out rather
 * than taken from getopt because which options exist depends on the command, and mistakes get suggestions. */
#include "driver/cli.h"

#include "driver/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK (1u << MC_COMMAND_CHECK)
#define COMPILE (1u << MC_COMMAND_COMPILE)
#define RUN (1u << MC_COMMAND_RUN)
#define ROUTE (1u << MC_COMMAND_ROUTE)
#define TRAIN (1u << MC_COMMAND_TRAIN)
#define MEM (1u << MC_COMMAND_MEM)
#define PLAN (1u << MC_COMMAND_PLAN)
#define IMPORT (1u << MC_COMMAND_IMPORT)
#define SHOW (1u << MC_COMMAND_SHOW)
#define FMT (1u << MC_COMMAND_FMT)
#define OPT (1u << MC_COMMAND_OPT)
#define BENCH (1u << MC_COMMAND_BENCH)
#define CACHE (1u << MC_COMMAND_CACHE)
#define ALL (~0u)

const mc_option_info mc_option_infos[MC_N_OPTIONS] = {
#define MC_OPTION(ID, name, letter, value, commands, help) [MC_OPTION_##ID] = {name, value, help, letter, commands},
#include "driver/options.def"
#undef MC_OPTION
};

const mc_command_info mc_command_infos[MC_N_COMMANDS] = {
#define MC_COMMAND(ID, function, name, arguments, summary, example)                                                    \
    [MC_COMMAND_##ID] = {name, arguments, summary, example},
#include "driver/commands.def"
#undef MC_COMMAND
};

int
mc_cli_usage(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("moec: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return MC_EXIT_USAGE;
}

/* 24 lines have to do. */
static void
print_help(void)
{
    puts("moec compiles models with mixture-of-experts layers to native code.");
    puts("  moec import DIR -o model.moe       a Hugging Face checkpoint's text");
    puts("  moec compile model.moe -o app      an executable");
    puts("  ./app --weights DIR --ids 1,2,3    run it\n");
    puts("Commands (moec COMMAND --help says more):");
    for (int i = 0; i < MC_N_COMMANDS; i++)
        printf("  %-8s %s\n", mc_command_infos[i].name, mc_command_infos[i].summary);
    puts("Exit codes: 0 done, 1 the input is wrong or something failed, 2 wrong command line,");
    puts("3 this processor cannot run the code, 70 a fault of moec's own.");
}

/* 24 lines have to do for each command, so what all take shares the last with an example; --diagnostics too, where
 * there is room for it. */
static void
print_command_help(mc_command command)
{
    const mc_command_info *info = &mc_command_infos[command];
    char last[160];
    bool reports = mc_option_infos[MC_OPTION_DIAGNOSTICS].commands & 1u << command;
    int n = snprintf(last, sizeof last, "Always: --color WHEN, --diagnostics json, --help, --version. Example: %s",
                     info->example);
    reports = reports && n <= 100;
    if (!reports) snprintf(last, sizeof last, "Always: --color WHEN, --help, --version. Example: %s", info->example);
    printf("moec %s %s: %s\n", info->name, info->arguments, info->summary);
    for (int i = 0; i < MC_N_OPTIONS; i++) {
        const mc_option_info *o = &mc_option_infos[i];
        if (!(o->commands & 1u << command) || o->commands == ALL || (reports && i == MC_OPTION_DIAGNOSTICS)) continue;
        char left[64], letter[8] = "    ";
        if (o->letter) snprintf(letter, sizeof letter, "-%c, ", o->letter);
        snprintf(left, sizeof left, "%s--%s%s%s", letter, o->name, o->value ? " " : "", o->value ? o->value : "");
        printf("  %-26s %s\n", left, o->help);
    }
    puts(last);
}

static int
unknown_option(const char *word, mc_command command)
{
    mc_str names[MC_N_OPTIONS], name = mc_str_of(word);
    size_t n = 0;
    for (int i = 0; i < MC_N_OPTIONS; i++)
        if (mc_option_infos[i].commands & 1u << command) names[n++] = mc_str_of(mc_option_infos[i].name);
    for (size_t i = 0; i < name.len; i++)
        if (name.data[i] == '=') name.len = i;
    mc_str near = mc_str_nearest(name, names, n);
    if (near.len)
        return mc_cli_usage("%s has no option --%.*s (did you mean --%.*s?)", mc_command_infos[command].name,
                            MC_FMT(name), MC_FMT(near));
    return mc_cli_usage("%s has no option --%.*s; see: moec %s --help", mc_command_infos[command].name, MC_FMT(name),
                        mc_command_infos[command].name);
}

static int
find_option(const char *word, mc_command command, const char **value)
{
    bool is_long = word[1] == '-';
    for (int i = 0; i < MC_N_OPTIONS; i++) {
        const mc_option_info *o = &mc_option_infos[i];
        if (!(o->commands & 1u << command)) continue;
        size_t n = strlen(o->name);
        if (is_long && strncmp(word + 2, o->name, n) == 0 && (word[2 + n] == 0 || word[2 + n] == '=')) {
            *value = word[2 + n] ? word + 3 + n : NULL;
            return i;
        }
        if (!is_long && o->letter == word[1]) {
            *value = word[2] ? word + 2 : NULL;
            return i;
        }
    }
    return -1;
}

static bool
find_command(const char *word, mc_command *out)
{
    mc_str names[MC_N_COMMANDS];
    for (int i = 0; i < MC_N_COMMANDS; i++) {
        names[i] = mc_str_of(mc_command_infos[i].name);
        if (strcmp(word, mc_command_infos[i].name) != 0) continue;
        *out = (mc_command)i;
        return true;
    }
    mc_str near = mc_str_nearest(mc_str_of(word), names, MC_N_COMMANDS);
    if (near.len)
        mc_cli_usage("no command '%s' (did you mean '%.*s'?)", word, MC_FMT(near));
    else
        mc_cli_usage("no command '%s'; see: moec --help", word);
    return false;
}

static bool
choose_color(mc_cli *cli)
{
    const char *when = mc_cli_value(cli, MC_OPTION_COLOR);
    if (!when || strcmp(when, "auto") == 0) {
        cli->color = isatty(STDERR_FILENO) && !getenv("NO_COLOR");
        return true;
    }
    cli->color = strcmp(when, "always") == 0;
    if (cli->color || strcmp(when, "never") == 0) return true;
    mc_cli_usage("--color is auto, always or never, not '%s'", when);
    return false;
}

/* Takes argv[*i] and perhaps the next word. */
static bool
take_option(int argc, char **argv, int *i, mc_arena *arena, mc_cli *cli)
{
    const char *word = argv[*i], *value = NULL;
    int option = find_option(word, cli->command, &value);
    if (option < 0) {
        unknown_option(word + (word[1] == '-' ? 2 : 1), cli->command);
        return false;
    }
    const mc_option_info *info = &mc_option_infos[option];
    if (!info->value && value) {
        mc_cli_usage("--%s takes no value", info->name);
        return false;
    }
    if (info->value && !value) {
        if (*i + 1 >= argc) {
            mc_cli_usage("--%s needs a value: %s", info->name, info->value);
            return false;
        }
        value = argv[++*i];
    }
    if (!cli->values[option]) cli->values[option] = MC_NEW_N(arena, const char *, argc);
    cli->values[option][cli->n_values[option]++] = value ? value : "";
    return true;
}

bool
mc_cli_parse(int argc, char **argv, mc_arena *arena, mc_cli *cli, int *exit_code)
{
    *cli = (mc_cli){0};
    *exit_code = MC_EXIT_USAGE;
    if (argc < 2) {
        print_help();
        return false;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help();
        *exit_code = MC_EXIT_OK;
        return false;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts(mc_backend_compiler());
        *exit_code = MC_EXIT_OK;
        return false;
    }
    if (!find_command(argv[1], &cli->command)) return false;
    cli->files = MC_NEW_N(arena, const char *, argc);
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--") == 0) {
            cli->rest = argv + i + 1;
            cli->n_rest = argc - i - 1;
            break;
        }
        bool is_file = argv[i][0] != '-' || argv[i][1] == 0;
        if (is_file) cli->files[cli->n_files++] = argv[i];
        bool runs =
            cli->command == MC_COMMAND_RUN || cli->command == MC_COMMAND_BENCH || cli->command == MC_COMMAND_ROUTE;
        if (is_file && runs) { /* what follows the model is for the model */
            cli->rest = argv + i + 1;
            cli->n_rest = argc - i - 1;
            break;
        }
        if (!is_file && !take_option(argc, argv, &i, arena, cli)) return false;
    }
    if (mc_cli_has(cli, MC_OPTION_VERSION)) {
        puts(mc_backend_compiler());
        *exit_code = MC_EXIT_OK;
        return false;
    }
    if (mc_cli_has(cli, MC_OPTION_HELP)) {
        print_command_help(cli->command);
        *exit_code = MC_EXIT_OK;
        return false;
    }
    return choose_color(cli);
}

bool
mc_cli_has(const mc_cli *cli, mc_option option)
{
    return cli->n_values[option] > 0;
}

const char *
mc_cli_value(const mc_cli *cli, mc_option option)
{
    return cli->n_values[option] ? cli->values[option][cli->n_values[option] - 1] : NULL;
}

const char *
mc_cli_one_file(const mc_cli *cli)
{
    const mc_command_info *info = &mc_command_infos[cli->command];
    if (cli->n_files == 1) return cli->files[0];
    mc_cli_usage("%s takes one %s, not %zu, as in: %s", info->name, info->arguments, cli->n_files, info->example);
    return NULL;
}
