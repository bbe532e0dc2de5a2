/* libFuzzer: any bytes as IR. What is read must print, read back and print the same; what verifies must come out of the
 * default pipeline without breaking a pass's contract. */
#include "ir/print.h"
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

static void
round_trip(mc_sources *sources, mc_diags *diags, const mc_module *m)
{
    mc_buf first = {0}, second = {0};
    mc_module_print(m, &first);
    uint32_t file = mc_sources_add(sources, MC_STR("printed.moir"), mc_buf_view(&first));
    mc_module *again = mc_module_read(sources, file, diags);
    if (!again) abort();
    mc_module_print(again, &second);
    if (!mc_str_eq(mc_buf_view(&first), mc_buf_view(&second))) abort();
    mc_module_destroy(again);
    mc_buf_fini(&first);
    mc_buf_fini(&second);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mc_arena *arena = mc_arena_create();
    mc_sources sources = {.arena = arena};
    mc_diags diags;
    mc_diags_init(&diags, arena, &sources);
    uint32_t file = mc_sources_add(&sources, MC_STR("fuzz.moir"), (mc_str){(const char *)data, size});
    mc_module *m = mc_module_read(&sources, file, &diags);
    if (!m && !diags.n_errors) abort();
    if (m && !diags.n_errors) {
        round_trip(&sources, &diags, m);
        mc_pass_options options = mc_pass_options_default();
        if (mc_module_verify(m, &diags)) (void)mc_run_pipeline(m, MC_STR("@default"), &options, &diags);
        no_fault_of_ours(&diags);
    }
    mc_module_destroy(m);
    mc_arena_destroy(arena);
    return 0;
}
