/* pages: large zeroed memory straight from the operating system; a page costs nothing until it is touched. */
#ifndef MC_RUNTIME_PAGES_H
#define MC_RUNTIME_PAGES_H

#include "runtime/base/file.h"

typedef struct mc_pages {
    unsigned char *data; /* NULL before alloc and after free only */
    size_t n_bytes;
} mc_pages;

/* `what` is named in the message. Errors: MEMORY. */
moec_status mc_pages_alloc(size_t n_bytes, const char *what, mc_pages *out, mc_fault *error) MOEC_MUST_USE;
void mc_pages_free(mc_pages *pages);
void mc_pages_zero(mc_pages *pages); /* and gives the memory back until it is touched again */
void mc_pages_read_only(mc_pages *pages);

#endif
