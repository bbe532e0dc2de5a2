/* path: names of weights and states, parts with dots between them: layers.3.mlp.gate.weight. */
#ifndef MC_BASE_PATH_H
#define MC_BASE_PATH_H

#include "runtime/base/str.h"

/* scope.path; the other one when one of them is empty. In the arena, or one of the arguments. */
mc_str mc_path_join(mc_arena *arena, mc_str scope, mc_str path);
/* `**` matches any number of parts, `*` any run of characters within one. */
bool mc_path_matches(mc_str glob, mc_str path);
/* The glob that begins at *at of a list of them, by commas; moves *at to the next. False at the end. */
bool mc_path_next_glob(mc_str globs, size_t *at, mc_str *out_glob);
/* Whether one of the list matches. */
bool mc_path_matches_any(mc_str globs, mc_str path);

#endif
