/* moec route: records which experts a model's tokens choose (-o), or sends them to recorded ones (--replay). It is
 * `moec run` of a model that is compiled to tell its choices, or to take them. */
#include "driver/command.h"
#include "driver/run_model.h"

#include <string.h>

static bool
is_replay(const char *word)
{
    return strcmp(word, "--replay") == 0 || mc_str_starts(mc_str_of(word), "--replay=");
}

/* What the model's command line calls --trace is -o here, before the file or behind it. */
static int
translate(const mc_cli *cli, const char **words, bool *out_replay, bool *out_trace)
{
    int n = 0;
    const char *output = mc_cli_value(cli, MC_OPTION_OUTPUT);
    *out_replay = false;
    *out_trace = output != NULL;
    if (output) {
        words[n++] = "--trace";
        words[n++] = output;
    }
    for (int i = 0; i < cli->n_rest; i++) {
        const char *word = cli->rest[i];
        bool is_output = strncmp(word, "-o", 2) == 0;
        *out_replay = *out_replay || is_replay(word);
        *out_trace = *out_trace || is_output || strncmp(word, "--help", 6) == 0;
        words[n++] = is_output ? "--trace" : word;
        if (is_output && word[2]) words[n++] = word + 2;
    }
    return n;
}

int
mc_cmd_route(const mc_cli *cli)
{
    moec_compile_options options;
    bool replay, trace;
    if (!mc_command_options(cli, &options)) return MC_EXIT_USAGE;
    mc_arena *arena = mc_arena_create();
    const char **words = MC_NEW_N(arena, const char *, 2 * cli->n_rest + 3);
    int n = translate(cli, words, &replay, &trace), code;
    options.pipeline = replay ? "@replay" : "@trace";
    if (replay || trace)
        code = mc_command_run(cli, &options, words, n);
    else
        code = mc_cli_usage("route writes a trace (-o FILE) or replays one (--replay FILE), as in: %s",
                            mc_command_infos[cli->command].example);
    mc_arena_destroy(arena);
    return code;
}
