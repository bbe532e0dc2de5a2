/* plan: how the rows of every kind of MoE layer travel between ranks, what that takes, and why that way: decided here,
 * carried out by what plan-ep makes of the program, printed for whoever wants to know.
 *
 *     mc_ep_mesh mesh;
 *     if (mc_ep_mesh_read(m, &mesh, diags) && mc_ep_plan_make(m, &mesh, &settings, arena, diags, &plan))
 *         mc_ep_plan_text(&plan, false, &text);
 *
 * Equal modules, meshes and settings give equal plans, texts and hashes everywhere. */
#ifndef MC_PASSES_EP_PLAN_H
#define MC_PASSES_EP_PLAN_H

#include "ir/op.h"
#include "passes/ep/cost.h"

/* What a way of exchanging would take: there and back. */
typedef struct mc_ep_weighed {
    mc_ep_flow there, back;
    double there_time, back_time; /* s */
    const char *refused;          /* why it cannot be; NULL: it can */
} mc_ep_weighed;

typedef struct mc_ep_wire {
    moec_dtype dtype;
    double row_bytes;
    const char *why;
} mc_ep_wire;

/* MoE layers of one function: equal in everything but their weights. */
typedef struct mc_ep_layer {
    const mc_op *dispatch; /* its moe.dispatch */
    mc_str first, last;    /* full paths of the first and last call's experts */
    int64_t times;         /* how often a step runs it */
    bool experts_choose;   /* their tokens: load.choice.k is what a token gets in the mean */
    int64_t width, inner;  /* of a token's row, and inside an expert */
    double products;       /* multiplications for a row of one expert */
    double expert_bytes;   /* weights of one expert */
    moec_dtype dtype;      /* in which they are stored */
    bool reads_fp8;        /* what reads tokens' rows is in FP8 */

    mc_ep_load load;
    int64_t slots;         /* of a rank; slot s of all is of rank s / slots */
    const int32_t *placed; /* [ranks * slots]: the expert in each */
    mc_ep_exchange way;
    mc_ep_wire there, back;
    mc_ep_weighed ways[MC_EP_N_WAYS];
    double rows, assignments;           /* that a rank receives, expected */
    double most_rows, most_assignments; /* ... whatever the router does */
    double most_sent, most_back;        /* bytes a rank may send to other nodes */
    double experts_time;                /* s, of the busiest rank in the mean */
    double buffer_bytes;                /* for rows and results at their bounds */
    double covered;                     /* experts that are still held after the worst loss of one rank */
} mc_ep_layer;

typedef struct mc_ep_settings {
    int64_t tokens; /* of each rank in a step */
    mc_ep_links links;
    bool trains;
} mc_ep_settings;

typedef struct mc_ep_instance { /* a layer of the model, in order of execution */
    mc_str path;                /* of its experts: "layers.3.mlp" */
    size_t kind;                /* index into layers */
} mc_ep_instance;

typedef struct mc_ep_plan {
    mc_str model;
    mc_ep_mesh mesh;
    mc_ep_settings settings;
    MC_VEC(mc_ep_layer) layers;
    MC_VEC(mc_ep_instance) instances;
    double exchange_time, experts_time; /* s of a forward step, all layers */
    double deadline;                    /* s that any one wait may take */
    uint64_t hash;
} mc_ep_plan;

/* m: stage tensor, experts expanded (and fused, carved: as much as is to be). False: E0801 or E0803 says why.
 * The plan borrows from m and lives in the arena. A module without MoE layers gives a plan without layers. */
bool mc_ep_plan_make(const mc_module *m, const mc_ep_mesh *mesh, const mc_ep_settings *settings, mc_arena *arena,
                     mc_diags *diags, mc_ep_plan *out);
/* The layer of a moe.dispatch of the module, or, for one that routes again (backward), one of as many experts and
 * choices; NULL when there is none. */
const mc_ep_layer *mc_ep_plan_layer(const mc_ep_plan *plan, const mc_op *dispatch);
/* "expert", "rank", "node", "all". */
const char *mc_ep_way_name(int way);

/* explain: with formulas, sources, every rank's experts, and what other settings would give. */
void mc_ep_plan_text(const mc_ep_plan *plan, bool explain, mc_buf *out);
/* An object without its closing brace: more may follow. */
void mc_ep_plan_json(const mc_ep_plan *plan, mc_buf *out);

/* ---- between the plan's files ---- */

/* Every moe.dispatch that the model reaches, in order of the first call, with its shapes; no decisions yet. */
bool mc_ep_plan_find(const mc_module *m, mc_arena *arena, mc_diags *diags, mc_ep_plan *plan);

#endif
