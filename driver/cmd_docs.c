/* moec docs: reference pages made from the tables, so that they cannot drift from the program. A test compares
 * docs/OPS.md, PASSES.md, ERRORS.md, OPTIONS.md, moec.1 and the completion with what this prints. */
#include "driver/backend.h"
#include "driver/command.h"

#include "ir/op.h"

#include <stdio.h>
#include <string.h>

static const char made[] = "<!-- Made by `moec docs %s` from the program's tables: do not edit. -->\n\n";

static void
print_ports(const mc_port_info *ports, int n, mc_buf *out)
{
    static const char *const classes[] = {"float", "integer", "any", "weight"};
    for (int i = 0; i < n; i++) {
        const char *mark = ports[i].arity == MC_ARITY_OPTIONAL ? "?" : ports[i].arity == MC_ARITY_ANY ? "..." : "";
        mc_buf_printf(out, "%s`%s%s` %s", i ? ", " : "", ports[i].name, mark, classes[ports[i].cls]);
    }
    if (!n) mc_buf_puts(out, "none");
}

static void
print_attr(const mc_attr_info *a, mc_buf *out)
{
    static const char *const kinds[] = {"", "int", "float", "bool", "string", "ints", "floats", "dtype", "function"};
    mc_buf_printf(out, "`%s` %s", a->name, kinds[a->kind]);
    if (a->required) return;
    mc_buf_puts(out, " = ");
    if (a->kind == MC_ATTR_STR)
        mc_buf_printf(out, "\"%s\"", a->text);
    else if (a->kind == MC_ATTR_BOOL)
        mc_buf_puts(out, a->number != 0 ? "true" : "false");
    else if (a->kind == MC_ATTR_INT)
        mc_buf_printf(out, "%lld", (long long)a->number);
    else if (a->kind == MC_ATTR_FLOAT)
        mc_buf_double(out, a->number);
    else
        mc_buf_puts(out, "none");
}

static void
print_stages(unsigned stages, mc_buf *out)
{
    static const char *const names[] = {"tensor", "dist", "plan"};
    const char *before = "\n- stages: ";
    for (int i = 0; i < 3; i++) {
        if (!(stages & 1u << i)) continue;
        mc_buf_printf(out, "%s%s", before, names[i]);
        before = ", ";
    }
}

/* Operations that name memory or stand only before the plan need no kernel. */
static void
print_backends(mc_opcode opcode, const mc_op_info *op, mc_buf *out)
{
    bool reaches_code = op->stages & MC_IN_PLAN;
    mc_buf_puts(out, "\n- runs on: the interpreter");
    if (!reaches_code) mc_buf_puts(out, "; a pass replaces it before code is made");
    if (reaches_code && mc_backend_has_kernel(opcode)) mc_buf_puts(out, ", CPU");
    if (reaches_code && mc_backend_gpu_has_kernel(opcode)) mc_buf_puts(out, ", GPU");
}

static void
page_ops(mc_buf *out)
{
    mc_buf_puts(out,
                "# Operations\n\n"
                "The operations of the IR, in the order of `ir/ops.def`. IR.md explains the text form, LANGUAGE.md the "
                "language\n"
                "above it. An operand or result is written with its class: float, integer or any tensor, or a weight "
                "in any storage\n"
                "format; `x?` may be absent, `x...` is any number. An attribute with a default may be left out.\n");
    for (int i = 0; i < MC_N_OPCODES; i++) {
        const mc_op_info *op = &mc_op_infos[i];
        mc_buf_printf(out, "\n## %s\n\n%s\n\n- operands: ", op->text, op->doc);
        print_ports(op->operands, op->n_operands, out);
        mc_buf_puts(out, "\n- results: ");
        print_ports(op->results, op->n_results, out);
        mc_buf_puts(out, "\n- attributes: ");
        for (int k = 0; k < op->n_attrs; k++) {
            if (k) mc_buf_puts(out, ", ");
            print_attr(&op->attrs[k], out);
        }
        if (!op->n_attrs) mc_buf_puts(out, "none");
        print_stages(op->stages, out);
        print_backends((mc_opcode)i, op, out);
        if (op->traits & MC_TRAIT_STATE)
            mc_buf_puts(out, "\n- keeps state across steps: never merged, removed or reordered");
        mc_buf_putc(out, '\n');
    }
}

