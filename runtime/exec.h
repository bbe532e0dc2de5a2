/* exec: walks the plan of a compiled model. Before a step every integer of the plan is computed once from the step's
 * symbol values into flat tables; then all threads of the pool walk the same launches, each with its own kernel
 * arguments, and meet at a barrier after each.
 *
 *     slab  | frame of the model function | frame of its callee | callee's callee | ...
 *
 * A frame is the function's slots one after another, each rounded to 64 bytes. Siblings reuse the same bytes. */
#ifndef MC_RUNTIME_EXEC_H
#define MC_RUNTIME_EXEC_H

#include "runtime/abi_model.h"
#include "runtime/comm_walk.h"
#include "runtime/pool.h"

typedef struct mc_exec {
    const moec_abi_model *abi;
    mc_pool *pool;
    int64_t *syms;         /* n_syms; negative: without a value */
    int64_t *bounds;       /* n_syms: the most that a symbol which a comm launch sets can become */
    int64_t *expr_values;  /* n_exprs */
    int64_t *ref_offsets;  /* n_refs */
    int64_t *slot_offsets; /* n_slots: from the start of the function's frame */
    int64_t *frame_bytes;  /* n_funcs: of the function alone */
    int64_t *deep_bytes;   /* n_funcs: with its deepest callee; -1 not yet known */
    unsigned char *slab;
    size_t slab_bytes;
    unsigned char *scratch; /* n_threads * scratch_bytes, each at a multiple of 4096 */
    size_t scratch_stride;
    void *const *weights; /* n_weights; an address may be null: a gradient that nobody wants */
    void **states;        /* n_states */
    void *tables;         /* the block in which all of the above tables lie, when mc_exec_init made it */
    int64_t past, cache_cap;
    bool bounds_are_fixed; /* to what they were at the greatest sizes, since other ranks may have more than this one */
    uint32_t *late;        /* the exprs of which values change during the walk */
    uint32_t n_late;
    mc_comm_walk *comm; /* NULL: one rank */
    moec_status comm_status;
    mc_fault *comm_error;
    double *launch_seconds; /* n_launches each; NULL: no profile */
    uint64_t *launch_counts;
} mc_exec;

/* The tables in memory of the caller's: mc_exec_table_bytes of it, at a multiple of 8. pool NULL: the calling thread.
 */
size_t mc_exec_table_bytes(const moec_abi_model *abi);
void mc_exec_place(mc_exec *x, const moec_abi_model *abi, mc_pool *pool, void *memory);
/* The same in memory of its own (not slab, scratch, weights and states, which the session owns). */
moec_status mc_exec_init(mc_exec *x, const moec_abi_model *abi, mc_pool *pool, bool profile,
                         mc_fault *error) MOEC_MUST_USE;
void mc_exec_fini(mc_exec *x);

/* Computes the tables from x->syms for a run of function `func` (abi->entry, abi->backward). *out_bytes: what the slab
 * must hold. Errors: RANGE when a size overflows or the plan uses a dimension without a value. */
moec_status mc_exec_prepare(mc_exec *x, uint32_t func, size_t *out_bytes, mc_fault *error) MOEC_MUST_USE;

/* Visits the kernel launches of a function in order; a->ptr, a->i and a->f are what the launch is given. Stops, and
 * gives false, when the visitor does. After a prepare whose bytes fit the slab. */
typedef bool mc_exec_visit_fn(void *context, uint32_t launch, moec_kernel_args *a);
bool mc_exec_visit(mc_exec *x, uint32_t func, uint32_t weight_base, void *const *args, mc_exec_visit_fn *visit,
                   void *context);

/* One step of that function: args are its formals, then its results. After a prepare whose bytes fit the slab. Errors:
 * of launches between ranks; the walk ends with them, and what it has written means nothing. */
moec_status mc_exec_run(mc_exec *x, uint32_t func, uint32_t weight_base, void *const *args,
                        mc_fault *error) MOEC_MUST_USE;

#endif
