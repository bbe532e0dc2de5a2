/* cache_entry: things that can be made again, kept on disk under the hash of everything that decides them. Entries are
 * written atomically and verified when they are read; a damaged or foreign entry is a miss, never an error. */
#ifndef MC_BASE_CACHE_ENTRY_H
#define MC_BASE_CACHE_ENTRY_H

#include "runtime/base/file.h"

typedef struct mc_cache_key { /* begins as zeros */
    uint64_t words[2];
} mc_cache_key;

void mc_cache_key_add(mc_cache_key *key, const void *data, size_t n_bytes);
/* The key's part of an entry's file name, 32 digits. */
void mc_cache_key_print(mc_cache_key key, mc_buf *out);

/* Appends what was put under the key. */
bool mc_cache_get(const char *directory, mc_cache_key key, mc_buf *out);
/* Failure to write is not the caller's problem: the next one makes it again. */
void mc_cache_put(const char *directory, mc_cache_key key, mc_str data);

#endif
