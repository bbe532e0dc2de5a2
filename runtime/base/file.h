/* file: whole-file reads, read-only mappings, and writes that either happen completely or not at all.
 * Messages name the path and the operating system's reason. */
#ifndef MC_BASE_FILE_H
#define MC_BASE_FILE_H

#include "runtime/base/str.h"

enum { MC_FAULT_BYTES = 1024 };

/* A message for humans; empty when nothing went wrong. */
typedef struct mc_fault {
    char text[MC_FAULT_BYTES];
} mc_fault;

/* Formats into error->text (when error is not NULL) and returns status, so that `return mc_fail(...)` reads well. */
moec_status mc_fail(mc_fault *error, moec_status status, const char *format, ...) MOEC_PRINTF(3, 4);

/* Appends the file's bytes to buf. Refuses directories and files above max_bytes. */
moec_status mc_file_read(const char *path, size_t max_bytes, mc_buf *buf, mc_fault *error) MOEC_MUST_USE;

/* A read-only private mapping. data is NULL for an empty file. */
typedef struct mc_mapping {
    const unsigned char *data;
    size_t n_bytes;
} mc_mapping;

moec_status mc_file_map(const char *path, mc_mapping *out, mc_fault *error) MOEC_MUST_USE;
void mc_file_unmap(mc_mapping *mapping);

bool mc_file_exists(const char *path);
bool mc_file_is_directory(const char *path);
/* mkdir -p, mode 0755 less umask. */
moec_status mc_make_directories(const char *path, mc_fault *error) MOEC_MUST_USE;

/* Writing: bytes go to a temporary name beside `path`; commit flushes, fsyncs and renames. Anything else removes it,
 * so a full disk, a crash or an error never leaves a half-written file under the real name. */
typedef struct mc_writer mc_writer;
moec_status mc_writer_open(const char *path, mc_writer **out, mc_fault *error) MOEC_MUST_USE;
moec_status mc_writer_write(mc_writer *w, const void *data, size_t n_bytes, mc_fault *error) MOEC_MUST_USE;
uint64_t mc_writer_offset(const mc_writer *w);
/* Ends the writer in every case. mode: permission bits of the final file, e.g. 0755 for an executable. */
moec_status mc_writer_commit(mc_writer *w, unsigned mode, mc_fault *error) MOEC_MUST_USE;
void mc_writer_abandon(mc_writer *w);
/* The temporary name, for a tool (a linker) that wants to write the file itself. */
const char *mc_writer_temporary(const mc_writer *w);

/* open, write, commit */
moec_status mc_file_write(const char *path, const void *data, size_t n_bytes, unsigned mode,
                          mc_fault *error) MOEC_MUST_USE;

#endif
