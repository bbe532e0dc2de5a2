/* pack: from tensors of a checkpoint to the bytes that kernels read (layouts: runtime/abi.h). */
#ifndef MC_RUNTIME_PACK_H
#define MC_RUNTIME_PACK_H

#include "runtime/bind.h"
#include "runtime/pool.h"

/* Bytes of a packed weight. False: a layout that means nothing, or a size that overflows. */
bool mc_packed_bytes(const moec_abi_weight *w, uint64_t *out);

/* One weight being packed, in units that can be made independently: a row, a panel, or (scales) all at once. */
typedef struct mc_packer {
    const moec_abi_weight *weight;
    const mc_bind *bind;
    mc_tensor tensors[2]; /* path and path2 */
    int n_tensors;
    float *
        scales[2]; /* of an FP8 weight that is quantised here, or of a scale entry: [groups][rows][columns] of blocks */
    int64_t block[2];
    int64_t groups, n, k; /* of one tensor */
    uint64_t n_units, unit_bytes;
} mc_packer;

moec_status mc_packer_open(mc_packer *p, const mc_bind *bind, uint32_t weight, mc_fault *error) MOEC_MUST_USE;
void mc_packer_close(mc_packer *p);
/* Makes units first .. first + n - 1 at out, with all threads of the pool.
 * Errors: MISMATCH (an integer that does not fit), MEMORY. */
moec_status mc_packer_fill(mc_packer *p, mc_pool *pool, uint64_t first, uint64_t n, unsigned char *out,
                           mc_fault *error) MOEC_MUST_USE;

#endif
