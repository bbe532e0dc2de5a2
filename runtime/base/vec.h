/* vec: typed growing arrays whose items live in an arena (old copies are left to the arena).
 *
 *     MC_VEC(int) v = {0};
 *     mc_vec_push(arena, &v, 3);
 *     for (size_t i = 0; i < v.n; i++) use(v.items[i]);
 */
#ifndef MC_BASE_VEC_H
#define MC_BASE_VEC_H

#include "runtime/base/arena.h"

#define MC_VEC(T)                                                                                                      \
    struct {                                                                                                           \
        T *items;                                                                                                      \
        size_t n, cap;                                                                                                 \
    }

#define mc_vec_push(arena, v, ...)                                                                                     \
    do {                                                                                                               \
        if ((v)->n == (v)->cap) (v)->items = mc_vec_grow((arena), (v)->items, sizeof *(v)->items, (v)->n, &(v)->cap);  \
        (v)->items[(v)->n++] = (__VA_ARGS__);                                                                          \
    } while (0)

/* Doubles the capacity; returns the new array. Used by mc_vec_push only. */
void *mc_vec_grow(mc_arena *arena, void *items, size_t item_bytes, size_t n, size_t *cap);

#endif
