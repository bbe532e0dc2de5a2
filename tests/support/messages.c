/* See messages.h. The text lives as long as the diagnostics, so that a failing test can print it in its last words. */
#include "tests/support/messages.h"

mc_str
mc_messages(const mc_diags *diags)
{
    mc_buf text = {0};
    for (size_t i = 0; i < diags->list.n; i++) mc_diag_render(diags, &diags->list.items[i], false, &text);
    mc_str copy = mc_str_dup(diags->arena, mc_buf_view(&text));
    mc_buf_fini(&text);
    return copy;
}
