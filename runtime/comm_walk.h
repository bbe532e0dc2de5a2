/* comm_walk: does the launches of a plan that are between ranks. One for each stream of work: a session, or the
 * training handle of a group. */
#ifndef MC_RUNTIME_COMM_WALK_H
#define MC_RUNTIME_COMM_WALK_H

#include "runtime/abi_model.h"
#include "runtime/comm/comm.h"

typedef struct mc_comm_walk mc_comm_walk;

/* Every rank of the group calls it, with the same model and sizes: exprs are the model's expressions at the greatest
 * sizes of any step. Errors: MISMATCH (another number of ranks than the model is planned for; a rank with another
 * model, or other sizes: which), MEMORY, and those of comm.h. */
moec_status mc_comm_walk_create(const moec_abi_model *abi, moec_comm *comm, const int64_t *exprs, mc_comm_walk **out,
                                mc_fault *error) MOEC_MUST_USE;
/* The one that is attached to the comm, made anew when it is of another model or smaller sizes: for training, where
 * nothing else lives from call to call. */
moec_status mc_comm_walk_attached(const moec_abi_model *abi, moec_comm *comm, const int64_t *exprs, mc_comm_walk **out,
                                  mc_fault *error) MOEC_MUST_USE;
void mc_comm_walk_destroy(mc_comm_walk *w); /* NULL is allowed */
size_t mc_comm_walk_bytes(const mc_comm_walk *w);

/* Begins a step: messages name it. */
void mc_comm_walk_step(mc_comm_walk *w);
/* Does the launch. bounds: the most that each symbol may become. *out_changed: some of `syms` have new values. */
moec_status mc_comm_walk_launch(mc_comm_walk *w, const moec_abi_launch *launch, const moec_kernel_args *a,
                                int64_t *syms, const int64_t *bounds, bool *out_changed, mc_fault *error) MOEC_MUST_USE;
/* Between other launches: lets messages move. */
void mc_comm_walk_progress(mc_comm_walk *w);

#endif
