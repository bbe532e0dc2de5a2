/* safetensors: one file of tensors. The file is untrusted: every number in its header is checked against the file
 * before it is used, and the data must be tiled exactly, without holes, overlap or rest. */
#ifndef MC_RUNTIME_SAFETENSORS_H
#define MC_RUNTIME_SAFETENSORS_H

#include "runtime/base/file.h"

enum { MC_ST_MAX_RANK = 6, MC_ST_MAX_NAME = 512 };
#define MC_ST_MAX_HEADER (100u << 20) /* the format's own limit */

typedef struct mc_st_tensor {
    mc_str name; /* in the reader's memory */
    moec_dtype dtype;
    uint32_t rank;
    int64_t dims[MC_ST_MAX_RANK];
    const unsigned char *data;
    uint64_t begin, n_bytes; /* begin: from the end of the header */
} mc_st_tensor;

typedef struct mc_st_note { /* an entry of __metadata__ */
    mc_str key, value;
} mc_st_note;

typedef struct mc_st_file {
    mc_st_tensor *tensors; /* by ascending begin */
    size_t n_tensors;
    mc_st_note *notes;
    size_t n_notes;
    char *names; /* all texts */
} mc_st_file;

/* Reads the header of a file that lies at bytes[0..n_bytes-1] and stays there. `path` is for messages.
 * Errors: SYNTAX (malformed), UNSUPPORTED (an element type we do not know), MEMORY. */
moec_status mc_st_parse(const unsigned char *bytes, size_t n_bytes, const char *path, mc_st_file *out,
                        mc_fault *error) MOEC_MUST_USE;
void mc_st_fini(mc_st_file *file);
/* What __metadata__ says of `key`; empty when it does not. */
mc_str mc_st_note_of(const mc_st_file *file, const char *key);

/* Writes a file in this format, completely or not at all: `tensors` in their order (name, dtype, rank, dims and data
 * are read), the first at a multiple of 64 bytes from the start, and `notes` as __metadata__. Texts end in a zero byte.
 * Errors: IO, MEMORY, ARGUMENT (an element type that the format lacks). */
moec_status mc_st_write(const char *path, const mc_st_tensor *tensors, size_t n_tensors, const mc_st_note *notes,
                        size_t n_notes, mc_fault *error) MOEC_MUST_USE;

#endif
