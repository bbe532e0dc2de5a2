/* code_cache: compiled objects on disk, keyed by everything that decides their bytes. Entries are written atomically
 * and verified on load; a damaged or foreign entry is a miss, never an error. */
#ifndef MC_DRIVER_CODE_CACHE_H
#define MC_DRIVER_CODE_CACHE_H

#include "runtime/base/file.h"

typedef struct mc_code_key {
    uint64_t words[2];
} mc_code_key;

typedef struct mc_product {
    mc_buf object;
    mc_buf name, summary;
} mc_product;

void mc_product_fini(mc_product *code);

void mc_code_key_add(mc_code_key *key, const void *data, size_t n_bytes);
bool mc_code_cache_get(const char *directory, mc_code_key key, mc_product *out);
/* Failure to write is not the caller's problem: the next compile tries again. */
void mc_code_cache_put(const char *directory, mc_code_key key, const mc_product *code);

#endif
