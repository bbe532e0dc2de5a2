/* libFuzzer: any bytes as a model text: formatted, elaborated, verified, and through the default pipeline. */
#include "frontend/elaborate.h"
#include "frontend/format.h"
#include "ir/verify.h"
#include "passes/pass.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
no_fault_of_ours(const mc_diags *d)
{
    for (size_t i = 0; i < d->list.n; i++)
        if (d->list.items[i].code == MC_E0504) abort();
}

/* What the formatter wrote, it leaves alone. */
static void
format_twice(mc_arena *arena, mc_sources *sources, mc_diags *diags, uint32_t file)
{
    mc_buf first = {0}, second = {0};
    if (mc_format(arena, sources, file, diags, &first)) {
        uint32_t again = mc_sources_add(sources, MC_STR("formatted.moe"), mc_buf_view(&first));
        if (!mc_format(arena, sources, again, diags, &second)) abort();
        if (!mc_str_eq(mc_buf_view(&first), mc_buf_view(&second))) abort();
    }
    mc_buf_fini(&first);
    mc_buf_fini(&second);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mc_arena *arena = mc_arena_create();
    mc_sources sources = {.arena = arena};
    mc_diags formatting, diags;
    mc_diags_init(&formatting, arena, &sources);
    mc_diags_init(&diags, arena, &sources);
    uint32_t file = mc_sources_add(&sources, MC_STR("fuzz.moe"), (mc_str){(const char *)data, size});
    format_twice(arena, &sources, &formatting, file);
    mc_elab_options options = {0};
    mc_elab_result elab = {0};
    bool good = mc_elaborate(arena, &sources, file, &options, &diags, &elab);
    if (!good && !diags.n_errors) abort();
    if (good) {
        mc_pass_options passes = mc_pass_options_default();
        if (!mc_module_verify(elab.module, &diags)) abort(); /* the front end makes only what is valid */
        (void)mc_run_pipeline(elab.module, MC_STR("@default"), &passes, &diags);
    }
    no_fault_of_ours(&diags);
    mc_module_destroy(elab.module);
    mc_arena_destroy(arena);
    return 0;
}
