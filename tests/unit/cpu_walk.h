/* cpu_walk: compiles a module of stage plan for this processor; its launches run the threads one after another. */
#ifndef MC_TESTS_CPU_WALK_H
#define MC_TESTS_CPU_WALK_H

#include "codegen/cpu/cpu.h"
#include "codegen/cpu/llvm_jit.h"
#include "tests/unit/plan_walk.h"

static inline void
walk_cpu_kernel(const walk *w, uint32_t target, moec_kernel_args *a)
{
    for (int t = w->n_threads - 1; t >= 0; t--) { /* an order that real threads may well have */
        a->thread = t;
        a->scratch = w->scratch[t];
        w->abi->kernels[target](a);
    }
}

static inline void
walk_cpu_close(walk *w)
{
    mc_jit_destroy(w->code);
}

static inline void
walk_open_for(walk *w, const mc_cpu_target *target, const mc_module *plan, walk_source source, mc_diags *d)
{
    mc_cpu_options options = {.name = MC_STR("test-model"), .target = *target};
    mc_cpu_result r;
    mc_buf object = {0};
    *w = (walk){.arena = mc_arena_create(), .n_threads = 1};
    if (!mc_cpu_compile(plan, &options, d, &r)) walk_fail(d);
    if (!mc_cpu_emit(&r, MC_EMIT_OBJECT, d, &object)) walk_fail(d);
    mc_jit *jit = mc_jit_load(object.data, object.len, d);
    mc_buf_fini(&object);
    if (!jit) walk_fail(d);
    w->code = jit;
    w->kernel = walk_cpu_kernel;
    w->close = walk_cpu_close;
    moec_abi_query_fn *query = (moec_abi_query_fn *)mc_jit_symbol(jit, r.query, d);
    if (!query) walk_fail(d);
    ck_assert_ptr_null(query(MOEC_ABI_VERSION + 1));
    w->abi = query(MOEC_ABI_VERSION);
    mc_cpu_result_fini(&r);
    walk_begin(w, source);
}

static inline void
walk_open(walk *w, const mc_module *plan, walk_source source, mc_diags *d)
{
    mc_cpu_target target;
    if (!mc_cpu_target_find("native", d, &target)) walk_fail(d);
    walk_open_for(w, &target, plan, source, d);
}

#endif
