/* infer: result types from operand types and attributes. One function per INFER column entry of ops.def. */
#ifndef MC_IR_INFER_H
#define MC_IR_INFER_H

#include "ir/diag.h"
#include "ir/op.h"

enum { MC_MAX_RESULTS = 2048 };

struct mc_infer {
    mc_module *module;
    mc_opcode opcode;
    mc_value *const *operands; /* n_operands of them; NULL = absent */
    int n_operands;
    const mc_attr *attrs; /* as in mc_op */
    mc_span span;
    mc_diags *diags;                        /* where a refusal is explained */
    int n_results;                          /* in: for TYPED ops; out: otherwise */
    const mc_type *results[MC_MAX_RESULTS]; /* in: declared types of TYPED ops; out: otherwise */
};

/* Runs the op's function after checking operand count, classes and required attributes against the table.
 * False: refused, and a diagnostic says why. */
bool mc_infer_run(mc_infer *in);

#endif
