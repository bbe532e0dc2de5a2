/* link: an object file and the embedded runtime become an executable, a shared library or an archive. */
#ifndef MC_DRIVER_LINK_H
#define MC_DRIVER_LINK_H

#include "moec/compiler.h"
#include "runtime/base/file.h"

/* Writes `kind` (EXECUTABLE, SHARED_LIBRARY or ARCHIVE) at `path` from the artefact's object. The same object gives the
 * same bytes. Everything else is written under temporary names and removed.
 * Errors: NOT_FOUND (no linker), UNSUPPORTED (another kind of processor), IO (the linker failed, the disk is full,
 * ...). */
moec_status mc_link(const void *object, size_t n_bytes, const char *name, moec_artefact kind, const char *path,
                    mc_fault *fault) MOEC_MUST_USE;

/* The C header of an artefact: the runtime's interface and the artefact's own query function, in one file. */
void mc_write_header(const char *name, mc_buf *out);

#endif
