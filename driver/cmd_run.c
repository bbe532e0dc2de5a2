/* moec run and moec bench: compile in this process, then be the executable that `moec compile` would have made. */
#include "driver/backend.h"
#include "driver/command.h"
#include "driver/compiled.h"
#include "runtime/app/app.h"

#include <stdio.h>

/* argv of the model's own command line: its name first. */
static int
run_with(const mc_cli *cli, const char *const *extra, int n_extra)
{
    moec_compile_options options;
    const char *path = cli->n_files ? cli->files[0] : NULL;
    if (!mc_command_options(cli, &options)) return MC_EXIT_USAGE;
    if (cli->n_files != 1)
        return mc_cli_usage("%s takes one file, as in: %s", mc_command_infos[cli->command].name,
                            mc_command_infos[cli->command].example);
    moec_compiled *compiled;
    moec_status status = moec_compile_file(path, &options, &compiled);
    if (status != MOEC_OK) return mc_command_exit_code(status);
    mc_app_code parts = {0};
    mc_fault fault = {0};
    size_t object_bytes;
    int code;
    parts.has_cpu = moec_compiled_object(compiled, &object_bytes) != NULL;
    parts.image = moec_compiled_image(compiled, &parts.image_bytes);
    if (parts.has_cpu) status = mc_compiled_abi(compiled, &parts.cpu, &fault);
    if (status == MOEC_OK) {
        mc_arena *arena = mc_arena_create();
        char **argv = MC_NEW_N(arena, char *, cli->n_rest + n_extra + 2);
        int argc = 0;
        argv[argc++] = (char *)(uintptr_t)path;
        for (int i = 0; i < n_extra; i++) argv[argc++] = (char *)(uintptr_t)extra[i];
        for (int i = 0; i < cli->n_rest; i++) argv[argc++] = cli->rest[i];
        code = mc_app_main(&parts, argc, argv);
        mc_arena_destroy(arena);
    } else {
        code = mc_command_failed(status, fault.text);
        if (status == MOEC_ERR_UNSUPPORTED) code = MC_EXIT_CPU;
    }
    moec_compiled_destroy(compiled);
    return code;
}

int
mc_cmd_run(const mc_cli *cli)
{
    return run_with(cli, NULL, 0);
}

int
mc_cmd_bench(const mc_cli *cli)
{
    static const char *const bench = "--bench";
    return run_with(cli, &bench, 1);
}
