#include "tests/support/fake_gpu.h"

#include "codegen/gpu/toolchain.h"
#include "tests/support/fake_model.h"

#include <stdio.h>
#include <string.h>

#define HEAD(name, threads)                                                                                            \
    "#include \"base.cuh\"\nextern \"C\" __global__ void __launch_bounds__(" #threads ")\n" name                       \
    "(const __grid_constant__ mc_args a)\n{\n"

/* ptr: ids, cache. i: B, S, B * S. */
static const char append_text[] = HEAD("append", 64) "    i64 t = i64(blockIdx.x) * 64 + threadIdx.x;\n"
                                                     "    if (t >= a.i[2]) return;\n"
                                                     "    i64 b = t / a.i[1], s = t % a.i[1];\n"
                                                     "    arg<i32>(a, 1)[b * a.cache_cap + past(a) + s] = "
                                                     "arg<i32>(a, 0)[t];\n}\n";

/* ptr: cache, bias, logits. A block for each position, a thread for each id. */
static const char count_text[] = HEAD("count", 256) "    i64 s = blockIdx.x % a.i[1], here = past(a) + s;\n"
                                                    "    i32 v = threadIdx.x;\n"
                                                    "    const i32 *history = arg<i32>(a, 0) + blockIdx.x / a.i[1] * "
                                                    "a.cache_cap;\n"
                                                    "    f32 sum = arg<f32>(a, 1)[v];\n"
                                                    "    for (i64 p = 0; p <= here; p++)\n"
                                                    "        sum += history[p] == v ? 2.0f : 0.0f;\n"
                                                    "    if (v == (history[here] + 1) % 256) sum += 0.5f;\n"
                                                    "    arg<f32>(a, 2)[i64(blockIdx.x) * 256 + v] = sum;\n}\n";

/* ptr: x, y. i: T. A block for each row. */
static const char scale_text[] = HEAD("scale", 32) "    i64 at = i64(blockIdx.y) * 4 + threadIdx.x;\n"
                                                   "    if (threadIdx.x < 4)\n"
                                                   "        arg<f32>(a, 1)[at] = 2.0f * arg<f32>(a, 0)[at] + 1.0f;\n"
                                                   "}\n";

/* Where ids are chosen: as codegen/gpu/sample.c adds them to a language model. */
#define SAMPLE(name, threads)                                                                                          \
    "#include \"sample.cuh\"\nextern \"C\" __global__ void __launch_bounds__(" #threads ")\n"                          \
    "moec_" name "(const __grid_constant__ mc_args a)\n{\n    " name "(a);\n}\n"
enum { SAMPLE_BYTES = 16 + 256 * 8 + 256 * 16 };

static bool
compile(mc_arena *arena, const char *const *names, const char *const *texts, uint32_t n, moec_abi_gpu_code *codes)
{
    mc_gpu_source sources[8];
    mc_str cubins[8];
    mc_sources files = {.arena = arena};
    mc_diags d;
    mc_gpu_toolchain t = {.n_threads = 1};
    mc_diags_init(&d, arena, &files);
    for (uint32_t i = 0; i < n; i++)
        sources[i] = (mc_gpu_source){.name = names[i], .text = mc_str_of(texts[i]), .arch = 80};
    if (!mc_gpu_toolchain_compile(&t, sources, n, arena, &d, cubins)) {
        for (size_t i = 0; i < d.list.n; i++) fprintf(stderr, "%s\n", d.list.items[i].text.data);
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        codes[i].kernel = i;
        codes[i].arch = 80;
        codes[i].cluster = 1;
        codes[i].cubin = cubins[i].data;
        codes[i].n_bytes = cubins[i].len;
        for (int axis = 0; axis < 3; axis++)
            if (!codes[i].grid[axis].div) codes[i].grid[axis] = (moec_abi_grid_axis){MOEC_ABI_GRID_ONE, 1, 1, 0};
    }
    return true;
}

static moec_abi_gpu *
gpu_of(mc_arena *arena, const moec_abi_gpu_code *codes, uint32_t n)
{
    moec_abi_gpu *g = MC_NEW(arena, moec_abi_gpu);
    *g = (moec_abi_gpu){.archs = "sm_80", .codes = codes, .n_codes = n};
    return g;
}

