/* placement: which experts every rank holds, layer by layer: what `moec plan --place` writes. A file of JSON:
 *
 *   {"format": "moec placement", "version": 1, "model": "dsv3", "hash": "5a0c..", "ranks": 32, "nodes": 4,
 *    "layers": [{"name": "layers.3", "experts": 256, "slots": [17, 4, ..]}, ..]}
 *
 * hash: of the trace that it was made from (mc_trace_info), 16 digits, zeros when unknown. slots: the expert in each
 * slot, -1: none; as many for every rank, slot s being of rank s / (slots / ranks). Every expert has one at least. */
#ifndef MC_RUNTIME_PLACEMENT_H
#define MC_RUNTIME_PLACEMENT_H

#include "runtime/base/file.h"

enum { MC_PLACEMENT_VERSION = 1, MC_PLACEMENT_MOST = 1 << 22 };

typedef struct mc_placement_layer {
    const char *name;
    uint32_t n_experts, n_slots;
    const int32_t *slots;
} mc_placement_layer;

typedef struct mc_placement {
    const char *model;
    uint64_t hash; /* 0: unknown, fits any */
    uint32_t n_ranks, n_nodes;
    const mc_placement_layer *layers;
    uint32_t n_layers;
} mc_placement;

/* Errors: ARGUMENT (what cannot be read again), IO, MEMORY. */
moec_status mc_placement_write(const char *path, const mc_placement *placement, mc_fault *error) MOEC_MUST_USE;

/* Errors: NOT_FOUND, IO, SYNTAX (not a placement, or one that contradicts itself), MISMATCH (another version), MEMORY.
 */
moec_status mc_placement_open(const char *path, mc_placement **out, mc_fault *error) MOEC_MUST_USE;
/* The same from memory; `name` begins messages. */
moec_status mc_placement_read(const void *bytes, size_t n_bytes, const char *name, mc_placement **out,
                              mc_fault *error) MOEC_MUST_USE;
void mc_placement_close(mc_placement *placement); /* NULL is allowed */

/* Whether it is for so many ranks and a model of this name whose layers have so many experts, in order. hash: as above.
 * Errors: MISMATCH: what differs, and what to do. */
moec_status mc_placement_check(const mc_placement *placement, const char *model, uint64_t hash, uint32_t n_ranks,
                               const uint32_t *experts, uint32_t n_layers, mc_fault *error) MOEC_MUST_USE;

#endif
