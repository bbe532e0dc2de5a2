/* moec/runtime.h: running a compiled model. Needs no compiler: this is all that an ahead-of-time binary links.
 *
 * Four objects, each made from the one before:
 *
 *     moec_model    a compiled model's description and code (constant; from an artefact's query function)
 *     moec_weights  its numbers: a checkpoint bound and packed once, then memory-mapped, read only
 *     moec_session  memory for one stream of work: activations, caches, threads
 *     run / feed    one step
 *
 * The smallest whole program (language model, greedy, ten tokens):
 *
 *     const moec_abi_model *moec_abi_query_tiny(uint32_t version);       // in the artefact
 *
 *     moec_error error;
 *     moec_model *model;
 *     moec_weights *weights;
 *     moec_session *session;
 *     int32_t id = 1;
 *     if (moec_model_from_abi(moec_abi_query_tiny(4), &model, &error) ||
 *         moec_weights_open(model, "checkpoint", NULL, &weights, &error) ||
 *         moec_session_create(model, weights, NULL, &session, &error)) { puts(error.text); return 1; }
 *     for (int n = 0; n < 10; n++) {
 *         if (moec_session_feed(session, &id, 1, 1, NULL, &error)) { puts(error.text); return 1; }
 *         if (moec_sample(session, 0, NULL, n, &id, &error)) { puts(error.text); return 1; }
 *         printf("%d\n", id);
 *     }
 *     moec_session_destroy(session);
 *     moec_weights_close(weights);
 *     moec_model_destroy(model);
 *
 * Rules of the whole header
 *   - Ownership: *_create, *_open and *_from_abi give an object to the caller. A model outlives its weights and
 *     sessions, weights outlive their sessions. Strings that accessors return belong to the object asked.
 *   - Threads: a model and weights may be used by any number of threads at once. A session belongs to one thread at a
 *     time; any number of sessions share one moec_weights.
 *   - Errors: a status, and a sentence in *error (NULL: not wanted). After MOEC_OK error->text is empty.
 *   - Nothing here prints, exits or aborts; memory that runs out is MOEC_ERR_MEMORY. Steps allocate nothing.
 *   - The same inputs give the same bits, whatever the number of threads and however the steps are cut.
 */
#ifndef MOEC_RUNTIME_H
#define MOEC_RUNTIME_H

#include "moec/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct moec_abi_model; /* runtime/abi.h: what an artefact exports */

typedef struct moec_model moec_model;
typedef struct moec_weights moec_weights;
typedef struct moec_session moec_session;
typedef struct moec_gpu moec_gpu;   /* moec/gpu.h */
typedef struct moec_comm moec_comm; /* moec/comm.h */

enum { MOEC_ERROR_BYTES = 1024, MOEC_MAX_RANK = 6 };

/* A sentence for humans; empty when nothing went wrong. */
typedef struct moec_error {
    char text[MOEC_ERROR_BYTES];
} moec_error;

/* ---- models --------------------------------------------------------------------------------------------------- */

/* A handle for the descriptor an artefact exports. `abi` is borrowed and must stay loaded until destroy. Checks magic,
 * version and every index of the descriptor's tables.
 * Errors: MISMATCH (NULL, wrong magic or version), INTERNAL (inconsistent tables), MEMORY. */
MOEC_API moec_status moec_model_from_abi(const struct moec_abi_model *abi, moec_model **out_model,
                                         moec_error *error) MOEC_MUST_USE;
/* The same for an image: code for GPUs, as moec_compiled_image and artefacts give it. The image is borrowed, at a
 * multiple of 16 bytes, until destroy. Errors: SYNTAX (no image, or damaged), MISMATCH, ARGUMENT (alignment), INTERNAL,
 * MEMORY. */
MOEC_API moec_status moec_model_from_image(const void *image, size_t n_bytes, moec_model **out_model,
                                           moec_error *error) MOEC_MUST_USE;
MOEC_API void moec_model_destroy(moec_model *model); /* NULL is allowed */

