/* format: `moec fmt`. One style: two spaces a level, one space around operators, columns where a reader looks for them
 * (clauses, settings, the arrows of weight rules, comments that follow code). Lines stay where the author broke them.
 */
#ifndef MC_FRONTEND_FORMAT_H
#define MC_FRONTEND_FORMAT_H

#include "ir/diag.h"

/* Appends the formatted text. False when the text has syntax errors (reported); nothing is appended then.
 * Law: formatting twice changes nothing more, and never changes the tokens. */
bool mc_format(mc_arena *arena, const mc_sources *sources, uint32_t file, mc_diags *diags, mc_buf *out);

#endif