static void
page_passes(mc_buf *out)
{
    mc_buf_puts(out, "# Passes\n\nFrom `passes/passes.def`. `--passes` takes a list with commas between: names, "
                     "`name{option=value}`,\n"
                     "`repeat(LIST)` (until nothing changes, at most 8 rounds) and `@NAME` for a named list:\n\n");
    for (int i = 0; i < mc_n_named_pipelines; i++)
        mc_buf_printf(out, "- `%s`: `%s`\n", mc_named_pipelines[i].name, mc_named_pipelines[i].text);
    for (int i = 0; i < mc_n_passes; i++) {
        const mc_pass_info *p = &mc_passes[i];
        mc_buf_printf(out, "\n## %s\n\n%s%s\n", p->name, p->doc, p->required ? " Required: it cannot be skipped." : "");
        print_stages(p->stages, out);
        mc_buf_puts(out, p->to_plan ? "; leaves stage plan\n" : "\n");
        for (int k = 0; k < p->n_options; k++)
            mc_buf_printf(out, "- option `%s` = %lld (%lld to %lld): %s\n", p->options[k].name,
                          (long long)p->options[k].value, (long long)p->options[k].least,
                          (long long)p->options[k].greatest, p->options[k].doc);
        for (int k = 0; k < mc_n_pass_orders; k++)
            if (strcmp(mc_pass_orders[k].first, p->name) == 0)
                mc_buf_printf(out, "- before `%s`: %s\n", mc_pass_orders[k].then, mc_pass_orders[k].why);
    }
}

static void
page_errors(mc_buf *out)
{
    static const char *const severities[] = {"error", "warning", "remark"};
    mc_buf_puts(out, "# Diagnostic codes\n\n"
                     "Errors stop the compiler, warnings do not; remarks are shown with `--remarks`. `moec explain "
                     "CODE` prints the\n"
                     "page of a code. Codes are never renumbered or reused.\n\n| code | kind | name | meaning "
                     "|\n|---|---|---|---|\n");
    for (int i = 0; i < MC_N_CODES; i++)
        mc_buf_printf(out, "| [%s](errors/%s.md) | %s | %s | %s |\n", mc_code_name((mc_code)i),
                      mc_code_name((mc_code)i), severities[mc_code_severity((mc_code)i)], mc_code_slug((mc_code)i),
                      mc_code_text((mc_code)i));
}

static void
option_left(const mc_option_info *o, mc_buf *out)
{
    if (o->letter) mc_buf_printf(out, "-%c, ", o->letter);
    mc_buf_printf(out, "--%s%s%s", o->name, o->value ? " " : "", o->value ? o->value : "");
}

static const struct app_option {
    const char *name, *value, *help;
} app_options[] = {
#define MC_APP_OPTION(ID, name, value, help) {name, value, help},
#include "runtime/app/app_options.def"
#undef MC_APP_OPTION
};

static const char environment[] =
    "- `MOEC_CACHE`: where compiled code and packed weights are kept (else `$XDG_CACHE_HOME/moec`, else "
    "`~/.cache/moec`)\n"
    "- `MOEC_CC`: the C compiler that links executables and libraries (else `cc`, `gcc`, `clang`)\n"
    "- `NO_COLOR`: no colour in diagnostics\n";

static void
page_options(mc_buf *out)
{
    mc_buf_puts(
        out, "# Commands and options\n\n"
             "`--name VALUE` or `--name=VALUE`, in any order. Exit codes: 0 done; 1 the input is wrong or something\n"
             "failed; 2 wrong command line; 3 this processor cannot run the code; 70 a fault of moec's own.\n");
    for (int c = 0; c < MC_N_COMMANDS; c++) {
        const mc_command_info *info = &mc_command_infos[c];
        mc_buf_printf(out, "\n## moec %s %s\n\nTo %s: `%s`\n\n", info->name, info->arguments, info->summary,
                      info->example);
        if (c == MC_COMMAND_RUN)
            mc_buf_puts(out, "What follows FILE belongs to the model: see executables below. moec's own options come "
                             "before FILE.\n\n");
        for (int i = 0; i < MC_N_OPTIONS; i++) {
            if (!(mc_option_infos[i].commands & 1u << c)) continue;
            mc_buf_puts(out, "- `");
            option_left(&mc_option_infos[i], out);
            mc_buf_printf(out, "`: %s\n", mc_option_infos[i].help);
        }
    }
    mc_buf_puts(out, "\n## Executables\n\nWhat `moec compile` makes, and `moec run FILE ...`:\n\n");
    for (size_t i = 0; i < sizeof app_options / sizeof *app_options; i++)
        mc_buf_printf(out, "- `--%s%s%s`: %s\n", app_options[i].name, app_options[i].value ? " " : "",
                      app_options[i].value ? app_options[i].value : "", app_options[i].help);
    mc_buf_printf(out, "\n## Environment\n\n%s", environment);
}

static void
roff_text(const char *text, mc_buf *out)
{
    for (; *text; text++) {
        if (*text == '-') mc_buf_putc(out, '\\');
        mc_buf_putc(out, *text);
    }
}

