#include "runtime/base/hash.h"

#define XXH_INLINE_ALL /* header only: artefacts must not need a shared library */
#include <xxhash.h>

uint64_t
mc_hash64(const void *data, size_t n_bytes, uint64_t seed)
{
    return XXH64(data, n_bytes, seed);
}
