/* nvrtc_identity: which NVRTC a cubin was made by. The one used last is remembered in the cache, so that entries can
 * be looked up without loading a library of 100 MB. */
#ifndef MC_CODEGEN_GPU_NVRTC_IDENTITY_H
#define MC_CODEGEN_GPU_NVRTC_IDENTITY_H

#include "codegen/gpu/nvrtc.h"

typedef struct mc_nvrtc_identity {
    int major, minor;
    uint64_t n_bytes, seconds, nanoseconds; /* of its file: size, last change */
    mc_str path;
} mc_nvrtc_identity;

/* False when the file is gone. */
bool mc_nvrtc_identity_of(const mc_nvrtc *nvrtc, mc_arena *arena, mc_nvrtc_identity *out);
bool mc_nvrtc_identity_same(const mc_nvrtc_identity *a, const mc_nvrtc_identity *b);
/* The library used last under these environment variables, if its file is still what it was. */
bool mc_nvrtc_identity_recall(const char *cache, mc_arena *arena, mc_nvrtc_identity *out);
void mc_nvrtc_identity_remember(const char *cache, const mc_nvrtc_identity *identity);

#endif
