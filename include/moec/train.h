/* moec/train.h: forward and backward of a model compiled for training (moec_compile_options.train, or
 * `moec compile --train`). A layer, experts with given ids and gates, and a whole language model are the same thing
 * here: a .moe text with inputs and results.
 *
 * The library allocates nothing in a step: the caller asks for sizes, owns every buffer, and passes plain pointers.
 *
 *     moec_train_sizes sizes;
 *     moec_train_query(model, (moec_limit[]){{"T", 512}}, 1, n_threads, &sizes, &error);
 *     ... allocate saved (sizes.saved_bytes) and workspace (sizes.workspace_bytes), 64-byte aligned ...
 *     moec_train_call call = {.threads = threads, .inputs = &x, .n_inputs = 1, .params = params,
 *                             .outputs = outputs, .n_outputs = 2, .saved = saved, ..., .workspace = workspace, ...};
 *     moec_train_forward(model, &call, &error);
 *     ... loss, and its derivative with respect to every output, in `cotangents` ...
 *     moec_train_backward(model, &call, &error);       adds to param_grads, writes input_grads
 *
 * Rules
 *   - Parameters are f32, dense, row-major, in the shapes of moec_train_param. Expert weights are [E, out, in].
 *   - Gradients are ADDED to param_grads (f32): zero them to begin a step. A NULL entry is a frozen parameter; its
 *     gradient is not computed. Gradients of experts without tokens are not touched.
 *   - Routing is decided once, in forward, and saved; backward never decides again. Losses are raw: the coefficient is
 *     the cotangent. Nothing keeps state; a balancing bias moves by moec_bias_update, between steps.
 *   - `saved` belongs to one forward: backward refuses it after another plan's or another size's.
 *   - The same inputs give the same bits, for any number of threads.
 *   - A model is immutable: any number of threads may run calls on it at once, each with its own buffers. A
 *     moec_threads serves one call at a time; others wait.
 */
#ifndef MOEC_TRAIN_H
#define MOEC_TRAIN_H

#include "moec/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- threads -------------------------------------------------------------------------------------------------- */

typedef struct moec_threads moec_threads;

/* n_threads 0: the processors this process may use. Errors: ARGUMENT (more than 1024), MEMORY. */
MOEC_API moec_status moec_threads_create(uint32_t n_threads, moec_threads **out_threads,
                                         moec_error *error) MOEC_MUST_USE;
MOEC_API void moec_threads_destroy(moec_threads *threads); /* NULL is allowed; no call may be running */
MOEC_API uint32_t moec_threads_count(const moec_threads *threads);

/* ---- what a model has ----------------------------------------------------------------------------------------- */

/* Whether the model was compiled for training. The functions below answer UNSUPPORTED when it was not. */
MOEC_API bool moec_model_is_trainable(const moec_model *model);

/* A parameter, in the order of call.params and call.param_grads. */
typedef struct moec_param_info {
    const char *path; /* layers.3.mlp.experts.up_proj.weight */
    const char *role; /* embed, head, router, experts, shared, attention, dense, norm */
    const char *init; /* how the text says it begins: "", "zeros", "ones", "normal(0.02)", "uniform(a, b)" */
    moec_dtype dtype; /* MOEC_F32, or an integer type for tables */
    uint32_t rank;
    int64_t dims[MOEC_MAX_RANK];
    bool has_gradient; /* false: nothing flows into it (a selection bias, a table of ids) */
} moec_param_info;

MOEC_API size_t moec_train_n_params(const moec_model *model);
MOEC_API moec_status moec_train_param(const moec_model *model, size_t index, moec_param_info *out_info) MOEC_MUST_USE;

/* Outputs (moec_model_output) are the results, then what training adds: the losses "aux" and "z" (f32 scalars, summed
 * over the layers) when the train block asks for them, and for every route "<scope>.load" [2, E]: choices of each
 * expert, and the sum of their weights. Which of the outputs take a cotangent: */
MOEC_API bool moec_train_output_has_gradient(const moec_model *model, size_t output);
/* Whether backward can give a gradient for an input. */
MOEC_API bool moec_train_input_has_gradient(const moec_model *model, size_t input);

/* Bytes for given run-time dimensions. The workspace may be shared by calls one after another; it has room for every
 * output, input gradient and cotangent that a call leaves out, and what a call does not need is not touched. */
typedef struct moec_train_sizes {
    size_t saved_bytes;     /* what forward keeps for backward, besides the caller's inputs */
    size_t workspace_bytes; /* what a forward or backward needs while it runs */
} moec_train_sizes;

/* Every run-time dimension of the inputs is to be given.
 * Errors: ARGUMENT (a name missing or unknown), RANGE, UNSUPPORTED, MEMORY. */
MOEC_API moec_status moec_train_query(const moec_model *model, const moec_limit *dims, size_t n_dims,
                                      uint32_t n_threads, moec_train_sizes *out_sizes, moec_error *error) MOEC_MUST_USE;

