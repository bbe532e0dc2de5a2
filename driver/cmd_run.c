/* moec run and moec bench: compile in this process, then be the executable that `moec compile` would have made. */
#include "driver/backend.h"
#include "driver/command.h"
#include "driver/compiled.h"
#include "driver/run_model.h"
#include "runtime/app/app.h"

#include <stdio.h>

/* argv of the model's own command line: its name first. */
static int
run_code(const mc_app_code *code, const char *path, const char *const *words, int n_words)
{
    mc_arena *arena = mc_arena_create();
    char **argv = MC_NEW_N(arena, char *, n_words + 2);
    argv[0] = (char *)(uintptr_t)path;
    for (int i = 0; i < n_words; i++) argv[i + 1] = (char *)(uintptr_t)words[i];
    int exit_code = mc_app_main(code, n_words + 1, argv);
    mc_arena_destroy(arena);
    return exit_code;
}

int
mc_command_run(const mc_cli *cli, const moec_compile_options *options, const char *const *words, int n_words)
{
    const char *path = cli->n_files ? cli->files[0] : NULL;
    if (cli->n_files != 1)
        return mc_cli_usage("%s takes one file, as in: %s", mc_command_infos[cli->command].name,
                            mc_command_infos[cli->command].example);
    moec_compiled *compiled;
    moec_status status = moec_compile_file(path, options, &compiled);
    if (status != MOEC_OK) return mc_command_exit_code(status);
    mc_app_code parts = {0};
    mc_fault fault = {0};
    size_t object_bytes;
    int code;
    parts.has_cpu = moec_compiled_object(compiled, &object_bytes) != NULL;
    parts.image = moec_compiled_image(compiled, &parts.image_bytes);
    if (parts.has_cpu) status = mc_compiled_abi(compiled, &parts.cpu, &fault);
    if (status == MOEC_OK) {
        code = run_code(&parts, path, words, n_words);
    } else {
        code = mc_command_failed(status, fault.text);
        if (status == MOEC_ERR_UNSUPPORTED) code = MC_EXIT_CPU;
    }
    moec_compiled_destroy(compiled);
    return code;
}

static int
run_with(const mc_cli *cli, const char *extra)
{
    moec_compile_options options;
    if (!mc_command_options(cli, &options)) return MC_EXIT_USAGE;
    mc_arena *arena = mc_arena_create();
    const char **words = MC_NEW_N(arena, const char *, cli->n_rest + 1);
    int n = 0;
    if (extra) words[n++] = extra;
    for (int i = 0; i < cli->n_rest; i++) words[n++] = cli->rest[i];
    int code = mc_command_run(cli, &options, words, n);
    mc_arena_destroy(arena);
    return code;
}

int
mc_cmd_run(const mc_cli *cli)
{
    return run_with(cli, NULL);
}

int
mc_cmd_bench(const mc_cli *cli)
{
    return run_with(cli, "--bench");
}
