/* name_table: open addressing in a table at least twice as large as its contents; made once, never grown. */
#include "runtime/name_table.h"

#include "runtime/base/hash.h"

#include <stdlib.h>

bool
mc_name_table_init(mc_name_table *t, size_t n_names)
{
    *t = (mc_name_table){0};
    size_t n_slots = 16;
    while (n_slots < 2 * n_names) n_slots *= 2;
    t->keys = calloc(n_slots, sizeof *t->keys);
    t->values = calloc(n_slots, sizeof *t->values);
    t->n_slots = n_slots;
    if (t->keys && t->values) return true;
    mc_name_table_fini(t);
    return false;
}

void
mc_name_table_fini(mc_name_table *t)
{
    free(t->keys);
    free(t->values);
    *t = (mc_name_table){0};
}

static size_t
find(const mc_name_table *t, mc_str key)
{
    size_t i = mc_hash64(key.data, key.len, 0) & (t->n_slots - 1);
    while (t->keys[i].data && !mc_str_eq(t->keys[i], key)) i = (i + 1) & (t->n_slots - 1);
    return i;
}

bool
mc_name_table_add(mc_name_table *t, mc_str key, uint32_t value)
{
    size_t i = find(t, key);
    if (t->keys[i].data) return false;
    t->keys[i] = key;
    t->values[i] = value;
    t->n++;
    return true;
}

uint32_t
mc_name_table_get(const mc_name_table *t, mc_str key)
{
    if (!t->n_slots) return MC_NO_INDEX;
    size_t i = find(t, key);
    return t->keys[i].data ? t->values[i] : MC_NO_INDEX;
}
