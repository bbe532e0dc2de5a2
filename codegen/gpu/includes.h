/* includes: the .cuh files that a kernel's text needs, out of those that are part of moec. */
#ifndef MC_CODEGEN_GPU_INCLUDES_H
#define MC_CODEGEN_GPU_INCLUDES_H

#include "runtime/base/str.h"

typedef struct mc_includes {
    int n;
    const char *const *names; /* "norm.cuh" */
    const char *const *texts; /* of n_bytes each, and a NUL */
    const size_t *n_bytes;
} mc_includes;

/* Everything that `text` includes, directly and through others, in the order of the table of files. */
mc_includes mc_includes_find(mc_arena *arena, mc_str text);

#endif
