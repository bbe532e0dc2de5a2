/* Looks up embedded texts. */
#include "runtime/base/embedded.h"

mc_str
mc_embedded_find(const mc_embedded *table, mc_str name)
{
    for (const mc_embedded *t = table; t->name; t++) {
        if (mc_str_is(name, t->name)) return (mc_str){(const char *)t->data, t->n};
    }
    return MC_STR("");
}
