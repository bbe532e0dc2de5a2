/* Sampling: kernels/sample.cuh. Scratch memory is enough for what the kernels pass on to each other. */
#include "codegen/gpu/sample.h"

enum { ONE_BLOCK = 512, WEIGHT_THREADS = 256 };

/* i32[B, S] -> f32[B, S, V]: what moec_session_feed takes. 0: it is something else. */
static int64_t
vocabulary(const mc_plan *p)
{
    if (p->inputs.n != 1 || p->outputs.n < 1 || p->backward != UINT32_MAX) return 0;
    const moec_abi_tensor *ids = &p->inputs.items[0], *logits = &p->outputs.items[0];
    if (ids->dtype != MOEC_I32 || ids->rank != 2 || logits->dtype != MOEC_F32 || logits->rank != 3) return 0;
    const moec_abi_expr *v = &logits->dims[2];
    return v->syms[0] == UINT8_MAX ? v->mul + v->add : 0;
}

static void
add(mc_plan *p, const char *name, uint32_t threads, uint32_t ids_of_block)
{
    mc_gpu_code code = {.file = "sample.cuh", .threads = threads, .spills_allowed = true};
    code.call = mc_strf(p->arena, "%s(a);", name);
    if (ids_of_block) mc_gpu_grid(&code, 0, 0, ids_of_block);
    mc_gpu_kernel_get(p, &code, "moec_%s", name);
}

void
mc_gpu_add_sampling(mc_plan *p)
{
    int64_t n = vocabulary(p), candidates = 1, each = 2 * sizeof(double);
    if (n <= 0) return;
    while (candidates < n) candidates *= 2;
    add(p, "sample_greatest", ONE_BLOCK, 0);
    add(p, "sample_weights", WEIGHT_THREADS, WEIGHT_THREADS);
    add(p, "sample_draw", ONE_BLOCK, 0);
    int64_t n_bytes = each + n * (int64_t)sizeof(double) + candidates * each;
    mc_plan_scratch_dim(p, mc_dim_const(n_bytes));
}
