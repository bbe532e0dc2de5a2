/* embedded: texts that are part of the program: the prelude ("prelude") and the family files, by their model_type.
 * The table is written at build time by frontend/embed.cmake. */
#ifndef MC_FRONTEND_EMBEDDED_H
#define MC_FRONTEND_EMBEDDED_H

#include "runtime/base/str.h"

typedef struct mc_embedded {
    const char *name; /* NULL ends the table */
    const unsigned char *data;
    size_t n;
} mc_embedded;

extern const mc_embedded mc_embedded_texts[];

/* Empty when there is no such text. */
mc_str mc_embedded_find(mc_str name);

#endif
