/* ranks: which part of a model for several ranks (moec_abi_ep) is whose. */
#ifndef MC_RUNTIME_RANKS_H
#define MC_RUNTIME_RANKS_H

#include "moec/comm.h"
#include "runtime/abi.h"
#include "runtime/base/file.h"

/* The ranks that run a model: n_ranks * n_replicas, 1 for a model without moec_abi_ep. */
uint32_t mc_ranks_needed(const moec_abi_model *abi);
/* Whether the group is the one that the model was planned for. comm NULL: a group of one. *out_number: of this rank
 * among those that share the experts. Errors: MISMATCH, with what to do. */
moec_status mc_ranks_check(const moec_abi_model *abi, const moec_comm *comm, uint32_t *out_number,
                           mc_fault *error) MOEC_MUST_USE;

/* How many threads a rank begins with when nothing says so: 0 (all) alone; else what its launcher gave it for itself,
 * or its part of what all ranks of the machine have. */
uint32_t mc_ranks_threads(const moec_comm *comm);

/* Axis 0 of the parameter as a whole: all its experts, wherever they are. */
int64_t mc_weights_whole(const moec_abi_weight *w);
/* The expert of the parameter that slot `slot` of rank number `number` holds; -1: the slot is empty. */
int64_t mc_weights_expert(const moec_abi_model *abi, const moec_abi_weight *w, uint32_t number, int64_t slot);

/* PATH for a model for one rank; else PATH.NUMBER-of-RANKS: a rank's own file. Free it; NULL: no memory. */
char *mc_weights_path(const moec_abi_model *abi, uint32_t number, const char *path);

#endif
