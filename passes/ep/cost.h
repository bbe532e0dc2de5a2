/* cost: bytes on links and the time they take, for each way of exchanging rows. Everything is of one rank and one
 * layer. */
#ifndef MC_PASSES_EP_COST_H
#define MC_PASSES_EP_COST_H

#include "passes/ep/links.h"
#include "passes/ep/mesh.h"
#include "passes/ep/traffic.h"

/* Ways that can be weighed: those of mc_ep_exchange, then what is weighed only: every rank gets all rows (all-gather,
 * reduce-scatter), which no backend does. */
enum { MC_EP_BY_ALL = MC_EP_N_EXCHANGES, MC_EP_N_WAYS };

/* Ranks that share a layer's experts, and what each brings. */
typedef struct mc_ep_load {
    mc_ep_choice choice;
    int64_t ranks, nodes; /* nodes divides ranks */
    int64_t on_node;      /* ranks of all replicas that share a machine */
    int64_t tokens;
    bool spread; /* experts are dealt out in turn */
} mc_ep_load;

/* Bytes: those leaving for other machines, and those arriving from ranks of the same one (itself included, as measured
 * exchanges are quoted). The same in both directions of an exchange. */
typedef struct mc_ep_flow {
    double rows; /* that reach a rank in all */
    double nodes, fabric;
    int64_t node_messages, fabric_messages;
} mc_ep_flow;

mc_ep_flow mc_ep_flow_of(const mc_ep_load *load, int way, double row_bytes);
mc_ep_flow mc_ep_flow_add(mc_ep_flow a, mc_ep_flow b);
/* The most rows that a rank may send to other machines, whatever the router does. */
double mc_ep_most_sent(const mc_ep_load *load, int way);
/* Seconds. Where the processor copies itself, links add up; else the slowest decides. */
double mc_ep_flow_time(const mc_ep_flow *flow, const mc_ep_load *load, const mc_ep_links *links);

/* Bytes of a row on the wire: f8e4m3 with an f32 for each run of 128. */
double mc_ep_row_bytes(int64_t width, moec_dtype wire);

/* `rows` rows of `products` multiplications each, with weights that are read once. */
double mc_ep_experts_time(double rows, double products, double weight_bytes, const mc_ep_processor *ranks);

/* Stages that can run beside each other, cut in chunks: the longest, the others' first chunk, and `each` for a chunk.
 */
double mc_ep_pipelined(const double *stages, int n, int chunks, double each);

/* One-sided puts into a slot for every (token, expert), no counts: work on both sides, then remote bytes at the port's
 * rate. No backend here does it; it is what decoding on GPUs is compared with. */
#define MC_EP_ONE_SIDED_THERE 44e-6 /* s of work; DeepEP V1 with 128 tokens of 7168, fitted */
#define MC_EP_ONE_SIDED_BACK 65e-6
double mc_ep_one_sided_time(const mc_ep_load *load, double row_bytes, double work, const mc_ep_link *nodes);

#endif
