/* expert_body: an expert's body, written for one expert's rows, becomes ops on the rows of all experts at once. */
#ifndef MC_PASSES_EXPERT_BODY_H
#define MC_PASSES_EXPERT_BODY_H

#include "passes/clone.h"

/* Whether the body can be expanded: every op treats each row by itself. False: E0505 at `site` and the offending op. */
bool mc_expert_body_check(const mc_op *site, const mc_func *body, int64_t experts, mc_diags *diags);
/* Puts the body's ops before b's cursor, applied to rows [A, d] sorted by expert as offsets [E + 1] say. The result, or
 * NULL with E0505. */
mc_value *mc_expert_body_inline(mc_clone *c, mc_builder *b, const mc_func *body, int64_t experts, mc_value *rows,
                                mc_value *offsets);

#endif
