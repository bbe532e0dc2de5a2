/* gpu_walk: compiles a module of stage plan with an NVRTC that makes code for the CPU (tests/gpu/README.md), and runs
 * each launch thread by thread. */
#ifndef MC_TESTS_GPU_WALK_H
#define MC_TESTS_GPU_WALK_H

#include "codegen/gpu/gpu.h"
#include "runtime/base/cache_dir.h"
#include "tests/gpu/emulate.h"
#include "tests/unit/plan_walk.h"

enum { WALK_GPU_ARCH = 80, WALK_MULTIPROCESSORS = 2, WALK_MAX_GRID_YZ = 65535 };

typedef struct walk_gpu {
    mc_gpu_result result;
    emulate_kernel **kernels; /* of each code that has run */
    void *scratch;            /* launches of one op see what the earlier ones left */
    int64_t n_scratch;
} walk_gpu;

/* Blocks along an axis: see moec_abi_grid_axis. */
static inline uint32_t
walk_gpu_blocks(const moec_abi_gpu_code *code, int axis, const moec_kernel_args *a)
{
    moec_abi_grid_axis g = code->grid[axis];
    int64_t n = g.from == MOEC_ABI_GRID_ONE ? 0 : (a->i[g.from] + g.div - 1) / g.div;
    n += g.add;
    if (axis == 0 && code->per_sm && n > (int64_t)code->per_sm * WALK_MULTIPROCESSORS)
        n = (int64_t)code->per_sm * WALK_MULTIPROCESSORS;
    ck_assert_int_ge(n, 0);
    ck_assert_int_le(n, axis == 0 ? INT32_MAX : WALK_MAX_GRID_YZ);
    return (uint32_t)n;
}

static inline uint32_t
walk_gpu_code(const walk *w, uint32_t target)
{
    const moec_abi_gpu *gpu = w->abi->gpu;
    for (uint32_t i = 0; i < gpu->n_codes; i++)
        if (gpu->codes[i].kernel == target && gpu->codes[i].arch == WALK_GPU_ARCH) return i;
    ck_abort_msg("no code for kernel %s", w->abi->kernel_names[target]);
    return 0;
}

static inline void *
walk_gpu_scratch(const walk *w)
{
    walk_gpu *g = w->code;
    int64_t most = 0;
    for (uint32_t i = 0; i < w->abi->gpu->n_scratch; i++) {
        int64_t n = walk_eval(w, &w->abi->exprs[w->abi->gpu->first_scratch + i]);
        if (n > most) most = n;
    }
    if (!g->scratch || most > g->n_scratch) {
        mc_poisoned_free(g->scratch);
        g->scratch = mc_poisoned(most);
        g->n_scratch = most;
    }
    return g->scratch;
}

static inline void
walk_gpu_kernel(const walk *w, uint32_t target, moec_kernel_args *a)
{
    walk_gpu *g = w->code;
    uint32_t at = walk_gpu_code(w, target);
    const moec_abi_gpu_code *code = &w->abi->gpu->codes[at];
    if (!g->kernels[at]) g->kernels[at] = emulate_load(code->cubin, w->abi->kernel_names[target]);
    ck_assert_msg(g->kernels[at] != NULL, "%s", emulate_error());
    emulate_launch launch = {.block = {code->threads, 1, 1}, .shared_bytes = code->shared_bytes, .order = w->order};
    for (int axis = 0; axis < 3; axis++) launch.grid[axis] = walk_gpu_blocks(code, axis, a);
    if (!launch.grid[0] || !launch.grid[1] || !launch.grid[2]) return;
    int64_t past = w->past;
    bool training = w->abi->backward != UINT32_MAX;
    moec_gpu_args args = {.past = training ? NULL : &past, .cache_cap = a->cache_cap, .scratch = walk_gpu_scratch(w)};
    memcpy(args.ptr, a->ptr, sizeof args.ptr);
    memcpy(args.i, a->i, sizeof args.i);
    memcpy(args.f, a->f, sizeof args.f);
    void *params[] = {&args};
    ck_assert_msg(emulate_run(g->kernels[at], &launch, params), "%s", emulate_error());
}

static inline void
walk_gpu_close(walk *w)
{
    walk_gpu *g = w->code;
    for (uint32_t i = 0; i < w->abi->gpu->n_codes; i++) emulate_unload(g->kernels[i]);
    mc_poisoned_free(g->scratch);
    mc_gpu_result_fini(&g->result);
}

static inline void
walk_open_gpu(walk *w, const mc_module *plan, walk_source source, mc_diags *d)
{
    *w = (walk){.arena = mc_arena_create(), .kernel = walk_gpu_kernel, .close = walk_gpu_close};
    mc_fault fault;
    mc_buf cache = {0};
    ck_assert_int_eq(mc_cache_directory(NULL, "fake-gpu", &cache, &fault), MOEC_OK);
    mc_gpu_options options = {.name = MC_STR("test-model"), .toolchain = {.cache = cache.data}};
    walk_gpu *g = MC_NEW(w->arena, walk_gpu);
    if (!mc_gpu_archs_read("sm_80", d, &options) || !mc_gpu_compile(plan, &options, d, &g->result)) walk_fail(d);
    mc_buf_fini(&cache);
    w->code = g;
    w->abi = g->result.abi;
    g->kernels = MC_NEW_N(w->arena, emulate_kernel *, w->abi->gpu->n_codes + 1);
    walk_begin(w, source);
}

#endif
