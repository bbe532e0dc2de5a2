/* taps: what functions give beside their results. `output` ops become further results, from callees to callers: one
 * function is called for many layers, so its output is a result of every call, named by the call's scope. */
#ifndef MC_PASSES_TAPS_H
#define MC_PASSES_TAPS_H

#include "ir/build.h"

/* A value that a function gives beside its results. */
typedef struct mc_tap {
    mc_str name;
    bool sum;
    mc_value *value;
} mc_tap;

typedef struct mc_taps {
    int n_results;       /* before there were any */
    MC_VEC(mc_tap) list; /* sums first */
    int n_sums;
} mc_taps;

/* Taps of f's output ops and of its calls, which are made anew where their callees give more by now. `all`: name of a
 * function -> its mc_taps; callees come before callers, and out->n_results is known. False after an error. */
bool mc_taps_collect(mc_func *f, const mc_map *all, mc_taps *out, mc_arena *scratch, mc_diags *diags);
/* f returns its results, its taps, and `more` (may be NULL); its output ops are gone. */
bool mc_taps_return(mc_func *f, const mc_taps *taps, const mc_values *more, mc_arena *scratch, mc_diags *diags);

#endif
