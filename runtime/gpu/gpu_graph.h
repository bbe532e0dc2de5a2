/* gpu_graph: steps that were queued before, kept as graphs of the driver's: one call instead of one a kernel. */
#ifndef MC_RUNTIME_GPU_GRAPH_H
#define MC_RUNTIME_GPU_GRAPH_H

#include "runtime/gpu/gpu_walk.h"

enum { MC_GPU_GRAPHS = 8 };

typedef struct mc_gpu_graph {
    uint64_t key;      /* of sizes and addresses */
    uint64_t last_use; /* 0: free */
    CUgraphExec exec;  /* NULL: seen once */
} mc_gpu_graph;

typedef struct mc_gpu_graphs {
    mc_gpu_graph items[MC_GPU_GRAPHS];
    uint64_t clock;
} mc_gpu_graphs;

/* Queues the model's function with these arguments: the first time as launches, the second time as a graph, which later
 * times replay. A stream that is being captured by its owner gets launches. Errors: DEVICE. */
moec_status mc_gpu_graph_run(mc_gpu_graphs *g, mc_gpu_walk *w, size_t n_args, void *const *args) MOEC_MUST_USE;
void mc_gpu_graphs_free(mc_gpu_graphs *g, const mc_cuda *cuda);

#endif
