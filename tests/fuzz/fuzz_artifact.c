/* libFuzzer: the other files and texts a runtime reads. The first byte chooses: a packed weight file, a .npy file, or
 * the text of a weights block with a path to match. Links tests/support/fake_model.c and the runtime. */
#define _GNU_SOURCE
#include "runtime/npy.h"
#include "runtime/packed.h"
#include "runtime/rules.h"
#include "tests/support/fake_model.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
try_packed(const uint8_t *data, size_t size)
{
    mc_packed_layout layout;
    mc_fault fault = {{0}};
    const moec_abi_model *abi = fake_layers();
    if (mc_packed_layout_make(abi, &layout, &fault) != MOEC_OK) abort();
    moec_status s = mc_packed_check(&(mc_packed_want){abi, &layout, 0, 0}, data, size, "fuzz", &fault);
    if (s == MOEC_OK) { /* then every weight must lie inside */
        for (uint32_t i = 0; i < layout.n_weights; i++)
            if (layout.entries[i].offset + layout.entries[i].n_bytes > size) abort();
    } else if (!fault.text[0]) {
        abort();
    }
    mc_packed_layout_fini(&layout);
}

static void
try_npy(const uint8_t *data, size_t size)
{
    mc_npy npy;
    mc_fault fault = {{0}};
    if (mc_npy_parse(data, size, "fuzz", &npy, &fault) != MOEC_OK) {
        if (!fault.text[0]) abort();
        return;
    }
    unsigned char header[MC_NPY_HEADER_BYTES];
    size_t n = mc_npy_header(npy.dtype, npy.rank, npy.dims, header);
    if (n > sizeof header || n % 64) abort();
    mc_npy_fini(&npy);
}

/* text, 0, path */
static void
try_rules(const uint8_t *data, size_t size)
{
    char *text = calloc(size + 2, 1);
    mc_rules rules;
    mc_fault fault = {{0}};
    if (!text) return;
    memcpy(text, data, size);
    mc_str path = mc_str_of(text + strlen(text) + 1);
    if (mc_rules_parse(text, &rules, &fault) == MOEC_OK) {
        for (size_t i = 0; i < rules.n_rules && i < 4; i++) {
            mc_captures captures;
            char name[MC_PATH_BYTES];
            const mc_rule *r = &rules.rules[i];
            if (mc_pattern_match(r->targets[0], path, &captures) && !r->ignore) mc_rule_source(r, &captures, 3, name);
        }
        mc_rules_fini(&rules);
    } else if (!fault.text[0]) {
        abort();
    }
    free(text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) return 0;
    switch (data[0] % 3) {
    case 0: try_packed(data + 1, size - 1); break;
    case 1: try_npy(data + 1, size - 1); break;
    default: try_rules(data + 1, size - 1); break;
    }
    return 0;
}
