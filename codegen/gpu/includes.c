/* A line #include "NAME" counts wherever it stands, in a comment too: one file too many does no harm. A name that is
 * not among the files is left to the compiler to complain about. */
#include "codegen/gpu/includes.h"

#include "runtime/base/embedded.h"

#include <string.h>

extern const mc_embedded mc_gpu_texts[]; /* codegen/gpu/kernels, by file name without .cuh */

static void
mark(mc_str text, bool *wanted)
{
    static const char word[] = "#include \"";
    for (size_t i = 0; i + sizeof word <= text.len; i++) {
        if (memcmp(text.data + i, word, sizeof word - 1) != 0) continue;
        mc_str rest = mc_str_slice(text, i + sizeof word - 1, text.len);
        for (int k = 0; mc_gpu_texts[k].name; k++) {
            size_t n = strlen(mc_gpu_texts[k].name);
            if (wanted[k] || !mc_str_starts(rest, mc_gpu_texts[k].name)) continue;
            if (!mc_str_starts(mc_str_slice(rest, n, rest.len), ".cuh\"")) continue;
            wanted[k] = true;
            mark((mc_str){(const char *)mc_gpu_texts[k].data, mc_gpu_texts[k].n}, wanted);
        }
    }
}

mc_includes
mc_includes_find(mc_arena *arena, mc_str text)
{
    int n_all = 0, n = 0;
    while (mc_gpu_texts[n_all].name) n_all++;
    bool *wanted = MC_NEW_N(arena, bool, n_all + 1);
    mark(text, wanted);
    const char **names = MC_NEW_N(arena, const char *, n_all + 1), **texts = MC_NEW_N(arena, const char *, n_all + 1);
    size_t *n_bytes = MC_NEW_N(arena, size_t, n_all + 1);
    for (int i = 0; i < n_all; i++) {
        if (!wanted[i]) continue;
        names[n] = mc_strf(arena, "%s.cuh", mc_gpu_texts[i].name).data;
        texts[n] = (const char *)mc_gpu_texts[i].data; /* a NUL follows */
        n_bytes[n++] = mc_gpu_texts[i].n;
    }
    return (mc_includes){n, names, texts, n_bytes};
}