/* Whether this processor has what the model was compiled for. moec_session_create asks too.
 * Errors: UNSUPPORTED, with what is missing and what to do. */
MOEC_API moec_status moec_model_check_cpu(const moec_model *model, moec_error *error) MOEC_MUST_USE;

MOEC_API const char *moec_model_name(const moec_model *model);
MOEC_API const char *moec_model_compiler(const moec_model *model);   /* "moec 0.1.0, LLVM 22.1" */
MOEC_API const char *moec_model_target(const moec_model *model);     /* triple */
MOEC_API const char *moec_model_cpu(const moec_model *model);        /* what it was compiled for */
MOEC_API const char *moec_model_features(const moec_model *model);   /* "avx2,fma": needed from the processor */
MOEC_API const char *moec_model_meta(const moec_model *model);       /* a JSON object: parameters, reports */
MOEC_API uint64_t moec_model_weights_bytes(const moec_model *model); /* of the packed weights */

/* An input or output. A dimension that is a number is in dims; one that depends on run-time sizes is -1 there. */
typedef struct moec_tensor_info {
    const char *name;
    moec_dtype dtype;
    uint32_t rank;
    int64_t dims[MOEC_MAX_RANK];
    char shape[128]; /* "[B, S, 32000]" */
    int64_t limit;   /* ids must be below it, choices of experts (an output) are; 0: no limit */
} moec_tensor_info;

MOEC_API size_t moec_model_n_inputs(const moec_model *model);
MOEC_API size_t moec_model_n_outputs(const moec_model *model);
/* Errors: ARGUMENT (no such index). */
MOEC_API moec_status moec_model_input(const moec_model *model, size_t index, moec_tensor_info *out_info) MOEC_MUST_USE;
MOEC_API moec_status moec_model_output(const moec_model *model, size_t index, moec_tensor_info *out_info) MOEC_MUST_USE;

/* The vocabulary when the model is a language model: one input of i32 [B, S], first output f32 [B, S, V]; else 0. */
MOEC_API int64_t moec_model_vocab(const moec_model *model);
/* Whether it remembers earlier steps (a cache, a convolution's history, a scan's state). */
MOEC_API bool moec_model_has_state(const moec_model *model);

/* ---- weights -------------------------------------------------------------------------------------------------- */

/* Called now and then from the thread that opens; n_bytes_total is the size of the packed weights. */
typedef void moec_progress_fn(void *context, uint64_t n_bytes_done, uint64_t n_bytes_total);

typedef struct moec_weights_options {
    const char *packed_path; /* where to write or find the packed file; NULL: the cache directory */
    bool in_memory;          /* pack into memory, write no file */
    bool allow_narrowing;    /* convert to a narrower stored type (f32 -> bf16 ...) instead of refusing */
    const char *map;         /* which `weights NAME` block of the model; NULL: the first that binds */
    uint32_t n_threads;      /* for packing; 0: as many as may run */
    moec_progress_fn *progress;
    void *progress_context;
    moec_comm *comm; /* of a model for several ranks (moec/comm.h): its rank's experts are opened */
} moec_weights_options;

/* Opens weights for `model` from `path`:
 *   - a directory in the Hugging Face layout (model.safetensors, or shards with model.safetensors.index.json),
 *   - one .safetensors file, or
 *   - a packed file made earlier for the same model and target.
 * A checkpoint is bound by the model's rules, strictly in both directions, packed for the target, and the result kept
 * in options->packed_path, or in $MOEC_CACHE, else $XDG_CACHE_HOME/moec, else ~/.cache/moec. Next time that file is
 * only mapped. Of a model for several ranks each rank opens its own experts (options->comm), and a packed file F that
 * the caller names is F.NUMBER-of-RANKS. When the cache cannot be written the weights are packed in memory and moec_weights_note says why.
 * options may be NULL.
 * The files must not shrink while they are mapped: the operating system answers that with SIGBUS.
 * Errors: NOT_FOUND (no such path; E0901 a weight without tensor), MISMATCH (E0902 tensors left over, E0903 shapes,
 * E0904 missing experts, E0905 FP8 without scales, narrowing not allowed, packed for another model), SYNTAX (a
 * malformed file), IO, MEMORY. */
