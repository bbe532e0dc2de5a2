/* The module: one arena that owns functions, ops, values, types and properties, all freed together. */
#include "ir/ir.h"

mc_module *
mc_module_create(const mc_sources *sources)
{
    mc_arena *arena = mc_arena_create();
    mc_module *m = MC_NEW(arena, mc_module);
    m->arena = arena;
    m->sources = sources;
    mc_map_init(&m->types, arena);
    return m;
}

void
mc_module_destroy(mc_module *m)
{
    if (m) mc_arena_destroy(m->arena);
}

mc_func *
mc_module_find(const mc_module *m, mc_str name)
{
    MC_FOR_FUNCS(f, m)
    {
        if (mc_str_eq(f->name, name)) return f;
    }
    return NULL;
}

mc_func *
mc_module_model(const mc_module *m)
{
    MC_FOR_FUNCS(f, m)
    {
        if (f->is_model) return f;
    }
    return NULL;
}

mc_str
mc_module_meta(const mc_module *m, const char *key)
{
    for (size_t i = 0; i < m->metas.n; i++) {
        if (mc_str_is(m->metas.items[i].key, key)) return m->metas.items[i].value;
    }
    return MC_STR("");
}

void
mc_module_set_meta(mc_module *m, mc_str key, mc_str value)
{
    value = mc_str_dup(m->arena, value);
    for (size_t i = 0; i < m->metas.n; i++) {
        if (!mc_str_eq(m->metas.items[i].key, key)) continue;
        m->metas.items[i].value = value;
        return;
    }
    mc_meta meta = {mc_str_dup(m->arena, key), value};
    mc_vec_push(m->arena, &m->metas, meta);
}
