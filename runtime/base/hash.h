/* hash: 64-bit non-cryptographic hash for tables and cache keys. Same bytes, same value on every machine. */
#ifndef MC_BASE_HASH_H
#define MC_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t mc_hash64(const void *data, size_t n_bytes, uint64_t seed);

#endif
