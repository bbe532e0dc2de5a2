/* command: what several commands share: options of the command line as compile options, and diagnostics printed. */
#ifndef MC_DRIVER_COMMAND_H
#define MC_DRIVER_COMMAND_H

#include "driver/cli.h"
#include "driver/unit.h"

/* Everything is borrowed from cli. Diagnostics go to standard error, as text or JSON. */
bool mc_command_options(const mc_cli *cli, moec_compile_options *out);
/* --skip, --fuel, --print-changed, --dump-dir, --verify-each, --time-passes. Arrays live in the arena. */
bool mc_command_pass_options(const mc_cli *cli, mc_arena *arena, mc_pass_options *out);
/* A whole number from 1 to most; *out stays when the option is absent. */
bool mc_command_count(const mc_cli *cli, mc_option option, int64_t most, int64_t *out);
/* Prints "moec: ..." and returns the exit code that belongs to the status. */
int mc_command_failed(moec_status status, const char *text);
int mc_command_exit_code(moec_status status);
/* A path with its numbers as *, e.g. layers.*.mlp.gate.weight: what is equal under it is one line. */
mc_str mc_command_fold(mc_arena *arena, mc_str path);
/* Writes to the file of --output, atomically, or to standard output. */
int mc_command_write(const mc_cli *cli, mc_str text);

#endif
