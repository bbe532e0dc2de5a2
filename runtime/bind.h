/* bind: which tensors of a checkpoint each weight of a model is made of. */
#ifndef MC_RUNTIME_BIND_H
#define MC_RUNTIME_BIND_H

#include "runtime/abi.h"
#include "runtime/view.h"

typedef struct mc_bound { /* one path of the model */
    mc_str path;
    const moec_abi_weight *weight; /* an entry that names it; for dims and dtype */
    const mc_rule *rule;
    int target; /* which of the rule's targets */
    uint32_t *sources;
    size_t n_sources;
} mc_bound;

typedef struct mc_bind {
    const moec_abi_model *abi;
    mc_checkpoint *checkpoint; /* borrowed */
    mc_rules rules;
    mc_bound *paths;
    size_t n_paths;
    mc_name_table by_path;
    bool allow_narrowing;
} mc_bind;

/* Binds every weight, by the map named `map` (NULL: the first that binds), and checks shapes, types and that no tensor
 * is left over. Errors as for moec_weights_open. The checkpoint must be loaded. */
moec_status mc_bind_create(const moec_abi_model *abi, mc_checkpoint *checkpoint, const char *map, bool allow_narrowing,
                           mc_bind *out, mc_fault *error) MOEC_MUST_USE;
void mc_bind_fini(mc_bind *b);
const mc_bound *mc_bind_find(const mc_bind *b, const char *path); /* NULL when absent */
moec_status mc_bind_open(const mc_bind *b, const mc_bound *bound, bool dry, mc_tensor *out,
                         mc_fault *error) MOEC_MUST_USE;

/* The scale entry that belongs to an FP8 path, or NULL. */
const moec_abi_weight *mc_scale_entry(const moec_abi_model *abi, const char *path);

#endif
