/* See messages.h. The text lives as long as the diagnostics, so that a failing test can print it in its last words. */
#include "tests/support/messages.h"

static mc_str
render(const mc_diags *diags, bool errors_only)
{
    mc_buf text = {0};
    for (size_t i = 0; i < diags->list.n; i++) {
        const mc_diagnostic *d = &diags->list.items[i];
        if (errors_only && mc_code_severity(d->code) != MC_SEVERITY_ERROR) continue;
        mc_diag_render(diags, d, false, &text);
    }
    mc_str copy = mc_str_dup(diags->arena, mc_buf_view(&text));
    mc_buf_fini(&text);
    return copy;
}

mc_str
mc_messages(const mc_diags *diags)
{
    return render(diags, false);
}

mc_str
mc_errors(const mc_diags *diags)
{
    return render(diags, true);
}