MOEC_API moec_status moec_weights_open(const moec_model *model, const char *path, const moec_weights_options *options,
                                       moec_weights **out_weights, moec_error *error) MOEC_MUST_USE;
/* Made-up numbers in memory, for measuring a model without a checkpoint: small values of both signs, always the same,
 * whoever holds them. comm: NULL for a model for one rank. Errors: MISMATCH (comm), MEMORY. */
MOEC_API moec_status moec_weights_synthetic(const moec_model *model, const moec_comm *comm, moec_weights **out_weights,
                                            moec_error *error) MOEC_MUST_USE;
/* No session may use them any more. NULL is allowed. */
MOEC_API void moec_weights_close(moec_weights *weights);

/* Something worth telling the user ("the cache directory ... is not writable ..."), or "". */
MOEC_API const char *moec_weights_note(const moec_weights *weights);
/* The mapped packed file, or "" when the weights are in memory. */
MOEC_API const char *moec_weights_file(const moec_weights *weights);
MOEC_API uint64_t moec_weights_bytes(const moec_weights *weights);

/* ---- sessions ------------------------------------------------------------------------------------------------- */

/* A host's own threads: must run body(body_context, 0) .. body(body_context, n_threads - 1), all AT THE SAME TIME (they
 * wait for each other inside), and return when all have returned. */
typedef void moec_parallel_fn(void *context, uint32_t n_threads, void (*body)(void *body_context, uint32_t thread),
                              void *body_context);

/* The greatest value of a run-time dimension that this session must serve. */
typedef struct moec_limit {
    const char *name;
    int64_t max;
} moec_limit;

/* Zero means: choose. */
typedef struct moec_session_options {
    uint32_t n_threads;         /* 0: the processors this process may use (affinity and cgroup quota) */
    moec_parallel_fn *parallel; /* NULL: moec's own threads */
    void *parallel_context;
    int64_t max_batch;        /* sequences at once; 0: 1 */
    int64_t max_positions;    /* cached + new positions of a sequence; 0: what the model allows, at most 4096 */
    int64_t max_new;          /* new positions in one step; 0: max_positions, at most 512 */
    const moec_limit *limits; /* other dimensions; default: what the model allows, at most 65536 */
    size_t n_limits;
    bool profile;         /* keep times per launch for moec_session_profile */
    moec_gpu *gpu;        /* for a model with GPU code, which needs one (moec/gpu.h); threads are then of no use */
    void *stream;         /* a CUstream of that GPU to queue on; NULL: one of the session's own */
    bool device_pointers; /* moec_session_run takes device addresses, at multiples of 16, and returns when all is queued
                           */
    bool no_graph;        /* always launch, never replay a step of sizes seen before as a graph */
    moec_comm *comm;      /* a model for several ranks needs one of that size; every rank creates a session */
} moec_session_options;

/* Memory and threads for one stream of work. All memory is reserved here; pages are used as they are touched.
 * options may be NULL.
 * Errors: UNSUPPORTED (this processor, a model compiled for training, a model and a device that do not fit), RANGE (a
 * size the model does not allow), ARGUMENT, MEMORY, DEVICE. */
MOEC_API moec_status moec_session_create(const moec_model *model, const moec_weights *weights,
                                         const moec_session_options *options, moec_session **out_session,
                                         moec_error *error) MOEC_MUST_USE;
MOEC_API void moec_session_destroy(moec_session *session); /* NULL is allowed */

/* Forgets everything: past becomes 0, states become zero. */
MOEC_API void moec_session_reset(moec_session *session);
/* Positions cached so far. */
MOEC_API int64_t moec_session_past(const moec_session *session);
/* Keeps the first n_positions only, e.g. to try another continuation. n_positions = 0 is reset.
 * Errors: RANGE (more than there are), UNSUPPORTED (the model has a state that cannot go back, such as a scan). */
