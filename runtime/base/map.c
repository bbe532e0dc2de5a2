/* Open addressing with linear probing over indices into an insertion-ordered array. */
#include "runtime/base/map.h"

#include "runtime/base/hash.h"

#include <string.h>

void
mc_map_init(mc_map *map, mc_arena *arena)
{
    *map = (mc_map){.arena = arena};
}

static size_t
find_slot(const mc_map *map, mc_str key)
{
    size_t mask = map->n_slots - 1;
    size_t i = (size_t)mc_hash64(key.data, key.len, 0) & mask;
    while (map->slots[i] && !mc_str_eq(map->entries[map->slots[i] - 1].key, key)) i = (i + 1) & mask;
    return i;
}

bool
mc_map_has(const mc_map *map, mc_str key)
{
    return map->n_slots && map->slots[find_slot(map, key)];
}

void *
mc_map_get(const mc_map *map, mc_str key)
{
    if (!map->n_slots) return NULL;
    uint32_t index = map->slots[find_slot(map, key)];
    return index ? map->entries[index - 1].value : NULL;
}

static void
grow(mc_map *map)
{
    size_t n_slots = map->n_slots ? map->n_slots * 2 : 16;
    size_t cap = n_slots / 2;
    mc_map_entry *entries = MC_NEW_N(map->arena, mc_map_entry, cap);
    if (map->n) memcpy(entries, map->entries, map->n * sizeof *entries);
    map->entries = entries;
    map->cap = cap;
    map->slots = MC_NEW_N(map->arena, uint32_t, n_slots);
    map->n_slots = n_slots;
    for (size_t i = 0; i < map->n; i++) map->slots[find_slot(map, entries[i].key)] = (uint32_t)i + 1;
}

bool
mc_map_set(mc_map *map, mc_str key, void *value)
{
    if (map->n == map->cap) grow(map);
    size_t slot = find_slot(map, key);
    if (map->slots[slot]) {
        map->entries[map->slots[slot] - 1].value = value;
        return false;
    }
    map->entries[map->n] = (mc_map_entry){key, value};
    map->slots[slot] = (uint32_t)++map->n;
    return true;
}
