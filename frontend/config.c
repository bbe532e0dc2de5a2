/* config("a.b", "c", default): a value of config.json. Keys are tried in order, dots descend, null counts as absent.
 * Which top-level keys the text names is kept, so that what a family file ignores can be reported. */
#include "frontend/elab.h"
#include "frontend/walk.h"

#include <jansson.h>
#include <string.h>

enum { MAX_CONFIG_DEPTH = 32 };

/* Keys that say nothing about what the model computes. '*' at the front: any key that ends so. */
static const char *const harmless[] = {"*_token_id",
                                       "*dropout",
                                       "*_prob",
                                       "_name_or_path",
                                       "architectures",
                                       "auto_map",
                                       "aux_loss_alpha",
                                       "dtype",
                                       "ep_size",
                                       "initializer_range",
                                       "max_window_layers",
                                       "model_type",
                                       "num_nextn_predict_layers",
                                       "output_attentions",
                                       "output_hidden_states",
                                       "output_router_logits",
                                       "pretraining_tp",
                                       "quantization_config",
                                       "return_dict",
                                       "router_aux_loss_coef",
                                       "router_jitter_noise",
                                       "seq_aux",
                                       "torch_dtype",
                                       "transformers_version",
                                       "use_cache"};

static bool
is_harmless(mc_str key)
{
    for (size_t i = 0; i < sizeof harmless / sizeof harmless[0]; i++) {
        const char *h = harmless[i];
        if (mc_str_is(key, "norm_topk_prob")) return false; /* ends with _prob, but decides the route */
        if (h[0] == '*' ? mc_str_ends(key, h + 1) : mc_str_is(key, h)) return true;
    }
    return false;
}

/* Every key that the text names counts as read, also where this configuration does not come by: its author knew it. */
static void
see_config(void *context, const mc_expr *x)
{
    mc_elab *e = context;
    bool config = x->kind == MC_EXPR_CALL && x->a->kind == MC_EXPR_NAME && mc_str_is(x->a->as.text, "config");
    for (const mc_arg *a = x->items; config && a; a = a->next) {
        if (a->value->kind != MC_EXPR_STRING) continue;
        mc_str path = a->value->as.text;
        size_t end = 0;
        while (end < path.len && path.data[end] != '.') end++;
        mc_map_set(&e->config_used, mc_str_slice(path, 0, end), e);
        e->reads_config = true;
    }
}

bool
mc_config_open(mc_elab *e)
{
    mc_str text = e->options->config;
    if (text.len == 0) return true;
    json_error_t error;
    json_t *root = json_loadb(text.data, text.len, JSON_REJECT_DUPLICATES, &error);
    if (!root || !json_is_object(root)) {
        mc_str why = root ? MC_STR("it is not an object") : mc_str_dup(e->arena, mc_str_of(error.text));
        json_decref(root);
        mc_elab_error(e, (mc_span){0}, MC_E0908, "config.json: %.*s (line %d)", MC_FMT(why), root ? 1 : error.line);
        return false;
    }
    e->config = root;
    for (size_t i = 0; i < e->items.n; i++) mc_walk_item(e->items.items[i], see_config, e);
    return true;
}

/* Ends the reading: which keys were read and which were not is now known. */
void
mc_config_close(mc_elab *e)
{
    const char *key;
    json_t *value;
    if (!e->config) return;
    json_object_foreach(e->config, key, value)
    {
        mc_str name = mc_str_dup(e->arena, mc_str_of(key));
        if (mc_map_has(&e->config_used, name)) {
            mc_vec_push(e->arena, &e->out->config_read, name);
        } else if (!json_is_null(value) && !is_harmless(name)) {
            mc_vec_push(e->arena, &e->out->config_unread, name);
        }
    }
    json_decref(e->config);
    e->config = NULL;
}

static mc_val to_value(mc_elab *e, const json_t *j, mc_span span, int depth);

