/* A step's launches depend on the sizes and the addresses of its arguments, and on nothing else that the host knows:
 * those are the key. The least recently used graph makes room. */
#include "runtime/gpu/gpu_graph.h"

#include "runtime/base/hash.h"

static uint64_t
key_of(const mc_gpu_walk *w, size_t n_args, void *const *args)
{
    const mc_exec *x = w->x;
    uint64_t h = mc_hash64(x->syms, x->abi->n_syms * sizeof *x->syms, 1);
    return mc_hash64(args, n_args * sizeof *args, h);
}

/* The entry of this key, or the one that it may have. */
static mc_gpu_graph *
find(mc_gpu_graphs *g, uint64_t key, const mc_cuda *cuda)
{
    mc_gpu_graph *oldest = &g->items[0];
    for (int i = 0; i < MC_GPU_GRAPHS; i++) {
        mc_gpu_graph *item = &g->items[i];
        if (item->last_use && item->key == key) return item;
        if (item->last_use < oldest->last_use) oldest = item;
    }
    if (oldest->exec) cuda->cuGraphExecDestroy(oldest->exec);
    *oldest = (mc_gpu_graph){.key = key};
    return oldest;
}

static moec_status
capture(mc_gpu_walk *w, void *const *args, CUgraphExec *out)
{
    const mc_cuda *cuda = w->gpu->cuda;
    CUgraph graph = NULL;
    moec_status s = MC_CUDA(cuda, w->error, cuStreamBeginCapture, w->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    if (s != MOEC_OK) return s;
    s = mc_gpu_walk_run(w, w->x->abi->entry, 0, args);
    mc_fault ignored;
    moec_status ended = MC_CUDA(cuda, s == MOEC_OK ? w->error : &ignored, cuStreamEndCapture, w->stream, &graph);
    if (s == MOEC_OK) s = ended;
    if (s == MOEC_OK) s = MC_CUDA(cuda, w->error, cuGraphInstantiateWithFlags, out, graph, 0);
    if (graph) cuda->cuGraphDestroy(graph);
    return s;
}

moec_status
mc_gpu_graph_run(mc_gpu_graphs *g, mc_gpu_walk *w, size_t n_args, void *const *args)
{
    const mc_cuda *cuda = w->gpu->cuda;
    int captured = CU_STREAM_CAPTURE_STATUS_NONE;
    moec_status s = MC_CUDA(cuda, w->error, cuStreamIsCapturing, w->stream, &captured);
    if (s != MOEC_OK) return s;
    if (captured != CU_STREAM_CAPTURE_STATUS_NONE) return mc_gpu_walk_run(w, w->x->abi->entry, 0, args);
    mc_gpu_graph *item = find(g, key_of(w, n_args, args), cuda);
    bool seen = item->last_use != 0;
    item->last_use = ++g->clock;
    if (!seen) return mc_gpu_walk_run(w, w->x->abi->entry, 0, args);
    if (!item->exec) s = capture(w, args, &item->exec);
    return s == MOEC_OK ? MC_CUDA(cuda, w->error, cuGraphLaunch, item->exec, w->stream) : s;
}

void
mc_gpu_graphs_free(mc_gpu_graphs *g, const mc_cuda *cuda)
{
    for (int i = 0; i < MC_GPU_GRAPHS; i++)
        if (g->items[i].exec) cuda->cuGraphExecDestroy(g->items[i].exec);
    *g = (mc_gpu_graphs){0};
}
