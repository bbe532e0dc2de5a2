/* moec check: everything that can be said about a text without making code. */
#include "driver/command.h"

#include <stdio.h>

static int
check_one(const moec_compile_options *options, const char *path)
{
    mc_unit u;
    mc_unit_init(&u, options);
    bool good = mc_unit_load(&u, path) && mc_unit_elaborate(&u);
    mc_unit_deliver(&u);
    if (good && u.elab.weights.n)
        printf("%s: %.*s: %zu weights, %.3f B parameters (%.3f B active)\n", path,
               MC_FMT(mc_module_model(u.module)->name), u.elab.weights.n, (double)u.elab.n_params / 1e9,
               (double)u.elab.n_active_params / 1e9);
    else if (good)
        printf("%s: ok\n", path);
    int code = good ? MC_EXIT_OK : mc_command_exit_code(mc_unit_status(&u));
    mc_unit_fini(&u);
    return code;
}

int
mc_cmd_check(const mc_cli *cli)
{
    moec_compile_options options;
    if (!mc_command_options(cli, &options)) return MC_EXIT_USAGE;
    if (!cli->n_files) return mc_cli_usage("check needs a file, as in: moec check model.moe");
    int worst = MC_EXIT_OK;
    for (size_t i = 0; i < cli->n_files; i++) {
        int code = check_one(&options, cli->files[i]);
        if (code > worst) worst = code;
    }
    return worst;
}
