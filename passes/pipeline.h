/* pipeline: the text that says which passes run, and in which order.
 *
 *     pipeline := step {"," step}
 *     step     := name ["{" key "=" integer {" " key "=" integer} "}"]
 *               | "repeat(" pipeline ")"       until nothing changes, at most 8 rounds
 *               | "@" name                     a named pipeline of passes.def
 *
 * Law: print(parse(print(p))) == print(p). */
#ifndef MC_PASSES_PIPELINE_H
#define MC_PASSES_PIPELINE_H

#include "passes/pass.h"

enum { MC_REPEAT_ROUNDS = 8 };

typedef enum mc_step_kind { MC_STEP_PASS, MC_STEP_REPEAT, MC_STEP_NAMED } mc_step_kind;

typedef struct mc_step mc_step;
typedef MC_VEC(mc_step) mc_pipeline;

struct mc_step {
    mc_step_kind kind;
    const mc_pass_info *pass;         /* PASS */
    MC_VEC(mc_pass_setting) settings; /* PASS; keys are the option table's */
    const mc_named_pipeline *named;   /* NAMED */
    mc_pipeline body;                 /* REPEAT and NAMED */
};

/* Everything the pipeline holds is in the arena. False: E0501 says what is wrong and where. */
bool mc_pipeline_parse(mc_str text, mc_arena *arena, mc_diags *diags, mc_pipeline *out);
void mc_pipeline_print(const mc_pipeline *pipeline, mc_buf *out);
/* The MC_BEFORE rows of which both passes occur. False: E0502 for each one broken. */
bool mc_pipeline_check_order(const mc_pipeline *pipeline, mc_arena *arena, mc_diags *diags);
/* The rest of mc_run_pipeline; `text` is for reproducers. */
bool mc_pipeline_run(const mc_pipeline *pipeline, mc_module *m, mc_str text, const mc_pass_options *options,
                     mc_diags *diags);

#endif
