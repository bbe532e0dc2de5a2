/* links: what a byte costs between ranks, and a multiplication on one: rows of links.def, or a file's lines over them.
 *
 *     nodes = cx7-400        # a row of the table: between machines
 *     fabric = h800          # between ranks of one machine
 *     ranks = h800           # what one rank computes with
 *     nodes.rate = 43.5      # GB/s, one direction; measured: beats the row
 *     nodes.latency = 3      # microseconds for each message
 *     nodes.per = rank       # or node: the ranks of a machine share one
 *     ranks.compute = 600    # TFLOP/s
 *     ranks.memory = 3350    # GB/s
 */
#ifndef MC_PASSES_EP_LINKS_H
#define MC_PASSES_EP_LINKS_H

#include "ir/diag.h"

typedef enum mc_ep_link_kind { MC_EP_LINK_NODES, MC_EP_LINK_FABRIC } mc_ep_link_kind;

typedef struct mc_ep_link {
    const char *name; /* of the row */
    mc_ep_link_kind kind;
    double rate, port; /* GB/s */
    double latency;    /* us a message */
    bool per_node;     /* shared by the ranks of a machine */
    bool copied;       /* by the ranks' processors, one thing after another */
    bool measured;     /* the rate stands in a file; else it is assumed */
    const char *source;
} mc_ep_link;

typedef struct mc_ep_processor {
    const char *name;
    double compute, memory; /* TFLOP/s, GB/s */
    bool measured;
    const char *source;
} mc_ep_processor;

typedef struct mc_ep_links {
    mc_ep_link nodes, fabric;
    mc_ep_processor ranks;
} mc_ep_links;

/* Processors of this table and 10gbe between them. */
void mc_ep_links_default(mc_ep_links *out);
/* "cx7-400,h800": rows of any kind, one of each at most. False when some name is in no table; nothing is reported. */
bool mc_ep_links_named(mc_str names, mc_ep_links *out);
/* The lines of a file over the defaults. False: E0802 says what is wrong, at its line. */
bool mc_ep_links_parse(const mc_sources *sources, uint32_t file, mc_ep_links *out, mc_diags *diags);

#endif
