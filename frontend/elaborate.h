/* elaborate: a .moe text to a module at stage tensor. Names, compile-time values, shapes and weights are settled here;
 * blocks are inlined, `repeat` becomes calls, moe becomes the `moe` op with a route function and an expert body.
 *
 *     mc_elab_result r;
 *     if (mc_elaborate(arena, &sources, file, &options, &diags, &r)) use(r.module);
 *     mc_module_destroy(r.module);
 *
 * Module: one `model` function; one function for each distinct kind of a repeat's body, named after its first
 * iteration ("layers.0"); route functions and expert bodies are named after their moe.
 * Metas: "precision.<key>" as written (defaults are left out), "place", "train" (canonical text, settings joined by
 * "; "), "train.route.<path>" (stages of a route that act in training only), "weights.<map>" (the rules, one a line, in
 * the language's own syntax with every number evaluated and {=P} substituted; the map without a name is "default"),
 * "weights" (the map chosen by the caller, or the only one there is; absent when a loader may try them in order). */
#ifndef MC_FRONTEND_ELABORATE_H
#define MC_FRONTEND_ELABORATE_H

#include "ir/diag.h"
#include "ir/ir.h"

/* Finds the text that `use "path"` names in the file `from`. Strings must live as long as the arena. False: not found.
 */
typedef bool mc_elab_load_fn(void *user, mc_arena *arena, mc_str from, mc_str path, mc_str *out_name, mc_str *out_text);

typedef struct mc_elab_options {
    mc_str model;          /* name of the model; empty: the only one */
    const mc_str *defines; /* "NAME=value": -D; value is an expression of the language */
    size_t n_defines;
    const mc_str *settings; /* "precision.router=bf16", "place.mesh=ep = 8": --set */
    size_t n_settings;
    mc_str config;         /* text of config.json; empty: none */
    mc_str weights_map;    /* empty: see above */
    mc_elab_load_fn *load; /* NULL: `use` is refused */
    void *load_user;
} mc_elab_options;

typedef struct mc_weight_info {
    mc_str path;         /* from the model down: "layers.0.mlp.experts.up_proj.weight" */
    const mc_type *type; /* as stored, the axis of the experts included */
    mc_str role;
    int64_t experts; /* length of axis 0 when the weight is stacked, else 0 */
    mc_str init;     /* "normal(0.02)", or empty */
    mc_span span;
} mc_weight_info;

typedef struct mc_param_info {
    mc_str name, value; /* value as text of the language */
    mc_span span;
    bool overridden;
} mc_param_info;

typedef struct mc_elab_result {
    mc_module *module; /* owned by the caller; NULL after an error */
    MC_VEC(mc_weight_info) weights;
    int64_t n_params, n_active_params; /* elements; active: outside experts, plus k of E experts */
    MC_VEC(mc_param_info) params;
    MC_VEC(mc_str) config_read, config_unread; /* top-level keys, in the order of config.json */
    MC_VEC(mc_str) maps;                       /* names of the weight maps */
} mc_elab_result;

/* Everything in the result but the module lives in the arena. True without errors; warnings do not count. */
bool mc_elaborate(mc_arena *arena, mc_sources *sources, uint32_t file, const mc_elab_options *options, mc_diags *diags,
                  mc_elab_result *out);

/* The embedded prelude: what `moec std` prints. */
mc_str mc_prelude_text(void);

#endif
