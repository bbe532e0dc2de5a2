/* moec opt: runs passes on a .moe or .moir text and prints the IR; without --passes, the text's own IR. */
#include "driver/command.h"
#include "ir/print.h"
#include "ir/verify.h"

int
mc_cmd_opt(const mc_cli *cli)
{
    moec_compile_options options;
    if (!mc_command_options(cli, &options)) return MC_EXIT_USAGE;
    const char *path = mc_cli_one_file(cli);
    if (!path) return MC_EXIT_USAGE;
    mc_unit u;
    mc_unit_init(&u, &options);
    mc_pass_options pass_options;
    int code = MC_EXIT_USAGE;
    if (mc_command_pass_options(cli, u.arena, &pass_options)) {
        bool good = mc_unit_load(&u, path) && mc_unit_elaborate(&u) && mc_module_verify(u.module, &u.diags);
        if (good && options.pipeline) good = mc_unit_passes(&u, &pass_options);
        mc_unit_deliver(&u);
        mc_buf text = {0};
        if (good) mc_module_print(u.module, &text);
        code = good ? mc_command_write(cli, mc_buf_view(&text)) : mc_command_exit_code(mc_unit_status(&u));
        mc_buf_fini(&text);
    }
    mc_unit_fini(&u);
    return code;
}
