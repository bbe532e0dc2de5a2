/* Which code of a model a device runs, and loading it. Machine code is not compatible between architectures, so the
 * choice is by number and never by trying. */
#include "runtime/gpu/gpu_code.h"

#include <stdlib.h>

/* Code for 8.x runs on later 8.y; sm_90a and sm_100a run on 9.0 and 10.0 alone. */
static bool
fits(uint32_t code, uint32_t device)
{
    return code >= 90 ? code == device : device / 10 == code / 10 && device >= code;
}

static const moec_abi_gpu_code *
code_for(const moec_abi_model *m, uint32_t kernel, uint32_t device)
{
    const moec_abi_gpu_code *best = NULL;
    for (uint32_t i = 0; i < m->gpu->n_codes; i++) {
        const moec_abi_gpu_code *c = &m->gpu->codes[i];
        if (c->kernel == kernel && fits(c->arch, device) && (!best || c->arch > best->arch)) best = c;
    }
    return best;
}

static moec_status
check_model(const moec_model *model, const moec_gpu *gpu, mc_fault *error)
{
    const moec_abi_model *m = model->abi;
    uint32_t arch = gpu->info.arch;
    if (!m->gpu)
        return mc_fail(error, MOEC_ERR_UNSUPPORTED,
                       "%s was compiled for a CPU: compile it with --gpu to run it on a GPU", m->name);
    for (uint32_t i = 0; i < m->n_kernels; i++)
        if (!code_for(m, i, arch))
            return mc_fail(error, MOEC_ERR_UNSUPPORTED,
                           "%s has code for %s, but GPU %d (%s) is of compute capability %u.%u: compile it with --gpu "
                           "sm_%u%s%s",
                           m->name, m->gpu->archs, gpu->info.ordinal, gpu->info.name, arch / 10, arch % 10,
                           arch / 10 == 8 && arch < 89 ? 80 : arch, arch >= 90 ? "a" : "",
                           arch < 80 ? " (moec needs 8.0 or newer)" : "");
    return MOEC_OK;
}

moec_status
moec_model_check_gpu(const moec_model *model, const moec_gpu *gpu, moec_error *error)
{
    mc_fault e = {{0}};
    return mc_give(error, &e, check_model(model, gpu, &e));
}

static moec_status
load_kernel(const moec_gpu *gpu, const moec_abi_model *m, uint32_t index, mc_gpu_kernel_code *out, mc_fault *error)
{
    const moec_abi_gpu_code *c = code_for(m, index, gpu->info.arch);
    const char *name = m->kernel_names[index];
    out->code = (uint32_t)(c - m->gpu->codes);
    if (c->shared_bytes > gpu->info.shared_bytes)
        return mc_fail(error, MOEC_ERR_UNSUPPORTED, "kernel %s needs %u bytes of shared memory, GPU %d has %u", name,
                       c->shared_bytes, gpu->info.ordinal, gpu->info.shared_bytes);
    moec_status s = MC_CUDA(gpu->cuda, error, cuModuleLoadData, &out->module, c->cubin);
    if (s == MOEC_OK) s = MC_CUDA(gpu->cuda, error, cuModuleGetFunction, &out->function, out->module, name);
    if (s == MOEC_OK && c->shared_bytes > 48 * 1024) /* more is only given when asked for */
        s = MC_CUDA(gpu->cuda, error, cuFuncSetAttribute, out->function,
                    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)c->shared_bytes);
    if (s == MOEC_OK && c->cluster > 8)
        s = MC_CUDA(gpu->cuda, error, cuFuncSetAttribute, out->function,
                    CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1);
    return s;
}

static void
unload(const moec_gpu *gpu, mc_gpu_code *code)
{
    for (uint32_t i = 0; i < code->n_kernels; i++)
        if (code->kernels[i].module) gpu->cuda->cuModuleUnload(code->kernels[i].module);
    free(code);
}

static moec_status
load(const moec_gpu *gpu, const moec_model *model, mc_gpu_code **out, mc_fault *error)
{
    const moec_abi_model *m = model->abi;
    mc_gpu_code *code = calloc(1, sizeof *code + m->n_kernels * sizeof *code->kernels);
    *out = NULL;
    if (!code) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    code->image = model->image_hash;
    code->n_kernels = m->n_kernels;
    moec_status s = MOEC_OK;
    for (uint32_t i = 0; s == MOEC_OK && i < m->n_kernels; i++) s = load_kernel(gpu, m, i, &code->kernels[i], error);
    if (s != MOEC_OK)
        unload(gpu, code);
    else
        *out = code;
    return s;
}

moec_status
mc_gpu_code_get(moec_gpu *gpu, const moec_model *model, const mc_gpu_code **out, mc_fault *error)
{
    moec_status s = MOEC_OK;
    *out = NULL;
    pthread_mutex_lock(&gpu->lock);
    mc_gpu_code *code = gpu->codes;
    while (code && (code->image != model->image_hash || code->n_kernels != model->abi->n_kernels)) code = code->next;
    if (!code) {
        s = check_model(model, gpu, error);
        if (s == MOEC_OK) s = load(gpu, model, &code, error);
        if (s == MOEC_OK) {
            code->next = gpu->codes;
            gpu->codes = code;
        }
    }
    pthread_mutex_unlock(&gpu->lock);
    *out = code;
    return s;
}

void
mc_gpu_code_free_all(moec_gpu *gpu)
{
    while (gpu->codes) {
        mc_gpu_code *code = gpu->codes;
        gpu->codes = code->next;
        unload(gpu, code);
    }
}
