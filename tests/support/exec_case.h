/* exec_case: a .moir file together with weights, inputs and expected results (format: tests/exec/README.md). The
 * interpreter must give the expected numbers; every backend must give what the interpreter gives.
 *
 *     mc_exec_case *c = mc_exec_load("tests/exec/moe_softmax.moir", arena, diags);
 *     options.weight = mc_exec_weight, options.weight_user = c;
 *     for each step: set c->sets, run c->steps[i].inputs, compare with c->steps[i].expects
 */
#ifndef MC_SUPPORT_EXEC_CASE_H
#define MC_SUPPORT_EXEC_CASE_H

#include "tests/support/close.h"
#include "tests/support/synthetic.h"

typedef struct mc_exec_expect {
    int result;
    bool exact;         /* compare as numbers, all equal (NaN equals NaN) */
    mc_tol_class class; /* otherwise */
    mc_ref_tensor want; /* f64, rank 1 */
} mc_exec_expect;

typedef struct mc_exec_gradient { /* of a trained model: of a parameter by its full path, of an input as "input 0" */
    mc_str name;
    mc_tol_class class;
    mc_ref_tensor want; /* f64, rank 1 */
} mc_exec_gradient;

typedef struct mc_exec_same {
    int a, b;
} mc_exec_same;

typedef struct mc_exec_step {
    MC_VEC(mc_ref_tensor) inputs;
    MC_VEC(mc_exec_expect) expects;
    MC_VEC(mc_exec_same) same; /* results that must have the same bits */
    MC_VEC(mc_ref_tensor) cotangents;
    MC_VEC(mc_exec_gradient) gradients;
    MC_VEC(int64_t) pieces; /* the same run cut along S must give the same bits */
    mc_code fails;          /* the error that the run must end with; MC_N_CODES when it must succeed */
} mc_exec_step;

typedef struct mc_exec_set {
    mc_str name;
    int64_t value;
} mc_exec_set;

typedef struct mc_exec_case {
    mc_arena *arena;
    mc_sources sources;
    mc_module *module; /* owned: mc_exec_close */
    MC_VEC(mc_exec_step) steps;
    MC_VEC(mc_exec_set) sets;
    mc_tol_class within; /* between a backend and the interpreter: MODEL unless the file says otherwise */
    mc_map weights; /* full path -> mc_ref_tensor */
    bool has_synthetic;
    mc_synthetic synthetic; /* for all other weights */
} mc_exec_case;

/* NULL after a diagnostic. The case lives in the arena, its module until mc_exec_close. */
mc_exec_case *mc_exec_load(const char *path, mc_arena *arena, mc_diags *diags);
void mc_exec_close(mc_exec_case *c); /* NULL is allowed */
/* A mc_ref_weight_fn; user is the case. */
bool mc_exec_weight(void *user, const mc_ref_weight_request *request, mc_ref_tensor *out);

#endif
