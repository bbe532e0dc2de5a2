/* The order of an elaboration: declarations of all files, then params and other file-level values, then the model from
 * the top, then what can only be checked when all weights and routes are known. */
#include "frontend/elaborate.h"

#include "frontend/elab.h"
#include "ir/verify.h"

void
mc_elab_init(mc_elab *e, mc_arena *arena, mc_sources *sources, const mc_elab_options *options, mc_diags *diags,
             mc_elab_result *out)
{
    static const mc_elab_options no_options = {0};
    *out = (mc_elab_result){0};
    *e = (mc_elab){.arena = arena, .sources = sources, .diags = diags, .out = out};
    e->options = options ? options : &no_options;
    mc_map *maps[] = {&e->names,   &e->blocks,  &e->prelude, &e->values,     &e->defaults,
                      &e->inlined, &e->weights, &e->kinds,   &e->func_names, &e->config_used};
    for (size_t i = 0; i < sizeof maps / sizeof maps[0]; i++) mc_map_init(maps[i], arena);
    e->storage = MOEC_BF16;
    e->module = mc_module_create(sources);
}

mc_str
mc_elab_node_key(mc_elab *e, const void *node)
{
    return (mc_str){mc_arena_copy(e->arena, &node, sizeof node), sizeof node};
}

void
mc_elab_see(mc_elab *e, const void *node, bool truth)
{
    if (!e->seen) return;
    mc_str key = mc_elab_node_key(e, node);
    uintptr_t bits = (uintptr_t)mc_map_get(e->seen, key) | (truth ? MC_SEEN_TRUE : MC_SEEN_FALSE);
    mc_map_set(e->seen, key, (void *)bits);
}

static const mc_item *
choose_model(mc_elab *e, uint32_t file)
{
    const mc_item *found = NULL, *first = NULL;
    mc_strs names = {0};
    for (size_t i = 0; i < e->items.n; i++) {
        const mc_item *item = e->items.items[i];
        if (item->kind != MC_ITEM_MODEL) continue;
        if (!first) first = item;
        mc_vec_push(e->arena, &names, item->name.text);
        if (mc_str_eq(item->name.text, e->options->model)) found = item;
    }
    mc_span whole = {file, 0, 0};
    mc_str wanted = e->options->model;
    if (!first) {
        mc_elab_error(e, whole, MC_E0207, "the file declares no model");
    } else if (wanted.len && !found) {
        mc_elab_error(e, whole, MC_E0207, "no model '%.*s'; there is %.*s%.*s", MC_FMT(wanted),
                      MC_FMT(mc_elab_join(e, names.items, names.n)),
                      MC_FMT(mc_elab_hint(e, wanted, names.items, names.n)));
    } else if (!wanted.len && names.n > 1) {
        mc_elab_error(e, first->name.span, MC_E0207, "the file declares several models: %.*s; choose one with -m",
                      MC_FMT(mc_elab_join(e, names.items, names.n)));
    } else {
        return found ? found : first;
    }
    return NULL;
}

static void
warn_of_unread_keys(mc_elab *e)
{
    const mc_elab_result *r = e->out;
    if (!e->reads_config || e->n_errors || r->config_unread.n == 0) return;
    mc_elab_warn(e, (mc_span){0}, MC_W0907, "config.json keys not read: %.*s",
                 MC_FMT(mc_elab_join(e, r->config_unread.items, r->config_unread.n)));
}

static void
elaborate(mc_elab *e, uint32_t file)
{
    if (!mc_elab_collect(e, file) || !mc_config_open(e)) return;
    mc_elab_block_facts(e);
    mc_elab_file_values(e);
    mc_elab_settings(e);
    const mc_item *model = choose_model(e, file);
    if (model && !e->fatal) mc_run_model(e, model);
    mc_elab_totals(e);
    if (e->fatal) return;
    mc_elab_rules(e);
    mc_elab_settings_check(e);
    if (e->n_errors == 0) mc_elab_usage(e);
    mc_config_close(e);
    warn_of_unread_keys(e);
}

bool
mc_elab_run(mc_elab *e, uint32_t file)
{
    int errors_before = e->diags->n_errors;
    e->main_file = file;
    elaborate(e, file);
    mc_config_close(e);
    return e->diags->n_errors == errors_before && e->n_errors == 0;
}

bool
mc_elaborate(mc_arena *arena, mc_sources *sources, uint32_t file, const mc_elab_options *options, mc_diags *diags,
             mc_elab_result *out)
{
    mc_elab e;
    mc_elab_init(&e, arena, sources, options, diags, out);
    bool ok = mc_elab_run(&e, file);
    if (ok) {
        mc_module_sort_funcs(e.module);
        ok = mc_module_verify(e.module, diags);
    }
    if (!ok) {
        mc_module_destroy(e.module);
        out->weights.n = 0; /* their types went with the module */
        return false;
    }
    out->module = e.module;
    return true;
}
