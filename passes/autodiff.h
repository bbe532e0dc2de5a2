/* autodiff: what autodiff.c (functions, signatures, the pass) and autodiff_backward.c (one backward function) share. */
#ifndef MC_PASSES_AUTODIFF_H
#define MC_PASSES_AUTODIFF_H

#include "passes/derive.h"
#include "passes/pass.h"
#include "passes/taps.h"

typedef MC_VEC(int) mc_ints;

/* A function and its backward.
 *   forward:  (x...) -> (results..., taps..., saved...)
 *   backward: (x[reads]..., saved..., d results[dy]..., d taps that are sums...) -> (d x[dx]...) */
typedef struct mc_pair {
    mc_func *forward, *backward;
    bool *active;          /* of each formal: its derivative is wanted */
    MC_VEC(mc_str) scopes; /* of every instance */
    bool trains;           /* some parameter in it or below it is trained */
    mc_taps taps;          /* of forward */
    mc_values saved;
    mc_ints reads, dy, dx;
} mc_pair;

typedef struct mc_autodiff {
    mc_pass *pass;
    mc_module *module;
    mc_map pairs; /* name of the function -> mc_pair */
    mc_map taps;  /* name of the function -> mc_pair.taps */
    mc_str frozen;
    bool recompute;
} mc_autodiff;

/* The pair of a function that the model reaches, else NULL. */
mc_pair *mc_autodiff_pair(const mc_autodiff *a, const mc_func *f);
/* Whether the parameter that this weight op reads gets a gradient. */
bool mc_autodiff_trains(const mc_autodiff *a, const mc_pair *p, const mc_op *weight);
/* Marks, by id, the values that depend on an active formal or a trained parameter. */
void mc_autodiff_activity(const mc_autodiff *a, const mc_pair *p, bool *active);
/* Makes p->backward, and fills saved, reads, dy and dx. Taps are known, calls give what their callees save. */
bool mc_autodiff_backward(mc_autodiff *a, mc_pair *p);

#endif
