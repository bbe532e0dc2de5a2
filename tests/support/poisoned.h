/* poisoned: buffers of exactly the size asked for: filled with NaN, aligned to 64 bytes, and followed by a page that
 * must not be touched, so whoever reads what nobody wrote, or leaves the buffer, is found. */
#ifndef MC_SUPPORT_POISONED_H
#define MC_SUPPORT_POISONED_H

#include <stddef.h>
#include <stdint.h>

enum { MC_POISON = 0xFF };

void *mc_poisoned(int64_t n_bytes);
/* The buffer that p lies in, and its size; NULL: none. */
void *mc_poisoned_around(const void *p, size_t *out_n_bytes);
/* Fails the test when bytes behind the buffer were written. NULL is allowed. */
void mc_poisoned_free(void *p);

#endif
