/* A launch of the plan as a launch of the driver's: grid from the launch's integers, arguments by value. */
#include "runtime/gpu/gpu_walk.h"

#include "runtime/base/dtype.h"

#include <string.h>

moec_status
mc_gpu_scratch_bytes(const mc_exec *x, size_t *out, mc_fault *error)
{
    const moec_abi_gpu *g = x->abi->gpu;
    int64_t most = 0;
    for (uint32_t i = 0; i < g->n_scratch; i++) {
        int64_t n = x->expr_values[g->first_scratch + i];
        if (n < 0 && n != INT64_MIN)
            return mc_fail(error, MOEC_ERR_RANGE, "scratch memory for these sizes is too large");
        if (n > most) most = n;
    }
    *out = (size_t)most;
    return MOEC_OK;
}

/* ---- grids ----------------------------------------------------------------------------------------------------------
 */

/* False: no launch, or (with a status) one that is too large. */
static bool
blocks_of(mc_gpu_walk *w, const moec_abi_gpu_code *c, const moec_kernel_args *a, const char *name, unsigned out[3])
{
    for (int axis = 0; axis < 3; axis++) {
        const moec_abi_grid_axis *g = &c->grid[axis];
        int64_t n = g->add;
        if (g->from != MOEC_ABI_GRID_ONE) n += a->i[g->from] / g->div + (a->i[g->from] % g->div > 0);
        int64_t cap = (int64_t)c->per_sm * w->gpu->info.n_multiprocessors;
        if (axis == 0 && c->per_sm && n > cap) n = cap;
        if (n > (axis ? 65535 : INT32_MAX)) {
            w->status = mc_fail(w->error, MOEC_ERR_RANGE, "kernel %s would need %lld blocks along axis %d", name,
                                (long long)n, axis);
            return false;
        }
        if (n <= 0) return false;
        if (axis == 0 && c->cluster > 1) n = (n + c->cluster - 1) / c->cluster * c->cluster;
        out[axis] = (unsigned)n;
    }
    return true;
}

/* ---- tensor maps
 * ------------------------------------------------------------------------------------------------------ */

static int
map_type(uint32_t dtype)
{
    switch ((moec_dtype)dtype) {
    case MOEC_F32: return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case MOEC_BF16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case MOEC_F16: return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case MOEC_I32: return CU_TENSOR_MAP_DATA_TYPE_INT32;
    default: return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    }
}

