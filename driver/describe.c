/* What an artefact says about itself is gathered here, because only the driver sees both the text and the code. */
#include "driver/describe.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

mc_str
mc_describe_rules(mc_unit *u)
{
    mc_str chosen = mc_module_meta(u->module, "weights");
    mc_buf text = {0};
    for (size_t i = 0; i < u->module->metas.n; i++) {
        const mc_meta *m = &u->module->metas.items[i];
        if (!mc_str_starts(m->key, "weights.")) continue;
        mc_str map = mc_str_slice(m->key, strlen("weights."), m->key.len);
        if (chosen.len && !mc_str_eq(map, chosen)) continue;
        mc_buf_printf(&text, "weights %.*s {\n%.*s\n}\n", MC_FMT(map), MC_FMT(m->value));
    }
    mc_str rules = mc_str_dup(u->arena, mc_buf_view(&text));
    mc_buf_fini(&text);
    return rules;
}

static json_t *
text_of(mc_str s)
{
    return json_stringn(s.data ? s.data : "", s.len);
}

mc_str
mc_describe_meta(mc_unit *u)
{
    json_t *meta = json_object(), *params = json_object();
    json_object_set_new(meta, "summary", text_of(mc_unit_summary(u)));
    if (u->elab.weights.n) {
        json_object_set_new(meta, "parameters", json_integer(u->elab.n_params));
        json_object_set_new(meta, "active_parameters", json_integer(u->elab.n_active_params));
    }
    for (size_t i = 0; i < u->elab.params.n; i++) {
        mc_str name = mc_str_dup(u->arena, u->elab.params.items[i].name);
        json_object_set_new(params, name.data, text_of(u->elab.params.items[i].value));
    }
    json_object_set_new(meta, "params", params);
    mc_str train = mc_module_meta(u->module, "train");
    if (train.len) json_object_set_new(meta, "train", text_of(train));
    char *dumped = json_dumps(meta, JSON_COMPACT | JSON_SORT_KEYS);
    mc_str text = mc_str_dup(u->arena, mc_str_of(dumped));
    free(dumped);
    json_decref(meta);
    return text;
}