static void
page_man(mc_buf *out)
{
    mc_buf_puts(
        out, ".\\\" Made by `moec docs man`: do not edit.\n.TH MOEC 1 \"\" \"moec " MOEC_VERSION_STRING "\"\n.SH NAME\n"
             "moec \\- compile models with mixture\\-of\\-experts layers to native code\n.SH SYNOPSIS\n.B moec\n"
             "COMMAND [OPTION...] [FILE...]\n.SH COMMANDS\n");
    for (int c = 0; c < MC_N_COMMANDS; c++) {
        mc_buf_puts(out, ".TP\n.B ");
        roff_text(mc_command_infos[c].name, out);
        mc_buf_printf(out, " %s\n", mc_command_infos[c].arguments);
        roff_text(mc_command_infos[c].summary, out);
        mc_buf_puts(out, ":\n.B ");
        roff_text(mc_command_infos[c].example, out);
        mc_buf_putc(out, '\n');
    }
    mc_buf_puts(out, ".SH OPTIONS\nWhich command takes which: moec COMMAND \\-\\-help.\n");
    for (int i = 0; i < MC_N_OPTIONS; i++) {
        mc_buf left = {0};
        option_left(&mc_option_infos[i], &left);
        mc_buf_puts(out, ".TP\n.B ");
        roff_text(left.data, out);
        mc_buf_putc(out, '\n');
        roff_text(mc_option_infos[i].help, out);
        mc_buf_putc(out, '\n');
        mc_buf_fini(&left);
    }
    mc_buf_puts(out, ".SH OPTIONS OF EXECUTABLES\nWhat moec compile makes, and what follows FILE in moec run.\n");
    for (size_t i = 0; i < sizeof app_options / sizeof *app_options; i++) {
        mc_buf_puts(out, ".TP\n.B \\-\\-");
        roff_text(app_options[i].name, out);
        mc_buf_printf(out, "%s%s\n", app_options[i].value ? " " : "", app_options[i].value ? app_options[i].value : "");
        roff_text(app_options[i].help, out);
        mc_buf_putc(out, '\n');
    }
    mc_buf_puts(out, ".SH EXIT STATUS\n0 done; 1 the input is wrong or something failed; 2 wrong command line; 3 this "
                     "processor cannot run "
                     "the code; 70 a fault of moec's own.\n"
                     ".SH ENVIRONMENT\n.TP\n.B MOEC_CACHE\nwhere compiled code and packed weights are kept "
                     "(else $XDG_CACHE_HOME/moec, else ~/.cache/moec)\n.TP\n.B MOEC_CC\nthe C compiler driver that "
                     "links executables\n.TP\n"
                     ".B NO_COLOR\nno colour in diagnostics\n");
}

static void
page_completion(mc_buf *out)
{
    mc_buf_puts(out, "# bash completion for moec; made by `moec docs completion`: do not edit.\n_moec() {\n"
                     "    local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} words=\n"
                     "    if [ \"$COMP_CWORD\" = 1 ]; then\n        words=\"");
    for (int c = 0; c < MC_N_COMMANDS; c++) mc_buf_printf(out, "%s%s", c ? " " : "", mc_command_infos[c].name);
    mc_buf_puts(out, " --help --version\"\n    elif [[ $word == -* ]]; then\n        case $command in\n");
    for (int c = 0; c < MC_N_COMMANDS; c++) {
        mc_buf_printf(out, "        %s) words=\"", mc_command_infos[c].name);
        bool first = true;
        for (int i = 0; i < MC_N_OPTIONS; i++) {
            if (!(mc_option_infos[i].commands & 1u << c)) continue;
            mc_buf_printf(out, "%s--%s", first ? "" : " ", mc_option_infos[i].name);
            first = false;
        }
        mc_buf_puts(out, "\" ;;\n");
    }
    mc_buf_puts(out, "        esac\n    fi\n    COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
                     "    [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- \"$word\"))\n}\ncomplete -o "
                     "filenames -F _moec moec\n");
}

static const struct page {
    const char *name;
    void (*print)(mc_buf *out);
    bool is_markdown;
} pages[] = {{"ops", page_ops, true},         {"passes", page_passes, true}, {"errors", page_errors, true},
             {"options", page_options, true}, {"man", page_man, false},      {"completion", page_completion, false}};

int
mc_cmd_docs(const mc_cli *cli)
{
    const char *name = mc_cli_one_file(cli);
    if (!name) return MC_EXIT_USAGE;
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
        if (strcmp(name, pages[i].name) != 0) continue;
        mc_buf out = {0};
        if (pages[i].is_markdown) mc_buf_printf(&out, made, name);
        pages[i].print(&out);
        int code = mc_command_write(cli, mc_buf_view(&out));
        mc_buf_fini(&out);
        return code;
    }
    return mc_cli_usage("docs has the pages ops, passes, errors, options, man, completion, not '%s'", name);
}
