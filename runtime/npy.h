/* npy: one tensor in numpy's file format, versions 1 to 3, C order, little endian. The file is untrusted.
 * bf16 has no numpy type: it is written as |V2 (as ml_dtypes does), read from V2 and <u2. */
#ifndef MC_RUNTIME_NPY_H
#define MC_RUNTIME_NPY_H

#include "moec/runtime.h"
#include "runtime/base/file.h"
#include "runtime/pages.h"

typedef struct mc_npy {
    moec_dtype dtype;
    uint32_t rank;
    int64_t dims[MOEC_MAX_RANK];
    mc_pages data; /* the elements, 64-byte aligned */
} mc_npy;

/* Reads a file image. Errors: SYNTAX, UNSUPPORTED (another element type, Fortran order), MEMORY. */
moec_status mc_npy_parse(const unsigned char *bytes, size_t n_bytes, const char *path, mc_npy *out,
                         mc_fault *error) MOEC_MUST_USE;
moec_status mc_npy_read(const char *path, mc_npy *out, mc_fault *error) MOEC_MUST_USE;
void mc_npy_fini(mc_npy *npy);

/* The header for a tensor, with its magic and padding; returns its length, at most MC_NPY_HEADER_BYTES. */
enum { MC_NPY_HEADER_BYTES = 256 };
size_t mc_npy_header(moec_dtype dtype, uint32_t rank, const int64_t *dims, unsigned char *out);
moec_status mc_npy_write(const char *path, moec_dtype dtype, uint32_t rank, const int64_t *dims, const void *data,
                         mc_fault *error) MOEC_MUST_USE;

#endif
