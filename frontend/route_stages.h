/* route_stages: the handlers of stages.def. Scores are transformed in stage_score.c, experts chosen in stage_choose.c.
 */
#ifndef MC_FRONTEND_ROUTE_STAGES_H
#define MC_FRONTEND_ROUTE_STAGES_H

#include "frontend/elab.h"

#define MC_STAGE(name, params, has_weights) bool mc_stage_##name(mc_elab *e, mc_route_state *r, mc_call *c);
#include "frontend/stages.def"
#undef MC_STAGE

/* A pure op whose first result replaces *v; false after an error. */
bool mc_stage_emit(mc_elab *e, mc_span span, mc_opcode opcode, mc_value *const *operands, int n_operands,
                   const mc_named_attr *attrs, int n_attrs, mc_value **v);
/* Replaces the values; the keys follow as long as no stage has set them apart. */
void mc_stage_set_value(mc_route_state *r, mc_value *v);
/* E0304 unless there are scores, or unless nothing is chosen yet. */
bool mc_stage_needs_scores(mc_elab *e, mc_route_state *r, const mc_call *c);
bool mc_stage_before_choice(mc_elab *e, mc_route_state *r, const mc_call *c, const char *why);
mc_value *mc_stage_weight(mc_elab *e, const mc_call *c, const char *leaf, const mc_dim *dims, int rank,
                          moec_dtype dtype);

#endif
