/* moec fmt: one style for all texts. */
#include "driver/command.h"
#include "frontend/format.h"

#include <stdio.h>

static int
format_one(const mc_cli *cli, const moec_compile_options *options, const char *path)
{
    mc_unit u;
    mc_buf out = {0};
    mc_fault fault = {0};
    int code = MC_EXIT_FAILED;
    mc_unit_init(&u, options);
    if (mc_unit_load(&u, path) && mc_format(u.arena, &u.sources, u.file, &u.diags, &out)) {
        mc_str before = mc_source_of(&u.sources, (mc_span){u.file, 0, 0})->text;
        bool same = mc_str_eq(before, mc_buf_view(&out));
        code = MC_EXIT_OK;
        if (mc_cli_has(cli, MC_OPTION_VERIFY_FMT)) {
            if (!same) printf("%s\n", path);
            code = same ? MC_EXIT_OK : MC_EXIT_FAILED;
        } else if (!mc_cli_has(cli, MC_OPTION_WRITE)) {
            fwrite(out.data, 1, out.len, stdout);
        } else if (!same && mc_file_write(path, out.data, out.len, 0644, &fault) != MOEC_OK) {
            code = mc_command_failed(MOEC_ERR_IO, fault.text);
        }
    }
    mc_unit_deliver(&u);
    mc_unit_fini(&u);
    mc_buf_fini(&out);
    return code;
}

int
mc_cmd_fmt(const mc_cli *cli)
{
    moec_compile_options options;
    if (!mc_command_options(cli, &options)) return MC_EXIT_USAGE;
    if (!cli->n_files) return mc_cli_usage("fmt needs a file, as in: moec fmt --write model.moe");
    int worst = MC_EXIT_OK;
    for (size_t i = 0; i < cli->n_files; i++) {
        int code = format_one(cli, &options, cli->files[i]);
        if (code > worst) worst = code;
    }
    return worst;
}