static mc_val
to_list(mc_elab *e, const json_t *j, mc_span span, int depth)
{
    size_t n = json_array_size(j);
    mc_val v = {.kind = MC_VAL_LIST, .span = span};
    v.as.list = (mc_val_list){MC_NEW_N(e->arena, mc_val, n), n, n};
    for (size_t i = 0; i < n; i++) {
        mc_val item = to_value(e, json_array_get(j, i), span, depth + 1);
        if (item.kind == MC_VAL_POISON) return item;
        v.as.list.items[i] = item;
        if (item.kind == MC_VAL_LIST) v.as.list.total += item.as.list.total;
    }
    if (v.as.list.total > MC_MAX_LIST)
        return mc_elab_error(e, span, MC_E0319, "a list of config.json has more than %d items", MC_MAX_LIST);
    return v;
}

static mc_val
to_value(mc_elab *e, const json_t *j, mc_span span, int depth)
{
    if (depth > MAX_CONFIG_DEPTH) return mc_elab_error(e, span, MC_E0319, "config.json is nested too deep");
    switch (json_typeof(j)) {
    case JSON_INTEGER: return mc_val_int(json_integer_value(j), span);
    case JSON_REAL: return mc_val_real(json_real_value(j), span);
    case JSON_TRUE: return mc_val_bool(true, span);
    case JSON_FALSE: return mc_val_bool(false, span);
    case JSON_NULL: return mc_val_none(span);
    case JSON_STRING: {
        mc_str text = {json_string_value(j), json_string_length(j)};
        return mc_val_text(MC_VAL_STRING, mc_str_dup(e->arena, text), span);
    }
    case JSON_ARRAY: return to_list(e, j, span, depth);
    case JSON_OBJECT: break;
    }
    return mc_elab_error(e, span, MC_E0306,
                         "this key of config.json holds an object; name a key inside it, as in \"a.b\"");
}

static const json_t *
find(mc_elab *e, mc_str path)
{
    const json_t *j = e->config;
    for (size_t begin = 0; j && begin <= path.len;) {
        size_t end = begin;
        while (end < path.len && path.data[end] != '.') end++;
        mc_str part = mc_str_dup(e->arena, mc_str_slice(path, begin, end));
        j = json_is_object(j) ? json_object_get(j, part.data) : NULL;
        begin = end + 1;
    }
    return j && !json_is_null(j) ? j : NULL;
}

static mc_val
absent(mc_elab *e, const mc_expr *x, const mc_strs *keys)
{
    mc_buf text = {0};
    for (size_t i = 0; i < keys->n; i++) {
        if (i) mc_buf_puts(&text, " or ");
        mc_buf_printf(&text, "\"%.*s\"", MC_FMT(keys->items[i]));
    }
    if (e->options->config.len)
        mc_elab_error(e, x->span, MC_E0906, "config.json has no key %.*s, and no default is given",
                      MC_FMT(mc_buf_view(&text)));
    else
        mc_elab_error(e, x->span, MC_E0906, "%.*s is read from config.json, and none is given (--config)",
                      MC_FMT(mc_buf_view(&text)));
    mc_buf_fini(&text);
    return mc_val_poison();
}

mc_val
mc_config_call(mc_elab *e, const mc_expr *x)
{
    mc_strs keys = {0};
    const mc_arg *fallback = NULL;
    for (const mc_arg *a = x->items; a; a = a->next) {
        bool is_key = a->value->kind == MC_EXPR_STRING && !a->name.text.len;
        if (is_key && !fallback) {
            mc_vec_push(e->arena, &keys, a->value->as.text);
        } else if (a->next || a->name.text.len) {
            return mc_elab_error(e, a->value->span, MC_E0306,
                                 "config takes keys in quotes and then one default that is no string");
        } else {
            fallback = a;
        }
    }
    if (keys.n == 0) return mc_elab_error(e, x->span, MC_E0307, "config needs a key, as in config(\"hidden_size\")");
    const json_t *found = NULL;
    for (size_t i = 0; i < keys.n && !found; i++) found = find(e, keys.items[i]);
    mc_val v = found ? to_value(e, found, x->span, 0) : fallback ? mc_eval(e, fallback->value) : absent(e, x, &keys);
    if (e->config_values) mc_map_set(e->config_values, mc_elab_node_key(e, x), mc_arena_copy(e->arena, &v, sizeof v));
    return v;
}
