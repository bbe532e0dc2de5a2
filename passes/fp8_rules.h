/* fp8_rules: the fp8 lines of a model's precision block, as they travel in the meta "precision.fp8", one line each:
 *
 *     e4m3, block = [128, 128], act = [1, 128], on = [attention, dense], except = [router, "layers.0.**"]
 *
 * A later line wins; within a line `except` beats `on`. Without `on` a line means attention and dense. */
#ifndef MC_PASSES_FP8_RULES_H
#define MC_PASSES_FP8_RULES_H

#include "ir/diag.h"

typedef enum mc_fp8_choice { MC_FP8_UNNAMED, MC_FP8_EXCEPTED, MC_FP8_CHOSEN } mc_fp8_choice;

typedef struct mc_fp8_glob {
    mc_str text;
    bool used; /* some weight matched it */
} mc_fp8_glob;

typedef struct mc_fp8_line {
    MC_VEC(mc_str) on;             /* roles */
    MC_VEC(mc_str) not_roles;      /* except */
    MC_VEC(mc_fp8_glob) not_paths; /* except: over full paths */
} mc_fp8_line;

typedef struct mc_fp8_rules {
    MC_VEC(mc_fp8_line) lines;
} mc_fp8_rules;

/* False: E0506 says what is wrong. The rules are in the arena and borrow from text. */
bool mc_fp8_rules_parse(mc_str text, mc_arena *arena, mc_diags *diags, mc_fp8_rules *out);
mc_fp8_choice mc_fp8_rules_choose(mc_fp8_rules *rules, mc_str role, mc_str path);

#endif
