/* packed: the file that holds a model's weights as its kernels read them; only ever mapped, read-only, shared. Of a
 * model for several ranks a file holds what one number needs, and says which.
 *
 *     header  64 bytes
 *     table   n_weights x { u64 offset, u64 n_bytes }
 *     data    each at a multiple of 64, those of 1 MiB or more at a multiple of 4096; equal weights share their bytes
 *
 * The whole arrangement follows from the model's weight table, so a reader computes it and compares. */
#ifndef MC_RUNTIME_PACKED_H
#define MC_RUNTIME_PACKED_H

#include "runtime/pack.h"

typedef struct mc_packed_entry {
    uint64_t offset, n_bytes;
} mc_packed_entry;

typedef struct mc_packed_layout {
    mc_packed_entry *entries; /* n_weights */
    bool *first;              /* n_weights: whether this entry is the one that fills the bytes */
    uint32_t n_weights;
    uint64_t data_offset, file_bytes;
} mc_packed_layout;

/* Errors: MEMORY, INTERNAL. */
moec_status mc_packed_layout_make(const moec_abi_model *abi, mc_packed_layout *out, mc_fault *error) MOEC_MUST_USE;
void mc_packed_layout_fini(mc_packed_layout *l);

typedef struct mc_packing {
    const mc_bind *bind;
    const mc_packed_layout *layout;
    mc_pool *pool;
    uint64_t source; /* identity of the checkpoint */
    moec_progress_fn *progress;
    void *progress_context;
} mc_packing;

/* Writes the file completely or not at all. */
moec_status mc_packed_write(const mc_packing *packing, const char *path, mc_fault *error) MOEC_MUST_USE;
/* The same bytes, from layout->data_offset on, into memory: data[0] is offset 0 of the file. */
moec_status mc_packed_fill(const mc_packing *packing, unsigned char *data, mc_fault *error) MOEC_MUST_USE;

/* Whether the bytes are a packed file at all. */
bool mc_packed_is(const unsigned char *bytes, size_t n_bytes);
/* What a packed file must be: of this model, and for the rank of this number. */
typedef struct mc_packed_want {
    const moec_abi_model *abi;
    const mc_packed_layout *layout;
    uint64_t source; /* 0: any */
    uint32_t number;
} mc_packed_want;

/* Errors: SYNTAX (malformed), MISMATCH (another model, another rank, another checkpoint). */
moec_status mc_packed_check(const mc_packed_want *want, const unsigned char *bytes, size_t n_bytes, const char *path,
                            mc_fault *error) MOEC_MUST_USE;

#endif
