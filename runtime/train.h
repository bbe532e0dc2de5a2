/* train: memory and arguments of one forward or backward, shared by train.c and train_args.c.
 *
 *     saved      header (64 bytes) | saved tensor 0 | saved tensor 1 | ...      each at a multiple of 64
 *     workspace  tables of the plan | addresses | scratch of each thread | slab of activations | spare results | zeros
 *
 * On a GPU both lie in its memory, the tables and addresses do not, and nothing is read or written by the host: the
 * header of `saved` holds anything. */
#ifndef MC_RUNTIME_TRAIN_H
#define MC_RUNTIME_TRAIN_H

#include "moec/train.h"
#include "runtime/exec.h"

enum { MC_TRAIN_ALIGN = 64, MC_TRAIN_PAGE = 4096 };

/* Where the parts of a workspace begin, for one direction. Offsets from the workspace's address. */
typedef struct mc_train_layout {
    size_t weights, args, scratch, scratch_stride, slab, spare, zeros, total;
    size_t saved_bytes;
    size_t zero_bytes; /* of `zeros`, to be cleared before the run; mc_train_bind sets it */
} mc_train_layout;

/* Computes the layout for x->syms; x is placed and gets its tables. Errors: RANGE, MEMORY (sizes overflow). */
moec_status mc_train_lay(const moec_model *model, mc_exec *x, bool backward, uint32_t n_threads, mc_train_layout *out,
                         mc_fault *error) MOEC_MUST_USE;
size_t mc_train_round(size_t n);

/* Places x's tables at `tables`, finds the sizes in the inputs, lays out the workspace and checks that it and `saved`
 * suffice. call->saved is set when it was null. */
moec_status mc_train_arrange(const moec_model *model, moec_train_call *call, bool backward, void *tables, mc_exec *x,
                             mc_train_layout *l, mc_fault *error) MOEC_MUST_USE;
/* Checks the call and fills `args` (the function's formals, then its results) and `weights`. Writes to these only. */
moec_status mc_train_bind(const moec_model *model, const moec_train_call *call, bool backward, mc_exec *x,
                          mc_train_layout *l, void **args, void **weights, mc_fault *error) MOEC_MUST_USE;

/* What a saved buffer begins with. */
typedef struct mc_saved_header {
    uint64_t magic, plan, sizes, n_bytes, reserved[4];
} mc_saved_header;

#endif