const moec_abi_model *
fake_gpu_counter(mc_arena *arena)
{
    static const char *const names[] = {"append", "count", "moec_sample_greatest", "moec_sample_weights",
                                        "moec_sample_draw"};
    static const char *const texts[] = {append_text, count_text, SAMPLE("sample_greatest", 512),
                                        SAMPLE("sample_weights", 256), SAMPLE("sample_draw", 512)};
    enum { N = sizeof names / sizeof *names };
    moec_abi_gpu_code *codes = MC_NEW_N(arena, moec_abi_gpu_code, N);
    codes[0].threads = 64;
    codes[0].grid[0] = (moec_abi_grid_axis){.from = 2, .div = 64};
    codes[1].threads = 256;
    codes[1].grid[0] = (moec_abi_grid_axis){.from = 2, .div = 1};
    codes[2].threads = codes[4].threads = 512;
    codes[3].threads = 256;
    codes[3].grid[0] = (moec_abi_grid_axis){.from = 0, .div = 256};
    if (!compile(arena, names, texts, N, codes)) return NULL;
    moec_abi_model *m = MC_NEW(arena, moec_abi_model);
    moec_abi_launch *launches = MC_NEW_N(arena, moec_abi_launch, 2);
    moec_abi_expr *exprs = MC_NEW_N(arena, moec_abi_expr, 4);
    *m = *fake_counter();
    exprs[0] = fake_sym(1, 0);
    exprs[1] = fake_sym(1, 1);
    exprs[2] = fake_syms(1, 0, 1);
    exprs[3] = fake_const(SAMPLE_BYTES);
    memcpy(launches, m->launches, 2 * sizeof *launches);
    launches[0].n_ints = launches[1].n_ints = 3;
    m->launches = launches;
    m->exprs = exprs;
    m->n_exprs = 4;
    m->kernels = NULL;
    m->kernel_names = names;
    m->n_kernels = N;
    moec_abi_gpu *gpu = gpu_of(arena, codes, N);
    gpu->first_scratch = 3;
    gpu->n_scratch = 1;
    m->gpu = gpu;
    return m;
}

const moec_abi_model *
fake_gpu_scale(mc_arena *arena)
{
    static const char *const names[] = {"scale"};
    static const char *const texts[] = {scale_text};
    static const moec_abi_sym syms[] = {{"T", 1, 100000, 0, 0}};
    static const moec_abi_func funcs[] = {{"scale", 1, 1, 0, 1, 0, 0}};
    static const moec_abi_launch launches[] = {{MOEC_LAUNCH_KERNEL, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0}};
    moec_abi_tensor *tensors = MC_NEW_N(arena, moec_abi_tensor, 2);
    moec_abi_ref *refs = MC_NEW_N(arena, moec_abi_ref, 2);
    moec_abi_expr *exprs = MC_NEW(arena, moec_abi_expr);
    moec_abi_gpu_code *codes = MC_NEW(arena, moec_abi_gpu_code);
    codes->threads = 32;
    codes->grid[1] = (moec_abi_grid_axis){.from = 0, .div = 1};
    if (!compile(arena, names, texts, 1, codes)) return NULL;
    *exprs = fake_sym(1, 0);
    for (uint32_t i = 0; i < 2; i++) {
        tensors[i] = (moec_abi_tensor){i ? "y" : "x", MOEC_F32, 2, {fake_sym(1, 0), fake_const(4)}, 0};
        refs[i] = (moec_abi_ref){MOEC_ABI_ARG, i, fake_const(0)};
    }
    moec_abi_model *m = MC_NEW(arena, moec_abi_model);
    *m = (moec_abi_model){.magic = MOEC_ABI_MAGIC,
                          .version = MOEC_ABI_VERSION,
                          .name = "scale",
                          .compiler = "by hand",
                          .target = "cuda",
                          .cpu = "sm_80",
                          .features = "",
                          .hash = 2,
                          .rules = "",
                          .meta = "{}",
                          .syms = syms,
                          .inputs = tensors,
                          .outputs = tensors + 1,
                          .funcs = funcs,
                          .launches = launches,
                          .refs = refs,
                          .exprs = exprs,
                          .kernel_names = names,
                          .strings = "scale",
                          .n_syms = 1,
                          .n_inputs = 1,
                          .n_outputs = 1,
                          .n_funcs = 1,
                          .n_launches = 1,
                          .n_refs = 2,
                          .n_exprs = 1,
                          .n_kernels = 1,
                          .batch_sym = UINT32_MAX,
                          .backward = UINT32_MAX,
                          .gpu = gpu_of(arena, codes, 1)};
    return m;
}
