/* Sampling where the logits are: the kernels of codegen/gpu/sample.c choose, and only the id comes back. */
#include "runtime/gpu/gpu_session.h"
#include "runtime/sample.h"

#include <string.h>

typedef struct choice { /* sample_result of codegen/gpu/kernels/sample.cuh */
    int32_t greatest;
    float logit;
    int32_t drawn, reserved;
} choice;

static const char *const names[MC_GPU_SAMPLE_KERNELS] = {"moec_sample_greatest", "moec_sample_weights",
                                                         "moec_sample_draw"};

bool
mc_gpu_find_sampling(const moec_abi_model *m, uint32_t *out_kernels)
{
    int n = 0;
    for (uint32_t i = 0; i < m->n_kernels; i++) {
        for (int k = 0; k < MC_GPU_SAMPLE_KERNELS; k++) {
            if (strcmp(m->kernel_names[i], names[k]) != 0) continue;
            out_kernels[k] = i;
            n++;
        }
    }
    return n == MC_GPU_SAMPLE_KERNELS;
}

bool
mc_gpu_samples(const moec_session *s)
{
    return s->gpu && s->gpu->samples;
}

static moec_status
choose(moec_session *s, size_t sequence, const moec_sampling *sampling, double uniform, choice *out, mc_fault *error)
{
    struct mc_gpu_session *g = s->gpu;
    const mc_cuda *cuda = g->gpu->cuda;
    size_t n = (size_t)s->model->vocab, row = (sequence + 1) * s->logits_rows - 1;
    moec_kernel_args a = {.ptr = {mc_gpu_pointer(g->outputs + g->output_offsets[0] + row * n * sizeof(float))},
                          .i = {(int64_t)n}};
    bool draws = sampling && sampling->temperature > 0;
    if (draws) {
        a.f[0] = sampling->temperature;
        a.f[1] = sampling->top_p;
        a.f[2] = uniform;
    }
    moec_status status = MOEC_OK;
    g->walk.error = error;
    g->walk.status = MOEC_OK;
    for (int k = 0; status == MOEC_OK && k < (draws ? MC_GPU_SAMPLE_KERNELS : 1); k++)
        status = mc_gpu_launch(&g->walk, g->sample_kernels[k], &a);
    if (status == MOEC_OK)
        status = MC_CUDA(cuda, error, cuMemcpyDtoHAsync, out, g->scratch, sizeof *out, g->walk.stream);
    return status == MOEC_OK ? MC_CUDA(cuda, error, cuStreamSynchronize, g->walk.stream) : status;
}

moec_status
mc_gpu_sample(moec_session *s, size_t sequence, const moec_sampling *sampling, double uniform, int32_t *out_id,
              mc_fault *error)
{
    choice c = {0};
    moec_status status = mc_gpu_enter(s->gpu->gpu, error);
    if (status != MOEC_OK) return status;
    status = choose(s, sequence, sampling, uniform, &c, error);
    mc_gpu_leave(s->gpu->gpu);
    if (status == MOEC_OK) status = mc_sample_check((size_t)c.greatest, c.logit, error);
    if (status == MOEC_OK) *out_id = c.drawn;
    return status;
}
