/* arena: memory that belongs to a phase, not to a node. Allocate freely; free everything at once.
 * Out of memory prints a message and aborts: only the compiler uses arenas, never a running model. */
#ifndef MC_BASE_ARENA_H
#define MC_BASE_ARENA_H

#include <stddef.h>

typedef struct mc_arena mc_arena;

mc_arena *mc_arena_create(void);
void mc_arena_destroy(mc_arena *arena); /* NULL is allowed */
/* Frees every allocation but keeps a block for reuse; debug builds poison it with 0xA5. */
void mc_arena_reset(mc_arena *arena);
/* Zeroed, 16-byte aligned; valid until reset or destroy. n_bytes may be 0. */
void *mc_arena_alloc(mc_arena *arena, size_t n_bytes);
void *mc_arena_copy(mc_arena *arena, const void *data, size_t n_bytes);
size_t mc_arena_used_bytes(const mc_arena *arena);

#define MC_NEW(arena, T) ((T *)mc_arena_alloc((arena), sizeof(T)))
#define MC_NEW_N(arena, T, n) ((T *)mc_arena_alloc((arena), sizeof(T) * (size_t)(n)))

#endif
