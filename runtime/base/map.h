/* map: string -> pointer, in an arena. Iteration is in order of insertion, so output never depends on hashes. */
#ifndef MC_BASE_MAP_H
#define MC_BASE_MAP_H

#include "runtime/base/str.h"

typedef struct mc_map_entry {
    mc_str key; /* borrowed: must outlive the map */
    void *value;
} mc_map_entry;

typedef struct mc_map {
    mc_arena *arena;
    mc_map_entry *entries; /* n of them, in order of insertion */
    size_t n, cap;
    uint32_t *slots; /* index + 1 into entries; 0 = free */
    size_t n_slots;
} mc_map;

void mc_map_init(mc_map *map, mc_arena *arena);
void *mc_map_get(const mc_map *map, mc_str key); /* NULL when absent */
bool mc_map_has(const mc_map *map, mc_str key);
/* Inserts or replaces; returns true when the key was new. */
bool mc_map_set(mc_map *map, mc_str key, void *value);

#endif
