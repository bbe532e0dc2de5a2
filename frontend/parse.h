/* parse: a .moe text into its tree (ast.h), by recursive descent over docs/LANGUAGE.md's grammar. */
#ifndef MC_FRONTEND_PARSE_H
#define MC_FRONTEND_PARSE_H

#include "frontend/ast.h"
#include "ir/diag.h"

/* Never NULL; after a syntax error the parser goes on at the next statement or item, so one run reports several.
 * The tree is usable only if no error was added to diags. */
mc_file *mc_parse(mc_arena *arena, const mc_sources *sources, uint32_t file, mc_diags *diags);

#endif
