/* The prelude is a .moe text that is part of the program (frontend/prelude.moe). */
#include "frontend/elaborate.h"
#include "runtime/base/embedded.h"

mc_str
mc_prelude_text(void)
{
    return mc_embedded_find(mc_embedded_texts, MC_STR("prelude"));
}
