/* libFuzzer: any bytes as a Hugging Face config.json, through `moec import`; the text that comes out must elaborate. */
#include "frontend/import.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mc_arena *arena = mc_arena_create();
    mc_sources sources = {.arena = arena};
    mc_diags diags;
    mc_buf text = {0};
    mc_diags_init(&diags, arena, &sources);
    mc_import_options options = {.config = {(const char *)data, size}};
    bool good = mc_import(arena, &sources, &options, &diags, &text);
    if (!good && !diags.n_errors) abort();
    if (good) {
        mc_elab_options elab_options = {0};
        mc_elab_result elab = {0};
        uint32_t file = mc_sources_add(&sources, MC_STR("imported.moe"), mc_buf_view(&text));
        if (!mc_elaborate(arena, &sources, file, &elab_options, &diags, &elab)) abort();
        mc_module_destroy(elab.module);
    }
    mc_buf_fini(&text);
    mc_arena_destroy(arena);
    return 0;
}
