/* trace: which experts a model's routers chose, token by token; what `moec route` writes and `moec plan --trace` reads.
 *
 * A file (version 1; numbers little endian; every part is padded with zeros to 8 bytes):
 *
 *   head      char magic[8] = "MOECTRC", u32 version, u32 bytes of an id (2, 4), u64 hash of the model (0: unknown),
 *             u32 layers, u32 bytes of the texts; layers x {u32 experts, u32 top_k, u32 bytes of its name,
 *             u32 flags (1: `experts` was guessed)}; texts: the model's name, ended by a zero, and the layers' names
 *   records   {u32 tag = "RECD", u32 layer, u64 step, u32 rank, u32 tokens}, ids [tokens, top_k]; all bits set: no
 * expert end       {u32 tag = "DONE", u32 0, u64 number of records, u64 hash of everything before}
 *
 * The end is written last and the file gets its name only then, so a file that was cut is noticed and never trusted.
 * Opening reads the file once and checks all of it: whoever walks a trace gets only ids below `experts`, or -1. */
#ifndef MC_RUNTIME_TRACE_H
#define MC_RUNTIME_TRACE_H

#include "runtime/base/file.h"

enum { MC_TRACE_VERSION = 1, MC_TRACE_MAX_LAYERS = 1 << 16, MC_TRACE_MAX_EXPERTS = 1 << 20, MC_TRACE_MAX_TOP_K = 4096 };

typedef struct mc_trace_layer {
    const char *name; /* of the experts in the model: "layers.3.mlp"; never NULL */
    uint32_t n_experts, top_k;
    bool guessed; /* n_experts is only the greatest id seen + 1: the file it came from does not say */
} mc_trace_layer;

typedef struct mc_trace_info {
    const char *model; /* its name; never NULL */
    uint64_t hash;     /* of what identifies the model to the caller; 0: unknown, fits any */
    const mc_trace_layer *layers;
    uint32_t n_layers;
} mc_trace_info;

typedef struct mc_trace_record {
    uint64_t step;
    uint32_t layer, rank, n_tokens; /* layer: index into info.layers; rank: whose tokens; 0 when one rank ran */
    const int32_t *ids;             /* [n_tokens, top_k of the layer]; -1: no expert */
} mc_trace_record;

/* ---- writing ---------------------------------------------------------------------------------------------------- */

typedef struct mc_trace_writer mc_trace_writer;

/* info is copied. Errors: ARGUMENT (layers, experts or names that a trace cannot hold), IO, MEMORY. */
moec_status mc_trace_create(const char *path, const mc_trace_info *info, mc_trace_writer **out,
                            mc_fault *error) MOEC_MUST_USE;
/* Errors: ARGUMENT (no such layer), RANGE (an id that is neither -1 nor below the layer's experts), IO, MEMORY. */
moec_status mc_trace_add(mc_trace_writer *w, const mc_trace_record *record, mc_fault *error) MOEC_MUST_USE;
/* Ends the writer in every case; the file appears under its name when this returns OK. */
moec_status mc_trace_commit(mc_trace_writer *w, mc_fault *error) MOEC_MUST_USE;
void mc_trace_abandon(mc_trace_writer *w); /* NULL is allowed */

/* ---- reading ---------------------------------------------------------------------------------------------------- */

typedef struct mc_trace mc_trace;

/* A trace, or lines of JSON as Megatron's recorder of routers writes them: {"step", "layer", "rank", "num_tokens",
 * "topk", "top_indices"} (the first byte tells which). Errors: NOT_FOUND, IO, SYNTAX (cut, damaged, or no trace at
 * all), MISMATCH (another version), MEMORY. */
moec_status mc_trace_open(const char *path, mc_trace **out, mc_fault *error) MOEC_MUST_USE;
/* The same from memory, which is copied; `name` begins messages. */
moec_status mc_trace_read(const void *bytes, size_t n_bytes, const char *name, mc_trace **out,
                          mc_fault *error) MOEC_MUST_USE;
void mc_trace_close(mc_trace *trace); /* NULL is allowed */

const mc_trace_info *mc_trace_about(const mc_trace *trace);
uint64_t mc_trace_n_records(const mc_trace *trace);
uint64_t mc_trace_n_tokens(const mc_trace *trace, uint32_t layer);
/* The next record, or false after the last one. out->ids is valid until the next call, or close. */
bool mc_trace_next(mc_trace *trace, mc_trace_record *out);
void mc_trace_rewind(mc_trace *trace);
/* Whether the trace belongs to the model: the same layers, in order, with as many experts and as many of them for each
 * token, and the same hash where both are known. Errors: MISMATCH: what differs, and what to do. */
moec_status mc_trace_check(const mc_trace *trace, const mc_trace_info *model, mc_fault *error) MOEC_MUST_USE;
/* Adds to loads [n_experts of the layer] how often each expert was chosen in the whole trace. */
void mc_trace_loads(const mc_trace *trace, uint32_t layer, float *loads);

#endif
