/* device_walk: compiles a module of stage plan for the GPU that is there, and runs each launch on it through the
 * runtime's own launcher. What a kernel may touch is copied to the device before and back after it, each buffer in an
 * allocation of exactly its size, so that compute-sanitizer sees who leaves one. */
#ifndef MC_TESTS_DEVICE_WALK_H
#define MC_TESTS_DEVICE_WALK_H

#include "codegen/gpu/gpu.h"
#include "runtime/base/cache_dir.h"
#include "runtime/gpu/gpu_walk.h"
#include "runtime/image.h"
#include "tests/unit/plan_walk.h"

#include <stdio.h>

typedef struct walk_device {
    moec_gpu *gpu;
    moec_model *model;
    mc_buf image;
    mc_exec exec;
    mc_gpu_walk walk;
    mc_fault fault;
    int64_t scratch_bytes;
} walk_device;

typedef struct walk_mirror {
    void *host;
    size_t n_bytes;
    CUdeviceptr device;
} walk_mirror;

static inline void
walk_device_must(walk_device *d, CUresult r, const char *what)
{
    ck_assert_msg(mc_cuda_check(d->gpu->cuda, r, what, &d->fault) == MOEC_OK, "%s", d->fault.text);
}

static inline CUdeviceptr
walk_device_copy(walk_device *d, const void *from, size_t n_bytes)
{
    CUdeviceptr p;
    ck_assert_msg(mc_gpu_alloc(d->gpu, n_bytes, "a buffer", &p, &d->fault) == MOEC_OK, "%s", d->fault.text);
    if (n_bytes) walk_device_must(d, d->gpu->cuda->cuMemcpyHtoDAsync(p, from, n_bytes, NULL), "copy to the device");
    return p;
}

/* The address on the device of what lies at p here. */
static inline void *
walk_device_mirror(walk_device *d, walk_mirror *mirrors, int *n, const void *p)
{
    size_t n_bytes = 0;
    char *begin = mc_poisoned_around(p, &n_bytes);
    ck_assert_msg(begin != NULL, "an argument outside of every buffer");
    int i = 0;
    while (i < *n && mirrors[i].host != begin) i++;
    if (i == *n) mirrors[(*n)++] = (walk_mirror){begin, n_bytes, walk_device_copy(d, begin, n_bytes)};
    return mc_gpu_pointer(mirrors[i].device + (CUdeviceptr)((const char *)p - begin));
}

static inline void
walk_device_scratch(const walk *w, walk_device *d)
{
    int64_t most = 0;
    for (uint32_t i = 0; i < w->abi->gpu->n_scratch; i++) {
        int64_t n = walk_eval(w, &w->abi->exprs[w->abi->gpu->first_scratch + i]);
        if (n > most) most = n;
    }
    if (most <= d->scratch_bytes) return;
    CUdeviceptr p;
    mc_gpu_free(d->gpu, mc_gpu_address(d->exec.scratch));
    ck_assert_int_eq(mc_gpu_alloc(d->gpu, (size_t)most, "scratch", &p, &d->fault), MOEC_OK);
    walk_device_must(d, d->gpu->cuda->cuMemsetD8Async(p, MC_POISON, (size_t)most, NULL), "poison");
    d->exec.scratch = mc_gpu_pointer(p);
    d->scratch_bytes = most;
}

static inline void
walk_device_kernel(const walk *w, uint32_t target, moec_kernel_args *a)
{
    walk_device *d = w->code;
    const mc_cuda *cuda = d->gpu->cuda;
    walk_mirror mirrors[MOEC_ABI_MAX_PTRS];
    int n = 0;
    moec_kernel_args there = *a;
    walk_device_scratch(w, d);
    for (int i = 0; i < MOEC_ABI_MAX_PTRS; i++)
        if (a->ptr[i]) there.ptr[i] = walk_device_mirror(d, mirrors, &n, a->ptr[i]);
    bool training = w->abi->backward != UINT32_MAX;
    d->walk.past = training ? 0 : walk_device_copy(d, &w->past, sizeof w->past);
    d->exec.cache_cap = w->cache_cap;
    ck_assert_msg(mc_gpu_launch(&d->walk, target, &there) == MOEC_OK, "%s", d->fault.text);
    walk_device_must(d, cuda->cuStreamSynchronize(NULL), w->abi->kernel_names[target]);
    for (int i = 0; i < n; i++) {
        if (mirrors[i].n_bytes)
            walk_device_must(d, cuda->cuMemcpyDtoHAsync(mirrors[i].host, mirrors[i].device, mirrors[i].n_bytes, NULL),
                             "copy from the device");
        walk_device_must(d, cuda->cuStreamSynchronize(NULL), "copy from the device");
        mc_gpu_free(d->gpu, mirrors[i].device);
    }
    mc_gpu_free(d->gpu, d->walk.past);
}

static inline void
walk_device_close(walk *w)
{
    walk_device *d = w->code;
    mc_gpu_free(d->gpu, mc_gpu_address(d->exec.scratch));
    mc_gpu_leave(d->gpu);
    moec_gpu_close(d->gpu);
    moec_model_destroy(d->model);
    mc_buf_fini(&d->image);
}

/* Code for the architecture that is there. */
static inline void
walk_device_compile(walk_device *d, const mc_module *plan, mc_diags *diags)
{
    mc_buf cache = {0};
    mc_gpu_result result;
    char arch[16];
    uint32_t number = d->gpu->info.arch / 10 == 8 && d->gpu->info.arch < 89 ? 80 : d->gpu->info.arch;
    snprintf(arch, sizeof arch, "sm_%u%s", number, number >= 90 ? "a" : "");
    ck_assert_int_eq(mc_cache_directory(NULL, "kernels", &cache, &d->fault), MOEC_OK);
    mc_gpu_options options = {.name = MC_STR("test-model"), .toolchain = {.cache = cache.data}};
    if (!mc_gpu_archs_read(arch, diags, &options) || !mc_gpu_compile(plan, &options, diags, &result)) walk_fail(diags);
    mc_image_write(result.abi, &d->image);
    mc_gpu_result_fini(&result);
    mc_buf_fini(&cache);
}

static inline void
walk_open_device(walk *w, const mc_module *plan, walk_source source, mc_diags *diags)
{
    *w = (walk){.arena = mc_arena_create(), .kernel = walk_device_kernel, .close = walk_device_close};
    walk_device *d = MC_NEW(w->arena, walk_device);
    moec_error error;
    w->code = d;
    ck_assert_msg(moec_gpu_open(0, &d->gpu, &error) == MOEC_OK, "%s", error.text);
    walk_device_compile(d, plan, diags);
    ck_assert_msg(moec_model_from_image(d->image.data, d->image.len, &d->model, &error) == MOEC_OK, "%s", error.text);
    ck_assert_int_eq(mc_gpu_enter(d->gpu, &d->fault), MOEC_OK);
    w->abi = d->exec.abi = d->model->abi;
    d->walk = (mc_gpu_walk){.gpu = d->gpu, .x = &d->exec, .error = &d->fault};
    ck_assert_msg(mc_gpu_code_get(d->gpu, d->model, &d->walk.code, &d->fault) == MOEC_OK, "%s", d->fault.text);
    walk_begin(w, source);
}

#endif
