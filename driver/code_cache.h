/* code_cache: compiled objects on disk (runtime/base/cache_entry.h), keyed by everything that decides their bytes. */
#ifndef MC_DRIVER_CODE_CACHE_H
#define MC_DRIVER_CODE_CACHE_H

#include "runtime/base/cache_entry.h"

typedef struct mc_product {
    mc_buf object; /* CPU code, an ELF object; empty: none */
    mc_buf image;  /* GPU code (runtime/image.h); empty: none. Not in the cache: its kernels are kept one by one */
    mc_buf name, summary;
} mc_product;

void mc_product_fini(mc_product *code);

bool mc_code_cache_get(const char *directory, mc_cache_key key, mc_product *out);
void mc_code_cache_put(const char *directory, mc_cache_key key, const mc_product *code);

#endif
