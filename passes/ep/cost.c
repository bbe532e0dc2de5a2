/* Byte and time formulas. With R ranks on N machines, T tokens of b bytes a rank and F(G) the groups a token reaches:
 *
 *                 by expert          by rank              by node             all
 *     to others   T k (N-1)/N b      T F(R) (N-1)/N b     T F(N) (N-1)/N b    T (N-1) b
 *     in fabric   T k / N b          T F(R) / N b         T F(R) b            T b
 *
 * By expert and by rank, rows from other machines arrive on the receiver's own link and never cross the fabric; by node
 * all of them do. tests/unit/test_ep_plan.c holds this against published measurements. */
#include "passes/ep/cost.h"

mc_ep_flow
mc_ep_flow_of(const mc_ep_load *l, int way, double row_bytes)
{
    double tokens = (double)l->tokens, ranks = (double)l->ranks, nodes = (double)l->nodes;
    double all = tokens * row_bytes, away = (nodes - 1) / nodes;
    int64_t on_node = l->ranks / l->nodes;
    mc_ep_flow f = {.node_messages = l->ranks - on_node, .fabric_messages = on_node - 1};
    switch (way) {
    case MC_EP_BY_EXPERT:
        f.rows = tokens * (double)l->choice.k;
        f.nodes = f.rows * away * row_bytes;
        f.fabric = f.rows / nodes * row_bytes;
        break;
    case MC_EP_BY_RANK:
        f.rows = tokens * mc_ep_hits(&l->choice, l->ranks, l->spread);
        f.nodes = f.rows * away * row_bytes;
        f.fabric = f.rows / nodes * row_bytes;
        break;
    case MC_EP_BY_NODE:
        f.rows = tokens * mc_ep_hits(&l->choice, l->ranks, l->spread);
        f.nodes = mc_ep_hits(&l->choice, l->nodes, l->spread) * away * all;
        f.fabric = f.rows * row_bytes;
        f.node_messages = l->nodes - 1;
        break;
    default:
        f.rows = tokens * ranks;
        f.nodes = (nodes - 1) * all;
        f.fabric = (ranks - 1) * all;
        f.node_messages = l->nodes - 1;
    }
    return f;
}

mc_ep_flow
mc_ep_flow_add(mc_ep_flow a, mc_ep_flow b)
{
    return (mc_ep_flow){a.rows + b.rows, a.nodes + b.nodes, a.fabric + b.fabric, a.node_messages + b.node_messages,
                        a.fabric_messages + b.fabric_messages};
}

double
mc_ep_most_sent(const mc_ep_load *l, int way)
{
    int64_t on_node = l->ranks / l->nodes, others = l->ranks - on_node, rows = l->nodes - 1;
    if (l->nodes == 1) return 0;
    if (way == MC_EP_BY_EXPERT) rows = l->choice.k;
    if (way == MC_EP_BY_RANK) rows = mc_ep_reach(&l->choice, l->ranks, l->spread);
    if (way == MC_EP_BY_RANK && rows > others) rows = others;
    if (way == MC_EP_BY_NODE && rows > mc_ep_reach(&l->choice, l->nodes, l->spread))
        rows = mc_ep_reach(&l->choice, l->nodes, l->spread);
    return (double)l->tokens * (double)rows;
}

double
mc_ep_flow_time(const mc_ep_flow *f, const mc_ep_load *l, const mc_ep_links *links)
{
    double sharing = links->nodes.per_node ? (double)l->on_node : 1;
    double nodes =
        f->nodes * sharing / (links->nodes.rate * 1e9) + (double)f->node_messages * links->nodes.latency * 1e-6;
    double fabric = f->fabric / (links->fabric.rate * 1e9) + (double)f->fabric_messages * links->fabric.latency * 1e-6;
    if (links->fabric.copied) return nodes + fabric;
    return nodes > fabric ? nodes : fabric;
}

double
mc_ep_row_bytes(int64_t width, moec_dtype wire)
{
    double elements = (double)width;
    if (wire == MOEC_F8E4M3) return elements + 4.0 * (double)((width + 127) / 128);
    return elements * (wire == MOEC_F32 ? 4 : 2);
}

double
mc_ep_experts_time(double rows, double products, double weight_bytes, const mc_ep_processor *ranks)
{
    double work = 2 * products * rows / (ranks->compute * 1e12);
    double reading = weight_bytes / (ranks->memory * 1e9);
    return work > reading ? work : reading;
}

double
mc_ep_pipelined(const double *stages, int n, int chunks, double each)
{
    double longest = 0, sum = 0;
    for (int i = 0; i < n; i++) {
        sum += stages[i];
        if (stages[i] > longest) longest = stages[i];
    }
    return longest + (sum - longest) / chunks + chunks * each;
}

double
mc_ep_one_sided_time(const mc_ep_load *l, double row_bytes, double work, const mc_ep_link *nodes)
{
    mc_ep_flow f = mc_ep_flow_of(l, MC_EP_BY_EXPERT, row_bytes);
    return work + f.nodes / (nodes->port * 1e9);
}
