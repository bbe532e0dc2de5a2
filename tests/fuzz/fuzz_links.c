/* libFuzzer: any bytes as a file of links' rates, and as the text of --simulate. What is accepted has rates above zero.
 */
#include "passes/ep/links.h"
#include "passes/ep/skew.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
try_law(mc_str text)
{
    mc_skew law, again;
    mc_fault fault = {0};
    mc_buf printed = {0};
    if (mc_skew_parse(text, &law, &fault) != MOEC_OK) {
        if (!fault.text[0]) abort();
        return;
    }
    mc_skew_print(&law, &printed);
    if (mc_skew_parse(mc_buf_view(&printed), &again, &fault) != MOEC_OK && law.exponent >= 1e-3 && law.share >= 1e-3)
        abort(); /* (smaller ones are printed with an exponent) */
    mc_buf_fini(&printed);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mc_arena *arena = mc_arena_create();
    mc_sources sources = {.arena = arena};
    mc_diags diags;
    mc_ep_links links;
    mc_str text = {(const char *)data, size};
    mc_diags_init(&diags, arena, &sources);
    uint32_t file = mc_sources_add(&sources, MC_STR("links"), text);
    if (mc_ep_links_parse(&sources, file, &links, &diags)) {
        double rates[] = {links.nodes.rate, links.fabric.rate, links.ranks.compute, links.ranks.memory};
        for (size_t i = 0; i < sizeof rates / sizeof *rates; i++)
            if (!(rates[i] > 0) || isinf(rates[i])) abort();
        if (!(links.nodes.latency >= 0) || !(links.fabric.latency >= 0)) abort();
    } else if (!diags.n_errors) {
        abort();
    }
    (void)mc_ep_links_named(text, &links);
    try_law(text);
    mc_arena_destroy(arena);
    return 0;
}
