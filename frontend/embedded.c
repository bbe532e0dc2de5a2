/* Looks up embedded texts. */
#include "frontend/embedded.h"

#include "frontend/elaborate.h"

mc_str
mc_embedded_find(mc_str name)
{
    for (const mc_embedded *t = mc_embedded_texts; t->name; t++) {
        if (mc_str_is(name, t->name)) return (mc_str){(const char *)t->data, t->n};
    }
    return MC_STR("");
}

mc_str
mc_prelude_text(void)
{
    return mc_embedded_find(MC_STR("prelude"));
}
