#include "tests/support/plain_weights.h"

#include "runtime/abi.h"
#include "runtime/session.h"

#include <string.h>

struct mc_plain_weights {
    mc_arena *arena;
    moec_abi_model abi;
    moec_model *model;
    moec_weights *weights;
    const mc_elab_result *source;
    mc_map index; /* path -> position + 1 */
};

/* The rules of all maps, as the driver puts them into an artefact. */
static const char *
rules_of(const mc_module *m, mc_arena *arena)
{
    mc_buf text = {0};
    for (size_t i = 0; i < m->metas.n; i++)
        if (mc_str_starts(m->metas.items[i].key, "weights."))
            mc_buf_printf(&text, "weights %.*s {\n%.*s\n}\n", (int)m->metas.items[i].key.len - 8,
                          m->metas.items[i].key.data + 8, MC_FMT(m->metas.items[i].value));
    const char *rules = mc_str_dup(arena, mc_buf_view(&text)).data;
    mc_buf_fini(&text);
    return rules;
}

static void
fill_table(mc_plain_weights *w)
{
    size_t n = w->source->weights.n;
    moec_abi_weight *table = MC_NEW_N(w->arena, moec_abi_weight, n);
    for (size_t i = 0; i < n; i++) {
        const mc_weight_info *info = &w->source->weights.items[i];
        table[i] = (moec_abi_weight){.path = mc_str_dup(w->arena, info->path).data,
                                     .role = mc_str_dup(w->arena, info->role).data,
                                     .dtype = (uint32_t)info->type->dtype,
                                     .layout = MOEC_ABI_ROWS,
                                     .rank = info->type->rank};
        for (int d = 0; d < info->type->rank; d++) table[i].dims[d] = info->type->dims[d].mul;
        mc_map_set(&w->index, info->path, (void *)(i + 1));
    }
    w->abi.weights = table;
    w->abi.n_weights = (uint32_t)n;
}

mc_plain_weights *
mc_plain_weights_open(const mc_elab_result *model, const char *directory, moec_error *error)
{
    static const moec_abi_func func = {.name = "none"};
    mc_arena *arena = mc_arena_create();
    mc_plain_weights *w = MC_NEW(arena, mc_plain_weights);
    w->arena = arena;
    w->source = model;
    mc_map_init(&w->index, arena);
    fill_table(w);
    w->abi.magic = MOEC_ABI_MAGIC;
    w->abi.version = MOEC_ABI_VERSION;
    w->abi.name = w->abi.compiler = w->abi.target = w->abi.cpu = w->abi.features = w->abi.strings = "";
    w->abi.meta = "{}";
    w->abi.rules = rules_of(model->module, arena);
    w->abi.funcs = &func;
    w->abi.n_funcs = 1;
    w->abi.batch_sym = w->abi.backward = UINT32_MAX;
    moec_weights_options options = {.in_memory = true};
    if (moec_model_from_abi(&w->abi, &w->model, error) == MOEC_OK &&
        moec_weights_open(w->model, directory, &options, &w->weights, error) == MOEC_OK)
        return w;
    mc_plain_weights_close(w);
    return NULL;
}

void
mc_plain_weights_close(mc_plain_weights *w)
{
    if (!w) return;
    moec_weights_close(w->weights);
    moec_model_destroy(w->model);
    mc_arena_destroy(w->arena);
}

bool
mc_plain_weights_get(void *user, const mc_ref_weight_request *request, mc_ref_tensor *out)
{
    mc_plain_weights *w = user;
    size_t position = (size_t)mc_map_get(&w->index, request->path);
    if (!position) return false;
    const moec_abi_weight *entry = &w->abi.weights[position - 1];
    *out = (mc_ref_tensor){.dtype = (moec_dtype)entry->dtype, .rank = (int)entry->rank, .n = 1};
    for (uint32_t d = 0; d < entry->rank; d++) {
        out->dims[d] = entry->dims[d];
        out->n *= entry->dims[d];
    }
    out->data = mc_weights_addresses(w->weights)[position - 1];
    return true;
}
