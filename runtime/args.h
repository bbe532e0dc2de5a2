/* args: the named tensors of a caller against the tables of a model: which is which, whether types and sizes fit, and
 * which values of the run-time dimensions follow. Sessions and training share it. Nothing here writes to a tensor. */
#ifndef MC_RUNTIME_ARGS_H
#define MC_RUNTIME_ARGS_H

#include "runtime/abi_model.h"

/* Values of the model's symbols while they are found. */
typedef struct mc_sizes {
    const moec_abi_model *abi;
    int64_t *syms;      /* n_syms; negative: no value yet */
    const int64_t *max; /* n_syms: what a session was made for; NULL: whatever the model allows */
} mc_sizes;

/* Checks and sets one symbol. Errors: RANGE. */
moec_status mc_sizes_set(const mc_sizes *s, uint32_t sym, int64_t value, mc_fault *error) MOEC_MUST_USE;
/* Solves the dims of the inputs (one pointer for each) for the symbols and compares. Errors: MISMATCH, RANGE. */
moec_status mc_sizes_solve(const mc_sizes *s, const moec_tensor *const *inputs, mc_fault *error) MOEC_MUST_USE;

/* Which tensor is table entry `index`: by name, or by order for those without one. n: not given. */
size_t mc_args_find(const moec_tensor *tensors, size_t n, const char *name, size_t index);
/* Whether all names are known; `kind` ("input") is for the message. Errors: ARGUMENT. */
moec_status mc_args_names(const moec_tensor *tensors, size_t n, const moec_abi_tensor *table, uint32_t n_table,
                          const char *kind, mc_fault *error) MOEC_MUST_USE;
/* Bytes of a dense tensor with these dims; false when one is negative or the product too large. */
bool mc_args_bytes(const moec_tensor *t, size_t *out);
/* Dims and bytes of a table entry at these sizes; false when one has no value or is too large. */
bool mc_args_shape(const moec_abi_tensor *t, const int64_t *syms, int64_t *out_dims, size_t *out_bytes);
/* dtype, rank and room of an input. Errors: ARGUMENT. */
moec_status mc_args_input(const moec_tensor *t, const moec_abi_tensor *want, mc_fault *error) MOEC_MUST_USE;
/* Ids within the entry's limit. Errors: RANGE. */
moec_status mc_args_ids(const moec_tensor *t, const moec_abi_tensor *want, mc_fault *error) MOEC_MUST_USE;
/* All of the above for the inputs: out[i] is the tensor of input i, and s->syms hold the sizes. `out` has room for
 * n_inputs. Ids are not looked at yet. */
moec_status mc_args_inputs(const mc_sizes *s, const moec_tensor *inputs, size_t n_inputs, const moec_tensor **out,
                           mc_fault *error) MOEC_MUST_USE;

#endif
