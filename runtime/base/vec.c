#include "runtime/base/vec.h"

#include <string.h>

void *
mc_vec_grow(mc_arena *arena, void *items, size_t item_bytes, size_t n, size_t *cap)
{
    size_t grown = *cap ? *cap * 2 : 8;
    void *fresh = mc_arena_alloc(arena, grown * item_bytes);
    if (n) memcpy(fresh, items, n * item_bytes);
    *cap = grown;
    return fresh;
}