static moec_status
encode(const mc_gpu_walk *w, const moec_abi_tensor_map *map, const moec_kernel_args *a, CUtensorMap *out)
{
    static const int swizzles[] = {[0] = 0, [1] = 1, [2] = 2, [4] = 3}; /* by 32 bytes */
    uint64_t dims[4], strides[4], bytes = moec_dtype_bytes((moec_dtype)map->dtype);
    uint32_t ones[4] = {1, 1, 1, 1}, box[4];
    for (uint32_t d = 0; d < map->rank; d++) {
        dims[d] = a->i[map->dims[d]] > 0 ? (uint64_t)a->i[map->dims[d]] : 1;
        box[d] = map->box[d];
        bytes *= dims[d];
        strides[d] = bytes; /* of the next axis */
    }
    uint32_t swizzle = map->swizzle / 32;
    return MC_CUDA(w->gpu->cuda, w->error, cuTensorMapEncodeTiled, out, map_type(map->dtype), map->rank,
                   a->ptr[map->ptr], dims, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                   swizzle <= 4 ? swizzles[swizzle] : 0, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

/* ---- launches
 * --------------------------------------------------------------------------------------------------------- */

moec_status
mc_gpu_launch(mc_gpu_walk *w, uint32_t kernel, const moec_kernel_args *a)
{
    const moec_abi_model *m = w->x->abi;
    const mc_gpu_kernel_code *k = &w->code->kernels[kernel];
    const moec_abi_gpu_code *c = &m->gpu->codes[k->code];
    unsigned blocks[3];
    if (!blocks_of(w, c, a, m->kernel_names[kernel], blocks)) return w->status;
    moec_gpu_args args = {.past = mc_gpu_pointer(w->past), .cache_cap = w->x->cache_cap, .scratch = w->x->scratch};
    CUtensorMap maps[MOEC_ABI_MAX_MAPS];
    memcpy(args.ptr, a->ptr, sizeof args.ptr);
    memcpy(args.i, a->i, sizeof args.i);
    memcpy(args.f, a->f, sizeof args.f);
    for (uint32_t i = 0; w->status == MOEC_OK && i < c->n_maps; i++) w->status = encode(w, &c->maps[i], a, &maps[i]);
    if (w->status != MOEC_OK) return w->status;
    void *parameters[] = {&args, maps};
    CUlaunchAttribute cluster = {.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, .value.clusterDim = {c->cluster, 1, 1}};
    CUlaunchConfig config = {blocks[0], blocks[1],       blocks[2], c->threads, 1,
                             1,         c->shared_bytes, w->stream, &cluster,   c->cluster > 1 ? 1 : 0};
    w->status = mc_cuda_check(w->gpu->cuda, w->gpu->cuda->cuLaunchKernelEx(&config, k->function, parameters, NULL),
                              m->kernel_names[kernel], w->error);
    return w->status;
}

static bool
queue(void *context, uint32_t index, moec_kernel_args *a)
{
    mc_gpu_walk *w = context;
    return mc_gpu_launch(w, w->x->abi->launches[index].target, a) == MOEC_OK;
}

static bool
check(void *context, uint32_t index, moec_kernel_args *a)
{
    mc_gpu_walk *w = context;
    const moec_abi_model *m = w->x->abi;
    uint32_t kernel = m->launches[index].target;
    unsigned blocks[3];
    blocks_of(w, &m->gpu->codes[w->code->kernels[kernel].code], a, m->kernel_names[kernel], blocks);
    return w->status == MOEC_OK;
}

moec_status
mc_gpu_walk_check(mc_gpu_walk *w, uint32_t func, uint32_t weight_base, void *const *args)
{
    w->status = MOEC_OK;
    mc_exec_visit(w->x, func, weight_base, args, check, w);
    return w->status;
}

/* ---- with times
 * ------------------------------------------------------------------------------------------------------- */

typedef struct timed {
    mc_gpu_walk *walk;
    CUevent begin, end;
} timed;

static bool
queue_timed(void *context, uint32_t index, moec_kernel_args *a)
{
    timed *t = context;
    mc_gpu_walk *w = t->walk;
    const mc_cuda *cuda = w->gpu->cuda;
    float milliseconds = 0;
    w->status = MC_CUDA(cuda, w->error, cuEventRecord, t->begin, w->stream);
    if (w->status != MOEC_OK || !queue(w, index, a)) return false;
    w->status = MC_CUDA(cuda, w->error, cuEventRecord, t->end, w->stream);
    if (w->status == MOEC_OK) w->status = MC_CUDA(cuda, w->error, cuStreamSynchronize, w->stream);
    if (w->status == MOEC_OK) w->status = MC_CUDA(cuda, w->error, cuEventElapsedTime, &milliseconds, t->begin, t->end);
    w->x->launch_seconds[index] += milliseconds / 1e3;
    w->x->launch_counts[index]++;
    return w->status == MOEC_OK;
}

moec_status
mc_gpu_walk_run(mc_gpu_walk *w, uint32_t func, uint32_t weight_base, void *const *args)
{
    const mc_cuda *cuda = w->gpu->cuda;
    w->status = MOEC_OK;
    if (!w->x->launch_seconds) {
        mc_exec_visit(w->x, func, weight_base, args, queue, w);
        return w->status;
    }
    timed t = {.walk = w};
    w->status = MC_CUDA(cuda, w->error, cuEventCreate, &t.begin, CU_EVENT_DEFAULT);
    if (w->status == MOEC_OK) w->status = MC_CUDA(cuda, w->error, cuEventCreate, &t.end, CU_EVENT_DEFAULT);
    if (w->status == MOEC_OK) mc_exec_visit(w->x, func, weight_base, args, queue_timed, &t);
    if (t.begin) cuda->cuEventDestroy(t.begin);
    if (t.end) cuda->cuEventDestroy(t.end);
    return w->status;
}
