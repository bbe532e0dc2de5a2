/* run_model: a text compiled in memory, and then what `moec compile` would have made an executable of. */
#ifndef MC_DRIVER_RUN_MODEL_H
#define MC_DRIVER_RUN_MODEL_H

#include "driver/cli.h"
#include "moec/compiler.h"

/* Of the command's one file; `words` are the executable's command line, behind its name. Gives an exit code. */
int mc_command_run(const mc_cli *cli, const moec_compile_options *options, const char *const *words, int n_words);

#endif
