/* app_route: recording which experts tokens choose, and sending them to recorded ones, step by step. What app_route.c
 * (layers, steps, recording) and app_replay.c (steps of a trace) share. */
#ifndef MC_RUNTIME_APP_APP_ROUTE_H
#define MC_RUNTIME_APP_APP_ROUTE_H

#include "runtime/app/app.h"
#include "runtime/trace.h"

/* One layer of experts of the model. */
typedef struct mc_route_layer {
    char *name;      /* of what has the experts: "layers.3.mlp" */
    uint32_t output; /* its choices, i32 [..., k] */
    uint32_t input;  /* what it is made to choose, likewise; UINT32_MAX: nothing */
    uint64_t *loads; /* choices of each expert so far */
    int32_t *given;  /* what it was made to choose in this step */
    size_t n_given, cap_given;
} mc_route_layer;

typedef struct mc_replay mc_replay;

struct mc_app_route {
    mc_trace_info info;
    mc_trace_layer *named; /* info.layers */
    mc_route_layer *layers;
    mc_trace_writer *writer;                        /* NULL: nothing is recorded */
    mc_replay *replay;                              /* NULL: routes choose themselves */
    uint64_t n_steps, n_tokens, n_choices, n_other; /* other: than those it was made to choose */
};

/* ---- app_replay.c ---- */

int mc_replay_open(mc_app *app, const char *path, mc_replay **out);
void mc_replay_close(mc_replay *r); /* NULL is allowed */
/* The next step's choices to every layer's `given`. Its tokens divide into n_sequences equal parts of at most `most`:
 * *out_each. Prints what does not fit. */
int mc_replay_step(mc_app *app, size_t n_sequences, size_t most, size_t *out_each);
/* Whether all of it has been replayed; prints what is left. */
int mc_replay_finish(mc_app *app);

#endif
