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
    uint32_t number; /* of this rank (runtime/ranks.h): whose experts mc_bind_open gives */
} mc_bind;

/* Binds every weight, by the map named `map` (NULL: the first that binds), and checks shapes, types and that no tensor
 * is left over, of all experts. Errors as for moec_weights_open. The checkpoint must be loaded. number: of the rank
 * that asks, 0 for a model for one. */
moec_status mc_bind_create(const moec_abi_model *abi, mc_checkpoint *checkpoint, const char *map, bool allow_narrowing,
                           uint32_t number, mc_bind *out, mc_fault *error) MOEC_MUST_USE;
void mc_bind_fini(mc_bind *b);
const mc_bound *mc_bind_find(const mc_bind *b, const char *path); /* NULL when absent */
/* The tensor as the model has it: of a parameter with experts those of this rank, and only their bytes are read (all of
 * them where a rule joins the experts before it divides or turns them). */
moec_status mc_bind_open(const mc_bind *b, const mc_bound *bound, mc_tensor *out, mc_fault *error) MOEC_MUST_USE;

/* The scale entry that belongs to an FP8 path, or NULL. */
const moec_abi_weight *mc_scale_entry(const moec_abi_model *abi, const char *path);

#endif
