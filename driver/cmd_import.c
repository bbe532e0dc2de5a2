/* moec import: a Hugging Face directory's config.json becomes a plain .moe text. */
#include "driver/command.h"
#include "frontend/import.h"

static bool
import_directory(mc_unit *u, const mc_cli *cli, const char *directory, mc_buf *out)
{
    mc_str config;
    mc_fault fault = {0};
    bool good = mc_unit_read_config(u, directory, &config, &fault) == MOEC_OK;
    if (!good) mc_error(&u->diags, (mc_span){0}, MC_E0909, "%s", fault.text);
    size_t n = cli->n_values[MC_OPTION_DEFINE];
    mc_str *defines = MC_NEW_N(u->arena, mc_str, n + 1);
    for (size_t i = 0; i < n; i++) defines[i] = mc_str_of(cli->values[MC_OPTION_DEFINE][i]);
    mc_import_options options = {.config = config, .defines = defines, .n_defines = n};
    good = good && mc_import(u->arena, &u->sources, &options, &u->diags, out);
    return good;
}

int
mc_cmd_import(const mc_cli *cli)
{
    moec_compile_options options;
    if (!mc_command_options(cli, &options)) return MC_EXIT_USAGE;
    const char *directory = mc_cli_one_file(cli);
    if (!directory) return MC_EXIT_USAGE;
    mc_unit u;
    mc_buf text = {0};
    mc_unit_init(&u, &options);
    bool good = import_directory(&u, cli, directory, &text);
    mc_unit_deliver(&u);
    int code = good ? mc_command_write(cli, mc_buf_view(&text)) : mc_command_exit_code(mc_unit_status(&u));
    mc_buf_fini(&text);
    mc_unit_fini(&u);
    return code;
}
