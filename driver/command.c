#include "driver/command.h"

#include "ir/print.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void
print_text(void *user, const moec_diagnostic *d)
{
    (void)user;
    fputs(d->rendered, stderr);
}

static void
print_json(void *user, const moec_diagnostic *d)
{
    (void)user;
    fputs(d->json, stderr);
}

bool
mc_command_options(const mc_cli *cli, moec_compile_options *out)
{
    *out = (moec_compile_options){.model = mc_cli_value(cli, MC_OPTION_MODEL),
                                  .defines = cli->values[MC_OPTION_DEFINE],
                                  .n_defines = cli->n_values[MC_OPTION_DEFINE],
                                  .settings = cli->values[MC_OPTION_SET],
                                  .n_settings = cli->n_values[MC_OPTION_SET],
                                  .config = mc_cli_value(cli, MC_OPTION_CONFIG),
                                  .map = mc_cli_value(cli, MC_OPTION_MAP),
                                  .target = mc_cli_value(cli, MC_OPTION_TARGET),
                                  .gpu = mc_cli_value(cli, MC_OPTION_GPU),
                                  .dump_dir = mc_cli_value(cli, MC_OPTION_DUMP_DIR),
                                  .pipeline = mc_cli_value(cli, MC_OPTION_PASSES),
                                  .cache = mc_cli_value(cli, MC_OPTION_CACHE_DIR),
                                  .train = mc_cli_has(cli, MC_OPTION_TRAIN) || cli->command == MC_COMMAND_TRAIN ||
                                           cli->command == MC_COMMAND_MEM,
                                  .recompute = mc_cli_has(cli, MC_OPTION_RECOMPUTE),
                                  .mesh = mc_cli_value(cli, MC_OPTION_MESH),
                                  .frozen = mc_cli_value(cli, MC_OPTION_FROZEN),
                                  .remarks = mc_cli_has(cli, MC_OPTION_REMARKS),
                                  .color = cli->color,
                                  .on_diagnostic = print_text};
    if (!out->train && (out->recompute || out->frozen)) {
        mc_cli_usage("--recompute and --frozen go with --train");
        return false;
    }
    const char *form = mc_cli_value(cli, MC_OPTION_DIAGNOSTICS);
    if (!form || strcmp(form, "text") == 0) return true;
    out->on_diagnostic = print_json;
    if (strcmp(form, "json") == 0) return true;
    mc_cli_usage("--diagnostics is text or json, not '%s'", form);
    return false;
}

bool
mc_command_count(const mc_cli *cli, mc_option option, int64_t most, int64_t *out)
{
    const char *text = mc_cli_value(cli, option);
    char *end;
    if (!text) return true;
    long long value = strtoll(text, &end, 10);
    if (*text >= '0' && *text <= '9' && !*end && value > 0 && value <= most) {
        *out = value;
        return true;
    }
    mc_cli_usage("--%s takes a whole number from 1 to %lld, not '%s'", mc_option_infos[option].name, (long long)most,
                 text);
    return false;
}

/* ---- what the harness reports ---- */

typedef struct pass_printer {
    bool changed, times;
} pass_printer;

static void
on_step(void *user, const mc_step_report *r)
{
    const pass_printer *printer = user;
    if (printer->times) fprintf(stderr, "%8.3f ms  %s%s\n", r->seconds * 1e3, r->pass, r->skipped ? " (skipped)" : "");
    if (r->last_rewrite.len)
        fprintf(stderr, "moec: fuel ran out in %s, after: %.*s\n", r->pass, MC_FMT(r->last_rewrite));
    if (!printer->changed || r->result != MC_CHANGED) return;
    mc_buf text = {0};
    mc_module_print(r->module, &text);
    fprintf(stderr, "# after %d, %s\n%s\n", r->index, r->pass, text.data);
    mc_buf_fini(&text);
}

