/* name_table: string -> index. Unlike base/map it says when memory runs out instead of ending the process. */
#ifndef MC_RUNTIME_NAME_TABLE_H
#define MC_RUNTIME_NAME_TABLE_H

#include "runtime/base/str.h"

typedef struct mc_name_table {
    mc_str *keys; /* n_slots; data NULL: free. Borrowed */
    uint32_t *values;
    size_t n, n_slots;
} mc_name_table;

#define MC_NO_INDEX UINT32_MAX

/* Room for n_names. False: no memory. */
bool mc_name_table_init(mc_name_table *t, size_t n_names);
void mc_name_table_fini(mc_name_table *t);
/* False when the key is there already (its value stays). */
bool mc_name_table_add(mc_name_table *t, mc_str key, uint32_t value);
uint32_t mc_name_table_get(const mc_name_table *t, mc_str key); /* MC_NO_INDEX when absent */

#endif
