/* walk: visits every expression of a tree, parents before children. */
#ifndef MC_FRONTEND_WALK_H
#define MC_FRONTEND_WALK_H

#include "frontend/ast.h"

typedef void mc_visit_fn(void *context, const mc_expr *x);

/* All of them stop descending below a fixed depth, where the elaborator refuses the text anyway. */
void mc_walk_expr(const mc_expr *x, mc_visit_fn *visit, void *context);
void mc_walk_args(const mc_arg *args, mc_visit_fn *visit, void *context);
void mc_walk_body(const mc_stmt *body, mc_visit_fn *visit, void *context);
void mc_walk_item(const mc_item *item, mc_visit_fn *visit, void *context); /* signature and body, or value and args */

#endif
