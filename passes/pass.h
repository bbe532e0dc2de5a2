/* pass: the pass table, what a running pass sees, and the one function that runs pipelines.
 *
 *     mc_pass_options o = mc_pass_options_default();
 *     if (!mc_run_pipeline(module, MC_STR("@default"), &o, diags)) ... diags says why
 */
#ifndef MC_PASSES_PASS_H
#define MC_PASSES_PASS_H

#include "ir/diag.h"
#include "ir/ir.h"

typedef enum mc_pass_result { MC_UNCHANGED, MC_CHANGED, MC_FAILED } mc_pass_result;

typedef struct mc_pass mc_pass;
/* MC_FAILED: the pass has reported why, and the module must not be used any further. */
typedef mc_pass_result mc_pass_fn(mc_pass *p, mc_module *m);

/* ---- the tables of passes.def -------------------------------------------------------------------------------- */

typedef struct mc_pass_option_info {
    const char *name;
    int64_t value, least, greatest; /* value: the default */
    const char *doc;
} mc_pass_option_info;

typedef struct mc_pass_info {
    const char *name;
    mc_pass_fn *run;
    unsigned stages; /* bits MC_IN_TENSOR ... of ir/op.h */
    bool to_plan;    /* leaves stage plan; otherwise the stage stays */
    bool required;
    const mc_pass_option_info *options;
    int n_options;
    const char *doc;
} mc_pass_info;

typedef struct mc_pass_order {
    const char *first, *then, *why;
} mc_pass_order;

typedef struct mc_named_pipeline {
    const char *name, *text;
} mc_named_pipeline;

extern const mc_pass_info mc_passes[];
extern const int mc_n_passes;
extern const mc_pass_order mc_pass_orders[];
extern const int mc_n_pass_orders;
extern const mc_named_pipeline mc_named_pipelines[];
extern const int mc_n_named_pipelines;

const mc_pass_info *mc_pass_find(mc_str name);          /* NULL when unknown */
const mc_named_pipeline *mc_pipeline_find(mc_str name); /* NULL when unknown */

/* ---- running ----------------------------------------------------------------------------------------------------- */

/* A value for an option of every pass that has it, unless the pipeline's text gives one. */
typedef struct mc_pass_setting {
    mc_str key;
    int64_t value;
} mc_pass_setting;

/* What happened in one step. Everything is borrowed for the duration of the call. */
typedef struct mc_step_report {
    int index; /* from 1, counting every time a pass runs */
    const char *pass;
    mc_pass_result result;
    bool skipped;
    double seconds;
    int64_t n_rewrites;
    mc_str last_rewrite; /* not empty: fuel ran out in this step, and this op was the last one rewritten */
    const mc_module *module;
} mc_step_report;

typedef struct mc_pass_options {
    const mc_str *skip; /* names of passes to leave out; required ones are refused */
    size_t n_skip;
    const mc_pass_setting *settings;
    size_t n_settings;
    bool verify_each;     /* verify the input, and the module after every change */
    bool roundtrip_each;  /* after every change, print, read and print again: the texts must be equal */
    bool check_unchanged; /* a pass that says "unchanged" must leave the text as it was */
    bool limit_fuel;      /* stop after `fuel` rewrites in the whole pipeline */
    int64_t fuel;
    const char *dump_dir; /* numbered files, one per step that changed something; NULL: none */
    void (*on_step)(void *user, const mc_step_report *report); /* for printing, timing, statistics; may be NULL */
    void (*on_reproducer)(void *user, mc_str text); /* on an internal error: input and pipeline as one .moir */
    void *user;
} mc_pass_options;

/* Everything off; the three checks on in debug builds. */
mc_pass_options mc_pass_options_default(void);

/* Parses the pipeline, checks its order, and runs it on the module. False: diags has at least one error. */
bool mc_run_pipeline(mc_module *m, mc_str pipeline_text, const mc_pass_options *options, mc_diags *diags);

/* ---- inside a pass ----------------------------------------------------------------------------------------------- */

struct mc_pass {
    const mc_pass_info *info;
    mc_diags *diags;
    mc_arena *scratch; /* reset after the step */
    const struct mc_step *step;
    const mc_pass_options *options;
    int64_t fuel_left; /* < 0: unlimited */
    int64_t n_rewrites;
    mc_str last_rewrite;
};

/* Asks for leave to rewrite `site`; false: out of fuel, leave it as it is. Required passes do not ask. */
bool mc_fuel(mc_pass *p, const mc_op *site);
/* An option from the pipeline's text, else from the settings, else from the table. */
int64_t mc_pass_option(const mc_pass *p, const char *name);

/* Runs fn on every function in turn and combines the results; stops at the first failure. */
typedef mc_pass_result mc_func_fn(mc_pass *p, mc_func *f);
mc_pass_result mc_pass_over_funcs(mc_pass *p, mc_module *m, mc_func_fn *fn);

#define MC_PASS(ID, function, ...) mc_pass_fn mc_pass_##function;
#include "passes/passes.def"
#undef MC_PASS

#endif
