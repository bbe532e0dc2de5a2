/* interp: runs a module, slowly and obviously. What it computes is the meaning of the operations: every backend, pass
 * and gradient is tested against it. It takes modules of stage tensor, before or after expand-moe and fuse-moe, and
 * modules of stage plan, whose `packed` weights it asks for in their unpacked form.
 *
 *     mc_ref_options options = {.precision = MC_REF_F32, .weight = my_weights, .weight_user = me};
 *     mc_ref *ref = mc_ref_create(module, &options, diags);
 *     mc_ref_state *state = mc_ref_state_create();
 *     mc_ref_run(ref, state, inputs, n_inputs, arena, outputs, n_outputs);    once for the prompt, then token by token
 *     mc_ref_state_destroy(state);
 *     mc_ref_destroy(ref);
 *
 * A value whose type says f32 is held in f32 (F32) or f64 (F64); values of other types are held as they are. In F32
 * every single arithmetic step is rounded to f32, and a matmul element is one fmaf chain in ascending order, so that a
 * backend can be compared bit for bit where ops.def leaves no freedom. Elementary functions are those of libm.
 *
 * Rows that ops.def calls undefined hold NaN (or -1): whatever depends on them shows it.
 */
#ifndef MC_REF_INTERP_H
#define MC_REF_INTERP_H

#include "ir/diag.h"
#include "ir/ir.h"

typedef enum mc_ref_precision { MC_REF_F32, MC_REF_F64 } mc_ref_precision;

/* Row-major. `n` is the product of dims. */
typedef struct mc_ref_tensor {
    moec_dtype dtype;
    int rank;
    int64_t dims[MC_MAX_RANK];
    int64_t n;
    void *data;
} mc_ref_tensor;

/* Sets dims and n and allocates zeroed data. False, and nothing allocated, when the size is negative or absurd. */
bool mc_ref_tensor_init(mc_ref_tensor *t, moec_dtype dtype, const int64_t *dims, int rank, mc_arena *arena);
double mc_ref_tensor_get(const mc_ref_tensor *t, int64_t i);
void mc_ref_tensor_set(mc_ref_tensor *t, int64_t i, double value); /* rounds to the dtype; integers saturate */

/* A weight as it is stored: path is the full path; a weight of an expert body has its expert axis in front. */
typedef struct mc_ref_weight_request {
    mc_str path, role;
    moec_dtype dtype;
    int rank;
    int64_t dims[MC_MAX_RANK];
} mc_ref_weight_request;

/* Sets out->data (and dtype, rank, dims, n: they are checked against the request; with F64 an f32 weight may be given
 * as f64). The data is borrowed until the run ends and never written. False: there is no such weight. */
typedef bool mc_ref_weight_fn(void *user, const mc_ref_weight_request *request, mc_ref_tensor *out);

/* After each executed op. `scope` is that of the call, `expert` the expert whose body is running or -1. Results are
 * valid during the call only. */
typedef struct mc_ref_event {
    const mc_op *op;
    mc_str scope;
    int64_t expert;
    const mc_ref_tensor *results;
    int n_results;
} mc_ref_event;
typedef void mc_ref_record_fn(void *user, const mc_ref_event *event);

/* For each executed accumulate: what is to be added to the gradient of the parameter of this full path. Valid during
 * the call only. */
typedef void mc_ref_accumulate_fn(void *user, mc_str path, const mc_ref_tensor *d);

typedef struct mc_ref_options {
    mc_ref_precision precision;
    mc_ref_weight_fn *weight;
    void *weight_user;
    mc_ref_record_fn *record; /* may be NULL */
    void *record_user;
    mc_ref_accumulate_fn *accumulate; /* may be NULL */
    void *accumulate_user;
} mc_ref_options;

/* What lives across steps: caches, convolution histories, scans; and how many positions are past. */
typedef struct mc_ref_state mc_ref_state;
mc_ref_state *mc_ref_state_create(void);
void mc_ref_state_destroy(mc_ref_state *state); /* NULL is allowed */
int64_t mc_ref_state_past(const mc_ref_state *state);

/* Borrows the module, which must not change, and diags. NULL when the module does not verify. */
typedef struct mc_ref mc_ref;
mc_ref *mc_ref_create(const mc_module *module, const mc_ref_options *options, mc_diags *diags);
void mc_ref_destroy(mc_ref *ref); /* NULL is allowed */

/* Fixes a run-time dimension for the runs that follow. Only needed for those that no input's shape tells. */
bool mc_ref_set_symbol(mc_ref *ref, mc_str name, int64_t value);

/* Runs the model function once. Inputs must have the dtypes of its formals, except that i64 stands for i32 and f64 for
 * f32 and the reverse. Outputs are allocated in `arena`. The state advances by the new positions (the symbol S, else
 * axis 1 of the first input that has one) if and only if the run succeeds; NULL: a fresh one. A state belongs to one
 * module. */
bool mc_ref_run(mc_ref *ref, mc_ref_state *state, const mc_ref_tensor *inputs, int n_inputs, mc_arena *arena,
                mc_ref_tensor *outputs, int n_outputs);
/* The same for one function of the module, run in a scope of weight paths. */
bool mc_ref_run_func(mc_ref *ref, const mc_func *func, mc_str scope, mc_ref_state *state, const mc_ref_tensor *inputs,
                     int n_inputs, mc_arena *arena, mc_ref_tensor *outputs, int n_outputs);

#endif