/* One tensor that forward saves, for `moec mem` and for whoever wants to know. */
typedef struct moec_saved_info {
    const char *name; /* layers.3: grouped_matmul mlp.experts.up_proj.weight */
    moec_dtype dtype;
    uint32_t rank;
    char shape[128]; /* "[2*T, 3584]" */
} moec_saved_info;
MOEC_API size_t moec_train_n_saved(const moec_model *model);
MOEC_API moec_status moec_train_saved(const moec_model *model, size_t index, moec_saved_info *out_info) MOEC_MUST_USE;

/* ---- a step --------------------------------------------------------------------------------------------------- */

/* Everything a forward or backward reads and writes. Zero-initialise. `reserved` must be zero. */
typedef struct moec_train_call {
    moec_threads *threads; /* NULL: the calling thread alone */
    /* Both: the inputs of the model, by order or by name, with dtype and dims. */
    const moec_tensor *inputs;
    size_t n_inputs;
    void *const *params; /* n_params addresses */
    void *saved; /* 64-byte aligned; NULL in forward: nothing is kept, and the workspace must have saved_bytes more */
    size_t saved_bytes;
    void *workspace; /* 64-byte aligned */
    size_t workspace_bytes;
    /* Forward: wanted outputs, by order or by name; dtype, rank and dims are filled in. */
    moec_tensor *outputs;
    size_t n_outputs;
    /* Backward: the derivative of the loss with respect to outputs, by order (of the outputs) or by name, in their
     * shapes; an output that is absent, or whose data is NULL, counts as zero. */
    const moec_tensor *cotangents;
    size_t n_cotangents;
    moec_tensor *input_grads; /* wanted ones, by order or by name of the input; overwritten */
    size_t n_input_grads;
    float *const *param_grads; /* n_params addresses or NULL; entries may be NULL */
    bool check_finite;         /* refuse cotangents that hold NaN or infinity: names the tensor; not on a GPU */
    moec_gpu *gpu;             /* for a model compiled for GPUs (moec/gpu.h); NULL: the processor */
    void *stream;              /* with gpu: a CUstream to queue on; NULL: the default stream */
    moec_comm *comm;           /* a model for several ranks needs one of that size; all ranks make the same calls */
    uint64_t reserved[1];
} moec_train_call;

/* With `gpu` every buffer is memory of that device, at a multiple of 16 bytes (saved and workspace: 64), but the arrays
 * that the call itself points to: tensors, params, param_grads. The call queues and returns; results are there when the
 * stream says so. Values are not looked at: an id outside its range reads nothing and gives zeros, `saved` of another
 * forward is not noticed. */

/* Errors: ARGUMENT (a name, dtype, rank, missing pointer, buffer too small or not aligned), MISMATCH (dims that do not
 * fit; `saved` of another plan or of other sizes), RANGE (a size or an id outside the model's range; a value that is
 * not finite), UNSUPPORTED (not compiled for training, or for another processor). On an error nothing has been written
 * to outputs or gradients. */
MOEC_API moec_status moec_train_forward(const moec_model *model, const moec_train_call *call,
                                        moec_error *error) MOEC_MUST_USE;
MOEC_API moec_status moec_train_backward(const moec_model *model, const moec_train_call *call,
                                         moec_error *error) MOEC_MUST_USE;

/* ---- several ranks ---------------------------------------------------------------------------------------------- */

/* A model compiled for several ranks (place, moec/comm.h): every rank gives its own share of the batch, the same number
 * of rows on all of them, and its own share of the experts' parameters (moec_param_info.dims are a rank's). Losses, loads
 * and capacities are of all tokens of all ranks; the derivative of a loss that is a mean over tokens counts all of them.
 *
 * In strict order every rank's gradients are those of all tokens when backward returns. In tree order they are of its own
 * tokens: this adds them up, over all ranks, or over the replicas of the expert, in ascending rank. Once for each optimizer
 * step, after the last backward; in strict order, and on one rank, it does nothing. param_grads as in the call: what is
 * null must be null on all ranks. Errors: COMM, MISMATCH, ARGUMENT, UNSUPPORTED, MEMORY. */
MOEC_API moec_status moec_train_reduce(const moec_model *model, moec_comm *comm, float *const *param_grads,
                                       moec_error *error) MOEC_MUST_USE;

/* ---- balancing without a loss --------------------------------------------------------------------------------- */

typedef enum moec_bias_rule {
    MOEC_BIAS_SIGN = 0, /* bias[e] += rate * sign(mean(counts) - counts[e])                   DeepSeek-V3, 2.1.2 */
    MOEC_BIAS_EMA = 1   /* ema[e] = decay * ema[e] + (1 - decay) * counts[e] / sum(counts);  bias[e] += rate * (1/E -
                           ema[e])   KempnerForge */
} moec_bias_rule;

/* Moves a selection bias by one step, on counts summed over all ranks (row 0 of a "load" output). ema: [E], updated;
 * NULL for SIGN. Nothing changes when the counts are all zero. Errors: ARGUMENT, RANGE (not finite or negative). */
MOEC_API moec_status moec_bias_update(moec_bias_rule rule, double rate, double decay, size_t n_experts,
                                      const float *counts, float *ema, float *bias, moec_error *error) MOEC_MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
