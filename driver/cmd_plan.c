/* moec plan: how the rows of a model's experts travel between ranks, what that takes, and why so: before anything runs.
 * The mesh is the place block's; what the command line says of it is put behind as later settings, which win. */
#include "driver/command.h"
#include "driver/plan_traffic.h"
#include "passes/ep/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LINKS_BYTES = 1 << 20, DEFAULT_TOKENS = 4096, MOST = 1 << 28 };

/* What the plan is made of: the program as it is shared out, before weights are packed. */
static const char forward_passes[] = "expand-moe,canonicalize,cse,dce,absorb-mla,fuse-moe,carve-fp8,dce";
static const char train_passes[] = "expand-moe,canonicalize,cse,dce,fuse-moe{train=1},dce";

typedef struct request {
    const mc_cli *cli;
    mc_unit *unit;
    mc_ep_mesh mesh;
    mc_ep_settings settings;
    mc_plan_traffic traffic;
} request;

/* --links: a file, or else rows of the table. */
static bool
read_links(request *r)
{
    const char *path = mc_cli_value(r->cli, MC_OPTION_LINKS);
    mc_ep_links_default(&r->settings.links);
    if (!path || mc_ep_links_named(mc_str_of(path), &r->settings.links)) return true;
    mc_buf text = {0};
    mc_fault fault = {0};
    bool good = mc_file_read(path, MAX_LINKS_BYTES, &text, &fault) == MOEC_OK;
    if (good) {
        uint32_t file = mc_sources_add(&r->unit->sources, mc_str_of(path), mc_buf_view(&text));
        good = mc_ep_links_parse(&r->unit->sources, file, &r->settings.links, &r->unit->diags);
    } else {
        mc_error(&r->unit->diags, (mc_span){0}, MC_E0909, "%s", fault.text);
    }
    mc_buf_fini(&text);
    return good;
}

/* The place block with --mesh, --nodes and --redundant behind it; experts go over `ep` when nothing says where, and
 * over as many ranks as are to be simulated when nothing says over how many. */
static bool
read_mesh(request *r)
{
    mc_module *m = r->unit->module;
    const char *mesh = mc_cli_value(r->cli, MC_OPTION_MESH);
    mc_str place = mc_module_meta(m, "place");
    mc_buf text = {0};
    if (!mesh && !place.len && r->traffic.ranks)
        mesh = mc_strf(r->unit->arena, "ep = %lld", (long long)r->traffic.ranks).data;
    if (mesh) mc_buf_puts(&text, "experts over = ep; ");
    mc_buf_str(&text, place);
    if (mesh) mc_buf_printf(&text, "%smesh %s", place.len ? "; " : "", mesh);
    int64_t nodes = 0, redundant = 0;
    bool good = mc_command_count(r->cli, MC_OPTION_NODES, MOST, &nodes) &&
                mc_command_count(r->cli, MC_OPTION_REDUNDANT, MOST, &redundant);
    if (nodes) mc_buf_printf(&text, "%snodes %lld", text.len ? "; " : "", (long long)nodes);
    if (redundant) mc_buf_printf(&text, "%sredundant %lld", text.len ? "; " : "", (long long)redundant);
    good = good && mc_ep_mesh_parse(mc_str_dup(r->unit->arena, mc_buf_view(&text)), &r->mesh, &r->unit->diags);
    if (!good && r->mesh.state == MC_EP_MESH_NONE && !r->unit->diags.n_errors)
        mc_error(&r->unit->diags, (mc_span){0}, MC_E0801,
                 "the text has no 'place { mesh ep = N; experts over = ep }'; give --mesh ep=N");
    mc_buf_fini(&text);
    return good;
}

static bool
make_plan(request *r, const char *path, mc_ep_plan *plan)
{
    mc_unit *u = r->unit;
    if (!read_links(r) || !mc_unit_load(u, path) || !mc_unit_elaborate(u)) return false;
    mc_pass_options options = mc_pass_options_default();
    if (!mc_unit_passes(u, &options) || !read_mesh(r)) return false;
    if (!mc_ep_plan_make(u->module, &r->mesh, &r->settings, u->arena, &u->diags, plan)) return false;
    return plan->layers.n > 0 ||
           mc_error(&u->diags, (mc_span){0}, MC_E0801, "'%.*s' has no experts to share out", MC_FMT(plan->model));
}

static int
run(request *r, const char *path)
{
    mc_ep_plan plan;
    bool good = make_plan(r, path, &plan);
    mc_unit_deliver(r->unit);
    if (!good) return mc_command_exit_code(mc_unit_status(r->unit));
    mc_buf text = {0};
    bool json = mc_cli_has(r->cli, MC_OPTION_JSON);
    if (json)
        mc_ep_plan_json(&plan, &text);
    else
        mc_ep_plan_text(&plan, mc_cli_has(r->cli, MC_OPTION_EXPLAIN), &text);
    int code = mc_plan_traffic_run(&r->traffic, &plan, r->unit->arena, json, &text);
    if (json) mc_buf_puts(&text, "}\n");
    if (code == MC_EXIT_OK) code = mc_command_write(r->cli, mc_buf_view(&text));
    mc_buf_fini(&text);
    return code;
}

int
mc_cmd_plan(const mc_cli *cli)
{
    moec_compile_options options;
    if (!mc_command_options(cli, &options)) return MC_EXIT_USAGE;
    options.pipeline = options.train ? train_passes : forward_passes;
    request r = {.cli = cli, .settings = {.tokens = DEFAULT_TOKENS, .trains = options.train}};
    int64_t count;
    if (!mc_command_count(cli, MC_OPTION_TOKENS, MOST, &r.settings.tokens) ||
        !mc_command_count(cli, MC_OPTION_NODES, MOST, &count) ||
        !mc_command_count(cli, MC_OPTION_REDUNDANT, MOST, &count))
        return MC_EXIT_USAGE;
    const char *path = mc_cli_one_file(cli), *mesh = mc_cli_value(cli, MC_OPTION_MESH);
    if (!path) return MC_EXIT_USAGE;
    if (mesh && !mc_ep_mesh_is_axes(mc_str_of(mesh)))
        return mc_cli_usage("--mesh takes axes and sizes, as in --mesh dp=4,ep=64, not '%s'", mesh);
    int code = mc_plan_traffic_begin(cli, &r.traffic);
    if (code == MC_EXIT_OK) {
        mc_unit u;
        mc_unit_init(&u, &options);
        r.unit = &u;
        code = run(&r, path);
        mc_unit_fini(&u);
    }
    mc_plan_traffic_end(&r.traffic);
    return code;
}
