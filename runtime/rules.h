/* rules: the `weights` block of a model, which says where each weight's numbers are in a checkpoint.
 *
 *     weights hf {
 *       "layers.{i}.mlp.experts.up.weight" <- "model.layers.{i}.experts.{e}.w3.weight"     # {e} only here: stacked
 *       "**.gate.weight", "**.up.weight"   <- "model.**.gate_up" | split(axis = 1)
 *       "**"                               <- "model.**"
 *       ignore "model.layers.61.**"
 *     }
 *
 * Patterns: `{name}` and `*` match one or more characters but no dot, `**` one or more characters. Equal names match
 * equal text. On the right, names take what they matched; unnamed wildcards take theirs in order. */
#ifndef MC_RUNTIME_RULES_H
#define MC_RUNTIME_RULES_H

#include "runtime/base/file.h"

enum { MC_MAX_TARGETS = 8, MC_MAX_STAGES = 8, MC_MAX_CAPTURES = 8, MC_MAX_STAGE_INTS = 6, MC_PATH_BYTES = 512 };

typedef enum mc_stage_kind {
    MC_STAGE_SPLIT,
    MC_STAGE_UNZIP,
    MC_STAGE_TRANSPOSE,
    MC_STAGE_RESHAPE,
    MC_STAGE_STACK,
    MC_STAGE_CONCAT,
    MC_STAGE_ADD,
    MC_STAGE_SCALE,
    MC_STAGE_CAST,
    MC_STAGE_MXFP4,
    MC_STAGE_FP8
} mc_stage_kind;

typedef struct mc_stage {
    mc_stage_kind kind;
    int64_t ints[MC_MAX_STAGE_INTS]; /* axis; a, b; dims; o, i */
    int n_ints;
    double number; /* add, scale */
} mc_stage;

typedef struct mc_rule {
    bool ignore; /* then the targets are patterns of tensors to ignore */
    mc_str targets[MC_MAX_TARGETS];
    int n_targets;
    mc_str source;
    mc_str stacked; /* the name that is only in the source; empty: none */
    mc_stage stages[MC_MAX_STAGES];
    int n_stages;
} mc_rule;

typedef struct mc_rule_map { /* one weights block */
    mc_str name;
    size_t first, n;
} mc_rule_map;

typedef struct mc_rules {
    mc_rule *rules;
    size_t n_rules;
    mc_rule_map *maps;
    size_t n_maps;
} mc_rules;

/* Texts of the result lie in `text`, which must stay. Empty text: one map with the rule "**" <- "**".
 * Errors: SYNTAX, MEMORY. */
moec_status mc_rules_parse(const char *text, mc_rules *out, mc_fault *error) MOEC_MUST_USE;
void mc_rules_fini(mc_rules *rules);
/* Whether its stages leave a stacked rule's sources apart, so that axis 0 counts them: they neither join them nor stack
 * them and go on. */
bool mc_rule_keeps_parts(const mc_rule *rule);
const char *mc_stage_name(mc_stage_kind kind);

typedef struct mc_capture {
    mc_str name; /* empty: a wildcard without a name */
    mc_str text;
} mc_capture;

typedef struct mc_captures {
    mc_capture items[MC_MAX_CAPTURES];
    int n;
} mc_captures;

bool mc_pattern_match(mc_str pattern, mc_str path, mc_captures *out);
/* Writes the source's name with captures put in; `index` takes the place of the stacked name (negative: leave its
 * braces, for messages). False: longer than MC_PATH_BYTES. */
bool mc_rule_source(const mc_rule *rule, const mc_captures *captures, int64_t index, char *out);

#endif
