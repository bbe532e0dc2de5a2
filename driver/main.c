/* The moec command: finds the command in commands.def and runs it. */
#include "driver/cli.h"

static mc_command_fn *const functions[MC_N_COMMANDS] = {
#define MC_COMMAND(ID, function, name, arguments, summary, example) [MC_COMMAND_##ID] = mc_cmd_##function,
#include "driver/commands.def"
#undef MC_COMMAND
};

int
main(int argc, char **argv)
{
    mc_arena *arena = mc_arena_create();
    mc_cli cli;
    int exit_code;
    if (mc_cli_parse(argc, argv, arena, &cli, &exit_code)) exit_code = functions[cli.command](&cli);
    mc_arena_destroy(arena);
    return exit_code;
}