MOEC_API moec_status moec_session_truncate(moec_session *session, int64_t n_positions, moec_error *error) MOEC_MUST_USE;
MOEC_API uint32_t moec_session_n_threads(const moec_session *session);
/* Bytes reserved, caches included. */
MOEC_API uint64_t moec_session_bytes(const moec_session *session);
MOEC_API int64_t moec_session_max_positions(const moec_session *session);
MOEC_API int64_t moec_session_max_batch(const moec_session *session);

/* A dense row-major tensor of the caller's. */
typedef struct moec_tensor {
    const char *name; /* as in the model; NULL: by order */
    moec_dtype dtype;
    uint32_t rank;
    int64_t dims[MOEC_MAX_RANK];
    void *data;
    size_t n_bytes; /* of the buffer at data */
} moec_tensor;

/* One step of any model. Every input must be given, with dtype and dims; of the outputs those that are wanted, with
 * data and n_bytes; their dtype, rank and dims are filled in. A model with state appends: past grows by the new
 * positions. On an error nothing has been appended. Errors: ARGUMENT (names, dtypes, ranks, buffers too small),
 * MISMATCH (dims that do not fit together), RANGE (a size outside the model's or the session's range, an id outside the
 * vocabulary: says which position and value; ids on a device are not looked at), DEVICE. */
MOEC_API moec_status moec_session_run(moec_session *session, const moec_tensor *inputs, size_t n_inputs,
                                      moec_tensor *outputs, size_t n_outputs, moec_error *error) MOEC_MUST_USE;

/* Language models: appends n_tokens ids to each of n_sequences sequences. ids: [n_sequences][n_tokens]. out_logits:
 * NULL or room for [n_sequences][n_tokens][vocab]. Longer inputs are fed max_new at a time; that changes no bit unless
 * the model's experts have a capacity. A model without state sees only the ids of this call, which must fit in one
 * step. On a rank of several n_sequences may be 0 (moec/comm.h).
 * Errors: as moec_session_run; ARGUMENT when the model is not a language model. */
MOEC_API moec_status moec_session_feed(moec_session *session, const int32_t *ids, size_t n_sequences, size_t n_tokens,
                                       float *out_logits, moec_error *error) MOEC_MUST_USE;
/* The logits after the last fed position of a sequence, [vocab], until the next step; NULL before the first. */
MOEC_API const float *moec_session_logits(const moec_session *session, size_t sequence);

/* Times, when the session was created with profile: index 0 is the label that took longest. false: no such index. */
typedef struct moec_profile_entry {
    const char *label;
    double seconds;
    uint64_t n_launches;
} moec_profile_entry;
MOEC_API bool moec_session_profile(moec_session *session, size_t index, moec_profile_entry *out_entry);
MOEC_API void moec_session_profile_clear(moec_session *session);

/* ---- sampling ------------------------------------------------------------------------------------------------- */

/* Zero-initialised means greedy: the greatest logit, ties to the lower id. */
typedef struct moec_sampling {
    double temperature; /* 0: greedy */
    double top_p;       /* 0 or >= 1: all; else the fewest most likely ids whose probabilities reach top_p */
    uint64_t seed;
} moec_sampling;

/* Chooses the next id of a sequence from its last logits. `step` numbers the draws: the same (seed, step, logits) give
 * the same id on every machine. Draw n of sequence s uses
 *     z = seed + 0x9E3779B97F4A7C15 * (1 + step) + 0xD1B54A32D192ED03 * s   (mod 2^64)
 *     z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;  z = (z ^ z >> 27) * 0x94D049BB133111EB;  z = z ^ z >> 31
 *     u = (z >> 11) * 2^-53
 * sampling may be NULL: greedy.
 * Errors: ARGUMENT (nothing was fed), RANGE (a logit is not a number: weights or input hold NaN or infinity), MEMORY.
 */
MOEC_API moec_status moec_sample(moec_session *session, size_t sequence, const moec_sampling *sampling, uint64_t step,
                                 int32_t *out_id, moec_error *error) MOEC_MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