static void
on_reproducer(void *user, mc_str text)
{
    (void)user;
    const char *path = "moec-reproducer.moir";
    mc_fault fault = {0};
    if (mc_file_write(path, text.data, text.len, 0644, &fault) == MOEC_OK)
        fprintf(stderr, "moec: this is a fault of moec's own; %s shows it: please report it\n", path);
    else
        fprintf(stderr, "moec: this is a fault of moec's own, and the reproducer could not be written: %s\n",
                fault.text);
}

static bool
read_number(const mc_cli *cli, mc_option option, int64_t *out)
{
    const char *text = mc_cli_value(cli, option);
    char *end;
    *out = strtoll(text, &end, 10);
    if (*text && !*end && *out >= 0) return true;
    mc_cli_usage("--%s takes a number, not '%s'", mc_option_infos[option].name, text);
    return false;
}

bool
mc_command_pass_options(const mc_cli *cli, mc_arena *arena, mc_pass_options *out)
{
    *out = mc_pass_options_default();
    mc_str *skip = MC_NEW_N(arena, mc_str, cli->n_values[MC_OPTION_SKIP] + 1);
    for (size_t i = 0; i < cli->n_values[MC_OPTION_SKIP]; i++) skip[i] = mc_str_of(cli->values[MC_OPTION_SKIP][i]);
    out->skip = skip;
    out->n_skip = cli->n_values[MC_OPTION_SKIP];
    out->dump_dir = mc_cli_value(cli, MC_OPTION_DUMP_DIR);
    if (mc_cli_has(cli, MC_OPTION_VERIFY_EACH)) out->verify_each = out->roundtrip_each = out->check_unchanged = true;
    pass_printer *printer = MC_NEW(arena, pass_printer);
    printer->changed = mc_cli_has(cli, MC_OPTION_PRINT_CHANGED);
    printer->times = mc_cli_has(cli, MC_OPTION_TIME_PASSES);
    out->on_step = on_step;
    out->on_reproducer = on_reproducer;
    out->user = printer;
    if (mc_cli_has(cli, MC_OPTION_NR)) {
        mc_pass_setting *nr = MC_NEW(arena, mc_pass_setting);
        nr->key = MC_STR("nr");
        if (!read_number(cli, MC_OPTION_NR, &nr->value)) return false;
        out->settings = nr;
        out->n_settings = 1;
    }
    out->limit_fuel = mc_cli_has(cli, MC_OPTION_FUEL);
    return !out->limit_fuel || read_number(cli, MC_OPTION_FUEL, &out->fuel);
}

int
mc_command_exit_code(moec_status status)
{
    switch (status) {
    case MOEC_OK: return MC_EXIT_OK;
    case MOEC_ERR_INTERNAL: return MC_EXIT_INTERNAL;
    default: return MC_EXIT_FAILED;
    }
}

int
mc_command_failed(moec_status status, const char *text)
{
    fprintf(stderr, "moec: %s\n", text);
    return mc_command_exit_code(status);
}

mc_str
mc_command_fold(mc_arena *arena, mc_str path)
{
    mc_buf out = {0};
    for (size_t i = 0; i < path.len;) {
        bool start = i == 0 || path.data[i - 1] == '.';
        size_t end = i;
        while (end < path.len && isdigit((unsigned char)path.data[end])) end++;
        if (start && end > i && (end == path.len || path.data[end] == '.')) {
            mc_buf_putc(&out, '*');
            i = end;
        } else {
            mc_buf_putc(&out, path.data[i++]);
        }
    }
    mc_str pattern = mc_str_dup(arena, mc_buf_view(&out));
    mc_buf_fini(&out);
    return pattern;
}

int
mc_command_write(const mc_cli *cli, mc_str text)
{
    const char *path = mc_cli_value(cli, MC_OPTION_OUTPUT);
    mc_fault fault = {0};
    if (path && strcmp(path, "-") != 0) {
        moec_status status = mc_file_write(path, text.data, text.len, 0644, &fault);
        return status == MOEC_OK ? MC_EXIT_OK : mc_command_failed(status, fault.text);
    }
    if (fwrite(text.data, 1, text.len, stdout) != text.len || fflush(stdout) != 0)
        return mc_command_failed(MOEC_ERR_IO, "cannot write to standard output");
    return MC_EXIT_OK;
}
