/* moec std: the prelude as it is embedded, or the text of one of its blocks. */
#include "driver/command.h"
#include "frontend/parse.h"

#include <stdio.h>

/* Where the next item starts, or the text ends: a block's text lasts until there. */
static uint32_t
end_of(const mc_item *item, mc_str text)
{
    uint32_t end = item->next ? item->next->span.begin : (uint32_t)text.len;
    while (end > item->span.begin && (text.data[end - 1] == '\n' || text.data[end - 1] == ' ')) end--;
    return end;
}

int
mc_cmd_std(const mc_cli *cli)
{
    static const moec_compile_options options;
    if (cli->n_files > 1) return mc_cli_usage("std takes one block or none, as in: moec std attention");
    mc_str text = mc_prelude_text(), name = cli->n_files ? mc_str_of(cli->files[0]) : MC_STR("");
    if (!cli->n_files) return mc_command_write(cli, text);
    mc_unit u;
    mc_unit_init(&u, &options);
    mc_unit_text(&u, "prelude", text.data, text.len);
    mc_file *file = mc_parse(u.arena, &u.sources, u.file, &u.diags);
    MC_VEC(mc_str) names = {0};
    int code = -1;
    for (const mc_item *item = file->items; item && code < 0; item = item->next) {
        if (item->kind == MC_ITEM_BLOCK) mc_vec_push(u.arena, &names, item->name.text);
        if (item->kind != MC_ITEM_BLOCK || !mc_str_eq(item->name.text, name)) continue;
        mc_str block = mc_str_slice(text, item->span.begin, end_of(item, text));
        code = mc_command_write(cli, mc_strf(u.arena, "%.*s\n", MC_FMT(block)));
    }
    if (code < 0) {
        mc_buf list = {0};
        for (size_t i = 0; i < names.n; i++) mc_buf_printf(&list, "%s%.*s", i ? ", " : "", MC_FMT(names.items[i]));
        code = mc_cli_usage("no built-in block '%.*s'; there is %s", MC_FMT(name), list.data);
        mc_buf_fini(&list);
    }
    mc_unit_fini(&u);
    return code;
}
