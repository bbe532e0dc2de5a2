/* moec show: the weights of a model as a table, equal layers folded, with totals. */
#include "driver/command.h"

#include <stdio.h>

typedef struct weight_line {
    mc_str pattern, type, role;
    size_t n;
} weight_line;

static void
print_weights(mc_unit *u)
{
    mc_map lines;
    mc_map_init(&lines, u->arena);
    for (size_t i = 0; i < u->elab.weights.n; i++) {
        const mc_weight_info *w = &u->elab.weights.items[i];
        mc_str type = mc_type_text(u->module, w->type, u->arena);
        mc_str pattern = mc_command_fold(u->arena, w->path);
        mc_str key = mc_strf(u->arena, "%.*s %.*s %.*s", MC_FMT(pattern), MC_FMT(type), MC_FMT(w->role));
        weight_line *line = mc_map_get(&lines, key);
        if (!line) {
            line = MC_NEW(u->arena, weight_line);
            *line = (weight_line){pattern, type, w->role, 0};
            mc_map_set(&lines, key, line);
        }
        line->n++;
    }
    for (size_t i = 0; i < lines.n; i++) {
        const weight_line *l = lines.entries[i].value;
        char times[24] = "";
        if (l->n > 1) snprintf(times, sizeof times, "%zu x", l->n);
        printf("%6s %-56.*s %-24.*s %.*s\n", times, MC_FMT(l->pattern), MC_FMT(l->type), MC_FMT(l->role));
    }
}

static void
print_params(const mc_unit *u)
{
    for (size_t i = 0; i < u->elab.params.n; i++) {
        const mc_param_info *p = &u->elab.params.items[i];
        printf("%s%.*s = %.*s%s", i ? ", " : "params: ", MC_FMT(p->name), MC_FMT(p->value),
               p->overridden ? " (given)" : "");
    }
    if (u->elab.params.n) putchar('\n');
}

int
mc_cmd_show(const mc_cli *cli)
{
    moec_compile_options options;
    if (!mc_command_options(cli, &options)) return MC_EXIT_USAGE;
    const char *path = mc_cli_one_file(cli);
    if (!path) return MC_EXIT_USAGE;
    mc_unit u;
    mc_unit_init(&u, &options);
    bool good = mc_unit_load(&u, path) && mc_unit_elaborate(&u);
    mc_unit_deliver(&u);
    if (good) {
        printf("%.*s\n", MC_FMT(mc_module_model(u.module)->name));
        print_params(&u);
        print_weights(&u);
        printf("%zu weights, %.3f B parameters (%.3f B active)\n", u.elab.weights.n, (double)u.elab.n_params / 1e9,
               (double)u.elab.n_active_params / 1e9);
    }
    int code = good ? MC_EXIT_OK : mc_command_exit_code(mc_unit_status(&u));
    mc_unit_fini(&u);
    return code;
}
