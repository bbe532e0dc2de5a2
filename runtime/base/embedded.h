/* embedded: tables of texts that are part of the program, written at build time by cmake/embed.cmake: the prelude and
 * the family files (frontend), the CUDA files of kernels (codegen/gpu), the pages of `moec explain` (driver). */
#ifndef MC_BASE_EMBEDDED_H
#define MC_BASE_EMBEDDED_H

#include "runtime/base/str.h"

typedef struct mc_embedded {
    const char *name; /* NULL ends the table */
    const unsigned char *data;
    size_t n;
} mc_embedded;

extern const mc_embedded mc_embedded_texts[]; /* "prelude", and the family files by their model_type */

/* The text of this name in a table; empty when there is none. */
mc_str mc_embedded_find(const mc_embedded *table, mc_str name);

#endif
