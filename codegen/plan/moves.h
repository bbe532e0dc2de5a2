/* moves: operations that only move elements, as walks over axes with a step in the source and a step in the result.
 * Which walks an operation is, is the same for every backend; what a walk costs is not, so the backend launches it. */
#ifndef MC_CODEGEN_PLAN_MOVES_H
#define MC_CODEGEN_PLAN_MOVES_H

#include "codegen/plan/plan.h"

enum { MC_WALK_AXES = MC_MAX_RANK + 1 };

typedef struct mc_plan_walk {
    const mc_value *x, *y;
    mc_dim x_offset, y_offset;                                       /* elements */
    int n;                                                           /* axes, at least one */
    mc_dim size[MC_WALK_AXES], from[MC_WALK_AXES], to[MC_WALK_AXES]; /* outermost first; steps in x and y in elements */
} mc_plan_walk;

/* May change the walk. */
typedef void mc_plan_walk_fn(mc_plan *p, mc_plan_walk *w);

/* Launches the walks of split, concat, transpose, copy, slice, expand or tile. */
void mc_plan_moves(mc_plan *p, const mc_op *op, mc_plan_walk_fn *launch);

/* Whether a step is that of neighbours. */
bool mc_walk_is_one(mc_dim d);
/* The axis that op's `axis` means in a shape of this rank. */
int mc_walk_axis(const mc_op *op, int rank);

#endif
