/* cli: the command line. Commands and options are the tables commands.def and options.def. */
#ifndef MC_DRIVER_CLI_H
#define MC_DRIVER_CLI_H

#include "moec/base.h"
#include "runtime/base/str.h"

typedef enum mc_command {
#define MC_COMMAND(ID, function, name, arguments, summary, example) MC_COMMAND_##ID,
#include "driver/commands.def"
#undef MC_COMMAND
    MC_N_COMMANDS
} mc_command;

typedef enum mc_option {
#define MC_OPTION(ID, name, letter, value, commands, help) MC_OPTION_##ID,
#include "driver/options.def"
#undef MC_OPTION
    MC_N_OPTIONS
} mc_option;

/* Exit codes, documented in docs/OPTIONS.md and the man page. */
enum { MC_EXIT_OK = 0, MC_EXIT_FAILED = 1, MC_EXIT_USAGE = 2, MC_EXIT_CPU = 3, MC_EXIT_INTERNAL = 70 };

typedef struct mc_command_info {
    const char *name, *arguments, *summary, *example;
} mc_command_info;

typedef struct mc_option_info {
    const char *name, *value, *help; /* value NULL: a flag */
    char letter;
    unsigned commands; /* bits 1 << mc_command */
} mc_option_info;

extern const mc_command_info mc_command_infos[MC_N_COMMANDS];
extern const mc_option_info mc_option_infos[MC_N_OPTIONS];

typedef struct mc_cli {
    mc_command command;
    const char **values[MC_N_OPTIONS]; /* in order of appearance; flags have the value "" */
    size_t n_values[MC_N_OPTIONS];
    const char **files; /* positional arguments */
    size_t n_files;
    char **rest; /* after `--` */
    int n_rest;
    bool color;
} mc_cli;

typedef int mc_command_fn(const mc_cli *cli); /* returns an exit code */
#define MC_COMMAND(ID, function, name, arguments, summary, example) mc_command_fn mc_cmd_##function;
#include "driver/commands.def"
#undef MC_COMMAND

/* Fills *cli, or prints what is wrong (or the help asked for) and returns false with *exit_code. */
bool mc_cli_parse(int argc, char **argv, mc_arena *arena, mc_cli *cli, int *exit_code);

bool mc_cli_has(const mc_cli *cli, mc_option option);
const char *mc_cli_value(const mc_cli *cli, mc_option option); /* the last one given; NULL when absent */
/* The only file argument; NULL after printing a usage error. */
const char *mc_cli_one_file(const mc_cli *cli);
/* Prints "moec: ..." to standard error and returns MC_EXIT_USAGE. */
int mc_cli_usage(const char *format, ...) MOEC_PRINTF(1, 2);

#endif
